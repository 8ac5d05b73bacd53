"""From commands to motions of the library franky: velocities that end by themselves."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from worldmodel.envs.robots.franky_connection import franky
from worldmodel.envs.robots.interface import NUM_JOINTS, Command
from worldmodel.envs.robots.kinematics import quat_xyzw_to_matrix, rotation_vector
from worldmodel.envs.robots.limits import Envelope

Signal = Literal["cartesian", "joint"]
SIGNALS: dict[str, Signal] = {"twist": "cartesian", "pose": "cartesian", "joint_velocity": "joint"}
"""What moves, by kind of command: the library cannot change between them while the arm moves."""

BELOW = 1 - 1e-9  # of a limit: the library refuses what is above it by a rounding error


def as_velocity(command: Command, *, position: np.ndarray, rotation: np.ndarray) -> Command:
    """Returns a "pose" as the "twist" that reaches it when the command ends; others as they are.

    Args:
        command: as it came.
        position: of the tool (3,) [m].
        rotation: of the tool (3, 3).
    """
    if command.kind != "pose":
        return replace(command, values=np.array(command.values, np.float64))
    turn = rotation_vector(quat_xyzw_to_matrix(command.values[3:]) @ rotation.T)
    way = np.concatenate([command.values[:3] - position, turn])
    return replace(command, kind="twist", values=way / command.valid_for_s)


def within_limits(command: Command, envelope: Envelope) -> tuple[Command, tuple[str, ...]]:
    """Returns a velocity command made slower where it is too fast, and the limits that did it."""
    values, clamped = command.values.copy(), []
    parts = {
        "twist": (
            ("velocity", slice(0, 3), 2, envelope.velocity),
            ("angular_velocity", slice(3, 6), 2, envelope.angular_velocity),
        ),
        "joint_velocity": (
            ("joint_velocity", slice(0, NUM_JOINTS), np.inf, envelope.joint_velocity),
        ),
        "hold": (),
    }
    for name, part, order, limit in parts[command.kind]:
        speed = float(np.linalg.norm(values[part], order))
        if speed > limit * BELOW:
            values[part] *= limit / speed * BELOW
        if speed > limit:
            clamped.append(name)
    return replace(command, values=values), tuple(clamped)


def velocity_motion(command: Command) -> Any:
    """Returns the motion of a "twist" or "joint_velocity".

    The control thread brakes the arm when the command's life is over, whatever else happens: by the
    motion's duration, which the library describes as only the part at full speed, and by a reaction
    to the time since it began.
    """
    duration = franky.Duration(round(1000 * command.valid_for_s))
    expired = franky.Measure.REL_TIME >= command.valid_for_s
    if command.kind == "twist":
        twist = franky.Twist(command.values[:3], command.values[3:])
        motion = franky.CartesianVelocityMotion(twist, duration)
        motion.add_reaction(franky.CartesianVelocityReaction(expired, brake("cartesian")))
    else:
        motion = franky.JointVelocityMotion(command.values, duration)
        motion.add_reaction(franky.JointVelocityReaction(expired, brake("joint")))
    return motion


def brake(signal: Signal) -> Any:
    """Returns the motion that brings the arm to rest within the library's limits."""
    if signal == "cartesian":
        return franky.CartesianVelocityStopMotion()
    return franky.JointVelocityStopMotion()
