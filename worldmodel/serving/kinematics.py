"""Where a Franka's tool is, and which joints put it elsewhere.

The tool centre point of a world model is that of its training data: `Tool` says where it lies
behind the flange, which is what DROID reports as `cartesian_position`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.data.rotations import angle_between, to_matrix
from worldmodel.envs.robots.kinematics import inverse_kinematics, jacobian, pose_matrix
from worldmodel.envs.robots.limits import UNKNOWN
from worldmodel.franka_arm import joint_frames

# A request does not say which Franka it comes from.
JOINT_LOW, JOINT_HIGH = UNKNOWN.joints.low, UNKNOWN.joints.high  # rad
JOINT_MARGIN = 0.02  # rad kept from both
REACHED_POSITION, REACHED_ROTATION = 5e-3, 2e-2  # m, rad: farther away is not reached
LARGEST_MOVE = 0.3  # rad of a joint; more is another posture, and the tool would swing on its way


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
        flange = joint_frames(joints)[..., -1, :, :]
        return self.of_flange(flange[..., :3, 3], flange[..., :3, :3])

    def solve(
        self,
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        start: Float[np.ndarray, "7"],
    ) -> Float[np.ndarray, "7"] | None:
        """Returns joints that put the tool at a pose, or None when there are none near `start`.

        They keep `JOINT_MARGIN` from the joint limits, and are at most `LARGEST_MOVE` away.
        """
        flange_position, flange_rotation = self.to_flange(position, rotation)
        joints, away = inverse_kinematics(
            start,
            np.eye(4),
            pose_matrix(flange_position, flange_rotation),
            low=JOINT_LOW + JOINT_MARGIN,
            high=JOINT_HIGH - JOINT_MARGIN,
        )
        turned = angle_between(self.pose(joints)[1], rotation)
        near = np.abs(joints - start).max() <= LARGEST_MOVE
        return joints if near and away <= REACHED_POSITION and turned <= REACHED_ROTATION else None

    def turn_elbow(
        self, joints: Float[np.ndarray, "7"], posture: Float[np.ndarray, "7"], *, most: float
    ) -> Float[np.ndarray, "7"]:
        """Returns joints nearer to a posture, along the one way that leaves the tool where it is.

        Args:
            joints: Where to start [rad].
            posture: Wanted joints [rad]; of them only the elbow's place counts.
            most: Largest change of a joint [rad]. The tool stays in place to first order of it.
        """
        frames = joint_frames(joints)
        along = np.linalg.svd(jacobian(frames, frames[-1, :3, 3]))[2][-1]  # of the null space
        move = along * (along @ (posture - joints))
        return joints + move * min(1.0, most / max(np.abs(move).max(), 1e-12))


def _about_z(angle: float) -> np.ndarray:
    return to_matrix(np.array([0.0, 0.0, angle]), "rotvec")
