"""Pick and place: carry one of the cubes to another place on the table and let go."""

from typing import Any

import numpy as np

from worldmodel.envs import franka, placing
from worldmodel.envs.control import Arm
from worldmodel.envs.tasks.grasp import grasp_waypoints
from worldmodel.envs.waypoints import Waypoint

SUCCESS_DISTANCE = 0.04  # [m]
DISTANCE = 0.15  # [m] from the cube to its goal, at least
CARRY_HEIGHT = 0.16  # [m] of the tool centre point on the way


class PickAndPlace:
    """Success is the cube at rest on the table within 4 cm of its goal, touched by no finger."""

    options: tuple[str, ...] = ()
    drawer = False

    def __init__(self):
        self._cube, self._goal = "", np.zeros(2)

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose a cube and a free place, scatter all, put the arm somewhere."""
        self._cube = str(rng.choice(list(franka.CUBES)))
        low, high = placing.TABLE_LOW, placing.TABLE_HIGH
        start, self._goal = rng.uniform(low, high), rng.uniform(low, high)
        while np.linalg.norm(self._goal - start) < DISTANCE:
            self._goal = rng.uniform(low, high)
        free = [(self._goal, self._goal)]
        placing.scatter(arm, rng, fixed={self._cube: start}, keep_clear=free)
        placing.random_start(arm, rng)

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return: grasp, up, over the goal, down, open."""
        height = franka.object_half_height(arm.model, self._cube)
        return carry_waypoints(
            placing.object_position(arm, self._cube), np.array([*self._goal, height])
        )

    def distance(self, arm: Arm) -> float:
        """Return how far the cube is from its goal on the table [m]."""
        return float(np.linalg.norm(placing.object_position(arm, self._cube)[:2] - self._goal))

    def success(self, arm: Arm) -> bool:
        """Return whether the cube lies at its goal, let go."""
        height = placing.object_position(arm, self._cube)[2]
        lies = abs(height - franka.object_half_height(arm.model, self._cube)) < 0.01
        free = placing.touching_fingers(arm, self._cube) == 0
        return self.distance(arm) <= SUCCESS_DISTANCE and bool(lies) and free


def carry_waypoints(position: np.ndarray, goal: np.ndarray) -> list[Waypoint]:
    """Return the way to carry an object from one place of its centre (3,) to another [m]."""
    x, y, z = (float(value) for value in position)
    goal_x, goal_y, goal_z = (float(value) for value in goal)
    grip = placing.GRASP_HEIGHT
    down = goal_z - z + grip + 0.002  # a hair above, so that it is not pressed into the ground
    over = max(CARRY_HEIGHT, down + 0.06)
    return [
        *grasp_waypoints(position),
        Waypoint((x, y, over), closed=True, stage="lift"),
        Waypoint((goal_x, goal_y, over), closed=True, stage="over"),
        Waypoint((goal_x, goal_y, down), closed=True, stage="lower"),
        Waypoint((goal_x, goal_y, down), closed=False, stage="release"),
    ]
