"""What the numbers of an action mean: poses of the hand, or the joints of an arm.

A controller adds actions to the state, takes the difference of two states, and shortens actions
that are too long. How, an arm says; the world model that it plans with speaks the same way. In
every space the last axis is the gripper.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from worldmodel import pose
from worldmodel.pose import (
    ACTION_SIZE,
    POSITION,
    PROPRIO_SIZE,
    ROTATION,
    action_between,
    integrate,
    rotation_delta,
)

GRIPPER = -1  # the last axis of every action


@runtime_checkable
class ActionSpace(Protocol):
    """How actions and proprio of an arm compose.

    Attributes:
        action_size: numbers in an action; the last is the gripper's.
        proprio_size: numbers in a proprio.
        groups: axes that are shortened by one factor, which keeps their direction.
    """

    action_size: int
    proprio_size: int
    groups: tuple[slice, ...]

    def between(
        self, before: Float[Tensor, "*batch proprio"], after: Float[Tensor, "*batch proprio"]
    ) -> Float[Tensor, "*batch action"]:
        """Returns the action that leads from one proprio to another."""
        ...

    def integrate(
        self, proprio: Float[Tensor, "*batch proprio"], action: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch proprio"]:
        """Returns where an action leads; the gripper stays within [0, 1]."""
        ...

    def remainder(
        self, action: Float[np.ndarray, " action"], part: Float[np.ndarray, " action"]
    ) -> Float[np.ndarray, " action"]:
        """Returns what is left of an action when a part of it is done."""
        ...


class PoseSpace:
    """The end effector's pose and the gripper, as V-JEPA 2-AC speaks (`worldmodel.pose`)."""

    action_size = ACTION_SIZE
    proprio_size = PROPRIO_SIZE
    groups = (POSITION, ROTATION, pose.GRIPPER)

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """Returns the action (..., 7) [m, rad, gripper]."""
        return action_between(before, after)

    def integrate(self, proprio: Tensor, action: Tensor) -> Tensor:
        """Returns the proprio (..., 7); rotations compose, the new one from the left."""
        return integrate(proprio, action)

    def remainder(self, action: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Returns what is left (7,): `R(rest) R(part) = R(action)`."""
        rest = action - part
        rest[ROTATION] = rotation_delta(part[ROTATION], action[ROTATION])
        return rest


class JointSpace:
    """The joints and the gripper of an arm that does not speak in poses.

    Args:
        joints: How many [rad, or m where they slide].
    """

    def __init__(self, joints: int):
        self.action_size = self.proprio_size = joints + 1
        self.groups = (slice(0, joints), slice(joints, joints + 1))

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """Returns the change of each joint and of the gripper."""
        return after - before

    def integrate(self, proprio: Tensor, action: Tensor) -> Tensor:
        """Returns the sum, the gripper within [0, 1]."""
        moved = proprio + action
        moved[..., GRIPPER] = moved[..., GRIPPER].clamp(0.0, 1.0)
        return moved

    def remainder(self, action: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Returns the difference."""
        return action - part


POSES = PoseSpace()
