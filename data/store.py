"""A folder of episodes in zarr v3: safe to append to, from several processes, through any crash.

    <path>/
      store.json                     schema version
      episodes/                      a zarr group
        00000017/                    one group per episode, metadata in its attributes
          frames/exterior            uint8 (T + 1, height, width, 3), lossless zstd
          proprio  actions  timestamps
      writing/                       episodes that are being written now

An episode is written under `writing/` and flushed to disk; one atomic rename makes it appear under
`episodes/`. A process that dies while writing loses that episode and nothing else.
"""

import json
import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from worldmodel.data.episode import Episode, EpisodeMetadata, validate

SCHEMA_VERSION = 1

# Frames of 128 px simulated scenes shrink 25 times at level 5; higher levels gain little.
FRAME_CODEC = ZstdCodec(level=5)
CHUNK_BYTES = 1 << 20

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
        self._check_schema()
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
        """Returns a whole episode. Raises KeyError where there is none."""
        metadata = self.read_metadata(episode_id)
        return Episode(
            frames={name: self.read_frames(episode_id, name) for name in metadata.cameras},
            proprio=self.read_proprio(episode_id),
            actions=self.read_actions(episode_id),
            timestamps=self.read_timestamps(episode_id),
            metadata=metadata,
        )

    def read_frames(self, episode_id: int, camera: str) -> np.ndarray:
        """Returns uint8 RGB frames (T + 1, height, width, 3) of one camera."""
        return self._read(episode_id, f"frames/{camera}")

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
            try:
                draft.rename(final)  # The commit. Fails where another writer committed this id.
            except OSError as error:
                if final.exists():
                    raise FileExistsError(
                        f"episode {episode_id} is already in {self.path}"
                    ) from error
                raise
            _flush(self._episodes)
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

    def _open(self, episode_id: int, name: str) -> zarr.Array:
        self._check_exists(episode_id)
        array = self._folder(episode_id) / name
        if not array.is_dir():
            known = sorted(entry.name for entry in array.parent.iterdir() if entry.is_dir())
            raise KeyError(f"episode {episode_id} has no '{name}'; there are {known}")
        return zarr.open_array(array, mode="r", zarr_format=3)

    def _read(self, episode_id: int, name: str) -> np.ndarray:
        return np.asarray(self._open(episode_id, name)[...])

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
        _write_json(self.path / "store.json", {"worldmodel_episode_store": SCHEMA_VERSION})

    def _check_schema(self) -> None:
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

    def _remove_dead_writers(self) -> None:
        self._writing.mkdir(exist_ok=True)
        for draft in self._writing.iterdir():
            writer = _WRITER_NAME.fullmatch(draft.name)
            # Only this machine's process table proves death; drafts from elsewhere stay.
            if writer and writer["host"] == socket.gethostname() and not _alive(int(writer["pid"])):
                shutil.rmtree(draft, ignore_errors=True)


def _write_group(folder: Path, episode: Episode) -> None:
    group = zarr.open_group(
        folder, mode="w-", zarr_format=3, attributes={**episode.metadata.to_json()}
    )
    for camera, frames in episode.frames.items():
        # Few, equal chunks: consecutive frames share most pixels, and every file costs a flush.
        num_chunks = max(1, round(frames.nbytes / CHUNK_BYTES))
        group.create_array(
            f"frames/{camera}",
            data=frames,
            chunks=(-(-len(frames) // num_chunks), *frames.shape[1:]),
            compressors=FRAME_CODEC,
        )
    for name, array in (
        ("proprio", episode.proprio),
        ("actions", episode.actions),
        ("timestamps", episode.timestamps),
    ):
        group.create_array(name, data=array, chunks=array.shape, compressors=None)


def _is_part_of_store(name: str) -> bool:
    return name in ("episodes", "writing", "store.json") or name.startswith(".store.json")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It exists and belongs to someone else.
        return True
    try:  # A zombie answers too, but is dead: it only waits to be asked how it ended.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # No /proc here, or it hides the process: stay on the safe side.
        return True
    return state not in ("Z", "X")


def _write_json(file: Path, content: dict[str, object]) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    _flush(draft)
    draft.replace(file)
    _flush(file.parent)


def _flush_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _flush(Path(parent, name))
        _flush(Path(parent))


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of entries, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
