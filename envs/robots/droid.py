"""A robot of DROID's platform, through the `RobotEnv` that its laptop already has.

    from droid.robot_env import RobotEnv

    robot = DroidRobot(
        lambda: RobotEnv("cartesian_velocity", gripper_action_space="position", do_reset=False),
        arm="panda", cameras={"exterior": DroidCamera("24259877", CameraInfo(720, 1280, 60))},
        tool_length=0.149, tool_yaw=0.0, gripper_width_m=0.085, simulated=False)

A step of DROID's is a joint position that the arm goes to and stays at, so a driver that dies lets
it move one step further at most. Without `do_reset=False` DROID moves the arm to its start when it
is made, before anyone has armed it.

What DROID does not tell cannot be seen here: its remote side recovers from reflexes by itself, and
swallows errors. Its states are about 0.1 s old, pictures 0.15 s: an `Envelope` needs
`state_max_age_s=0.2` and `camera_max_age_s=0.3`. Tested against a simulation with DROID's
interface, never yet on a robot.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.envs.robots.droid_format import (
    KINDS,
    STEP_HZ,
    DroidCamera,
    droid_velocity,
    flange_of,
    read_observation,
    within_range,
)
from worldmodel.envs.robots.droid_link import STEP_S, DroidEnv, DroidLink
from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import (
    MOVABLE,
    VALUE_SIZES,
    Ack,
    Command,
    NotConnectedError,
    RobotError,
    RobotInfo,
    RobotObservation,
    RobotState,
    StaleObservationError,
    require_operator,
)
from worldmodel.envs.robots.kinematics import quat_xyzw_to_matrix, rotation_vector, tool_on_flange
from worldmodel.envs.robots.limits import hardware_limits
from worldmodel.franka_arm import joint_frames

MAX_VALID_FOR_S = 2.0
MAX_FAILED_LOOKS = 3  # in a row; then it is a fault
SAME_FLANGE_M = 0.01  # of where the joints put it, and where DROID says it is
logger = logging.getLogger(__name__)


class DroidRobot:
    """A `worldmodel.envs.robots.interface.Robot` on top of DROID's `RobotEnv`.

    A "pose" is steered to anew in every step, straight, so as to arrive when the command ends.
    After a command has ended one step of no motion follows, which takes back what is left of the
    last. After `stop` the arm has to be armed again; after a "hold" the next command moves it.
    """

    def __init__(
        self,
        make_env: Callable[[], DroidEnv],
        *,
        arm: str,
        cameras: Mapping[str, DroidCamera],
        tool_length: float,
        tool_yaw: float,
        gripper_width_m: float,
        simulated: bool,
        threaded: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ):
        """Describes the robot; nothing is made yet.

        Args:
            make_env: makes the `RobotEnv`, with gripper_action_space="position", and
                action_space="cartesian_velocity" for "twist" and "pose" commands or
                "joint_velocity" for those.
            arm: which arm it is, a key of `limits.HARDWARE`.
            cameras: the pictures that are wanted, by our names.
            tool_length: of the tool centre point ahead of the flange [m].
            tool_yaw: of its frame about the flange's z axis [rad].
            gripper_width_m: opening of the gripper when it is open; 0.085 for a Robotiq 2F-85.
            simulated: whether nothing physical moves.
            threaded: whether a thread calls `step` from `connect` to `close`; if not, the owner.
            clock: monotonic [s].
            wall_clock: that DROID stamps with [s].

        Raises:
            ValueError: an unknown arm.
        """
        self.info = RobotInfo(
            name="droid",
            arm=arm,
            cameras={name: camera.info for name, camera in cameras.items()},
            control_hz=STEP_HZ,
            joint_limits=hardware_limits(arm).joints,
            gripper_width_m=gripper_width_m,
            tcp=f"{tool_length:g} m from the flange, turned by {tool_yaw:g} rad",
            simulated=simulated,
        )
        self._cameras = dict(cameras)
        self._tool = tool_on_flange(length=tool_length, yaw=tool_yaw)
        self._clock, self._wall_clock = clock, wall_clock
        self._lock = threading.RLock()
        self._pictures: list[str] = []  # all that DROID delivers
        self._link = DroidLink(
            make_env,
            read=self._read,
            next_action=self._next_action,
            on_failure=self._note_failure,
            threaded=threaded,
        )
        self._forget()

    def _forget(self) -> None:
        self._state, self._errors = RobotState.DISCONNECTED, ()
        self._observations, self._taken_seq = 0, -1
        self._active: Command | None = None
        self._expires_at = 0.0
        self._gripper = 0.0  # where it is to be
        self._rest_due = False  # a step of no motion is to follow

    def now(self) -> float:
        """Returns this machine's monotonic clock [s]."""
        return self._clock()

    def connect(self, *, timeout_s: float) -> None:
        """Makes the `RobotEnv` and looks once, without moving. See `Robot.connect`.

        Raises:
            NotConnectedError: nothing answered in time.
            RobotError: the `RobotEnv` has another action space, lacks a camera, or says that the
                flange is elsewhere than the joints put it.
        """
        with self._lock:
            if self._state is not RobotState.DISCONNECTED:
                return
            self._forget()
        self._link.open(timeout_s=timeout_s)
        try:
            self._check_cameras()
            self._check_flange()
        except RobotError:
            self._link.close()
            raise
        self._state = RobotState.IDLE

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns what the last step saw. See `Robot.observe`."""
        with self._lock:
            seen, now = self._require_connection(), self.now()
            age = now - seen.state_at
            if age > max_age_s:
                raise StaleObservationError("state", age_s=age, max_age_s=max_age_s)
            frames = {}
            for name, camera in self._cameras.items():
                frame = seen.frames.get(name)
                age = float("inf") if frame is None else now - frame.captured_at
                if frame is not None and age <= max_age_s:
                    frames[name] = frame
                elif not camera.info.optional:
                    raise StaleObservationError(name, age_s=age, max_age_s=max_age_s)
            self._observations += 1
            return replace(
                seen,
                seq=self._observations,
                frames=frames,
                applied_seq=self._taken_seq,
                state=self._current_state(),
                errors=self._errors,
            )

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion. See `Robot.arm`."""
        require_operator(operator)
        with self._lock:
            seen = self._require_connection()
            if self._state is RobotState.FAULT:
                raise RobotError(f"DROID has failed ({', '.join(self._errors)}); recover it first")
            if self._state is RobotState.IDLE:
                self._state, self._gripper = RobotState.ARMED, seen.gripper
                logger.info("armed by %s", operator)
            return self._current_state()

    def command(self, command: Command) -> Ack:
        """Takes a command for the next steps. See `Robot.command`."""
        with self._lock:
            seen = self._require_connection()
            reason = self._refusal(command)
            if reason is not None:
                return Ack(command.seq, False, None, (), reason, self._current_state())
            command, clamped = replace(command, values=np.array(command.values, np.float64)), ()
            if command.kind in ("twist", "joint_velocity"):
                command, clamped = within_range(command, seen, self._tool)
            self._taken_seq = command.seq
            self._expires_at = self.now() + command.valid_for_s
            if command.gripper is not None:
                self._gripper = float(command.gripper)
            if command.kind == "hold":
                self._active, self._rest_due, self._state = None, True, RobotState.HOLD
            else:
                self._active, self._state = command, RobotState.RUNNING
            return Ack(command.seq, True, command, clamped, None, self._state)

    def stop(self, *, reason: str) -> None:
        """Lets no further step move the arm, and disarms it. See `Robot.stop`.

        A step that is being sent in this moment is taken back by the next. The gripper keeps what
        it holds.
        """
        with self._lock:
            if self._state is RobotState.DISCONNECTED:
                return
            self._rest()
            if self._state in MOVABLE:
                logger.info("stopped: %s", reason)
                self._state = RobotState.IDLE
        self._link.hurry()

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT when DROID answers again."""
        require_operator(operator)
        with self._lock:
            self._require_connection()
            if self._state is RobotState.FAULT and self._link.failed_looks == 0:
                self._state, self._errors = RobotState.IDLE, ()
                logger.info("recovered by %s", operator)
            return self._current_state()

    def close(self) -> None:
        """Takes the last step back and closes the `RobotEnv`."""
        self.stop(reason="closed")
        self._link.close()
        self._state = RobotState.DISCONNECTED

    def step(self) -> None:
        """Looks once, and moves the arm by one step or lets it rest, for `threaded=False`."""
        self._link.step()

    # In the link's thread.

    def _read(self, raw: Mapping[str, Any]) -> RobotObservation:
        self._pictures = sorted(raw.get("image", ()))
        return read_observation(
            raw,
            cameras=self._cameras,
            tool=self._tool,
            gripper_width_m=self.info.gripper_width_m,
            now=self.now(),
            wall_ms=1000 * self._wall_clock(),
        )

    def _next_action(self) -> np.ndarray | None:
        with self._lock:
            seen, env = self._link.newest, self._link.env
            left_s = self._expires_at - self.now()
            if self._active is not None and left_s <= 0:
                self._rest()
            if self._active is not None and seen is not None:
                return np.append(self._velocity(self._active, seen, left_s), self._gripper)
            if not self._rest_due or env is None:
                return None
            self._rest_due = False
            size = VALUE_SIZES[KINDS[env.action_space][0]]
            return np.append(np.zeros(size), self._gripper)

    def _velocity(self, command: Command, seen: RobotObservation, left_s: float) -> np.ndarray:
        """Returns DROID's velocity in this step, of a command that lives for `left_s` more."""
        part = min(1.0, left_s / STEP_S)
        if command.kind == "pose":
            turn = quat_xyzw_to_matrix(command.values[3:]) @ seen.tcp_rotation_base.T
            way = np.concatenate([command.values[:3] - seen.tcp_pos_base, rotation_vector(turn)])
            command = replace(command, kind="twist", values=way / max(left_s, STEP_S))
            part = 1.0
        slower, _ = within_range(command, seen, self._tool)
        return part * droid_velocity(slower, seen, self._tool)

    def _note_failure(self, name: str) -> None:
        with self._lock:
            self._rest()
            if name == "step_failed" or self._link.failed_looks >= MAX_FAILED_LOOKS:
                self._state, self._errors = RobotState.FAULT, (name,)

    def _rest(self) -> None:
        if self._active is not None:
            self._active, self._rest_due = None, True
        if self._state is RobotState.RUNNING:
            self._state = RobotState.HOLD

    # What is as it should be.

    def _check_cameras(self) -> None:
        seen = self._link.newest
        assert seen is not None
        for name, camera in self._cameras.items():
            if name not in seen.frames and not camera.info.optional:
                raise RobotError(
                    f"DROID delivers no picture {camera.serial}_{camera.side} for {name!r}; it "
                    f"delivers: {', '.join(self._pictures)}"
                )

    def _check_flange(self) -> None:
        seen = self._link.newest
        assert seen is not None
        flange = flange_of(seen, self._tool)[:3, 3]
        away = float(np.linalg.norm(joint_frames(seen.joint_positions)[-1, :3, 3] - flange))
        if away > SAME_FLANGE_M:
            raise RobotError(
                f"DROID's cartesian_position is {100 * away:.1f} cm from where the joints put link "
                "8 of a Franka; see to it that its robot model ends there"
            )

    def _current_state(self) -> RobotState:
        if self._state is RobotState.RUNNING and self.now() >= self._expires_at:
            self._state = RobotState.HOLD
        return self._state

    def _require_connection(self) -> RobotObservation:
        if self._state is RobotState.DISCONNECTED or self._link.newest is None:
            raise NotConnectedError("the robot is not connected; call connect first")
        return self._link.newest

    def _refusal(self, command: Command) -> str | None:
        if self._state is RobotState.FAULT:
            return "fault"
        if self._current_state() not in MOVABLE:
            return "not_armed"
        if self._link.failed_looks:
            return "state_stale"
        seq, life_s = self._taken_seq, MAX_VALID_FOR_S
        wrong = what_is_wrong(command, last_seq=seq, max_valid_for_s=life_s)
        env = self._link.env
        if wrong is None and (env is None or command.kind not in KINDS[env.action_space]):
            return "kind_not_supported"
        return wrong
