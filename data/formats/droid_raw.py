"""DROID as it was recorded: a folder of HDF5, MP4 and JSON for every episode.

    <lab>/<success|failure>/<date>/<day and time>/
      trajectory.h5                    a row for every control step, T of them
      metadata_<uuid>.json             serial numbers of the cameras, the task
      recordings/MP4/<serial>.mp4      a frame for every row; some are missing, some a frame short
      recordings/MP4/<serial>-stereo.mp4    both eyes side by side: the left half is read

Columns are called as in the HDF5 file, with dots: `observation.robot_state.cartesian_position`.
The hand's pose is in m and rad about fixed axes x, y, z; the gripper is 0 open and 1 closed; times
are in ms. `observation.robot_state` is read just before the cameras are, so its `read_start` is the
time of a row. The frame rate in the MP4s is that of the camera's mode, 60, though the camera was
asked once per control step, at about 15 Hz: it is not used.

Which exterior camera is "1" and which is "2" follows from their serial numbers and means nothing.
So beside `exterior_1` and `exterior_2` the same cameras are called `exterior_left` and
`exterior_right`, as seen by the robot: the left one is that of `left_mp4_path`, from which V-JEPA
2-AC learnt, or the one that stands further along y. These two and `wrist` are the ones mapped.

Velocity actions are fractions of a largest step, which differs between versions of the recorder
("version" in the attributes): they are kept as logged. Targets of the operator are left out of the
actions, as version 1.0 lacks them and they may have fewer rows.

Source: the recorder and the documentation of DROID (Khazatsky et al. 2024, arXiv 2403.12945).
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data import source
from worldmodel.data.formats.hdf5 import (
    Attributes,
    attributes_of,
    datasets_of,
    is_column,
    opened,
    read_rows,
)
from worldmodel.data.frames import Frames
from worldmodel.data.mapping import (
    CameraColumns,
    ColumnMapping,
    GripperColumns,
    PositionColumns,
    RawEpisode,
    RotationColumns,
    TimeColumns,
    UsableColumns,
)
from worldmodel.data.video_frames import VideoFrames, video_info

HZ = 15.0
DEEPEST = 8  # folders between the path and an episode: five by the layout, and some of one's own
MOST_LOOKED_INTO = 200  # folders, to recognise the format
EPISODES_NOTED = 20  # of the set, for its notes

POSE = "observation.robot_state.cartesian_position"
GRIPPER = "observation.robot_state.gripper_position"
JOINTS = "observation.robot_state.joint_positions"
TIME = "observation.timestamp.robot_state.read_start"
SKIPPED = "observation.timestamp.skip_action"
ACTIONS = (
    "cartesian_position",
    "cartesian_velocity",
    "joint_position",
    "joint_velocity",
    "gripper_position",
)
CAMERAS = ("exterior_left", "exterior_right", "wrist")
OUTCOMES = {"success": True, "failure": False}
WRIST = 0  # in observation/camera_type


class Reader(source.Reader):
    """Reads raw DROID, from one episode's folder up to all labs. Ids follow the sorted paths."""

    format = "droid_raw"
    title = "raw DROID (HDF5 and MP4)"
    looked_for = "a folder with trajectory.h5 beside metadata_*.json or recordings/, or one above"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._folders: list[str] = []
        self._incomplete: list[str] = []
        for folder, names in _episode_folders(path):
            found = self._folders if "trajectory.h5" in names else self._incomplete
            found.append(folder)
        self._folders.sort()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        if not path.is_dir():
            return False
        walk = _episode_folders(path, most=MOST_LOOKED_INTO)
        return any("trajectory.h5" in names for _, names in walk)

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return range(len(self._folders))

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`; a camera whose MP4 is not there is left out."""
        folder = self._folder(episode_id)
        file = folder / "trajectory.h5"
        with opened(file) as content:
            logged = attributes_of(content)
            columns = {
                key: read_rows(dataset, file)
                for key, dataset in datasets_of(content)
                if is_column(dataset)
            }
        metadata = _metadata(folder)
        lab, success, name = metadata.get("lab"), metadata.get("success"), folder.name
        if len(folder.parts) > 4 and folder.parts[-3] in OUTCOMES:  # the folders say it best
            lab, success = folder.parts[-4], OUTCOMES[folder.parts[-3]]
            name = "/".join(folder.parts[-4:])
        attributes: Attributes = {
            "task": metadata.get("current_task") or logged.get("current_task"),
            "success": success,
            "lab": lab,
            "version": _version(metadata, logged),
            "uuid": metadata.get("uuid"),
            "building": metadata.get("building"),
            "scene_id": metadata.get("scene_id"),
        }
        return RawEpisode(
            name=name,
            columns=columns,
            cameras=_cameras(folder, metadata, columns),
            attributes={k: v for k, v in attributes.items() if v is not None},
        )

    @property
    def mapping(self) -> ColumnMapping | None:
        """See `source.Reader.mapping`; the actions are those that all versions log."""
        return ColumnMapping(
            position=PositionColumns((f"{POSE}[0:3]",)),
            rotation=RotationColumns((f"{POSE}[3:6]",), form="euler_xyz"),
            gripper=GripperColumns((GRIPPER,), open=0.0, closed=1.0),
            time=TimeColumns((TIME,), unit="ms"),
            joints=(JOINTS,),
            actions={name: (f"action.{name}",) for name in ACTIONS},
            usable=UsableColumns((SKIPPED,), inverted=True, optional=True),
            cameras={name: CameraColumns(name) for name in CAMERAS},
        )

    @property
    def declared_hz(self) -> float | None:
        """See `source.Reader.declared_hz`."""
        return HZ

    @property
    def notes(self) -> tuple[str, ...]:
        """See `source.Reader.notes`; looks into a few episodes spread over the set."""
        if not self._folders:
            return ()
        chosen = np.linspace(0, len(self._folders) - 1, min(EPISODES_NOTED, len(self._folders)))
        versions: dict[str, int] = {}
        for index in chosen.astype(int).tolist():
            folder = self._folder(index)
            with opened(folder / "trajectory.h5") as content:
                version = _version(_metadata(folder), attributes_of(content)) or "unknown"
            versions[version] = versions.get(version, 0) + 1
        cameras = self.read(0).cameras.values()
        rates = {video_info(c.file).declared_hz for c in cameras if isinstance(c, VideoFrames)}
        notes = []
        if rates:
            listed = " or ".join(f"{rate:g}" for rate in sorted(rates))
            notes.append(
                f"the MP4 files declare {listed} frames per second, which is not used: "
                f"times are {TIME}"
            )
        listed = ", ".join(f"{version} ({n})" for version, n in sorted(versions.items()))
        notes.append(
            f"versions of the recorder in {sum(versions.values())} of {len(self._folders)} "
            f"episodes: {listed}; logged velocities of different versions have other scales"
        )
        if self._incomplete:
            notes.append(
                f"left out, as they have no trajectory.h5: {len(self._incomplete)}, "
                f"such as {min(self._incomplete)}"
            )
        return tuple(notes)

    def _folder(self, episode_id: int) -> Path:
        if not 0 <= episode_id < len(self._folders):
            raise KeyError(
                f"no episode {episode_id} in {self.path}; it has 0 to {len(self._folders) - 1}"
            )
        # Absolute, because the folders above an episode say what it is.
        return Path(self._folders[episode_id]).absolute()


def _episode_folders(path: Path, *, most: int | None = None) -> "list[tuple[str, set[str]]]":
    """Returns episode folders at or below `path`, with the names in them; looks into `most`."""
    found, waiting, looked_into = [], [(str(path), 0)], 0
    while waiting and (most is None or looked_into < most):
        folder, depth = waiting.pop()
        looked_into += 1
        with os.scandir(folder) as entries:
            names = {entry.name: entry for entry in entries}
        has_metadata = any(name.startswith("metadata_") for name in names)
        if has_metadata or ("trajectory.h5" in names and "recordings" in names):
            found.append((folder, set(names)))
            if most is not None:
                break
        elif depth < DEEPEST:
            waiting += [(entry.path, depth + 1) for entry in names.values() if entry.is_dir()]
    return found


def _metadata(folder: Path) -> Mapping[str, Any]:
    """Returns what metadata_<uuid>.json says; nothing if there is none."""
    files = sorted(folder.glob("metadata_*.json"))
    if not files:
        return {}
    if len(files) > 1:
        raise ValueError(
            f"{folder} has several metadata files, {[f.name for f in files]}; keep "
            "the one of this episode"
        )
    try:
        content = json.loads(files[0].read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{files[0]} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{files[0]}: expected names and values, got {type(content).__name__}")
    return content


def _version(metadata: Mapping[str, Any], logged: Attributes) -> str | None:
    version = metadata.get("droid_version") or logged.get("version_number")
    return None if version is None else str(version)


def _cameras(
    folder: Path, metadata: Mapping[str, Any], columns: Mapping[str, np.ndarray]
) -> dict[str, Frames]:
    """Returns the cameras whose video is there, the exterior ones under both of their names."""
    serials = {
        "wrist": metadata.get("wrist_cam_serial"),
        "exterior_1": metadata.get("ext1_cam_serial"),
        "exterior_2": metadata.get("ext2_cam_serial"),
    }
    if not any(serials.values()):
        serials = _serials_by_type(columns)
    left = _left_camera(serials, metadata, columns)
    if left is not None:
        right = "exterior_2" if left == "exterior_1" else "exterior_1"
        serials |= {"exterior_left": serials[left], "exterior_right": serials.get(right)}
    cameras: dict[str, Frames] = {}
    for name, serial in serials.items():
        video = folder / f"recordings/MP4/{serial}.mp4"
        stereo = folder / f"recordings/MP4/{serial}-stereo.mp4"
        if serial and video.is_file():
            cameras[name] = VideoFrames(video)
        elif serial and stereo.is_file():
            cameras[name] = VideoFrames(stereo, half="left")
    return cameras


def _serials_by_type(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns serial numbers by what the log says of each camera: 0 is the wrist's."""
    prefix = "observation.camera_type."
    types = {key.removeprefix(prefix): v for key, v in columns.items() if key.startswith(prefix)}
    wrist = [serial for serial, values in types.items() if len(values) and values[0] == WRIST]
    exterior = sorted(set(types) - set(wrist))
    serials = {"wrist": wrist[0]} if wrist else {}
    return serials | {f"exterior_{k + 1}": serial for k, serial in enumerate(exterior)}


def _left_camera(
    serials: Mapping[str, Any], metadata: Mapping[str, Any], columns: Mapping[str, np.ndarray]
) -> str | None:
    """Returns which exterior camera stands to the robot's left; None if nothing says so."""
    exterior = [name for name in ("exterior_1", "exterior_2") if serials.get(name)]
    # Paths are those of the recording lab; only the file's name is as it was.
    named = Path(str(metadata.get("left_mp4_path") or "")).stem.removesuffix("-stereo")
    for name in exterior:
        if str(serials[name]) == named:
            return name
    # The extrinsics are poses in the robot's frame, whose y axis points to its left.
    keys = {name: f"observation.camera_extrinsics.{serials[name]}_left" for name in exterior}
    if len(exterior) < 2 or not all(len(columns.get(key, ())) for key in keys.values()):
        return None
    return max(exterior, key=lambda name: columns[keys[name]][0, 1])
