"""RLDS sets as TensorFlow Datasets stores them, DROID's among them, read without TensorFlow.

    droid/1.0.1/
      features.json                            what a record has
      dataset_info.json                        splits, and how many records each shard has
      droid-train.tfrecord-00000-of-02048      episodes, one record each

Records are counted through all shards of the first split, then of the next, in the order of
dataset_info.json; that number is an episode's id, and stays the same if some shards are not there.
All steps of an episode are observations. The action of the last one is a dummy by the
specification of RLDS, and so is ours: actions are derived from poses, of which there is one fewer.

Shards in array_record are read by tensorflow-datasets (extra `rlds`), records mean the same.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data import source
from worldmodel.data.frames import FrameReadError, Frames, LazyFrames, decode_image
from worldmodel.data.mapping import (
    CameraColumns,
    ColumnMapping,
    GripperColumns,
    PositionColumns,
    RawEpisode,
    RotationColumns,
    TimeColumns,
)
from worldmodel.data.rlds_schema import Leaf, Shard, read_features, read_shards, version_folders
from worldmodel.data.tfexample import Feature, parse_example
from worldmodel.data.tfrecord import RecordIndex, index_records
from worldmodel.extras import require

POSE, GRIPPER, JOINTS = (
    "observation.cartesian_position",
    "observation.gripper_position",
    "observation.joint_position",
)
TIME = "timestamp_us"  # written by `worldmodel.data.rlds_writer`; DROID has no times
DROID_ACTIONS = (
    "cartesian_position",
    "cartesian_velocity",
    "gripper_position",
    "gripper_velocity",
    "joint_position",
    "joint_velocity",
)
DROID_CAMERAS = {  # "left" is the left eye of a stereo camera
    "wrist_image_left": "wrist",
    "exterior_image_1_left": "exterior_1",
    "exterior_image_2_left": "exterior_2",
}
DROID_HZ = 15.0


class Reader(source.Reader):
    """Reads RLDS sets; what the columns of DROID's mean is known, of others a mapping says it."""

    format = "rlds"
    title = "an RLDS set (TensorFlow Datasets)"
    looked_for = (
        "a folder with features.json and shards such as droid-train.tfrecord-00000-of-02048, "
        "or one with versions such as 1.0.1 that have them"
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        versions = version_folders(path)
        if not versions:
            raise ValueError(f"{path} is not {self.title}; expected {self.looked_for}")
        self.folder = versions[-1]
        self.leaves, self._left_out = read_features(self.folder)
        self.shards = read_shards(self.folder)
        self._older = [folder.name for folder in versions[:-1]]

        self._firsts = [0]
        for shard in self.shards:
            self._firsts.append(self._firsts[-1] + shard.records)
        there = {entry.name for entry in os.scandir(self.folder)}
        self._missing = {shard for shard in self.shards if shard.file.name not in there}
        self._ids: Sequence[int] = range(self._firsts[-1])
        if self._missing:
            self._ids = [
                first + k
                for first, shard in zip(self._firsts, self.shards, strict=False)
                for k in range(shard.records)
                if shard.file.name in there
            ]
        self._indices: dict[Path, RecordIndex] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        return bool(version_folders(path))

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`; records of shards that are not there are left out."""
        return self._ids

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`; checks the record's checksum."""
        record, name = self._record(episode_id)
        data = record.read()
        try:
            return self._raw(record, data, name)
        except ValueError as error:
            raise ValueError(f"{record.where}: {error}") from error

    @property
    def mapping(self) -> ColumnMapping | None:
        """What DROID's columns mean, for sets that have them; None for others."""
        shapes = {leaf.key: leaf.shape for leaf in self.leaves if leaf.of_step}
        cameras = [leaf.key for leaf in self.leaves if leaf.kind == "image"]
        named = {key: key.rpartition(".")[2] for key in cameras}
        pose = shapes.get(POSE) == (6,) and shapes.get(GRIPPER) in ((1,), ())
        ours = TIME in shapes
        droid = JOINTS in shapes and any(f"action_dict.{name}" in shapes for name in DROID_ACTIONS)
        if not (pose and (ours or droid) and cameras):
            return None
        return ColumnMapping(
            position=PositionColumns((f"{POSE}[0:3]",)),
            rotation=RotationColumns((f"{POSE}[3:6]",), "euler_xyz"),
            gripper=GripperColumns((GRIPPER,)),
            time=TimeColumns((TIME,), "us") if ours else None,
            hz=None if ours else DROID_HZ,
            joints=(JOINTS,) if JOINTS in shapes else (),
            actions={
                key.removeprefix("action_dict."): (key,)
                for key in shapes
                if key.startswith("action_dict.")
            },
            cameras={DROID_CAMERAS.get(n, n): CameraColumns(key) for key, n in named.items()},
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """See `source.Reader.notes`."""
        notes = []
        if self._older:
            notes.append(f"read version {self.folder.name}; older: {', '.join(self._older)}")
        if self._missing:
            episodes = sum(shard.records for shard in self._missing)
            notes.append(
                f"{len(self._missing)} of {len(self.shards)} shards with {episodes} episodes are "
                f"not there, such as {min(shard.file.name for shard in self._missing)}"
            )
        if self._left_out:
            notes.append(f"not read: {', '.join(self._left_out)}")
        mapping = self.mapping
        if mapping is not None and mapping.time is None:
            notes.append(
                f"the format has no times; {DROID_HZ:g} Hz is what DROID declares for the whole set"
            )
        if mapping is not None and any(leaf.key == "action" for leaf in self.leaves):
            notes.append(
                "'action' is not used: it is documented as joint velocities and was found to be "
                "cartesian positions; 'action_dict' is"
            )
        return tuple(notes)

    def _record(self, episode_id: int) -> "tuple[_TFRecord | _ArrayRecord, str]":
        """Returns where an episode's record is, and its name if it has none of its own."""
        if not 0 <= episode_id < self._firsts[-1]:
            raise KeyError(
                f"no episode {episode_id} in {self.folder}; ids are 0 to {self._firsts[-1] - 1}"
            )
        k = bisect_right(self._firsts, episode_id) - 1
        shard, row = self.shards[k], episode_id - self._firsts[k]
        if shard in self._missing:
            raise KeyError(f"episode {episode_id} is in {shard.file}, which is not there")
        position = shard.first + row
        name = f"{shard.split}[{position}]"
        if shard.file_format == "array_record":
            return _ArrayRecord(self.folder, shard.split, position), name
        return _TFRecord(self._index(shard), row), name

    def _index(self, shard: Shard) -> RecordIndex:
        if shard.file not in self._indices:
            index = index_records(shard.file)
            if not index.problem and len(index) != shard.records:
                raise ValueError(
                    f"{shard.file} has {len(index)} records, but dataset_info.json says "
                    f"{shard.records}; they are not of the same version of the set"
                )
            self._indices[shard.file] = index
        return self._indices[shard.file]

    def _raw(self, record: "_TFRecord | _ArrayRecord", data: bytes, name: str) -> RawEpisode:
        example = parse_example(data)
        columns: dict[str, np.ndarray] = {}
        images: dict[Leaf, np.ndarray] = {}
        attributes: dict[str, str | float | bool | None] = {}
        for leaf in self.leaves:
            if leaf.name not in example:
                raise ValueError(f"has no '{leaf.name}', which features.json promises")
            try:
                if leaf.kind == "text":
                    attributes[leaf.key] = _first_text(example[leaf.name])
                elif leaf.kind == "image":
                    images[leaf] = example[leaf.name].ranges()
                elif leaf.of_step:
                    columns[leaf.key] = _rows(example[leaf.name], leaf)
                else:
                    attributes[leaf.key] = _rows(example[leaf.name], leaf)[0].item()
            except ValueError as error:
                raise ValueError(f"'{leaf.name}': {error}") from error
        _check_steps(columns, {leaf.key: len(ranges) for leaf, ranges in images.items()})
        cameras: dict[str, Frames] = {
            leaf.key: _StoredImages(record, ranges, leaf=leaf, data=data)
            for leaf, ranges in images.items()
        }
        instructions = [
            value
            for key, value in attributes.items()
            if value and isinstance(value, str) and "instruction" in key.rpartition(".")[2]
        ]
        attributes |= {
            "task": next(iter(instructions), ""),
            "success": _success(attributes),
        }
        path = attributes.get("episode_metadata.file_path")
        return RawEpisode(
            name=path if path and isinstance(path, str) else name,
            columns=columns,
            cameras=cameras,
            attributes=attributes,
        )


@dataclass(frozen=True)
class _TFRecord:
    """A record of a TFRecord file."""

    index: RecordIndex
    row: int

    @property
    def where(self) -> str:
        return f"{self.index.file}, record {self.row}"

    def read(self) -> bytes:
        return self.index.read(self.row)

    def read_ranges(self, ranges: np.ndarray) -> list[bytes]:
        """Returns bytes first to end of the record, for each row of `ranges`; nothing else."""
        begin = self.index.data_offset(self.row)
        with self.index.file.open("rb", buffering=0) as stream:
            return [
                os.pread(stream.fileno(), end - first, begin + first)
                for first, end in ranges.tolist()
            ]


@dataclass(frozen=True)
class _ArrayRecord:
    """A record of a split in array_record files, which only its own library can find."""

    folder: Path
    split: str
    position: int

    @property
    def where(self) -> str:
        return f"{self.folder}, split {self.split}, record {self.position}"

    def read(self) -> bytes:
        return _array_records(self.folder, self.split, os.getpid())[self.position]

    def read_ranges(self, ranges: np.ndarray) -> list[bytes]:
        """As `_TFRecord.read_ranges`, but records are compressed in groups: reads a whole group."""
        data = self.read()
        return [data[first:end] for first, end in ranges.tolist()]


@lru_cache(maxsize=8)
def _array_records(folder: Path, split: str, process: int) -> Sequence[bytes]:
    """Returns a split's records; its readers have threads, so that each process needs its own."""
    tfds = require("tensorflow_datasets", extra="rlds")
    return tfds.builder_from_directory(str(folder)).as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )


class _StoredImages(LazyFrames):
    """One camera of an episode: encoded images somewhere in its record.

    A checksum is of a whole record, so it was verified when the episode was read, not per frame.
    """

    def __init__(
        self, record: _TFRecord | _ArrayRecord, ranges: np.ndarray, *, leaf: Leaf, data: bytes
    ) -> None:
        self.record, self.ranges, self.key = record, ranges, leaf.key
        height, width, channels = leaf.shape
        if min(height, width) < 0:
            first, end = ranges[0]
            name = f"{record.where}, {leaf.key}, frame 0"
            height, width, channels = decode_image(data[first:end], name=name).shape
        super().__init__((len(ranges), height, width, channels))

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        where = f"{self.record.where}, {self.key}"
        ranges = self.ranges[indices]
        try:
            images = self.record.read_ranges(ranges)
        except (OSError, ValueError) as error:
            raise FrameReadError(f"{where}: {error}") from error
        frames = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for k, (i, image) in enumerate(zip(indices, images, strict=True)):
            name = f"{where}, frame {i}"
            if len(image) != ranges[k, 1] - ranges[k, 0]:
                raise FrameReadError(f"{name}: the file has become shorter since it was opened")
            frame = decode_image(image, name=name)
            if frame.shape != self.shape[1:]:
                raise FrameReadError(f"{name}: image is {frame.shape}, not {self.shape[1:]}")
            frames[k] = frame
        return frames


def _rows(feature: Feature, leaf: Leaf) -> np.ndarray:
    """Returns a leaf's numbers (steps, *shape), or (1,) of the episode."""
    declared = np.dtype(leaf.dtype)
    # uint64 is written bit by bit as int64, and comes back the same way.
    values = feature.floats() if declared.kind == "f" else feature.ints().astype(declared)
    if len(values) % leaf.size or (not leaf.of_step and len(values) != leaf.size):
        raise ValueError(f"{len(values)} numbers, but one value has {leaf.size}")
    return values.reshape(-1, *leaf.shape)


def _first_text(feature: Feature) -> str:
    return next((value.decode() for value in feature.values() if value), "")


def _check_steps(columns: dict[str, np.ndarray], images: dict[str, int]) -> None:
    """Raises if columns have different numbers of steps, or the record is not one episode."""
    steps = {key: len(values) for key, values in columns.items()} | images
    if len(set(steps.values())) > 1:
        listed = ", ".join(f"{key} {n}" for key, n in steps.items())
        raise ValueError(f"columns have different numbers of steps: {listed}")
    if 0 in steps.values():
        raise ValueError("the episode has no steps")
    first, last = columns.get("is_first"), columns.get("is_last")
    if first is not None and first[1:].any():
        raise ValueError(f"is_first is true at step {1 + int(first[1:].argmax())} of one episode")
    if last is not None and last[:-1].any():
        raise ValueError(
            f"is_last is true at step {int(last[:-1].argmax())} of an episode of {len(last)}"
        )


def _success(attributes: dict[str, Any]) -> bool | None:
    """Returns whether the episode's metadata, or as in DROID its path, says that it succeeded."""
    said = attributes.get("episode_metadata.success")
    if isinstance(said, bool):
        return said
    for key in ("episode_metadata.recording_folderpath", "episode_metadata.file_path"):
        path = str(attributes.get(key, ""))
        if "/success/" in path:
            return True
        if "/failure/" in path:
            return False
    return None
