"""Where a Franka's hand is, from its joint angles: the check on every logged pose.

Source: the modified Denavit-Hartenberg table of the Franka Control Interface documentation, the
same for the Emika Panda and the Research 3.
"""

import numpy as np

# a [m], d [m], alpha [rad] of each joint, Craig's convention; then the flange.
_LINKS = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
)
_FLANGE = 0.107  # m along z of the last joint
_HAND_YAW = -np.pi / 4  # the Franka hand is mounted turned by 45 degrees
HAND_LENGTH = 0.1034  # m from the flange to between the fingertips

JOINT_LOWER = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])  # rad
JOINT_UPPER = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])  # rad


def franka_hand_pose(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tool centre positions (..., 3) [m] and rotations (..., 3, 3) in the base frame.

    Args:
        joints: Joint angles (..., 7) [rad].

    Raises:
        ValueError: There are not seven joints.
    """
    if joints.shape[-1:] != (7,):
        raise ValueError(f"a Franka has 7 joints, got joint angles of shape {joints.shape}")
    joints = joints.astype(np.float64)
    pose = np.broadcast_to(np.eye(4), (*joints.shape[:-1], 4, 4))
    for k, (a, d, alpha) in enumerate(_LINKS):
        pose = pose @ _link(joints[..., k], a, d, alpha)
    flange = _link(np.full(joints.shape[:-1], _HAND_YAW), 0.0, _FLANGE + HAND_LENGTH, 0.0)
    pose = pose @ flange
    return pose[..., :3, 3], pose[..., :3, :3]


def _link(theta: np.ndarray, a: float, d: float, alpha: float) -> np.ndarray:
    cos, sin = np.cos(theta), np.sin(theta)
    ca, sa = np.cos(alpha), np.sin(alpha)
    zero, one = np.zeros_like(theta), np.ones_like(theta)
    rows = (
        (cos, -sin, zero, a * one),
        (sin * ca, cos * ca, -sa * one, -d * sa * one),
        (sin * sa, cos * sa, ca * one, d * ca * one),
        (zero, zero, zero, one),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)
