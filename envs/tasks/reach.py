"""Reach: move the gripper to the place shown in the goal image.

The gripper points straight down and stays open; cubes lie about as distractors, in the goal image
where they lie in the scene.
"""

from typing import Any

import numpy as np

from worldmodel.envs import franka
from worldmodel.envs.control import Arm

WORKSPACE_LOW, WORKSPACE_HIGH = np.array([0.32, -0.28, 0.12]), np.array([0.62, 0.28, 0.42])  # [m]
SUCCESS_DISTANCE = 0.04  # [m]
START_DISTANCE = (0.15, float("inf"))  # [m]
TABLE_LOW, TABLE_HIGH = np.array([0.34, -0.28]), np.array([0.62, 0.28])  # cube centres [m]
CUBE_SPACING = 0.09  # [m] between centres, so that cubes do not touch whatever their yaw
SETTLE_SECONDS = 0.1
_TRIES = 10_000


class Reach:
    """Start and goal are uniform in the workspace, at least 15 cm apart.

    Reset options: ``start_position`` and ``goal_position``, x, y, z [m] in the workspace;
    ``start_distance``, the smallest and largest distance [m] between the two.
    """

    options = ("start_distance", "start_position", "goal_position")

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
        scatter_cubes(arm, rng)
        arm.settle(SETTLE_SECONDS)
        self._goal = drawn_goal

    def move_to_goal(self, arm: Arm) -> None:
        """Put the arm at the goal."""
        arm.teleport(self._goal)

    def distance(self, arm: Arm) -> float:
        """Return how far the tool centre point is from the goal [m]."""
        return float(np.linalg.norm(arm.tcp_pos_base - self._goal))

    def success(self, distance: float) -> bool:
        """Return whether `distance` [m] is within 4 cm."""
        return distance <= SUCCESS_DISTANCE


def scatter_cubes(arm: Arm, rng: np.random.Generator) -> None:
    """Lay the cubes on the table at random places and yaws, apart from each other."""
    placed: list[np.ndarray] = []
    for name in franka.CUBES:
        place = rng.uniform(TABLE_LOW, TABLE_HIGH)
        while any(np.linalg.norm(place - other) < CUBE_SPACING for other in placed):
            place = rng.uniform(TABLE_LOW, TABLE_HIGH)
        placed.append(place)
        half_yaw = rng.uniform(-np.pi / 4, np.pi / 4) / 2
        orientation_wxyz = [np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]
        arm.data.joint(name).qpos = [*place, franka.CUBE_HALF_SIZE, *orientation_wxyz]


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
