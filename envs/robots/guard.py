"""What an arm does from moment to moment: it follows a goal, holds when unsure, or faults."""

import numbers
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from worldmodel.envs.robots.actuation import Actuation
from worldmodel.envs.robots.clamp import ARRIVE_BY, clamp
from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import (
    MOVABLE,
    Ack,
    Command,
    CommandKind,
    JointLimits,
    Robot,
    RobotError,
    RobotState,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.posture import Posture
from worldmodel.envs.robots.sender import HARMLESS, Sender
from worldmodel.envs.robots.senses import Senses
from worldmodel.envs.robots.steering import Goal, Steering

PASSING = frozenset({"seq_old", "obs_unknown", "obs_old", "not_armed", "fault"})
"""Reasons of refusals that do not end the command that is being followed."""


class Guard:
    """The states of a `SafeRobot`, and what leads from one to another.

    One thread at a time may be in it, but for `halt`, which any may call.

    Attributes:
        state: what it would do with a command now.
        reason: why it last held, faulted or was stopped; None before.
        counters: how often what happened.
        sender: what is remembered of who sends commands.
    """

    def __init__(
        self,
        robot: Robot,
        envelope: Envelope,
        limits: JointLimits,
        *,
        clock: Callable[[], float],
    ):
        """Guards a robot that is not connected yet.

        Args:
            robot: Where velocities go.
            envelope: What is allowed.
            limits: Of the joints.
            clock: What expiry counts on [s].
        """
        self._robot, self._envelope, self._limits = robot, envelope, limits
        self._clock = clock
        self.state, self.reason = RobotState.DISCONNECTED, None
        self.counters: Counter[str] = Counter()
        self.sender = Sender(envelope)
        self._senses = Senses(robot, envelope, limits)
        self._steering = Steering(envelope, gripper_width_m=robot.info.gripper_width_m)
        self._actuation = Actuation(robot, life_s=envelope.tick_timeout_s, counters=self.counters)
        self._tool: np.ndarray | None = None  # pose (4, 4) on the flange since it was armed
        self._told_to_hold = False
        self._ticked_at = clock()

    # What an operator does.

    def begin(self) -> None:
        """Takes a robot that has just been connected."""
        for part in (self.sender, self._senses, self._actuation):
            part.forget()
        self._steering.reset()
        self._tool, self._told_to_hold = None, False
        self._ticked_at = self._clock()
        self.reason, self.state = None, RobotState.IDLE
        self._look(self._clock())

    def ready(self) -> Posture:
        """Returns the posture that the arm may be armed in.

        Raises:
            RobotError: in FAULT, outside of the workspace, or when a sensor is not to be trusted.
        """
        self._senses.trust_again()
        posture, trouble = self._look(self._clock())
        if self.state is RobotState.FAULT:
            raise RobotError(f"the robot is in FAULT because of {self.reason}; recover it first")
        if posture is None:
            raise RobotError(f"not armed: {trouble}; see to it and arm again")
        wrong = posture.why_not_to_arm()
        if wrong is not None:
            raise RobotError(f"not armed: {wrong}")
        return posture

    def arm(self, posture: Posture) -> None:
        """Takes commands from now on."""
        self._steering.reset()
        self._steering.gripper = self._senses.gripper
        self._tool, self.state = posture.tool, RobotState.ARMED
        self.sender.forgive()

    def recover(self, *, operator: str) -> None:
        """Leaves FAULT for IDLE when the robot is well and came to rest; else stays."""
        self._actuation.stop("recover")
        self._robot.recover(operator=operator)
        self.sender.forgive()
        self._senses.trust_again()
        if not self._actuation.stop_failed:
            self.state = RobotState.IDLE
            self._look(self._clock())

    def halt(self, reason: str) -> None:
        """Stops the arm in any thread; nothing is sent to it before `disarm`."""
        self._actuation.stopping.set()
        self._actuation.stop(reason)

    def disarm(self, reason: str) -> None:
        """Ends a stop: the arm moves again when an operator arms it."""
        self._actuation.stop(reason)  # for what was being sent meanwhile
        self._actuation.stopping.clear()
        self._steering.let_go()
        self.counters["stops"] += 1
        if self.state in MOVABLE:
            self.reason, self.state = reason, RobotState.IDLE

    # What a planner does.

    def command(self, command: Command) -> Ack:
        """Takes what is right in a command as the goal of the next ticks."""
        now = self._clock()
        if self.state not in MOVABLE:
            fault = self.state is RobotState.FAULT
            return self._refuse(command, "fault" if fault else "not_armed", now)
        life_s = self._envelope.max_valid_for_s
        wrong = what_is_wrong(command, last_seq=self.sender.seq, max_valid_for_s=life_s)
        if wrong is not None:
            return self._refuse(command, wrong, now)
        posture, trouble = self._look(now)
        if posture is None:
            self.counters[f"rejected:{trouble}"] += 1
            return Ack(command.seq, False, None, (), trouble, self.state)
        wrong = self.sender.wrong_plan(command, robot_now=self._robot.now())
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
        self.sender.seq = int(command.seq)
        self.state, self._told_to_hold = RobotState.RUNNING, False
        self.counters["accepted"] += 1
        self.counters.update(f"clamped:{name}" for name in clamped)
        applied = replace(command, gripper=gripper)
        return Ack(command.seq, True, applied, clamped, None, self.state)

    def _refuse(self, command: Command, reason: str, now: float) -> Ack:
        self.counters[f"rejected:{reason}"] += 1
        if reason not in PASSING:
            self._hold(f"rejected:{reason}")
        if reason not in HARMLESS:
            self._note_reject(now)
        seq = int(command.seq) if isinstance(command.seq, numbers.Integral) else -1
        return Ack(seq, False, None, (), reason, self.state)

    def _note_reject(self, now: float) -> None:
        if self.sender.wrong_too_often(now):
            self.fault("too_many_rejects")

    # What the real-time loop does.

    def tick(self) -> None:
        """Looks at the sensors and sends the next short-lived velocity."""
        now = self._clock()
        dt, self._ticked_at = max(now - self._ticked_at, 0.0), now
        self.counters["ticks"] += 1
        if self._actuation.stop_failed:
            self._actuation.stop(self.reason or "stop")
        posture, _ = self._look(now)
        if self.state not in (RobotState.RUNNING, RobotState.HOLD):
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
        if self.state is RobotState.RUNNING or not self._steering.at_rest:
            self._send(*self._steering.step(posture, now=now, dt=dt))
        elif not self._told_to_hold:
            self._told_to_hold = True
            self._send("hold", np.zeros(0), None)

    def _look(self, now: float) -> tuple[Posture | None, str | None]:
        """Returns the posture when all is well, else why not; holds or faults for that reason."""
        found = self._senses.look(
            now=now,
            moving=self._steering.visible,
            tool=self._tool if self.state in MOVABLE else None,
        )
        if isinstance(found, Posture):
            return found, None
        if found.fault:
            self.fault(found.reason)
        else:
            self._hold(found.reason)
        return None, found.reason

    def _send(self, kind: CommandKind, values: np.ndarray, gripper: float | None) -> None:
        if self.state not in (RobotState.RUNNING, RobotState.HOLD):
            return
        try:
            ack = self._actuation.send(kind, values, gripper, above=self._senses.applied_seq)
        except RobotError as error:
            self.fault(f"robot_error:{type(error).__name__}")
            return
        if self._actuation.stopping.is_set():
            return  # refused because of the stop, which `disarm` ends
        if ack is not None and not ack.accepted:
            self.counters["refused_by_robot"] += 1
            self._hold(f"refused_by_robot:{ack.reason}")
            self._note_reject(self._clock())

    # How it stops by itself.

    def _hold(self, reason: str) -> None:
        """Comes to rest within the limits, until the next valid command."""
        if self.state is RobotState.RUNNING:
            self._steering.goal, self._told_to_hold = None, False
            self.state, self.reason = RobotState.HOLD, reason
            self.counters[f"hold:{reason}"] += 1

    def fault(self, reason: str) -> None:
        """Stops as fast as the robot can, until an operator recovers it."""
        if self.state in (RobotState.FAULT, RobotState.DISCONNECTED):
            return
        self.state, self.reason = RobotState.FAULT, reason
        self.counters[f"fault:{reason}"] += 1
        self._steering.let_go()
        self._actuation.stop(reason)
