"""Recordings as one's own logs: a folder each, with a CSV, a video and a folder of images."""

import csv
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from worldmodel.data.rotations import to_quat_xyzw

# What a user says of such logs: they have no schema.
MAPPING = {
    "hz": 15,
    "time": {"key": "t_ms", "unit": "ms"},
    "position": {"key": ["x", "y", "z"], "unit": "mm"},
    "rotation": {"key": ["qx", "qy", "qz", "qw"], "form": "quat_xyzw"},
    "gripper": {"key": "width_mm", "open": 80, "closed": 0},
    "joints": [f"q{k}" for k in range(1, 8)],
    "joints_unit": "deg",
    "usable": {"key": "paused", "inverted": True},
    "cameras": {"exterior": "front", "wrist": "hand"},
}
NAMES = ["t_ms", "x", "y", "z", "qx", "qy", "qz", "qw", "width_mm"]
NAMES += [f"q{k}" for k in range(1, 8)]


def write(path: Path, truths: list) -> Path:
    folder = path / "logs"
    for truth in truths:
        episode = folder / f"reach_{truth.number}"
        episode.mkdir(parents=True)
        write_csv(episode / "log.csv", truth)
        write_mp4(episode / "front.mp4", truth.frames["exterior"])
        write_images(episode / "hand", truth.frames["wrist"])
    return folder


def write_csv(file: Path, truth) -> None:
    quat = to_quat_xyzw(truth.rotation)
    width = 80 * (1 - truth.gripper[:, None])
    time = truth.times[:, None] * 1000
    values = [time, truth.position * 1000, quat, width, np.degrees(truth.joints)]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*NAMES, "paused", "operator"])
        for row in np.concatenate(values, axis=1):
            writer.writerow([*(f"{v:.9g}" if k else f"{v:.3f}" for k, v in enumerate(row)),
                             "false", "anna"])  # fmt: skip


def write_mp4(file: Path, frames: np.ndarray) -> None:
    with av.open(file, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def write_images(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for k, image in enumerate(frames):
        cv2.imwrite(str(folder / f"{k}.png"), image[..., ::-1])
