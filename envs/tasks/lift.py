"""Lift: grasp one of the cubes and raise it."""

from typing import Any

import numpy as np

from worldmodel.envs import franka, placing
from worldmodel.envs.control import Arm
from worldmodel.envs.tasks.grasp import grasp_waypoints
from worldmodel.envs.waypoints import Waypoint

HEIGHT = 0.15  # [m] of the tool centre point at the goal
RAISED = 0.05  # [m] how far the cube must be off the table


class Lift:
    """Success is the cube held by both fingers, at least 5 cm above where it lay."""

    options: tuple[str, ...] = ()
    drawer = False

    def __init__(self):
        self._cube, self._lying = "", 0.0

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose a cube, scatter all, put the arm somewhere."""
        self._cube = str(rng.choice(list(franka.CUBES)))
        placing.scatter(arm, rng)
        placing.random_start(arm, rng)
        self._lying = float(placing.object_position(arm, self._cube)[2])

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return: grasp the cube, straight up."""
        position = placing.object_position(arm, self._cube)
        up = (float(position[0]), float(position[1]), HEIGHT)
        return [*grasp_waypoints(position), Waypoint(up, closed=True, stage="lift")]

    def distance(self, arm: Arm) -> float:
        """Return how far the cube is below the height that counts, or 0 [m]."""
        return max(0.0, RAISED - self._raised(arm))

    def success(self, arm: Arm) -> bool:
        """Return whether the cube is held and 5 cm up."""
        return self._raised(arm) >= RAISED and placing.held(arm, self._cube)

    def _raised(self, arm: Arm) -> float:
        return float(placing.object_position(arm, self._cube)[2]) - self._lying
