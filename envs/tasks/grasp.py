"""Grasp: close the gripper around one of the cubes."""

from typing import Any

import numpy as np

from worldmodel.envs import franka, placing
from worldmodel.envs.control import Arm
from worldmodel.envs.waypoints import Waypoint

ABOVE = 0.14  # [m] height of the tool centre point over the table before going down


class Grasp:
    """The arm starts anywhere in the workspace; success is both fingers holding the cube."""

    options: tuple[str, ...] = ()
    drawer = False

    def __init__(self):
        self._cube = ""

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose a cube, scatter all, put the arm somewhere."""
        self._cube = str(rng.choice(list(franka.CUBES)))
        placing.scatter(arm, rng)
        placing.random_start(arm, rng)

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return: above the cube, around it, closed."""
        return grasp_waypoints(placing.object_position(arm, self._cube))

    def distance(self, arm: Arm) -> float:
        """Return how far the tool centre point is from the cube's centre [m]."""
        return float(np.linalg.norm(arm.tcp_pos_base - placing.object_position(arm, self._cube)))

    def success(self, arm: Arm) -> bool:
        """Return whether both fingers touch the cube."""
        return placing.held(arm, self._cube)


def grasp_waypoints(
    position: np.ndarray, *, height: float = placing.GRASP_HEIGHT
) -> list[Waypoint]:
    """Return the way to grasp what is at `position` (3,) [m] with the tool at `height` [m]."""
    x, y = float(position[0]), float(position[1])
    return [
        Waypoint((x, y, height + ABOVE - placing.GRASP_HEIGHT), closed=False, stage="above"),
        Waypoint((x, y, height), closed=False, stage="around"),
        Waypoint((x, y, height), closed=True, stage="grasp"),
    ]
