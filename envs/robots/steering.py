"""From a goal to the next short-lived velocity, within all limits."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from worldmodel.envs.robots.interface import NUM_JOINTS, CommandKind
from worldmodel.envs.robots.kinematics import quat_xyzw_to_matrix, rotation_vector
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.posture import Posture
from worldmodel.envs.robots.shaping import Ramp, stoppable_speed

APPROACH_S = 0.1  # time constant of the last of the way to a pose
SEEN_TO_MOVE = 0.02  # [m/s] slower than this, a camera need not see a change
CLOSE_ABOVE, OPEN_BELOW = 0.6, 0.4  # of a binary gripper; between, it stays as it is

Drive = Literal["twist", "joint_velocity"]


@dataclass(frozen=True, eq=False)
class Goal:
    """What is steered towards.

    Attributes:
        kind: of command.
        values: of the kind's size, clamped.
        gripper: 0 open, 1 closed; None leaves it.
        arrive_at: when a pose is to be reached.
        expires_at: when it is no longer a goal.
    """

    kind: CommandKind
    values: np.ndarray
    gripper: float | None
    arrive_at: float
    expires_at: float


class Steering:
    """Velocities of the tool, or of the joints, on their way to a goal or to rest.

    Attributes:
        goal: None brakes.
        drive: What is commanded, which changes at rest only; None before the first motion.
        gripper: Where it was commanded to be last.
        gripper_rate: Its largest speed, where 1 is from open to closed in a second.
    """

    def __init__(self, envelope: Envelope, *, gripper_width_m: float):
        """Begins at rest."""
        self._envelope = envelope
        self._linear = Ramp(
            (3,), acceleration=envelope.acceleration, jerk=envelope.jerk, per_axis=False
        )
        self._angular = Ramp(
            (3,),
            acceleration=envelope.angular_acceleration,
            jerk=envelope.angular_jerk,
            per_axis=False,
        )
        self._joint = Ramp(
            (NUM_JOINTS,),
            acceleration=envelope.joint_acceleration,
            jerk=envelope.joint_jerk,
            per_axis=True,
        )
        self.gripper_rate = envelope.gripper_speed / gripper_width_m
        self.reset()

    def reset(self) -> None:
        """Begins anew at rest, for an arm that has stopped by itself."""
        self.goal: Goal | None = None
        self.drive: Drive | None = None
        self.gripper = 0.0
        self.let_go()

    def let_go(self) -> None:
        """Forgets the goal and all motion: the arm has stopped by itself."""
        self.goal = None
        for ramp in (self._linear, self._angular, self._joint):
            ramp.reset()

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves."""
        return self._linear.at_rest and self._angular.at_rest and self._joint.at_rest

    @property
    def visible(self) -> bool:
        """Whether the arm moves so that every camera must see a change."""
        return float(np.linalg.norm(self._linear.velocity)) >= SEEN_TO_MOVE

    def set_gripper(
        self, wanted: float | None, *, life_s: float
    ) -> tuple[float | None, tuple[str, ...]]:
        """Returns where the gripper will be sent, and "gripper_speed" if it takes longer."""
        if wanted is None:
            return None, ()
        if self._envelope.binary_gripper:
            threshold = OPEN_BELOW if self.gripper > 0.5 else CLOSE_ABOVE
            return float(wanted > threshold), ()
        late = abs(wanted - self.gripper) > self.gripper_rate * life_s
        return wanted, ("gripper_speed",) if late else ()

    def step(
        self, posture: Posture | None, *, now: float, dt: float
    ) -> tuple[CommandKind, np.ndarray, float | None]:
        """Returns what to command next: a kind, its values and the gripper.

        Args:
            posture: Of the arm; None when it is not known, and then it only brakes.
            now: On the clock of the goal [s].
            dt: Since the last call [s].
        """
        gripper = self._next_gripper(dt)
        if self.drive is None:
            return "hold", np.zeros(0), gripper
        wanted, raw = self._wanted(posture, now=now), self._raw
        braked = np.zeros_like(raw)
        if posture is not None:
            joints = self.drive == "joint_velocity"
            allow = posture.allow_joint_velocities if joints else posture.allow_twist
            (wanted, _), (braked, _) = allow(wanted), allow(raw)
        if self.drive == "joint_velocity":
            return self.drive, self._joint.step(wanted, braked=braked, dt=dt), gripper
        linear = self._linear.step(wanted[:3], braked=braked[:3], dt=dt)
        angular = self._angular.step(wanted[3:], braked=braked[3:], dt=dt)
        return self.drive, np.concatenate([linear, angular]), gripper

    @property
    def _raw(self) -> np.ndarray:
        if self.drive == "joint_velocity":
            return self._joint.raw
        return np.concatenate([self._linear.raw, self._angular.raw])

    def _wanted(self, posture: Posture | None, *, now: float) -> np.ndarray:
        """Returns the velocity, (6,) or (7,), that leads to the goal."""
        goal, envelope = self.goal, self._envelope
        if goal is None or posture is None or goal.kind == "hold":
            return np.zeros_like(self._raw)
        if goal.kind != "pose":
            return goal.values
        left_s = max(goal.arrive_at - now, APPROACH_S)
        linear = _approach(
            goal.values[:3] - posture.position,
            left_s=left_s,
            velocity=envelope.velocity,
            deceleration=envelope.axis_deceleration,
        )
        angular = _approach(
            rotation_vector(quat_xyzw_to_matrix(goal.values[3:]) @ posture.rotation.T),
            left_s=left_s,
            velocity=envelope.angular_velocity,
            deceleration=envelope.angular_acceleration / 2,
        )
        return np.concatenate([linear, angular])

    def _next_gripper(self, dt: float) -> float | None:
        if self.goal is None or self.goal.gripper is None:
            return None
        step = math.inf if self._envelope.binary_gripper else self.gripper_rate * dt
        self.gripper += float(np.clip(self.goal.gripper - self.gripper, -step, step))
        return self.gripper


def _approach(
    way: np.ndarray, *, left_s: float, velocity: float, deceleration: float
) -> np.ndarray:
    """Returns the velocity (3,) that covers a way (3,) in a time without overshooting its end."""
    distance = float(np.linalg.norm(way))
    stoppable = stoppable_speed(distance, reaction_s=APPROACH_S, deceleration=deceleration)
    speed = min(distance / left_s, velocity, float(stoppable))
    return way * (speed / distance) if distance > 1e-9 else np.zeros(3)
