"""The arm and gripper in the simulation: one tick at a time, and what is measured in each."""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

from dataclasses import dataclass, replace

import mujoco
import numpy as np

from worldmodel.envs import panda
from worldmodel.envs.control import JOINT_MARGIN, Arm
from worldmodel.envs.robots.interface import Command, JointLimits, RobotObservation, RobotState
from worldmodel.envs.robots.limits import PANDA
from worldmodel.envs.robots.motion import JointMotion, Kinematics

TORQUE_FILTER_S = 0.02  # time constant of the torques
GRIPPER_WIDTH_M = 2 * panda.FINGER_STROKE
GRIPPER_FORCE = 60.0  # [N] of the motor at most
GRIPPER_SPEED = 0.15  # [m/s] of the opening, as of a Robotiq 2F-85
GRASP_FORCE, GRASP_WIDTH, GRASP_SPEED = 5.0, 3e-3, 5e-3  # [N], [m], [m/s] what counts as grasped


@dataclass(frozen=True, eq=False)
class Moment:
    """What was measured in one tick.

    Attributes:
        time: on the simulation's clock [s].
        qpos: (nq,) positions of the whole scene.
        qvel: (nv,) velocities of the whole scene.
        torques: (7,) [Nm] of the joints, from outside, smoothed.
        jaw_force: [N] of the gripper's motor; closing is negative.
    """

    time: float
    qpos: np.ndarray
    qvel: np.ndarray
    torques: np.ndarray
    jaw_force: float


class SimulatedArm:
    """Follows commands in the scene of an `Arm`, which it takes over as it stands."""

    def __init__(self, scene: Arm, *, gripper_force: float):
        self.model, self.data = scene.model, scene.data
        self.dt = float(self.model.opt.timestep)
        joints = [self.model.joint(name) for name in panda.JOINTS]
        fingers = [self.model.joint(name) for name in panda.FINGERS]
        self.qpos = np.array([joint.qposadr[0] for joint in joints])
        """Where the joints are in a scene's positions."""
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._finger_qpos = np.array([finger.qposadr[0] for finger in fingers])
        self._finger_dofs = np.array([finger.dofadr[0] for finger in fingers])
        self._servos = np.array([self.model.actuator(name).id for name in panda.SERVOS])
        self._jaw = self.model.actuator("gripper").id
        low, high = np.array([joint.range for joint in joints]).T
        self.limits = JointLimits(low, high, PANDA.joints.velocity)
        kept = replace(self.limits, low=low + JOINT_MARGIN, high=high - JOINT_MARGIN)
        self._kinematics = Kinematics(self.model)
        self._motion = JointMotion(Kinematics(self.model), kept, dt=self.dt)
        self._jaw_force = gripper_force
        self._gripper = self._gripper_target = float(self.data.ctrl[self._jaw])
        self._torques = np.zeros(len(joints))
        self.let_go()

    @property
    def at_rest(self) -> bool:
        """Whether nothing is to move but the gripper."""
        return self._motion.at_rest

    @property
    def torques(self) -> np.ndarray:
        """Torques (7,) of the joints from outside, smoothed [Nm]."""
        return self._torques

    def grip(self, target: float) -> None:
        """Moves the gripper from now on, 0 open, 1 closed."""
        self._gripper_target = float(target)

    def halt_gripper(self) -> None:
        """Leaves the gripper as it is; what it holds it goes on holding."""
        self._gripper_target = self._gripper

    def let_go(self) -> None:
        """Makes the place where the arm is the one where it is to be: at rest, without force."""
        self._motion.reset(self.data.qpos[self.qpos])

    def step(self, command: Command | None) -> None:
        """Simulates one tick, towards what is commanded; None brakes to rest."""
        self._motion.advance(command)
        lead = panda.DAMPING / panda.STIFFNESS * self._motion.velocities
        self.data.ctrl[self._servos] = self._motion.joints + lead
        most = GRIPPER_SPEED / GRIPPER_WIDTH_M * self.dt
        self._gripper += float(np.clip(self._gripper_target - self._gripper, -most, most))
        self.data.ctrl[self._jaw] = self._jaw_control()
        mujoco.mj_step(self.model, self.data)
        self._torques += self.dt / TORQUE_FILTER_S * (self._pushed() - self._torques)

    def measure(self, time: float) -> Moment:
        """Returns what is measured now."""
        return Moment(
            time=time,
            qpos=self.data.qpos.copy(),
            qvel=self.data.qvel.copy(),
            torques=self._torques.copy(),
            jaw_force=float(self.data.actuator_force[self._jaw]),
        )

    def observation(
        self,
        moment: Moment,
        *,
        seq: int,
        applied_seq: int,
        state: RobotState,
        errors: tuple[str, ...],
    ) -> RobotObservation:
        """Returns what was measured in a moment, without pictures."""
        joints = moment.qpos[self.qpos]
        position, rotation = self._kinematics.pose(joints)
        wrench = np.linalg.lstsq(self._kinematics.jacobian(joints).T, moment.torques)[0]
        width = 2 * float(moment.qpos[self._finger_qpos].mean())
        still = abs(moment.qvel[self._finger_dofs]).max() < GRASP_SPEED
        return RobotObservation(
            seq=seq,
            frames={},
            tcp_pos_base=position,
            tcp_rotation_base=rotation,
            joint_positions=joints,
            joint_velocities=moment.qvel[self._dofs],
            gripper=float(np.clip(1 - width / GRIPPER_WIDTH_M, 0, 1)),
            gripper_width_m=width,
            grasped=bool(still and width > GRASP_WIDTH and moment.jaw_force < -GRASP_FORCE),
            wrench_base=wrench,
            state_at=moment.time,
            applied_seq=applied_seq,
            state=state,
            errors=errors,
        )

    def _jaw_control(self) -> float:
        """Returns the control with which the motor pulls to the gripper's place, not too hard."""
        gain = self.model.actuator_gainprm[self._jaw, 0]
        opening = self.data.qpos[self._finger_qpos].mean()
        speed = self.data.qvel[self._finger_dofs].mean()
        bias = float(self.model.actuator_biasprm[self._jaw, :3] @ [1.0, opening, speed])
        force = np.clip(gain * self._gripper + bias, -self._jaw_force, self._jaw_force)
        return float(force - bias) / gain

    def _pushed(self) -> np.ndarray:
        """Returns the torques (7,) that come from outside: contacts, and forces of tests [Nm]."""
        torques, data = self.data.qfrc_constraint.copy(), self.data
        for body in np.flatnonzero(data.xfrc_applied.any(axis=1)):
            force, torque = data.xfrc_applied[body, :3], data.xfrc_applied[body, 3:]
            mujoco.mj_applyFT(self.model, data, force, torque, data.xipos[body], body, torques)
        return torques[self._dofs]
