"""Plan behind a camera that stands elsewhere than the one the model was trained with.

The model then takes a move of the arm for one that is turned about the vertical. Here it is given
every horizontal move turned back, so bounds, warm starts and plans stay those of the arm. Turns of
the hand and the gripper are left as they are.

`worldmodel validate` measures the rotation. Source of the idea: V-JEPA 2 (Assran et al. 2025, arXiv
2506.09985), the section on sensitivity to the camera position.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.planners.interfaces import Proposer, WorldModel


class TurnedWorld:
    """A world model that is spoken to in the arm's directions, whatever its own are.

    Args:
        world: The model; its `control_hz` and `action_limit` are passed on where it has them.
        rotation: Turns the model's horizontal moves (x, y) into the arm's; determinant 1.

    Raises:
        ValueError: This is no rotation.
    """

    def __init__(self, world: WorldModel, rotation: Float[np.ndarray, "2 2"]) -> None:
        matrix = torch.as_tensor(np.asarray(rotation), dtype=torch.float64)
        is_one = matrix.shape == (2, 2) and torch.allclose(
            matrix @ matrix.mT, torch.eye(2, dtype=torch.float64), atol=1e-5
        )
        if not is_one or torch.det(matrix) < 0:
            raise ValueError(
                f"expected a rotation of the plane, 2 x 2 of determinant 1, got {matrix.tolist()}"
            )
        self.world = world
        self.rotation = matrix.float()
        self.num_views = getattr(world, "num_views", 1)
        self.control_hz = getattr(world, "control_hz", None)
        self.action_limit = getattr(world, "action_limit", None)

    def encode(self, frames: Tensor) -> Float[Tensor, "batch time token latent"]:
        """Returns the model's latents."""
        return self.world.encode(frames)

    def predict(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        """Returns the next latents of every step of the arm."""
        return self.world.predict(latents, proprio, self._turned(actions, self.rotation.mT))

    def rollout(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        """Returns the latents imagined after the context, for moves of the arm."""
        return self.world.rollout(latents, proprio, self._turned(actions, self.rotation.mT))

    def propose(
        self,
        latents: Float[Tensor, "batch token latent"],
        proprio: Float[Tensor, "batch proprio"],
        goal: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch action"]:
        """Returns the model's proposals as moves of the arm.

        Raises:
            TypeError: The model makes no proposals.
        """
        if not isinstance(self.world, Proposer):
            raise TypeError(
                f"{type(self.world).__name__} has no method propose(latents, proprio, goal); set "
                "num_proposals to 0 or take a model trained with a state head"
            )
        return self._turned(self.world.propose(latents, proprio, goal), self.rotation)

    def _turned(self, actions: Tensor, rotation: Tensor) -> Tensor:
        with torch.autocast(actions.device.type, enabled=False):  # millimetres need float32
            planar = actions[..., :2] @ rotation.to(actions).mT
        return torch.cat([planar, actions[..., 2:]], dim=-1)
