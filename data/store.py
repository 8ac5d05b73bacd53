"""A folder of episodes in zarr v3: safe to append to, from several processes, through any crash.

    <path>/
      store.json                     schema version
      episodes/                      a zarr group
        00000017/                    one group per episode, metadata in its attributes
          frames/exterior            uint8 (T + 1, height, width, 3), lossless
          proprio  actions  timestamps
          joints  usable             where known
          logged_actions/<name>      where known
      writing/                       episodes that are being written now

An episode is written under `writing/` and flushed to disk; one atomic rename makes it appear under
`episodes/`. A process that dies while writing loses that episode and nothing else.

Frames that zstd makes much smaller, as it does simulated ones, are compressed. Pixels of a real
camera hardly shrink, so they lie raw, and a window of frames is a copy from the page cache.
"""

import json
import os
import re
import shutil
import socket
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import zarr

from worldmodel.data.durable import alive, flush
from worldmodel.data.episode import Episode, EpisodeMetadata, validate
from worldmodel.data.frames import Frames
from worldmodel.data.stored_arrays import (
    OtherArray,
    StoredArray,
    StoredFrames,
    create_array,
    open_array,
    zstd_ratio,
)

SCHEMA_VERSION = 2  # 1 had no joints, usable and logged_actions

WORTHWHILE_RATIO = 2.0  # frames that zstd shrinks less are stored raw
# A frame costs the decompression of its whole chunk, but of a raw chunk only itself.
ZSTD_CHUNK_BYTES = 1 << 19
RAW_CHUNK_BYTES = 8 << 20

_EPISODE_NAME = re.compile(r"\d{8}")
_WRITER_NAME = re.compile(r"(?P<pid>\d+)@(?P<host>.+)@\d{8}-[0-9a-f]{32}")


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds, without reading any frames.

    Attributes:
        episodes: Number of episodes.
        steps: Number of actions in all episodes.
        seconds: Recorded time [s], from the timestamps.
        size_bytes: Size on disk.
    """

    episodes: int
    steps: int
    seconds: float
    size_bytes: int


class EpisodeStore:
    """Episodes on disk, each under an id that its writer chooses.

    Example:
        store = EpisodeStore("runs/reach/episodes", mode="a")
        store.write(0, episode)
        episode = store.read(0)
    """

    def __init__(self, path: str | Path, mode: Literal["r", "a"] = "r") -> None:
        """Opens a store; mode "a" creates it where there is none and clears away dead writers.

        Raises:
            FileNotFoundError: Mode "r" and nothing at `path`.
            ValueError: `path` holds something else, or a store of a newer version.
        """
        if mode not in ("r", "a"):
            raise ValueError(f"mode must be 'r' (read) or 'a' (read and append), got {mode!r}")
        self.path = Path(path)
        self.mode = mode
        self._episodes = self.path / "episodes"
        self._writing = self.path / "writing"
        if mode == "a" and not (self.path / "store.json").exists():
            self._create()
        self._version = self._read_version()
        if mode == "a":
            self._remove_dead_writers()

    def __len__(self) -> int:
        """Number of committed episodes."""
        return len(self.ids())

    def __contains__(self, episode_id: int) -> bool:
        """Whether the episode is committed."""
        return self._folder(episode_id).is_dir()

    def ids(self) -> list[int]:
        """Returns the ids of all committed episodes, ascending."""
        return sorted(
            int(entry.name)
            for entry in os.scandir(self._episodes)
            if _EPISODE_NAME.fullmatch(entry.name)
        )

    def read(self, episode_id: int) -> Episode:
        """Returns an episode, its frames unread. Raises KeyError where there is none."""
        metadata = self.read_metadata(episode_id)
        folder = self._folder(episode_id)
        logged = folder / "logged_actions"
        names = []
        if logged.is_dir():
            names = sorted(entry.name for entry in logged.iterdir() if entry.is_dir())
        return Episode(
            frames={name: self.frames(episode_id, name) for name in metadata.cameras},
            proprio=self.read_proprio(episode_id),
            timestamps=self.read_timestamps(episode_id),
            metadata=metadata,
            joints=self._read(episode_id, "joints") if (folder / "joints").is_dir() else None,
            logged_actions={
                name: self._read(episode_id, f"logged_actions/{name}") for name in names
            },
            usable=self._read(episode_id, "usable") if (folder / "usable").is_dir() else None,
        )

    def frames(self, episode_id: int, camera: str) -> Frames:
        """Returns the frames (T + 1, height, width, 3) of one camera, read when asked for."""
        return StoredFrames(self._open(episode_id, f"frames/{camera}"))

    def read_frames(self, episode_id: int, camera: str) -> np.ndarray:
        """Returns uint8 RGB frames (T + 1, height, width, 3) of one camera."""
        return self.frames(episode_id, camera)[:]

    def frame_shape(self, episode_id: int, camera: str) -> tuple[int, ...]:
        """Returns (T + 1, height, width, 3) of one camera's frames without reading them."""
        return self._open(episode_id, f"frames/{camera}").shape

    def read_proprio(self, episode_id: int) -> np.ndarray:
        """Returns float32 proprio (T + 1, 7)."""
        return self._read(episode_id, "proprio")

    def read_actions(self, episode_id: int) -> np.ndarray:
        """Returns float32 actions (T, 7)."""
        return self._read(episode_id, "actions")

    def read_timestamps(self, episode_id: int) -> np.ndarray:
        """Returns float64 capture times (T + 1,) [s]."""
        return self._read(episode_id, "timestamps")

    def read_metadata(self, episode_id: int) -> EpisodeMetadata:
        """Returns where the episode comes from."""
        self._check_exists(episode_id)
        # Read as plain JSON: opening a zarr group costs fifty times as much.
        group = json.loads((self._folder(episode_id) / "zarr.json").read_text())
        return EpisodeMetadata.from_json(group["attributes"])

    def write(self, episode_id: int, episode: Episode) -> None:
        """Validates an episode and commits it under an id not used before.

        A store of an older schema version becomes one of this version, which reads both.

        Raises:
            ValueError: The episode is invalid, or the id out of range.
            FileExistsError: The id is taken; another process may have been faster.
            PermissionError: The store is open for reading only.
        """
        if self.mode != "a":
            raise PermissionError(f"{self.path} is open for reading; open it with mode='a'")
        if not 0 <= episode_id < 10**8:
            raise ValueError(f"episode id must be within 0..99999999, got {episode_id}")
        validate(episode, name=f"episode {episode_id}")
        final = self._folder(episode_id)
        if final.exists():
            raise FileExistsError(f"episode {episode_id} is already in {self.path}")
        draft = self._writing / (
            f"{os.getpid()}@{socket.gethostname()}@{episode_id:08d}-{uuid4().hex}"
        )
        try:
            _write_group(draft, episode)
            _flush_tree(draft)
            if self._version < SCHEMA_VERSION:  # Older programs cannot read what comes now.
                self._write_version()
            try:
                draft.rename(final)  # The commit. Fails where another writer committed this id.
            except OSError as error:
                if final.exists():
                    raise FileExistsError(
                        f"episode {episode_id} is already in {self.path}"
                    ) from error
                raise
            flush(self._episodes)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def summary(self) -> StoreSummary:
        """Returns counts and sizes; reads timestamps but no frames."""
        times = [self.read_timestamps(episode_id) for episode_id in self.ids()]
        return StoreSummary(
            episodes=len(times),
            steps=sum(len(t) - 1 for t in times),
            seconds=float(sum(t[-1] - t[0] for t in times)),
            size_bytes=sum(f.stat().st_size for f in self._episodes.rglob("*") if f.is_file()),
        )

    def _folder(self, episode_id: int) -> Path:
        return self._episodes / f"{episode_id:08d}"

    def _check_exists(self, episode_id: int) -> None:
        if self._folder(episode_id).is_dir():
            return
        ids = self.ids()
        have = f"{len(ids)} episodes, ids {ids[0]} to {ids[-1]}" if ids else "no episodes"
        raise KeyError(f"no episode {episode_id} in {self.path}; it has {have}")

    def _open(self, episode_id: int, name: str) -> StoredArray | OtherArray:
        self._check_exists(episode_id)
        array = self._folder(episode_id) / name
        if not array.is_dir():
            known = sorted(entry.name for entry in array.parent.iterdir() if entry.is_dir())
            raise KeyError(f"episode {episode_id} has no '{name}'; there are {known}")
        return open_array(array)

    def _read(self, episode_id: int, name: str) -> np.ndarray:
        array = self._open(episode_id, name)
        return array.take(np.arange(array.shape[0]))

    def _create(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            # Another process may be creating the same store at this moment: then it is no stranger.
            strangers = [self.path]
            if self.path.is_dir():
                strangers = [e for e in self.path.iterdir() if not _is_part_of_store(e.name)]
            if strangers:
                raise ValueError(
                    f"{self.path} holds something that is not an episode store; "
                    "choose a new or empty folder"
                )
        self._episodes.mkdir(parents=True, exist_ok=True)
        self._writing.mkdir(exist_ok=True)
        group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        _write_json(self._episodes / "zarr.json", group)
        self._write_version()

    def _write_version(self) -> None:
        _write_json(self.path / "store.json", {"worldmodel_episode_store": SCHEMA_VERSION})
        self._version = SCHEMA_VERSION

    def _read_version(self) -> int:
        if not self.path.exists():
            raise FileNotFoundError(f"no episode store at {self.path}; collect one first")
        file = self.path / "store.json"
        try:
            version = json.loads(file.read_text())["worldmodel_episode_store"]
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is not an episode store: expected {file.name} naming its version"
            ) from error
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} has schema version {version}, this program reads up to "
                f"{SCHEMA_VERSION}; update worldmodel to read it"
            )
        return version

    def _remove_dead_writers(self) -> None:
        self._writing.mkdir(exist_ok=True)
        for draft in self._writing.iterdir():
            writer = _WRITER_NAME.fullmatch(draft.name)
            # Only this machine's process table proves death; drafts from elsewhere stay.
            if writer and writer["host"] == socket.gethostname() and not alive(int(writer["pid"])):
                shutil.rmtree(draft, ignore_errors=True)


def _write_group(folder: Path, episode: Episode) -> None:
    group = zarr.open_group(
        folder, mode="w-", zarr_format=3, attributes={**episode.metadata.to_json()}
    )
    for camera, frames in episode.frames.items():
        _write_frames(group, f"frames/{camera}", frames)
    arrays = {
        "proprio": episode.proprio,
        "actions": episode.actions,
        "timestamps": episode.timestamps,
        "joints": episode.joints,
        "usable": episode.usable,
    }
    arrays |= {f"logged_actions/{name}": array for name, array in episode.logged_actions.items()}
    for name, array in arrays.items():
        if array is not None:
            stored = create_array(
                group, name, array.shape, array.dtype, rows=len(array), zstd=False
            )
            stored[...] = array


def _write_frames(group: zarr.Group, name: str, frames: Frames) -> None:
    rows = _rows_per_chunk(frames, ZSTD_CHUNK_BYTES)
    middle = (len(frames) - rows) // 2
    zstd = zstd_ratio(frames[middle : middle + rows]) >= WORTHWHILE_RATIO
    if not zstd:
        rows = _rows_per_chunk(frames, RAW_CHUNK_BYTES)
    stored = create_array(group, name, frames.shape, np.dtype(np.uint8), rows=rows, zstd=zstd)
    for first in range(0, len(frames), rows):
        stored[first : first + rows] = frames[first : first + rows]


def _rows_per_chunk(frames: Frames, chunk_bytes: int) -> int:
    # Few, equal chunks: consecutive frames share most pixels, and every file costs a flush.
    num_chunks = max(1, round(prod(frames.shape) / chunk_bytes))
    return -(-len(frames) // num_chunks)


def _is_part_of_store(name: str) -> bool:
    return name in ("episodes", "writing", "store.json") or name.startswith(".store.json")


def _write_json(file: Path, content: dict[str, object]) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    flush(draft)
    draft.replace(file)
    flush(file.parent)


def _flush_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent, name))
        flush(Path(parent))
