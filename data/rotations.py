"""Rotations as others write them, and interpolation: all goes through matrices, in numpy.

A form is one of
    euler_xyz, euler_zyx, ...   extrinsic angles about fixed axes, in this order (scipy's lowercase)
    euler_XYZ, euler_ZYX, ...   intrinsic angles about turning axes (scipy's uppercase)
    rotvec                      axis times angle
    quat_xyzw, quat_wxyz        unit quaternion
    rot6d                       first two columns of the matrix, one after the other
    rot6d_rows                  first two rows of the matrix, one after the other
    matrix                      nine entries, row by row
"""

from itertools import permutations, product

import numpy as np

_AXES = {"x": 0, "y": 1, "z": 2}
_ORDERS = ["".join(order) for order in permutations("xyz")]
_ORDERS += [a + b + a for a, b in product("xyz", repeat=2) if a != b]

EULER_FORMS = tuple(f"euler_{o}" for o in _ORDERS) + tuple(f"euler_{o.upper()}" for o in _ORDERS)
SIZES = dict.fromkeys(EULER_FORMS, 3) | {
    "rotvec": 3,
    "quat_xyzw": 4,
    "quat_wxyz": 4,
    "rot6d": 6,
    "rot6d_rows": 6,
    "matrix": 9,
}
FORMS = tuple(SIZES)
MATRIX_TOLERANCE = 1e-2  # of the entries of R R^T; half precision gives 2e-3


def to_matrix(values: np.ndarray, form: str) -> np.ndarray:
    """Returns rotation matrices (..., 3, 3), float64, of rotations (..., size) in a form [rad].

    Raises:
        ValueError: The form is unknown or does not have that many numbers; or a quaternion is
            zero, two columns are parallel, or a matrix is not that of a rotation.
    """
    if form not in SIZES:
        raise ValueError(f"unknown form of rotation '{form}'; known: {', '.join(FORMS)}")
    if values.shape[-1:] != (SIZES[form],):
        raise ValueError(
            f"a rotation as {form} has {SIZES[form]} numbers, got {values.shape[-1:] or 'none'}"
        )
    values = values.astype(np.float64)
    if form.startswith("euler_"):
        return _from_euler(values, form.removeprefix("euler_"))
    if form == "rotvec":
        return _from_rotvec(values)
    if form == "quat_wxyz":
        return _from_quat_xyzw(values[..., [1, 2, 3, 0]])
    if form == "quat_xyzw":
        return _from_quat_xyzw(values)
    if form == "matrix":
        return _from_entries(values.reshape(*values.shape[:-1], 3, 3))
    columns = _from_rot6d(values)
    return columns if form == "rot6d" else np.swapaxes(columns, -1, -2)


def to_rotvec(matrix: np.ndarray) -> np.ndarray:
    """Returns axis times angle (..., 3) [rad], angle in [0, pi], of matrices (..., 3, 3)."""
    quat = to_quat_xyzw(matrix)
    sine = np.linalg.norm(quat[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quat[..., 3:])
    factor = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
    return quat[..., :3] * factor


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns angles (...) [rad] of the rotations between matrices (..., 3, 3)."""
    return np.linalg.norm(to_rotvec(np.swapaxes(a, -1, -2) @ b), axis=-1)


def slerp(a: np.ndarray, b: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Returns matrices (..., 3, 3) at `fraction` (...) of the shortest way from `a` to `b`.

    Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    turn = to_rotvec(np.swapaxes(a, -1, -2) @ b)
    return a @ _from_rotvec(turn * fraction[..., None])


def mean_rotation(matrices: np.ndarray) -> np.ndarray:
    """Returns the matrix (3, 3) closest to rotations (n, 3, 3) in the chordal metric."""
    u, _, vt = np.linalg.svd(matrices.mean(axis=0))
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def to_quat_xyzw(matrix: np.ndarray) -> np.ndarray:
    """Returns quaternions (..., 4), x y z w with w >= 0, of rotation matrices (..., 3, 3)."""
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Four equivalent ways; the largest of these is the one far from dividing by zero.
    squares = np.stack([*(1 + 2 * m[..., i, i] - trace for i in range(3)), 1 + trace], axis=-1)
    candidates = np.stack(
        [
            _stack(squares[..., 0], m, (0, 1, 1), (0, 2, 1), (2, 1, -1)),
            _stack(squares[..., 1], m, (0, 1, 1), (1, 2, 1), (0, 2, -1)),
            _stack(squares[..., 2], m, (0, 2, 1), (1, 2, 1), (1, 0, -1)),
            _stack(squares[..., 3], m, (2, 1, -1), (0, 2, -1), (1, 0, -1)),
        ],
        axis=-2,
    )
    orders = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 0, 3], [1, 2, 3, 0]])
    best = squares.argmax(axis=-1)
    chosen = np.take_along_axis(candidates, best[..., None, None], axis=-2)[..., 0, :]
    quat = np.take_along_axis(chosen, orders[best], axis=-1)
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    return np.where(quat[..., 3:] < 0, -quat, quat)


def _stack(square: np.ndarray, m: np.ndarray, *terms: tuple[int, int, int]) -> np.ndarray:
    """Returns (square, m_ij + sign m_ji, ...); row i of `orders` sorts it into x y z w."""
    return np.stack([square, *(m[..., i, j] + sign * m[..., j, i] for i, j, sign in terms)], -1)


def _from_euler(angles: np.ndarray, order: str) -> np.ndarray:
    turns = [_about(_AXES[axis.lower()], angles[..., k]) for k, axis in enumerate(order)]
    first, second, third = turns
    return third @ second @ first if order.islower() else first @ second @ third


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    result = np.zeros((*angle.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    result[..., axis, axis] = 1
    result[..., i, i] = result[..., j, j] = np.cos(angle)
    result[..., j, i] = np.sin(angle)
    result[..., i, j] = -np.sin(angle)
    return result


def _from_rotvec(rotvec: np.ndarray) -> np.ndarray:
    """Rodrigues' formula."""
    angle = np.linalg.norm(rotvec, axis=-1)[..., None, None]
    x, y, z = rotvec[..., 0], rotvec[..., 1], rotvec[..., 2]
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    small = angle < 1e-8
    safe = np.where(small, 1.0, angle)
    first = np.where(small, 1.0, np.sin(safe) / safe)
    second = np.where(small, 0.5, (1 - np.cos(safe)) / safe**2)
    return np.eye(3) + first * cross + second * (cross @ cross)


def _from_quat_xyzw(quat: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(quat, axis=-1, keepdims=True)
    if (norm < 1e-6).any():
        raise ValueError("a quaternion is all zeros; expected unit quaternions")
    x, y, z, w = np.moveaxis(quat / norm, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _from_entries(matrix: np.ndarray) -> np.ndarray:
    error = np.abs(matrix @ np.swapaxes(matrix, -1, -2) - np.eye(3)).max(axis=(-1, -2))
    x, y, z = np.moveaxis(matrix, -1, 0)
    wrong = (error > MATRIX_TOLERANCE) | ((np.cross(x, y) * z).sum(-1) < 0)
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} of {wrong.size} matrices are not of rotations: expected columns of "
            f"length 1 at right angles, right-handed, got {matrix[wrong][0].round(4).tolist()}"
        )
    return matrix


def _from_rot6d(values: np.ndarray) -> np.ndarray:
    """Gram-Schmidt of two columns (Zhou et al. 2019, arXiv 1812.07035)."""
    a, b = values[..., :3], values[..., 3:]
    if (np.linalg.norm(np.cross(a, b), axis=-1) < 1e-6).any():
        raise ValueError("the two vectors of a 6-D rotation are zero or parallel")
    x = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b - (x * b).sum(-1, keepdims=True) * x
    y = b / np.linalg.norm(b, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)
