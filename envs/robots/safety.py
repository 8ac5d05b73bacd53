"""A robot that keeps another one inside its envelope.

It clamps what is only fast, rejects what is wrong, and stops when unsure.

    robot = SafeRobot(inner, Envelope(workspace_low=..., workspace_high=...), tick_hz=100)
    robot.connect(timeout_s=3.0)
    robot.arm(operator="name")
    ack = robot.command(command)

Commands are not passed on. They set what `tick` steers towards, which sends short-lived velocities
within all limits to the inner robot. So the arm comes to rest when a command expires, whatever has
become of the one who sent it, and when `tick` itself is no longer called. It is no safety device:
the emergency stop stays within reach.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from worldmodel.envs.robots.guard import Guard
from worldmodel.envs.robots.interface import (
    MOVABLE,
    Ack,
    Command,
    NotConnectedError,
    Robot,
    RobotInfo,
    RobotObservation,
    RobotState,
    require_operator,
)
from worldmodel.envs.robots.limits import Envelope, hardware_limits, joint_intersection


class SafeRobot:
    """A `Robot` around another one, with the rules of an `Envelope`.

    An expired command, a stale or frozen camera, a stale state and a wrong command lead to HOLD; an
    error of the robot, a push, a place outside of the workspace and many wrong commands lead to
    FAULT; `stop` leads to IDLE. Nothing leaves FAULT or IDLE without an operator.
    """

    def __init__(
        self,
        inner: Robot,
        envelope: Envelope,
        *,
        clock: Callable[[], float] = time.monotonic,
        tick_hz: float | None = None,
    ):
        """Wraps a robot that is not connected yet.

        Args:
            inner: Where velocities go.
            envelope: What is allowed.
            clock: What expiry counts on [s]. A simulation passes its own `now`; else a clock that
                cannot stop with the robot's.
            tick_hz: How often a thread calls `tick` from `connect` to `close`; None when the owner
                calls it, at least every `envelope.tick_timeout_s`.

        Raises:
            ValueError: the envelope allows what the arm cannot do, or `tick_hz` is too low.
        """
        hardware = hardware_limits(inner.info.arm)
        envelope.check(hardware)
        if tick_hz is not None and not tick_hz * envelope.tick_timeout_s >= 2:
            raise ValueError(
                f"tick_hz must be at least {2 / envelope.tick_timeout_s:g}, two ticks in "
                f"tick_timeout_s={envelope.tick_timeout_s:g}, got {tick_hz}"
            )
        self._inner, self.envelope = inner, envelope
        self._limits = joint_intersection(hardware.joints, inner.info.joint_limits)
        self._guard = Guard(inner, envelope, self._limits, clock=clock)
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._tick_period = None if tick_hz is None else 1 / tick_hz
        self._thread: threading.Thread | None = None

    # What every robot says.

    @property
    def inner(self) -> Robot:
        """Where velocities go."""
        return self._inner

    @property
    def info(self) -> RobotInfo:
        """What is known before `connect`."""
        return replace(self._inner.info, joint_limits=self._limits)

    @property
    def state(self) -> RobotState:
        """What it would do with a command now."""
        return self._guard.state

    @property
    def reason(self) -> str | None:
        """Why it last held, faulted or was stopped; None before."""
        return self._guard.reason

    @property
    def counters(self) -> Counter[str]:
        """How often what happened, such as "rejected:seq_old", "hold:expired", "ticks"."""
        return self._guard.counters

    def now(self) -> float:
        """Returns the inner robot's monotonic clock [s], on which its observations are stamped."""
        return self._inner.now()

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the inner robot's observation, with this robot's state, commands and errors."""
        observation = self._inner.observe(max_age_s=max_age_s)
        with self._lock:
            sender, state, reason = self._guard.sender, self.state, self.reason
            sender.saw(observation)
            errors = observation.errors
            if state is RobotState.FAULT and reason not in (None, *errors):
                errors = (*errors, reason)
            return replace(
                observation, state=state, applied_seq=sender.seq, errors=errors, reason=reason
            )

    # What an operator does.

    def connect(self, *, timeout_s: float) -> None:
        """Connects, without moving; more than once does no harm.

        Raises:
            NotConnectedError: nothing answered in time.
        """
        with self._lock:
            if self.state is not RobotState.DISCONNECTED:
                return
            self._inner.connect(timeout_s=timeout_s)
            self._guard.begin()
        if self._tick_period is not None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._run, name="safe-robot", daemon=True)
            self._thread.start()

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion, once everything is as it should be.

        Raises:
            OperatorRefusedError: the operator has no name.
            RobotError: in FAULT, outside of the workspace, or when a sensor is not to be trusted.
        """
        require_operator(operator)
        with self._lock:
            self._require_connection()
            if self.state not in MOVABLE:
                posture = self._guard.ready()
                self._inner.arm(operator=operator)
                self._guard.arm(posture)
            return self.state

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT for IDLE when the inner robot is well and came to rest; else stays.

        Raises:
            OperatorRefusedError: the operator has no name.
            NotConnectedError: there is no connection.
        """
        require_operator(operator)
        with self._lock:
            self._require_connection()
            if self.state is RobotState.FAULT:
                self._guard.recover(operator=operator)
            return self.state

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest at once and disarms it. Any thread may call it, at any time."""
        if self.state is RobotState.DISCONNECTED:
            return
        self._guard.halt(reason)  # whoever holds the lock sends nothing more
        with self._lock:
            self._guard.disarm(reason)

    def close(self) -> None:
        """Stops the arm and gives the connection back. More than once does no harm."""
        self.stop(reason="closed")
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._thread, self._guard.state = None, RobotState.DISCONNECTED
            self._inner.close()

    # What a planner does.

    def command(self, command: Command) -> Ack:
        """Takes what is right in a command as the goal of the next ticks.

        Returns:
            With `applied`, the command as it will be followed. Near a wall, a joint limit or a
            singularity the arm may be slower still.

        Raises:
            NotConnectedError: there is no connection.
        """
        with self._lock:
            self._require_connection()
            return self._guard.command(command)

    # What the real-time loop does.

    def tick(self) -> None:
        """Looks at the sensors and sends the next short-lived velocity.

        Raises:
            NotConnectedError: there is no connection.
        """
        with self._lock:
            self._require_connection()
            self._guard.tick()

    def _run(self) -> None:
        assert self._tick_period is not None
        try:
            while not self._closing.wait(self._tick_period):
                self.tick()
        finally:
            if not self._closing.is_set():
                with self._lock:
                    self._guard.fault("tick_thread_ended")

    def _require_connection(self) -> None:
        if self.state is RobotState.DISCONNECTED:
            raise NotConnectedError("the robot is not connected; call connect first")
