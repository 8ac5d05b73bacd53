"""Replay buffers of Diffusion Policy and UMI: zarr v2, a folder or a .zip.

    data/<key>           (rows, ...), all episodes one after the other; images uint8
                         (rows, height, width, 3)
    meta/episode_ends    int64 (episodes,): row after the last of each episode

It says nothing of units, rotations, frames of reference or rates, and sets differ, so it always
needs a mapping. Usual are rotations as axis times angle, and the gripper's width in metres: say
`gripper: {key: robot0_gripper_width, open: 0.08, closed: 0}`.

Source: `ReplayBuffer` of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137).
"""

import json
import os
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from worldmodel.data import source
from worldmodel.data.formats.hdf5 import MAX_NUMBERS
from worldmodel.data.frames import FrameReadError, Frames, LazyFrames
from worldmodel.data.mapping import RawEpisode
from worldmodel.extras import require

ENDS = "meta/episode_ends"


class Reader(source.Reader):
    """Reads a replay buffer; always needs a mapping."""

    format = "replay_buffer"
    title = "a zarr v2 replay buffer, as of Diffusion Policy"
    looked_for = f"a folder or .zip with data/ and {ENDS} in zarr v2"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not self.recognises(path):
            raise ValueError(f"{path} is no replay buffer; expected {self.looked_for}")
        self._names = _names(path)
        self._ends = _rows(path, ENDS).astype(np.int64)
        if (np.diff(self._ends, prepend=0) <= 0).any():
            raise ValueError(f"{path}: {ENDS} must increase from above 0, got {self._ends[:10]}")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        if path.is_dir():
            return (path / ENDS / ".zarray").is_file()
        if path.suffix != ".zip" or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return f"{ENDS}/.zarray" in archive.NameToInfo

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return range(len(self._ends))

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`."""
        if episode_id not in self.ids():
            raise KeyError(f"no episode {episode_id} in {self.path}; it has {len(self._ends)}")
        first = int(self._ends[episode_id - 1]) if episode_id else 0
        last = int(self._ends[episode_id])
        columns: dict[str, np.ndarray] = {}
        cameras: dict[str, Frames] = {}
        for name in self._names:
            array = _array(self.path, f"data/{name}")
            if array.ndim == 0:
                continue
            if array.shape[0] < last:
                raise ValueError(
                    f"{self.path}: 'data/{name}' has {array.shape[0]} rows; {ENDS} says that "
                    f"episode {episode_id} goes up to row {last}"
                )
            if array.ndim == 4 and array.dtype == np.uint8:
                shape = (last - first, *array.shape[1:])
                cameras[name] = _ReplayFrames(self.path, f"data/{name}", shape, first=first)
            elif array.dtype.kind in "biuf" and np.prod(array.shape[1:]) <= MAX_NUMBERS:
                columns[name] = _rows(self.path, f"data/{name}", first, last)
        return RawEpisode(f"episode {episode_id}", columns=columns, cameras=cameras)


class _ReplayFrames(LazyFrames):
    """Rows of an array of images."""

    def __init__(self, path: Path, key: str, shape: tuple[int, ...], *, first: int) -> None:
        self.path, self.key, self.first = path, key, first
        super().__init__(shape)  # type: ignore[arg-type]

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        if self.shape[-1] != 3:
            raise FrameReadError(
                f"{self.path}: '{self.key}' has frames of shape {self.shape[1:]}; expected "
                "(height, width, 3), RGB"
            )
        rows, back = np.unique(indices + self.first, return_inverse=True)
        # A run of rows at a time: a chunk is most often one row, and what lies between is not read.
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        try:
            parts = [_rows(self.path, self.key, int(run[0]), int(run[-1]) + 1) for run in runs]
        except ValueError as error:
            raise FrameReadError(str(error)) from error
        return np.concatenate(parts)[back]


def _rows(path: Path, key: str, first: int = 0, last: int | None = None) -> np.ndarray:
    """Returns rows of an array.

    Raises:
        ValueError: They cannot be read, or a chunk of them is not there.
    """
    array = _array(path, key)
    end = array.shape[0] if last is None else last
    _check_chunks(path, key, array, first, end)
    try:
        return np.asarray(array[first:end])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: cannot read rows {first} to {end - 1} of '{key}': {error}"
        ) from error


def _check_chunks(path: Path, key: str, array: Any, first: int, last: int) -> None:
    """Raises ValueError where a chunk lacks: zarr would take it for zeros, and copies stop early.

    A .zip has a table of contents at its end: one that was cut off does not open at all.
    """
    if path.is_file() or first == last:
        return
    along_rows = range(first // array.chunks[0], (last - 1) // array.chunks[0] + 1)
    others = (range(-(-n // c)) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True))
    for chunk in product(along_rows, *others):
        file = path / key / array.metadata.encode_chunk_key(chunk)
        if not file.is_file():
            raise ValueError(f"{path}: '{key}' lacks its part {file.name}; copy it completely")


def _array(path: Path, key: str) -> Any:
    try:
        return _group(path)[key]
    except KeyError as error:
        raise ValueError(f"{path} has no array '{key}'") from error
    except ValueError as error:  # Of numcodecs: it does not know the compressor.
        codec = str((_metadata(path, key).get("compressor") or {}).get("id"))
        if not codec.startswith("imagecodecs_"):
            raise ValueError(f"{path}: cannot open '{key}': {error}") from error
        try:
            imagecodecs = require("imagecodecs.numcodecs", extra="imagecodecs")
        except ImportError as missing:
            raise ImportError(f"{path}: '{key}' is compressed by {codec}; {missing}") from error
        imagecodecs.register_codecs(codec, verbose=False)
        return _group(path)[key]


def _names(path: Path) -> list[str]:
    """Returns the arrays under data/; zarr itself would list them only by opening all."""
    if path.is_dir():
        return sorted(file.parent.name for file in path.glob("data/*/.zarray"))
    with zipfile.ZipFile(path) as archive:
        parts = [name.split("/") for name in archive.NameToInfo if name.endswith("/.zarray")]
    return sorted(p[1] for p in parts if p[0] == "data" and len(p) == 3)


def _metadata(path: Path, key: str) -> dict[str, Any]:
    if path.is_dir():
        return json.loads((path / key / ".zarray").read_bytes())
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{key}/.zarray"))


def _group(path: Path) -> Any:
    return _opened(path, os.getpid())


@lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> Any:
    """Opens a buffer once in each process: a .zip lists all its chunks when it opens."""
    store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
    return zarr.open_group(store, mode="r", zarr_format=2)
