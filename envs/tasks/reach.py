"""Reach: move the gripper to the place shown in the goal image.

The gripper points straight down and stays open; cubes lie about as distractors, in the goal image
where they lie in the scene.
"""

from typing import Any

import numpy as np

from worldmodel.envs import placing
from worldmodel.envs.control import Arm
from worldmodel.envs.placing import WORKSPACE_HIGH, WORKSPACE_LOW
from worldmodel.envs.waypoints import Waypoint

SUCCESS_DISTANCE = 0.02  # [m]
START_DISTANCE = (0.15, 0.5)  # [m]
_TRIES = 10_000


class Reach:
    """Start and goal are uniform in the workspace, 15 to 50 cm apart; success is within 2 cm.

    Reset options: ``start_position`` and ``goal_position``, x, y, z [m] in the workspace;
    ``start_distance``, the smallest and largest distance [m] between the two.
    """

    options = ("start_distance", "start_position", "goal_position")
    drawer = False

    def __init__(self):
        self._goal = np.zeros(3)

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose start and goal, put the arm at the start, scatter the cubes.

        Raises:
            ValueError: For an option of the wrong shape, a position outside the workspace, or
                options that contradict each other.
        """
        start = _position(options, "start_position")
        goal = _position(options, "goal_position")
        nearest, farthest = _distances(options, both_given=start is not None and goal is not None)
        for _ in range(_TRIES):
            drawn_start = rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH) if start is None else start
            drawn_goal = rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH) if goal is None else goal
            if nearest <= np.linalg.norm(drawn_goal - drawn_start) <= farthest:
                break
        else:
            raise ValueError(
                f"no start and goal between {nearest:g} and {farthest:g} m apart were found in "
                f"{_TRIES} draws from the workspace {_workspace()}; widen start_distance"
            )
        arm.teleport(drawn_start)
        placing.scatter(arm, rng)
        arm.settle(placing.SETTLE_SECONDS)
        self._goal = drawn_goal

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return the goal."""
        x, y, z = (float(value) for value in self._goal)
        return [Waypoint((x, y, z), closed=False, stage="reach")]

    def distance(self, arm: Arm) -> float:
        """Return how far the tool centre point is from the goal [m]."""
        return float(np.linalg.norm(arm.tcp_pos_base - self._goal))

    def success(self, arm: Arm) -> bool:
        """Return whether the tool centre point is within 2 cm of the goal."""
        return self.distance(arm) <= SUCCESS_DISTANCE


def _position(options: dict[str, Any], name: str) -> np.ndarray | None:
    """Return a position option (3,), None if it is not given."""
    if options.get(name) is None:
        return None
    value = np.asarray(options[name], dtype=float)
    if value.shape != (3,):
        raise ValueError(f"option {name!r} must be x, y, z [m], shape (3,), got {value.shape}")
    if not ((value >= WORKSPACE_LOW) & (value <= WORKSPACE_HIGH)).all():
        raise ValueError(
            f"option {name!r} is {value.tolist()} m, outside the workspace {_workspace()}"
        )
    return value


def _distances(options: dict[str, Any], *, both_given: bool) -> tuple[float, float]:
    """Return the smallest and largest allowed distance from start to goal [m]."""
    if options.get("start_distance") is None:
        return (0.0, float("inf")) if both_given else START_DISTANCE
    if both_given:
        raise ValueError(
            "options start_position and goal_position already fix the distance; drop one of them "
            "or start_distance"
        )
    value = np.asarray(options["start_distance"], dtype=float)
    if value.shape != (2,) or not 0 <= value[0] <= value[1]:
        raise ValueError(
            "option 'start_distance' must be (smallest, largest) [m] with 0 <= smallest <= "
            f"largest, got {options['start_distance']!r}"
        )
    return float(value[0]), float(value[1])


def _workspace() -> str:
    return f"{WORKSPACE_LOW.tolist()} to {WORKSPACE_HIGH.tolist()} m"
