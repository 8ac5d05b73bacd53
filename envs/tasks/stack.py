"""Stack: put one cube on top of another and let go."""

from typing import Any

import numpy as np

from worldmodel.envs import franka, placing
from worldmodel.envs.control import Arm
from worldmodel.envs.tasks.pick_and_place import carry_waypoints
from worldmodel.envs.waypoints import Waypoint

SUCCESS_DISTANCE = 0.03  # [m] between the two centres, seen from above
HEIGHT_TOLERANCE = 0.01  # [m]


class Stack:
    """Success is the cube at rest on the other, touched by no finger."""

    options: tuple[str, ...] = ()
    drawer = False

    def __init__(self):
        self._cube, self._base = "", ""

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose two cubes, scatter all, put the arm somewhere."""
        self._cube, self._base = (str(name) for name in rng.permutation(list(franka.CUBES))[:2])
        placing.scatter(arm, rng)
        placing.random_start(arm, rng)

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return: grasp, up, over the other cube, down, open."""
        return carry_waypoints(placing.object_position(arm, self._cube), self._goal(arm))

    def distance(self, arm: Arm) -> float:
        """Return how far the cube is from its place on the other [m]."""
        position = placing.object_position(arm, self._cube)
        return float(np.linalg.norm(position - self._goal(arm)))

    def success(self, arm: Arm) -> bool:
        """Return whether the cube lies on the other, let go."""
        off = placing.object_position(arm, self._cube) - self._goal(arm)
        lies = np.linalg.norm(off[:2]) <= SUCCESS_DISTANCE and abs(off[2]) <= HEIGHT_TOLERANCE
        return bool(lies) and placing.touching_fingers(arm, self._cube) == 0

    def _goal(self, arm: Arm) -> np.ndarray:
        model = arm.model
        heights = [franka.object_half_height(model, name) for name in (self._base, self._cube)]
        return placing.object_position(arm, self._base) + [0.0, 0.0, sum(heights)]
