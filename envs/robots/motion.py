"""From what is commanded to where the joints are to be, tick by tick and smoothly.

A wanted velocity goes through a limit on its slope and then through a moving average. The slope is
at most the acceleration a; the average of a slope over a window T changes by at most 2 a / T, so
with T = 2 a / jerk both limits hold exactly, whatever is wanted and whenever it changes.

Tool velocities become joint velocities by damped least squares (Nakamura and Hanafusa 1986); where
the arm has a choice, its elbow goes towards where `worldmodel.envs.control` would have put it.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import math

import mujoco
import numpy as np
from jaxtyping import Float

from worldmodel.envs import panda
from worldmodel.envs.robots.interface import NUM_JOINTS, Command, JointLimits
from worldmodel.envs.robots.kinematics import quat_xyzw_to_matrix, rotation_vector

# Twice those of an `Envelope` or more, so that what `SafeRobot` has smoothed passes unchanged.
LINEAR_ACCELERATION, LINEAR_JERK = 2.0, 400.0  # [m/s^2], [m/s^3]
ANGULAR_ACCELERATION, ANGULAR_JERK = 4.0, 800.0  # [rad/s^2], [rad/s^3]
JOINT_ACCELERATION, JOINT_JERK = 4.0, 800.0  # [rad/s^2], [rad/s^3] of a joint velocity command
POSE_RATE = 3.0  # [1/s] a pose is approached with this times the way left, at most with
POSE_SPEED, POSE_TURN = 0.25, 0.5  # [m/s] and [rad/s]
DAMPING = 0.01  # of the least squares
POSTURE_RATE = 1.0  # [1/s] at which the elbow goes to its place
POSTURE_SPEED = 0.02  # [m/s] or [rad/s] of the tool below which the elbow goes more slowly
LIMIT_RATE = 10.0  # [1/s] a joint's speed towards its limit is at most this times the way left


class SmoothVelocity:
    """A velocity that follows the wanted one with bounded acceleration and jerk (Euclidean)."""

    def __init__(self, size: int, *, acceleration: float, jerk: float, dt: float):
        """Begins at rest.

        Args:
            size: number of values.
            acceleration: largest change of the velocity per second.
            jerk: largest change of the acceleration per second.
            dt: seconds between two calls of `follow`.
        """
        self._step = acceleration * dt
        window = max(1, math.ceil(2 * acceleration / (jerk * dt)))
        self._sloped = np.zeros((window, size))
        self._index = 0

    @property
    def at_rest(self) -> bool:
        """Whether it is, and was for the length of the window."""
        return not self._sloped.any()

    def follow(self, wanted: np.ndarray) -> np.ndarray:
        """Returns the velocity (size,) of the next tick, on its way to `wanted` (size,)."""
        last = self._sloped[self._index]
        change = wanted - last
        part = self._step / max(self._step, math.sqrt(float(change @ change)))
        self._index = (self._index + 1) % len(self._sloped)
        self._sloped[self._index] = wanted if part == 1.0 else last + part * change
        return self._sloped.mean(axis=0)


class Kinematics:
    """The tool at any joints, wherever the simulated arm is. Not for several threads at once."""

    def __init__(self, model: mujoco.MjModel):
        self._model, self._data = model, mujoco.MjData(model)
        joints = [model.joint(name) for name in panda.JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._tcp = model.site("tcp").id
        self._jacobian = np.empty((6, model.nv))

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tool's position (3,) and rotation (3, 3) in the base frame."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.site_xmat[self._tcp].reshape(3, 3)
        return self._data.site_xpos[self._tcp].copy(), rotation.copy()

    def jacobian(self, joints: np.ndarray) -> Float[np.ndarray, "6 7"]:
        """Returns the tool's velocity, [m/s] then [rad/s] in the base frame, per joint's."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jacSite(
            self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._tcp
        )
        return self._jacobian[:, self._dofs]


class JointMotion:
    """Where the joints are to be and how fast they are to move.

    Tool and joint velocities are smoothed apart and added, so that a change from one kind of
    command to the other in the midst of a motion is as smooth as any.

    Attributes:
        joints: (7,) [rad].
        velocities: (7,) [rad/s].
    """

    def __init__(self, kinematics: Kinematics, limits: JointLimits, *, dt: float):
        """Begins at home, at rest.

        Args:
            kinematics: of the arm.
            limits: that the joints keep.
            dt: seconds between two calls of `advance`.
        """
        self._kinematics, self._limits, self._dt = kinematics, limits, dt
        self.reset(panda.HOME_JOINTS)

    def reset(self, joints: np.ndarray) -> None:
        """Begins anew at joints (7,) [rad], at rest."""
        self.joints, self.velocities = np.array(joints, float), np.zeros(NUM_JOINTS)
        self._linear = SmoothVelocity(
            3, acceleration=LINEAR_ACCELERATION, jerk=LINEAR_JERK, dt=self._dt
        )
        self._angular = SmoothVelocity(
            3, acceleration=ANGULAR_ACCELERATION, jerk=ANGULAR_JERK, dt=self._dt
        )
        self._own = SmoothVelocity(
            NUM_JOINTS, acceleration=JOINT_ACCELERATION, jerk=JOINT_JERK, dt=self._dt
        )

    @property
    def at_rest(self) -> bool:
        """Whether nothing is to move."""
        return self._linear.at_rest and self._angular.at_rest and self._own.at_rest

    def advance(self, command: Command | None) -> None:
        """Moves on by one tick, towards what is commanded; None brakes to rest."""
        twist, joint_velocities = np.zeros(6), np.zeros(NUM_JOINTS)
        if command is not None and command.kind == "twist":
            twist = command.values
        elif command is not None and command.kind == "pose":
            twist = self._approach(command.values)
        elif command is not None and command.kind == "joint_velocity":
            joint_velocities = command.values
        linear, angular = self._linear.follow(twist[:3]), self._angular.follow(twist[3:])
        own = self._own.follow(joint_velocities)
        if self.at_rest:
            self.velocities = np.zeros(NUM_JOINTS)
            return
        wanted = self._resolve(np.concatenate([linear, angular])) + own
        wanted *= min(1.0, float((self._limits.velocity / np.maximum(abs(wanted), 1e-9)).min()))
        self.velocities = np.clip(
            wanted,
            LIMIT_RATE * np.minimum(self._limits.low - self.joints, 0.0),
            LIMIT_RATE * np.maximum(self._limits.high - self.joints, 0.0),
        )
        self.joints = self.joints + self._dt * self.velocities

    def _approach(self, pose: np.ndarray) -> np.ndarray:
        """Returns the twist (6,) towards a position and quaternion xyzw (7,)."""
        position, rotation = self._kinematics.pose(self.joints)
        turn = rotation_vector(quat_xyzw_to_matrix(pose[3:]) @ rotation.T)
        return np.concatenate(
            [
                _limited(POSE_RATE * (pose[:3] - position), POSE_SPEED),
                _limited(POSE_RATE * turn, POSE_TURN),
            ]
        )

    def _resolve(self, twist: np.ndarray) -> np.ndarray:
        """Returns the joint velocities (7,) of a tool velocity (6,)."""
        jacobian = self._kinematics.jacobian(self.joints)
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING**2 * np.eye(6))
        part = min(1.0, float(np.linalg.norm(twist)) / POSTURE_SPEED)
        pull = POSTURE_RATE * part * (panda.HOME_JOINTS - self.joints)
        return inverse @ twist + pull - inverse @ (jacobian @ pull)


def _limited(vector: np.ndarray, size: float) -> np.ndarray:
    """Returns the vector, shortened to at most `size`."""
    return vector * min(1.0, size / max(float(np.linalg.norm(vector)), 1e-12))
