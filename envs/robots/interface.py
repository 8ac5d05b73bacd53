"""What a robot is to the controller: it is observed, and given commands that expire.

The controller cannot tell the simulated arm from a remote or a physical one. All units are SI, all
poses those of the tool centre point in the robot base frame, all times seconds on the robot's own
monotonic clock (`Robot.now`), which no clock of another machine is ever compared with.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from worldmodel.franka_arm import NUM_JOINTS
from worldmodel.pose import matrix_to_euler

CommandKind = Literal["twist", "pose", "joint_velocity", "hold"]
VALUE_SIZES: Mapping[str, int] = {"twist": 6, "pose": 7, "joint_velocity": NUM_JOINTS, "hold": 0}


class RobotState(StrEnum):
    """What a robot would do with a command.

    DISCONNECTED -> IDLE -> ARMED -> RUNNING <-> HOLD, and from each to FAULT. An operator's act
    leads from IDLE to ARMED and out of FAULT; the first accepted command leads to RUNNING.
    """

    DISCONNECTED = "disconnected"
    IDLE = "idle"  # observed only
    ARMED = "armed"  # an operator allowed motion, nothing moves yet
    RUNNING = "running"  # follows a command that has not expired
    HOLD = "hold"  # stopped because it was unsure; goes on with the next valid command
    FAULT = "fault"  # stopped because something is wrong; needs `recover` and an operator


MOVABLE = frozenset({RobotState.ARMED, RobotState.RUNNING, RobotState.HOLD})


class RobotError(RuntimeError):
    """Something about the robot that a caller may want to handle."""


class NotConnectedError(RobotError):
    """There is no connection, or it was lost."""


class StaleObservationError(RobotError):
    """A camera or a state is older than asked for. `sensor` names it, `age_s` is its age."""

    def __init__(self, sensor: str, *, age_s: float, max_age_s: float):
        super().__init__(
            f"{sensor} is {1000 * age_s:.0f} ms old and at most {1000 * max_age_s:.0f} ms are "
            "allowed; look whether it is plugged in and delivers frames"
        )
        self.sensor = sensor
        self.age_s = age_s


class OperatorRefusedError(RobotError):
    """What was asked for needs an operator's confirmation, and it was not given."""


def require_operator(operator: str) -> None:
    """Checks that an operator's act comes with a name.

    Raises:
        OperatorRefusedError: the name is empty.
    """
    if not operator.strip():
        raise OperatorRefusedError("an operator must give a name, for the record")


@dataclass(frozen=True)
class CameraInfo:
    """A camera of a robot.

    Attributes:
        height: of its pictures [pixels].
        width: of its pictures.
        fps: pictures a second.
        optional: whether it can be missed.
        rendered: whether its pictures are drawn from a model of the scene, so that they show
            nothing of the world.
    """

    height: int
    width: int
    fps: float
    optional: bool = False
    rendered: bool = False


class CameraFrame:
    """One picture and when it was taken.

    A loop that only watches over cameras reads the time and the fingerprint, which cost little even
    where the picture itself is drawn only when somebody looks at it.

    Attributes:
        captured_at: [s].
    """

    def __init__(self, image: UInt8[np.ndarray, "height width 3"], captured_at: float):
        self._image, self.captured_at = image, captured_at

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]:
        """The picture, RGB."""
        return self._image

    @property
    def fingerprint(self) -> int:
        """A number that stays the same when the camera repeats its picture byte by byte."""
        return zlib.crc32(np.ascontiguousarray(self.image).data)

    def fits(self, camera: CameraInfo) -> bool:
        """Returns whether it is a picture such as a camera says that it takes."""
        size = (camera.height, camera.width, 3)
        return self.image.dtype == np.uint8 and self.image.shape == size


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Limits of the seven joints, each (7,).

    Attributes:
        low: smallest angle [rad].
        high: largest.
        velocity: largest speed [rad/s].
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray


@dataclass(frozen=True, eq=False)
class RobotInfo:
    """What is known of a robot before it is connected.

    Attributes:
        name: such as "mujoco" or "franky".
        arm: which arm, such as "panda", "fr3", or "unknown".
        cameras: by name.
        control_hz: commands a second that it expects.
        joint_limits: of this arm; the intersection of all that it may be, when it is not known.
        gripper_width_m: opening of the gripper when it is open.
        tcp: where the tool centre point is, in words.
        simulated: whether nothing physical moves.
    """

    name: str
    arm: str
    cameras: Mapping[str, CameraInfo]
    control_hz: float
    joint_limits: JointLimits
    gripper_width_m: float
    tcp: str
    simulated: bool


@dataclass(frozen=True, eq=False)
class RobotObservation:
    """What a robot measures, each part with the time at which it was measured.

    Attributes:
        seq: number of the observation, strictly increasing while connected.
        frames: by camera; an optional camera that delivers nothing is left out.
        tcp_pos_base: (3,) [m].
        tcp_rotation_base: (3, 3) rotation matrix.
        joint_positions: (7,) [rad].
        joint_velocities: (7,) [rad/s].
        gripper: 0 open, 1 closed.
        gripper_width_m: distance of the fingers [m].
        grasped: whether the gripper says that it holds something; None when it cannot tell.
        wrench_base: (6,) force [N] and torque [Nm] on the tool; None when not measured.
        state_at: when arm and gripper were measured.
        applied_seq: number of the command being followed; -1 before the first.
        state: see `RobotState`.
        errors: what is wrong, each a short name such as "reflex"; empty when nothing is.
        reason: why it last held, faulted or was stopped, a short name such as "expired"; None when
            it did not, or does not say.
    """

    seq: int
    frames: Mapping[str, CameraFrame]
    tcp_pos_base: Float[np.ndarray, "3"]
    tcp_rotation_base: Float[np.ndarray, "3 3"]
    joint_positions: Float[np.ndarray, "7"]
    joint_velocities: Float[np.ndarray, "7"]
    gripper: float
    gripper_width_m: float
    grasped: bool | None
    wrench_base: Float[np.ndarray, "6"] | None
    state_at: float
    applied_seq: int
    state: RobotState
    errors: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def proprio(self) -> Float[np.ndarray, "7"]:
        """Position, extrinsic xyz Euler angles, gripper: what world models are given."""
        angles = matrix_to_euler(self.tcp_rotation_base)
        return np.concatenate([self.tcp_pos_base, angles, [self.gripper]]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Command:
    """What a robot is to do, and for how long at most.

    Attributes:
        seq: number of the command; a robot refuses one that is not above the last it took.
        obs_seq: number of the observation that it was planned from.
        valid_for_s: the robot holds when so long has passed since it took the command.
        kind: "twist": (6,) velocity [m/s] and angular velocity [rad/s], both in the base frame;
            "pose": (7,) position [m] and quaternion xyzw; "joint_velocity": (7,) [rad/s]; "hold":
            (0,), come to rest and stay.
        values: of the kind's size.
        gripper: where the gripper is to be, 0 open, 1 closed; None leaves it.
    """

    seq: int
    obs_seq: int
    valid_for_s: float
    kind: CommandKind
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gripper: float | None = None


@dataclass(frozen=True, eq=False)
class Ack:
    """What a robot made of a command.

    Attributes:
        seq: of the command.
        accepted: whether it, or what was left of it, is being done.
        applied: what is really done; None when refused.
        clamped: names of the limits that made it smaller, such as "velocity" or "workspace_x".
        reason: why it was refused, a short name such as "seq_old" or "not_finite:values"; None
            when accepted.
        state: the robot's state afterwards.
    """

    seq: int
    accepted: bool
    applied: Command | None
    clamped: tuple[str, ...]
    reason: str | None
    state: RobotState


@runtime_checkable
class Robot(Protocol):
    """An arm with cameras."""

    @property
    def info(self) -> RobotInfo:
        """What is known before `connect`."""
        ...

    def now(self) -> float:
        """Returns the robot's monotonic clock [s]."""
        ...

    def connect(self, *, timeout_s: float) -> None:
        """Connects, without moving. A robot with an error connects too, in the state FAULT.

        Raises:
            NotConnectedError: nothing answered in time.
        """
        ...

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the newest pictures and states.

        Raises:
            NotConnectedError: there is no connection.
            StaleObservationError: a camera that is not optional, or the arm's state, is older.
        """
        ...

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion: an operator's explicit act, with a name for the record.

        Raises:
            RobotError: in FAULT; `recover` comes first.
        """
        ...

    def command(self, command: Command) -> Ack:
        """Begins a command and returns at once. Refusals are in the answer, not exceptions.

        Raises:
            NotConnectedError: there is no connection.
        """
        ...

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest. Any thread may call it, at any time and more than once."""
        ...

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT for IDLE when the cause is gone: an operator's explicit act."""
        ...

    def close(self) -> None:
        """Stops the arm and gives the connection back. More than once does no harm."""
        ...
