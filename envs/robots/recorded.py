"""A robot with a flight recorder: all that is measured, asked for and answered is recorded."""

from worldmodel.envs.robots.interface import (
    Ack,
    Command,
    Robot,
    RobotInfo,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.recorder import FlightRecorder


class RecordedRobot:
    """Passes everything on to another robot and records it. Put it around `SafeRobot`.

    A stop is recorded after it was passed on, so that no disk delays it. The recorder is the
    caller's to close.
    """

    def __init__(self, inner: Robot, recorder: FlightRecorder):
        self.inner, self.recorder = inner, recorder

    @property
    def info(self) -> RobotInfo:
        """What is known before `connect`."""
        return self.inner.info

    def now(self) -> float:
        """Returns the robot's monotonic clock [s]."""
        return self.inner.now()

    def connect(self, *, timeout_s: float) -> None:
        """Connects. See `Robot.connect`."""
        self.inner.connect(timeout_s=timeout_s)

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the newest pictures and states. See `Robot.observe`."""
        observation = self.inner.observe(max_age_s=max_age_s)
        self.recorder.observation(observation)
        return observation

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion. See `Robot.arm`."""
        return self.inner.arm(operator=operator)

    def command(self, command: Command) -> Ack:
        """Begins a command and returns at once. See `Robot.command`."""
        self.recorder.command(command)
        ack = self.inner.command(command)
        self.recorder.ack(ack)
        return ack

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest. See `Robot.stop`."""
        self.inner.stop(reason=reason)
        self.recorder.trip(f"stop: {reason}")

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT. See `Robot.recover`."""
        return self.inner.recover(operator=operator)

    def close(self) -> None:
        """Stops the arm and gives the connection back. See `Robot.close`."""
        self.inner.close()
