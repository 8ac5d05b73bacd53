"""Two dialects of one wire: openpi's DROID clients and RoboArena's, as one plain request and back.

A message with an ``endpoint`` is RoboArena's, any other openpi's. Both are sent the same metadata,
RoboArena's six keys and no more, for its self-test refuses others. Keys that are not used, such as
stereo images, and the wrist's where the model does not see it, are left alone.

RoboArena's own parts disagree in two places, and both sides are served. Exterior cameras are
counted from 0 (server, self-test) or from 1 (evaluator): the first one is meant either way. The
answer is a bare array (server, self-test) or a map with ``actions`` (evaluator): a setting.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from worldmodel.envs.robots.wire import pack
from worldmodel.serving.chunks import ACTION_SPACES, ActionSpace, Chunk

Dialect = Literal["openpi", "roboarena"]
ReplyStyle = Literal["map", "array"]

OPENPI_ROWS = 10  # the DROID script takes exactly so many, and executes eight
LARGEST_IMAGE = 1280  # pixels a side
GRIPPER_TOLERANCE = 0.05  # a measured gripper may lie so far outside [0, 1]
RESET_REPLY = "reset successful"

CAMERAS = ("exterior", "wrist")  # of a request, as the settings name them
WRIST = "observation/wrist_image_left"

_EXTERIOR = re.compile(r"observation/exterior_image_(\d)_left")


class RequestError(ValueError):
    """A request that cannot be served; its text is sent to the client.

    Attributes:
        code: a short name such as "bad_request" or "unknown_goal".
    """

    def __init__(self, code: str, detail: str):
        super().__init__(f"{code}: {detail}")
        self.code = code


@dataclass(frozen=True, eq=False)
class Request:
    """What a robot sees and where it is, whichever dialect said so.

    Attributes:
        dialect: who asks.
        image: of the first exterior camera, RGB.
        wrist: of the wrist camera; None when it was not asked for.
        joints: measured [rad].
        gripper: measured, 0 open, 1 closed.
        flange: measured position [m] and extrinsic xyz Euler angles [rad] of link 8 in the base
            frame; None when not sent.
        prompt: name of the goal.
    """

    dialect: Dialect
    image: UInt8[np.ndarray, "height width 3"]
    joints: Float[np.ndarray, "7"]
    gripper: float
    flange: Float[np.ndarray, "6"] | None
    prompt: str
    wrist: UInt8[np.ndarray, "_ _ 3"] | None = None

    def picture(self, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the picture of one of `CAMERAS`.

        Raises:
            RequestError: it is the wrist's, and was not asked for.
        """
        picture = {"exterior": self.image, "wrist": self.wrist}[camera]
        if picture is None:
            raise RequestError("bad_image", f"{WRIST} is missing")
        return picture


@dataclass(frozen=True)
class Reset:
    """An episode of RoboArena is over."""


def metadata(
    *,
    image_size: int | None,
    action_space: ActionSpace,
    cameras: Collection[str] = ("exterior",),
) -> dict[str, Any]:
    """Returns what a client is told when it connects.

    Args:
        image_size: height and width to which it should resize its images; None is not at all.
        action_space: what RoboArena's client should take the rows for.
        cameras: of `CAMERAS`, those whose pictures it is to send.

    Raises:
        ValueError: the action space is unknown.
    """
    if action_space not in ACTION_SPACES:
        raise ValueError(
            f"action_space must be one of {', '.join(ACTION_SPACES)}, got {action_space!r}"
        )
    return {
        "image_resolution": None if image_size is None else [image_size, image_size],
        "needs_wrist_camera": "wrist" in cameras,
        "n_external_cameras": 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": action_space,
    }


def read_request(message: Any, *, wrist: bool = False) -> Request | Reset:
    """Returns what a decoded message asks for.

    Args:
        message: from a client.
        wrist: whether it must have a picture of the wrist camera, too.

    Raises:
        RequestError: something is missing, of another type or shape, or not finite.
    """
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise RequestError("bad_request", f"expected a map, got a {type(message).__name__}")
    endpoint = message.get("endpoint", "infer")
    if endpoint == "reset":
        return Reset()
    if not isinstance(endpoint, str) or endpoint != "infer":
        raise RequestError("bad_request", "endpoint must be 'infer' or 'reset'")
    flange = None
    if "observation/cartesian_position" in message:
        flange = _numbers(message, "observation/cartesian_position", 6)
    return Request(
        dialect="roboarena" if "endpoint" in message else "openpi",
        image=_image(message, _first_camera(message)),
        joints=_numbers(message, "observation/joint_position", 7),
        gripper=_gripper(message),
        flange=flange,
        prompt=_prompt(message),
        wrist=_image(message, WRIST) if wrist else None,
    )


def write_reply(
    chunk: Chunk, *, dialect: Dialect, timing: Mapping[str, float], style: ReplyStyle
) -> bytes:
    """Returns the frame that answers a request.

    Args:
        chunk: what to do; openpi's rows are joint velocities, and are filled up with zeros.
        dialect: of the request.
        timing: "infer_ms" and, from the second request of a connection on, "prev_total_ms".
        style: of RoboArena's answer.
    """
    rows = chunk.rows
    if dialect == "openpi":
        rest = np.zeros((OPENPI_ROWS - len(rows), rows.shape[1]))
        rest[:, -1] = chunk.gripper
        rows = np.concatenate([rows, rest])
    elif style == "array":
        return pack(rows)
    return pack(
        {
            "actions": rows,
            "server_timing": dict(timing),
            "policy_timing": {"infer_ms": timing["infer_ms"]},
            "notes": list(chunk.notes),
        }
    )


def _first_camera(message: Mapping[str, Any]) -> str:
    numbers = sorted(int(found[1]) for key in message if (found := _EXTERIOR.fullmatch(key)))
    if not numbers or numbers[0] > 1:
        raise RequestError("bad_image", "observation/exterior_image_1_left (or _0_) is missing")
    return f"observation/exterior_image_{numbers[0]}_left"


def _image(message: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in message:
        raise RequestError("bad_image", f"{key} is missing")
    image = message[key]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        raise RequestError("bad_image", f"{key} must be a uint8 array, got {_describe(image)}")
    height, width, channels = image.shape
    if channels != 3 or not (1 <= height <= LARGEST_IMAGE and 1 <= width <= LARGEST_IMAGE):
        raise RequestError(
            "bad_image",
            f"{key} must be (height, width, 3) of at most {LARGEST_IMAGE} pixels a side, got "
            f"{_describe(image)}",
        )
    return image


def _numbers(message: Mapping[str, Any], key: str, size: int) -> np.ndarray:
    if key not in message:
        raise RequestError("bad_request", f"{key} is missing")
    values = message[key]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        raise RequestError("bad_request", f"{key} must be an array, got {_describe(values)}")
    if values.shape != (size,):
        raise RequestError("bad_request", f"{key} must be ({size},), got {_describe(values)}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise RequestError("not_finite", f"{key} holds NaN or infinity")
    return values


def _gripper(message: Mapping[str, Any]) -> float:
    key = "observation/gripper_position"
    (value,) = _numbers(message, key, 1)
    if not -GRIPPER_TOLERANCE <= value <= 1 + GRIPPER_TOLERANCE:
        raise RequestError("bad_request", f"{key} must be from 0, open, to 1, got {value:g}")
    return float(np.clip(value, 0.0, 1.0))


def _prompt(message: Mapping[str, Any]) -> str:
    prompt = message.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError("bad_request", "prompt must be the name of a goal")
    return prompt.strip()


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__
