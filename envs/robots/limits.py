"""What an arm can do, by its maker, and what it is allowed to do, by its owner.

`HardwareLimits` are Franka's published figures, one table a model. `Envelope` is what `SafeRobot`
enforces: far below them, and refused when it is not. The two models differ by more than half a
radian in joint 6, so the model comes from the version that the arm's server reports, and an arm
that is not known gets the intersection of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from worldmodel.envs.robots.interface import JointLimits
from worldmodel.franka_arm import PANDA_JOINT_HIGH, PANDA_JOINT_LOW

MAX_GRIPPER_FORCE_N = 40.0
MAX_COLLISION_FORCE_N = MAX_COLLISION_TORQUE_NM = 20.0


@dataclass(frozen=True)
class MotionLimits:
    """Largest speed, acceleration and jerk of one kind of motion, in its unit per s, s^2, s^3."""

    velocity: float
    acceleration: float
    jerk: float


@dataclass(frozen=True, eq=False)
class HardwareLimits:
    """Limits beyond which an arm stops by itself, or breaks.

    Attributes:
        joints: angles [rad] and speeds [rad/s], each (7,).
        joint_acceleration: (7,) [rad/s^2].
        joint_jerk: (7,) [rad/s^3].
        translation: of the tool [m].
        rotation: of the tool [rad].
    """

    joints: JointLimits
    joint_acceleration: np.ndarray
    joint_jerk: np.ndarray
    translation: MotionLimits
    rotation: MotionLimits


def _hardware(
    *,
    low: Sequence[float] | np.ndarray,
    high: Sequence[float] | np.ndarray,
    velocity: Sequence[float],
    acceleration: Sequence[float],
    jerk: Sequence[float],
    translation: MotionLimits,
    rotation: MotionLimits,
) -> HardwareLimits:
    joints = JointLimits(low=_constant(low), high=_constant(high), velocity=_constant(velocity))
    return HardwareLimits(joints, _constant(acceleration), _constant(jerk), translation, rotation)


def _constant(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.array(values, dtype=float)
    array.setflags(write=False)
    return array


PANDA = _hardware(
    low=PANDA_JOINT_LOW,
    high=PANDA_JOINT_HIGH,
    velocity=(2.175,) * 4 + (2.61,) * 3,
    acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    translation=MotionLimits(1.7, 13.0, 6500.0),
    rotation=MotionLimits(2.5, 25.0, 12500.0),
)
FR3 = _hardware(
    low=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
    high=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    velocity=(2.62,) * 4 + (5.26, 4.18, 5.26),
    acceleration=(10.0,) * 7,
    jerk=(5000.0,) * 7,
    translation=MotionLimits(3.0, 9.0, 4500.0),
    rotation=MotionLimits(2.5, 17.0, 8500.0),
)
FR3_SYSTEM_5_9 = replace(
    FR3,
    joints=JointLimits(
        low=_constant((-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508)),
        high=_constant((2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508)),
        velocity=FR3.joints.velocity,
    ),
)


def intersection(first: HardwareLimits, second: HardwareLimits) -> HardwareLimits:
    """Returns the limits that hold for either of two arms."""
    return HardwareLimits(
        joints=joint_intersection(first.joints, second.joints),
        joint_acceleration=np.minimum(first.joint_acceleration, second.joint_acceleration),
        joint_jerk=np.minimum(first.joint_jerk, second.joint_jerk),
        translation=_smaller(first.translation, second.translation),
        rotation=_smaller(first.rotation, second.rotation),
    )


def joint_intersection(first: JointLimits, second: JointLimits) -> JointLimits:
    """Returns the joint limits that hold for either of two arms."""
    return JointLimits(
        low=np.maximum(first.low, second.low),
        high=np.minimum(first.high, second.high),
        velocity=np.minimum(first.velocity, second.velocity),
    )


def _smaller(first: MotionLimits, second: MotionLimits) -> MotionLimits:
    return MotionLimits(
        min(first.velocity, second.velocity),
        min(first.acceleration, second.acceleration),
        min(first.jerk, second.jerk),
    )


UNKNOWN = intersection(intersection(PANDA, FR3), FR3_SYSTEM_5_9)
HARDWARE = {"panda": PANDA, "fr3": FR3, "fr3_5.9": FR3_SYSTEM_5_9, "unknown": UNKNOWN}
"""Limits by `RobotInfo.arm`. An FR3 is taken for one before system 5.9, whose limits are inside."""


def arm_of_server(version: int | None) -> str:
    """Returns the arm, a key of `HARDWARE`, whose control box reports a server version.

    Source: Franka's compatibility tables: servers up to 5 are Panda (FER), 6 to 9 are FR3, and
    10 came with system 5.9. A later one, or none, is unknown.
    """
    if version is None or not 1 <= version <= 10:
        return "unknown"
    if version <= 5:
        return "panda"
    return "fr3" if version <= 9 else "fr3_5.9"


def hardware_limits(arm: str) -> HardwareLimits:
    """Returns the limits of an arm, a key of `HARDWARE`.

    Raises:
        ValueError: for another name, listing those there are.
    """
    if arm not in HARDWARE:
        raise ValueError(f"arm must be one of {', '.join(HARDWARE)}, got {arm!r}")
    return HARDWARE[arm]


@dataclass(frozen=True, kw_only=True, eq=False)
class Envelope:
    """What an arm is allowed to do; see `SafeRobot`. The workspace has no default on purpose.

    Attributes:
        workspace_low: smallest x, y, z of the tool centre point in the base frame [m].
        workspace_high: largest.
        velocity: of the tool [m/s].
        acceleration: [m/s^2].
        jerk: [m/s^3].
        angular_velocity: of the tool [rad/s].
        angular_acceleration: [rad/s^2].
        angular_jerk: [rad/s^3].
        step_translation: how far one command may move the tool [m].
        step_rotation: how far one command may turn it [rad].
        joint_velocity: of every joint [rad/s].
        joint_acceleration: [rad/s^2].
        joint_jerk: [rad/s^3].
        joint_slow_margin: distance to a joint limit at which motion towards it slows down [rad].
        joint_stop_margin: distance at which it has stopped.
        condition_slow: condition number of the Jacobian (metres and radians) at which motion
            towards a singularity slows down; those of MoveIt Servo.
        condition_stop: at which it has stopped.
        max_valid_for_s: longest life of a command.
        tick_timeout_s: how long the arm goes on when the loop that calls `tick` stands still.
        camera_max_age_s: oldest picture that motion may rely on.
        state_max_age_s: oldest state of the arm.
        plan_max_age_s: oldest observation that a command may have been planned from.
        identical_frames: this many pictures in a row with the same bytes, while the arm is
            commanded to move, are a frozen camera.
        max_rejects: this many refused commands within `reject_window_s` are a fault.
        reject_window_s: see there.
        collision_force: on the tool, a fault when exceeded [N]; adapters give it to the arm too.
        collision_torque: [Nm].
        gripper_speed: of the opening [m/s].
        gripper_force: that adapters grasp with [N].
        binary_gripper: whether the gripper can only be opened or closed: a command above 0.6
            closes, one below 0.4 opens, and one between leaves it.
    """

    workspace_low: tuple[float, float, float]
    workspace_high: tuple[float, float, float]
    velocity: float = 0.25
    acceleration: float = 1.0
    jerk: float = 100.0
    angular_velocity: float = 0.5
    angular_acceleration: float = 2.0
    angular_jerk: float = 200.0
    step_translation: float = 0.05
    step_rotation: float = 0.10
    joint_velocity: float = 0.5
    joint_acceleration: float = 2.0
    joint_jerk: float = 200.0
    joint_slow_margin: float = 0.10
    joint_stop_margin: float = 0.02
    condition_slow: float = 17.0
    condition_stop: float = 30.0
    max_valid_for_s: float = 0.5
    tick_timeout_s: float = 0.1
    camera_max_age_s: float = 0.2
    state_max_age_s: float = 0.05
    plan_max_age_s: float = 1.0
    identical_frames: int = 5
    max_rejects: int = 5
    reject_window_s: float = 2.0
    collision_force: float = 20.0
    collision_torque: float = 20.0
    gripper_speed: float = 0.05
    gripper_force: float = 15.0
    binary_gripper: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked without knowing the arm.

        Raises:
            ValueError: naming the field, what it may be and what it is.
        """
        low, high = _constant(self.workspace_low), _constant(self.workspace_high)
        if low.shape != (3,) or high.shape != (3,) or not np.isfinite([low, high]).all():
            raise ValueError(
                "workspace_low and workspace_high must each be three finite numbers x, y, z [m], "
                f"got {self.workspace_low} and {self.workspace_high}"
            )
        if not (low < high).all():
            raise ValueError(
                "workspace_low must be below workspace_high on every axis, got "
                f"{self.workspace_low} and {self.workspace_high}"
            )
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.startswith("workspace") or isinstance(value, bool):
                continue
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{item.name} must be positive and finite, got {value}")
        _ordered(self, "joint_stop_margin", "joint_slow_margin")
        _ordered(self, "condition_slow", "condition_stop")
        _at_most("gripper_force", self.gripper_force, MAX_GRIPPER_FORCE_N, "N")
        _at_most("collision_force", self.collision_force, MAX_COLLISION_FORCE_N, "N")
        _at_most("collision_torque", self.collision_torque, MAX_COLLISION_TORQUE_NM, "Nm")
        _at_most("max_valid_for_s", self.max_valid_for_s, 0.5, "s")
        _at_most("tick_timeout_s", self.tick_timeout_s, self.max_valid_for_s, "s")

    @property
    def reaction_s(self) -> float:
        """Time for which the arm is taken to go on as before when it should slow down [s].

        The loop stands still, the state is old, and the jerk limit delays the brake. The last two
        count twice: the brake reacts to where the arm was, and with less it would swing.
        """
        lag_s = self.state_max_age_s + 2 * self.acceleration / self.jerk
        return self.tick_timeout_s + 2 * lag_s

    @property
    def axis_deceleration(self) -> float:
        """What each axis may brake with so that all three can brake at once [m/s^2]."""
        return self.acceleration / math.sqrt(3)

    @property
    def stopping_distance(self) -> float:
        """How far the tool moves at most from full speed to rest [m], delays included."""
        return self.velocity * self.reaction_s + self.velocity**2 / (2 * self.axis_deceleration)

    def check(self, hardware: HardwareLimits) -> None:
        """Checks that the arm can do what the envelope allows.

        Raises:
            ValueError: naming the first limit that is above the hardware's.
        """
        for name, limits in (("", hardware.translation), ("angular_", hardware.rotation)):
            for part in ("velocity", "acceleration", "jerk"):
                _within_hardware(f"{name}{part}", getattr(self, name + part), getattr(limits, part))
        _within_hardware("joint_velocity", self.joint_velocity, hardware.joints.velocity.min())
        _within_hardware(
            "joint_acceleration", self.joint_acceleration, hardware.joint_acceleration.min()
        )
        _within_hardware("joint_jerk", self.joint_jerk, hardware.joint_jerk.min())


def first_run(
    workspace_low: tuple[float, float, float], workspace_high: tuple[float, float, float]
) -> Envelope:
    """Returns the envelope for the first motions of a setup: slow, and in small steps."""
    return Envelope(
        workspace_low=workspace_low,
        workspace_high=workspace_high,
        velocity=0.10,
        angular_velocity=0.2,
        joint_velocity=0.2,
        step_translation=0.02,
        step_rotation=0.05,
    )


def _ordered(envelope: Envelope, low: str, high: str) -> None:
    if not getattr(envelope, low) < getattr(envelope, high):
        raise ValueError(
            f"{low} must be below {high}, got {getattr(envelope, low)} and "
            f"{getattr(envelope, high)}"
        )


def _at_most(name: str, value: float, largest: float, unit: str) -> None:
    if value > largest:
        raise ValueError(f"{name} must be at most {largest:g} {unit}, got {value:g}")


def _within_hardware(name: str, value: float, largest: float) -> None:
    if value > largest:
        raise ValueError(
            f"{name} must be at most {largest:g}, which is what the arm can do, got {value:g}; "
            "lower it, the arm would stop with an error"
        )
