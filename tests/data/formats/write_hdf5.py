"""Recordings as HDF5 of nobody's schema: millimetres, degrees, milliseconds, one file each.

One camera is raw, the other encoded row by row.
"""

from pathlib import Path

import cv2
import h5py
import numpy as np

from worldmodel.pose import matrix_to_euler

# What a user says of such files: they have no schema.
MAPPING = {
    "hz": 15,
    "time": {"key": "time.ms", "unit": "ms"},
    "position": {"key": "arm.position", "unit": "mm"},
    "rotation": {"key": "arm.angles", "form": "euler_XYZ", "unit": "deg"},
    "gripper": {"key": "gripper.width", "open": 0.085, "closed": 0.0},
    "joints": "arm.joints",
    "actions": {"target": ["arm.position", "arm.angles"]},
    "cameras": {"exterior": "images.front", "wrist": "images.hand"},
}


def write(path: Path, truths: list) -> Path:
    folder = path / "hdf5"
    folder.mkdir()
    for truth in truths:
        with h5py.File(folder / f"episode_{truth.number}.hdf5", "w") as content:
            write_into(content, truth)
    return folder


def write_into(group: h5py.Group, truth) -> None:
    group.attrs["task"] = truth.task
    group.attrs["success"] = truth.success
    group["time/ms"] = np.round(truth.times * 1000).astype(np.int64)
    group["arm/position"] = truth.position * 1000
    group["arm/angles"] = np.degrees(intrinsic(truth.rotation))
    group["arm/joints"] = truth.joints.astype(np.float32)
    group["gripper/width"] = 0.085 * (1 - truth.gripper)
    group["images/front"] = truth.frames["exterior"]
    wrist = truth.frames["wrist"]
    hand = group.create_dataset("images/hand", (len(wrist),), h5py.vlen_dtype(np.uint8))
    for k, image in enumerate(wrist):
        hand[k] = cv2.imencode(".png", image[..., ::-1])[1]


def intrinsic(matrices: np.ndarray) -> np.ndarray:
    """Angles a, b, c with R = Rx(a) Ry(b) Rz(c): those of the inverse, negated and backwards."""
    inverse = np.swapaxes(matrices, -1, -2)  # = Rz(-c) Ry(-b) Rx(-a), extrinsic xyz of -a, -b, -c
    return -matrix_to_euler(inverse)
