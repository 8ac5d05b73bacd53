"""Recordings as our own episode store, put together from the zarr v3 specification alone."""

import json
from pathlib import Path

import numpy as np


def write(path: Path, truths: list) -> Path:
    store = path / "episodes_of_tests"
    (store / "episodes").mkdir(parents=True)
    (store / "writing").mkdir()
    (store / "store.json").write_text(json.dumps({"worldmodel_episode_store": 2}))
    write_group(store / "episodes", {})
    for truth in truths:
        write_episode(store / "episodes" / f"{truth.number:08d}", truth)
    return store


def write_episode(folder: Path, truth) -> None:
    write_group(
        folder,
        {
            "source": "tests",
            "task": truth.task,
            "behaviour": "scripted",
            "seed": truth.number,
            "control_hz": 15.0,
            "renderer": "",
            "mujoco_version": "",
            "cameras": list(truth.frames),
            "name": f"recording {truth.number}",
            "success": truth.success,
            "robot": "franka",
            "clock": "measured",
        },
    )
    proprio = truth.proprio.astype(np.float32)
    write_array(folder / "proprio", proprio)
    write_array(folder / "actions", np.diff(proprio, axis=0))
    write_array(folder / "timestamps", truth.times)
    write_array(folder / "joints", truth.joints.astype(np.float32))
    write_group(folder / "frames", {})
    for camera, frames in truth.frames.items():
        write_array(folder / "frames" / camera, frames)


def write_group(folder: Path, attributes: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / "zarr.json").write_text(json.dumps(group))


def write_array(folder: Path, array: np.ndarray) -> None:
    """One chunk of bytes as they lie in memory."""
    zeros = ["0"] * array.ndim
    chunk = folder.joinpath("c", *zeros)
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(np.ascontiguousarray(array).tobytes())
    codec: dict[str, object] = {"name": "bytes"}
    if array.dtype.itemsize > 1:
        codec["configuration"] = {"endian": "little"}
    grid = {"name": "regular", "configuration": {"chunk_shape": list(array.shape)}}
    described = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [codec],
        "attributes": {},
    }
    (folder / "zarr.json").write_text(json.dumps(described))
