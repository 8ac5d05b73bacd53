"""How much of a velocity an arm may take in its present posture: joint limits and singularities."""

import math

import numpy as np

from worldmodel.envs.robots.interface import JointLimits, RobotObservation
from worldmodel.envs.robots.kinematics import jacobian, tool_offset
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.shaping import keep_in_box, stoppable_speed
from worldmodel.envs.robots.watch import Trouble
from worldmodel.franka_arm import joint_frames

DAMPING = 0.01  # of the pseudo-inverse
LOOK_AHEAD_S = 0.05  # how far a motion is followed to see whether it goes towards a singularity
LONGEST_TOOL = 0.4  # [m] a tool centre point further from the flange is a wrong pose
TOOL_TOLERANCE = 0.02  # [m] the tool does not move on the flange by more
OUTSIDE_TOLERANCE = 0.005  # [m] beyond the workspace is a fault
CREEP = 0.01  # [rad/s] a joint that moves less is at rest
STILL = 1e-6  # [m/s], [rad/s] slower than this is not a motion


class Posture:
    """The arm in one observation, and what it may do from there.

    Attributes:
        position: of the tool in the base frame (3,) [m].
        rotation: (3, 3).
        joints: (7,) [rad].
        tool: pose (4, 4) of the tool in the flange frame.
        condition: condition number of the Jacobian, metres and radians.
    """

    def __init__(self, observation: RobotObservation, envelope: Envelope, limits: JointLimits):
        """Takes measured joints and pose as they are; the tool follows from both."""
        self.position = np.asarray(observation.tcp_pos_base, float)
        self.rotation = np.asarray(observation.tcp_rotation_base, float)
        self.joints = np.asarray(observation.joint_positions, float)
        frames = joint_frames(self.joints)
        self.tool = tool_offset(frames, self.position, self.rotation)
        self._velocities = np.asarray(observation.joint_velocities, float)
        self._envelope, self._limits = envelope, limits
        self._jacobian = J = jacobian(frames, self.position)
        self._inverse = J.T @ np.linalg.inv(J @ J.T + DAMPING**2 * np.eye(6))
        self.condition = _condition(J)

    def twist_of(self, joint_velocities: np.ndarray) -> np.ndarray:
        """Returns the tool's velocity (6,) [m/s], [rad/s] of joint velocities (7,) [rad/s]."""
        return self._jacobian @ joint_velocities

    def allow_twist(
        self, twist: np.ndarray, *, life_s: float = 0.0
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns as much of a twist (6,) as is safe, and the names of the limits that cut it."""
        linear = keep_in_box(twist[:3], self.position, self._envelope, life_s=life_s)
        names = [f"workspace_{'xyz'[i]}" for i in np.flatnonzero(linear != twist[:3])]
        twist = np.concatenate([linear, twist[3:]])
        scale, more = self._joint_scale(self._inverse @ twist)
        return scale * twist, (*names, *more)

    def allow_joint_velocities(
        self, velocities: np.ndarray, *, life_s: float = 0.0
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns as much of joint velocities (7,) as is safe, and the names of the limits."""
        envelope, twist = self._envelope, self.twist_of(velocities)
        scale, names = self._joint_scale(velocities)
        speed, turn = np.linalg.norm(twist.reshape(2, 3), axis=1)
        # The joints brake together and evenly, so the tool's speed falls evenly in the same time.
        braking_s = envelope.joint_velocity / envelope.joint_acceleration / 2
        way = np.abs(twist[:3]) * (life_s + envelope.reaction_s + braking_s)
        room = np.where(
            twist[:3] > 0,
            np.asarray(envelope.workspace_high) - self.position,
            self.position - np.asarray(envelope.workspace_low),
        )
        cuts = {
            "velocity": envelope.velocity / max(speed, STILL),
            "angular_velocity": envelope.angular_velocity / max(turn, STILL),
            "step_translation": envelope.step_translation / max(speed * life_s, STILL),
            "step_rotation": envelope.step_rotation / max(turn * life_s, STILL),
            **{
                f"workspace_{'xyz'[i]}": max(room[i], 0.0) / max(way[i], STILL)
                for i in range(3)
                if way[i] > STILL
            },
        }
        names = (*names, *(name for name, cut in cuts.items() if cut < 1))
        return min(scale, *cuts.values()) * velocities, names

    def why_not_to_arm(self) -> str | None:
        """Returns what an operator must put right before the arm may move, in words."""
        length = float(np.linalg.norm(self.tool[:3, 3]))
        if length > LONGEST_TOOL:
            return (
                f"the tool is measured {length:.2f} m from where the joints put the flange, a tool "
                f"is at most {LONGEST_TOOL} m long; look at the base frame and the tool frame"
            )
        if self._outside() > 0:
            return (
                f"the tool at {np.round(self.position, 3).tolist()} m is outside of the workspace "
                f"{self._envelope.workspace_low} to {self._envelope.workspace_high}; move it "
                "inside by hand"
            )
        return None

    def out_of_place(self, tool: np.ndarray) -> Trouble | None:
        """Returns what must not be while the arm may move, None when nothing is.

        Args:
            tool: The tool's pose (4, 4) on the flange when the arm was armed.
        """
        if self._outside() > OUTSIDE_TOLERANCE:
            return Trouble("outside_workspace", fault=True)
        if np.linalg.norm(self.tool[:3, 3] - tool[:3, 3]) > TOOL_TOLERANCE:
            return Trouble("pose_contradicts_joints", fault=True)
        way = self._way_to_limit(self._velocities)
        beyond = (way < self._envelope.joint_stop_margin) & (np.abs(self._velocities) > CREEP)
        return (
            Trouble(f"joint_limit_{np.argmax(beyond) + 1}", fault=False) if beyond.any() else None
        )

    def _outside(self) -> float:
        """Returns how far the tool is outside of the workspace [m], negative when inside."""
        below = np.asarray(self._envelope.workspace_low) - self.position
        above = self.position - np.asarray(self._envelope.workspace_high)
        return float(np.maximum(below, above).max())

    def _way_to_limit(self, velocities: np.ndarray) -> np.ndarray:
        limits = self._limits
        return np.where(velocities > 0, limits.high - self.joints, self.joints - limits.low)

    def _joint_scale(self, velocities: np.ndarray) -> tuple[float, tuple[str, ...]]:
        """Returns by what to multiply joint velocities (7,), and because of what."""
        speeds = np.abs(velocities)
        if not (speeds > STILL).any():
            return 1.0, ()
        envelope, scale, names = self._envelope, 1.0, []
        largest = np.minimum(envelope.joint_velocity, self._limits.velocity)
        if (speeds > largest).any():
            scale = float((largest / np.maximum(speeds, STILL)).min())
            names.append("joint_velocity")
        room = self._way_to_limit(velocities) - envelope.joint_stop_margin
        slow = np.clip(room / (envelope.joint_slow_margin - envelope.joint_stop_margin), 0.0, 1.0)
        allowed = slow * stoppable_speed(
            room, reaction_s=envelope.reaction_s, deceleration=envelope.joint_acceleration
        )
        for i in np.flatnonzero((scale * speeds > allowed) & (speeds > STILL)):
            scale = min(scale, float(allowed[i] / speeds[i]))
            names.append(f"joint_limit_{i + 1}")
        if self.condition > envelope.condition_slow and self._approaches_singularity(velocities):
            span = envelope.condition_stop - envelope.condition_slow
            scale *= float(np.clip((envelope.condition_stop - self.condition) / span, 0.0, 1.0))
            names.append("singularity")
        return scale, tuple(names)

    def _approaches_singularity(self, velocities: np.ndarray) -> bool:
        # A given length, not a given time: slow motions must not be lost in rounding.
        step = LOOK_AHEAD_S * self._envelope.joint_velocity / float(np.abs(velocities).max())
        frames = joint_frames(self.joints + step * velocities)
        ahead = jacobian(frames, (frames[-1] @ self.tool)[:3, 3])
        return _condition(ahead) > self.condition


def _condition(J: np.ndarray) -> float:
    """Returns the condition number of a Jacobian (6, 7): of singular values, by eigenvalues."""
    squares = np.linalg.eigvalsh(J @ J.T)
    return math.sqrt(squares[-1] / max(squares[0], 1e-12))
