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

import math
import numbers
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from worldmodel.envs.robots.clamp import ARRIVE_BY, clamp
from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import (
    MOVABLE,
    Ack,
    Command,
    CommandKind,
    NotConnectedError,
    OperatorRefusedError,
    Robot,
    RobotError,
    RobotInfo,
    RobotObservation,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.limits import Envelope, hardware_limits, joint_intersection
from worldmodel.envs.robots.posture import Posture
from worldmodel.envs.robots.steering import Goal, Steering
from worldmodel.envs.robots.watch import SensorWatch, Trouble

REMEMBERED = 256  # observations that a command may name
HARMLESS = frozenset({"not_armed", "fault", "obs_old", "kind_changed_in_motion"})
"""Reasons of refusals that say nothing bad about who sent the command."""
PASSING = frozenset({"seq_old", "obs_unknown", "obs_old", "not_armed", "fault"})
"""Reasons that do not end the command that is being followed."""


class SafeRobot:
    """A `Robot` around another one, with the rules of an `Envelope`.

    An expired command, a stale or frozen camera, a stale state and a wrong command lead to HOLD; an
    error of the robot, a push, a place outside of the workspace and many wrong commands lead to
    FAULT; `stop` leads to IDLE. Nothing leaves FAULT or IDLE without an operator.

    Attributes:
        reason: why it last held, faulted or was stopped; None before.
        counters: how often what happened, such as "rejected:seq_old", "clamped:velocity",
            "hold:expired", "fault:reflex", "ticks".
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
        self._inner, self._envelope, self._clock = inner, envelope, clock
        self._limits = joint_intersection(hardware.joints, inner.info.joint_limits)
        self._watch = SensorWatch(inner.info.cameras, envelope)
        self._steering = Steering(envelope, gripper_width_m=inner.info.gripper_width_m)
        self.reason: str | None = None
        self.counters: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._closing = threading.Event()
        self._tick_period = None if tick_hz is None else 1 / tick_hz
        self._thread: threading.Thread | None = None
        self._state = RobotState.DISCONNECTED
        self._forget()

    def _forget(self) -> None:
        self._seq = self._applied_seq = self._sent_seq = -1
        self._plans: OrderedDict[int, float] = OrderedDict()  # oldest stamp by observation
        self._rejected_at: deque[float] = deque(maxlen=self._envelope.max_rejects)
        self._tool: np.ndarray | None = None  # pose (4, 4) on the flange since it was armed
        self._told_to_hold = self._stop_failed = False
        self._measured_gripper = 0.0
        self._ticked_at = self._clock()
        self._steering.reset()
        self._watch.reset()

    # What every robot says.

    @property
    def info(self) -> RobotInfo:
        """What is known before `connect`."""
        return replace(self._inner.info, joint_limits=self._limits)

    @property
    def state(self) -> RobotState:
        """What it would do with a command now."""
        return self._state

    def now(self) -> float:
        """Returns the inner robot's monotonic clock [s], on which its observations are stamped."""
        return self._inner.now()

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the inner robot's observation, with this robot's state, commands and errors."""
        observation = self._inner.observe(max_age_s=max_age_s)
        stamps = [frame.captured_at for frame in observation.frames.values()]
        with self._lock:
            self._plans[observation.seq] = min([observation.state_at, *stamps])
            while len(self._plans) > REMEMBERED:
                self._plans.popitem(last=False)
            errors = observation.errors
            if self._state is RobotState.FAULT and self.reason not in (None, *errors):
                errors = (*errors, self.reason)
            return replace(
                observation, state=self._state, applied_seq=self._applied_seq, errors=errors
            )

    # What an operator does.

    def connect(self, *, timeout_s: float) -> None:
        """Connects, without moving; more than once does no harm.

        Raises:
            NotConnectedError: nothing answered in time.
        """
        with self._lock:
            if self._state is not RobotState.DISCONNECTED:
                return
            self._inner.connect(timeout_s=timeout_s)
            self._forget()
            self.reason, self._state = None, RobotState.IDLE
            self._look(self._clock())
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
        _require_operator(operator)
        with self._lock:
            self._require_connection()
            if self._state in MOVABLE:
                return self._state
            self._watch.reset()
            posture, trouble = self._look(self._clock())
            if self._state is RobotState.FAULT:
                raise RobotError(
                    f"the robot is in FAULT because of {self.reason}; recover it first"
                )
            if posture is None:
                raise RobotError(f"not armed: {trouble}; see to it and arm again")
            wrong = posture.why_not_to_arm()
            if wrong is not None:
                raise RobotError(f"not armed: {wrong}")
            self._inner.arm(operator=operator)
            self._steering.reset()
            self._steering.gripper = self._measured_gripper
            self._tool, self._state = posture.tool, RobotState.ARMED
            self._rejected_at.clear()
            return self._state

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT for IDLE when the inner robot is well and came to rest; else stays.

        Raises:
            OperatorRefusedError: the operator has no name.
            NotConnectedError: there is no connection.
        """
        _require_operator(operator)
        with self._lock:
            self._require_connection()
            if self._state is not RobotState.FAULT:
                return self._state
            self._stop_inner("recover")
            self._inner.recover(operator=operator)
            self._rejected_at.clear()
            self._watch.reset()
            if not self._stop_failed:
                self._state = RobotState.IDLE
                self._look(self._clock())
            return self._state

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest at once and disarms it. Any thread may call it, at any time."""
        if self._state is RobotState.DISCONNECTED:
            return
        self._stopping.set()  # whoever holds the lock sends nothing more
        self._stop_inner(reason)
        with self._lock:
            self._stop_inner(reason)  # for what was being sent meanwhile
            self._stopping.clear()
            self._steering.let_go()
            self.counters["stops"] += 1
            if self._state in MOVABLE:
                self.reason, self._state = reason, RobotState.IDLE

    def close(self) -> None:
        """Stops the arm and gives the connection back. More than once does no harm."""
        self.stop(reason="closed")
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._thread, self._state = None, RobotState.DISCONNECTED
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
            now = self._clock()
            if self._state not in MOVABLE:
                fault = self._state is RobotState.FAULT
                return self._refuse(command, "fault" if fault else "not_armed", now)
            life_s = self._envelope.max_valid_for_s
            wrong = what_is_wrong(command, last_seq=self._seq, max_valid_for_s=life_s)
            if wrong is not None:
                return self._refuse(command, wrong, now)
            posture, trouble = self._look(now)
            if posture is None:
                self.counters[f"rejected:{trouble}"] += 1
                return Ack(command.seq, False, None, (), trouble, self._state)
            wrong = self._wrong_plan(command)
            if wrong is not None:
                return self._refuse(command, wrong, now)
            if command.kind != "hold":
                drive = "joint_velocity" if command.kind == "joint_velocity" else "twist"
                if drive != self._steering.drive and not self._steering.at_rest:
                    return self._refuse(command, "kind_changed_in_motion", now)
                self._steering.drive = drive
            values, clamped = clamp(command, posture, self._envelope, self._limits)
            if values is None:
                return self._refuse(command, "unreachable", now)
            return self._accept(replace(command, values=values), clamped, now)

    def _wrong_plan(self, command: Command) -> str | None:
        if command.kind == "hold":
            return None
        if command.obs_seq not in self._plans:
            return "obs_unknown"
        age = self._inner.now() - self._plans[command.obs_seq]
        return None if age <= self._envelope.plan_max_age_s else "obs_old"

    def _accept(self, command: Command, clamped: tuple[str, ...], now: float) -> Ack:
        life_s = command.valid_for_s
        gripper, late = self._steering.set_gripper(command.gripper, life_s=life_s)
        clamped += late
        self._steering.goal = Goal(
            kind=command.kind,
            values=command.values,
            gripper=gripper,
            arrive_at=now + ARRIVE_BY * life_s,
            expires_at=now + life_s,
        )
        self._seq = self._applied_seq = int(command.seq)
        self._state, self._told_to_hold = RobotState.RUNNING, False
        self.counters["accepted"] += 1
        self.counters.update(f"clamped:{name}" for name in clamped)
        applied = replace(command, gripper=gripper)
        return Ack(command.seq, True, applied, clamped, None, self._state)

    def _refuse(self, command: Command, reason: str, now: float) -> Ack:
        self.counters[f"rejected:{reason}"] += 1
        if reason not in PASSING:
            self._hold(f"rejected:{reason}")
        if reason not in HARMLESS:
            self._note_reject(now)
        seq = int(command.seq) if isinstance(command.seq, numbers.Integral) else -1
        return Ack(seq, False, None, (), reason, self._state)

    def _note_reject(self, now: float) -> None:
        self._rejected_at.append(now)
        full = len(self._rejected_at) == self._rejected_at.maxlen
        if full and now - self._rejected_at[0] <= self._envelope.reject_window_s:
            self._fault("too_many_rejects")

    # What the real-time loop does.

    def tick(self) -> None:
        """Looks at the sensors and sends the next short-lived velocity.

        Raises:
            NotConnectedError: there is no connection.
        """
        with self._lock:
            self._require_connection()
            now = self._clock()
            dt, self._ticked_at = max(now - self._ticked_at, 0.0), now
            self.counters["ticks"] += 1
            if self._stop_failed:
                self._stop_inner(self.reason or "stop")
            posture, _ = self._look(now)
            if self._state not in (RobotState.RUNNING, RobotState.HOLD):
                return
            if dt > self._envelope.tick_timeout_s:
                self.counters["late_ticks"] += 1
                dt = 0.0  # what was not ticked through is no time to gain speed in
                if not self._steering.at_rest:
                    self._steering.let_go()  # what was sent has expired: the arm came to rest
                    self._hold("tick_late")
            goal = self._steering.goal
            if goal is not None and now >= goal.expires_at:
                self._hold("expired")
            if self._state is RobotState.RUNNING or not self._steering.at_rest:
                self._send(*self._steering.step(posture, now=now, dt=dt))
            elif not self._told_to_hold:
                self._told_to_hold = True
                self._send("hold", np.zeros(0), None)

    def _run(self) -> None:
        assert self._tick_period is not None
        try:
            while not self._closing.wait(self._tick_period):
                self.tick()
        finally:
            if not self._closing.is_set():
                self._fault("tick_thread_ended")

    def _look(self, now: float) -> tuple[Posture | None, str | None]:
        """Returns the posture when all is well, else why not; holds or faults for that reason."""
        try:
            observation = self._inner.observe(max_age_s=math.inf)
        except StaleObservationError as error:
            camera = error.sensor in self._inner.info.cameras
            trouble = Trouble(
                f"camera_stale:{error.sensor}" if camera else "state_stale", fault=False
            )
        except NotConnectedError:
            trouble = Trouble("not_connected", fault=True)
        else:
            self._sent_seq = max(self._sent_seq, observation.applied_seq)
            trouble = self._watch.look(
                observation,
                robot_now=self._inner.now(),
                now=now,
                moving=self._steering.visible,
            )
            if trouble is None:
                posture = Posture(observation, self._envelope, self._limits)
                if self._state in MOVABLE and self._tool is not None:
                    trouble = posture.out_of_place(self._tool)
                self._measured_gripper = float(np.clip(observation.gripper, 0.0, 1.0))
                if trouble is None:
                    return posture, None
        if trouble.fault:
            self._fault(trouble.reason)
        else:
            self._hold(trouble.reason)
        return None, trouble.reason

    def _send(self, kind: CommandKind, values: np.ndarray, gripper: float | None) -> None:
        if self._stopping.is_set() or self._state not in (RobotState.RUNNING, RobotState.HOLD):
            return
        self._sent_seq += 1
        command = Command(
            seq=self._sent_seq,
            obs_seq=-1,
            valid_for_s=self._envelope.tick_timeout_s,
            kind=kind,
            values=values,
            gripper=gripper,
        )
        try:
            ack = self._inner.command(command)
        except RobotError as error:
            self._fault(f"robot_error:{type(error).__name__}")
            return
        self.counters.update(f"clamped_by_robot:{name}" for name in ack.clamped)
        if not ack.accepted:
            self.counters["refused_by_robot"] += 1
            self._hold(f"refused_by_robot:{ack.reason}")
            self._note_reject(self._clock())

    # How it stops.

    def _hold(self, reason: str) -> None:
        """Comes to rest within the limits, until the next valid command."""
        if self._state is RobotState.RUNNING:
            self._steering.goal, self._told_to_hold = None, False
            self._state, self.reason = RobotState.HOLD, reason
            self.counters[f"hold:{reason}"] += 1

    def _fault(self, reason: str) -> None:
        """Stops as fast as the inner robot can, until an operator recovers it."""
        with self._lock:
            if self._state in (RobotState.FAULT, RobotState.DISCONNECTED):
                return
            self._state, self.reason = RobotState.FAULT, reason
            self.counters[f"fault:{reason}"] += 1
            self._steering.let_go()
            self._stop_inner(reason)

    def _stop_inner(self, reason: str) -> None:
        try:
            self._inner.stop(reason=reason)
            self._stop_failed = False
        except RobotError:
            self._stop_failed = True  # tried again in every tick
            self.counters["stop_failed"] += 1

    def _require_connection(self) -> None:
        if self._state is RobotState.DISCONNECTED:
            raise NotConnectedError("the robot is not connected; call connect first")


def _require_operator(operator: str) -> None:
    if not operator.strip():
        raise OperatorRefusedError("an operator must give a name, for the record")
