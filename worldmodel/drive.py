"""Drives an arm to a goal image: observe, plan in a worker, command short-lived velocities.

    robot.connect(timeout_s=3.0)
    robot.arm(operator="me")
    driver = Driver(robot, replanner, worker, schedule, law=law, step_s=0.25, ...)
    outcome = driver.run(seconds=30.0)

A plan at which the surprise gate held is not followed: the arm holds until one is not.

The loop never waits for a plan. It follows the newest one, and what is left of it while the next is
late; a plan expires `plan_max_age_s` after its picture was taken, the last command expires with it,
and then the arm holds. All times are those of the robot's clock.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from worldmodel.driving.reference import Pose, Reference, TwistLaw
from worldmodel.driving.replanning import Planned, Replanner, Schedule, Task
from worldmodel.driving.stillness import Stillness
from worldmodel.driving.workers import Worker
from worldmodel.envs.robots.interface import (
    MOVABLE,
    Command,
    Robot,
    RobotObservation,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.views import camera_names

COMMAND_PERIODS = 1.5  # of the planner, that a command lives
GRIPPER_CHANGE = 1e-3  # planned changes below it leave the gripper as it was commanded
SETTLE_S = 2.0  # to come to rest in at the end

End = Literal["reached", "time", "stopped", "fault"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a drive.

    Attributes:
        end: "reached": the plans say that the arm is at the goal; "time": they did not in time;
            "stopped": by an operator; "fault": the robot took no more commands.
        reason: in words.
        seconds: from the first observation to the last.
        counters: how often what happened: "plans", "late_plans", "commands", "without_plan",
            "refused:<reason>", "clamped:<limit>", "stale:<sensor>", "late_ticks", "gate:<verdict>".
        latencies_s: from asking for each plan to having it.
        energies: between picture and goal, of each plan.
        times: (n,) of `path` [s].
        path: (n, 3) measured positions of the tool [m].
        last: the arm at the end; None when it was never seen.
        commands: with the time of each; of a dry run, those that would have been sent.
    """

    end: End
    reason: str
    seconds: float
    counters: Counter[str]
    latencies_s: tuple[float, ...]
    energies: tuple[float, ...]
    times: Float[np.ndarray, " n"]
    path: Float[np.ndarray, "n 3"]
    last: Pose | None
    commands: tuple[tuple[float, Command], ...]


class Driver:
    """One drive of an armed robot to the goal of a replanner."""

    def __init__(
        self,
        robot: Robot,
        replanner: Replanner,
        worker: Worker[Task, Planned],
        schedule: Schedule,
        *,
        law: TwistLaw,
        step_s: float,
        command_hz: float,
        max_age_s: float,
        plan_max_age_s: float,
        settle_plans: int,
        dry_run: bool,
        sleep: Callable[[float], None],
        stopped: Callable[[], str | None],
        recorder: FlightRecorder | None = None,
        on_plan: Callable[[Planned, Pose], None] | None = None,
    ):
        """Builds it; nothing happens before `run`.

        Args:
            robot: connected, and armed unless it is a dry run.
            replanner: judges plans; `worker` calls it.
            worker: makes plans.
            schedule: when they will be ready.
            law: turns them into velocities.
            step_s: of one planned step, and from one plan to the next at least.
            command_hz: observations and commands a second.
            max_age_s: oldest picture and state that are acted on.
            plan_max_age_s: age of a plan's picture at which the plan expires.
            settle_plans: so many plans in a row that say "at the goal" end the drive.
            dry_run: sends nothing at all; the rest is the same.
            sleep: waits; on a simulated clock, moves it on.
            stopped: returns why an operator stopped the arm, None when none did.
            recorder: keeps every plan; the robot's own recording is `RecordedRobot`'s.
            on_plan: called with every plan that is followed, and where the arm is.

        Raises:
            ValueError: a number is out of range.
        """
        numbers = {
            "step_s": step_s,
            "command_hz": command_hz,
            "max_age_s": max_age_s,
            "plan_max_age_s": plan_max_age_s,
            "settle_plans": settle_plans,
        }
        for name, value in numbers.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, got {value}")
        if not command_hz * step_s >= 1:
            raise ValueError(
                f"command_hz must be at least {1 / step_s:g}, the rate of plans, got {command_hz:g}"
            )
        self._robot, self._replanner = robot, replanner
        self._worker, self._schedule = worker, schedule
        self._law, self._step_s, self._tick_s = law, step_s, 1 / command_hz
        self._max_age_s, self._plan_max_age_s = max_age_s, plan_max_age_s
        self._settle_plans, self._dry_run = settle_plans, dry_run
        self._sleep, self._stopped = sleep, stopped
        self._recorder, self._on_plan = recorder, on_plan

        self.counters: Counter[str] = Counter()
        self._planned: Planned | None = None
        self._reference: Reference | None = None
        self._expires_at = -math.inf
        self._given_at = self._next_plan_at = -math.inf
        self._still = 0
        self._held = False
        self._seq = 0
        self._gripper: float | None = None
        self._latencies: list[float] = []
        self._energies: list[float] = []
        self._path: list[tuple[float, np.ndarray]] = []
        self._commands: list[tuple[float, Command]] = []
        self._last: Pose | None = None

    def run(self, *, seconds: float) -> Outcome:
        """Drives until the goal is reached, the time is over, or something stops it.

        The arm is at rest and disarmed afterwards, also when something is raised.

        Raises:
            NotConnectedError: the connection was lost.
            ValueError: a plan could not be made, such as of values that are not finite.
        """
        began = due = self._robot.now()
        end, reason = "fault", "an exception"
        try:
            while (ended := self._step(began + seconds)) is None:
                due += self._tick_s
                left = due - self._robot.now()
                if left < 0:
                    self.counters["late_ticks"] += 1
                    due -= left
                self._sleep(max(left, 0.0))
            end, reason = ended
            if end in ("reached", "time"):
                self._come_to_rest()
        finally:
            if not self._dry_run:
                self._robot.stop(reason=f"{end}: {reason}")
            self._worker.close()
        return Outcome(
            end=end,
            reason=reason,
            seconds=self._robot.now() - began,
            counters=self.counters,
            latencies_s=tuple(self._latencies),
            energies=tuple(self._energies),
            times=np.array([time for time, _ in self._path]),
            path=np.array([position for _, position in self._path]).reshape(-1, 3),
            last=self._last,
            commands=tuple(self._commands),
        )

    def _step(self, ends_at: float) -> tuple[End, str] | None:
        """Does what is due, and returns why to end."""
        reason = self._stopped()
        if reason is not None:
            return "stopped", reason
        if self._robot.now() >= ends_at:
            return "time", "the time is over"
        observation = self._observe()
        if observation is None:
            return None
        if not self._dry_run and observation.state not in MOVABLE:
            errors = ", ".join(observation.errors) or "no reason given"
            fault = observation.state is RobotState.FAULT
            return ("fault", errors) if fault else ("stopped", f"the robot is {observation.state}")
        self._take_plan()
        if self._still >= self._settle_plans:
            return "reached", f"{self._still} plans in a row say that the arm is there"
        now = self._robot.now()
        if not self._worker.busy and now >= self._next_plan_at:
            self._given_at, self._next_plan_at = now, now + self._step_s
            reference = None if now >= self._expires_at else self._reference
            self._worker.give(
                self._schedule.task(observation, self._replanner.camera, reference, now=now)
            )
            self._take_plan()  # a planner on a simulated clock may need no time at all
        self._command(observation)
        return None

    def _observe(self) -> RobotObservation | None:
        try:
            observation = self._robot.observe(max_age_s=self._max_age_s)
        except StaleObservationError as error:
            self.counters[f"stale:{error.sensor}"] += 1
            return None
        cameras = camera_names(self._replanner.camera)
        missing = [name for name in cameras if name not in observation.frames]
        if missing:
            self.counters.update(f"stale:{name}" for name in missing)
            return None
        self._seq = max(self._seq, observation.applied_seq + 1)
        self._last = self._schedule.see(observation)
        self._path.append((observation.state_at, self._last.position))
        return observation

    def _take_plan(self) -> None:
        """Follows the plan that is ready, unless its picture is too old."""
        planned = self._worker.take()
        if planned is None:
            return
        now = self._robot.now()
        self._latencies.append(now - self._given_at)
        self._schedule.measured(min(self._latencies[-1], self._plan_max_age_s))
        self.counters["plans"] += 1
        if self._recorder is not None:
            self._recorder.plan(planned.record)
        if planned.gate.verdict != "ok":
            self.counters[f"gate:{planned.gate.verdict}"] += 1
        self._held = planned.gate.verdict == "hold"
        if self._held:  # what is planned from a picture that is distrusted says nothing of the goal
            self._still, self._reference = 0, None
        task, expires_at = planned.task, planned.task.taken_at + self._plan_max_age_s
        if now >= expires_at:
            self.counters["late_plans"] += 1
            return
        begins_at = now if task.begins_at is None else task.begins_at
        self._planned, self._expires_at = planned, expires_at
        if not self._held:
            self._reference = Reference(
                task.start, planned.actions, begins_at=begins_at, step_s=self._step_s
            )
            self._still = self._still + 1 if self._replanner.is_still(planned) else 0
        self._energies.append(planned.decision.energy_now)
        if self._on_plan is not None and self._last is not None:
            self._on_plan(planned, self._last)

    def _command(self, observation: RobotObservation) -> None:
        """Sends the velocity that leads along the plan, for as long as the plan is good."""
        now = self._robot.now()
        if self._held:
            self._hold(observation)
            return
        planned, reference = self._planned, self._reference
        if planned is None or reference is None or now >= self._expires_at or self._last is None:
            self.counters["without_plan"] += 1
            return
        change = reference.gripper_change(now)
        if abs(change) > GRIPPER_CHANGE:
            self._gripper = float(np.clip(planned.task.start.gripper + change, 0, 1))
        self._send(
            Command(
                seq=self._seq,
                obs_seq=planned.task.observation.seq,
                valid_for_s=min(COMMAND_PERIODS * self._step_s, self._expires_at - now),
                kind="twist",
                values=self._law.twist(reference, self._last, observation.state_at),
                gripper=self._gripper,
            )
        )

    def _hold(self, observation: RobotObservation) -> None:
        self._send(
            Command(
                seq=self._seq,
                obs_seq=observation.seq,
                valid_for_s=COMMAND_PERIODS * self._step_s,
                kind="hold",
            )
        )

    def _send(self, command: Command) -> None:
        self._seq += 1
        self._commands.append((self._robot.now(), command))
        self.counters["commands"] += 1
        if self._dry_run:
            return
        ack = self._robot.command(command)
        self.counters.update(f"clamped:{name}" for name in ack.clamped)
        if not ack.accepted:
            self.counters[f"refused:{ack.reason}"] += 1

    def _come_to_rest(self) -> None:
        """Holds, and looks until the arm is at rest."""
        observation = self._observe()
        if observation is None:
            return
        self._hold(observation)
        if self._dry_run:
            return
        until, stillness = self._robot.now() + SETTLE_S, Stillness()
        while self._robot.now() < until and self._stopped() is None:
            self._sleep(self._tick_s)
            observation = self._observe()
            if observation is not None and stillness.sees(observation):
                return
