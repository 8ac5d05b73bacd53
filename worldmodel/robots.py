"""Robots by their settings (`configs/robot/`): an adapter in its envelope, or a remote one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.envs.robots.interface import CameraInfo
from worldmodel.envs.robots.limits import Envelope, first_run
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.names import unknown

if TYPE_CHECKING:
    from worldmodel.envs.robots.camera_sources import CameraSource
    from worldmodel.envs.robots.client import RemoteRobot
    from worldmodel.envs.robots.droid_format import DroidCamera

LIMITS: Mapping[str, Callable[..., Envelope]] = {"default": Envelope, "first_run": first_run}


def open_robot(settings: Mapping[str, Any]) -> "SafeRobot | RemoteRobot":
    """Returns a robot that keeps within its `envelope`; it is not connected yet.

    Args:
        settings: those of one file of `configs/robot/`; a remote robot is asked what it is.

    Raises:
        ValueError, TypeError: a setting is missing, unknown, or beyond what the arm can do.
        NotConnectedError: a remote robot does not answer.
    """
    from omegaconf import DictConfig, OmegaConf

    if isinstance(settings, DictConfig):
        missing = OmegaConf.missing_keys(settings)
        if missing:
            needed = ", ".join(f"{key}=..." for key in sorted(missing))
            raise ValueError(f"robot={settings.name} needs {needed}")
        container: Any = OmegaConf.to_container(settings, resolve=True)
        settings = container
    others = {key: value for key, value in settings.items() if key != "name"}
    if settings["name"] not in ADAPTERS:
        raise ValueError(unknown("robot", settings["name"], ADAPTERS))
    return ADAPTERS[settings["name"]](**others)


def make_envelope(
    workspace: Sequence[Sequence[float]], *, limits: str, changes: Mapping[str, Any] | None
) -> Envelope:
    """Returns what an arm is allowed.

    Args:
        workspace: two corners of the box that the tool must not leave [m].
        limits: a key of `LIMITS`.
        changes: single fields of `Envelope` that differ from those limits; None where none do.

    Raises:
        ValueError: a name is unknown, or a value is out of range.
    """
    if limits not in LIMITS:
        raise ValueError(unknown("limits", limits, LIMITS))
    if len(workspace) != 2:
        raise ValueError("workspace must be two corners in metres: [[x, y, z], [x, y, z]]")
    changes, known = changes or {}, [field.name for field in fields(Envelope)]
    for name in changes:
        if name not in known:
            raise ValueError(unknown("limit", name, known))
    low, high = (tuple(map(float, corner)) for corner in workspace)
    return replace(LIMITS[limits](workspace_low=low, workspace_high=high), **changes)


def _mujoco(
    *,
    workspace: Sequence[Sequence[float]],
    limits: str,
    envelope: Mapping[str, Any] | None,
    cameras: Sequence[str],
    image_size: int,
    fps: float,
    backend: Any,
    realtime: bool,
    control_hz: float,
    tick_hz: float,
) -> SafeRobot:
    from worldmodel.envs.control import Arm
    from worldmodel.envs.franka import build_model
    from worldmodel.envs.robots.mujoco import MujocoRobot

    allowed = make_envelope(workspace, limits=limits, changes=envelope)
    inner = MujocoRobot(
        Arm(build_model()),
        cameras={name: CameraInfo(image_size, image_size, fps) for name in cameras},
        realtime=realtime,
        control_hz=control_hz,
        backend=backend,
        gripper_force=allowed.gripper_force,
    )
    return SafeRobot(inner, allowed, clock=inner.now, tick_hz=tick_hz if realtime else None)


def _franky(
    *,
    host: str,
    arm: str,
    workspace: Sequence[Sequence[float]],
    limits: str,
    envelope: Mapping[str, Any] | None,
    cameras: Mapping[str, Mapping[str, Any]] | None,
    tool_length: float | None,
    tool_yaw: float,
    has_hand: bool,
    require_realtime: bool,
    control_hz: float,
    tick_hz: float,
) -> SafeRobot:
    from worldmodel.envs.robots.franky import FrankyRobot
    from worldmodel.envs.robots.kinematics import tool_on_flange

    allowed = make_envelope(workspace, limits=limits, changes=envelope)
    inner = FrankyRobot(
        host=host,
        arm=arm,
        simulated=False,
        cameras={name: _camera(name, settings) for name, settings in (cameras or {}).items()},
        envelope=allowed,
        tool=None if tool_length is None else tool_on_flange(length=tool_length, yaw=tool_yaw),
        has_hand=has_hand,
        control_hz=control_hz,
        require_realtime=require_realtime,
    )
    return SafeRobot(inner, allowed, tick_hz=tick_hz)


def _franky_sim(
    *,
    host: str,
    arm: str,
    workspace: Sequence[Sequence[float]],
    limits: str,
    envelope: Mapping[str, Any] | None,
    cameras: Sequence[str],
    image_size: int,
    fps: float,
    backend: Any,
    tool_length: float,
    tool_yaw: float,
    control_hz: float,
    tick_hz: float,
) -> SafeRobot:
    from worldmodel.envs.robots.access import is_loopback
    from worldmodel.envs.robots.franky import FrankyRobot
    from worldmodel.envs.robots.kinematics import tool_on_flange
    from worldmodel.envs.robots.rendered_cameras import RenderedCameras

    if not is_loopback(host):
        raise ValueError(
            f"robot=franky_sim needs a simulator on this machine, got robot.host={host}; an arm "
            "that may be physical is robot=franky"
        )
    allowed = make_envelope(workspace, limits=limits, changes=envelope)
    inner = FrankyRobot(
        host=host,
        arm=arm,
        simulated=True,
        cameras={},
        envelope=allowed,
        tool=tool_on_flange(length=tool_length, yaw=tool_yaw),
        control_hz=control_hz,
        require_realtime=False,
    )
    infos = {name: CameraInfo(image_size, image_size, fps) for name in cameras}
    return SafeRobot(RenderedCameras(inner, infos, backend=backend), allowed, tick_hz=tick_hz)


def _check_keys(
    name: str, settings: Mapping[str, Any], *, needed: Sequence[str], example: str
) -> None:
    """Refuses settings of a camera with other keys than those needed and "optional"."""
    for key in settings:
        if key not in (*needed, "optional"):
            raise ValueError(unknown(f"setting of camera {name}", key, (*needed, "optional")))
    for key in needed:
        if key not in settings:
            raise ValueError(f"camera {name} has no {key!r}; write it such as {example}")


def _camera_info(settings: Mapping[str, Any]) -> CameraInfo:
    return CameraInfo(
        height=settings["height"],
        width=settings["width"],
        fps=settings["fps"],
        optional=settings.get("optional", False),
    )


def _camera(name: str, settings: Mapping[str, Any]) -> "CameraSource":
    from worldmodel.envs.robots.camera_sources import (
        CameraSource,
        network_camera,
        usb_camera,
        video_file,
    )

    example = "{from: 0, height: 480, width: 640, fps: 30}"
    _check_keys(name, settings, needed=("from", "height", "width", "fps"), example=example)
    source, info = settings["from"], _camera_info(settings)
    if isinstance(source, int):
        stream = usb_camera(source, info)
    elif isinstance(source, str) and "://" in source:
        stream = network_camera(source)
    elif isinstance(source, str) and Path(source).is_file():
        stream = video_file(Path(source), info, loop=True)
    else:
        raise ValueError(
            f"camera {name} must come from the number of a USB camera, an address such as "
            f"rtsp://..., or a video file that exists, got {source!r}"
        )
    return CameraSource(name, info, open_stream=stream)


def _droid(
    *,
    arm: str,
    workspace: Sequence[Sequence[float]],
    limits: str,
    envelope: Mapping[str, Any] | None,
    cameras: Mapping[str, Mapping[str, Any]],
    action_space: str,
    tool_length: float,
    tool_yaw: float,
    gripper_width_m: float,
    tick_hz: float,
) -> SafeRobot:
    from worldmodel.envs.robots.droid import DroidRobot

    try:
        from droid.robot_env import RobotEnv  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(
            f"robot=droid needs DROID's own package ({error}); run this with the Python of the "
            "laptop that drives the robot"
        ) from error
    allowed = make_envelope(workspace, limits=limits, changes=envelope)
    inner = DroidRobot(
        lambda: RobotEnv(action_space, gripper_action_space="position", do_reset=False),
        arm=arm,
        cameras={name: _droid_camera(name, settings) for name, settings in cameras.items()},
        tool_length=tool_length,
        tool_yaw=tool_yaw,
        gripper_width_m=gripper_width_m,
        simulated=False,
    )
    return SafeRobot(inner, allowed, tick_hz=tick_hz)


def _droid_camera(name: str, settings: Mapping[str, Any]) -> "DroidCamera":
    from worldmodel.envs.robots.droid_format import DroidCamera

    example = "{serial: '24259877', side: left, height: 720, width: 1280, fps: 60}"
    _check_keys(
        name, settings, needed=("serial", "side", "height", "width", "fps"), example=example
    )
    if settings["side"] not in ("left", "right"):
        raise ValueError(f"side of camera {name} must be left or right, got {settings['side']!r}")
    return DroidCamera(str(settings["serial"]), _camera_info(settings), settings["side"])


def _remote(
    *, url: str, token_file: str | None, certificate: str | None, timeout_s: float
) -> "RemoteRobot":
    from worldmodel.envs.robots.access import pinned_tls, read_token
    from worldmodel.envs.robots.client import find_robot

    tls = None if certificate is None else pinned_tls(certificate)
    return find_robot(url, token=read_token(token_file), tls=tls, timeout_s=timeout_s)


ADAPTERS: Mapping[str, Callable[..., Any]] = {
    "mujoco": _mujoco,
    "franky": _franky,
    "franky_sim": _franky_sim,
    "droid": _droid,
    "remote": _remote,
}
"""What opens a robot, by its name in the settings."""
