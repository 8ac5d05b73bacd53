"""What the files of a LeRobot v3.0 set say of our episodes: names, columns, features, places."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.formats._lerobot_files import METADATA
from worldmodel.data.formats._lerobot_meaning import STATE, STATED
from worldmodel.data.formats._lerobot_stats import Stats, as_lists
from worldmodel.data.frames import Frames

if TYPE_CHECKING:
    import pyarrow

CHUNK_FILES = 1000  # files in a folder
CODECS = {"libx264": "h264", "libsvtav1": "av1"}  # encoder -> what LeRobot calls its output
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATE_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper_closed"]
JOINTS = "observation.state.joint_positions"


def place(number: int) -> dict[str, int]:
    """Returns where the file of this number is: folder, and number in it."""
    return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}


def measured_columns(episode: Episode) -> dict[str, np.ndarray]:
    """Returns the columns (rows, ...) that come from an episode; see `data.lerobot_writer`."""
    columns = {
        STATE: episode.proprio,
        "action": np.concatenate([episode.actions, np.zeros((1, 7), np.float32)]),
    }
    if episode.joints is not None:
        columns[JOINTS] = episode.joints
    columns |= {f"action.{name}": values for name, values in episode.logged_actions.items()}
    columns["capture_time"] = episode.timestamps
    if episode.usable is not None:
        columns["usable"] = episode.usable
    return columns


def videos(episode: Episode) -> dict[str, Frames]:
    """Returns the frames of an episode by the keys of a set."""
    return {f"observation.images.{name}": frames for name, frames in episode.frames.items()}


def features_of(
    columns: Mapping[str, np.ndarray], frames: Mapping[str, Frames], *, hz: float, codec: str
) -> dict[str, Any]:
    """Returns `features` of meta/info.json for these columns and frames."""
    features: dict[str, Any] = {}
    for key, values in columns.items():
        size = values[0].size
        names = {
            STATE: STATE_NAMES,
            "action": [f"delta_{name}" for name in STATE_NAMES],
            JOINTS: [f"joint_{k}" for k in range(size)],
        }.get(key, [key] if size == 1 else [f"{key}_{k}" for k in range(size)])
        features[key] = {"dtype": values.dtype.name, "shape": [size], "names": names}
    for camera, pictures in frames.items():
        height, width = pictures.shape[1:3]
        features[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": CODECS[codec],
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": int(hz),
                "video.channels": 3,
                "has_audio": False,
            },
        }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def new_info(episode: Episode, features: dict[str, Any]) -> dict[str, Any]:
    """Returns meta/info.json of a set without episodes, for ones like this."""
    hz = episode.metadata.control_hz
    return {
        "codebase_version": "v3.0",
        "robot_type": episode.metadata.robot,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(hz) if hz == int(hz) else hz,
        "splits": {},
        "data_path": DATA,
        "video_path": VIDEO,
        "features": features,
        STATED: {"mapping": _stated_mapping(episode)},
    }


def _stated_mapping(episode: Episode) -> dict[str, Any]:
    mapping: dict[str, Any] = {
        "position": {"key": f"{STATE}[0:3]", "unit": "m"},
        "rotation": {"key": f"{STATE}[3:6]", "form": "euler_xyz", "unit": "rad"},
        "gripper": {"key": f"{STATE}[6]", "open": 0.0, "closed": 1.0},
        "time": {"key": "capture_time", "unit": "s"},
        "cameras": {name: f"observation.images.{name}" for name in episode.frames},
        "actions": {name: [f"action.{name}"] for name in episode.logged_actions},
        "robot": episode.metadata.robot,
    }
    if episode.joints is not None:
        mapping["joints"] = JOINTS
    if episode.usable is not None:
        mapping["usable"] = {"key": "usable"}
    return mapping


def described(
    episode: Episode, number: int, *, first: int, part: int, stats: Stats, hz: float
) -> dict[str, Any]:
    """Returns the row of meta/episodes of an episode."""
    rows = len(episode.proprio)
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.metadata.task],
        "length": rows,
        "dataset_from_index": first,
        "dataset_to_index": first + rows,
        METADATA: json.dumps(episode.metadata.to_json()),
    }
    for prefix in ("data", "meta/episodes"):
        row |= {f"{prefix}/{name}": value for name, value in place(part).items()}
    for key in videos(episode):
        row |= {f"videos/{key}/{name}": value for name, value in place(number).items()}
        row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": rows / hz}
    for key, values in as_lists(stats).items():
        row |= {f"stats/{key}/{name}": value for name, value in values.items()}
    return row


def rows_table(columns: Mapping[str, np.ndarray]) -> "pyarrow.Table":
    """Returns columns (rows, ...) as Parquet keeps them, vectors as lists of one size."""
    import pyarrow as pa

    arrays = {
        key: pa.array(values.ravel())
        if values[0].size == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for key, values in columns.items()
    }
    return pa.table(arrays)


def episodes_table(rows: list[dict[str, Any]]) -> "pyarrow.Table":
    """Returns rows of meta/episodes as a table."""
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def tasks_table(tasks: Mapping[str, int]) -> "pyarrow.Table":
    """Returns tasks as the pandas table that LeRobot expects: the text is the index."""
    import pyarrow as pa

    column = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64"}
    index = {"field_name": "task", "name": "task", "pandas_type": "unicode"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            column | {"numpy_type": "int64", "metadata": None},
            index | {"numpy_type": "object", "metadata": None},
        ],
    }
    table = pa.table({"task_index": list(tasks.values()), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
