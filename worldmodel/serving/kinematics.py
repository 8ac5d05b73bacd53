"""Where a Franka's tool is, and which joints put it elsewhere: damped least squares, numpy only.

The tool centre point of a world model is that of its training data: `Tool` says where it lies
behind the flange, which is what DROID reports as `cartesian_position`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.data.kinematics import HAND_LENGTH, franka_hand_pose
from worldmodel.data.rotations import to_matrix, to_rotvec

# The intersection of Panda and FR3 (Franka Control Interface documentation): a request does not say
# which arm it comes from.
JOINT_LOW = np.array([-2.7437, -1.7628, -2.8973, -3.0421, -2.8065, 0.5445, -2.8973])  # rad
JOINT_HIGH = np.array([2.7437, 1.7628, 2.8973, -0.1518, 2.8065, 3.7525, 2.8973])  # rad
JOINT_MARGIN = 0.02  # rad kept from both
HAND_YAW = -np.pi / 4  # rad: how Franka mounts its hand on the flange

ITERATIONS, DAMPING, LARGEST_STEP = 20, 0.01, 0.2  # of the search; rad
REACHED_POSITION, REACHED_ROTATION = 5e-3, 2e-2  # m, rad: farther away is not reached
CLOSE_ENOUGH = 1e-6  # m and rad
DIFFERENCE = 1e-6  # rad, for the Jacobian


@dataclass(frozen=True)
class Tool:
    """The tool centre point, seen from the flange (link 8): turned by `yaw`, then `length` ahead.

    Attributes:
        length: along the flange's z axis [m].
        yaw: about it [rad].
    """

    length: float
    yaw: float

    def of_flange(
        self, position: Float[np.ndarray, "*n 3"], rotation: Float[np.ndarray, "*n 3 3"]
    ) -> tuple[Float[np.ndarray, "*n 3"], Float[np.ndarray, "*n 3 3"]]:
        """Returns the tool's pose when the flange has this one."""
        return position + self.length * rotation[..., :, 2], rotation @ _about_z(self.yaw)

    def to_flange(
        self, position: Float[np.ndarray, "*n 3"], rotation: Float[np.ndarray, "*n 3 3"]
    ) -> tuple[Float[np.ndarray, "*n 3"], Float[np.ndarray, "*n 3 3"]]:
        """Returns the flange's pose when the tool has this one."""
        return position - self.length * rotation[..., :, 2], rotation @ _about_z(-self.yaw)

    def pose(
        self, joints: Float[np.ndarray, "*n 7"]
    ) -> tuple[Float[np.ndarray, "*n 3"], Float[np.ndarray, "*n 3 3"]]:
        """Returns the tool's position [m] and rotation in the base frame at some joints [rad]."""
        hand_position, hand_rotation = franka_hand_pose(joints)
        flange = Tool(length=HAND_LENGTH, yaw=HAND_YAW).to_flange(hand_position, hand_rotation)
        return self.of_flange(*flange)

    def solve(
        self,
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        start: Float[np.ndarray, "7"],
    ) -> Float[np.ndarray, "7"] | None:
        """Returns joints near `start` that put the tool at a pose, or None when there are none.

        They keep `JOINT_MARGIN` from the joint limits. Source: Wampler 1986, "Manipulator inverse
        kinematic solutions based on vector formulations and damped least-squares methods".
        """
        joints = np.array(start, dtype=np.float64)
        for _ in range(ITERATIONS):
            error = self._error(position, rotation, joints)
            if np.abs(error).max() < CLOSE_ENOUGH:
                break
            nudged = joints + DIFFERENCE * np.eye(7)
            jacobian = (error - self._error(position, rotation, nudged)).T / DIFFERENCE  # (6, 7)
            square = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
            move = jacobian.T @ np.linalg.solve(square, error)
            move *= min(1.0, LARGEST_STEP / max(np.abs(move).max(), 1e-9))
            joints = np.clip(joints + move, JOINT_LOW + JOINT_MARGIN, JOINT_HIGH - JOINT_MARGIN)
        error = self._error(position, rotation, joints)
        near = np.linalg.norm(error[:3]) <= REACHED_POSITION
        return joints if near and np.linalg.norm(error[3:]) <= REACHED_ROTATION else None

    def _error(self, position: np.ndarray, rotation: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """Returns the twists (*n, 6), [m] then [rad], from the tool at joints (*n, 7) to a pose."""
        there, turned = self.pose(joints)
        return np.concatenate(
            [position - there, to_rotvec(rotation @ np.swapaxes(turned, -1, -2))], axis=-1
        )


def _about_z(angle: float) -> np.ndarray:
    return to_matrix(np.array([0.0, 0.0, angle]), "rotvec")
