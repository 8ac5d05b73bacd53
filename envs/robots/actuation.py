"""What is sent to an arm: numbered velocities that expire by themselves, and stops."""

import threading
from collections import Counter

import numpy as np

from worldmodel.envs.robots.interface import Ack, Command, CommandKind, Robot, RobotError


class Actuation:
    """Sends to a robot.

    Attributes:
        stopping: set while a stop is under way in any thread; nothing more is sent.
        stop_failed: whether the robot could not be told to stop, so that it must be told again.
    """

    def __init__(self, robot: Robot, *, life_s: float, counters: Counter[str]):
        """Sends nothing yet.

        Args:
            robot: Where it goes.
            life_s: For how long the robot follows what is sent.
            counters: Of what happened, to add to.
        """
        self._robot, self._life_s, self._counters = robot, life_s, counters
        self.stopping = threading.Event()
        self.forget()

    def forget(self) -> None:
        """Begins to count anew, as after the robot was connected."""
        self._seq, self.stop_failed = -1, False

    def send(
        self, kind: CommandKind, values: np.ndarray, gripper: float | None, *, above: int
    ) -> Ack | None:
        """Returns the robot's answer to a command; None when a stop keeps it from being sent.

        Args:
            kind: Of command.
            values: Of the kind's size.
            gripper: 0 open, 1 closed; None leaves it.
            above: A number that the robot knows already.

        Raises:
            RobotError: the robot cannot take it.
        """
        if self.stopping.is_set():
            return None
        self._seq = max(self._seq, above) + 1
        ack = self._robot.command(
            Command(
                seq=self._seq,
                obs_seq=-1,
                valid_for_s=self._life_s,
                kind=kind,
                values=values,
                gripper=gripper,
            )
        )
        self._counters.update(f"clamped_by_robot:{name}" for name in ack.clamped)
        return ack

    def stop(self, reason: str) -> None:
        """Stops the robot, as fast as it can. Any thread may call it."""
        try:
            self._robot.stop(reason=reason)
            self.stop_failed = False
        except RobotError:
            self.stop_failed = True
            self._counters["stop_failed"] += 1
