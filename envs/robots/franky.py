"""A Franka arm, driven by the library franky over the arm's own network interface (FCI).

Motion is streamed as velocities that end by themselves: how long each lives is watched in the
library's control thread, so a planner that stalls stops the arm without our help. The arm's own
server and the simulator `franky-sim` speak the same protocol; the simulator enforces no safety
limit, so it shows that this driver works, not that a motion is safe. Wrap it in a `SafeRobot`.

Source: franky 2.0 (https://github.com/TimSchneider42/franky) and libfranka's robot state.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.envs.robots.camera_sources import CameraSource, newest_frames
from worldmodel.envs.robots.franky_connection import (
    check_arm,
    error_names,
    franky,
    open_connection,
    set_limits,
    set_tool,
)
from worldmodel.envs.robots.franky_hand import GRIPPER_WIDTH_M, FrankyHand
from worldmodel.envs.robots.franky_motion import (
    SIGNALS,
    Signal,
    as_velocity,
    brake,
    velocity_motion,
    within_limits,
)
from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import (
    MOVABLE,
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
from worldmodel.envs.robots.limits import Envelope, hardware_limits

logger = logging.getLogger(__name__)

SECONDS_TO_REST = 2.0


class FrankyRobot:
    """A Franka arm with its hand, as a `worldmodel.envs.robots.interface.Robot`.

    Between two calls of `arm` only one kind of motion is taken, of the tool ("twist", "pose") or of
    the joints: the library cannot change between them while the arm moves. A "pose" is gone to in
    a straight line, at the speed that reaches it when the command ends. The hand opens or closes
    all the way, and ends one motion before it begins the next. After `stop` the arm has to be armed
    again; after a "hold" the next command moves it.
    """

    def __init__(
        self,
        *,
        host: str,
        arm: str,
        simulated: bool,
        cameras: Mapping[str, CameraSource],
        envelope: Envelope,
        tool: np.ndarray | None = None,
        has_hand: bool = True,
        control_hz: float = 15.0,
        require_realtime: bool = True,
    ):
        """Describes the arm; nothing is connected yet.

        Args:
            host: address of the arm's controller, or of the simulator.
            arm: which arm it is, a key of `limits.HARDWARE`; checked against what it says itself.
            simulated: whether `host` is a simulator.
            cameras: what the arm is watched with, by name.
            envelope: speed, acceleration, jerk and collision thresholds for the library.
            tool: pose (4, 4) of the tool centre point on the flange, which the arm is told; None
                is the end effector frame set in the arm's controller.
            has_hand: whether a Franka Hand is mounted.
            control_hz: commands a second that it says it expects.
            require_realtime: refuse to connect from a kernel without real-time scheduling.

        Raises:
            ValueError: an unknown arm, or an envelope beyond what it can do.
        """
        envelope.check(hardware_limits(arm))
        self._info = RobotInfo(
            name="franky_sim" if simulated else "franky",
            arm=arm,
            cameras={name: camera.info for name, camera in cameras.items()},
            control_hz=control_hz,
            joint_limits=hardware_limits(arm).joints,
            gripper_width_m=GRIPPER_WIDTH_M,
            tcp="end effector frame set in the arm's controller; the fingertips of a Franka Hand"
            if tool is None
            else f"{tool[2, 3]:g} m from the flange",
            simulated=simulated,
        )
        self._host, self._cameras, self._envelope = host, dict(cameras), envelope
        self._tool, self._has_hand, self._require_realtime = tool, has_hand, require_realtime
        self._lock = threading.RLock()  # `stop` may come from any thread
        self._robot: Any = None
        self._hand: FrankyHand | None = None
        self._state = RobotState.DISCONNECTED
        self._errors: tuple[str, ...] = ()
        self._signal: Signal | None = None  # what moves since the arm was armed
        self._at_rest = True
        self._observations = 0
        self._taken_seq = -1
        self._expires_at = 0.0
        self._robot_ms, self._state_at = -1, 0.0
        self._not_connected = f"not connected to the arm at {host}; connect first"

    @property
    def info(self) -> RobotInfo:
        """What is known before `connect`."""
        return self._info

    def now(self) -> float:
        """Returns this machine's monotonic clock [s]: the arm tells its own only with a state."""
        return time.monotonic()

    def connect(self, *, timeout_s: float) -> None:
        """Connects and sets our limits, without moving. See `Robot.connect`.

        Raises:
            NotConnectedError: nothing answered in time; another program may be driving the arm.
            RobotError: it is another arm than was said, or it did not take limits or tool.
        """
        self.close()
        robot, gripper = open_connection(
            self._host,
            envelope=self._envelope,
            has_hand=self._has_hand,
            require_realtime=self._require_realtime,
            timeout_s=timeout_s,
        )
        check_arm(robot.model_urdf, self._info.arm)
        set_limits(robot, self._envelope)
        if self._tool is not None:
            set_tool(robot, self._tool)
        for camera in self._cameras.values():
            camera.start()
        speed, force = self._envelope.gripper_speed, self._envelope.gripper_force
        with self._lock:
            self._robot = robot
            self._hand = gripper and FrankyHand(gripper, speed=speed, force=force)
            self._signal, self._taken_seq, self._robot_ms, self._errors = None, -1, -1, ()
            self._state = RobotState.IDLE
            self._look()

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the newest pictures and states. See `Robot.observe`.

        An arm at rest that does not answer is waited for, one second at most.
        """
        with self._lock:
            arm, hand = self._look(), self._hand
            width, grasped = GRIPPER_WIDTH_M, None
            if hand is not None:
                hand.go_on()
                width, grasped = hand.width, hand.grasped
            age = self.now() - self._state_at
            if age > max_age_s:
                raise StaleObservationError("state", age_s=age, max_age_s=max_age_s)
            frames = newest_frames(self._cameras, max_age_s=max_age_s)
            self._observations += 1
            return RobotObservation(
                seq=self._observations,
                frames=frames,
                tcp_pos_base=np.array(arm.O_T_EE.translation, np.float64),
                tcp_rotation_base=np.array(arm.O_T_EE.matrix[:3, :3], np.float64),
                joint_positions=np.array(arm.q, np.float64),
                joint_velocities=np.array(arm.dq, np.float64),
                gripper=float(np.clip(1.0 - width / GRIPPER_WIDTH_M, 0.0, 1.0)),
                gripper_width_m=width,
                grasped=grasped,
                wrench_base=np.array(arm.O_F_ext_hat_K, np.float64),
                state_at=self._state_at,
                applied_seq=self._taken_seq,
                state=self._current_state(),
                errors=self._errors,
            )

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion, of either kind. See `Robot.arm`."""
        require_operator(operator)
        with self._lock:
            self._look()
            if self._state is RobotState.FAULT:
                raise RobotError(f"the arm has an error ({', '.join(self._errors)}): recover first")
            if self._state is RobotState.IDLE:
                self._state, self._signal = RobotState.ARMED, None
            return self._current_state()

    def command(self, command: Command) -> Ack:
        """Begins a command and returns at once. See `Robot.command`."""
        with self._lock:
            pose = self._look().O_T_EE
            reason = self._refusal(command)
            if reason is not None:
                return Ack(command.seq, False, None, (), reason, self._current_state())
            self._taken_seq = command.seq
            wanted = as_velocity(command, position=pose.translation, rotation=pose.matrix[:3, :3])
            applied, clamped = within_limits(wanted, self._envelope)
            if self._hand is None and applied.gripper is not None:
                applied, clamped = replace(applied, gripper=None), (*clamped, "gripper")
            try:
                self._begin(applied)
            except franky.ControlException:
                self._fail(("motion_aborted",))
                return Ack(command.seq, False, None, (), "fault", self._state)
            if self._hand is not None and applied.gripper is not None:
                self._hand.want(applied.gripper)
            return Ack(command.seq, True, applied, clamped, None, self._current_state())

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest and disarms it. See `Robot.stop`.

        An arm that is lost or in an error is at rest already; the next `observe` tells.
        """
        with self._lock:
            if self._robot is None:
                return
            if self._state in MOVABLE:
                logger.info("stopped: %s", reason)
                self._state = RobotState.IDLE
            try:
                self._brake()
            except franky.ControlException:
                self._fail(("motion_aborted",))
            except NotConnectedError as error:
                logger.warning("while stopping: %s", error)

    def recover(self, *, operator: str) -> RobotState:
        """Clears the arm's error; it stays in FAULT when the cause is still there."""
        require_operator(operator)
        with self._lock:
            self._look()
            if self._state is RobotState.FAULT:
                try:
                    with self._network():
                        self._require_robot().recover_from_errors()
                except franky.CommandException as error:
                    logger.warning("the arm did not recover: %s", error)
                self._state, self._errors = RobotState.IDLE, ()
                self._look()
            return self._current_state()

    def close(self) -> None:
        """Stops the arm and the cameras, and gives the connection back."""
        with self._lock:
            robot = self._robot
            if robot is not None:
                try:
                    self._brake()
                    robot.join_motion(timeout=SECONDS_TO_REST)
                except (franky.Exception, RuntimeError):
                    pass  # it is lost or in an error, hence already at rest
            self._give_back(timeout_s=SECONDS_TO_REST)
        for camera in self._cameras.values():
            camera.close()

    def _give_back(self, *, timeout_s: float) -> None:
        """Drops the connection. The hand's motion is waited for, so that it can be had again."""
        if self._hand is not None:
            self._hand.close(timeout_s=timeout_s)
        self._robot = self._hand = None
        self._state = RobotState.DISCONNECTED

    def _require_robot(self) -> Any:
        if self._robot is None:
            raise NotConnectedError(self._not_connected)
        return self._robot

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Turns the library's network errors, some of which are plain RuntimeErrors, into ours."""
        try:
            yield
        except (franky.NetworkException, RuntimeError) as error:
            self._give_back(timeout_s=0.0)
            self._not_connected = f"lost the arm at {self._host}: {error}"
            raise NotConnectedError(self._not_connected) from error

    def _look(self) -> Any:
        """Returns the arm's newest state, having taken up what went wrong since the last look."""
        robot = self._require_robot()
        with self._network():
            aborted = False
            try:
                self._at_rest = robot.poll_motion()
            except franky.ControlException:
                aborted = self._at_rest = True
            arm = robot.state
        if arm.time.to_msec() != self._robot_ms:
            self._robot_ms, self._state_at = arm.time.to_msec(), self.now()
        errors = error_names(arm, aborted=aborted)
        if self._hand is not None and self._hand.lost:
            errors = (*errors, "hand_lost")
        if errors and errors != self._errors:
            self._fail(errors)
            self._brake()
        return arm

    def _fail(self, errors: tuple[str, ...]) -> None:
        logger.warning("the arm faults: %s", ", ".join(errors))
        self._errors, self._state = errors, RobotState.FAULT

    def _current_state(self) -> RobotState:
        if self._state is RobotState.RUNNING and (self._at_rest or self.now() > self._expires_at):
            self._state = RobotState.HOLD
        return self._state

    def _refusal(self, command: Command) -> str | None:
        """Returns why a command is not taken, or None."""
        if self._state is RobotState.FAULT:
            return "fault"
        if self._current_state() not in MOVABLE:
            return "not_armed"
        if self.now() - self._state_at > self._envelope.state_max_age_s:
            return "state_stale"
        life_s = self._envelope.max_valid_for_s
        wrong = what_is_wrong(command, last_seq=self._taken_seq, max_valid_for_s=life_s)
        if wrong is not None:
            return wrong
        if command.kind != "hold" and self._signal not in (None, SIGNALS[command.kind]):
            return "kind_changed"
        return None

    def _begin(self, command: Command) -> None:
        """Lets the arm follow `command`, which is within the limits."""
        if command.kind == "hold":
            self._brake()
            self._state = RobotState.HOLD
            return
        with self._network():
            self._require_robot().move(velocity_motion(command), asynchronous=True)
        self._signal, self._at_rest = SIGNALS[command.kind], False
        self._expires_at = self.now() + command.valid_for_s
        self._state = RobotState.RUNNING

    def _brake(self) -> None:
        robot = self._require_robot()
        with self._network():
            if not self._at_rest and self._signal is not None and not robot.poll_motion():
                robot.move(brake(self._signal), asynchronous=True)
