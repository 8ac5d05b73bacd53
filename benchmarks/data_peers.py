"""The part of benchmarks/data.py that runs in an interpreter that has the other library.

    PYTHON benchmarks/data_peers.py stable-worldmodel|lerobot FOLDER

FOLDER holds frames.npy (uint8, all episodes one after the other) and episodes.json. The peer writes
them with the library's own writer and its defaults, opens them with its own reader, and then
answers every line {"stride", "windows": [[episode, first frame], ...]} on standard input with
{"seconds", "cpu_seconds", "mean"} of reading these windows of 8 frames one after the other.
"""

import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(sys.argv[2]) / "huggingface")  # nothing is left in one's home

import numpy as np  # noqa: E402  (after the variables above, which are read once)
import torch  # noqa: E402

LENGTH = 8


class StableWorldmodel:
    """HDF5, one uncompressed chunk per frame; frames as stored."""

    package = "stable-worldmodel"
    backend = "h5py"

    def __init__(self, folder: Path, frames: np.ndarray, lengths: list[int]) -> None:
        from stable_worldmodel.data import HDF5Writer

        self.file = folder / "stable-worldmodel.h5"
        self.lengths = lengths
        with HDF5Writer(self.file, mode="overwrite") as writer:
            for part in np.split(frames, np.cumsum(lengths)[:-1]):
                writer.write_episode({"pixels": part})
        self.size_bytes = self.file.stat().st_size

    def open(self, stride: int) -> None:
        from stable_worldmodel.data import HDF5Dataset

        self.dataset = HDF5Dataset(
            path=self.file, frameskip=stride, num_steps=LENGTH, keys_to_load=["pixels"]
        )
        counts = [length - LENGTH * stride + 1 for length in self.lengths]
        self.firsts = [0, *np.cumsum(counts).tolist()]

    def read(self, episode: int, first: int) -> torch.Tensor:
        return self.dataset[self.firsts[episode] + first]["pixels"]


class LeRobot:
    """Dataset v3.0: MP4s of many episodes, AV1, GOP 2; frames as float32.

    It decodes with torchcodec, its default, where that finds the FFmpeg libraries, else with PyAV.
    """

    package = "lerobot"

    def __init__(self, folder: Path, frames: np.ndarray, lengths: list[int]) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        self.root = folder / "lerobot"
        shutil.rmtree(self.root, ignore_errors=True)
        names = ["height", "width", "channels"]
        dataset = LeRobotDataset.create(
            "benchmark/frames",
            fps=15,
            root=self.root,
            features={
                "observation.images.exterior": {
                    "dtype": "video",
                    "shape": frames.shape[1:],
                    "names": names,
                }
            },
        )
        for part in np.split(frames, np.cumsum(lengths)[:-1]):
            for frame in part:
                dataset.add_frame({"observation.images.exterior": frame, "task": "benchmark"})
            dataset.save_episode()
        dataset.finalize()
        self.size_bytes = sum(f.stat().st_size for f in self.root.rglob("*.mp4"))
        try:
            import torchcodec.decoders  # noqa: F401

            self.backend = "torchcodec"
        except (ImportError, RuntimeError, OSError):
            self.backend = "pyav"

    def open(self, stride: int) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        times = [k * stride / 15 for k in range(LENGTH)]
        self.dataset = LeRobotDataset(
            "benchmark/frames",
            root=self.root,
            delta_timestamps={"observation.images.exterior": times},
            video_backend=self.backend,
        )
        self.firsts = [int(e["dataset_from_index"]) for e in self.dataset.meta.episodes]

    def read(self, episode: int, first: int) -> torch.Tensor:
        return 255 * self.dataset[self.firsts[episode] + first]["observation.images.exterior"]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between
    torch.set_num_threads(1)
    peers = {peer.package: peer for peer in (StableWorldmodel, LeRobot)}
    name, folder = sys.argv[1], Path(sys.argv[2])
    lengths = json.loads((folder / "episodes.json").read_text())
    peer = peers[name](folder, np.load(folder / "frames.npy", mmap_mode="r"), lengths)
    about = {"version": f"{version(name)}, {peer.backend}", "size_bytes": peer.size_bytes}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        peer.open(order["stride"])
        window = peer.read(*order["windows"][0])  # opens what is opened late
        mean = window.float().mean().item()
        began, cpu = time.perf_counter(), time.process_time()
        for episode, first in order["windows"]:
            window = peer.read(episode, first)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert window.shape[0] == LENGTH
        answer = {"seconds": seconds, "cpu_seconds": cpu, "mean": mean}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
