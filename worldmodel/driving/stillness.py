"""Whether an arm stands still, by where its joints are measured.

Not by their measured speeds: those are noise at rest, of one joint of `franky-sim` 0.08 rad/s.
"""

from collections import deque

import numpy as np

from worldmodel.envs.robots.interface import RobotObservation

STILL_S, STILL_RAD = 0.25, 2e-3  # no joint moved further for so long


class Stillness:
    """Remembers where the joints were lately."""

    def __init__(self):
        """Has seen nothing yet."""
        self._seen: deque[tuple[float, np.ndarray]] = deque()

    def sees(self, observation: RobotObservation) -> bool:
        """Takes what is measured, and returns whether the arm has stood still for `STILL_S`."""
        now = observation.state_at
        self._seen.append((now, observation.joint_positions))
        while len(self._seen) > 1 and self._seen[1][0] <= now - STILL_S:
            self._seen.popleft()
        moved = np.ptp([joints for _, joints in self._seen], axis=0).max()
        return self._seen[0][0] <= now - STILL_S and bool(moved < STILL_RAD)
