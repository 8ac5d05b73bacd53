"""Push: slide one of the cubes along the table with the closed gripper."""

from typing import Any

import numpy as np

from worldmodel.envs import franka, placing
from worldmodel.envs.control import Arm
from worldmodel.envs.waypoints import Waypoint

SUCCESS_DISTANCE = 0.04  # [m]
PUSH_DISTANCE = (0.10, 0.18)  # [m]
# To the left, to the right. Away from the base the cube jams between the pads and the table.
DIRECTIONS = np.array([[0.0, 1.0], [0.0, -1.0]])
BEHIND = 0.040  # [m] from the cube's side to the tool centre point before the push
CONTACT = 0.022  # [m] while pushing: half the width of the closed fingers
ABOVE = 0.14  # [m] height of the tool centre point before going down


class Push:
    """The cube must slide 10 to 18 cm; success is within 4 cm of its goal, on the table."""

    options: tuple[str, ...] = ()
    drawer = False

    def __init__(self):
        self._cube, self._goal, self._direction = "", np.zeros(2), np.zeros(2)

    def reset(self, arm: Arm, rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose a cube and where it goes, keep the way clear, close the gripper."""
        self._cube = str(rng.choice(list(franka.CUBES)))
        start, self._direction, self._goal = _draw_push(rng)
        behind = start - 0.09 * self._direction
        beyond = self._goal + 0.03 * self._direction
        placing.scatter(arm, rng, fixed={self._cube: start}, keep_clear=[(behind, beyond)])
        placing.random_start(arm, rng)
        close = np.zeros(7)
        close[6] = 1.0
        arm.step(close)

    def waypoints(self, arm: Arm) -> list[Waypoint]:
        """Return: above the table behind the cube, down, along."""
        start = placing.object_position(arm, self._cube)[:2]
        side = franka.object_half_width(arm.model, self._cube)
        behind = start - (side + BEHIND) * self._direction
        end = self._goal - (side + CONTACT) * self._direction
        height = placing.GRASP_HEIGHT
        return [
            Waypoint((float(behind[0]), float(behind[1]), ABOVE), closed=True, stage="above"),
            Waypoint((float(behind[0]), float(behind[1]), height), closed=True, stage="behind"),
            Waypoint((float(end[0]), float(end[1]), height), closed=True, stage="push"),
        ]

    def distance(self, arm: Arm) -> float:
        """Return how far the cube is from its goal on the table [m]."""
        return float(np.linalg.norm(placing.object_position(arm, self._cube)[:2] - self._goal))

    def success(self, arm: Arm) -> bool:
        """Return whether the cube lies on the table within 4 cm of its goal."""
        height = placing.object_position(arm, self._cube)[2]
        lies = abs(height - franka.object_half_height(arm.model, self._cube)) < 0.01
        return self.distance(arm) <= SUCCESS_DISTANCE and bool(lies)


def _draw_push(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start (2,), direction (2,) and end (2,) of a push that stays within reach [m]."""
    low, high = placing.TABLE_LOW, placing.TABLE_HIGH
    while True:
        start = rng.uniform(low, high)
        direction = DIRECTIONS[rng.integers(len(DIRECTIONS))]
        goal = start + rng.uniform(*PUSH_DISTANCE) * direction
        if ((goal >= low) & (goal <= high)).all():
            return start, direction, goal
