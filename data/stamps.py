"""Has a recording changed since something was computed from it? A cheap answer and a certain one.

The stamp of an episode hashes its numbers, and where its frames are: every attribute they have,
with name, size and modification time in place of each file. It reads no frame, so whole data sets
are checked in seconds; like `make`, it trusts that whoever changes a file changes its time or size.
A new time does not prove a change (files get copied), so where stamps differ the content decides: a
hash of the pixels, poses and times themselves.
"""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Episode


def stamp_of(episode: Episode, camera: str, *, meaning: str = "") -> str:
    """Returns the cheap hash of what one camera of an episode would be encoded from.

    `meaning` is what else a verdict on the episode depends on, such as the mapping of its columns.
    """
    digest = hashlib.sha256(meaning.encode())
    for numbers in (episode.proprio, episode.timestamps, episode.usable):
        if numbers is not None:
            digest.update(f"{numbers.dtype} {numbers.shape}".encode())
            digest.update(np.ascontiguousarray(numbers).data)
    _Places(_Digest(digest)).dump(episode.frames[camera])
    return digest.hexdigest()[:32]


def content_of(frames: np.ndarray, proprio: np.ndarray, timestamps: np.ndarray) -> str:
    """Returns the hash of exactly what is encoded and stored."""
    digest = hashlib.sha256()
    for values in (frames, proprio, timestamps):
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:32]


class _Digest:
    """A stream that only hashes what is written."""

    def __init__(self, digest: "hashlib._Hash") -> None:
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)


class _Places(pickle.Pickler):
    """Pickles frames, which hold paths and offsets, with the state of each file for its path."""

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        """Returns what stands for an object; None for the object itself."""
        if isinstance(obj, Path):
            return _state(obj)
        # Text may name a file, or be a key or a separator that only looks like a folder.
        if isinstance(obj, str) and os.path.isfile(obj):
            return _state(Path(obj))
        return None


def _state(path: Path) -> tuple[object, ...] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not path.is_dir():
        return path.name, status.st_size, status.st_mtime_ns
    files = sorted(file for file in path.rglob("*") if file.is_file())
    inside = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    return path.name, *((name, s.st_size, s.st_mtime_ns) for name, s in inside)
