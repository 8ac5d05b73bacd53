"""The robot's side of a row: an arm in its envelope, faults to order, and what it did.

Times are those of the robot's own clock, distances those of the simulated arm itself.
"""

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.control import Arm
from worldmodel.envs.franka import build_model
from worldmodel.envs.robots.interface import CameraInfo, Robot
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.motion import Kinematics
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.recorded import RecordedRobot
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.envs.robots.safety import SafeRobot

ENVELOPE = Envelope(workspace_low=(0.25, -0.4, 0.02), workspace_high=(0.75, 0.4, 0.6))
START = (0.48, 0.0, 0.3)
CAMERA = CameraInfo(24, 32, 15.0)
TICK_S = 0.01
SPAN_S = 0.05  # over which speed is measured


class WatchedRobot(SafeRobot):
    """Remembers when its state changed, on the arm's own clock."""

    def __init__(
        self, inner: Robot, envelope: Envelope, *, arm_now: Callable[[], float], **settings: Any
    ):
        super().__init__(inner, envelope, **settings)
        self._arm_now = arm_now
        self.history: list[tuple[float, str, str | None]] = []

    def tick(self) -> None:
        """See `SafeRobot`."""
        super().tick()
        self.note()

    def note(self) -> None:
        """Remembers the present state, if it is another."""
        found = (str(self.state), self.reason)
        if not self.history or self.history[-1][1:] != found:
            self.history.append((self._arm_now(), *found))


def report(
    safe: WatchedRobot, times: np.ndarray, path: np.ndarray, *, since: float
) -> dict[str, Any]:
    """Returns what an arm did, JSON-able.

    Args:
        safe: The arm in its envelope.
        times: (n,) of the path [s].
        path: (n, 3) of the tool [m].
        since: When the fault began.
    """
    since = min(since, times[-1])  # a simulator that is behind has not told yet
    after, at = path[times >= since], times[times >= since]
    first = next((t for t, state, _ in safe.history if t >= since and state != "running"), None)
    span = path[times >= times[-1] - SPAN_S]
    steps = np.linalg.norm(np.diff(after, axis=0), axis=1)
    windows = max(1, round(SPAN_S / float(np.diff(at).mean()))) if len(at) > 2 else 1
    moved = np.linalg.norm(after[windows:] - after[:-windows], axis=1)
    spans = at[windows:] - at[:-windows]
    low, high = np.array(ENVELOPE.workspace_low), np.array(ENVELOPE.workspace_high)
    return {
        "state": str(safe.state),
        "reason": safe.reason,
        "states": [list(entry) for entry in safe.history if entry[0] >= since],
        "now": float(times[-1]),
        "elapsed_s": float(times[-1] - since),
        "reaction_s": None if first is None else first - since,
        "speed": float(
            np.linalg.norm(span[-1] - span[0]) / max(times[-1] - times[-len(span)], 1e-9)
        ),
        "top_speed": float((moved / spans).max()) if len(spans) else 0.0,
        "travel_m": float(np.linalg.norm(after - after[0], axis=1).max()),
        "way_m": float(steps.sum()),
        "outside_m": float(np.maximum(low - after, after - high).max()),
        "position": after[-1].tolist(),
        "counters": dict(safe.counters),
    }


class RobotSide:
    """The simulated arm, its envelope and its flight recorder. `close` ends all three."""

    def __init__(
        self,
        folder: Path,
        *,
        realtime: bool,
        cameras: Sequence[str] = ("exterior",),
        optional: Sequence[str] = (),
        skew_s: float = 0.0,
        error: str | None = None,
    ):
        """Builds them; nothing is connected yet.

        Args:
            folder: Of the flight recorder.
            realtime: Whether threads move the clock and tick.
            cameras: That must deliver pictures.
            optional: Cameras that may be missed.
            skew_s: By which the envelope's clock is ahead of the arm's.
            error: That the arm has from the beginning.
        """
        self._model = build_model()
        scene = Arm(self._model)
        scene.teleport(np.array(START))
        infos = {name: CAMERA for name in cameras}
        infos |= {name: CameraInfo(24, 32, 15.0, optional=True) for name in optional}
        self.arm = MujocoRobot(scene, cameras=infos, realtime=realtime, backend="ray")
        self.safe = WatchedRobot(
            self.arm,
            ENVELOPE,
            arm_now=self.arm.now,
            clock=lambda: self.arm.now() + skew_s,
            tick_hz=1 / TICK_S if realtime else None,
        )
        self.recorder = FlightRecorder(
            folder, settings={}, robot=self.safe.info, clock=self.safe.now, min_free_bytes=1
        )
        self.robot = RecordedRobot(self.safe, self.recorder)
        self._scene, self._kinematics = scene, Kinematics(self._model)
        if error is not None:
            self.arm.inject_error(error, lasting=True)

    def close(self) -> None:
        """Stops the arm and ends the recording."""
        self.robot.close()
        self.recorder.close()

    def now(self) -> float:
        """Returns the arm's clock [s]."""
        return self.arm.now()

    def report(self, *, since: float) -> dict[str, Any]:
        """Returns what the arm did since a time, see the function."""
        times, joints = self.arm.log
        first = max(
            0, int(np.searchsorted(times, since)) - round(SPAN_S / self._model.opt.timestep)
        )
        stride = max(1, (len(times) - first) // 3000)
        picked = np.arange(first, len(times), stride)
        path = np.array([self._kinematics.pose(joints[i])[0] for i in picked])
        found = report(self.safe, times[picked], path, since=since)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return found | {"problem": self.recorder.problem, "rss_mib": rss}

    # Faults.

    def freeze(self, *, camera: str) -> None:
        """A camera delivers nothing new."""
        self.arm.faults.frozen.add(camera)

    def repeat(self, *, camera: str) -> None:
        """A camera delivers the same bytes again and again, with new stamps."""
        self.arm.faults.repeating.add(camera)

    def lose(self, *, camera: str, share: float) -> None:
        """A part of a camera's frames is lost."""
        self.arm.faults.loss[camera] = share

    def heal(self) -> None:
        """All sensors are well again."""
        faults = self.arm.faults
        for fault in (faults.frozen, faults.repeating, faults.loss, faults.lag_s):
            fault.clear()

    def push(self, *, force: float) -> None:
        """Something pushes the hand sideways with so much force [N] from now on; 0 lets go."""
        self._scene.data.body("hand").xfrc_applied[1] = force

    def stall(self, *, seconds: float) -> None:
        """The loop that ticks stands still for so long, while the arm's own goes on."""
        if not self.arm.realtime:
            self.arm.advance(seconds)
            return
        with self.safe._lock:
            until = self.arm.now() + seconds
            while self.arm.now() < until:
                time.sleep(0.001)

    def fill_disk(self) -> None:
        """No file of this process can grow any more."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))

    def empty_disk(self) -> None:
        """Files can grow again."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def give_cube(self) -> None:
        """A cube floats between the fingers, until they hold it."""
        with self.arm._lock:
            self._model.opt.gravity[:] = 0.0
            self._place_cube(self._scene.tcp_pos_base)

    def release_cube(self) -> None:
        """It has weight again."""
        self._model.opt.gravity[:] = (0.0, 0.0, -9.81)

    def take_cube(self) -> None:
        """It slips out of the fingers."""
        with self.arm._lock:
            self._place_cube(np.array([0.4, 0.5, 0.1]))

    def grip_force(self) -> float:
        """Returns the force of the gripper's motor [N]."""
        return abs(self.arm._moments[-1].jaw_force)

    def _place_cube(self, position: np.ndarray) -> None:
        joint = self._scene.data.joint(self._model.joint(self._cube()).id)
        joint.qpos[:] = [*position, 1, 0, 0, 0]
        joint.qvel[:] = 0.0

    def _cube(self) -> int:
        free = [i for i in range(self._model.njnt) if self._model.jnt_type[i] == 0]
        return free[0]
