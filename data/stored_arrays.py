"""Arrays of an episode store on disk: plain zarr v3, read without zarr-python.

zarr-python can read every array there is, and pays a millisecond for each read. Ours are of one
simple kind: cut along the first axis only, no chunk left out, its bytes in C order in a file of
their own, raw or as zstd. Such an array is read here, straight from its files into the result; any
other is left to zarr-python. Either way an array pickles by its path and keeps no file open.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import prod
from os import stat
from pathlib import Path

import numcodecs.zstd
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from worldmodel.data.frames import FrameReadError, LazyFrames

# zarr leaves out chunks of zeros, so that to a reader a lost chunk is a black frame. This attribute
# says that none was left out, and the reader that a chunk which is not there is an error.
_ALL_CHUNKS = "every_chunk_is_stored"

_ZSTD_LEVEL = 5  # higher levels gain little on simulated scenes

_REMEMBERED_CHUNKS = 32  # per process; at most _REMEMBERED_BYTES each
_REMEMBERED_BYTES = 4 << 20


def create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, *, rows: int, zstd: bool
) -> zarr.Array:
    """Adds an array to a zarr group, to be filled in blocks of `rows` along its first axis.

    Args:
        group: Where it goes.
        name: Its name within the group.
        shape: Its shape.
        dtype: Its dtype.
        rows: Rows per chunk.
        zstd: Whether to compress the chunks.
    """
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(rows, *shape[1:]),
        compressors=ZstdCodec(level=_ZSTD_LEVEL) if zstd else None,
        attributes={_ALL_CHUNKS: True},
        config={"write_empty_chunks": True},
    )


def zstd_ratio(array: np.ndarray) -> float:
    """Returns how many times smaller an array becomes as a compressed chunk."""
    data = np.ascontiguousarray(array)
    return data.nbytes / len(numcodecs.zstd.compress(data, _ZSTD_LEVEL))


@dataclass(frozen=True)
class StoredArray:
    """An array that `create_array` has made.

    Attributes:
        path: Its folder.
        shape: Its shape.
        dtype: Its dtype.
        rows: Rows per chunk.
        zstd: Whether its chunks are compressed.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: int
    zstd: bool

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows at `indices` (k,), int64 within the array, in any order.

        Raises:
            ValueError: A chunk is not there, too short, or not what zstd wrote; names the file.
        """
        result = np.empty((len(indices), *self.shape[1:]), self.dtype)
        chunks = indices // self.rows
        # Rows that follow each other in one chunk are one read.
        breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(chunks) != 0)) + 1
        begins, ends = [0, *breaks.tolist()], [*breaks.tolist(), len(indices)]
        firsts = (indices[begins] % self.rows).tolist()
        runs = zip(chunks[begins].tolist(), firsts, begins, ends, strict=True)
        for chunk, group in groupby(runs, key=lambda run: run[0]):
            file = f"{self.path}/c/{chunk}{'/0' * (len(self.shape) - 1)}"
            places = [(first, result[begin:end]) for _, first, begin, end in group]
            try:
                if self.zstd:
                    self._copy(file, places)
                else:
                    self._read(file, places)
            except FileNotFoundError as error:
                raise ValueError(f"{file} is missing: the store is incomplete") from error
        return result

    def _read(self, file: str, places: list[tuple[int, np.ndarray]]) -> None:
        row_bytes = self.dtype.itemsize * prod(self.shape[1:])
        with open(file, "rb", buffering=0) as stream:
            for first, target in places:
                stream.seek(first * row_bytes)
                got = stream.readinto(target.data)
                if got != target.nbytes:
                    raise ValueError(
                        f"{file} ends early: {got} of {target.nbytes} bytes from row {first} on"
                    )

    def _copy(self, file: str, places: list[tuple[int, np.ndarray]]) -> None:
        shape = (self.rows, *self.shape[1:])
        size = self.dtype.itemsize * prod(shape)
        if size <= _REMEMBERED_BYTES:
            status = stat(file)  # the chunk that is there now, not one of a store deleted since
            data = _remembered(file, status.st_ino, status.st_mtime_ns)
        else:
            data = _decompressed(file)
        if len(data) != size:
            raise ValueError(f"{file} holds {len(data)} bytes of pixels; expected {size}")
        chunk = np.frombuffer(data, self.dtype).reshape(shape)
        for first, target in places:
            target[...] = chunk[first : first + len(target)]


@dataclass(frozen=True)
class OtherArray:
    """An array of any other kind: older than this module, or written by another program.

    Attributes:
        path: Its folder.
        shape: Its shape.
        dtype: Its dtype.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows at `indices` (k,), int64 within the array, in any order."""
        array = zarr.open_array(self.path, mode="r")
        first, last = int(indices.min()), int(indices.max())
        return np.asarray(array[first : last + 1])[indices - first]


def open_array(path: Path) -> StoredArray | OtherArray:
    """Opens an array by its zarr.json alone.

    Raises:
        FileNotFoundError: There is no array.
        ValueError: Its zarr.json is broken.
    """
    file = path / "zarr.json"
    try:
        found = json.loads(file.read_bytes())
        shape = tuple(found["shape"])
        array = StoredArray(
            path,
            shape,
            np.dtype(found["data_type"]).newbyteorder("<"),
            rows=found["chunk_grid"]["configuration"]["chunk_shape"][0],
            zstd=any(codec["name"] == "zstd" for codec in found["codecs"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{file} is not the description of a zarr v3 array of numbers: {error!r}"
        ) from error
    # Whatever the description says beyond what we have understood of it, we have not understood.
    if found != _description(array):
        return OtherArray(path, shape, array.dtype)
    return array


class StoredFrames(LazyFrames):
    """Frames in an array of a store."""

    def __init__(self, array: StoredArray | OtherArray) -> None:
        super().__init__(array.shape)  # type: ignore[arg-type]
        self._array = array

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        try:
            return self._array.take(indices)
        except (OSError, ValueError) as error:
            raise FrameReadError(
                f"cannot read frames {indices.min()} to {indices.max()} of {self._array.path}: "
                f"{error}"
            ) from error


def _description(array: StoredArray) -> dict[str, object]:
    """Returns the zarr.json of an array (zarr v3 core specification, "array metadata")."""
    bytes_codec: dict[str, object] = {"name": "bytes"}
    if array.dtype.itemsize > 1:
        bytes_codec["configuration"] = {"endian": "little"}
    zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [array.rows, *array.shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,  # equal to 0.0 and False, as JSON has it for other dtypes
        "codecs": [bytes_codec, zstd] if array.zstd else [bytes_codec],
        "attributes": {_ALL_CHUNKS: True},
        "storage_transformers": [],
    }


@lru_cache(maxsize=_REMEMBERED_CHUNKS)
def _remembered(file: str, inode: int, changed_ns: int) -> bytes:
    return _decompressed(file)


def _decompressed(file: str) -> bytes:
    with open(file, "rb") as stream:
        data = stream.read()
    try:
        return numcodecs.zstd.decompress(data)
    except RuntimeError as error:
        raise ValueError(f"{file} is not what zstd wrote: {error}") from error
