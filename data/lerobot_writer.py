"""Episodes as a LeRobot v3.0 set, for everyone who trains with LeRobot: appended to, crash-safe.

    with LeRobotWriter("datasets/reach") as writer:
        writer.add(episode)

    <path>/
      meta/info.json                        rate, features, number of episodes: the commit
      meta/episodes/chunk-000/file-000.parquet   which rows and which video are whose, statistics
      meta/tasks.parquet  meta/stats.json
      data/chunk-000/file-000.parquet       rows of many episodes, one row group each
      videos/<key>/chunk-000/file-000.mp4   one episode each, whatever number it has
      writing/                              files that are being written now

A Parquet file with the rows of the new episode replaces the one without by a rename, and a video
is there before any row speaks of it. An episode exists when meta/info.json counts it, which is the
last rename; what a process that dies leaves behind is not counted, and the next one overwrites it.

Columns: `observation.state` is the measured proprio, `action` the measured change to the next row,
zeros in the last row of an episode, after which nothing was seen. `timestamp` counts frames, as
LeRobot wants it; `capture_time` has the real times. meta/info.json states all this as a mapping
under `worldmodel`, and meta/episodes keeps our metadata, so that `worldmodel.data.formats.lerobot`
reads back what was written, but for what video compression takes from the frames.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from worldmodel.data.durable import flush
from worldmodel.data.episode import Episode, validate
from worldmodel.data.formats._lerobot_layout import (
    CODECS,
    DATA,
    EPISODES,
    VIDEO,
    described,
    episodes_table,
    features_of,
    measured_columns,
    new_info,
    place,
    rows_table,
    tasks_table,
    videos,
)
from worldmodel.data.formats._lerobot_meaning import STATED
from worldmodel.data.formats._lerobot_stats import (
    Stats,
    as_lists,
    combined,
    number_stats,
    pixel_stats,
    stats_in,
)
from worldmodel.data.frames import Frames
from worldmodel.data.video_frames import write_video
from worldmodel.extras import require

PART_ROWS = 30_000  # of one Parquet file, a few MB: it is written again with every episode
GOP = 2  # as LeRobot writes: a random frame costs at most two
FRAMES_AT_A_TIME = 64  # in memory
RATE_TOLERANCE = 0.1  # between measured and declared rate, beyond which LeRobot would play it wrong


def write_lerobot(path: str | Path, episodes: Iterable[Episode], *, codec: str = "libx264") -> Path:
    """Adds episodes to a LeRobot v3.0 set, new or written here before, and returns its path.

    Raises:
        ValueError: See `LeRobotWriter.add`; or there are no episodes.
    """
    with LeRobotWriter(path, codec=codec) as writer:
        for episode in episodes:
            writer.add(episode)
        if not len(writer):
            raise ValueError(f"there are no episodes to write to {path}")
    return Path(path)


class LeRobotWriter:
    """Writes episodes one after the other; one writer at a time.

    Attributes:
        path: Folder of the set.
    """

    def __init__(self, path: str | Path, *, codec: str = "libx264") -> None:
        """Opens a set to append to it, or begins a new one.

        Args:
            path: Folder; new, empty, or of a set that was written here.
            codec: "libx264" or "libsvtav1" (AV1, which LeRobot itself writes; slower).

        Raises:
            ValueError: The folder holds something else, or the codec is unknown.
            BlockingIOError: Another process is writing this set.
            ImportError: The extra `lerobot` is not installed.
        """
        require("pyarrow.parquet", extra="lerobot")
        if codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, got '{codec}'")
        self.path, self._codec = Path(path), codec
        self._check_folder()
        self._writing = self.path / "writing"
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        shutil.rmtree(self._writing, ignore_errors=True)
        self._writing.mkdir()

        self._info: dict[str, Any] = {}
        self._tasks: dict[str, int] = {}
        self._stats: Stats = {}
        self._part = 0  # number of the Parquet files that are being filled
        self._tables: list[Any] = []  # rows of their episodes, one table each
        self._described: list[dict[str, Any]] = []  # and what meta/episodes says of them
        if (self.path / "meta" / "info.json").exists():
            try:
                self._resume()
            except BaseException:
                os.close(self._lock)
                raise

    def __len__(self) -> int:
        """Number of episodes in the set."""
        return self._info.get("total_episodes", 0)

    def __enter__(self) -> "LeRobotWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write; everything added is on disk already."""
        shutil.rmtree(self._writing, ignore_errors=True)
        os.close(self._lock)

    def add(self, episode: Episode) -> int:
        """Appends an episode and returns its number.

        Raises:
            ValueError: The episode is invalid or does not fit the others: its rate, its cameras and
                their sizes, what is logged; or a side of its frames is odd.
            FrameReadError: A frame cannot be read; the set is as it was before.
        """
        number = len(self)
        validate(episode, name=f"episode {number}")
        hz = episode.metadata.control_hz
        columns = measured_columns(episode)
        features = features_of(columns, episode.frames, hz=hz, codec=self._codec)
        self._check_fits(number, episode, features)
        info = self._info or new_info(episode, features)

        for key, frames in videos(episode).items():
            self._commit(
                VIDEO.format(video_key=key, **place(number)),
                lambda file, frames=frames: write_video(
                    file, _one_by_one(frames), hz=hz, codec=self._codec, gop=GOP
                ),
            )
        if episode.metadata.task not in self._tasks:
            tasks = self._tasks | {episode.metadata.task: len(self._tasks)}
            self._commit_table("meta/tasks.parquet", tasks_table(tasks))
            self._tasks = tasks

        if sum(len(table) for table in self._tables) >= PART_ROWS:
            self._part, self._tables, self._described = self._part + 1, [], []
        rows, first = len(episode.proprio), info["total_frames"]
        columns |= {
            "timestamp": (np.arange(rows) / hz).astype(np.float32),
            "frame_index": np.arange(rows),
            "episode_index": np.full(rows, number),
            "index": np.arange(first, first + rows),
            "task_index": np.full(rows, self._tasks[episode.metadata.task]),
        }
        stats = {key: number_stats(values) for key, values in columns.items()}
        stats |= {key: pixel_stats(frames) for key, frames in videos(episode).items()}
        description = described(episode, number, first=first, part=self._part, stats=stats, hz=hz)
        tables, descriptions = [*self._tables, rows_table(columns)], [*self._described, description]
        self._commit_table(DATA.format(**place(self._part)), *tables)
        self._commit_table(EPISODES.format(**place(self._part)), episodes_table(descriptions))

        together = combined(self._stats, stats) if self._stats else stats
        self._commit_json("meta/stats.json", as_lists(together))
        info = info | {
            "total_episodes": number + 1,
            "total_frames": first + rows,
            "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{number + 1}"},
        }
        self._commit_json("meta/info.json", info)
        self._tables, self._described = tables, descriptions
        self._stats, self._info = together, info
        return number

    def _check_folder(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose a new or empty folder")
        file = self.path / "meta" / "info.json"
        strangers = {entry.name for entry in self.path.iterdir()} - {"writing"}
        if file.exists():
            if STATED not in json.loads(file.read_text(encoding="utf-8")):
                raise ValueError(f"{self.path} was not written here; choose a new or empty folder")
        elif strangers - {"data", "meta", "videos"}:
            raise ValueError(f"{self.path} holds something else; choose a new or empty folder")

    def _resume(self) -> None:
        """Reads what a writer needs to know of the episodes that are there."""
        import pyarrow.parquet as pq

        self._info = json.loads((self.path / "meta" / "info.json").read_text(encoding="utf-8"))
        tasks = pq.ParquetFile(self.path / "meta" / "tasks.parquet").read().to_pylist()
        self._tasks = {record["task"]: record["task_index"] for record in tasks}
        left = len(self)  # episodes beyond were not committed
        for part, file in enumerate(sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))):
            episodes = pq.ParquetFile(file).read().to_pylist()[:left]
            left -= len(episodes)
            if episodes:
                self._part, self._described = part, episodes
            for row in episodes:
                stats = stats_in(row)
                self._stats = combined(self._stats, stats) if self._stats else stats
        rows = pq.ParquetFile(self.path / DATA.format(**place(self._part))).read()
        begin = self._described[0]["dataset_from_index"]
        self._tables = [
            rows.slice(row["dataset_from_index"] - begin, row["length"]) for row in self._described
        ]

    def _check_fits(self, number: int, episode: Episode, features: dict[str, Any]) -> None:
        hz, times = episode.metadata.control_hz, episode.timestamps
        measured = 1 / float(np.median(np.diff(times)))
        if abs(measured / hz - 1) > RATE_TOLERANCE:
            raise ValueError(
                f"episode {number} runs at {measured:.4g} Hz by its timestamps but declares "
                f"{hz:.4g} Hz, at which LeRobot would play it; say the rate when it is opened (hz=)"
            )
        for camera, frames in episode.frames.items():
            height, width = frames.shape[1:3]
            if height % 2 or width % 2:
                raise ValueError(
                    f"episode {number}: frames of camera '{camera}' are {height} x {width}; video "
                    f"needs even sizes: crop or resize to {height - height % 2} x "
                    f"{width - width % 2}"
                )
        if not self._info:
            return
        if hz != self._info["fps"]:
            raise ValueError(
                f"episode {number} is at {hz:g} Hz, the set at {self._info['fps']:g}; a LeRobot "
                "set has one rate: write to another folder"
            )
        for key in {**features, **self._info["features"]}:
            ours, theirs = features.get(key), self._info["features"].get(key)
            if ours != theirs:
                raise ValueError(
                    f"episode {number} has '{key}' as {_short(ours)}, the set as {_short(theirs)}; "
                    "all episodes of a LeRobot set have the same columns: write to another folder"
                )

    def _commit_table(self, name: str, *tables: Any) -> None:
        """Writes tables of one schema as row groups of one file."""
        import pyarrow.parquet as pq

        def write(file: Path) -> None:
            with pq.ParquetWriter(file, tables[0].schema) as writer:
                for table in tables:
                    writer.write_table(table)

        self._commit(name, write)

    def _commit_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2) + "\n"
        self._commit(name, lambda file: file.write_text(text, encoding="utf-8"))

    def _commit(self, name: str, write: Callable[[Path], object]) -> None:
        """Puts a file in its place, on disk and whole, or not at all."""
        final = self.path / name
        draft = self._writing / final.name
        write(draft)
        final.parent.mkdir(parents=True, exist_ok=True)
        flush(draft)
        draft.replace(final)
        flush(final.parent)


def _one_by_one(frames: Frames) -> Iterator[np.ndarray]:
    for first in range(0, len(frames), FRAMES_AT_A_TIME):
        yield from frames[first : first + FRAMES_AT_A_TIME]


def _short(feature: dict[str, Any] | None) -> str:
    if feature is None:
        return "absent"
    codec = feature.get("info", {}).get("video.codec", "")
    return f"{codec} {feature['dtype']} {tuple(feature['shape'])}".strip()


def _lock(folder: Path) -> int:
    """Returns a handle that holds the folder against other writers until it is closed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(
            f"another process is writing {folder}; wait for it, or write to another folder"
        ) from error
    return handle
