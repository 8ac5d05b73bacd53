"""The episode: what every recording becomes, whatever robot, simulator or log it came from.

`proprio`, `action` and their units are defined in `worldmodel.pose`. T actions sit between T + 1
observations: `actions[t]` is the change from observation t to observation t + 1 as *measured*, not
as commanded, so it means the same for every controller. After the last observation nothing was
done that anybody saw the result of, so there is no last action, whatever a log has in that row.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from worldmodel.data.frames import Frames
from worldmodel.pose import GRIPPER, PROPRIO_SIZE, ROTATION, action_between

CAMERA_NAME = re.compile(r"[A-Za-z0-9_-]+")

JsonValue = str | int | float | bool | None | list[str]

ADDED_IN_VERSION_2: dict[str, JsonValue] = {
    "name": "",
    "success": None,
    "robot": "franka",
    "clock": "measured",
}


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
        name: What the recording calls itself, such as a path or a uuid; "" where it has none.
        success: Whether the task was done, where somebody said so.
        robot: Which arm, such as "franka".
        clock: "measured" if `timestamps` were logged, "declared" if they are counted from a rate.
        variation: How a simulated scene differed from the plain one, see
            `worldmodel.envs.variation`; "none" for a plain one, and for a real robot.
    """

    source: str
    task: str
    behaviour: str
    seed: int
    control_hz: float
    renderer: str
    mujoco_version: str
    cameras: tuple[str, ...]
    name: str = ""
    success: bool | None = None
    robot: str = "franka"
    clock: Literal["measured", "declared"] = "measured"
    variation: str = "none"

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
            "name": self.name,
            "success": self.success,
            "robot": self.robot,
            "clock": self.clock,
            "variation": self.variation,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "EpisodeMetadata":
        """Reads what `to_json` wrote; a record of schema version 1 lacks the last four fields.

        Raises:
            KeyError: A field is unknown or missing.
            TypeError: A field has the wrong type.
        """
        known = [entry.name for entry in fields(cls)]
        if not any(name in record for name in ADDED_IN_VERSION_2):
            record = {**record, **ADDED_IN_VERSION_2}
        record = {"variation": "none", **record}  # older records come from plain scenes
        for key in record:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known fields: {known}"
                raise KeyError(f"unknown episode metadata field '{key}'{hint}")
        missing = [name for name in known if name not in record]
        if missing:
            raise KeyError(f"episode metadata lacks {missing}")
        success, clock = record["success"], record["clock"]
        if success is not None and not isinstance(success, bool):
            raise TypeError(
                f"metadata field 'success' must be true, false or null, got {success!r}"
            )
        if clock not in ("measured", "declared"):
            raise TypeError(f"metadata field 'clock' must be measured or declared, got {clock!r}")
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
            name=_text(record, "name"),
            success=success,
            robot=_text(record, "robot"),
            clock=clock,
            variation=_text(record, "variation"),
        )


@dataclass(frozen=True)
class Episode:
    """One recorded run from reset to end: T actions between T + 1 observations.

    Attributes:
        frames: Camera name -> uint8 RGB (T + 1, height, width, 3), read when asked for.
        proprio: float32 (T + 1, 7): x, y, z [m], roll, pitch, yaw [rad], gripper in [0, 1].
        timestamps: float64 (T + 1,): capture times [s] of a monotonic clock.
        metadata: Where the episode comes from.
        joints: float32 (T + 1, joints): measured joint angles [rad], where logged.
        logged_actions: Name -> float32 (T + 1, size): what was commanded at each observation, in
            the recording's own units; the last row had no effect that was seen.
        usable: bool (T + 1,): False where the operator had let go or the log says to leave out;
            None where nothing says so.
    """

    frames: Mapping[str, Frames]
    proprio: np.ndarray
    timestamps: np.ndarray
    metadata: EpisodeMetadata
    joints: np.ndarray | None = None
    logged_actions: Mapping[str, np.ndarray] = field(default_factory=dict)
    usable: np.ndarray | None = None

    @cached_property
    def actions(self) -> np.ndarray:
        """float32 (T, 7): measured change of `proprio` over each step."""
        proprio = self.proprio.astype(np.float64)
        return action_between(proprio[:-1], proprio[1:]).astype(np.float32)

    @property
    def steps(self) -> int:
        """Number of actions, T."""
        return len(self.proprio) - 1

    def joints_and_gripper(self, *, name: str) -> np.ndarray:
        """Returns float32 (T + 1, joints + 1): what an arm speaks in that does not speak in poses.

        Args:
            name: What to call the episode in an error.

        Raises:
            ValueError: No joints were logged.
        """
        if self.joints is None:
            raise ValueError(
                f"{name} has no joints, and an embodiment of its own speaks in them; name their "
                "columns in the mapping (joints, docs/data.md), or leave embodiment out"
            )
        return np.concatenate([self.joints, self.proprio[:, GRIPPER]], axis=1).astype(np.float32)


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
    if observations < 2:
        problems.append(
            f"there are {observations} observations; an episode has at least one step, so two"
        )
    if len(episode.timestamps) != observations:
        problems.append(
            f"timestamps have {len(episode.timestamps)} entries but proprio has {observations}"
        )
    optional = {"joints": episode.joints, "usable": episode.usable}
    optional |= {f"logged action '{name}'": a for name, a in episode.logged_actions.items()}
    for name in episode.logged_actions:
        if not CAMERA_NAME.fullmatch(name):
            problems.append(
                f"logged action {name!r} must be named by letters, digits, '_' and '-' only"
            )
    for label, array in optional.items():
        if array is not None and len(array) != observations:
            problems.append(f"{label} has {len(array)} rows but proprio has {observations}")
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
        if isinstance(frames, np.ndarray) and frames.dtype != np.uint8:
            problems.append(f"frames of camera '{camera}' are {frames.dtype}; expected uint8 RGB")
        if len(frames.shape) != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
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
    return problems


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
