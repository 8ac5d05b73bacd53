"""Where the tool is to be, as one plan has it, and the velocities that lead there.

A plan becomes one `Reference`: poses at times, latched where the plan begins and never moved by
what is measured later. The command is at every moment the velocity with which the arm, from where
it is measured, would be on the reference a little later:

    twist = (reference at now + lead - measured) / lead

So what the arm lags behind is made up for, an error never adds up, and neither a step of the plan
nor the next plan makes the velocity jump.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmodel.envs.robots.kinematics import rotation_of_vector, rotation_vector
from worldmodel.envs.robots.shaping import shrink
from worldmodel.pose import (
    GRIPPER,
    POSITION,
    ROTATION,
    action_between,
    euler_to_matrix,
    matrix_to_euler,
)

SIMULATED_STEP_S = 0.01  # in which `TwistLaw.ahead` imagines the arm


@dataclass(frozen=True, eq=False)
class Pose:
    """Of the tool centre point in the robot base frame.

    Attributes:
        position: (3,) [m].
        rotation: (3, 3).
        gripper: 0 open, 1 closed.
    """

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    gripper: float

    @classmethod
    def of(cls, proprio: Float[np.ndarray, "7"]) -> "Pose":
        """Returns it from position, extrinsic xyz Euler angles and gripper."""
        proprio = proprio.astype(float)
        return cls(
            position=proprio[POSITION],
            rotation=euler_to_matrix(proprio[ROTATION]),
            gripper=float(proprio[GRIPPER][0]),
        )

    @property
    def proprio(self) -> Float[np.ndarray, "7"]:
        """Position, extrinsic xyz Euler angles, gripper."""
        angles = matrix_to_euler(self.rotation)
        return np.concatenate([self.position, angles, [self.gripper]])

    def toward(self, other: "Pose", part: float) -> "Pose":
        """Returns the pose on the straight way to another: 0 is here, 1 is there."""
        turn = rotation_vector(other.rotation @ self.rotation.T)
        return Pose(
            position=self.position + part * (other.position - self.position),
            rotation=rotation_of_vector(part * turn) @ self.rotation,
            gripper=self.gripper + part * (other.gripper - self.gripper),
        )


class Reference:
    """Poses at the ends of a plan's steps, straight lines between them, and rest after the last.

    Attributes:
        begins_at: when the first step begins [s].
        ends_at: when the last one ends.
    """

    def __init__(
        self,
        start: Pose,
        actions: Float[np.ndarray, "step 7"],
        *,
        begins_at: float,
        step_s: float,
    ):
        """Lays actions, each of one step, end to end from a pose."""
        self._actions, self._step_s = actions.astype(float), step_s
        self._poses = [start]
        for action in self._actions:
            before = self._poses[-1]
            self._poses.append(
                Pose(
                    position=before.position + action[POSITION],
                    rotation=euler_to_matrix(action[ROTATION]) @ before.rotation,
                    gripper=float(np.clip(before.gripper + action[GRIPPER][0], 0, 1)),
                )
            )
        self.begins_at = begins_at
        self.ends_at = begins_at + step_s * len(actions)

    def at(self, time: float) -> Pose:
        """Returns where the tool is to be."""
        steps = (time - self.begins_at) / self._step_s
        if steps <= 0:
            return self._poses[0]
        number = int(steps)
        if number >= len(self._actions):
            return self._poses[-1]
        return self._poses[number].toward(self._poses[number + 1], steps - number)

    def gripper_change(self, time: float) -> float:
        """Returns by how much the step at a time changes the gripper; 0 before and after all."""
        number = int(np.floor((time - self.begins_at) / self._step_s))
        if not 0 <= number < len(self._actions):
            return 0.0
        return float(self._actions[number][GRIPPER][0])


@dataclass(frozen=True)
class TwistLaw:
    """Velocities towards a reference, see the module.

    Attributes:
        lead_s: how far ahead on the reference it aims [s].
        speed: largest [m/s].
        turn_speed: largest [rad/s].
    """

    lead_s: float
    speed: float
    turn_speed: float

    def twist(self, reference: Reference, pose: Pose, time: float) -> Float[np.ndarray, "6"]:
        """Returns velocity and angular velocity, base frame, of an arm that is at a pose."""
        target = reference.at(time + self.lead_s)
        linear = (target.position - pose.position) / self.lead_s
        angular = rotation_vector(target.rotation @ pose.rotation.T) / self.lead_s
        return np.concatenate([shrink(linear, self.speed), shrink(angular, self.turn_speed)])

    def ahead(self, reference: Reference, pose: Pose, *, since: float, until: float) -> Pose:
        """Returns where an arm that is at a pose `since` will be `until` if it follows."""
        time = since
        while time < until - 1e-9:
            dt = min(SIMULATED_STEP_S, until - time)
            twist = self.twist(reference, pose, time)
            pose = Pose(
                position=pose.position + dt * twist[:3],
                rotation=rotation_of_vector(dt * twist[3:]) @ pose.rotation,
                gripper=pose.gripper,
            )
            time += dt
        return pose


def way_between(poses: Sequence[Pose]) -> Float[np.ndarray, "step 7"]:
    """Returns the actions that lead from each pose to the next."""
    proprio = np.stack([pose.proprio for pose in poses])
    return action_between(proprio[:-1], proprio[1:])
