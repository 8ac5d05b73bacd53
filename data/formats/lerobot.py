"""LeRobot sets v2.1 and v3.0: numbers in Parquet, frames in MP4 or in Parquet, JSON about both.

Everything is found through meta/info.json: version, rate, features, and where files are. In v3.0
many episodes share a file; meta/episodes says which rows and which stretch of a video are whose.
Source: the layouts that LeRobot 0.3.3 (v2.1) and 0.4.4 (v3.0) write. The package itself is not
needed: it asks for other versions of Python and torch than this project.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.data import source
from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.data.formats._lerobot_files import (
    METADATA,
    episodes_v21,
    episodes_v30,
    read_info,
    read_parquet,
    read_tasks,
)
from worldmodel.data.formats._lerobot_meaning import STATE, STATED, meaning
from worldmodel.data.frames import EncodedFrames, FrameReadError, Frames, LazyFrames
from worldmodel.data.mapping import ColumnMapping, RawEpisode, to_episode
from worldmodel.data.video_frames import VideoFrames
from worldmodel.extras import require

if TYPE_CHECKING:
    import pyarrow

COUNTED_TOLERANCE_S = 1e-3  # timestamps closer to frame_index / fps than this are no measurement
FRAME_TOLERANCE = 0.1  # of a frame, that an episode may begin beside one in a shared video


class Reader(source.Reader):
    """Reads a LeRobot set; a camera of which no video was downloaded is left out."""

    format = "lerobot"
    title = "a LeRobot data set"
    looked_for = "a folder with meta/info.json"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        require("pyarrow.parquet", extra="lerobot")
        self.info = read_info(path / "meta" / "info.json")
        self.features: Mapping[str, Any] = self.info["features"]
        self.fps = float(self.info["fps"])
        shared = self.info["codebase_version"] == "v3.0"
        videos = [key for key, f in self.features.items() if f["dtype"] == "video"]
        described = episodes_v30(path, videos) if shared else episodes_v21(path)
        self._episodes = self._complete(described)
        self._ids = self._episodes["episode_index"].tolist()
        self._row = {episode_id: row for row, episode_id in enumerate(self._ids)}
        self._tasks = read_tasks(path / "meta")
        self._absent = [key for key in videos if not self._is_there(key)]

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        return (path / "meta" / "info.json").is_file()

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return self._ids

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`; columns and cameras have the names of the set's features."""
        if episode_id not in self._row:
            raise KeyError(f"no episode {episode_id} in {self.path}; it has {len(self._ids)}")
        columns = self._read_columns(episode_id)
        cameras: dict[str, Frames] = {}
        for key, feature in self.features.items():
            if feature["dtype"] == "image":
                file, length = self._data_file(episode_id), len(columns["frame_index"])
                cameras[key] = _ParquetImages(file, key, episode_id, length, feature["shape"])
            elif feature["dtype"] == "video" and key not in self._absent:
                cameras[key] = self._video(episode_id, key)
        return RawEpisode(
            name=f"{self.path.name} episode {episode_id}",
            columns=columns,
            cameras=cameras,
            attributes={"task": self._task(columns), "success": _success(columns)},
        )

    def read_episode(self, episode_id: int, mapping: ColumnMapping) -> Episode:
        """See `source.Reader.read_episode`; what our writer wrote comes back as it was."""
        raw = self.read(episode_id)
        episode = to_episode(raw, mapping, source=self.format)
        stated = self.mapping if STATED in self.info and METADATA in self._episodes else None
        if stated is None or mapping != replace(stated, hz=mapping.hz):
            return episode
        record = json.loads(self._episodes[METADATA][self._row[episode_id]])
        metadata = replace(EpisodeMetadata.from_json(record), cameras=tuple(episode.frames))
        return replace(
            episode,
            proprio=raw.columns[STATE],
            metadata=replace(metadata, control_hz=mapping.hz or metadata.control_hz),
        )

    @property
    def mapping(self) -> ColumnMapping | None:
        """See `source.Reader.mapping`; None unless the set makes its meaning clear."""
        return self._meaning()[0]

    @property
    def declared_hz(self) -> float | None:
        """See `source.Reader.declared_hz`."""
        return self.fps

    @property
    def notes(self) -> tuple[str, ...]:
        """See `source.Reader.notes`."""
        clock = "measured" if self._is_measured() else "only frame_index / fps, no measurement"
        absent = [f"{key} is declared but none of its videos are here" for key in self._absent]
        return (
            f"LeRobot {self.info['codebase_version']}, {self.fps:g} fps declared; the timestamps "
            f"are {clock}",
            self._meaning()[1],
            *absent,
        )

    def _meaning(self) -> tuple[ColumnMapping | None, str]:
        cameras = [
            key
            for key, feature in self.features.items()
            if feature["dtype"] in ("image", "video") and key not in self._absent
        ]
        measured = STATED not in self.info and self._is_measured()
        return meaning(self.info, cameras=cameras, measured=measured)

    def _is_measured(self) -> bool:
        """Whether the first or the last episode has times of its own."""
        for episode_id in {*self._ids[:1], *self._ids[-1:]}:
            time = self._read_columns(episode_id)["timestamp"].astype(np.float64)
            if np.abs(time - np.arange(len(time)) / self.fps).max() > COUNTED_TOLERANCE_S:
                return True
        return False

    def _complete(self, described: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the episodes that info.json counts; more are of a writer that was interrupted."""
        total, found = self.info["total_episodes"], len(described["episode_index"])
        if found < total:
            raise ValueError(
                f"{self.path / 'meta'}: info.json says {total} episodes, but {found} are "
                "described; copy or download meta/ again"
            )
        return {name: values[:total] for name, values in described.items()}

    def _data_file(self, episode_id: int) -> Path:
        return self._file("data_path", episode_id, prefix="data", key="")

    def _file(self, template: str, episode_id: int, *, prefix: str, key: str) -> Path:
        """Returns the path that a template of info.json gives for an episode."""
        row = self._row[episode_id]
        place: dict[str, int | str] = {
            "episode_index": episode_id,
            "episode_chunk": episode_id // int(self.info["chunks_size"]),
            "video_key": key,
        }
        for name in ("chunk_index", "file_index"):
            if f"{prefix}/{name}" in self._episodes:
                place[name] = int(self._episodes[f"{prefix}/{name}"][row])
        try:
            return self.path / self.info[template].format(**place)
        except KeyError as error:
            raise ValueError(
                f"{self.path / 'meta' / 'info.json'}: '{template}' asks for {error}, but a set of "
                f"{self.info['codebase_version']} has only {', '.join(place)}"
            ) from error

    def _video_file(self, episode_id: int, key: str) -> Path:
        return self._file("video_path", episode_id, prefix=f"videos/{key}", key=key)

    def _is_there(self, key: str) -> bool:
        return any(self._video_file(episode_id, key).is_file() for episode_id in self._ids)

    def _read_columns(self, episode_id: int) -> dict[str, np.ndarray]:
        """Returns all columns but images (rows, ...), checked to be the rows of this episode."""
        file = self._data_file(episode_id)
        length = int(self._episodes["length"][self._row[episode_id]])
        wanted = [k for k, f in self.features.items() if f["dtype"] not in ("image", "video")]
        table = read_parquet(file, columns=wanted, episode=episode_id)
        columns = {
            key: _values(table[key], self.features[key]["shape"], f"{file}, column {key}")
            for key in wanted
        }
        if len(table) != length:
            raise ValueError(
                f"{file} has {len(table)} rows of episode {episode_id}, but meta/episodes says "
                f"{length}; copy or download the set again"
            )
        if not np.array_equal(columns["frame_index"], np.arange(length)):
            raise ValueError(
                f"{file}: frame_index of episode {episode_id} is not 0 to {length - 1} in order"
            )
        return columns

    def _video(self, episode_id: int, key: str) -> VideoFrames:
        file = self._video_file(episode_id, key)
        if not file.is_file():
            raise ValueError(
                f"{file} is missing, the video {key} of episode {episode_id}; copy or download it, "
                f"or remove all videos of {key} to do without that camera"
            )
        if f"videos/{key}/from_timestamp" not in self._episodes:
            return VideoFrames(file)
        first, count = self._stretches(key)
        row = self._row[episode_id]
        begins = first[row]
        if abs(begins - round(begins)) > FRAME_TOLERANCE:
            raise ValueError(
                f"{file}: episode {episode_id} begins at "
                f"{self._episodes[f'videos/{key}/from_timestamp'][row]:.6g} s, which is frame "
                f"{begins:.2f} at {self.fps:g} fps, not a whole number of frames"
            )
        self._check_own(file, episode_id, key)
        return VideoFrames(file, first=round(begins), count=round(count[row]))

    def _stretches(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns where episodes begin in their video and how long they are there, in frames."""
        begin = self._episodes[f"videos/{key}/from_timestamp"]
        return begin * self.fps, (self._episodes[f"videos/{key}/to_timestamp"] - begin) * self.fps

    def _check_own(self, file: Path, episode_id: int, key: str) -> None:
        """Raises ValueError if another episode claims frames of this one's video."""
        first, count = self._stretches(key)
        row = self._row[episode_id]
        same = np.ones(len(first), bool)
        for name in ("chunk_index", "file_index"):
            values = self._episodes[f"videos/{key}/{name}"]
            same &= values == values[row]
        overlap = np.minimum(first + count, first[row] + count[row]) - np.maximum(first, first[row])
        same[row] = False
        other = np.flatnonzero(same & (overlap > 0.5))
        if len(other):
            raise ValueError(
                f"{file}: episodes {episode_id} and {self._ids[other[0]]} both claim frames from "
                f"{max(first[row], first[other[0]]):.0f}; meta/episodes is wrong about this video"
            )

    def _task(self, columns: Mapping[str, np.ndarray]) -> str:
        """Returns the task of an episode; of several, all in the order in which they come."""
        numbers = dict.fromkeys(columns["task_index"].tolist())
        unknown = [number for number in numbers if number not in self._tasks]
        if unknown:
            raise ValueError(
                f"{self.path / 'meta'}: tasks has no task_index {unknown[0]}; it has "
                f"{len(self._tasks)} tasks"
            )
        return "; ".join(self._tasks[number] for number in numbers)


class _ParquetImages(LazyFrames):
    """Frames that are each a JPEG or PNG in a row of a Parquet file."""

    def __init__(
        self, file: Path, key: str, episode_id: int, length: int, shape: Sequence[int]
    ) -> None:
        height, width = shape[:2] if shape[-1] in (1, 3) else shape[1:]
        super().__init__((length, height, width, 3))
        self.file, self.key, self.episode_id = file, key, episode_id

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        table = read_parquet(self.file, columns=[self.key], episode=self.episode_id)
        name = f"{self.file}, {self.key}, episode {self.episode_id}"
        if len(table) != len(self):
            raise FrameReadError(f"{name}: {len(table)} images, expected {len(self)}")
        records = table[self.key].take(indices).to_pylist()
        images = [record["bytes"] for record in records]
        if None in images:
            where = records[images.index(None)]["path"]
            raise FrameReadError(f"{name}: an image is not in the file but left at {where}")
        return EncodedFrames(images, name=name, shape=(len(images), *self.shape[1:]))[:]


def _values(column: "pyarrow.ChunkedArray", shape: Sequence[int], what: str) -> np.ndarray:
    """Returns a column as an array (rows, *shape), (rows,) for a shape of (1,)."""
    array = column.combine_chunks()
    rows = len(array)
    while hasattr(array, "flatten") and array.type.num_fields == 1:  # a list, perhaps of lists
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    wanted = (rows,) if list(shape) == [1] else (rows, *shape)
    if values.size != np.prod(wanted):
        raise ValueError(f"{what}: {values.size} numbers in {rows} rows; expected shape {wanted}")
    return values.reshape(wanted)


def _success(columns: Mapping[str, np.ndarray]) -> bool | None:
    for key in ("is_episode_successful", "next.success"):
        if key in columns:
            return bool(columns[key].any())
    return None
