"""Recordings as a replay buffer of Diffusion Policy: zarr v2, image chunks of one row."""

from pathlib import Path

import numcodecs
import numpy as np
import zarr

from worldmodel.data.rotations import to_rotvec

# What a user says of such a buffer: it has no schema of its own.
MAPPING = {
    "hz": 15,
    "time": {"key": "timestamp"},
    "position": {"key": "robot_eef_pose[0:3]"},
    "rotation": {"key": "robot_eef_pose[3:6]", "form": "rotvec"},
    "gripper": {"key": "gripper_width", "open": 0.08, "closed": 0.0},
    "joints": "robot_joint",
    "actions": {"action": "action"},
    "cameras": {"exterior": "camera_0", "wrist": "camera_1"},
}


def write(path: Path, truths: list) -> Path:
    buffer = path / "replay_buffer.zarr"
    write_into(buffer, truths)
    return buffer


def write_into(store: object, truths: list) -> None:
    poses = [np.concatenate([t.position, to_rotvec(t.rotation)], axis=1) for t in truths]
    data = {
        "robot_eef_pose": poses,
        "robot_joint": [t.joints for t in truths],
        "gripper_width": [0.08 * (1 - t.gripper[:, None]) for t in truths],
        "timestamp": [t.times for t in truths],
        "action": poses,
        "camera_0": [t.frames["exterior"] for t in truths],
        "camera_1": [t.frames["wrist"] for t in truths],
    }
    group = zarr.open_group(store, mode="w", zarr_format=2)
    for key, parts in data.items():
        rows = np.concatenate(parts)
        image = rows.ndim == 4
        group.create_array(
            f"data/{key}",
            data=rows,
            chunks=(1, *rows.shape[1:]) if image else rows.shape,
            compressors=numcodecs.Blosc("zstd", clevel=5) if image else None,
        )
    ends = np.cumsum([len(t.times) for t in truths]).astype(np.int64)
    group.create_array("meta/episode_ends", data=ends, compressors=None)
