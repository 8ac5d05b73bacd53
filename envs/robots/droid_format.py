"""DROID's units and its dictionaries: from what `RobotEnv` returns to what we measure, and back.

DROID reports link 8, the flange, as x, y, z and extrinsic xyz Euler angles; pictures are BGR with a
fourth channel; the gripper is 0 open, 1 closed. A velocity of 1.0 is so far in one step of 1/15 s:
0.2 rad of a joint, 0.075 m or 0.15 rad of the flange. Source: the droid repository, `robot_env.py`,
`robot_ik_solver.py` and `zed_camera.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from worldmodel.envs.robots.interface import (
    CameraFrame,
    CameraInfo,
    Command,
    RobotError,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.kinematics import pose_matrix
from worldmodel.pose import euler_to_matrix

STEP_HZ = 15.0
JOINT_UNIT, LINEAR_UNIT, ANGULAR_UNIT = 0.2, 0.075, 0.15  # rad, m, rad a step, at a velocity of 1

ActionSpace = Literal["cartesian_velocity", "joint_velocity"]
KINDS: Mapping[str, tuple[str, ...]] = {
    "cartesian_velocity": ("twist", "pose", "hold"),
    "joint_velocity": ("joint_velocity", "hold"),
}
"""Kinds of commands that each action space of `RobotEnv` can carry out."""


@dataclass(frozen=True)
class DroidCamera:
    """One picture of a stereo camera.

    Attributes:
        serial: of the camera, such as "24259877".
        info: size and rate of its pictures.
        side: which of the two.
    """

    serial: str
    info: CameraInfo
    side: Literal["left", "right"] = "left"


def read_observation(
    raw: Mapping[str, Any],
    *,
    cameras: Mapping[str, DroidCamera],
    tool: np.ndarray,
    gripper_width_m: float,
    now: float,
    wall_ms: float,
) -> RobotObservation:
    """Returns what `RobotEnv.get_observation` says, as an observation in the state IDLE.

    A picture that is missing is left out. DROID stamps with the wall clock of the machine that
    `RobotEnv` runs on. A stamp is only compared with that same clock, read in the same moment as
    ours.

    Args:
        raw: what it returned.
        cameras: the pictures that are wanted.
        tool: from `kinematics.tool_on_flange`.
        gripper_width_m: opening of the gripper when it is open.
        now: our clock [s], after the call.
        wall_ms: the wall clock in the same moment [ms].

    Raises:
        RobotError: something is missing, of another size, or not finite.
    """
    state = _entry(raw, "robot_state")
    stamps = _entry(raw, "timestamp")

    def when(group: str, name: str) -> float:
        return now - max(0.0, wall_ms - float(_entry(_entry(stamps, group), name))) / 1000

    flange = _numbers(state, "cartesian_position", 6)
    pose = pose_matrix(flange[:3], euler_to_matrix(flange[3:])) @ tool
    gripper = float(np.clip(_number(state, "gripper_position"), 0.0, 1.0))
    frames, images = {}, _entry(raw, "image")
    for name, camera in cameras.items():
        key = f"{camera.serial}_{camera.side}"
        if key not in images:
            continue
        captured_at = when("cameras", f"{camera.serial}_estimated_capture")
        frames[name] = CameraFrame(_picture(_entry(images, key), camera.info, key), captured_at)
    return RobotObservation(
        seq=0,
        frames=frames,
        tcp_pos_base=pose[:3, 3],
        tcp_rotation_base=pose[:3, :3],
        joint_positions=_numbers(state, "joint_positions", 7),
        joint_velocities=_numbers(state, "joint_velocities", 7),
        gripper=gripper,
        gripper_width_m=gripper_width_m * (1 - gripper),
        grasped=None,
        wrench_base=None,
        state_at=when("robot_state", "read_start"),
        applied_seq=-1,
        state=RobotState.IDLE,
    )


def flange_of(observation: RobotObservation, tool: np.ndarray) -> np.ndarray:
    """Returns the pose (4, 4) of the flange in the base frame."""
    tcp = pose_matrix(observation.tcp_pos_base, observation.tcp_rotation_base)
    return tcp @ np.linalg.inv(tool)


def droid_velocity(command: Command, observation: RobotObservation, tool: np.ndarray) -> np.ndarray:
    """Returns a "twist" (6,) of the flange, or a "joint_velocity" (7,), in DROID's units.

    Args:
        command: of the tool centre point, or of the joints.
        observation: where the arm is.
        tool: from `kinematics.tool_on_flange`.
    """
    if command.kind == "joint_velocity":
        return command.values / (JOINT_UNIT * STEP_HZ)
    lever = observation.tcp_pos_base - flange_of(observation, tool)[:3, 3]
    linear, angular = command.values[:3], command.values[3:]
    linear = linear - np.cross(angular, lever)
    return np.concatenate([linear / LINEAR_UNIT, angular / ANGULAR_UNIT]) / STEP_HZ


def within_range(
    command: Command, observation: RobotObservation, tool: np.ndarray
) -> tuple[Command, tuple[str, ...]]:
    """Returns a velocity command, slower where DROID would refuse it, and what it was too fast in.

    The direction stays. Arguments are those of `droid_velocity`.
    """
    velocity = droid_velocity(command, observation, tool)
    if command.kind == "joint_velocity":
        sizes = {"joint_velocity": np.abs(velocity).max()}
    else:
        sizes = {
            "velocity": np.linalg.norm(velocity[:3]),
            "angular_velocity": np.linalg.norm(velocity[3:]),
        }
    largest = max(sizes.values())
    if largest <= 1:
        return command, ()
    slower = replace(command, values=command.values / largest * (1 - 1e-9))
    return slower, tuple(name for name, size in sizes.items() if size > 1)


def _entry(table: Any, name: str) -> Any:
    try:
        return table[name]
    except (KeyError, TypeError):
        names = ", ".join(sorted(table)) if isinstance(table, Mapping) else type(table).__name__
        raise RobotError(f"DROID's observation has no {name!r}; it has: {names}") from None


def _number(state: Mapping[str, Any], name: str) -> float:
    (value,) = _numbers({name: [_entry(state, name)]}, name, 1)
    return float(value)


def _numbers(state: Mapping[str, Any], name: str, size: int) -> np.ndarray:
    values = np.array(_entry(state, name), np.float64)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise RobotError(f"DROID's {name} must be {size} finite numbers, got {values.tolist()}")
    return values


def _picture(image: np.ndarray, info: CameraInfo, key: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
        raise RobotError(
            f"picture {key} must be uint8 with 3 or 4 channels, got {image.dtype} {image.shape}"
        )
    if image.shape[:2] != (info.height, info.width):
        raise RobotError(
            f"picture {key} must be {info.height} x {info.width} pixels (height x width), got "
            f"{image.shape[0]} x {image.shape[1]}; say so in the camera's info, or set the "
            "resolution in RobotEnv's camera_kwargs"
        )
    return np.ascontiguousarray(image[..., 2::-1])
