"""What an arm is like now: its posture, or why what it measures cannot be relied on."""

import math

import numpy as np

from worldmodel.envs.robots.interface import (
    JointLimits,
    NotConnectedError,
    Robot,
    StaleObservationError,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.posture import Posture
from worldmodel.envs.robots.watch import SensorWatch, Trouble


class Senses:
    """Looks at a robot, and remembers what its sensors said last.

    Attributes:
        gripper: where it was measured last, 0 open, 1 closed.
        applied_seq: largest number of a command that the robot said it follows; -1 before.
    """

    def __init__(self, robot: Robot, envelope: Envelope, limits: JointLimits):
        """Looks at a robot that may not be connected yet.

        Args:
            robot: To look at.
            envelope: What is allowed.
            limits: Of the joints.
        """
        self._robot, self._envelope, self._limits = robot, envelope, limits
        self._watch = SensorWatch(robot.info.cameras, envelope)
        self.forget()

    def forget(self) -> None:
        """Begins anew, as after the robot was connected."""
        self.gripper, self.applied_seq = 0.0, -1
        self._watch.reset()

    def trust_again(self) -> None:
        """Forgets what was wrong with sensors, as after an operator looked at them."""
        self._watch.reset()

    def look(self, *, now: float, moving: bool, tool: np.ndarray | None) -> Posture | Trouble:
        """Returns the arm's posture when all is well, else what is wrong.

        Args:
            now: On the caller's clock [s].
            moving: Whether the arm is commanded to move so that every camera sees a change.
            tool: The tool's pose (4, 4) on the flange when the arm was armed; None while it may not
                move, when it may be anywhere.
        """
        try:
            observation = self._robot.observe(max_age_s=math.inf)
        except StaleObservationError as error:
            camera = error.sensor in self._robot.info.cameras
            return Trouble(f"camera_stale:{error.sensor}" if camera else "state_stale", fault=False)
        except NotConnectedError:
            return Trouble("not_connected", fault=True)
        self.applied_seq = max(self.applied_seq, observation.applied_seq)
        trouble = self._watch.look(observation, robot_now=self._robot.now(), now=now, moving=moving)
        if trouble is not None:
            return trouble
        self.gripper = float(np.clip(observation.gripper, 0.0, 1.0))
        posture = Posture(observation, self._envelope, self._limits)
        return (None if tool is None else posture.out_of_place(tool)) or posture
