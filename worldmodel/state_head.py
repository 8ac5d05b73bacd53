"""Reads the state of the end-effector, proprio, from the latents of one frame."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix, matrix_to_euler
from worldmodel.readout import Readout

POSE_SIZE = 3 + 6 + 1
POSE_POSITION, POSE_COLUMNS, POSE_GRIPPER = slice(0, 3), slice(3, 9), slice(9, 10)
MIN_POSE_STD = 0.05  # [m, or matrix entries]; keeps an axis the data never moves from exploding
MIN_COLUMN = 1e-3  # below this length the direction of a column says nothing


class StateHead(Readout):
    """Reads where hand and gripper are from the latents of one frame.

    Given the latents of a goal image, it tells a search where to go. As an objective of pretraining
    it makes an encoder see hand and gripper.

    Args:
        latent_dim: Size D of a latent token.
        num_tokens: Tokens N of a frame.
        token_dim: Size a token is projected to.
        hidden_dim: Width of the hidden layers.
        num_hidden: Number of hidden layers.
    """

    pose_mean: Tensor
    pose_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        num_tokens: int,
        token_dim: int = 64,
        hidden_dim: int = 512,
        num_hidden: int = 2,
    ):
        super().__init__(
            POSE_SIZE,
            latent_dim=latent_dim,
            num_tokens=num_tokens,
            token_dim=token_dim,
            hidden_dim=hidden_dim,
            num_hidden=num_hidden,
        )
        self.register_buffer("pose_mean", torch.zeros(POSE_SIZE))
        self.register_buffer("pose_std", torch.ones(POSE_SIZE))

    def forward(self, latents: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 7"]:
        """Returns proprio [m, rad, gripper], float32, with a true rotation and a gripper in [0, 1].

        Raises:
            ValueError: The latents have another shape than the model takes.
        """
        return proprio_of(self.normalised(latents) * self.pose_std + self.pose_mean)

    def normalise(self, proprio: Float[Tensor, "batch 7"]) -> Float[Tensor, "batch 10"]:
        """Returns what `normalised` should be for these states."""
        return (pose_vector(proprio) - self.pose_mean) / self.pose_std

    @torch.no_grad()
    def set_scales(self, proprio: Float[Tensor, "n 7"]) -> None:
        """Sets mean and scale of the pose vector from the states of the training data."""
        pose = pose_vector(proprio)
        self.pose_mean.copy_(pose.mean(0))
        self.pose_std.copy_(pose.std(0).clamp_min(MIN_POSE_STD))


def pose_vector(proprio: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch 10"]:
    """Returns position, the first two columns of the rotation matrix, and gripper.

    A gripper that looks straight down has roll pi or -pi; the matrix does not jump between them.
    """
    columns = euler_to_matrix(proprio[..., ROTATION])[..., :2].flatten(-2)
    return torch.cat((proprio[..., POSITION], columns, proprio[..., GRIPPER]), dim=-1)


def proprio_of(pose: Float[Tensor, "*batch 10"]) -> Float[Tensor, "*batch 7"]:
    """Returns the proprio that a pose vector, exact or not, comes nearest to.

    The columns are made a rotation (Gram-Schmidt, Zhou et al. 2019, arXiv 1812.07035, section 4.2),
    and the gripper is brought into [0, 1].
    """
    rotation = rotation_of(pose[..., POSE_COLUMNS].unflatten(-1, (3, 2)))
    gripper = pose[..., POSE_GRIPPER].clamp(0, 1)
    return torch.cat((pose[..., POSE_POSITION], matrix_to_euler(rotation), gripper), dim=-1)


def rotation_of(columns: Float[Tensor, "*batch 3 2"]) -> Float[Tensor, "*batch 3 3"]:
    """Returns rotation matrices whose first two columns are `columns` made orthonormal.

    A first column without a direction becomes the x axis; a second one without a direction of its
    own becomes the coordinate axis furthest from the first.
    """
    first, second = columns.unbind(-1)
    first = _unit_or(first, torch.eye(3, device=columns.device)[0].expand_as(first))
    furthest = F.one_hot(first.abs().argmin(-1), 3).to(first.dtype)
    second = _unit_or(_across(second, first), _across(furthest, first))
    third = torch.linalg.cross(first, second)
    return torch.stack((first, second, third), dim=-1)


def _across(vector: Tensor, axis: Tensor) -> Tensor:
    """Returns the part of vectors (..., 3) that is orthogonal to unit vectors `axis`."""
    return vector - (vector * axis).sum(-1, keepdim=True) * axis


def _unit_or(vector: Tensor, otherwise: Tensor) -> Tensor:
    """Returns vectors (..., 3) with length 1; `otherwise`, so too, where one is nearly zero."""
    found = vector.norm(dim=-1, keepdim=True) > MIN_COLUMN
    return F.normalize(torch.where(found, vector, otherwise), dim=-1)
