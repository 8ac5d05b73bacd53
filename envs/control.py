"""Cartesian steps for the arm: inverse kinematics once a step, then a smooth joint motion.

Each step (0.25 s at 4 Hz) adds an action to the last commanded pose, solves for the joints that
reach it, and moves there along a minimum-jerk curve. The servo force is
``stiffness (control - joint) - damping speed``, so a control of ``reference + damping / stiffness
reference speed`` cancels the damping along the curve: without this velocity feed-forward the arm
ends each step about 20 mm behind, with it about 1.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import mujoco
import numpy as np

from worldmodel.envs import panda
from worldmodel.pose import euler_to_matrix, matrix_to_euler

KNOTS = 25  # points of the joint curve per step
RAMP = 0.9  # part of the step in which the curve arrives; the rest lets the arm settle
# The pull towards home makes the elbow's place depend on the tool's pose alone, not on the way
# there, so that a goal image looks like the arm that arrives. It needs all ten iterations.
IK_ITERATIONS, IK_DAMPING, IK_POSTURE = 10, 0.01, 0.2
JOINT_MARGIN = 0.02  # [rad] kept from the joint limits
REACHED_POSITION, REACHED_ROTATION = 1e-3, 5e-3  # [m], [rad] what counts as reached
MAX_JOINT_MOVE = 0.6  # [rad] per step; a larger one is another arm posture, not a small motion
DOWNWARD = np.diag([1.0, -1.0, -1.0])  # tool rotation at home: z down, x forward


class Arm:
    """The arm in one simulation state: reads its pose, moves it, and can place it anywhere.

    Commands are kept inside a box and near downward. An action that leads out of them is cut off at
    the border. One that the joints cannot follow is tried without its rotation, then not done; so
    the command never runs away from the arm.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        control_hz: float = 4.0,
        position_low: tuple[float, float, float] = (0.28, -0.34, 0.03),
        position_high: tuple[float, float, float] = (0.66, 0.34, 0.46),
        max_tilt: float = 0.4,
    ):
        """Build an arm with simulation data of its own, at home.

        Args:
            model: The scene, as `worldmodel.envs.franka.build_model` makes it.
            control_hz: Steps per simulated second.
            position_low: Smallest commanded x, y, z of the tool centre point [m].
            position_high: Largest.
            max_tilt: Largest commanded angle between the gripper and straight down [rad].

        Raises:
            ValueError: If a step is not a whole number of physics steps for each knot.
        """
        ticks = 1 / (control_hz * KNOTS * model.opt.timestep) if control_hz > 0 else 0
        if round(ticks) < 1 or abs(ticks - round(ticks)) > 1e-6:
            raise ValueError(
                f"control_hz must divide {1 / (KNOTS * model.opt.timestep):g} (a step is {KNOTS} "
                f"knots of whole {1e3 * model.opt.timestep:g} ms physics steps), got {control_hz}"
            )
        self.model, self.data = model, mujoco.MjData(model)
        self._scratch = mujoco.MjData(model)  # for kinematics of joints the arm does not have
        self._ticks_per_knot, self._step_seconds = round(ticks), 1 / control_hz
        self._low, self._high, self._max_tilt = position_low, position_high, max_tilt
        joints = [model.joint(name) for name in panda.JOINTS]
        fingers = [model.joint(name) for name in panda.FINGERS]
        self._tcp = model.site("tcp").id
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._finger_qpos = np.array([finger.qposadr[0] for finger in fingers])
        self._servos = np.array([model.actuator(name).id for name in panda.SERVOS])
        self._gripper = model.actuator("gripper").id
        ranges = np.array([joint.range for joint in joints])
        self._joint_low = ranges[:, 0] + JOINT_MARGIN
        self._joint_high = ranges[:, 1] - JOINT_MARGIN
        self.reset()

    # What the arm is doing.

    @property
    def tcp_pos_base(self) -> np.ndarray:
        """Measured position (3,) of the tool centre point in the base frame [m]."""
        return self.data.site_xpos[self._tcp].copy()

    @property
    def proprio(self) -> np.ndarray:
        """Measured proprio (7,) float32: position, Euler angles, gripper (0 open, 1 closed)."""
        rotation = self.data.site_xmat[self._tcp].reshape(3, 3)
        opening = self.data.qpos[self._finger_qpos].mean() / panda.FINGER_STROKE
        gripper = np.clip(1 - opening, 0, 1)
        return np.concatenate(
            [self.data.site_xpos[self._tcp], matrix_to_euler(rotation), [gripper]]
        ).astype(np.float32)

    @property
    def joints(self) -> np.ndarray:
        """Measured joints [rad] and gripper (8,) float32."""
        return np.append(self.data.qpos[self._qpos], self.proprio[-1]).astype(np.float32)

    @property
    def closed(self) -> bool:
        """Whether the gripper is commanded to close."""
        return self._closed > 0.5

    # Placing the arm without moving it.

    def reset(self) -> None:
        """Put everything back to the model's initial state, the arm at home, the gripper open."""
        mujoco.mj_resetData(self.model, self.data)
        self._place(panda.HOME_JOINTS)

    def teleport(self, position: np.ndarray, rotation: np.ndarray = DOWNWARD) -> None:
        """Put the arm at a pose, at rest, the gripper open.

        Args:
            position: Tool centre point (3,) in the base frame [m].
            rotation: Tool orientation (3, 3) in the base frame.

        Raises:
            ValueError: If the arm cannot reach the pose.
        """
        joints, reached = self.solve(position, rotation, panda.HOME_JOINTS, iterations=50)
        if not reached:
            raise ValueError(
                f"the arm cannot reach {np.round(position, 3).tolist()} m with the gripper turned "
                f"to {np.round(rotation, 3).tolist()}; choose a pose nearer to the home pose"
            )
        self._place(joints)

    def copy_from(self, other: "Arm") -> None:
        """Take over the whole state, objects included, of an arm of the same model."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(other.model, other.data, state, kind)
        mujoco.mj_setState(self.model, self.data, state, kind)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, state, kind)  # forward changed the warm start
        self._joints, self._closed = other._joints.copy(), other._closed
        self._position, self._rotation = other._position.copy(), other._rotation.copy()

    def settle(self, seconds: float) -> None:
        """Let the simulation run with the arm holding still."""
        mujoco.mj_step(self.model, self.data, round(seconds / self.model.opt.timestep))
        self._refresh()

    # Moving it.

    def nudge(self, offset: tuple[float, float, float], yaw: float) -> None:
        """Move a little from here, within the limits of `step`, in one control step.

        Args:
            offset: x, y, z in the base frame [m].
            yaw: Turn about the vertical [rad].
        """
        if any(offset) or yaw:
            self.step(np.array([*offset, 0.0, 0.0, yaw, 0.0]))

    def step(self, action: np.ndarray) -> None:
        """Move by one action (7,), relative to the last command; takes one control step.

        The command, not the measured pose, is what actions add to, so errors do not add up.
        """
        position = np.clip(self._position + action[:3], self._low, self._high)
        turn = euler_to_matrix(np.asarray(action[3:6], float))
        rotation = limit_tilt(turn @ self._rotation, max_tilt=self._max_tilt)
        start = self._joints
        goal, reached = self.solve(position, rotation, start)
        if not reached or abs(goal - start).max() > MAX_JOINT_MOVE:
            rotation = self._rotation
            goal, reached = self.solve(position, rotation, start)
        if not reached or abs(goal - start).max() > MAX_JOINT_MOVE:
            goal, position = start, self._position
        self._run(goal, closing=action[6])
        self._position, self._rotation = position, rotation

    def step_joints(self, action: np.ndarray) -> None:
        """Move by one change of joints and gripper (8,), relative to the last command.

        No joint leaves its limits. Of a move that leads out of the box of `step`, the most eighths
        are made that do not; an arm that is outside already may go anywhere.
        """
        start, move = self._joints, np.clip(action[:-1], -MAX_JOINT_MOVE, MAX_JOINT_MOVE)
        goals = np.clip(
            start + np.linspace(1, 0, 9)[:, None] * move, self._joint_low, self._joint_high
        )
        inside = [self._in_box(self._pose_of(goal)[0]) for goal in goals]
        goal = goals[inside.index(True)] if inside[-1] else goals[0]
        position, rotation = self._pose_of(goal)
        self._run(goal, closing=action[-1])
        self._position, self._rotation = position, rotation

    def _in_box(self, position: np.ndarray) -> bool:
        return bool((position >= self._low).all() and (position <= self._high).all())

    def _run(self, goal: np.ndarray, *, closing: float) -> None:
        """Move the joints to `goal` (7,), and the fingers by `closing`, in one control step."""
        start = self._joints
        closed_from, closed_to = self._closed, float(np.clip(self._closed + closing, 0, 1))
        feed_forward = panda.DAMPING / panda.STIFFNESS
        for knot in range(1, KNOTS + 1):
            progress, rate = minimum_jerk(min(1.0, knot / (KNOTS * RAMP)))
            speed = rate / (RAMP * self._step_seconds) * (goal - start)
            self.data.ctrl[self._servos] = start + progress * (goal - start) + feed_forward * speed
            part = min(1.0, 2 * knot / KNOTS)  # fingers take half the step, then they grip
            self.data.ctrl[self._gripper] = closed_from + part * (closed_to - closed_from)
            mujoco.mj_step(self.model, self.data, self._ticks_per_knot)
        self._refresh()
        self._joints, self._closed = goal, closed_to

    def solve(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        start: np.ndarray,
        *,
        iterations: int = IK_ITERATIONS,
    ) -> tuple[np.ndarray, bool]:
        """Find joints for a pose of the tool by damped least squares, pulled towards home.

        Args:
            position: Wanted tool centre point (3,) in the base frame [m].
            rotation: Wanted tool orientation (3, 3) in the base frame.
            start: Joints (7,) to begin from [rad].
            iterations: Newton steps to take.

        Returns:
            Joints (7,) [rad], and whether their pose is within 1 mm and 5 mrad of the wanted.
        """
        joints, jacobian = start, np.empty((6, self.model.nv))
        for _ in range(iterations):
            error = self._pose_error(position, rotation, joints)
            mujoco.mj_comPos(self.model, self._scratch)
            mujoco.mj_jacSite(self.model, self._scratch, jacobian[:3], jacobian[3:], self._tcp)
            arm = jacobian[:, self._dofs]
            inverse = arm.T @ np.linalg.inv(arm @ arm.T + IK_DAMPING**2 * np.eye(6))
            pull = IK_POSTURE * (panda.HOME_JOINTS - joints)
            move = inverse @ error + pull - inverse @ (arm @ pull)
            joints = np.clip(joints + np.clip(move, -0.3, 0.3), self._joint_low, self._joint_high)
        error = self._pose_error(position, rotation, joints)
        far, turned = np.linalg.norm(error[:3]), np.linalg.norm(error[3:])
        return joints, bool(far <= REACHED_POSITION and turned <= REACHED_ROTATION)

    def _pose_error(
        self, position: np.ndarray, rotation: np.ndarray, joints: np.ndarray
    ) -> np.ndarray:
        """Return the twist (6,), [m] then [rad], from the tool at joints (7,) to a pose."""
        found_position, found_rotation = self._pose_of(joints)
        return np.concatenate(
            [position - found_position, rotation_vector(rotation @ found_rotation.T)]
        )

    def _pose_of(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tool's position (3,) and rotation (3, 3) at joints (7,)."""
        self._scratch.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self.model, self._scratch)
        rotation = self._scratch.site_xmat[self._tcp].reshape(3, 3)
        return self._scratch.site_xpos[self._tcp].copy(), rotation.copy()

    def _refresh(self) -> None:
        """Bring poses up to date with the joints; a physics step leaves them one tick behind."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _place(self, joints: np.ndarray) -> None:
        """Put the arm at joints (7,), at rest, the gripper open, and command it to stay."""
        self.data.qpos[self._qpos], self.data.qvel[self._dofs] = joints, 0.0
        self.data.qpos[self._finger_qpos] = panda.FINGER_STROKE
        self.data.ctrl[self._servos], self.data.ctrl[self._gripper] = joints, 0.0
        mujoco.mj_forward(self.model, self.data)
        self._joints, self._closed = np.array(joints, float), 0.0
        self._position, self._rotation = self._pose_of(self._joints)


def minimum_jerk(phase: float) -> tuple[float, float]:
    """Return progress and its rate at `phase`; all three run from 0, and the first two to 1."""
    progress = phase**3 * (10 - 15 * phase + 6 * phase**2)
    return progress, 30 * phase**2 * (1 - phase) ** 2


def limit_tilt(rotation: np.ndarray, *, max_tilt: float) -> np.ndarray:
    """Turn a tool rotation (3, 3) the short way back to `max_tilt` [rad] from downward."""
    tool = rotation[:, 2]
    axis = np.cross(tool, [0.0, 0.0, -1.0])
    tilt = float(np.arctan2(np.linalg.norm(axis), -tool[2]))
    if tilt <= max_tilt:
        return rotation
    if np.linalg.norm(axis) < 1e-9:  # straight up: every way back is as short
        axis = np.array([1.0, 0.0, 0.0])
    quat_wxyz, turn = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quat_wxyz, axis / np.linalg.norm(axis), tilt - max_tilt)
    mujoco.mju_quat2Mat(turn, quat_wxyz)
    return turn.reshape(3, 3) @ rotation


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return axis times angle (3,) [rad] of a rotation matrix (3, 3)."""
    quat_wxyz, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat_wxyz, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quat_wxyz, 1.0)
    return vector
