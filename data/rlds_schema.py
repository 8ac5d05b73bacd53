"""What an RLDS set says of itself, in the features.json and dataset_info.json that tfds writes.

A record is one episode. Its `steps` are lists over time, each under a flat name such as
"steps/observation/joint_position" with the values of all steps one after the other; `Leaf` says how
to cut them into rows again.

Source: the specification of RLDS, https://github.com/google-research/rlds, and
https://www.tensorflow.org/datasets/external_tfrecord.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldmodel.data.tfrecord import index_records

FILE_FORMATS = ("tfrecord", "array_record")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_SHARD_NAME = re.compile(
    rf"(?P<dataset>.+)-(?P<split>[^-.]+)\.(?P<format>{'|'.join(FILE_FORMATS)})"
    r"-(?P<shard>\d{5,})-of-(?P<shards>\d{5,})"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class Leaf:
    """One entry of a record.

    Attributes:
        name: As in the record, such as "steps/observation/state".
        kind: "image" (encoded uint8 RGB), "text" or "number".
        shape: Of one value; -1 where it varies, which only images may.
        dtype: As declared; floats are float32 in the record whatever is declared.
    """

    name: str
    kind: Literal["image", "text", "number"]
    shape: tuple[int, ...] = ()
    dtype: str = ""

    @property
    def of_step(self) -> bool:
        """Whether there is one value for each step, not one for the episode."""
        return self.name.startswith("steps/")

    @property
    def key(self) -> str:
        """Name of the column: "observation.state" for "steps/observation/state"."""
        return self.name.removeprefix("steps/").replace("/", ".")

    @property
    def size(self) -> int:
        """How many numbers one value has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One file of a set.

    Attributes:
        split: Split it belongs to.
        file: Where it is, or would be if it had been fetched.
        file_format: "tfrecord" or "array_record".
        first: Position within the split of its first record.
        records: How many records it has.
    """

    split: str
    file: Path
    file_format: str
    first: int
    records: int


def version_folders(path: Path) -> list[Path]:
    """Returns the folders of a set's versions, oldest first: `path` itself, or those within."""
    if (path / "features.json").is_file() or _shard_files(path):
        return [path]
    if not path.is_dir():
        return []
    folders = [f for f in path.iterdir() if _VERSION.fullmatch(f.name) and f.is_dir()]
    folders.sort(key=lambda f: tuple(map(int, f.name.split("."))))
    return [f for f in folders if (f / "features.json").is_file() or _shard_files(f)]


def read_features(folder: Path) -> tuple[list[Leaf], list[str]]:
    """Returns the entries that a record has, and what is in it that we do not read.

    Raises:
        ValueError: There is no features.json, it is no such file, or the set has no steps.
    """
    file = folder / "features.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no features.json, without which nobody knows what its records mean; "
            f"it lies beside the shards of every RLDS set, so fetch it to {file}"
        )
    content = _read_json(file)
    try:
        found = list(_walk(content, "", steps=False))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} does not describe features as TensorFlow Datasets 4 does: {error!r}"
        ) from error
    leaves = [leaf for leaf in found if isinstance(leaf, Leaf)]
    if not any(leaf.of_step for leaf in leaves):
        raise ValueError(
            f"{file}: expected 'steps' with what each step of an episode has, as in every RLDS "
            f"set; it has {', '.join(leaf.name for leaf in leaves) or 'nothing'}"
        )
    return leaves, [entry for entry in found if isinstance(entry, str)]


def read_shards(folder: Path) -> list[Shard]:
    """Returns the shards of all splits, in the order of dataset_info.json.

    A set without dataset_info.json has its splits in alphabetical order, and its records are
    counted, which takes a look at every shard.

    Raises:
        ValueError: dataset_info.json is broken; or it is missing and there are no shards either.
    """
    file = folder / "dataset_info.json"
    if not file.is_file():
        return _count_shards(folder)
    info = _read_json(file)
    shards: list[Shard] = []
    try:
        file_format = info.get("fileFormat", "tfrecord")
        for split in info["splits"]:
            first, lengths = 0, [int(length) for length in split["shardLengths"]]
            digits = max(5, len(str(len(lengths))))
            for k, records in enumerate(lengths):
                shard, total = f"{k:0{digits}}", f"{len(lengths):0{digits}}"
                name = split.get("filepathTemplate", _TEMPLATE).format(
                    DATASET=info["name"],
                    SPLIT=split["name"],
                    FILEFORMAT=file_format,
                    SHARD_INDEX=shard,
                    NUM_SHARDS=total,
                    SHARD_X_OF_Y=f"{shard}-of-{total}",
                )
                shards.append(Shard(split["name"], folder / name, file_format, first, records))
                first += records
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} does not list splits and their shards as TensorFlow Datasets 4 does: {error!r}"
        ) from error
    if file_format not in FILE_FORMATS:
        raise ValueError(f"{file}: files are {file_format}; can read {' and '.join(FILE_FORMATS)}")
    return shards


def _walk(feature: dict[str, Any], name: str, *, steps: bool) -> Iterator[Leaf | str]:
    """Yields the leaves below a feature, and a sentence for each that cannot be read."""
    what = feature.get("pythonClassName", "?").rpartition(".")[2]
    if "featuresDict" in feature:
        for key, child in sorted(feature["featuresDict"]["features"].items()):
            yield from _walk(child, f"{name}/{key}" if name else key, steps=steps)
    elif name == "steps" and "sequence" in feature:
        yield from _walk(feature["sequence"]["feature"], name, steps=True)
    elif "text" in feature:
        yield Leaf(name, "text")
    elif "classLabel" in feature:
        yield Leaf(name, "number", (), "int64")
    elif "image" in feature:
        shape, dtype = _shape(feature["image"]), feature["image"].get("dtype", "uint8")
        if steps and dtype == "uint8" and len(shape) == 3 and shape[2] == 3:
            yield Leaf(name, "image", shape, dtype)
        else:
            yield f"{name} ({what} {dtype} {shape})"
    elif "tensor" in feature or "boundingBox" in feature:
        tensor = feature.get("tensor") or feature["boundingBox"]
        shape, dtype = _shape(tensor), tensor["dtype"]
        if dtype in ("string", "object") and shape == ():
            yield Leaf(name, "text")
        elif (
            tensor.get("encoding", "none") == "none"
            and (np.dtype(dtype).kind in "biuf")
            and min(shape, default=1) > 0
            and (steps or shape == ())
        ):
            yield Leaf(name, "number", shape, dtype)
        else:
            yield f"{name} ({what} {dtype} {shape})"
    else:
        yield f"{name} ({what})"


def _shape(feature: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in feature["shape"].get("dimensions", ()))


def _shard_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if _SHARD_NAME.fullmatch(f.name))


def _count_shards(folder: Path) -> list[Shard]:
    shards: list[Shard] = []
    for file in _shard_files(folder):
        found = _SHARD_NAME.fullmatch(file.name)
        assert found is not None
        if found["format"] != "tfrecord":
            raise ValueError(
                f"{folder} has no dataset_info.json, which an {found['format']} set needs; it lies "
                f"beside the shards, so fetch it to {folder / 'dataset_info.json'}"
            )
        before = shards[-1] if shards and shards[-1].split == found["split"] else None
        first = before.first + before.records if before else 0
        records = len(index_records(file))
        shards.append(Shard(found["split"], file, "tfrecord", first, records))
    if not shards:
        raise ValueError(
            f"{folder} has neither dataset_info.json nor shards; "
            "expected files such as droid-train.tfrecord-00000-of-00031"
        )
    return shards


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
