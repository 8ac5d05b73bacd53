"""What is left of a command that is right but asks for too much."""

from collections.abc import Mapping

import numpy as np

from worldmodel.envs.robots.interface import Command, JointLimits
from worldmodel.envs.robots.kinematics import (
    inverse_kinematics,
    matrix_to_quat_xyzw,
    pose_matrix,
    quat_xyzw_to_matrix,
    rotation_of_vector,
    rotation_vector,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.posture import Posture
from worldmodel.envs.robots.shaping import shrink

ARRIVE_BY = 2 / 3  # of a command's life: a planner lets its commands live 1.5 of its periods
REACHABLE = 0.005  # [m] a pose that is missed by more is out of reach
ROUNDING = 1e-9


def clamp(
    command: Command, posture: Posture, envelope: Envelope, limits: JointLimits
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the values that will be followed, and the names of the limits that cut them.

    Args:
        command: One that `gate.what_is_wrong` has nothing against.
        posture: From where it starts.
        envelope: What is allowed.
        limits: Of the joints.

    Returns:
        Values of the command's kind, and names; no values for a pose that is out of reach.
    """
    values, life_s = command.values.astype(float), command.valid_for_s
    if command.kind == "twist":
        return clamp_twist(values, posture, envelope, life_s=life_s)
    if command.kind == "joint_velocity":
        return posture.allow_joint_velocities(values, life_s=life_s)
    if command.kind == "pose":
        target, names = clamp_pose(values, posture, envelope, life_s=life_s)
        goal = pose_matrix(target[:3], quat_xyzw_to_matrix(target[3:]))
        margin = envelope.joint_stop_margin
        _, miss = inverse_kinematics(
            posture.joints, posture.tool, goal, low=limits.low + margin, high=limits.high - margin
        )
        return (target, names) if miss <= REACHABLE else (None, ())
    return values, ()


def clamp_twist(
    twist: np.ndarray, posture: Posture, envelope: Envelope, *, life_s: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns a twist (6,) within all limits over a command's whole life, and what cut it."""
    linear, names = _shortened(
        twist[:3],
        {"velocity": envelope.velocity, "step_translation": envelope.step_translation / life_s},
    )
    angular, more = _shortened(
        twist[3:],
        {
            "angular_velocity": envelope.angular_velocity,
            "step_rotation": envelope.step_rotation / life_s,
        },
    )
    allowed, rest = posture.allow_twist(np.concatenate([linear, angular]), life_s=life_s)
    return allowed, (*names, *more, *rest)


def clamp_pose(
    pose: np.ndarray, posture: Posture, envelope: Envelope, *, life_s: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the pose (7,) on the way to another that can be reached in time, and what cut it."""
    arrive_s = ARRIVE_BY * life_s
    way, names = _shortened(
        pose[:3] - posture.position,
        {
            "step_translation": envelope.step_translation,
            "velocity": envelope.velocity * arrive_s,
        },
    )
    turn, more = _shortened(
        rotation_vector(quat_xyzw_to_matrix(pose[3:]) @ posture.rotation.T),
        {
            "step_rotation": envelope.step_rotation,
            "angular_velocity": envelope.angular_velocity * arrive_s,
        },
    )
    target = posture.position + way
    inside = np.clip(target, envelope.workspace_low, envelope.workspace_high)
    walls = tuple(f"workspace_{'xyz'[i]}" for i in np.flatnonzero(inside != target))
    rotation = rotation_of_vector(turn) @ posture.rotation
    return np.concatenate([inside, matrix_to_quat_xyzw(rotation)]), (*names, *more, *walls)


def _shortened(
    vector: np.ndarray, largest: Mapping[str, float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns a vector of at most each of some norms, and the names of those that cut it."""
    norm = float(np.linalg.norm(vector))
    names = tuple(name for name, limit in largest.items() if norm > limit + ROUNDING)
    return shrink(vector, min(largest.values())), names
