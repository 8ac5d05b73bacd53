"""How far from the action that was done does the energy of an arm in joints end a search?

As `energy_argmin`, for an arm that speaks in joints: these are searched together, for two ways of
the joints may lead to one picture, and then the gripper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.planners.interfaces import WorldModel
from worldmodel.validation.held_out import HeldOut
from worldmodel.validation.intervals import bootstrap_interval
from worldmodel.validation.search import LIMIT_MARGIN, lowest_energy_in_parts

MIN_LIMIT = 0.02  # [rad, gripper] searched on either side, also of a joint that rested


@dataclass(frozen=True, eq=False)
class JointArgmin:
    """Where the energy is lowest, and what was done: changes of joints [rad] and gripper.

    Attributes:
        found: The action of lowest energy.
        true: The action that was done.
        limits: Half the width of the box that was searched.
        episodes: Recording of each window.
    """

    found: Float[np.ndarray, "windows action"]
    true: Float[np.ndarray, "windows action"]
    limits: tuple[float, ...]
    episodes: np.ndarray

    @property
    def offsets_deg(self) -> Float[np.ndarray, "windows joint"]:
        """Found minus true change of each joint [degrees]."""
        return np.degrees((self.found - self.true)[:, :-1])

    @property
    def error_deg(self) -> float:
        """Mean distance of the found from the true change, over a joint [degrees]."""
        return float(np.abs(self.offsets_deg).mean())

    def to_json(self, *, seed: int) -> dict[str, object]:
        """Returns the numbers, each joint by itself, with the 95 % interval of `error_deg`."""
        each = np.abs(self.offsets_deg).mean(axis=1)
        moved = np.abs(np.degrees(self.true[:, :-1]))
        return {
            "error_deg": self.error_deg,
            "error_deg_95": list(
                bootstrap_interval(lambda rows: each[rows].mean(), self.episodes, seed=seed)
            ),
            "still_error_deg": float(moved.mean()),
            "mean_absolute_deg": np.abs(self.offsets_deg).mean(axis=0).tolist(),
            "still_mean_absolute_deg": moved.mean(axis=0).tolist(),
            "gripper": float(np.abs(self.found - self.true)[:, -1].mean()),
            "windows": len(self.true),
            "limits": list(self.limits),
        }


def joint_argmin(
    world: WorldModel,
    held_out: HeldOut,
    *,
    windows: int,
    samples: int,
    iterations: int,
    seed: int,
    limits: Sequence[float] | None = None,
    distance: str = "l2",
    progress: bool = True,
) -> JointArgmin:
    """Searches for the first action of windows.

    Args:
        world: The model, as its embodiment is spoken to.
        held_out: The windows, in joints.
        windows: How many of them, spread evenly.
        samples: Actions imagined per iteration of the search.
        iterations: Iterations.
        seed: Of its noise.
        limits: Half the width of the box searched [rad, gripper]; None takes it from the actions of
            all windows.
        distance: Of the energy: "l1" or "l2".
        progress: Whether to show progress bars.

    Raises:
        ValueError: The limits are not positive, or not as many as an action has numbers, or an
            energy is NaN.
    """
    if limits is None:
        largest = np.quantile(np.abs(held_out.actions[:, 0]), 0.99, axis=0)
        limits = np.maximum(LIMIT_MARGIN * largest, MIN_LIMIT).tolist()
    box, size = np.array(limits, float), held_out.space.action_size
    if box.shape != (size,) or not (np.isfinite(box).all() and (box > 0).all()):
        raise ValueError(f"limits must be {size} numbers above 0 [rad, gripper], got {limits}")
    chosen = held_out.take(windows)
    found = lowest_energy_in_parts(
        world,
        chosen,
        groups=dict(zip(("joints", "gripper"), chosen.space.groups, strict=True)),
        limits=box,
        samples=samples,
        iterations=iterations,
        distance=distance,
        seed=seed,
        progress=progress,
    )
    return JointArgmin(found, chosen.actions[:, 0], tuple(box.tolist()), chosen.episodes)
