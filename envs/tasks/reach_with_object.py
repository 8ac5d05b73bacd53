"""Reach with a held object: carry a cube, already grasped, to the place in the goal image."""

from typing import Any

import numpy as np

from worldmodel.envs import franka, placing
from worldmodel.envs.control import Arm
from worldmodel.envs.placing import WORKSPACE_HIGH, WORKSPACE_LOW
from worldmodel.envs.tasks.grasp import grasp_waypoints
from worldmodel.envs.waypoints import Follow, Waypoint

SUCCESS_DISTANCE = 0.04  # [m]
START_DISTANCE = 0.15  # [m] at least
GRASP_STEPS = 60  # control steps the hidden grasp may take
_LOW, _HIGH = WORKSPACE_LOW + [0.02, 0.02, 0.03], WORKSPACE_HIGH  # [m] room for the cube below


class ReachWithObject:
    """The cube is in the hand at the start; success is the cube, held, within 4 cm of its goal."""

    options: tuple[str, ...] = ()
    drawer = False

    def __init__(self):
        self._cube, self._goal, self._in_hand = "", np.zeros(3), np.zeros(3)

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Scatter the cubes, grasp one, carry it to the start; choose a goal."""
        self._cube = str(rng.choice(list(franka.CUBES)))
        placing.scatter(arm, rng)
        placing.random_start(arm, rng)
        start, self._goal = rng.uniform(_LOW, _HIGH), rng.uniform(_LOW, _HIGH)
        while np.linalg.norm(self._goal - start) < START_DISTANCE:
            self._goal = rng.uniform(_LOW, _HIGH)
        position = placing.object_position(arm, self._cube)
        x, y, z = (float(value) for value in start)
        above = (float(position[0]), float(position[1]), z)
        way = Follow(
            [
                *grasp_waypoints(position),
                Waypoint(above, closed=True),
                Waypoint((x, y, z), closed=True),
            ]
        )
        for _ in range(GRASP_STEPS):
            way.update(arm.proprio)
            if way.done:
                break
            arm.step(way.action(arm.proprio))
        self._in_hand = placing.object_position(arm, self._cube) - arm.tcp_pos_base

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return the goal, the gripper closed."""
        x, y, z = (float(value) for value in self._goal)
        return [Waypoint((x, y, z), closed=True, stage="carry")]

    def distance(self, arm: Arm) -> float:
        """Return how far the cube is from where it should be carried [m]."""
        goal = self._goal + self._in_hand
        return float(np.linalg.norm(placing.object_position(arm, self._cube) - goal))

    def success(self, arm: Arm) -> bool:
        """Return whether the cube is held within 4 cm of its goal."""
        return self.distance(arm) <= SUCCESS_DISTANCE and placing.held(arm, self._cube)
