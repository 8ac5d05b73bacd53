"""Latent inverse dynamics: which action leads from one frame to another."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    ROTATION,
    action_between,
    euler_to_matrix,
)

POSE_SIZE = 3 + 6 + 1
MIN_POSE_STD = 0.05  # [m, or matrix entries]; keeps an axis the data never moves from exploding
MIN_ACTION_STD = 0.01  # [m, rad, gripper]


class InverseDynamics(nn.Module):
    """Reads the action between two frames from their latents and the pose at the first.

    A latent inverse dynamics model proposes at once what a search must find by many rollouts
    (arXiv 2605.08732), and as an objective of pretraining it makes an encoder see what the robot
    can change. Every token passes one narrow projection, so the tokens keep their places.

    Args:
        latent_dim: Size D of a latent token.
        num_tokens: Tokens N of a frame.
        token_dim: Size a token is projected to.
        hidden_dim: Width of the hidden layers.
        num_hidden: Number of hidden layers.
    """

    pose_mean: Tensor
    pose_std: Tensor
    action_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        num_tokens: int,
        token_dim: int = 64,
        hidden_dim: int = 512,
        num_hidden: int = 2,
    ):
        super().__init__()
        if num_hidden < 1:
            raise ValueError(f"num_hidden must be 1 or more, got {num_hidden}")
        self.latent_dim = latent_dim
        self.num_tokens = num_tokens
        self.token_dim = token_dim
        self.hidden_dim = hidden_dim
        self.num_hidden = num_hidden
        self.token_proj = nn.Linear(latent_dim, token_dim)
        sizes = [2 * num_tokens * token_dim + POSE_SIZE, *[hidden_dim] * num_hidden]
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, ACTION_SIZE))
        self.register_buffer("pose_mean", torch.zeros(POSE_SIZE))
        self.register_buffer("pose_std", torch.ones(POSE_SIZE))
        self.register_buffer("action_std", torch.ones(ACTION_SIZE))

    def forward(
        self,
        now: Float[Tensor, "batch tokens dim"],
        later: Float[Tensor, "batch tokens dim"],
        proprio: Float[Tensor, "batch 7"],
    ) -> Float[Tensor, "batch 7"]:
        """Returns the action [m, rad, gripper], float32, that leads from `now` to `later`.

        Args:
            now: Latents of the first frame.
            later: Latents of a later frame, or of a goal.
            proprio: End-effector state at the first frame.

        Raises:
            ValueError: The latents have another shape than the model takes.
        """
        expected = (len(proprio), self.num_tokens, self.latent_dim)
        for name, latents in (("now", now), ("later", later)):
            if latents.shape != expected:
                raise ValueError(
                    f"latents `{name}` must have shape {expected} to go with proprio "
                    f"{tuple(proprio.shape)}, got {tuple(latents.shape)}"
                )
        tokens = self.token_proj(torch.stack((now, later), dim=1)).flatten(1)
        pose = (pose_vector(proprio) - self.pose_mean) / self.pose_std
        return self.mlp(torch.cat((tokens, pose.to(tokens.dtype)), dim=1)).float() * self.action_std

    @torch.no_grad()
    def set_scales(self, now: Float[Tensor, "batch 7"], later: Float[Tensor, "batch 7"]) -> None:
        """Sets the scales of pose and action from proprio pairs of the training data."""
        pose, actions = pose_vector(now), action_between(now, later)
        self.pose_mean.copy_(pose.mean(0))
        self.pose_std.copy_(pose.std(0).clamp_min(MIN_POSE_STD))
        self.action_std.copy_(actions.std(0).clamp_min(MIN_ACTION_STD))


def pose_vector(proprio: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch 10"]:
    """Returns position, the first two columns of the rotation matrix, and gripper.

    A gripper that looks straight down has roll pi or -pi; the matrix does not jump between them.
    """
    columns = euler_to_matrix(proprio[..., ROTATION])[..., :2].flatten(-2)
    return torch.cat((proprio[..., POSITION], columns, proprio[..., GRIPPER]), dim=-1)
