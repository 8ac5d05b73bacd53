"""Plans of several steps, executed blindly: the action score of JEPA-WMs on DROID.

From one frame to the frame H steps later a plan is searched, and the sum of its moves is held
against the sum of those that were made:

    error = |sum of planned x - sum of true x| + the same of y + the same of z   [m]
    score = max(0, 800 (0.1 m - mean error))

80 is perfect; 0 is an error of 10 cm and more. Source: Terver et al. 2025, "What drives success in
physical planning with joint-embedding predictive world models?", arXiv 2512.24497. Their search has
300 samples, 15 iterations and two frames of context; here it is smaller unless told otherwise, has
one frame of context, and starts from all of its box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.planners.interfaces import WorldModel
from worldmodel.pose import ACTION_SIZE, POSITION
from worldmodel.validation.held_out import HeldOut
from worldmodel.validation.intervals import bootstrap_interval
from worldmodel.validation.search import lowest_energy, search_limits

SCORE_PER_METRE, SCORE_LIMIT_M = 800.0, 0.1


def action_score(error_m: float) -> float:
    """Returns the score of a mean error [m]: 80 is perfect, 0 is 10 cm and more."""
    return max(0.0, SCORE_PER_METRE * (SCORE_LIMIT_M - error_m))


@dataclass(frozen=True, eq=False)
class OpenLoop:
    """Sums of moves over H steps [m].

    Attributes:
        planned: Of the plans of lowest energy.
        true: Of what was done.
        horizon: Steps of a plan, H.
        episodes: Recording of each window.
    """

    planned: Float[np.ndarray, "windows 3"]
    true: Float[np.ndarray, "windows 3"]
    horizon: int
    episodes: np.ndarray

    @property
    def errors_m(self) -> Float[np.ndarray, " windows"]:
        """L1 distance of planned and true sum [m]."""
        return np.abs(self.planned - self.true).sum(axis=1)

    @property
    def score(self) -> float:
        """The action score, from 0 to 80."""
        return action_score(float(self.errors_m.mean()))

    def to_json(self, *, seed: int) -> dict[str, object]:
        """Returns the numbers, with the 95 % interval of the score."""
        errors = self.errors_m

        def score(rows: np.ndarray) -> float:
            return action_score(float(errors[rows].mean()))

        return {
            "score": self.score,
            "score_95": list(bootstrap_interval(score, self.episodes, seed=seed)),
            "still_score": action_score(float(np.abs(self.true).sum(axis=1).mean())),
            "error_cm": float(100 * errors.mean()),
            "horizon": self.horizon,
            "windows": len(errors),
        }


def open_loop(
    world: WorldModel,
    held_out: HeldOut,
    *,
    windows: int,
    horizon: int,
    samples: int,
    iterations: int,
    seed: int,
    limits: Sequence[float] | None = None,
    distance: str = "l2",
    progress: bool = True,
) -> OpenLoop:
    """Plans `horizon` steps in windows and compares where they lead.

    Args:
        world: The model.
        held_out: Windows of at least `horizon` steps.
        windows: How many of them, spread evenly.
        horizon: Steps of a plan.
        samples: Plans per iteration of the search.
        iterations: Iterations.
        seed: Of its noise.
        limits: Largest step on each axis (7,), physical units; 0 leaves an axis at rest. None takes
            it from the actions of all windows.
        distance: Of the energy: "l1" or "l2".
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The windows are shorter than the plan, or an energy is NaN.
    """
    if not 1 <= horizon <= held_out.steps:
        raise ValueError(
            f"horizon must be between 1 and the {held_out.steps} steps of a window, got {horizon}"
        )
    chosen = held_out.take(windows)
    plans = lowest_energy(
        world,
        chosen,
        limits=search_limits(held_out.actions) if limits is None else limits,
        fixed=np.zeros((len(chosen), ACTION_SIZE)),
        horizon=horizon,
        samples=samples,
        iterations=iterations,
        distance=distance,
        seed=seed,
        label="plan",
        progress=progress,
    )
    return OpenLoop(
        planned=plans[..., POSITION].sum(axis=1),
        true=chosen.actions[:, :horizon, POSITION].sum(axis=1),
        horizon=horizon,
        episodes=chosen.episodes,
    )
