"""A world model of several cameras, as planners and measures know every model: a row of tokens.

They compare latents token by token and never ask what a token shows, so the V times N tokens of a
moment are N tokens of a wider picture to them. Only the predictor tells views apart.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from worldmodel.embodiment import END_EFFECTOR
from worldmodel.jepa import JEPA
from worldmodel.views import camera_names


class JoinedViews:
    """A world model whose latents are the tokens of all views, one after the other.

    Args:
        world: The model; it sees at least two views.
    """

    def __init__(self, world: JEPA):
        self.world = world
        self.num_views: int = world.predictor.num_views
        self.control_hz = world.control_hz
        self.action_limit: Sequence[float] | None = world.action_limit
        self.state_head = world.state_head  # reads proprio from the tokens of all views

    def encode(self, frames: Tensor) -> Float[Tensor, "batch frames tokens dim"]:
        """Returns the latents of frames (B, T, V, height, width, 3)."""
        return self.world.encode(frames).flatten(2, 3)

    def predict(
        self,
        latents: Float[Tensor, "batch frames tokens dim"],
        proprio: Float[Tensor, "batch frames proprio"],
        actions: Float[Tensor, "batch frames action"],
        embodiment: str = END_EFFECTOR,
    ) -> Float[Tensor, "batch frames tokens dim"]:
        """Returns the latents predicted for the frame after each given one."""
        apart = self._apart(latents)
        return self.world.predict(apart, proprio, actions, embodiment=embodiment).flatten(2, 3)

    def rollout(
        self,
        latents: Float[Tensor, "batch context tokens dim"],
        proprio: Float[Tensor, "batch states 7"],
        actions: Float[Tensor, "batch *samples steps action"],
    ) -> Float[Tensor, "batch *samples horizon tokens dim"]:
        """Imagines what follows C frames, see `JEPA.rollout`."""
        return self.world.rollout(self._apart(latents), proprio, actions).flatten(-3, -2)

    def propose(
        self,
        latents: Float[Tensor, "batch tokens dim"],
        proprio: Float[Tensor, "batch 7"],
        goal: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch 7"]:
        """Returns the action that seems to lead to the goal, see `JEPA.propose`."""
        return self.world.propose(latents, proprio, goal)

    def _apart(self, latents: Tensor) -> Float[Tensor, "batch frames views tokens dim"]:
        return latents.unflatten(2, (self.num_views, -1))


def joined(world: JEPA) -> JEPA | JoinedViews:
    """Returns a model as planners and measures speak to it, whatever number of views it sees."""
    return JoinedViews(world) if world.predictor.num_views > 1 else world


def check_cameras(world: JEPA, camera: str) -> None:
    """Refuses a setting that names more or fewer cameras than the model sees.

    Raises:
        ValueError: It does.
    """
    expected, named = world.predictor.num_views, len(camera_names(camera))
    if named != expected:
        ask = (
            "name one"
            if expected == 1
            else "name them in the order it was trained with, joined by +, such as exterior+wrist"
        )
        raise ValueError(
            f"camera={camera} names {named}, but this model sees {expected} at once; {ask}"
        )
