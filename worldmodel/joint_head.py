"""Reads the joints and the gripper of an arm from the latents of one frame."""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.readout import Readout

MIN_JOINT_STD = 0.05  # [rad, gripper]; keeps a joint that never moves from exploding


class JointHead(Readout):
    """What `StateHead` is to an arm that speaks in poses, to one that speaks in joints.

    Args:
        size: Joints and the gripper, which is the last.
        latent_dim: Size D of a latent token.
        num_tokens: Tokens N of a frame.
    """

    joints_mean: Tensor
    joints_std: Tensor

    def __init__(self, *, size: int, latent_dim: int, num_tokens: int):
        super().__init__(size, latent_dim=latent_dim, num_tokens=num_tokens)
        self.size = size
        self.register_buffer("joints_mean", torch.zeros(size))
        self.register_buffer("joints_std", torch.ones(size))

    def forward(self, latents: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch size"]:
        """Returns joints [rad, or m where they slide] and a gripper in [0, 1], float32.

        Raises:
            ValueError: The latents have another shape than the model takes.
        """
        read = self.normalised(latents) * self.joints_std + self.joints_mean
        return torch.cat((read[:, :-1], read[:, -1:].clamp(0, 1)), dim=1)

    def normalise(self, joints: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        """Returns what `normalised` should be for these joints."""
        return (joints - self.joints_mean) / self.joints_std

    @torch.no_grad()
    def set_scales(self, joints: Float[Tensor, "n size"]) -> None:
        """Sets mean and scale of every joint from those of the training data."""
        self.joints_mean.copy_(joints.mean(0))
        self.joints_std.copy_(joints.std(0).clamp_min(MIN_JOINT_STD))
