"""The simulated arm as a robot: the scene of `worldmodel.envs.franka`, observed and commanded.

    robot = MujocoRobot(Arm(build_model()), cameras={"exterior": CameraInfo(224, 224, 15)},
                        realtime=False)
    robot.connect(timeout_s=1.0)
    robot.arm(operator="me")
    robot.command(Command(seq=1, obs_seq=0, valid_for_s=0.4, kind="twist",
                          values=np.array([0.05, 0, 0, 0, 0, 0])))
    robot.advance(0.25)

Its clock is that of the simulation, which moves in ticks of one physics step. `advance` moves it by
hand, always the same way; `realtime=True` moves it in a thread, no faster than wall time, and where
the machine is too slow, slower (`lost_s`).
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from worldmodel.envs.cameras import Backend
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import (
    MOVABLE,
    Ack,
    CameraInfo,
    Command,
    NotConnectedError,
    RobotError,
    RobotInfo,
    RobotObservation,
    RobotState,
    StaleObservationError,
    require_operator,
)
from worldmodel.envs.robots.simulated_arm import GRIPPER_FORCE, GRIPPER_WIDTH_M, SimulatedArm
from worldmodel.envs.robots.simulated_cameras import STATE, SensorFaults, SimulatedCameras

REFLEX_TORQUE = (20.0, 20.0, 20.0, 20.0, 10.0, 10.0, 10.0)  # [Nm]
MAX_LATE_S = 0.02  # a thread that is later than this does not catch up
MEMORY_S = 60.0  # of past measurements
MAX_VALID_FOR_S = 2.0
logger = logging.getLogger(__name__)


class MujocoRobot:
    """A `Robot` in a simulation.

    What it does of its own accord: it brakes when a command expires, keeps the limits of its
    joints, and faults with "reflex" when something pushes them too hard. All else is for
    `SafeRobot`. `stop` leads to IDLE, so that a stopped arm stays stopped whatever is still being
    sent. The gripper ends a move that it has begun unless the arm is stopped.
    """

    def __init__(
        self,
        scene: Arm,
        *,
        cameras: Mapping[str, CameraInfo],
        realtime: bool,
        control_hz: float = 4.0,
        backend: Backend = "auto",
        reflex_torque: Sequence[float] = REFLEX_TORQUE,
        gripper_force: float = GRIPPER_FORCE,
        seed: int = 0,
    ):
        """Takes over a scene as it stands; nothing is drawn before somebody looks at a picture.

        Args:
            scene: the arm and what lies about; a task may have been reset in it.
            cameras: those that deliver pictures, of `franka.CAMERAS`.
            realtime: whether a thread moves the clock, from `connect` to `close`.
            control_hz: commands a second that it says it expects.
            backend: which renderer draws.
            reflex_torque: (7,) joint torques from outside that count as a collision [Nm].
            gripper_force: that it grasps with at most [N].
            seed: of lost frames.

        Raises:
            ValueError: for an unknown camera, or a picture that is too large.
        """
        self._arm = SimulatedArm(scene, gripper_force=gripper_force)
        rendered = {name: replace(camera, rendered=True) for name, camera in cameras.items()}
        self.info = RobotInfo(
            name="mujoco",
            arm="panda",
            cameras=rendered,
            control_hz=control_hz,
            joint_limits=self._arm.limits,
            gripper_width_m=GRIPPER_WIDTH_M,
            tcp="between the finger pads, 0.149 m from the flange",
            simulated=True,
        )
        self._reflex_torque = np.array(reflex_torque, float)
        self.realtime = realtime

        self.faults = SensorFaults()
        """What is wrong with the sensors; for tests to change."""
        self.lost_s = 0.0
        """Wall time that the thread could not simulate."""
        self.stop_reason: str | None = None
        """Why `stop` was called last."""
        self._lock = threading.RLock()
        self._stop_asked, self._ending = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._state = RobotState.DISCONNECTED
        self._errors: dict[str, bool] = {}  # name: whether its cause lasts
        self._active: Command | None = None
        self._expires_at = 0.0
        self._last_seq, self._observations = -1, itertools.count()
        self._ticks = self._state_late = 0
        self._moments = deque([self._arm.measure(self.now())], round(MEMORY_S / self._arm.dt))
        self._cameras = SimulatedCameras(
            scene.model,
            rendered,
            self.faults,
            first=self._moments[0].qpos,
            backend=backend,
            seed=seed,
        )

    # The clock.

    def now(self) -> float:
        """Returns the simulated time [s]."""
        return self._ticks * self._arm.dt

    def advance(self, seconds: float) -> None:
        """Moves the clock on by whole ticks.

        Raises:
            RobotError: a thread moves it.
        """
        if self.realtime:
            raise RobotError("the clock runs in real time; pass realtime=False to move it by hand")
        for _ in range(round(seconds / self._arm.dt)):
            self._tick()

    @property
    def log(self) -> tuple[Float[np.ndarray, " tick"], Float[np.ndarray, "tick 7"]]:
        """Times [s] and measured joint positions [rad] of the last `MEMORY_S`, one per tick."""
        with self._lock:
            moments = list(self._moments)
        positions = np.array([moment.qpos[self._arm.qpos] for moment in moments])
        return np.array([moment.time for moment in moments]), positions

    # What every robot does.

    def connect(self, *, timeout_s: float) -> None:
        """Connects and begins to count commands anew; more than once does no harm."""
        del timeout_s  # nothing to wait for
        with self._lock:
            if self._state is not RobotState.DISCONNECTED:
                return
            self._state = RobotState.FAULT if self._errors else RobotState.IDLE
            self._last_seq, self._observations = -1, itertools.count()
            self._stop_asked.clear()
        if self.realtime:
            self._ending.clear()
            self._thread = threading.Thread(target=self._run, name="mujoco-robot", daemon=True)
            self._thread.start()

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the newest pictures, which are drawn when they are looked at, and states.

        Raises:
            NotConnectedError: before `connect` and after `close`.
            StaleObservationError: a camera that is not optional, or the state, is older.
        """
        with self._lock:
            self._require_connection()
            self._heed_stop()
            shots = self._cameras.delivered(now=self.now(), max_age_s=max_age_s)
            late = self._state_late + round(self.faults.lag_s.get(STATE, 0.0) / self._arm.dt)
            moment = self._moments[max(-1 - late, -len(self._moments))]
            age = self.now() - moment.time
            if age > max_age_s:
                raise StaleObservationError(STATE, age_s=age, max_age_s=max_age_s)
            observation = self._arm.observation(
                moment,
                seq=next(self._observations),
                applied_seq=self._last_seq,
                state=self._state,
                errors=tuple(self._errors),
            )
        return replace(observation, frames=self._cameras.frames(shots))

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion.

        Raises:
            NotConnectedError: there is no connection.
            OperatorRefusedError: the operator has no name.
            RobotError: in FAULT.
        """
        require_operator(operator)
        with self._lock:
            self._require_connection()
            self._heed_stop()
            if self._state is RobotState.FAULT:
                raise RobotError(f"the robot has faults {list(self._errors)}; recover it first")
            if self._state is RobotState.IDLE:
                self._state = RobotState.ARMED
                logger.info("armed by %s", operator)
            return self._state

    def command(self, command: Command) -> Ack:
        """Begins a command and returns at once.

        Raises:
            NotConnectedError: there is no connection.
        """
        with self._lock:
            self._require_connection()
            self._heed_stop()
            reason = self._refusal(command)
            if reason is not None:
                return Ack(command.seq, False, None, (), reason, self._state)
            command = replace(command, values=np.array(command.values, float))
            self._active = command if command.kind != "hold" else None
            self._last_seq = command.seq
            self._expires_at = self.now() + command.valid_for_s
            if command.gripper is not None:
                self._arm.grip(command.gripper)
            self._state = RobotState.HOLD if self._active is None else RobotState.RUNNING
            return Ack(command.seq, True, command, (), None, self._state)

    def stop(self, *, reason: str) -> None:
        """Begins to brake within a tick, and disarms. Waits for nothing."""
        self.stop_reason = reason
        self._stop_asked.set()

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT for IDLE unless the cause of an error lasts.

        Raises:
            NotConnectedError: there is no connection.
            OperatorRefusedError: the operator has no name.
        """
        require_operator(operator)
        with self._lock:
            self._require_connection()
            if self._state is RobotState.FAULT and not any(self._errors.values()):
                if self._arm.at_rest:
                    self._arm.let_go()
                self._errors.clear()
                self._state = RobotState.IDLE
                logger.info("recovered by %s", operator)
            return self._state

    def close(self) -> None:
        """Brakes, in simulated time, and disconnects. More than once does no harm."""
        if self._state is RobotState.DISCONNECTED:
            return
        self.stop(reason="closed")
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            while self._stop_asked.is_set() or not self._arm.at_rest:
                self._tick()
            self._state = RobotState.DISCONNECTED
        self._cameras.close()

    # Faults, for tests.

    def inject_error(self, name: str, *, lasting: bool = False) -> None:
        """Makes the robot fault, as by a "reflex"; a lasting one outlives `recover`."""
        with self._lock:
            self._fault(name, lasting=lasting)

    def clear_error(self, name: str) -> None:
        """Takes the cause of a lasting error away; the robot stays in FAULT."""
        with self._lock:
            self._errors[name] = False

    # One tick.

    def _run(self) -> None:
        """Moves the clock in step with wall time until `close`, and then until at rest."""
        due = time.monotonic()
        try:
            while not (self._ending.is_set() and self._arm.at_rest):
                self._tick()
                due += self._arm.dt
                late = time.monotonic() - due
                if late > MAX_LATE_S:
                    self.lost_s += late
                    due += late
                time.sleep(max(1e-4, -late))  # always, so that other threads get the lock
        finally:
            if not self._ending.is_set():
                self._fault("simulation_stopped", lasting=True)

    def _tick(self) -> None:
        with self._lock:
            self._heed_stop()
            if self._active is not None and self.now() >= self._expires_at - 1e-9:
                self._active, self._state = None, RobotState.HOLD
            self._arm.step(self._active)
            self._ticks += 1
            self._moments.append(self._arm.measure(self.now()))
            self._state_late = self._state_late + 1 if STATE in self.faults.frozen else 0
            self._cameras.expose(
                before=self.now() - self._arm.dt, now=self.now(), qpos=self._moments[-1].qpos
            )
            if (abs(self._arm.torques) > self._reflex_torque).any() and not self._errors:
                self._fault("reflex")
                self._arm.let_go()

    def _heed_stop(self) -> None:
        if self._stop_asked.is_set():
            self._stop_asked.clear()
            self._active = None
            self._arm.halt_gripper()
            if self._state in MOVABLE:
                logger.info("stopped: %s", self.stop_reason)
                self._state = RobotState.IDLE

    def _fault(self, name: str, *, lasting: bool = False) -> None:
        logger.warning("the simulated arm faults: %s", name)
        self._errors[name] = lasting
        self._active = None
        self._arm.halt_gripper()
        if self._state is not RobotState.DISCONNECTED:
            self._state = RobotState.FAULT

    def _require_connection(self) -> None:
        if self._state is RobotState.DISCONNECTED:
            raise NotConnectedError("the robot is not connected; call connect first")

    def _refusal(self, command: Command) -> str | None:
        """Returns why a command is not to be done, None if it is."""
        if self._state not in MOVABLE:
            return "fault" if self._state is RobotState.FAULT else "not_armed"
        return what_is_wrong(command, last_seq=self._last_seq, max_valid_for_s=MAX_VALID_FOR_S)
