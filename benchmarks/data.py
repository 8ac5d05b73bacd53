"""How fast do random windows come, of frames and of latents, and what does opening a set cost?

The same synthetic, DROID-like episodes for all: 180 x 320 RGB at 15 Hz, about 210 frames; a still
background and a moving patch, both with the 1/f spectrum of natural images, and a camera's noise.
Every reader gets the same windows of 8 frames, in turn, round by round; all files are in the page
cache. The others run in interpreters of their own, with their own writer, reader and defaults:

    python benchmarks/data.py [--swm-python PATH] [--lerobot-python PATH] [--out data-cpu.json]

where PATH is the python of an environment with stable-worldmodel, h5py and hdf5plugin, or with
lerobot. Nothing is sent anywhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import cv2  # noqa: E402  (after the variables above, which are read once)
import numpy as np  # noqa: E402
from numpy.lib.format import open_memmap  # noqa: E402

from worldmodel.data.episode import Episode, EpisodeMetadata  # noqa: E402
from worldmodel.data.frames import Frames  # noqa: E402
from worldmodel.data.latent_jobs import build  # noqa: E402
from worldmodel.data.latent_shards import Recipe  # noqa: E402
from worldmodel.data.latents import LatentCache  # noqa: E402
from worldmodel.data.source import open_source  # noqa: E402
from worldmodel.data.store import EpisodeStore  # noqa: E402
from worldmodel.data.video_frames import VideoFrames, write_video  # noqa: E402
from worldmodel.runs import describe_machine  # noqa: E402

HEIGHT, WIDTH, HZ, LENGTH = 180, 320, 15, 8
STRIDES = (1, 4)
JPEG_QUALITY = 80  # DROID's images are about 21 kB, these about 24
LATENTS = ((64, 192), (64, 1024))  # tokens, size
BATCH = 16  # windows gathered at once from latents

# Reads windows of a stride, each (episode, first frame); returns seconds, CPU seconds, and the mean
# of the first window.
Read = Callable[[int, list[tuple[int, int]]], tuple[float, float, float]]


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns float32 (height, width, 3) with an amplitude of 1 / f^1.1 and correlated colours."""
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    f[0, 0] = np.inf
    spectra = (rng.normal(size=(4, *f.shape)) + 1j * rng.normal(size=(4, *f.shape))) / f**1.1
    grey, *colours = (x / x.std() for x in np.fft.irfft2(spectra, (height, width)))
    image = np.stack([0.85 * grey + 0.5 * colour for colour in colours], axis=-1)
    return (115 + 45 * image).astype(np.float32)


def make_frames(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    background, patch = texture(rng, HEIGHT, WIDTH), texture(rng, 60, 60)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for k, t in enumerate(np.arange(count) / HZ):
        y = int((HEIGHT - 60) / 2 * (1 + 0.9 * np.sin(0.7 * t)))
        x = int((WIDTH - 60) / 2 * (1 + 0.9 * np.cos(0.5 * t)))
        frame = background.copy()
        frame[y : y + 60, x : x + 60] = patch
        frame += rng.standard_normal(frame.shape, dtype=np.float32) * 2
        frames[k] = frame.clip(0, 255)
    return frames


def make_episode(frames: np.ndarray) -> Episode:
    rows = len(frames)
    proprio = np.zeros((rows, 7), np.float32)
    proprio[:, 0] = np.linspace(0.3, 0.6, rows)
    metadata = EpisodeMetadata(
        source="synthetic",
        task="benchmark",
        behaviour="none",
        seed=-1,
        control_hz=HZ,
        renderer="",
        mujoco_version="",
        cameras=("exterior",),
    )
    return Episode({"exterior": frames}, proprio, np.arange(rows) / HZ, metadata)


def read_frames(
    frames: list[Frames], stride: int, windows: list[tuple[int, int]]
) -> tuple[float, float, float]:
    steps = np.arange(LENGTH) * stride
    window = frames[windows[0][0]][windows[0][1] + steps]
    mean = float(window.mean())
    began, cpu = time.perf_counter(), time.process_time()
    for episode, first in windows:
        window = frames[episode][first + steps]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert window.shape == (LENGTH, HEIGHT, WIDTH, 3)
    return seconds, cpu, mean


def read_latents(
    gather: Callable[[np.ndarray, np.ndarray], np.ndarray],
    stride: int,
    windows: list[tuple[int, int]],
) -> tuple[float, float, float]:
    episodes, firsts = np.array(windows).T
    frames = firsts[:, None] + np.arange(LENGTH) * stride
    mean = float(gather(episodes[:1], frames[:1]).mean(dtype=np.float64))
    began, cpu = time.perf_counter(), time.process_time()
    for i in range(0, len(windows), BATCH):
        gather(episodes[i : i + BATCH], frames[i : i + BATCH])
    return time.perf_counter() - began, time.process_time() - cpu, mean


class Peer:
    """Another library's reader, in another interpreter; see benchmarks/data_peers.py."""

    def __init__(self, python: str, package: str, folder: Path) -> None:
        script = Path(__file__).with_name("data_peers.py")
        self.log = folder / f"{package}.log"
        self.process = subprocess.Popen(
            [python, str(script), package, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("wb"),
            text=True,
        )
        self.about = self._answer()

    def read(self, stride: int, windows: list[tuple[int, int]]) -> tuple[float, float, float]:
        assert self.process.stdin is not None
        order = {"stride": stride, "windows": windows}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["seconds"], answer["cpu_seconds"], answer["mean"]

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)


def measure(
    readers: dict[str, tuple[Read, int]], lengths: list[int], *, rounds: int, per_round: float
) -> list[dict[str, Any]]:
    """Returns one row per reader and stride: all readers in turn, `rounds` times.

    Args:
        readers: Name -> how it reads, and of how many windows a round consists.
        lengths: Rows of the episodes.
        rounds: How many rounds.
        per_round: Factor of the number of windows.
    """
    rows = []
    for stride in STRIDES:
        found = {name: [] for name in readers}
        for seed in range(rounds + 1):  # the first is a warm-up
            for name, (read, count) in readers.items():
                rng = np.random.default_rng(seed)
                n = max(4, round(count * per_round))
                episodes = rng.integers(len(lengths), size=n).tolist()
                windows = [
                    (e, int(rng.integers(lengths[e] - LENGTH * stride + 1))) for e in episodes
                ]
                seconds, cpu, mean = read(stride, windows)
                found[name].append((n / seconds, 1000 * cpu / n, windows[0], mean))
        for name, results in found.items():
            rates, cpu, _, _ = zip(*results[1:], strict=True)
            rows.append(
                {
                    "reader": name,
                    "stride": stride,
                    "windows_per_s": max(rates),
                    "median_windows_per_s": float(np.median(rates)),
                    "cpu_ms_per_window": min(cpu),
                    "first_windows": [(window, mean) for *_, window, mean in results],
                }
            )
    return rows


def check_means(rows: list[dict], frames: list[np.ndarray]) -> None:
    """Raises if a reader gave other frames than those that were written."""
    for row in rows:
        for (episode, first), mean in row.pop("first_windows"):
            last = first + LENGTH * row["stride"]
            truth = float(frames[episode][first : last : row["stride"]].mean())
            if abs(mean - truth) > 2:  # lossy video keeps the mean
                raise RuntimeError(
                    f"{row['reader']} gives frames of mean {mean:.2f} at frame {first} of episode "
                    f"{episode}; expected {truth:.2f}"
                )


def measure_latents(folder: Path, store: Path, lengths: list[int], rounds: int) -> list[dict]:
    """Compares the latent cache with one raw memory map of the same latents."""
    rows = []
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    for tokens, size in LATENTS:
        rng = np.random.default_rng(tokens + size)
        noise = rng.standard_normal((tokens, size)).astype(np.float32)

        def encode(pixels: np.ndarray, noise: np.ndarray = noise) -> np.ndarray:
            return noise + pixels[:, :1, 0, :1].astype(np.float32)

        recipe = Recipe(encoder=f"noise {tokens} {size}", camera="exterior")
        cache = build(folder / f"{size}", open_source(store), encode, recipe=recipe, progress=False)
        assert isinstance(cache, LatentCache)
        flat = open_memmap(
            folder / f"{size}.npy", "w+", np.float16, (int(firsts[-1]), tokens, size)
        )
        for i, first in zip(cache.ids.tolist(), firsts, strict=False):
            flat[first : firsts[i + 1]] = cache.latents(i)
        flat.flush()
        raw = np.memmap(
            folder / f"{size}.npy", np.float16, "r", offset=flat.offset, shape=flat.shape
        )

        def gather_raw(
            episodes: np.ndarray, frames: np.ndarray, raw: np.ndarray = raw
        ) -> np.ndarray:
            return raw[firsts[episodes][:, None] + frames]

        count = 4000 if size < 500 else 1000
        readers = {
            f"latent cache, {tokens} x {size} fp16": (partial(read_latents, cache.gather), count),
            f"raw memmap, {tokens} x {size} fp16": (partial(read_latents, gather_raw), count),
        }
        for row in measure(readers, lengths, rounds=rounds, per_round=1):
            del row["first_windows"]
            rows.append(row)
    return rows


def make_many(path: Path, episodes: int) -> None:
    """Makes a store of one short episode under many ids, by hard links."""
    EpisodeStore(path, mode="a").write(0, make_episode(make_frames(0, 8)))
    first = path / "episodes/00000000"
    entries = [(Path(parent).relative_to(first), files) for parent, _, files in os.walk(first)]
    for i in range(1, episodes):
        copy = path / f"episodes/{i:08d}"
        for folder, files in entries:
            (copy / folder).mkdir()
            for file in files:
                os.link(first / folder / file, copy / folder / file)


_OPEN = """
import sys, time
from pathlib import Path
began = time.perf_counter()
from worldmodel.data.source import open_source
from worldmodel.data.store import EpisodeStore
imported = time.perf_counter()
store = EpisodeStore(sys.argv[1])
ids = store.ids()
opened = time.perf_counter()
source = open_source(sys.argv[1])
assert len(source) == len(ids)
detected = time.perf_counter()
status = Path("/proc/self/status").read_text()  # getrusage would count the parent, too
peak = int(status.split("VmHWM:")[1].split()[0])
for i in ids:
    store.read_timestamps(i)
end = time.perf_counter()
print(len(ids), imported - began, opened - imported, detected - opened, end - detected, peak / 1024)
"""


def measure_opening(path: Path, times: int) -> dict[str, float]:
    """Opens a store in new processes; returns the best of `times`."""
    command = [sys.executable, "-c", _OPEN, str(path)]
    runs = [
        [float(v) for v in subprocess.run(command, capture_output=True, text=True, check=True)
         .stdout.split()]
        for _ in range(times)
    ]  # fmt: skip
    best = np.min(runs, axis=0).tolist()
    names = ("episodes", "import_s", "store_s", "source_s", "all_timestamps_s", "peak_rss_mb")
    return dict(zip(names, best, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swm-python", default=None)
    parser.add_argument("--lerobot-python", default=None)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=10_000, help="episodes of the opening test")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = run(Path(temporary), options)
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=2) + "\n")


def run(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    lengths = np.random.default_rng(0).integers(190, 231, size=options.episodes).tolist()
    frames = [make_frames(seed, length) for seed, length in enumerate(lengths)]
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    jpeg = [cv2.imencode(".jpg", f[0, ..., ::-1], quality)[1].size for f in frames]
    flat = open_memmap(folder / "frames.npy", "w+", np.uint8, (sum(lengths), HEIGHT, WIDTH, 3))
    np.concatenate(frames, out=flat)
    flat.flush()
    (folder / "episodes.json").write_text(json.dumps(lengths))

    store = EpisodeStore(folder / "store", mode="a")
    for i, pixels in enumerate(frames):
        store.write(i, make_episode(pixels))
        write_video(folder / f"{i}.mp4", pixels, hz=HZ, gop=15)
    ours = [store.frames(i, "exterior") for i in store.ids()]
    videos: list[Frames] = [VideoFrames(folder / f"{i}.mp4") for i in range(len(frames))]
    sizes = {
        "ours: zarr": store.summary().size_bytes,
        "ours: MP4, GOP 15": sum(file.stat().st_size for file in folder.glob("*.mp4")),
    }
    readers: dict[str, tuple[Read, int]] = {
        "ours: zarr": (partial(read_frames, ours), 400),
        "ours: MP4, GOP 15": (partial(read_frames, videos), 24),
    }
    versions = {}
    peers = []
    for package, what, python, count in (
        ("stable-worldmodel", "stable-worldmodel: HDF5", options.swm_python, 200),
        ("lerobot", "LeRobot: v3.0, AV1", options.lerobot_python, 12),
    ):
        if python is None:
            print(f"{package} is left out: no interpreter that has it was named")
            continue
        peer = Peer(python, package, folder)
        peers.append(peer)
        versions[package], sizes[what] = peer.about["version"], peer.about["size_bytes"]
        readers[what] = (peer.read, count)
    rows = measure(readers, lengths, rounds=options.rounds, per_round=1)
    for peer in peers:
        peer.process.communicate()
    check_means(rows, frames)

    print(f"{len(frames)} episodes, {sum(lengths)} frames {HEIGHT} x {WIDTH}, ", end="")
    print(f"{np.mean(jpeg) / 1000:.0f} kB each as JPEG (quality {JPEG_QUALITY})\n")
    print(f"windows of {LENGTH} frames; best of {options.rounds} rounds (median)")
    head = f"{'reader':<30} {'stride':>6} {'windows/s':>10} {'(median)':>10} {'CPU ms':>8} "
    print(head + f"{'MB':>7}   ours: zarr is")
    for row in rows:
        fastest = next(
            r for r in rows if r["reader"] == "ours: zarr" and r["stride"] == row["stride"]
        )
        row["ratio"] = fastest["windows_per_s"] / row["windows_per_s"]
        row["cpu_ratio"] = row["cpu_ms_per_window"] / fastest["cpu_ms_per_window"]
        row["size_mb"] = sizes[row["reader"]] / 1e6
        ratios = f"{row['ratio']:>6.2f} x ({row['cpu_ratio']:.2f} x by CPU)"
        print(f"{show(row)} {row['size_mb']:>7.0f} {ratios}")

    latents = measure_latents(folder, store.path, lengths, options.rounds)
    print(f"\nlatents, {BATCH} windows at once" + " " * 49 + "the memmap is")
    for cached, raw in zip(latents[::2], latents[1::2], strict=True):
        raw["ratio"] = raw["windows_per_s"] / cached["windows_per_s"]
        raw["cpu_ratio"] = cached["cpu_ms_per_window"] / raw["cpu_ms_per_window"]
        print(show(cached))
        print(f"{show(raw)} {'':>7} {raw['ratio']:>6.2f} x ({raw['cpu_ratio']:.2f} x by CPU)")

    make_many(folder / "many", options.many)
    opening = measure_opening(folder / "many", options.rounds)
    print(
        f"\na store of {opening['episodes']:.0f} episodes: opened in {opening['store_s']:.3f} s, "
        f"by open_source in {opening['source_s']:.3f} s (import {opening['import_s']:.2f} s), "
        f"process {opening['peak_rss_mb']:.0f} MB; all timestamps read in "
        f"{opening['all_timestamps_s']:.2f} s"
    )
    machine = describe_machine()
    load = os.getloadavg()[0]
    print(f"{machine['processor']}, {machine['cores']} cores, load {load:.1f}; {versions}")
    return {
        "episodes": len(frames),
        "frames": sum(lengths),
        "frame": [HEIGHT, WIDTH, 3],
        "jpeg_kb": float(np.mean(jpeg)) / 1000,
        "rounds": options.rounds,
        "window": LENGTH,
        "rows": rows,
        "latents": {"batch": BATCH, "rows": latents},
        "opening": opening,
        "peers": versions,
        "load": load,
        "machine": machine,
    }


def show(row: dict) -> str:
    return (
        f"{row['reader']:<30} {row['stride']:>6} {row['windows_per_s']:>10.0f} "
        f"({row['median_windows_per_s']:>8.0f}) {row['cpu_ms_per_window']:>8.3f}"
    )


if __name__ == "__main__":
    main()
