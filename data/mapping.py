"""Which column of a recording means what: from anyone's keys, units and conventions to `Episode`.

Every format is read in two steps. Its reader gives a `RawEpisode`: columns and cameras under the
names and with the values that the file has. A `ColumnMapping` says what they mean, and `to_episode`
converts them, the same way for all. Formats with a schema bring their mapping along; for one's own
logs it is a few lines of YAML:

    hz: 15
    position: {key: [x, y, z], unit: mm}
    rotation: {key: [rx, ry, rz], form: euler_xyz, unit: deg}
    gripper: {key: width, open: 80, closed: 0}
    cameras: {exterior: front}
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from worldmodel.data.episode import CAMERA_NAME, Episode, EpisodeMetadata
from worldmodel.data.frames import ChosenFrames, Frames
from worldmodel.data.resample import (
    gap_around,
    hold,
    interpolate_linear,
    interpolate_proprio,
    nearest,
)
from worldmodel.data.rotations import SIZES, to_matrix
from worldmodel.franka_arm import hand_pose
from worldmodel.names import nearest as nearest_name
from worldmodel.names import unknown
from worldmodel.pose import matrix_to_euler

LENGTH_UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}  # in metres
ANGLE_UNITS = {"rad": 1.0, "deg": np.pi / 180}  # in radians
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}  # in seconds

MAX_ROWS_TRIMMED = 2  # a camera or a log that stops this much earlier is a known habit, not a fault
GRIPPER_SLACK = 0.05  # sensors overshoot their nominal range by so much; it is clipped
MAX_GAP_S = 0.5  # between two measurements that a row may stand between

Keys = tuple[str, ...]
_KEY = re.compile(r"(?P<name>.*?)(\[(?P<first>-?\d+)(?P<colon>:(?P<last>-?\d*))?\])?")


@dataclass(frozen=True)
class RawEpisode:
    """One recording as its file has it.

    Attributes:
        name: What the recording calls it: a path, a uuid, a number.
        columns: Key -> values (rows, ...), in the file's own units and types.
        cameras: Key -> frames; their number need not be that of the rows.
        attributes: What is said of the episode as a whole; "task" and "success" where known.
    """

    name: str
    columns: Mapping[str, np.ndarray]
    cameras: Mapping[str, Frames]
    attributes: Mapping[str, str | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class PositionColumns:
    """Where the hand is, in the robot base frame: three numbers in "m", "cm" or "mm"."""

    key: Keys
    unit: str = "m"


@dataclass(frozen=True)
class RotationColumns:
    """How the hand is turned: a form of `worldmodel.data.rotations`, angles in "rad" or "deg"."""

    key: Keys
    form: str = "euler_xyz"
    unit: str = "rad"


@dataclass(frozen=True)
class GripperColumns:
    """How far the gripper is closed: one number, which is `open` when open, `closed` when closed.

    Without a key the gripper never moves and is open.
    """

    key: Keys
    open: float = 0.0
    closed: float = 1.0


@dataclass(frozen=True)
class TimeColumns:
    """When a row was measured: one number, in "s", "ms", "us" or "ns" of a monotonic clock."""

    key: Keys
    unit: str = "s"


@dataclass(frozen=True)
class CameraColumns:
    """A camera: its key, and its own clock if its frames do not belong to the rows one by one."""

    key: str
    time: TimeColumns | None = None


@dataclass(frozen=True)
class UsableColumns:
    """Which rows to learn from: a column of truths, or of falsehoods if `inverted`.

    If it is `optional`, a recording without it says nothing of that, and all its rows are used.
    """

    key: Keys
    inverted: bool = False
    optional: bool = False


@dataclass(frozen=True)
class ColumnMapping:
    """What the columns of a recording mean.

    Attributes:
        position: Needed unless the pose comes from the joints.
        rotation: Needed unless the pose comes from the joints.
        gripper: Always needed; say `{key: []}` for a hand that has none.
        time: When rows were measured; without it rows are `1 / hz` apart.
        hz: Declared control rate [Hz]; the only clock of a recording without times.
        joints: Joint angles [rad] or [deg], kept and checked against the pose.
        joints_unit: "rad" or "deg".
        pose_from_joints: "franka" to compute the pose from the joints; "" to read it.
        cameras: Our name of a camera -> where it is.
        actions: Name -> columns of what was commanded, kept as they are.
        usable: Which rows to learn from; all if not given.
        robot: Which arm this is.
    """

    gripper: GripperColumns
    cameras: Mapping[str, CameraColumns]
    position: PositionColumns | None = None
    rotation: RotationColumns | None = None
    time: TimeColumns | None = None
    hz: float | None = None
    joints: Keys = ()
    joints_unit: str = "rad"
    pose_from_joints: str = ""
    actions: Mapping[str, Keys] = field(default_factory=dict)
    usable: UsableColumns | None = None
    robot: str = "franka"

    def __post_init__(self) -> None:
        """Raises ValueError where the mapping contradicts itself."""
        if self.pose_from_joints not in ("", "franka"):
            raise ValueError(f"pose_from_joints must be 'franka', got '{self.pose_from_joints}'")
        if self.pose_from_joints and not self.joints:
            raise ValueError("pose_from_joints needs joints: which columns are the joint angles?")
        if not self.pose_from_joints and (self.position is None or self.rotation is None):
            raise ValueError(
                "a mapping needs position and rotation, or joints and pose_from_joints: franka"
            )
        if not self.cameras:
            raise ValueError("a mapping needs at least one camera")
        for what, names in (("camera", self.cameras), ("action", self.actions)):
            for name in names:
                if not CAMERA_NAME.fullmatch(name):
                    raise ValueError(
                        f"{what} name '{name}' must consist of letters, digits, '_' and '-' only"
                    )
        clocks = [name for name, camera in self.cameras.items() if camera.time is not None]
        if clocks and self.time is None:
            raise ValueError(
                f"camera {clocks[0]} has a clock of its own, so the rows need theirs: give time"
            )
        if self.hz is not None and not _number(self.hz, "hz") > 0:
            raise ValueError(f"hz must be positive, got {self.hz}")
        _number(self.gripper.open, "gripper: open")
        _number(self.gripper.closed, "gripper: closed")
        if self.gripper.open == self.gripper.closed:
            raise ValueError("gripper: open and closed are the same value")
        if self.rotation is not None and self.rotation.form not in SIZES:
            raise ValueError(unknown("form of rotation", self.rotation.form, SIZES))
        for what, value, units in (
            ("unit of position", self.position and self.position.unit, LENGTH_UNITS),
            ("unit of rotation", self.rotation and self.rotation.unit, ANGLE_UNITS),
            ("unit of joints", self.joints_unit, ANGLE_UNITS),
            ("unit of time", self.time and self.time.unit, TIME_UNITS),
        ):
            if value and value not in units:
                raise ValueError(unknown(what, value, units))


def read_mapping(file: str | Path) -> ColumnMapping:
    """Reads a mapping from YAML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML mapping, a name is misspelt or a value makes no sense; the message
            names the file and the nearest name.
    """
    file = Path(file)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    try:
        return mapping_from(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def mapping_from(content: Any) -> ColumnMapping:
    """Returns the mapping that a nested dictionary, as YAML gives it, describes."""
    settings = _checked(ColumnMapping, content, "a mapping")
    parts: dict[str, type] = {
        "position": PositionColumns,
        "rotation": RotationColumns,
        "gripper": GripperColumns,
        "time": TimeColumns,
        "usable": UsableColumns,
    }
    for name, part in parts.items():
        if settings.get(name) is not None:
            settings[name] = _columns(part, settings[name], name)
    if "joints" in settings:
        settings["joints"] = _keys(settings["joints"], "joints")
    cameras = _dictionary(settings.get("cameras", {}), "cameras")
    settings["cameras"] = {name: _camera(value, name) for name, value in cameras.items()}
    actions = _dictionary(settings.get("actions", {}), "actions")
    settings["actions"] = {name: _keys(value, name) for name, value in actions.items()}
    if "gripper" not in settings:
        raise ValueError("a mapping needs gripper; write gripper: {key: []} for a hand without one")
    return ColumnMapping(**settings)


def column(raw: RawEpisode, keys: Keys) -> np.ndarray:
    """Returns the columns `keys` side by side, (rows, size).

    A key is a name, a name and an entry such as "state[6]", or a name and a range such as
    "state[0:3]".

    Raises:
        ValueError: The recording has no such column; the message names the nearest.
    """
    parts = []
    for key in keys:
        found = _KEY.fullmatch(key)
        name = key if key in raw.columns or found is None else found["name"]
        if name not in raw.columns:
            have = ", ".join(f"{k} {v.shape}" for k, v in raw.columns.items())
            raise ValueError(
                f"{raw.name} has no column '{name}';{nearest_name(name, raw.columns)} "
                f"it has {have or 'none'}"
            )
        values = np.asarray(raw.columns[name])
        values = values.reshape(len(values), int(np.prod(values.shape[1:])))
        if name != key and found is not None:
            first = int(found["first"])
            last = first + 1 if found["colon"] is None else int(found["last"] or values.shape[1])
            if not 0 <= first < last <= values.shape[1]:
                raise ValueError(
                    f"'{key}' of {raw.name} reaches beyond the {values.shape[1]} numbers of a row"
                )
            values = values[:, first:last]
        parts.append(values)
    lengths = {len(part) for part in parts}
    if len(lengths) > 1:
        raise ValueError(f"columns {list(keys)} of {raw.name} have different lengths: {lengths}")
    return np.concatenate(parts, axis=1)


def to_episode(raw: RawEpisode, mapping: ColumnMapping, *, source: str) -> Episode:
    """Returns the episode that a recording is, in our units and conventions.

    Rows that a log or a camera has more than the others are cut off if they are at most
    `MAX_ROWS_TRIMMED`. If cameras have clocks of their own, the frames of the first such camera
    become the rows, and the poses are interpolated to their times. Cameras that this recording
    does not have are left out, as long as there is one.

    Args:
        raw: The recording.
        mapping: What its columns mean.
        source: Name of the format, for the metadata.

    Raises:
        ValueError: A column or camera is missing, has the wrong size, or the lengths differ.
    """
    pose, closed = _pose(raw, mapping), _closed(raw, mapping)
    per_row: dict[str, np.ndarray] = {}
    if mapping.joints:
        per_row["joints"] = column(raw, mapping.joints) * ANGLE_UNITS[mapping.joints_unit]
    for name, keys in mapping.actions.items():
        per_row[f"action/{name}"] = column(raw, keys)
    if mapping.usable is not None and not (
        mapping.usable.optional and not any(key in raw.columns for key in mapping.usable.key)
    ):
        flags = column(raw, mapping.usable.key).astype(bool).all(axis=1)
        per_row["usable"] = np.logical_xor(flags, mapping.usable.inverted)
    timestamps = _timestamps(raw, mapping, rows=len(pose))
    cameras = {name: c for name, c in mapping.cameras.items() if c.key in raw.cameras}
    if not cameras:
        have = ", ".join(raw.cameras) or "none"
        wanted = ", ".join(camera.key for camera in mapping.cameras.values())
        raise ValueError(f"{raw.name} has no camera of {wanted}; it has {have}")
    frames: dict[str, Frames] = {name: raw.cameras[c.key] for name, c in cameras.items()}
    clocks = {
        name: _camera_times(raw, name, camera.time, frames=len(frames[name]))
        for name, camera in cameras.items()
        if camera.time is not None
    }

    lengths = {"pose": len(pose), "time": len(timestamps)}
    if closed is not None:
        lengths["gripper"] = len(closed)
    lengths |= {name: len(values) for name, values in per_row.items()}
    lengths |= {f"camera {n}": len(f) for n, f in frames.items() if n not in clocks}
    rows = min(lengths.values())
    if max(lengths.values()) - rows > MAX_ROWS_TRIMMED:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{raw.name}: rows do not match: {listed}")
    closed = np.zeros((rows, 1)) if closed is None else closed[:rows]
    proprio, timestamps = np.concatenate([pose[:rows], closed], axis=1), timestamps[:rows]
    per_row = {name: values[:rows] for name, values in per_row.items()}

    if clocks:
        at = _common_times(raw, timestamps, clocks)
        chosen = nearest(timestamps, at)
        proprio = interpolate_proprio(timestamps, proprio, at)
        per_row = {
            name: interpolate_linear(timestamps, values, at)
            if name == "joints"
            else hold(timestamps, values, at)
            for name, values in per_row.items()
        }
        frames = {
            name: ChosenFrames(f, nearest(clocks[name], at) if name in clocks else chosen)
            for name, f in frames.items()
        }
        timestamps = at
    else:
        frames = {
            name: f if len(f) == rows else ChosenFrames(f, range(rows))
            for name, f in frames.items()
        }
    usable = per_row.pop("usable", None)
    joints = per_row.pop("joints", None)
    median_s = float(np.median(np.diff(timestamps))) if len(timestamps) > 1 else 0.0
    success = raw.attributes.get("success")
    if isinstance(success, str):
        raise ValueError(f"{raw.name}: success must be true, false or nothing, got {success!r}")
    return Episode(
        frames=frames,
        proprio=proprio.astype(np.float32),
        timestamps=timestamps,
        joints=None if joints is None else joints.astype(np.float32),
        logged_actions={
            name.removeprefix("action/"): values.astype(np.float32)
            for name, values in per_row.items()
        },
        usable=usable,
        metadata=EpisodeMetadata(
            source=source,
            name=raw.name,
            task=str(raw.attributes.get("task") or ""),
            behaviour=str(raw.attributes.get("behaviour") or "recorded"),
            success=None if success is None else bool(success),
            robot=mapping.robot,
            seed=-1,
            control_hz=mapping.hz or (round(1 / median_s, 3) if median_s > 0 else 0.0),
            clock="declared" if mapping.time is None else "measured",
            renderer="",
            mujoco_version="",
            cameras=tuple(frames),
        ),
    )


def check_fits(recordings: Iterable[RawEpisode], mapping: ColumnMapping) -> None:
    """Raises ValueError naming the nearest if a mapping names what none of the recordings has.

    One recording may lack a camera; a camera that all of them lack is misspelt.
    """
    wanted: list[tuple[Callable[[RawEpisode, Any], object], Any]] = [
        *((column, (key,)) for keys in _all_keys(mapping) for key in keys),
        *((_find_camera, camera.key) for camera in mapping.cameras.values()),
    ]
    errors: list[ValueError] = []
    for raw in recordings:
        still, errors = [], []
        for look, key in wanted:
            try:
                look(raw, key)
            except ValueError as error:
                still.append((look, key))
                errors.append(error)
        wanted = still
        if not wanted:
            return
    if errors:
        raise errors[0]


def template(raw: RawEpisode) -> str:
    """Returns the YAML of a mapping to fill in, with the columns that a recording has."""
    columns = "\n".join(f"#   {key}: {v.dtype} {v.shape}" for key, v in raw.columns.items())
    shapes = "\n".join(f"#   {key}: {frames.shape}" for key, frames in raw.cameras.items())
    cameras = ", ".join(
        f"{re.sub('[^A-Za-z0-9_-]', '_', key)}: {json.dumps(key)}" for key in raw.cameras
    )
    return (
        f"# columns of {raw.name}:\n{columns or '#   none'}\n# cameras:\n{shapes or '#   none'}\n"
        "hz: 15                                    # or time: {key: t, unit: s}\n"
        "position: {key: [x, y, z], unit: m}       # m, cm or mm, in the robot base frame\n"
        "rotation: {key: [rx, ry, rz], form: euler_xyz, unit: rad}\n"
        "gripper: {key: gripper, open: 0, closed: 1}\n"
        f"cameras: {{{cameras or 'exterior: front'}}}\n"
    )


def _pose(raw: RawEpisode, mapping: ColumnMapping) -> np.ndarray:
    """Returns position [m] and extrinsic xyz Euler angles [rad], (rows, 6)."""
    if mapping.pose_from_joints:
        joints = column(raw, mapping.joints) * ANGLE_UNITS[mapping.joints_unit]
        position, matrix = hand_pose(joints)
    else:
        assert mapping.position is not None and mapping.rotation is not None
        position = _sized(raw, mapping.position.key, 3, "a position")
        position = position * LENGTH_UNITS[mapping.position.unit]
        form = mapping.rotation.form
        values = _sized(raw, mapping.rotation.key, SIZES[form], f"a rotation as {form}")
        if form.startswith("euler_") or form == "rotvec":
            values = values * ANGLE_UNITS[mapping.rotation.unit]
        try:
            matrix = to_matrix(values, form)
        except ValueError as error:
            raise ValueError(f"{raw.name}: {error}") from error
    if len(position) != len(matrix):
        raise ValueError(f"{raw.name}: {len(position)} positions but {len(matrix)} rotations")
    return np.concatenate([position, matrix_to_euler(matrix)], axis=1)


def _closed(raw: RawEpisode, mapping: ColumnMapping) -> np.ndarray | None:
    """Returns how far the gripper is closed, (rows, 1); None if there is none."""
    if not mapping.gripper.key:
        return None
    value = _sized(raw, mapping.gripper.key, 1, "a gripper")
    closed = (value - mapping.gripper.open) / (mapping.gripper.closed - mapping.gripper.open)
    slight = (closed > -GRIPPER_SLACK) & (closed < 1 + GRIPPER_SLACK)
    return np.where(slight, closed.clip(0, 1), closed)


def _sized(raw: RawEpisode, keys: Keys, size: int, what: str) -> np.ndarray:
    values = column(raw, keys)
    if values.shape[1] != size:
        raise ValueError(
            f"{what} has {size} numbers, but {list(keys)} of {raw.name} has {values.shape[1]}"
        )
    return values.astype(np.float64)


def _timestamps(raw: RawEpisode, mapping: ColumnMapping, *, rows: int) -> np.ndarray:
    if mapping.time is not None:
        return _seconds(raw, mapping.time)
    if mapping.hz is None:
        raise ValueError(
            f"{raw.name} has no times and nothing says its rate; say it with hz=..., in Hz "
            "(never the frame rate that a video file declares, unless you have checked it)"
        )
    return np.arange(rows) / mapping.hz


def _seconds(raw: RawEpisode, time: TimeColumns) -> np.ndarray:
    return _sized(raw, time.key, 1, "a time")[:, 0] * TIME_UNITS[time.unit]


def _camera_times(raw: RawEpisode, name: str, time: TimeColumns, *, frames: int) -> np.ndarray:
    """Returns the capture times of a camera's frames."""
    clock = _seconds(raw, time)
    if abs(len(clock) - frames) > MAX_ROWS_TRIMMED:
        raise ValueError(
            f"{raw.name}: camera {name} has {frames} frames but its clock {list(time.key)} has "
            f"{len(clock)} times"
        )
    return clock[:frames]


def _common_times(
    raw: RawEpisode, timestamps: np.ndarray, clocks: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Returns the first camera's capture times at which pose and other cameras are known."""
    for what, times in {"the rows": timestamps, **clocks}.items():
        if not len(times):
            raise ValueError(f"{raw.name}: the clock of {what} has no times")
        back = np.flatnonzero(~(np.diff(times) >= 0))
        if len(back):
            raise ValueError(
                f"{raw.name}: the clock of {what} goes from {times[back[0]]:.6f} to "
                f"{times[back[0] + 1]:.6f} s at row {back[0] + 1}; poses and frames can only be "
                "brought together by clocks that never go back"
            )
    first = next(iter(clocks.values()))
    begin = max(timestamps[0], *(clock[0] for clock in clocks.values()))
    end = min(timestamps[-1], *(clock[-1] for clock in clocks.values()))
    at = first[(first >= begin) & (first <= end)]
    for times in (timestamps, *clocks.values()):
        at = at[gap_around(times, at) <= MAX_GAP_S]
    if len(at) < 2:
        raise ValueError(
            f"{raw.name}: poses ({timestamps[0]:.3f} to {timestamps[-1]:.3f} s) and camera frames "
            f"({first[0]:.3f} to {first[-1]:.3f} s) do not overlap; are they of one clock, and "
            "are the units right?"
        )
    return at


def _find_camera(raw: RawEpisode, key: str) -> None:
    if key not in raw.cameras:
        have = ", ".join(raw.cameras) or "none"
        raise ValueError(
            f"{raw.name} has no camera '{key}';{nearest_name(key, raw.cameras)} it has {have}"
        )


def _all_keys(mapping: ColumnMapping) -> list[Keys]:
    parts = (mapping.position, mapping.rotation, mapping.gripper, mapping.time, mapping.usable)
    clocks = [camera.time for camera in mapping.cameras.values()]
    keys = [part.key for part in (*parts, *clocks) if part is not None]
    return [*keys, mapping.joints, *mapping.actions.values()]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        hint = " (to YAML, 8e-2 is text and 0.08 a number)" if isinstance(value, str) else ""
        raise ValueError(f"{what} must be a number, got {value!r}{hint}")
    return value


def _checked(cls: type, content: Any, what: str) -> dict[str, Any]:
    known = [f.name for f in fields(cls)]
    settings = _dictionary(content, what)
    for name in settings:
        if name not in known:
            raise ValueError(
                f"{what} has no '{name}';{nearest_name(name, known)} it may have {', '.join(known)}"
            )
    return settings


def _columns(cls: type, content: Any, what: str) -> Any:
    if not isinstance(content, dict):
        content = {"key": content}
    settings = _checked(cls, content, what)
    if "key" not in settings:
        raise ValueError(f"{what} needs a key: which column?")
    settings["key"] = _keys(settings["key"], what)
    if not settings["key"] and cls is not GripperColumns:
        raise ValueError(f"{what} needs a key: which column?")
    return cls(**settings)


def _camera(content: Any, name: str) -> CameraColumns:
    if isinstance(content, str):
        return CameraColumns(content)
    settings = _checked(CameraColumns, content, f"camera {name}")
    if "key" not in settings:
        raise ValueError(f"camera {name} needs a key: which video or column of images?")
    if settings.get("time") is not None:
        settings["time"] = _columns(TimeColumns, settings["time"], f"time of camera {name}")
    return CameraColumns(**settings)


def _keys(content: Any, what: str) -> Keys:
    names = [content] if isinstance(content, str) else content
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what}: a key is a name or a list of names, got {content!r}")
    return tuple(names)


def _dictionary(content: Any, what: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{what} must be names and values, got {content!r}")
    return dict(content)
