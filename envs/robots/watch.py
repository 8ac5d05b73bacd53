"""Whether what a robot measures can be relied on: fresh, finite, alive and without errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from worldmodel.envs.robots.interface import (
    CameraFrame,
    CameraInfo,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.limits import Envelope

COLLISION_TIME_S = 0.03  # measured wrenches are noisy for less
FUTURE_TOLERANCE_S = 0.01  # a stamp further ahead than this is not a time on the robot's clock


@dataclass(frozen=True)
class Trouble:
    """Why the arm must not move: `fault` when it needs an operator, else until it is over."""

    reason: str
    fault: bool


@dataclass
class _Camera:
    captured_at: float
    first_seen: float
    fingerprint: int
    repeats: int = 0


class SensorWatch:
    """Remembers of each sensor when it last said something new.

    Age counts on two clocks, the robot's own and the caller's, and the older one is taken: a robot
    whose clock stands still looks fresh on its own.
    """

    def __init__(self, cameras: Mapping[str, CameraInfo], envelope: Envelope):
        """Watches the cameras that are not optional, and the arm."""
        self._infos = {name: info for name, info in cameras.items() if not info.optional}
        self._envelope = envelope
        self.reset()

    def reset(self) -> None:
        """Forgets all, as after an operator looked at it."""
        self._cameras: dict[str, _Camera] = {}
        self._state_at, self._state_seen = -math.inf, -math.inf
        self._pushed_since = math.inf  # by a wrench that is a collision if it lasts

    def look(
        self, observation: RobotObservation, *, robot_now: float, now: float, moving: bool
    ) -> Trouble | None:
        """Returns what is wrong with an observation, None when nothing is.

        Args:
            observation: The newest one.
            robot_now: The robot's clock.
            now: The caller's clock.
            moving: Whether the arm is commanded to move so that every camera sees a change.
        """
        if observation.errors:
            return Trouble(observation.errors[0], fault=True)
        if observation.state is RobotState.FAULT:
            return Trouble("robot_fault", fault=True)
        wrong = wrong_state(observation)
        if wrong is not None:
            return Trouble(wrong, fault=False)
        if observation.state_at != self._state_at:
            self._state_at, self._state_seen = observation.state_at, now
        age = max(robot_now - self._state_at, now - self._state_seen)
        if not _fresh(age, robot_now - self._state_at, self._envelope.state_max_age_s):
            return Trouble("state_stale", fault=False)
        for name, info in self._infos.items():
            reason = self._camera_trouble(
                name,
                info,
                observation.frames.get(name),
                robot_now=robot_now,
                now=now,
                moving=moving,
            )
            if reason is not None:
                return Trouble(f"{reason}:{name}", fault=False)
        return Trouble("collision", fault=True) if self._collides(observation) else None

    def _collides(self, observation: RobotObservation) -> bool:
        """Returns whether the tool has been pushed too hard for longer than noise lasts."""
        force = torque = 0.0
        if observation.wrench_base is not None:
            force, torque = np.linalg.norm(observation.wrench_base.reshape(2, 3), axis=1)
        if force <= self._envelope.collision_force and torque <= self._envelope.collision_torque:
            self._pushed_since = math.inf
            return False
        self._pushed_since = min(self._pushed_since, observation.state_at)
        return observation.state_at - self._pushed_since >= COLLISION_TIME_S

    def _camera_trouble(
        self,
        name: str,
        info: CameraInfo,
        frame: CameraFrame | None,
        *,
        robot_now: float,
        now: float,
        moving: bool,
    ) -> str | None:
        if frame is None:
            return "camera_stale"
        if not frame.fits(info):
            return "camera_format"
        seen = self._cameras.get(name)
        if seen is None:
            seen = _Camera(frame.captured_at, now, frame.fingerprint)
            self._cameras[name] = seen
        elif frame.captured_at != seen.captured_at:
            fingerprint = frame.fingerprint
            if fingerprint != seen.fingerprint:
                seen.repeats = 0
            elif moving:
                seen.repeats += 1
            seen.captured_at, seen.first_seen = frame.captured_at, now
            seen.fingerprint = fingerprint
        on_robot = robot_now - seen.captured_at
        if not _fresh(
            max(on_robot, now - seen.first_seen), on_robot, self._envelope.camera_max_age_s
        ):
            return "camera_stale"
        # n pictures with the same bytes are n - 1 repeats.
        return "camera_frozen" if seen.repeats >= self._envelope.identical_frames - 1 else None


def wrong_state(observation: RobotObservation) -> str | None:
    """Returns what is wrong with the measured numbers, such as "not_finite:joint_positions"."""
    parts = {
        "tcp_pos_base": (observation.tcp_pos_base, (3,)),
        "tcp_rotation_base": (observation.tcp_rotation_base, (3, 3)),
        "joint_positions": (observation.joint_positions, (7,)),
        "joint_velocities": (observation.joint_velocities, (7,)),
    }
    if observation.wrench_base is not None:
        parts["wrench_base"] = (observation.wrench_base, (6,))
    for name, (values, shape) in parts.items():
        if values.shape != shape:
            return f"shape:{name}"
        if not np.isfinite(values).all():
            return f"not_finite:{name}"
    for name in ("gripper", "gripper_width_m", "state_at"):
        if not math.isfinite(getattr(observation, name)):
            return f"not_finite:{name}"
    rotation = observation.tcp_rotation_base
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        return "not_a_rotation:tcp_rotation_base"
    return None


def _fresh(age: float, robot_age: float, largest: float) -> bool:
    return robot_age >= -FUTURE_TOLERANCE_S and age <= largest  # both False for NaN
