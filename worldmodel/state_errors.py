"""How far the states that a head reads from frames are off."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix

GRIPPER_CLOSED = 0.2  # of 1; a gripper further closed than this counts as closed


@dataclass(frozen=True)
class StateError:
    """Of an arm that speaks in end-effector poses, on average.

    Attributes:
        x_cm: Of the position, along x.
        y_cm: Along y.
        z_cm: Along z.
        rotation_rad: Angle between the rotation read and the true one.
        gripper: Of the gripper, of 1.
        gripper_accuracy: Share of frames in which it is rightly read as open or closed.
    """

    x_cm: float
    y_cm: float
    z_cm: float
    rotation_rad: float
    gripper: float
    gripper_accuracy: float


@dataclass(frozen=True)
class JointError:
    """Of an arm that speaks in joints, on average.

    Attributes:
        joints_deg: Of a joint, over all of them.
        worst_joint_deg: Of the joint that is read worst.
        gripper: Of the gripper, of 1.
        gripper_accuracy: Share of frames in which it is rightly read as open or closed.
    """

    joints_deg: float
    worst_joint_deg: float
    gripper: float
    gripper_accuracy: float


def state_error(read: Float[Tensor, "n 7"], true: Float[Tensor, "n 7"]) -> StateError:
    """Returns how far poses that were read are off."""
    error = (read - true).abs().mean(0)
    x_cm, y_cm, z_cm = (100 * error[POSITION]).tolist()
    turned = euler_to_matrix(read[:, ROTATION]) - euler_to_matrix(true[:, ROTATION])
    chord = turned.flatten(1).norm(dim=1) / 8**0.5  # the sine of half the angle
    return StateError(
        x_cm=x_cm,
        y_cm=y_cm,
        z_cm=z_cm,
        rotation_rad=float(2 * chord.clamp(max=1).arcsin().mean()),
        gripper=float(error[GRIPPER]),
        gripper_accuracy=_rightly_closed(read, true),
    )


def joint_error(read: Float[Tensor, "n joints"], true: Float[Tensor, "n joints"]) -> JointError:
    """Returns how far joints that were read are off; the last number is the gripper."""
    error = (read - true).abs().mean(0)
    degrees = error[:-1].rad2deg()
    return JointError(
        joints_deg=float(degrees.mean()),
        worst_joint_deg=float(degrees.max()),
        gripper=float(error[-1]),
        gripper_accuracy=_rightly_closed(read, true),
    )


def _rightly_closed(read: Tensor, true: Tensor) -> float:
    closed = read[:, -1] > GRIPPER_CLOSED, true[:, -1] > GRIPPER_CLOSED
    return float((closed[0] == closed[1]).float().mean())
