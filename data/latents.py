"""A cache of what the frozen encoder sees: packed, uncompressed, memory-mapped.

    <path>/
      shard-00000.safetensors    "latents" (rows, tokens, size), "proprio" (rows, 7),
                                 "timestamps" (rows,); a row is a frame, episodes are contiguous
      index.json                 key, camera, and which episode lies where; written last

Training draws short windows at random rows, which a flat memory map serves 40 to 100 times cheaper
than a chunked or compressed store. Proprio and timestamps come along, so training needs nothing
else. A shard appears whole or not at all, and a build that was killed goes on after the last one.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from worldmodel.data.store import EpisodeStore

FORMAT_VERSION = 1
SHARD_BYTES = 256 * 2**20

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 frames (T, height, width, 3) -> floating latents (T, tokens, size)."""

_NUMPY_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True)
class _Place:
    """Where an episode lies."""

    episode: int
    shard: int
    row: int
    rows: int


class LatentCache:
    """Latents, proprio and timestamps of many episodes, addressed by episode id.

    Example:
        cache = LatentCache.build(path, store, encode, key=key, camera="exterior")
        index = WindowIndex([cache.timestamps(i) for i in cache.ids], dt=0.25, length=8)
        positions, frames = index.sample(rng, 48)
        latents = cache.gather(cache.ids[positions], frames)  # (48, 8, tokens, size)
    """

    def __init__(self, path: str | Path, expected_key: str) -> None:
        """Opens a finished cache.

        Args:
            path: Folder of the cache.
            expected_key: Hash of encoder and preprocessing that the latents must come from.

        Raises:
            FileNotFoundError: There is no finished cache at `path`.
            ValueError: It was made with another key, or by a newer version.
        """
        self.path = Path(path)
        file = self.path / "index.json"
        if not file.exists():
            raise FileNotFoundError(
                f"no finished latent cache at {self.path}; build it, or finish it by building again"
            )
        index = json.loads(file.read_text())
        if index["worldmodel_latent_cache"] > FORMAT_VERSION:
            raise ValueError(
                f"{self.path} has format version {index['worldmodel_latent_cache']}, this program "
                f"reads up to {FORMAT_VERSION}; update worldmodel to read it"
            )
        _check_key(self.path, index["key"], expected_key)
        self.key: str = index["key"]
        self.camera: str = index["camera"]
        places = sorted((_Place(**p) for p in index["episodes"]), key=lambda place: place.episode)
        self.ids = np.array([place.episode for place in places], np.int64)  # ascending
        self._shard = np.array([place.shard for place in places], np.int64)
        self._row = np.array([place.row for place in places], np.int64)
        self._rows = np.array([place.rows for place in places], np.int64)
        num_shards = int(self._shard.max()) + 1
        self._shards = [_map_shard(_shard_file(self.path, i)) for i in range(num_shards)]

    @classmethod
    def open(cls, path: str | Path, expected_key: str) -> "LatentCache":
        """Opens a finished cache; see `__init__`."""
        return cls(path, expected_key)

    @classmethod
    def build(
        cls,
        path: str | Path,
        store: EpisodeStore,
        encode: Encode,
        *,
        key: str,
        camera: str,
        dtype: Literal["float16", "float32"] = "float16",
        shard_bytes: int = SHARD_BYTES,
        progress: bool = True,
    ) -> "LatentCache":
        """Encodes every episode of a store that the cache does not have yet, and opens the cache.

        Args:
            path: Folder of the cache; continued where it exists.
            store: Episodes to encode.
            encode: Maps uint8 frames (T, height, width, 3) to latents (T, tokens, size).
            key: Hash of encoder and preprocessing; another key needs another folder.
            camera: Which camera to encode.
            dtype: Floating type on disk.
            shard_bytes: Size at which a shard is closed.
            progress: Whether to show a progress bar.

        Raises:
            ValueError: The store is empty, the folder holds latents of another key, camera or
                dtype, or an encoding has a wrong shape or does not fit into `dtype`.
        """
        path = Path(path)
        ids = store.ids()
        if not ids:
            raise ValueError(f"{store.path} has no episodes to encode")
        path.mkdir(parents=True, exist_ok=True)
        places, num_shards = _read_finished_shards(path, key, camera, dtype)
        done = {place.episode for place in places}

        shard = _ShardWriter(path, num_shards, key, camera)
        with tqdm(
            total=len(ids),
            initial=sum(episode in done for episode in ids),
            desc="encode",
            unit="episode",
            disable=not progress,
        ) as bar:
            for episode in ids:
                if episode in done:
                    continue
                frames = store.read_frames(episode, camera)
                shard.add(
                    episode,
                    _encode_checked(encode, frames, dtype, f"episode {episode}"),
                    store.read_proprio(episode),
                    store.read_timestamps(episode),
                )
                if shard.size_bytes >= shard_bytes:
                    places += shard.close()
                    shard = _ShardWriter(path, shard.number + 1, key, camera)
                bar.update()
        if shard.size_bytes:
            places += shard.close()
        _write_json(
            path / "index.json",
            {
                "worldmodel_latent_cache": FORMAT_VERSION,
                "key": key,
                "camera": camera,
                "episodes": [asdict(place) for place in places],
            },
        )
        return cls(path, key)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.ids)

    def __reduce__(self) -> tuple[type["LatentCache"], tuple[Path, str]]:
        """Pickles as its path, so that a worker process maps the files instead of copying them."""
        return LatentCache, (self.path, self.key)

    def latents(self, episode: int) -> np.ndarray:
        """Returns latents (T + 1, tokens, size) of an episode id, memory-mapped, read-only."""
        return self._episode(episode, "latents")

    def proprio(self, episode: int) -> np.ndarray:
        """Returns float32 proprio (T + 1, 7) of an episode id."""
        return self._episode(episode, "proprio")

    def timestamps(self, episode: int) -> np.ndarray:
        """Returns float64 capture times (T + 1,) [s] of an episode id."""
        return self._episode(episode, "timestamps")

    def gather(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns latents (n, length, tokens, size) of episode ids (n,) at frames (n, length)."""
        return self._gather(episodes, frames, "latents")

    def gather_proprio(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns float32 proprio (n, length, 7) of episode ids (n,) at frames (n, length)."""
        return self._gather(episodes, frames, "proprio")

    def _positions(self, episodes: np.ndarray) -> np.ndarray:
        positions = np.searchsorted(self.ids, episodes)
        found = self.ids[np.minimum(positions, len(self.ids) - 1)] == episodes
        if not found.all():
            raise KeyError(
                f"no latents of episode {episodes[~found][0]} in {self.path}; it has "
                f"{len(self)} episodes, ids {self.ids[0]} to {self.ids[-1]}"
            )
        return positions

    def _episode(self, episode: int, name: str) -> np.ndarray:
        i = self._positions(np.array([episode]))[0]
        return self._shards[self._shard[i]][name][self._row[i] : self._row[i] + self._rows[i]]

    def _gather(self, episodes: np.ndarray, frames: np.ndarray, name: str) -> np.ndarray:
        if frames.ndim != 2 or episodes.shape != frames.shape[:1]:
            raise ValueError(
                f"expected episodes (n,) and frames (n, length), got {episodes.shape} and "
                f"{frames.shape}"
            )
        i = self._positions(episodes)
        beyond = (frames < 0) | (frames >= self._rows[i][:, None])
        if beyond.any():
            n, k = np.argwhere(beyond)[0]
            raise IndexError(
                f"frame {frames[n, k]} of episode {episodes[n]}, which has {self._rows[i[n]]}"
            )
        rows = self._row[i][:, None] + frames  # (n, length)
        first = self._shards[0][name]
        result = np.empty((*frames.shape, *first.shape[1:]), first.dtype)
        for shard in np.unique(self._shard[i]):
            here = self._shard[i] == shard
            result[here] = self._shards[shard][name][rows[here]]
        return result


class _ShardWriter:
    """Collects whole episodes in memory and writes them as one shard."""

    def __init__(self, path: Path, number: int, key: str, camera: str) -> None:
        self.number = number
        self.size_bytes = 0
        self._file = _shard_file(path, number)
        self._key, self._camera = key, camera
        self._places: list[_Place] = []
        self._rows = 0
        self._parts: dict[str, list[np.ndarray]] = {"latents": [], "proprio": [], "timestamps": []}

    def add(
        self, episode: int, latents: np.ndarray, proprio: np.ndarray, timestamps: np.ndarray
    ) -> None:
        self._places.append(_Place(episode, self.number, self._rows, len(latents)))
        self._rows += len(latents)
        for name, part in (("latents", latents), ("proprio", proprio), ("timestamps", timestamps)):
            self._parts[name].append(part)
            self.size_bytes += part.nbytes

    def close(self) -> list[_Place]:
        shapes = {part.shape[1:] for part in self._parts["latents"]}
        if len(shapes) > 1:
            raise ValueError(f"episodes have latents of different shapes: {sorted(shapes)}")
        header = {
            "key": self._key,
            "camera": self._camera,
            "episodes": json.dumps([asdict(place) for place in self._places]),
        }
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        save_file({k: np.concatenate(v) for k, v in self._parts.items()}, draft, metadata=header)
        _commit(draft, self._file)
        return self._places


def _encode_checked(encode: Encode, frames: np.ndarray, dtype: str, name: str) -> np.ndarray:
    latents = np.asarray(encode(frames))
    if latents.ndim != 3 or len(latents) != len(frames) or latents.dtype.kind != "f":
        raise ValueError(
            f"{name}: encode gave {latents.dtype} {latents.shape} for {len(frames)} frames; "
            f"expected floats ({len(frames)}, tokens, size)"
        )
    limit = np.finfo(dtype).max
    if not (np.abs(latents) <= limit).all():  # also false for NaN
        raise ValueError(f"{name}: latents are not finite, or beyond {dtype} (largest {limit:.4g})")
    return latents.astype(dtype)


def _read_finished_shards(
    path: Path, key: str, camera: str, dtype: str
) -> tuple[list[_Place], int]:
    """Returns the episodes in the shards 0, 1, ... that a build has finished, and their number."""
    places: list[_Place] = []
    number = 0
    while (file := _shard_file(path, number)).exists():
        header, _ = _read_header(file)
        metadata = header["__metadata__"]
        _check_key(path, metadata["key"], key)
        if metadata["camera"] != camera:
            raise ValueError(
                f"{path} holds latents of camera '{metadata['camera']}', not '{camera}'; "
                "give every camera its own folder"
            )
        stored = np.dtype(_NUMPY_DTYPES[header["latents"]["dtype"]])
        if stored != dtype:
            raise ValueError(f"{path} holds {stored} latents, not {dtype}; use another folder")
        places += [_Place(**place) for place in json.loads(metadata["episodes"])]
        number += 1
    return places, number


def _check_key(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"the latents in {path} were made with key '{found}', but '{expected}' is wanted: the "
            "encoder or its preprocessing has changed; delete the folder and build it again, or "
            "build in another folder"
        )


def _shard_file(path: Path, number: int) -> Path:
    return path / f"shard-{number:05d}.safetensors"


def _map_shard(file: Path) -> dict[str, np.ndarray]:
    header, begin = _read_header(file)
    return {
        name: np.memmap(
            file,
            dtype=_NUMPY_DTYPES[entry["dtype"]],
            mode="r",
            offset=begin + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read_header(file: Path) -> tuple[dict, int]:
    """Returns the header of a safetensors file, and where its data begin [bytes]."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)), 8 + length


def _write_json(file: Path, content: dict[str, object]) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(content))
    _commit(draft, file)


def _commit(draft: Path, file: Path) -> None:
    """Flushes a draft to disk and moves it into place in one step."""
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
    draft.replace(file)
