"""The files of a latent cache: packed shards, and a receipt for each.

    <folder>/
      plan.json                            what is cached, and which episodes make up which unit
      shard-00000-1f0c2a9b.safetensors     one unit of work: the rows of a fixed list of episodes
      receipt-00000.json                   what is in it and from which source; written after it
      index.json                           where every episode lies; written last

A shard is an ordinary, uncompressed safetensors file: "latents" (rows, tokens, size) in float16, or
in int8 with "scale" (rows, tokens, 1); "proprio" (rows, 7); "timestamps" (rows,); and the moments
of the latents in float64. Its name ends in the hash of its content and it never changes: a unit
that is encoded anew gets another name, so whoever reads the old one is not disturbed.
"""

import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldmodel.data.durable import alive, flush
from worldmodel.data.moments import Moments

LatentDtype = Literal["float16", "int8"]

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int8": "I8"}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}
_INT8_MAX = 127

# Moments in a shard: over rows; over the means of episodes, which says how far the first may be off
# (rows of one episode resemble each other); and over rows before tokens were pooled.
_WRITER = re.compile(r"\.(?P<pid>\d+)@(?P<host>.+)$")  # at the end of a draft's name
MOMENTS = ("row", "episode", "unpooled")


@dataclass(frozen=True)
class Recipe:
    """How latents come about. Two caches are the same if their recipe and their source are.

    Attributes:
        encoder: Hash of the encoder's weights and of all that is done to a frame before and after.
        camera: Which camera.
        hz: Rate of the rows [Hz]; None for every row of the recording.
        dtype: Type on disk.
        pool: Side of the square of neighbouring tokens that are averaged into one; 1 for none.
    """

    encoder: str
    camera: str
    hz: float | None = None
    dtype: LatentDtype = "float16"
    pool: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.dtype not in ("float16", "int8"):
            raise ValueError(f"dtype of latents must be float16 or int8, got {self.dtype!r}")
        if self.pool < 1:
            raise ValueError(f"pool must be at least 1, got {self.pool}")
        if self.hz is not None and not self.hz > 0:
            raise ValueError(f"the rate of the rows must be positive, got {self.hz} Hz")

    @property
    def key(self) -> str:
        """Name of the cache's folder."""
        rate = "allrows" if self.hz is None else f"{self.hz:.6g}hz"
        pooled = f"-pool{self.pool}" if self.pool > 1 else ""
        return f"{self.encoder}-{self.camera}-{rate}{pooled}-{self.dtype}"


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode in a shard.

    Attributes:
        episode: Its id.
        row: Its first row.
        rows: How many it has.
        stamp: Hash of what the source looked like: its numbers, and size and time of its files.
        content: Hash of what was encoded: the pixels, poses and times of the rows.
    """

    episode: int
    row: int
    rows: int
    stamp: str
    content: str


@dataclass(frozen=True)
class QuarantinedEpisode:
    """An episode that is not in the cache, and why."""

    episode: int
    stamp: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Receipt:
    """What a unit of work has produced.

    Attributes:
        unit: Number of the unit.
        key: Key of the recipe.
        shard: Name of the shard; "" if every episode of the unit is quarantined.
        sha256: Hash of the shard's bytes.
        rows: Rows in the shard.
        weights: Weight of each of the moments in the shard.
        error_squares: Summed squared difference of what was encoded and what is stored.
        value_squares: Summed square of what was encoded.
        episodes: What is in the shard.
        quarantined: What is not.
    """

    unit: int
    key: str
    shard: str
    sha256: str
    rows: int
    weights: Mapping[str, float]
    error_squares: float
    value_squares: float
    episodes: tuple[EncodedEpisode, ...]
    quarantined: tuple[QuarantinedEpisode, ...]

    @property
    def ids(self) -> list[int]:
        """Ids of all episodes of the unit, ascending."""
        return sorted(entry.episode for entry in (*self.episodes, *self.quarantined))

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Receipt":
        """Reads what `to_json` wrote."""
        episodes = tuple(EncodedEpisode(**entry) for entry in record["episodes"])
        quarantined = tuple(
            QuarantinedEpisode(entry["episode"], entry["stamp"], tuple(entry["reasons"]))
            for entry in record["quarantined"]
        )
        return cls(**{**record, "episodes": episodes, "quarantined": quarantined})


def quantise(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 latents and the float32 scale (..., 1) of each token that restores them."""
    scale = np.abs(latents).max(axis=-1, keepdims=True).astype(np.float32) / _INT8_MAX
    scale[scale == 0] = 1
    return np.rint(latents / scale).astype(np.int8), scale


def restore(latents: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns float32 latents of int8 ones and their scale."""
    restored = latents.astype(np.float32)
    restored *= scale  # in place: twice as fast as one multiplication of mixed types
    return restored


def write_shard(
    folder: Path, unit: int, tensors: Mapping[str, Sequence[np.ndarray]], metadata: dict[str, str]
) -> tuple[str, str]:
    """Writes tensors, each the concatenation of its parts, and returns file name and SHA-256.

    The file appears whole or not at all. Wide types come first, so that all are aligned.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    ordered = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    offset = 0
    for name in ordered:
        parts = tensors[name]
        rows, size = sum(len(part) for part in parts), sum(part.nbytes for part in parts)
        header[name] = {
            "dtype": _NAMES[parts[0].dtype.name],
            "shape": [rows, *parts[0].shape[1:]],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    draft = _draft(folder / f"shard-{unit:05d}")
    with draft.open("wb") as stream:
        for chunk in (
            len(text).to_bytes(8, "little"),
            text,
            *(np.ascontiguousarray(part).data for name in ordered for part in tensors[name]),
        ):
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    name = f"shard-{unit:05d}-{digest.hexdigest()[:8]}.safetensors"
    publish(draft, folder / name)
    return name, digest.hexdigest()


def map_shard(file: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a shard, memory-mapped, read-only."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    payload = np.asarray(np.memmap(file, mode="r", offset=8 + length))
    return {
        name: payload[slice(*entry["data_offsets"])]
        .view(_DTYPES[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def moments_of(shard: Mapping[str, np.ndarray], receipt_weights: Mapping[str, float], which: str):
    """Returns the moments of one of `MOMENTS` that a shard keeps."""
    return Moments(
        receipt_weights[which],
        np.asarray(shard[f"{which}_mean"]),
        np.asarray(shard[f"{which}_squares"]),
    )


def receipt_file(folder: Path, unit: int) -> Path:
    """Returns where the receipt of a unit is."""
    return folder / f"receipt-{unit:05d}.json"


def read_receipt(folder: Path, unit: int) -> Receipt | None:
    """Returns the receipt of a unit, or None if it is not finished."""
    try:
        record = json.loads(receipt_file(folder, unit).read_text())
    except FileNotFoundError:
        return None
    return Receipt.from_json(record)


def write_receipt(folder: Path, receipt: Receipt) -> Receipt:
    """Writes a receipt, unless another process was faster, and returns the one that counts."""
    file = receipt_file(folder, receipt.unit)
    draft = write_json_draft(file, receipt.to_json())
    try:
        os.link(draft, file)  # unlike a rename, it does not replace
    except FileExistsError:
        theirs = read_receipt(folder, receipt.unit)
        if theirs is None:
            raise
        if receipt.shard and theirs.shard != receipt.shard:
            (folder / receipt.shard).unlink(missing_ok=True)
        receipt = theirs
    draft.unlink(missing_ok=True)
    flush(folder)
    return receipt


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file, whole or not at all, over an older one."""
    publish(write_json_draft(file, content), file)


def write_json_draft(file: Path, content: Mapping[str, object]) -> Path:
    """Writes JSON to a file of this process's own beside `file`, and returns its path."""
    draft = _draft(file)
    draft.write_text(json.dumps(content) + "\n")
    flush(draft)
    return draft


def publish(draft: Path, file: Path) -> None:
    """Moves a flushed draft into place in one step."""
    draft.replace(file)
    flush(file.parent)


def drafts(folder: Path) -> list[Path]:
    """Returns what processes of this machine that were stopped have left behind."""
    found = ((file, _WRITER.search(file.name)) for file in folder.glob(".*"))
    return [
        file
        for file, writer in found
        if writer and writer["host"] == socket.gethostname() and not alive(int(writer["pid"]))
    ]


def _draft(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}@{socket.gethostname()}")
