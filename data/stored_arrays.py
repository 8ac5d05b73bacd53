"""Arrays of an episode store on disk: plain zarr v3, read without zarr-python.

zarr-python can read every array there is, and pays a millisecond for each read. Ours are of one
simple kind: cut along the first axis only, no chunk left out, its bytes in C order in a file of
their own, raw or as zstd. Such an array is read here, straight from its files into the result; any
other is left to zarr-python. Either way an array pickles by its path and keeps no file open.

A process keeps the raw chunks that it read last mapped into memory: then a window costs its copy.
The mapped pages are the system's page cache, however much of them the process seems to use.
"""

import json
import mmap
import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import prod
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

# Per process:
_MAPPED_CHUNKS = 4096  # of the 65530 maps that Linux lets a process have
_MAPPED_BYTES = 1 << 16  # smaller ones are read, which costs less than mapping them
_REMEMBERED_CHUNKS = 32  # decompressed; at most _REMEMBERED_BYTES each
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
            places = [(first, result[begin:end]) for _, first, begin, end in group]
            data = self._chunk(f"{self.path}/c/{chunk}{'/0' * (len(self.shape) - 1)}")
            if isinstance(data, mmap.mmap):
                # All at once from the disk, where they are not in memory, and not page by page.
                for first, place in places:
                    begin = first * (place.nbytes // len(place))
                    page = begin - begin % mmap.PAGESIZE
                    data.madvise(mmap.MADV_WILLNEED, page, begin + place.nbytes - page)
            rows = np.frombuffer(data, self.dtype).reshape(self.rows, *self.shape[1:])
            for first, place in places:
                place[...] = rows[first : first + len(place)]
        return result

    def _chunk(self, file: str) -> mmap.mmap | bytes:
        size = self.dtype.itemsize * self.rows * prod(self.shape[1:])
        try:
            if self.zstd and size > _REMEMBERED_BYTES:
                data = _decompressed(file)
            elif not self.zstd and size < _MAPPED_BYTES:
                data = _read(file)
            else:
                status = os.stat(file)  # as it is now, not as it was in a store deleted since
                keep = _remembered if self.zstd else _mapped
                data = keep(file, status.st_ino, status.st_mtime_ns)
        except FileNotFoundError as error:
            raise ValueError(f"{file} is missing: the store is incomplete") from error
        if len(data) != size:
            raise ValueError(f"{file} has {len(data)} bytes of pixels or numbers, not {size}")
        return data


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


@lru_cache(maxsize=_MAPPED_CHUNKS)
def _mapped(file: str, inode: int, changed_ns: int) -> mmap.mmap | bytes:
    with open(file, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:  # which cannot be mapped
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


@lru_cache(maxsize=_REMEMBERED_CHUNKS)
def _remembered(file: str, inode: int, changed_ns: int) -> bytes:
    return _decompressed(file)


def _decompressed(file: str) -> bytes:
    try:
        return numcodecs.zstd.decompress(_read(file))
    except RuntimeError as error:
        raise ValueError(f"{file} is not what zstd wrote: {error}") from error


def _read(file: str) -> bytes:
    with open(file, "rb") as stream:
        return stream.read()
