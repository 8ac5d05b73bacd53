"""Rendered cameras for a simulated arm that has none: our scene, drawn at the joints it reports.

    robot = RenderedCameras(FrankyRobot(host="127.0.0.1", simulated=True, cameras={}, ...),
                            {"exterior": CameraInfo(128, 128, 15.0)})

The pictures show a twin: the arm of `worldmodel.envs.franka` at the joint angles and the opening of
the gripper that the other arm measures, the cubes where they lie at first. Nothing in them was
seen by a camera, and what the other arm touches does not move in them. So a robot that is not
simulated is refused, and each picture's `CameraInfo.rendered` says what it is.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from worldmodel.envs import panda
from worldmodel.envs.cameras import Backend
from worldmodel.envs.franka import build_model
from worldmodel.envs.robots.interface import (
    Ack,
    CameraInfo,
    Command,
    Robot,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.simulated_cameras import SensorFaults, SimulatedCameras


class RenderedCameras:
    """Passes everything on to another robot, and adds pictures to what it measures.

    A picture is of the first state of the arm that is measured when it is due, and bears that
    state's time: an arm whose state stands still has cameras that stand still.

    Attributes:
        faults: what is wrong with the cameras; for tests to change.
    """

    def __init__(
        self,
        inner: Robot,
        cameras: Mapping[str, CameraInfo],
        *,
        backend: Backend = "auto",
        seed: int = 0,
    ):
        """Draws nothing before somebody looks at a picture.

        Args:
            inner: a simulated arm of a Franka's geometry, without cameras of its own.
            cameras: that are drawn, by names of `franka.CAMERAS`.
            backend: which renderer draws.
            seed: of lost frames, see `faults`.

        Raises:
            ValueError: the robot is not simulated or has cameras; a camera is unknown or too large.
        """
        if not inner.info.simulated:
            raise ValueError(
                f"rendered cameras are for simulated arms, and {inner.info.name} is none: a drawn "
                "picture does not show what is in a physical arm's way"
            )
        if inner.info.cameras:
            names = ", ".join(inner.info.cameras)
            raise ValueError(f"{inner.info.name} has cameras of its own: {names}")
        rendered = {name: replace(camera, rendered=True) for name, camera in cameras.items()}
        self.inner, self.info = inner, replace(inner.info, cameras=rendered)
        self.faults = SensorFaults()
        model = build_model()
        self._scene = model.qpos0.copy()
        self._joints, self._fingers = (
            np.array([model.joint(name).qposadr[0] for name in names])
            for names in (panda.JOINTS, panda.FINGERS)
        )
        self._lock = threading.Lock()
        self._cameras = SimulatedCameras(
            model, rendered, self.faults, first=self._scene, backend=backend, seed=seed
        )
        self._exposed_at = -math.inf
        self._longest_s = max((1 / camera.fps for camera in rendered.values()), default=0.0)

    def now(self) -> float:
        """Returns the robot's monotonic clock [s]."""
        return self.inner.now()

    def connect(self, *, timeout_s: float) -> None:
        """Connects, and draws once: the first picture takes seconds. See `Robot.connect`."""
        self.inner.connect(timeout_s=timeout_s)
        for frame in self.observe(max_age_s=math.inf).frames.values():
            _ = frame.image

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns what the arm measures, with pictures. See `Robot.observe`."""
        seen = self.inner.observe(max_age_s=max_age_s)
        scene = self._scene.copy()
        scene[self._joints] = seen.joint_positions
        scene[self._fingers] = (1 - seen.gripper) * panda.FINGER_STROKE
        with self._lock:
            if seen.state_at > self._exposed_at:
                before = max(self._exposed_at, seen.state_at - self._longest_s)
                self._cameras.expose(before=before, now=seen.state_at, qpos=scene)
                self._exposed_at = seen.state_at
            shots = self._cameras.delivered(now=self.now(), max_age_s=max_age_s)
        return replace(seen, frames=self._cameras.frames(shots))

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion. See `Robot.arm`."""
        return self.inner.arm(operator=operator)

    def command(self, command: Command) -> Ack:
        """Begins a command and returns at once. See `Robot.command`."""
        return self.inner.command(command)

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest. See `Robot.stop`."""
        self.inner.stop(reason=reason)

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT. See `Robot.recover`."""
        return self.inner.recover(operator=operator)

    def close(self) -> None:
        """Stops the arm and gives the connection back. See `Robot.close`."""
        self.inner.close()
        self._cameras.close()
