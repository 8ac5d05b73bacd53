"""A planner that needs no model: it drives sideways and back at one speed.

It does what `worldmodel.drive` does: plans take time and are made from one observation, the newest
is followed while the next is made, and all that is sent expires. It goes on when the connection is
lost, which a drive does not, so that a robot that moves too early would be seen to.
"""

from collections import Counter

import numpy as np

from worldmodel.envs.robots.interface import (
    Ack,
    Command,
    NotConnectedError,
    Robot,
    RobotObservation,
    StaleObservationError,
)

SPEED = 0.1  # [m/s]
PLAN_S = 0.25  # from one plan to the next
LIFE_S = 1.5 * PLAN_S  # of a command
PLAN_MAX_AGE_S = 1.0
COMMAND_S = 0.1  # from one command to the next
TURN_AT = 0.12  # [m] to either side of the middle


class ScriptedPlanner:
    """Drives an armed robot; `step` is called often and does what is due.

    Attributes:
        latency_s: from asking for a plan to having it.
        sends_late: whether plans that are too old are followed all the same.
        gripper: sent with every command.
        counters: "sent", "accepted", "refused:<reason>", "stale:<sensor>", "lost", "late_plans".
        seen: the last observation.
    """

    def __init__(self, robot: Robot):
        """Begins at rest; the place where it begins is the middle."""
        self._robot = robot
        self.latency_s, self.sends_late = 0.1, False
        self.gripper: float | None = None
        self.counters: Counter[str] = Counter()
        self.seen: RobotObservation | None = None
        self.seq = 0
        self.direction = 1.0
        self._middle: np.ndarray | None = None
        self._due = -np.inf
        self._making: tuple[RobotObservation, float] | None = None  # and when it will be ready
        self._plan: RobotObservation | None = None  # that the present plan was made from
        self._next_plan_at = -np.inf

    def step(self) -> None:
        """Looks, plans and commands, if it is time."""
        now = self._robot.now()
        if now < self._due:
            return
        self._due = now + COMMAND_S
        try:
            self.seen = self._robot.observe(max_age_s=0.5)
            self._make_plan(self.seen, now)
            self._follow_plan(now)
        except StaleObservationError as error:
            self.counters[f"stale:{error.sensor}"] += 1
        except NotConnectedError:
            self.counters["lost"] += 1

    def twist(self) -> np.ndarray:
        """Returns the velocity (6,) that it sends now."""
        assert self.seen is not None and self._middle is not None
        away = self.seen.tcp_pos_base - self._middle
        if abs(away[1]) > TURN_AT:
            self.direction = -float(np.sign(away[1]))
        back = np.clip(-away, -0.02, 0.02)
        return np.array([back[0], self.direction * SPEED, back[2], 0.0, 0.0, 0.0])

    def send(self, **changes: object) -> Ack:
        """Sends a command that is right but for some changes, and returns the answer."""
        assert self.seen is not None
        fields = {
            "seq": self.seq,
            "obs_seq": self.seen.seq,
            "valid_for_s": LIFE_S,
            "kind": "twist",
            "values": changes["values"] if "values" in changes else self.twist(),
            "gripper": self.gripper,
        }
        self.seq += 1
        ack = self._robot.command(Command(**fields | changes))  # pyright: ignore[reportArgumentType]
        self.counters["sent"] += 1
        self.counters["accepted" if ack.accepted else f"refused:{ack.reason}"] += 1
        return ack

    def _make_plan(self, seen: RobotObservation, now: float) -> None:
        if self._middle is None:
            self._middle = seen.tcp_pos_base
        if self._making is not None and now >= self._making[1]:
            made_from, _ = self._making
            self._making = None
            if now < self._expires_at(made_from) or self.sends_late:
                self._plan = made_from
            else:
                self.counters["late_plans"] += 1
        if self._making is None and now >= self._next_plan_at:
            self._making, self._next_plan_at = (seen, now + self.latency_s), now + PLAN_S

    def _follow_plan(self, now: float) -> None:
        plan = self._plan
        if plan is None:
            return
        left = np.inf if self.sends_late else self._expires_at(plan) - now
        if left > 0:
            self.send(obs_seq=plan.seq, valid_for_s=min(LIFE_S, left))

    @staticmethod
    def _expires_at(made_from: RobotObservation) -> float:
        stamps = [frame.captured_at for frame in made_from.frames.values()]
        return min([made_from.state_at, *stamps]) + PLAN_MAX_AGE_S
