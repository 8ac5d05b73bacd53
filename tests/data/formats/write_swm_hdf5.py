"""Recordings as stable-worldmodel's HDF5Writer lays them out: chunks of one step."""

from pathlib import Path

import h5py
import numpy as np

# What a user says of such a file: it has no schema of its own.
MAPPING = {
    "hz": 15,
    "position": {"key": "proprio[0:3]", "unit": "cm"},
    "rotation": {"key": "proprio[3:12]", "form": "matrix"},
    "gripper": {"key": "proprio[12]", "open": 100, "closed": 0},  # per cent of the width
    "joints": "joints",
    "joints_unit": "deg",
    "actions": {"action": "action"},
    "cameras": {"exterior": "pixels", "wrist": "pixels_wrist"},
}


def write(path: Path, truths: list) -> Path:
    file = path / "arm.h5"
    matrices = [t.rotation.reshape(-1, 9) for t in truths]
    openings = [100 * (1 - t.gripper[:, None]) for t in truths]
    proprio = [
        np.concatenate([100 * t.position, m, o], axis=1)
        for t, m, o in zip(truths, matrices, openings, strict=True)
    ]
    columns = {
        "action": [np.diff(p, axis=0, append=p[-1:]) for p in proprio],
        "joints": [np.degrees(t.joints) for t in truths],
        "pixels": [t.frames["exterior"] for t in truths],
        "pixels_wrist": [t.frames["wrist"] for t in truths],
        "proprio": proprio,
    }
    lengths = np.array([len(t.times) for t in truths])
    with h5py.File(file, "w", libver="latest") as content:
        for name, parts in columns.items():
            rows = np.concatenate(parts)
            size = rows.shape[1:]
            content.create_dataset(name, data=rows, chunks=(1, *size), maxshape=(None, *size))
        content["ep_len"] = lengths.astype(np.int32)
        content["ep_offset"] = (np.cumsum(lengths) - lengths).astype(np.int64)
    return file
