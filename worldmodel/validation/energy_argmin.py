"""How far from the action that was done does the energy end a search?

Two frames and the step between them are given. Translation, rotation and gripper are searched one
after the other, each with the others as they were: the distance of the lowest energy from the truth
is then what that part of a plan would be off, in centimetres and degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.planners.interfaces import WorldModel
from worldmodel.pose import ACTION_SIZE, GRIPPER, POSITION, ROTATION, rotation_delta
from worldmodel.validation.held_out import HeldOut
from worldmodel.validation.intervals import bootstrap_interval
from worldmodel.validation.search import GROUPS, lowest_energy_in_parts, search_limits

POSE_AXES = ("x", "y", "z", "roll", "pitch", "yaw")


@dataclass(frozen=True, eq=False)
class EnergyArgmin:
    """Where the energy is lowest, and what was done; physical units.

    Attributes:
        found: The action of lowest energy.
        true: The action that was done.
        limits: Half the width (7,) of the box that was searched.
        episodes: Recording of each window.
    """

    found: Float[np.ndarray, "windows 7"]
    true: Float[np.ndarray, "windows 7"]
    limits: tuple[float, ...]
    episodes: np.ndarray

    @property
    def offsets_cm(self) -> Float[np.ndarray, "windows 3"]:
        """Found minus true translation [cm]."""
        return 100 * (self.found - self.true)[:, POSITION]

    @property
    def offsets_deg(self) -> Float[np.ndarray, "windows 3"]:
        """Turn from the true to the found rotation, about x, y, z [degrees]."""
        return np.degrees(rotation_delta(self.true[:, ROTATION], self.found[:, ROTATION]))

    @property
    def error_cm(self) -> float:
        """Mean distance of the found from the true translation [cm]."""
        return float(np.linalg.norm(self.offsets_cm, axis=1).mean())

    @property
    def outside(self) -> int:
        """Number of windows whose true action lies outside the box, and cannot be found."""
        return int((np.abs(self.true) > np.array(self.limits)).any(axis=1).sum())

    def to_json(self, *, seed: int) -> dict[str, object]:
        """Returns the numbers, each axis by itself, with the 95 % interval of `error_cm`."""
        moved = np.linalg.norm(100 * self.true[:, POSITION], axis=1)
        distances = np.linalg.norm(self.offsets_cm, axis=1)
        offsets = np.concatenate([self.offsets_cm, self.offsets_deg], axis=1)
        units = ("cm",) * 3 + ("deg",) * 3
        return {
            "error_cm": self.error_cm,
            "error_cm_95": list(
                bootstrap_interval(lambda rows: distances[rows].mean(), self.episodes, seed=seed)
            ),
            "median_error_cm": float(np.median(distances)),
            "still_error_cm": float(moved.mean()),
            "mean_absolute": {
                f"{axis}_{unit}": float(np.abs(column).mean())
                for axis, unit, column in zip(POSE_AXES, units, offsets.T, strict=True)
            },
            "bias": {
                f"{axis}_{unit}": float(column.mean())
                for axis, unit, column in zip(POSE_AXES, units, offsets.T, strict=True)
            },
            "gripper": float(np.abs(self.found - self.true)[:, GRIPPER].mean()),
            "windows": len(self.true),
            "outside_limits": self.outside,
            "limits": list(self.limits),
        }


def energy_argmin(
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
) -> EnergyArgmin:
    """Searches for the first action of windows.

    Args:
        world: The model.
        held_out: The windows.
        windows: How many of them, spread evenly.
        samples: Actions imagined per iteration of the search.
        iterations: Iterations.
        seed: Of its noise.
        limits: Half the width of the box searched (7,), physical units; None takes it from the
            actions of all windows.
        distance: Of the energy: "l1" or "l2".
        progress: Whether to show progress bars.

    Raises:
        ValueError: The limits are not seven positive numbers, or an energy is NaN.
    """
    box = np.array(search_limits(held_out.actions[:, :1]) if limits is None else limits, float)
    if box.shape != (ACTION_SIZE,) or not (np.isfinite(box).all() and (box > 0).all()):
        raise ValueError(
            f"limits must be {ACTION_SIZE} numbers above 0 [m, rad, gripper], got {box.tolist()}"
        )
    chosen = held_out.take(windows)
    found = lowest_energy_in_parts(
        world,
        chosen,
        groups=GROUPS,
        limits=box,
        samples=samples,
        iterations=iterations,
        distance=distance,
        seed=seed,
        progress=progress,
    )
    return EnergyArgmin(found, chosen.actions[:, 0], tuple(box.tolist()), chosen.episodes)
