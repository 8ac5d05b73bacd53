"""A Franka arm as published: where its joints put the hand, and how far a Panda's joints turn.

Panda and FR3 have the same geometry. Source: the modified Denavit-Hartenberg table (Craig's
convention) and the limits in the documentation of the Franka Control Interface. Numpy only, so that
data readers, environments and servers share it.
"""

import numpy as np

NUM_JOINTS = 7
PANDA_JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])  # rad
PANDA_JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])  # rad

FLANGE_LENGTH = 0.107  # m along z of the last joint
HAND_YAW = -np.pi / 4  # rad: how the Franka hand is mounted on the flange
HAND_LENGTH = 0.1034  # m from the flange to between the fingertips

_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)  # [m] along the x axis of the link before
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)  # [m] along the joint's own axis
_TWIST = (0, -1, 1, 1, -1, 1, 1)  # quarter turns about the x axis of the link before

# A link's pose is _STILL + cos(angle) _COS + sin(angle) _SIN, each (7, 4, 4).
_STILL, _COS, _SIN = np.zeros((3, NUM_JOINTS, 4, 4))
for _i, (_a, _d, _sine) in enumerate(zip(_A, _D, _TWIST, strict=True)):
    _cosine = 1 - abs(_sine)
    _COS[_i, :3, :2] = [[1, 0], [0, _cosine], [0, _sine]]
    _SIN[_i, :3, :2] = [[0, -1], [_cosine, 0], [_sine, 0]]
    _STILL[_i, :, 2] = [0, -_sine, _cosine, 0]
    _STILL[_i, :, 3] = [_a, -_d * _sine, _d * _cosine, 1]


def joint_frames(joints: np.ndarray) -> np.ndarray:
    """Returns the poses (..., 8, 4, 4) of the seven joints and the flange in the base frame.

    Joint i turns about the z axis of frame i.

    Args:
        joints: Joint angles (..., 7) [rad].

    Raises:
        ValueError: There are not seven joints.
    """
    if joints.shape[-1:] != (NUM_JOINTS,):
        raise ValueError(f"a Franka has 7 joints, got joint angles of shape {joints.shape}")
    angles = joints.astype(np.float64)[..., None, None]
    links = _STILL + np.cos(angles) * _COS + np.sin(angles) * _SIN
    frames = np.empty((*joints.shape[:-1], NUM_JOINTS + 1, 4, 4))
    frames[..., 0, :, :] = links[..., 0, :, :]
    for i in range(1, NUM_JOINTS):
        frames[..., i, :, :] = frames[..., i - 1, :, :] @ links[..., i, :, :]
    frames[..., -1, :, :] = frames[..., -2, :, :]
    frames[..., -1, :3, 3] += FLANGE_LENGTH * frames[..., -1, :3, 2]
    return frames


def hand_pose(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions (..., 3) [m] between the fingertips, and rotations (..., 3, 3) of the hand.

    Both in the base frame. The check on every logged pose.

    Args:
        joints: Joint angles (..., 7) [rad].

    Raises:
        ValueError: There are not seven joints.
    """
    flange = joint_frames(joints)[..., -1, :, :]
    cos, sin = np.cos(HAND_YAW), np.sin(HAND_YAW)
    yaw = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    position = flange[..., :3, 3] + HAND_LENGTH * flange[..., :3, 2]
    return position, flange[..., :3, :3] @ yaw
