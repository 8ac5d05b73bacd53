"""A kinematic arm on a virtual clock, with faults to order. It believes what it is told."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from worldmodel.envs.robots.interface import (
    MOVABLE,
    Ack,
    CameraFrame,
    CameraInfo,
    Command,
    NotConnectedError,
    RobotError,
    RobotInfo,
    RobotObservation,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.kinematics import (
    jacobian,
    pose_matrix,
    quat_xyzw_to_matrix,
    rotation_vector,
)
from worldmodel.envs.robots.limits import hardware_limits
from worldmodel.franka_arm import joint_frames

HOME = np.array([0.0, -0.45, 0.0, -2.35, 0.0, 1.9, np.pi / 4])
TOOL = pose_matrix(np.array([0.0, 0.0, 0.1034]), np.diag([1.0, 1.0, 1.0]))
BRAKE = 5.0  # [1/s^2] of the speed it had, when it stops by itself
WIDTH_M = 0.08


class FakeRobot:
    """Moves at once with any velocity; a pose it reaches at once. Stops when a command expires.

    Faults are attributes to set: `frozen` and `repeating` cameras (no new frame; the same bytes
    with new stamps), `lost` cameras, `state_frozen`, `errors`, `spoiled` (a field of the
    observation that is NaN), `refusing` (a reason), `gone` (no connection), `clock_stopped`,
    `wrench`, `stop_fails`.
    """

    def __init__(
        self,
        *,
        joints: Sequence[float] | np.ndarray = HOME,
        arm: str = "panda",
        cameras: Sequence[str] = ("exterior",),
        optional: Sequence[str] = (),
        fps: float = 30.0,
        state_hz: float = 1000.0,
    ):
        self.info = RobotInfo(
            name="fake",
            arm=arm,
            cameras={
                name: CameraInfo(4, 4, fps, optional=name in optional)
                for name in (*cameras, *optional)
            },
            control_hz=4.0,
            joint_limits=hardware_limits(arm).joints,
            gripper_width_m=WIDTH_M,
            tcp="fingertips",
            simulated=True,
        )
        self.joints, self.joint_velocities = np.array(joints, float), np.zeros(7)
        self.state, self.gripper = RobotState.DISCONNECTED, 0.0
        self.frozen: set[str] = set()
        self.repeating: set[str] = set()
        self.lost: set[str] = set()
        self.state_frozen = self.clock_stopped = self.gone = self.stop_fails = False
        self.errors: tuple[str, ...] = ()
        self.lasting_errors = False
        self.spoiled: str | None = None
        self.refusing: str | None = None
        self.wrench: np.ndarray | None = None
        self.commands: list[Command] = []
        self.stops: list[str] = []
        self.armed_by: list[str] = []
        self._fps, self._state_period = fps, 1 / state_hz
        self._command: Command | None = None
        self._now = self._told_at = 100.0
        self._expires_at, self._seq, self._applied_seq = 0.0, 0, -1
        self._pictures: dict[str, CameraFrame] = {}
        self._measured: dict | None = None
        self._expose(new=True)

    # The virtual clock.

    def now(self) -> float:
        return self._told_at

    def clock(self) -> float:
        """True time, which goes on when the robot's own clock stands still."""
        return self._now

    def advance(self, dt: float) -> None:
        before, self._now = self._now, self._now + dt
        if not self.clock_stopped:
            self._told_at = self._now
        self._move(dt)
        self._expose(new=int(self._now * self._fps) != int(before * self._fps))

    def _move(self, dt: float) -> None:
        command = self._command
        if command is None or self._now > self._expires_at + 1e-9 or command.kind == "hold":
            self._command = None
            speed = np.abs(self.joint_velocities).max()
            self.joint_velocities *= max(0.0, 1 - BRAKE * dt / speed) if speed > 0 else 0.0
            self.state = RobotState.HOLD if self.state is RobotState.RUNNING else self.state
        elif command.kind == "joint_velocity":
            self.joint_velocities = np.array(command.values)
        elif command.kind == "twist":
            self.joint_velocities = self._resolve(command.values)
        else:
            pose, target = self.pose, command.values
            turn = rotation_vector(quat_xyzw_to_matrix(target[3:]) @ pose[:3, :3].T)
            self.joint_velocities = self._resolve(
                np.concatenate([target[:3] - pose[:3, 3], turn]) / dt
            )
        self.joints = self.joints + self.joint_velocities * dt

    def _resolve(self, twist: np.ndarray) -> np.ndarray:
        frames = joint_frames(self.joints)
        J = jacobian(frames, (frames[-1] @ TOOL)[:3, 3])
        return J.T @ np.linalg.solve(J @ J.T + 1e-8 * np.eye(6), twist)

    def _expose(self, *, new: bool) -> None:
        for name in self.info.cameras:
            last = self._pictures.get(name)
            if last is not None and (not new or name in self.frozen):
                continue
            image = np.frombuffer(self.joints.tobytes()[:48], np.uint8).reshape(4, 4, 3).copy()
            if last is not None and name in self.repeating:
                image = last.image.copy()
            self._pictures[name] = CameraFrame(image, self._told_at)
        stale = self._measured is None or (
            self._told_at - self._measured["state_at"] >= self._state_period - 1e-9
        )
        if stale and not self.state_frozen:
            pose = self.pose
            self._measured = {
                "tcp_pos_base": pose[:3, 3].copy(),
                "tcp_rotation_base": pose[:3, :3].copy(),
                "joint_positions": self.joints.copy(),
                "joint_velocities": self.joint_velocities.copy(),
                "gripper": self.gripper,
                "gripper_width_m": WIDTH_M * (1 - self.gripper),
                "state_at": self._told_at,
            }

    @property
    def pose(self) -> np.ndarray:
        """True pose (4, 4) of the tool, whatever is measured."""
        return joint_frames(self.joints)[-1] @ TOOL

    @property
    def position(self) -> np.ndarray:
        return self.pose[:3, 3]

    # The interface.

    def connect(self, *, timeout_s: float) -> None:
        if self.gone:
            raise NotConnectedError(f"nothing answered in {timeout_s} s")
        self.state = RobotState.FAULT if self.errors else RobotState.IDLE

    def observe(self, *, max_age_s: float) -> RobotObservation:
        self._require_connection()
        assert self._measured is not None
        if self._told_at - self._measured["state_at"] > max_age_s:
            age_s = self._told_at - self._measured["state_at"]
            raise StaleObservationError("state", age_s=age_s, max_age_s=max_age_s)
        self._seq += 1
        observation = RobotObservation(
            seq=self._seq,
            frames={n: f for n, f in self._pictures.items() if n not in self.lost},
            grasped=None,
            wrench_base=self.wrench,
            applied_seq=self._applied_seq,
            state=self.state,
            errors=self.errors,
            **self._measured,
        )
        if self.spoiled is not None:
            spoiled = np.array(getattr(observation, self.spoiled), float)
            spoiled.flat[-1] = np.nan
            value = spoiled if spoiled.ndim else float(spoiled)
            observation = replace(observation, **{self.spoiled: value})
        return observation

    def arm(self, *, operator: str) -> RobotState:
        self._require_connection()
        if self.state is RobotState.FAULT:
            raise RobotError("in FAULT")
        self.armed_by.append(operator)
        if self.state not in MOVABLE:
            self.state = RobotState.ARMED
        return self.state

    def command(self, command: Command) -> Ack:
        self._require_connection()
        reason = self.refusing or (None if self.state in MOVABLE else "not_armed")
        if command.seq <= self._applied_seq:
            reason = "seq_old"
        if reason is not None:
            return Ack(command.seq, False, None, (), reason, self.state)
        self.commands.append(command)
        self._command, self._applied_seq = command, command.seq
        self._expires_at = self._now + command.valid_for_s
        self.state = RobotState.RUNNING
        if command.gripper is not None:
            self.gripper = float(command.gripper)
        return Ack(command.seq, True, command, (), None, self.state)

    def stop(self, *, reason: str) -> None:
        if self.stop_fails:
            raise NotConnectedError("nothing answers")
        self.stops.append(reason)
        self._command = None
        if self.state in MOVABLE:
            self.state = RobotState.IDLE

    def recover(self, *, operator: str) -> RobotState:
        self._require_connection()
        if not self.lasting_errors:
            self.errors = ()
            self.state = RobotState.IDLE
        return self.state

    def close(self) -> None:
        self.state = RobotState.DISCONNECTED

    def _require_connection(self) -> None:
        if self.gone or self.state is RobotState.DISCONNECTED:
            raise NotConnectedError("no connection")
