"""Drawer open: pull the drawer of the cabinet out by its knob."""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

from typing import Any

import numpy as np

from worldmodel.envs import placing
from worldmodel.envs.control import Arm
from worldmodel.envs.tasks.grasp import grasp_waypoints
from worldmodel.envs.waypoints import Waypoint

OPENING = 0.13  # [m] at the goal
SUCCESS_OPENING = 0.10  # [m]
START_OPENING = (0.0, 0.03)  # [m]
KNOB_GRIP = 0.078  # [m] height of the tool centre point around the knob
CUBES_LOW, CUBES_HIGH = np.array([0.36, 0.09]), np.array([0.60, 0.28])  # [m] beside the drawer


class DrawerOpen:
    """The drawer starts closed or a little open; success is 10 cm out."""

    options: tuple[str, ...] = ()
    drawer = True

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Lay the cubes beside the cabinet, put the arm somewhere."""
        placing.scatter(arm, rng, low=CUBES_LOW, high=CUBES_HIGH)
        arm.data.joint("drawer").qpos = rng.uniform(*START_OPENING)
        placing.random_start(arm, rng)

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return: grasp the knob, pull."""
        knob = arm.data.geom("drawer_knob").xpos
        pull = max(0.0, OPENING - _opening(arm))
        end = (float(knob[0]) - pull, float(knob[1]), KNOB_GRIP)
        return [
            *grasp_waypoints(knob, height=KNOB_GRIP),
            Waypoint(end, closed=True, stage="open"),
        ]

    def distance(self, arm: Arm) -> float:
        """Return how much of the opening that counts is missing, or 0 [m]."""
        return max(0.0, SUCCESS_OPENING - _opening(arm))

    def success(self, arm: Arm) -> bool:
        """Return whether the drawer is 10 cm out."""
        return _opening(arm) >= SUCCESS_OPENING


def _opening(arm: Arm) -> float:
    return float(arm.data.joint("drawer").qpos[0])
