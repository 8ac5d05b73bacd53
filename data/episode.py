"""The episode: what every recording becomes, whatever robot, simulator or log it came from.

`proprio`, `action` and their units are defined in `worldmodel.pose`. T actions sit between T + 1
observations: `actions[t]` is the change from observation t to observation t + 1 as *measured*, not
as commanded, so it means the same for every controller.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike

from worldmodel.pose import GRIPPER, PROPRIO_SIZE, ROTATION, action_between

CAMERA_NAME = re.compile(r"[A-Za-z0-9_-]+")

# Room for float32 arithmetic on the pose, far below what a robot or a camera can resolve.
POSITION_TOLERANCE = 1e-4  # m, and gripper units
ROTATION_TOLERANCE = 1e-3  # rad

JsonValue = str | int | float | list[str]


@dataclass(frozen=True)
class EpisodeMetadata:
    """Where an episode comes from.

    Attributes:
        source: What recorded it, such as "simulation" or "droid".
        task: Gymnasium id of the environment, or the recording's own task text.
        behaviour: Who chose the actions, such as "scripted", "noisy" or "teleoperation".
        seed: Seed that reproduces the episode; -1 for a recording that has none.
        control_hz: Declared control rate [Hz]; `timestamps` have the last word.
        renderer: Image backend, "gl" or "ray"; "" for real cameras.
        mujoco_version: Simulator version; "" for a real robot.
        cameras: Camera names, in the order of `Episode.frames`.
    """

    source: str
    task: str
    behaviour: str
    seed: int
    control_hz: float
    renderer: str
    mujoco_version: str
    cameras: tuple[str, ...]

    def to_json(self) -> dict[str, JsonValue]:
        """Returns a dictionary of JSON values that `from_json` reads back to an equal object."""
        return {
            "source": self.source,
            "task": self.task,
            "behaviour": self.behaviour,
            "seed": self.seed,
            "control_hz": self.control_hz,
            "renderer": self.renderer,
            "mujoco_version": self.mujoco_version,
            "cameras": list(self.cameras),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "EpisodeMetadata":
        """Reads what `to_json` wrote.

        Raises:
            KeyError: A field is unknown or missing.
            TypeError: A field has the wrong type.
        """
        known = [field.name for field in fields(cls)]
        for key in record:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known fields: {known}"
                raise KeyError(f"unknown episode metadata field '{key}'{hint}")
        missing = [name for name in known if name not in record]
        if missing:
            raise KeyError(f"episode metadata lacks {missing}")
        cameras = record["cameras"]
        if not isinstance(cameras, list) or not all(isinstance(name, str) for name in cameras):
            raise TypeError(f"metadata field 'cameras' must be a list of names, got {cameras!r}")
        return cls(
            source=_text(record, "source"),
            task=_text(record, "task"),
            behaviour=_text(record, "behaviour"),
            seed=int(_number(record, "seed")),
            control_hz=float(_number(record, "control_hz")),
            renderer=_text(record, "renderer"),
            mujoco_version=_text(record, "mujoco_version"),
            cameras=tuple(cameras),
        )


@dataclass(frozen=True)
class Episode:
    """One recorded run from reset to end: T actions between T + 1 observations.

    Attributes:
        frames: Camera name -> uint8 RGB (T + 1, height, width, 3).
        proprio: float32 (T + 1, 7): x, y, z [m], roll, pitch, yaw [rad], gripper in [0, 1].
        actions: float32 (T, 7): measured change of `proprio` over each step.
        timestamps: float64 (T + 1,): capture times [s] of a monotonic clock.
        metadata: Where the episode comes from.
    """

    frames: dict[str, np.ndarray]
    proprio: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray
    metadata: EpisodeMetadata

    @property
    def steps(self) -> int:
        """Number of actions, T."""
        return len(self.actions)


def find_problems(episode: Episode) -> list[str]:
    """Returns what is wrong with an episode, one sentence per problem; an empty list if nothing.

    Values are checked only where dtypes and shapes allow it, so one mistake gives one sentence.
    """
    problems = _layout_problems(episode)
    if problems:
        return problems
    return _value_problems(episode)


def validate(episode: Episode, *, name: str = "episode") -> None:
    """Raises ValueError naming `name` and everything that `find_problems` finds."""
    problems = find_problems(episode)
    if problems:
        raise ValueError(f"{name}: " + "; ".join(problems))


def _layout_problems(episode: Episode) -> list[str]:
    problems = []
    for label, array, dtype in (
        ("proprio", episode.proprio, np.float32),
        ("actions", episode.actions, np.float32),
        ("timestamps", episode.timestamps, np.float64),
    ):
        if array.dtype != dtype:
            problems.append(f"{label} is {array.dtype}; expected {np.dtype(dtype)}")
        shape = ("steps",) if label == "timestamps" else ("steps", PROPRIO_SIZE)
        if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            problems.append(
                f"{label} has shape {array.shape}; expected ({', '.join(map(str, shape))})"
            )
    if problems:
        return problems

    observations = len(episode.proprio)
    if len(episode.actions) < 1:
        problems.append("there are no actions; an episode has at least one step")
    if observations != len(episode.actions) + 1:
        problems.append(
            f"actions have {len(episode.actions)} steps but proprio has {observations}; "
            "expected one more observation than actions"
        )
    if len(episode.timestamps) != observations:
        problems.append(
            f"timestamps have {len(episode.timestamps)} entries but proprio has {observations}"
        )
    if not episode.frames:
        problems.append("there are no cameras; expected frames of at least one")
    if episode.metadata.cameras != tuple(episode.frames):
        problems.append(
            f"metadata names cameras {list(episode.metadata.cameras)} "
            f"but frames are of {list(episode.frames)}"
        )
    for camera, frames in episode.frames.items():
        if not CAMERA_NAME.fullmatch(camera):
            problems.append(
                f"camera name {camera!r} must consist of letters, digits, '_' and '-' only"
            )
        if frames.dtype != np.uint8:
            problems.append(f"frames of camera '{camera}' are {frames.dtype}; expected uint8 RGB")
        if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            problems.append(
                f"frames of camera '{camera}' have shape {frames.shape}; "
                "expected (steps, height, width, 3)"
            )
        elif len(frames) != observations:
            problems.append(
                f"camera '{camera}' has {len(frames)} frames but proprio has {observations}; "
                "expected one frame per observation"
            )
    return problems


def _value_problems(episode: Episode) -> list[str]:
    problems = []
    if not (np.isfinite(episode.metadata.control_hz) and episode.metadata.control_hz > 0):
        problems.append(f"control_hz is {episode.metadata.control_hz}; expected a positive rate")
    for label, array in (
        ("proprio", episode.proprio),
        ("actions", episode.actions),
        ("timestamps", episode.timestamps),
    ):
        bad = np.logical_not(np.isfinite(array.reshape(len(array), -1))).any(axis=1)
        if bad.any():
            problems.append(f"{label} is not finite at step {_first(bad)} ({bad.sum()} steps)")
    if problems:
        return problems

    gripper = episode.proprio[:, GRIPPER][:, 0]
    bad = (gripper < 0) | (gripper > 1)
    if bad.any():
        problems.append(
            f"gripper is {gripper[bad][0]:.4g} at step {_first(bad)}; "
            "expected 0 (open) to 1 (closed), not metres or percent"
        )
    angles = np.abs(episode.proprio[:, ROTATION]).max(axis=1)
    bad = angles > np.float32(np.pi)
    if bad.any():
        problems.append(
            f"an angle is {angles[bad][0]:.4g} at step {_first(bad)}; "
            "expected radians within [-pi, pi]"
        )
    bad = np.diff(episode.timestamps) <= 0
    if bad.any():
        problems.append(
            f"timestamps do not increase from step {_first(bad)} to {_first(bad) + 1}; "
            "expected seconds of a monotonic clock"
        )
    if not problems:
        problems += _action_problems(episode)
    return problems


def _action_problems(episode: Episode) -> list[str]:
    proprio = episode.proprio.astype(np.float64)
    error = np.abs(action_between(proprio[:-1], proprio[1:]) - episode.actions)
    # A rotation by pi may be written with either sign.
    error[:, ROTATION] = np.minimum(error[:, ROTATION], 2 * np.pi - error[:, ROTATION])
    tolerance = np.full(PROPRIO_SIZE, POSITION_TOLERANCE)
    tolerance[ROTATION] = ROTATION_TOLERANCE
    bad = (error > tolerance).any(axis=1)
    if not bad.any():
        return []
    step = _first(bad)
    worst = int((error[step] / tolerance).argmax())
    axis = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")[worst]
    return [
        f"actions differ from the measured change of proprio at step {step} "
        f"({axis} by {error[step, worst]:.3g}; {bad.sum()} steps); "
        "expected action_between(proprio[t], proprio[t + 1])"
    ]


def _first(mask: ArrayLike) -> int:
    return int(np.flatnonzero(mask)[0])


def _text(record: Mapping[str, object], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"metadata field '{key}' must be text, got {value!r}")
    return value


def _number(record: Mapping[str, object], key: str) -> int | float:
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"metadata field '{key}' must be a number, got {value!r}")
    return value
