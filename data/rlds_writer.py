"""Episodes as an RLDS set in DROID's schema, which TensorFlow Datasets opens; written without it.

    <path>/<name>/<version>/
      features.json  dataset_info.json  <name>-<split>.tfrecord-00000-of-00003

Names, shapes and units are DROID's: what reads DROID reads this. Joints and logged actions are
there if the episodes have them. One thing is added, `timestamp_us`, because DROID's steps have no
times and ours are not all 15 Hz. Not kept: pixels to the last bit (images are JPEG), who acted
(`behaviour`), seed, robot, simulator, and which rows are `usable`.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldmodel.data.durable import alive, flush
from worldmodel.data.episode import Episode, validate
from worldmodel.data.formats.rlds import DROID_CAMERAS, GRIPPER, JOINTS, POSE, TIME
from worldmodel.data.rlds_schema import Leaf
from worldmodel.data.tfexample import encode_example
from worldmodel.data.tfrecord import write_records

SHARD_BYTES = 1 << 28

_CAMERA_KEYS = {name: key for key, name in DROID_CAMERAS.items()}
_TFDS = "tensorflow_datasets.core.features."
_CLASSES = {
    "image": "image_feature.Image",
    "text": "text_feature.Text",
    "number": "tensor_feature.Tensor",
}


def write_rlds(
    path: str | Path,
    episodes: Iterable[Episode],
    *,
    name: str = "worldmodel",
    version: str = "1.0.0",
    split: str = "train",
    quality: int = 95,
) -> Path:
    """Writes an RLDS set; it appears whole or not at all.

    Args:
        path: Folder in which the set `name` is made.
        episodes: Episodes of the same cameras, image sizes, joints and logged actions.
        name: Name of the set, letters, digits and '_'.
        version: Version of the set, three numbers.
        split: Name of its only split.
        quality: Of the JPEG images, 1 to 100.

    Returns:
        The folder of the version.

    Raises:
        FileExistsError: There is such a version already.
        ValueError: There are no episodes, or one is invalid or unlike the first.
    """
    if not name.isidentifier() or not split.isidentifier():
        raise ValueError(f"name and split must be letters, digits and '_': {name!r}, {split!r}")
    final = Path(path) / name / version
    if final.exists():
        raise FileExistsError(f"{final} exists; choose another name or version")
    host = socket.gethostname()
    for left in final.parent.glob(f".{version}.*@{host}"):
        if not alive(int(left.name.removeprefix(f".{version}.").partition("@")[0])):
            shutil.rmtree(left)  # by a process that was stopped
    draft = final.with_name(f".{version}.{os.getpid()}@{host}")
    draft.mkdir(parents=True)
    try:
        _write(draft, episodes, name=name, version=version, split=split, quality=quality)
        for file in (*draft.iterdir(), draft):
            flush(file)
        draft.rename(final)
        flush(final.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _write(
    folder: Path, episodes: Iterable[Episode], *, name: str, version: str, split: str, quality: int
) -> None:
    leaves: list[Leaf] = []
    shards: list[int] = []  # how many episodes each has
    sizes: list[int] = []
    for number, episode in enumerate(episodes):
        what = f"episode {number} ({episode.metadata.name or 'unnamed'})"
        validate(episode, name=what)
        found = _leaves(episode)
        leaves = leaves or found
        if found != leaves:
            differing = ", ".join(sorted(leaf.name for leaf in set(found) ^ set(leaves)))
            raise ValueError(f"{what} is unlike the first in {differing}; a set has one schema")
        if not shards or sizes[-1] >= SHARD_BYTES:
            shards.append(0)
            sizes.append(0)
        record = encode_example(_values(episode, quality=quality))
        with (folder / str(len(shards))).open("ab") as stream:
            write_records(stream, [record])
        shards[-1] += 1
        sizes[-1] += len(record)
    if not shards:
        raise ValueError("there are no episodes to write")
    for k in range(len(shards)):  # only now is it known how many there are
        shard = f"{name}-{split}.tfrecord-{k:05}-of-{len(shards):05}"
        (folder / str(k + 1)).rename(folder / shard)
    _write_json(folder / "features.json", _features(leaves))
    info = {
        "name": name,
        "version": version,
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(sizes)),
                "shardLengths": [str(length) for length in shards],
            }
        ],
    }
    _write_json(folder / "dataset_info.json", info)


def _leaves(episode: Episode) -> list[Leaf]:
    numbers = {POSE: (6,), GRIPPER: (1,), "discount": (), "reward": ()}
    if episode.joints is not None:
        numbers[JOINTS] = episode.joints.shape[1:]
    numbers |= {f"action_dict.{n}": a.shape[1:] for n, a in episode.logged_actions.items()}
    leaves = [Leaf(_on_disk(key), "number", shape, "float32") for key, shape in numbers.items()]
    leaves.append(Leaf(_on_disk(TIME), "number", (), "int64"))
    for key in ("is_first", "is_last", "is_terminal"):
        leaves.append(Leaf(_on_disk(key), "number", (), "bool"))
    leaves.append(Leaf(_on_disk("language_instruction"), "text"))
    for camera, frames in episode.frames.items():
        leaves.append(Leaf(_camera(camera), "image", frames.shape[1:], "uint8"))
    for key in ("recording_folderpath", "file_path"):
        leaves.append(Leaf(f"episode_metadata/{key}", "text"))
    return sorted(leaves, key=lambda leaf: leaf.name)


def _values(episode: Episode, *, quality: int) -> dict[str, np.ndarray | list[bytes]]:
    rows = len(episode.proprio)
    outcome = {True: "success", False: "failure", None: "unknown"}[episode.metadata.success]
    is_last = np.arange(rows) == rows - 1
    columns = {
        POSE: episode.proprio[:, :6],
        GRIPPER: episode.proprio[:, 6:],
        TIME: np.round(episode.timestamps * 1e6).astype(np.int64),
        "is_first": np.arange(rows) == 0,
        "is_last": is_last,
        "is_terminal": is_last,
        "discount": np.ones(rows, np.float32),
        "reward": (is_last & (outcome == "success")).astype(np.float32),
    }
    if episode.joints is not None:
        columns[JOINTS] = episode.joints
    columns |= {f"action_dict.{n}": values for n, values in episode.logged_actions.items()}
    values: dict[str, np.ndarray | list[bytes]] = {_on_disk(k): v for k, v in columns.items()}
    values[_on_disk("language_instruction")] = [episode.metadata.task.encode()] * rows
    for camera, frames in episode.frames.items():
        images = (frames[k] for k in range(rows))
        values[_camera(camera)] = [_jpeg(image, quality=quality) for image in images]
    # DROID tells success from failure by this path alone.
    values["episode_metadata/recording_folderpath"] = [f"worldmodel/{outcome}/".encode()]
    values["episode_metadata/file_path"] = [episode.metadata.name.encode()]
    return values


def _on_disk(key: str) -> str:
    return "steps/" + key.replace(".", "/")


def _camera(name: str) -> str:
    return f"steps/observation/{_CAMERA_KEYS.get(name, name)}"


def _jpeg(image: np.ndarray, *, quality: int) -> bytes:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as JPEG")
    return data.tobytes()


def _features(leaves: list[Leaf]) -> dict[str, Any]:
    """Returns the content of features.json."""
    root: dict[str, Any] = {}
    for leaf in leaves:
        *parents, last = leaf.name.split("/")
        below = root
        for parent in parents:
            below = below.setdefault(parent, {})
        below[last] = leaf
    return _described(root)


def _described(node: dict[str, Any] | Leaf) -> dict[str, Any]:
    if isinstance(node, Leaf):
        shape = {"dimensions": [str(size) for size in node.shape]} if node.shape else {}
        content: dict[str, Any] = {
            "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"},
            "text": {},
            "number": {"shape": shape, "dtype": node.dtype, "encoding": "none"},
        }[node.kind]
        field = "tensor" if node.kind == "number" else node.kind
        return {"pythonClassName": _TFDS + _CLASSES[node.kind], field: content}
    features = {}
    for name, child in node.items():
        features[name] = _described(child)
        if name == "steps":
            features[name] = {
                "pythonClassName": f"{_TFDS}dataset_feature.Dataset",
                "sequence": {"feature": features[name], "length": "-1"},
            }
    return {
        "pythonClassName": f"{_TFDS}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
