"""How a Franka's tool moves with its joints, which joints put it elsewhere, and rotations.

What hangs on the flange is not assumed: `tool_offset` takes it from a measured pose.
"""

import numpy as np

from worldmodel.franka_arm import NUM_JOINTS, joint_frames

IK_ITERATIONS, IK_DAMPING = 20, 0.01


def pose_matrix(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Returns the pose (4, 4) of a position (3,) [m] and a rotation matrix (3, 3)."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    return pose


def tool_offset(frames: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Returns the tool's pose (4, 4) in the flange frame, from `joint_frames` and its pose."""
    flange = frames[-1]
    across = flange[:3, :3].T
    return pose_matrix(across @ (position - flange[:3, 3]), across @ rotation)


def tool_on_flange(*, length: float, yaw: float) -> np.ndarray:
    """Returns the pose (4, 4) of the tool centre point, seen from the flange.

    Args:
        length: along the flange's z axis [m].
        yaw: about it [rad].
    """
    rotation = rotation_of_vector(np.array([0.0, 0.0, yaw]))
    return pose_matrix(np.array([0.0, 0.0, length]), rotation)


def jacobian(frames: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Returns the Jacobian (6, 7) of a point that moves with the flange, velocity [m/s] first.

    Args:
        frames: From `joint_frames`.
        position: The point (3,) in the base frame [m].
    """
    axes, origins = frames[:NUM_JOINTS, :3, 2], frames[:NUM_JOINTS, :3, 3]
    x, y, z = axes.T
    a, b, c = (position - origins).T
    return np.stack([y * c - z * b, z * a - x * c, x * b - y * a, x, y, z])


def inverse_kinematics(
    joints: np.ndarray, tool: np.ndarray, target: np.ndarray, *, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, float]:
    """Returns joints near the given ones that bring the tool to a pose: damped least squares.

    Args:
        joints: Where to start (7,) [rad].
        tool: From `tool_offset`.
        target: Pose (4, 4) of the tool in the base frame.
        low: Smallest joint angles (7,).
        high: Largest.

    Returns:
        The joints (7,), and how far from the target the tool is at them [m].
    """
    for _ in range(IK_ITERATIONS):
        frames = joint_frames(joints)
        error = _pose_error(frames[-1] @ tool, target)
        if np.linalg.norm(error) < 1e-5:
            break
        J = jacobian(frames, (frames[-1] @ tool)[:3, 3])
        step = J.T @ np.linalg.solve(J @ J.T + IK_DAMPING**2 * np.eye(6), error)
        joints = np.clip(joints + np.clip(step, -0.2, 0.2), low, high)
    return joints, float(np.linalg.norm(_pose_error(joint_frames(joints)[-1] @ tool, target)[:3]))


def _pose_error(pose: np.ndarray, target: np.ndarray) -> np.ndarray:
    turn = rotation_vector(target[:3, :3] @ pose[:3, :3].T)
    return np.concatenate([target[:3, 3] - pose[:3, 3], turn])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Returns axis times angle (3,) [rad] of a rotation matrix (3, 3)."""
    quat_xyzw = matrix_to_quat_xyzw(rotation)
    sine = float(np.linalg.norm(quat_xyzw[:3]))
    if sine < 1e-12:
        return np.zeros(3)
    return quat_xyzw[:3] * (2 * np.arctan2(sine, quat_xyzw[3]) / sine)


def rotation_of_vector(vector: np.ndarray) -> np.ndarray:
    """Returns the rotation matrix (3, 3) of axis times angle (3,) [rad]."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    axis = np.sin(angle / 2) / angle * vector
    return quat_xyzw_to_matrix(np.append(axis, np.cos(angle / 2)))


def quat_xyzw_to_matrix(quat_xyzw: np.ndarray) -> np.ndarray:
    """Returns the rotation matrix (3, 3) of a unit quaternion (x, y, z, w)."""
    x, y, z, w = (quat_xyzw / np.linalg.norm(quat_xyzw)).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_to_quat_xyzw(rotation: np.ndarray) -> np.ndarray:
    """Returns the unit quaternion (x, y, z, w), w >= 0, of a rotation matrix (3, 3)."""
    r = rotation
    trace = float(np.trace(r))
    squares = [1 + 2 * r[0, 0] - trace, 1 + 2 * r[1, 1] - trace, 1 + 2 * r[2, 2] - trace, 1 + trace]
    largest = int(np.argmax(squares))  # dividing by it is stable
    a, b, c = r[2, 1], r[0, 2], r[1, 0]
    at, bt, ct = r[1, 2], r[2, 0], r[0, 1]
    rows = (
        (squares[0], c + ct, b + bt, a - at),
        (c + ct, squares[1], a + at, b - bt),
        (b + bt, a + at, squares[2], c - ct),
        (a - at, b - bt, c - ct, squares[3]),
    )
    quat_xyzw = np.array(rows[largest]) / (2 * np.sqrt(squares[largest]))
    return quat_xyzw if quat_xyzw[3] >= 0 else -quat_xyzw
