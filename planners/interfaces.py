"""What a planner needs and what it returns. Planners know these types and nothing else.

Letters: B batch, S sampled plans, C context frames, H horizon, N tokens, D latent size, A action
size, P proprio size. Actions are physical: metres, radians, gripper fraction, per model step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class WorldModel(Protocol):
    """Imagines what the camera will show, in latent space."""

    def encode(self, frames: Tensor) -> Float[Tensor, "batch time token latent"]:
        """Returns latents of uint8 RGB frames (B, T, height, width, 3)."""
        ...

    def predict(
        self,
        latents: Float[Tensor, "batch time token latent"],
        proprio: Float[Tensor, "batch time proprio"],
        actions: Float[Tensor, "batch time action"],
    ) -> Float[Tensor, "batch time token latent"]:
        """Returns the next latents of every step: slice t predicts step t+1."""
        ...

    def rollout(
        self,
        latents: Float[Tensor, "batch context token latent"],
        proprio: Float[Tensor, "batch context proprio"],
        actions: Float[Tensor, "batch *samples steps action"],
    ) -> Float[Tensor, "batch *samples horizon token latent"]:
        """Returns the H latents imagined after the context.

        `actions` has C-1+H steps: the first C-1 were already executed between the context frames.
        """
        ...


@runtime_checkable
class Proposer(Protocol):
    """A world model that also guesses which action leads to a goal."""

    def propose(
        self,
        latents: Float[Tensor, "batch token latent"],
        proprio: Float[Tensor, "batch proprio"],
        goal: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch action"]:
        """Returns the whole change of proprio that may lead from the present to the goal."""
        ...


@dataclass(frozen=True, eq=False)
class Observation:
    """What the planner starts from: the last C frames, one model step apart.

    Attributes:
        latents: (B, C, N, D) encoded frames, the newest last.
        proprio: (B, C, P) arm state at those frames.
        past_actions: (B, C-1, A) what was done between them.
    """

    latents: Float[Tensor, "batch context token latent"]
    proprio: Float[Tensor, "batch context proprio"]
    past_actions: Float[Tensor, "batch past action"]

    def __post_init__(self) -> None:
        """Refuses wrong shapes and values that are not finite."""
        if self.latents.ndim != 4 or self.proprio.ndim != 3 or self.past_actions.ndim != 3:
            raise ValueError(
                "observation must have latents (B, C, N, D), proprio (B, C, P) and past_actions "
                f"(B, C-1, A), got {self._shapes()}"
            )
        B, C = self.latents.shape[:2]
        if self.proprio.shape[:2] != (B, C) or self.past_actions.shape[:2] != (B, C - 1):
            raise ValueError(
                f"observation latents hold batch {B} and {C} context frames, so proprio must start "
                f"with ({B}, {C}) and past_actions with ({B}, {C - 1}); got {self._shapes()}"
            )
        for name in ("latents", "proprio", "past_actions"):
            require_finite(f"observation {name}", getattr(self, name))

    def _shapes(self) -> str:
        names = ("latents", "proprio", "past_actions")
        return ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in names)


def require_finite(name: str, values: Tensor) -> None:
    """Raises ValueError naming the first NaN or infinity in `values`."""
    bad = ~torch.isfinite(values)
    if bad.any():
        index = tuple(int(i) for i in bad.nonzero()[0])
        kind = "NaN" if torch.isnan(values[index]) else "infinity"
        raise ValueError(
            f"{name} contains {kind} at {list(index)}; the planner refuses to act on it"
        )


@dataclass(frozen=True, eq=False)
class ActionBounds:
    """The box of allowed actions, in physical units per model step.

    An axis with low == high is fixed to that value.

    Attributes:
        low: (A,) smallest allowed value of every axis.
        high: (A,) largest.
    """

    low: Float[Tensor, " action"]
    high: Float[Tensor, " action"]

    def __post_init__(self) -> None:
        """Refuses shapes that differ, bounds that are not finite, and low above high."""
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ValueError(
                "action bounds must be two vectors (A,), got low "
                f"{tuple(self.low.shape)} and high {tuple(self.high.shape)}"
            )
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise ValueError(
                f"action bounds must be finite, got {self.low.tolist()} to {self.high.tolist()}"
            )
        crossed = (self.low > self.high).nonzero().flatten().tolist()
        if crossed:
            raise ValueError(
                f"action bounds have low > high on axes {crossed}: "
                f"{self.low.tolist()} to {self.high.tolist()}"
            )

    @classmethod
    def symmetric(cls, limits: Sequence[float]) -> "ActionBounds":
        """Returns the box from -limits to +limits; a limit of 0 fixes its axis to zero."""
        high = torch.tensor([float(limit) for limit in limits])
        return cls(low=-high, high=high)


@runtime_checkable
class Cost(Protocol):
    """Scores imagined futures; lower is better."""

    def __call__(
        self,
        latents: Float[Tensor, "batch sample horizon token latent"],
        actions: Float[Tensor, "batch sample horizon action"],
        goal: Float[Tensor, "batch token latent"],
        now: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch sample"]:
        """Returns the cost of every imagined future; `now` is what the camera shows."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """What a planner found.

    Attributes:
        actions: (B, H, A) the plan, inside the bounds.
        std: (B, H, A) the spread of the search distribution at the end.
        cost: (B,) the cost of exactly `actions`.
        gain: (B,) the fraction by which the plan found lowers the cost of staying put, both as
            imagined: what imagination errs about everywhere cancels.
        evaluations: imagined futures per batch element.
        iterations: iterations done.
        elapsed_ms: time taken.
        deadline_hit: the search was cut short by the deadline, or ended after it.
        cost_history: (iterations, B) lowest cost among the candidates of each iteration.
    """

    actions: Float[Tensor, "batch horizon action"]
    std: Float[Tensor, "batch horizon action"]
    cost: Float[Tensor, " batch"]
    gain: Float[Tensor, " batch"]
    evaluations: int
    iterations: int
    elapsed_ms: float
    deadline_hit: bool
    cost_history: Float[Tensor, "iterations batch"]

    def problem(self, index: int) -> "Plan":
        """Returns the plan of one problem of the batch, as a batch of one."""
        one = slice(index, index + 1)
        return replace(
            self,
            actions=self.actions[one],
            std=self.std[one],
            cost=self.cost[one],
            gain=self.gain[one],
            cost_history=self.cost_history[:, one],
        )


# One source of noise for a whole batch, or one for each of its problems.
Generators = torch.Generator | Sequence[torch.Generator]


@runtime_checkable
class Planner(Protocol):
    """Searches for the actions whose imagined future costs least."""

    def plan(
        self,
        world: WorldModel,
        observation: Observation,
        goal: Float[Tensor, "batch token latent"],
        *,
        bounds: ActionBounds,
        warm_start: Float[Tensor, "batch horizon action"] | None = None,
        deadline_ms: float | None = None,
        generator: Generators,
    ) -> Plan:
        """Returns the best plan found, by the deadline if there is one."""
        ...
