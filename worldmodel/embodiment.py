"""Robots that do not speak in end-effector poses: action and proprio projections of their own."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

END_EFFECTOR = "end_effector"  # the embodiment every predictor has, V-JEPA 2-AC's


class Embodiment(nn.Module):
    """Projections of one robot's action and proprio, fed as they are through scales of its own.

    Args:
        action_size: Numbers in an action.
        proprio_size: Numbers in a proprio.
        embed_dim: Width of the transformer.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    action_std: Tensor
    action_limit: Tensor

    def __init__(self, *, action_size: int, proprio_size: int, embed_dim: int):
        super().__init__()
        self.action_encoder = nn.Linear(action_size, embed_dim)
        self.state_encoder = nn.Linear(proprio_size, embed_dim)
        self.register_buffer("proprio_mean", torch.zeros(proprio_size))
        self.register_buffer("proprio_std", torch.ones(proprio_size))
        self.register_buffer("action_std", torch.ones(action_size))
        self.register_buffer("action_limit", torch.ones(action_size))  # as far as it was trained

    def forward(
        self, proprio: Float[Tensor, "*batch proprio"], actions: Float[Tensor, "*batch action"]
    ) -> list[Tensor]:
        """Returns the action token and the proprio token, each (..., embed_dim)."""
        scaled = (proprio - self.proprio_mean) / self.proprio_std
        return [self.action_encoder(actions / self.action_std), self.state_encoder(scaled)]


def embodiment_sizes(embodiments: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Returns (action size, proprio size) by name, checked.

    Raises:
        ValueError: A name is not free, or the sizes are not two positive numbers.
    """
    for name, sizes in embodiments.items():
        if name == END_EFFECTOR or "." in name:
            raise ValueError(
                f"an embodiment must not be named {name!r}: every predictor has {END_EFFECTOR!r} "
                "already, and names hold no dots"
            )
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(
                f"embodiment {name!r} must have two sizes of 1 or more, (action, proprio), "
                f"got {tuple(sizes)}"
            )
    return {name: (int(action), int(proprio)) for name, (action, proprio) in embodiments.items()}
