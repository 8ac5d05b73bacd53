"""Pose arithmetic for `proprio` and `action`: numpy arrays or torch tensors, any leading dims.

`proprio` is (x, y, z [m], roll, pitch, yaw [rad], gripper) in the robot base frame; the angles are
extrinsic xyz Euler angles, R = Rz(yaw) Ry(pitch) Rx(roll), as in DROID and V-JEPA 2-AC. `action`
is its change over one model step: position and gripper differences, and the rotation R' R^T that
multiplies on the left, again as extrinsic xyz Euler angles.

This module imports numpy only; a torch tensor brings its own library along, so environments and
data readers can use the same arithmetic without torch.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

POSITION, ROTATION, GRIPPER = slice(0, 3), slice(3, 6), slice(6, 7)
PROPRIO_SIZE = ACTION_SIZE = 7


def _library(x: object) -> ModuleType:
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def _check(name: str, x: "np.ndarray | Tensor", size: int) -> None:
    if x.ndim == 0 or x.shape[-1] != size:
        raise ValueError(f"{name} must end in {size} values, got shape {tuple(x.shape)}")


def euler_to_matrix(euler: Array) -> Array:
    """Returns rotation matrices (..., 3, 3) of extrinsic xyz Euler angles (..., 3) [rad]."""
    _check("Euler angles", euler, 3)
    xp = _library(euler)
    cos, sin = xp.cos(euler), xp.sin(euler)
    cr, cp, cy = cos[..., 0], cos[..., 1], cos[..., 2]
    sr, sp, sy = sin[..., 0], sin[..., 1], sin[..., 2]
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def matrix_to_euler(matrix: Array) -> Array:
    """Returns extrinsic xyz Euler angles (..., 3) [rad] of rotation matrices (..., 3, 3).

    Roll and yaw are in [-pi, pi], pitch in [-pi/2, pi/2].
    """
    xp = _library(matrix)
    pitch = xp.arcsin(xp.clip(-matrix[..., 2, 0], -1.0, 1.0))
    roll = xp.arctan2(matrix[..., 2, 1], matrix[..., 2, 2])
    yaw = xp.arctan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return xp.stack([roll, pitch, yaw], -1)


def rotation_delta(euler_from: Array, euler_to: Array) -> Array:
    """Returns the left rotation from `euler_from` to `euler_to`, as Euler angles (..., 3) [rad]."""
    xp = _library(euler_from)
    start = euler_to_matrix(euler_from)
    return matrix_to_euler(euler_to_matrix(euler_to) @ xp.swapaxes(start, -1, -2))


def action_between(proprio_from: Array, proprio_to: Array) -> Array:
    """Returns the action (..., 7) that moves `proprio_from` (..., 7) to `proprio_to` (..., 7).

    Source: V-JEPA 2-AC post-training (Assran et al. 2025, arXiv 2506.09985, section 3.1).
    """
    _check("proprio_from", proprio_from, PROPRIO_SIZE)
    _check("proprio_to", proprio_to, PROPRIO_SIZE)
    xp = _library(proprio_from)
    rotation = rotation_delta(proprio_from[..., ROTATION], proprio_to[..., ROTATION])
    position = proprio_to[..., POSITION] - proprio_from[..., POSITION]
    gripper = proprio_to[..., GRIPPER] - proprio_from[..., GRIPPER]
    return xp.concatenate([position, rotation, gripper], -1)


def integrate(proprio: Array, action: Array) -> Array:
    """Returns the proprio (..., 7) reached from `proprio` (..., 7) by `action` (..., 7).

    The inverse of `action_between`, but for the gripper, which is clipped to [0, 1].
    """
    _check("proprio", proprio, PROPRIO_SIZE)
    _check("action", action, ACTION_SIZE)
    xp = _library(proprio)
    turned = euler_to_matrix(action[..., ROTATION]) @ euler_to_matrix(proprio[..., ROTATION])
    position = proprio[..., POSITION] + action[..., POSITION]
    gripper = xp.clip(proprio[..., GRIPPER] + action[..., GRIPPER], 0.0, 1.0)
    return xp.concatenate([position, matrix_to_euler(turned), gripper], -1)
