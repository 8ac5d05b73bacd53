"""Opens the simulated arm for a drive."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worldmodel.envs.control import Arm
from worldmodel.envs.franka import build_model
from worldmodel.envs.robots.interface import CameraInfo
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot

TICK_S = 0.02


@dataclass(frozen=True)
class Opened:
    """A robot in its envelope, not connected, and how to wait on its clock."""

    robot: SafeRobot
    envelope: Envelope
    sleep: Callable[[float], None]
    simulated_clock: bool


def open_robot(config: Any, *, image_size: int) -> Opened:
    """Builds the simulated arm, inside `SafeRobot`."""
    size = config.image_size or image_size
    cameras = {name: CameraInfo(size, size, config.fps) for name in config.cameras}
    inner = MujocoRobot(
        Arm(build_model()), cameras=cameras, realtime=config.realtime, backend=config.backend
    )
    low, high = config.workspace
    envelope = Envelope(workspace_low=tuple(low), workspace_high=tuple(high))
    if config.realtime:
        robot = SafeRobot(inner, envelope, clock=inner.now, tick_hz=1 / TICK_S)
        return Opened(robot, envelope, time.sleep, simulated_clock=False)
    robot = SafeRobot(inner, envelope, clock=inner.now)

    def advance(seconds: float) -> None:
        for _ in range(max(round(seconds / TICK_S), 1)):
            robot.tick()
            inner.advance(TICK_S)

    return Opened(robot, envelope, advance, simulated_clock=True)
