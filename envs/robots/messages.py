"""A robot's types as plain maps for `wire`, and back, strictly.

Keys that are unknown, missing or of another type are refused with `WireError`; whether the values
of a command make sense is for the robot to say.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from worldmodel.envs.robots.interface import (
    NUM_JOINTS,
    Ack,
    CameraFrame,
    CameraInfo,
    Command,
    JointLimits,
    RobotInfo,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.wire import WireError

MAX_COMMAND_VALUES = 16
MAX_TEXT = 256  # characters of an operator's name or a reason

_CAMERA = {"height": int, "width": int, "fps": float, "optional": bool, "rendered": bool}
_OBSERVATION_ARRAYS = {
    "tcp_pos_base": (3,),
    "tcp_rotation_base": (3, 3),
    "joint_positions": (NUM_JOINTS,),
    "joint_velocities": (NUM_JOINTS,),
}


def take(message: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> list[Any]:
    """Returns the values of a map that has exactly these keys, each of its type, in their order.

    Args:
        message: as it came.
        kinds: a type, or several, by key. A float may be a whole number; a bool is no number.

    Raises:
        WireError: it is no map, or has other keys or types ("bad_request").
    """
    if not isinstance(message, dict) or message.keys() != kinds.keys():
        got = sorted(message) if isinstance(message, dict) else type(message).__name__
        raise _bad(f"expected a map with {sorted(kinds)}, got {got}")
    for name, kind in kinds.items():
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if float in wanted:
            wanted += (int,)
        value = message[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise _bad(f"{name} must be {names}, got {type(value).__name__}")
    return [message[name] for name in kinds]


def take_text(message: Any, name: str) -> str:
    """Returns the text of a map that has this key only.

    Raises:
        WireError: it has another, or it is long.
    """
    (text,) = take(message, {name: str})
    if len(text) > MAX_TEXT:
        raise _bad(f"{name} may have {MAX_TEXT} characters, got {len(text)}")
    return text


def write_info(info: RobotInfo) -> dict[str, Any]:
    """Returns the map of a robot's description."""
    return vars(info) | {
        "cameras": {name: asdict(camera) for name, camera in info.cameras.items()},
        "joint_limits": dict(vars(info.joint_limits)),
    }


def read_info(message: Any) -> RobotInfo:
    """Returns the robot's description in a map.

    Raises:
        WireError: it is none.
    """
    name, arm, cameras, control_hz, limits, width, tcp, simulated = take(
        message,
        {
            "name": str,
            "arm": str,
            "cameras": dict,
            "control_hz": float,
            "joint_limits": dict,
            "gripper_width_m": float,
            "tcp": str,
            "simulated": bool,
        },
    )
    take(limits, {"low": np.ndarray, "high": np.ndarray, "velocity": np.ndarray})
    found = {key: CameraInfo(*take(values, _CAMERA)) for key, values in cameras.items()}
    return RobotInfo(
        name=name,
        arm=arm,
        cameras=found,
        control_hz=control_hz,
        joint_limits=JointLimits(**{k: _array(v, k, (NUM_JOINTS,)) for k, v in limits.items()}),
        gripper_width_m=width,
        tcp=tcp,
        simulated=simulated,
    )


def write_envelope(envelope: Envelope) -> dict[str, Any]:
    """Returns the map of an envelope."""
    corners = (envelope.workspace_low, envelope.workspace_high)
    low, high = ([float(x) for x in corner] for corner in corners)
    return vars(envelope) | {"workspace_low": low, "workspace_high": high}


def read_envelope(message: Any) -> Envelope:
    """Returns the envelope in a map of its fields.

    Raises:
        WireError: it is none.
    """
    if not isinstance(message, dict) or message.keys() != {f.name for f in fields(Envelope)}:
        raise _bad("expected the fields of an envelope")
    try:
        corners = {name: tuple(message[name]) for name in ("workspace_low", "workspace_high")}
        values: dict[str, Any] = message | corners
        return Envelope(**values)
    except (ValueError, TypeError) as error:
        raise _bad(str(error)) from error


def write_observation(observation: RobotObservation) -> dict[str, Any]:
    """Returns the map of an observation."""
    frames = {
        name: {"image": frame.image, "captured_at": frame.captured_at}
        for name, frame in observation.frames.items()
    }
    return vars(observation) | {
        "seq": int(observation.seq),
        "applied_seq": int(observation.applied_seq),
        "frames": frames,
        "state": str(observation.state),
        "errors": list(observation.errors),
    }


def read_observation(message: Any) -> RobotObservation:
    """Returns the observation in a map.

    Raises:
        WireError: it is none.
    """
    none = type(None)
    kinds: dict[str, Any] = dict.fromkeys(_OBSERVATION_ARRAYS, np.ndarray)
    kinds |= dict.fromkeys(("gripper", "gripper_width_m", "state_at"), float)
    kinds |= {"seq": int, "applied_seq": int, "frames": dict, "state": str, "errors": list}
    kinds |= {"grasped": (bool, none), "wrench_base": (np.ndarray, none), "reason": (str, none)}
    take(message, kinds)
    frames = {}
    for name, frame in message["frames"].items():
        image, captured_at = take(frame, {"image": np.ndarray, "captured_at": float})
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise _bad(f"frame {name} must be uint8 (height, width, 3), got {image.shape}")
        frames[name] = CameraFrame(image, captured_at)
    wrench, errors = message["wrench_base"], message["errors"]
    if not all(isinstance(error, str) for error in errors):
        raise _bad("errors must be text")
    arrays = {n: _array(message[n], n, shape) for n, shape in _OBSERVATION_ARRAYS.items()}
    return RobotObservation(
        **message
        | arrays
        | {
            "frames": frames,
            "wrench_base": None if wrench is None else _array(wrench, "wrench_base", (6,)),
            "state": read_state(message["state"]),
            "errors": tuple(errors),
        }
    )


def write_command(command: Command) -> dict[str, Any]:
    """Returns the map of a command."""
    return dict(vars(command))


def read_command(message: Any) -> Command:
    """Returns the command in a map. Its kind, numbers and sizes may be wrong.

    Raises:
        WireError: a part is of another type, or there are far too many values.
    """
    seq, obs_seq, valid_for_s, kind, values, gripper = take(
        message,
        {
            "seq": int,
            "obs_seq": int,
            "valid_for_s": float,
            "kind": str,
            "values": np.ndarray,
            "gripper": (float, type(None)),
        },
    )
    if values.ndim != 1 or len(values) > MAX_COMMAND_VALUES:
        raise _bad(f"values must be at most {MAX_COMMAND_VALUES} in a row, got {values.shape}")
    if len(kind) > MAX_TEXT:
        raise _bad(f"kind may have {MAX_TEXT} characters, got {len(kind)}")
    return Command(seq, obs_seq, valid_for_s, kind, values, gripper)


def write_ack(ack: Ack) -> dict[str, Any]:
    """Returns the map of an answer to a command."""
    return {
        "seq": ack.seq,
        "accepted": ack.accepted,
        "applied": None if ack.applied is None else write_command(ack.applied),
        "clamped": list(ack.clamped),
        "reason": ack.reason,
        "state": str(ack.state),
    }


def read_ack(message: Any) -> Ack:
    """Returns the answer to a command that is in a map.

    Raises:
        WireError: it is none.
    """
    none = type(None)
    seq, accepted, applied, clamped, reason, state = take(
        message,
        {
            "seq": int,
            "accepted": bool,
            "applied": (dict, none),
            "clamped": list,
            "reason": (str, none),
            "state": str,
        },
    )
    if not all(isinstance(name, str) for name in clamped):
        raise _bad("clamped must be text")
    command = None if applied is None else read_command(applied)
    return Ack(seq, accepted, command, tuple(clamped), reason, read_state(state))


def read_state(text: str) -> RobotState:
    """Returns a state by its name.

    Raises:
        WireError: there is no such state.
    """
    if text not in list(RobotState):
        raise _bad(f"unknown state {text!r:.40}")
    return RobotState(text)


def read_duration(value: Any, name: str) -> float:
    """Returns a duration [s] that is not negative; it may be infinite.

    Raises:
        WireError: it is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise _bad(f"{name} must be a duration in seconds, got {value!r:.40}")
    return float(value)


def read_time(value: Any, name: str) -> float:
    """Returns a time on a monotonic clock [s].

    Raises:
        WireError: it is no finite number.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not math.isfinite(value):
        raise _bad(f"{name} must be a time in seconds, got {value!r:.40}")
    return float(value)


def _array(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind != "f":
        raise _bad(f"{name} must be real numbers of shape {shape}")
    return value.astype(np.float64)


def _bad(detail: str) -> WireError:
    return WireError("bad_request", detail)
