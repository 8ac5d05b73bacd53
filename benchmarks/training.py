"""Does it pay to train from cached latents, and is their loader hidden?

Both ways train the same predictor on the same windows of simulated recordings, with the step and
the loader of `worldmodel train`. "cached" reads latents; "encoded" reads the frames and sends them
through the frozen encoder in every step. Their first losses must agree before any time is taken.
Then the cached way is held against itself with one batch that never changes: what is more than
that, the loader costs. It reads a cache of its own, too large for the processor's caches.

Runs alternate, so that what else the machine does meets all alike. Weights are random, which
changes no time.

    python benchmarks/training.py [--encoders shipped vit_small vit_large] [--out FILE]
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.checkpoint import load_encoder
from worldmodel.data import Episode, EpisodeMetadata, EpisodeStore
from worldmodel.data.collect import collect
from worldmodel.data.latent_jobs import build
from worldmodel.data.latent_shards import Recipe
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import open_source
from worldmodel.encode import LatentJob, latent_job
from worldmodel.encoder import VideoEncoder
from worldmodel.interfaces import Encoder
from worldmodel.jepa import encode_frames
from worldmodel.new_world import freeze_unused, new_world
from worldmodel.pose import action_between
from worldmodel.prediction_task import PredictionTask, PredictorLosses, Windows
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.runs import describe_machine, write_json
from worldmodel.stepping import Execution, Stepper
from worldmodel.tables import markdown_table
from worldmodel.task import Batch, Draw
from worldmodel.training import resolve_precision

CAMERA, HZ, MERGE, STRIDES = "exterior", 4.0, 2, [1, 2, 3]
PREDICTOR: dict[str, Any] = {"embed_dim": 192, "depth": 4, "num_heads": 6}  # predictor=small
LEARNING_RATE = 1e-4
TARGET_RATIO, TARGET_LOADER = 10.0, 0.05
# Width, depth, heads of V-JEPA 2's and smaller ones, at 256 pixels; "shipped" is the package's own.
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_large": (1024, 24, 16)}


class EncodingLosses(nn.Module):
    """The losses of a batch of frames, which the frozen encoder sees first."""

    def __init__(self, losses: PredictorLosses, encoder: Encoder):
        super().__init__()
        self.losses = losses
        self._encoder = (encoder,)  # in a tuple, so that it does not become a part

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (encoder,) = self._encoder
        frames = batch["frames"]
        with torch.no_grad():
            latents = encode_frames(encoder, frames.flatten(0, 1), MERGE)
        return self.losses({**batch, "latents": latents.unflatten(0, frames.shape[:2])})


class EncodingTask(PredictionTask):
    """Trains the same on the same windows, and encodes them in every step."""

    def __init__(self, losses: PredictorLosses, windows: Windows, job: LatentJob):
        super().__init__(losses, windows, windows, validation_windows=1, at_once=1, seed=0)
        self.module = EncodingLosses(losses, job.encode.encoder)
        self.source = job.source

    def load(self, draw: Draw) -> Batch:
        windows = zip(draw["episodes"], draw["frames"], strict=True)
        frames = [self.source.read(int(i)).frames[CAMERA][rows] for i, rows in windows]
        proprio = self.windows.proprio(draw)
        return {
            "frames": torch.from_numpy(np.stack(frames)),
            "proprio": proprio,
            "actions": action_between(proprio[:, :-1], proprio[:, 1:]),
        }


@dataclass(frozen=True)
class Times:
    """Seconds a step: by the clock, and of processor time, all threads of this process."""

    wall: float
    processor: float

    @staticmethod
    def medians(runs: list["Times"]) -> "Times":
        return Times(median(t.wall for t in runs), median(t.processor for t in runs))


class Way:
    """One way to train: the same steps again and again, timed in runs."""

    def __init__(self, task: PredictionTask, *, run: Path, batch_size: int, fixed: bool = False):
        self.fixed = fixed
        self.runs: list[Times] = []
        self.stepper = Stepper(
            task,
            run=run,
            batch_size=batch_size,
            weight_decay=0.01,
            seed=0,
            device=torch.device("cpu"),
            execution=Execution(),
            clip_norm=1.0,
        )
        ((step, draw, batches),) = self.stepper.batches(1, 1)
        self.first_batch = draw, batches
        self.first_loss = self.stepper.step(step, draw, batches, LEARNING_RATE)["loss"]

    def time(self, steps: int) -> None:
        """Times so many steps after the first, which nothing could have been loaded ahead of."""
        ahead = iter(self.stepper.batches(1, steps + 1))
        _, draw, batches = next(ahead) if not self.fixed else (0, *self.first_batch)
        wall, processor = time.perf_counter(), time.process_time()
        for step in range(1, steps + 1):
            self.stepper.step(step, draw, batches, LEARNING_RATE)
            if not self.fixed:
                _, draw, batches = next(ahead)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.runs.append(Times(wall / steps, processor / steps))


def an_encoder(name: str) -> tuple[Encoder, int]:
    """Returns an encoder and the size of its pictures."""
    if name == "shipped":
        return load_encoder("default")
    width, depth, heads = VITS[name]
    torch.manual_seed(0)
    return VideoEncoder(embed_dim=width, depth=depth, num_heads=heads).eval(), 256


def losses_of(job: LatentJob, windows: Windows) -> PredictorLosses:
    """Returns the same losses every time: predictor=small and a state head."""
    world = new_world(
        partial(ActionConditionedPredictor, **PREDICTOR),
        job=job,
        hz=HZ,
        proprio=windows.proprio(windows.draw(np.random.default_rng(0), 256)),
        state_head=True,
        standardise=True,
        seed=0,
    )
    freeze_unused(world.predictor)
    return PredictorLosses(world, rollout_steps=2, distance="l2", state_weight=1.0)


def windows_of(cache: LatentCache) -> Windows:
    """Returns windows as `worldmodel train` takes them by default."""
    return Windows(cache, cache.ids.tolist(), dt=1 / HZ, frames=3, strides=STRIDES)


def noise_cache(folder: Path, *, rows: int, shape: tuple[int, int]) -> LatentCache:
    """Returns a cache of latents (rows, tokens, size) that mean nothing and weigh as much."""
    rng = np.random.default_rng(0)
    store = EpisodeStore(folder / "recordings", mode="a")
    each = 100
    for i in range(rows // each):
        proprio = np.tile(np.array([0.5, 0, 0.3, np.pi, 0, 0, 0.5], np.float32), (each, 1))
        proprio[:, :3] += rng.uniform(-0.1, 0.1, (each, 3))
        metadata = EpisodeMetadata("noise", "", "", i, HZ, "", "", (CAMERA,))
        black = np.zeros((each, 16, 16, 3), np.uint8)
        store.write(i, Episode({CAMERA: black}, proprio, np.arange(each) / HZ, metadata))
    cache = build(
        folder / "latents",
        open_source(store.path),
        lambda frames: rng.standard_normal((len(frames), *shape), np.float32),
        recipe=Recipe("noise", CAMERA),
        progress=False,
    )
    assert cache is not None
    return cache


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the row of one encoder."""
    encoder, image_size = an_encoder(name)
    recordings = folder / f"recordings-{image_size}"
    collect(
        recordings,
        episodes=options.episodes,
        steps=options.steps_of_episode,
        image_size=image_size,
        cameras=(CAMERA,),
        control_hz=HZ,
        workers=1,
        progress=False,
    )
    precision = resolve_precision(torch.device("cpu"), "auto")
    job = latent_job(
        encoder=encoder,
        image_size=image_size,
        source=open_source(recordings),
        cache=folder / name,
        camera=CAMERA,
        merge=MERGE,
        device="cpu",
        precision=precision,
    )
    print(f"{name}: encoding {options.episodes} episodes once", flush=True)
    cache = job.build(max_quarantined=0.5)
    assert cache is not None
    windows = windows_of(cache)
    shape = cache.latents(int(cache.ids[0])).shape[1:]
    large = windows_of(
        noise_cache(folder / f"{name}-noise", rows=options.rows, shape=(shape[0], shape[1]))
    )

    def way(task: PredictionTask, *, fixed: bool = False) -> Way:
        return Way(task, run=folder, batch_size=options.batch_size, fixed=fixed)

    def cached(windows: Windows) -> PredictionTask:
        return PredictionTask(
            losses_of(job, windows), windows, windows, validation_windows=1, at_once=1, seed=0
        )

    ways = {
        "encoded": way(EncodingTask(losses_of(job, windows), windows, job)),
        "cached": way(cached(windows)),
    }
    pair = way(cached(large)), way(cached(large), fixed=True)
    losses = ways["encoded"].first_loss, ways["cached"].first_loss
    if abs(losses[0] / losses[1] - 1) > 0.01:
        raise SystemExit(f"{name}: both ways must have the same first loss, got {losses}")
    for repeat in range(options.repeats):
        for kind, one in ways.items():
            one.time(options.encoded_steps if kind == "encoded" else options.cached_steps)
        print(f"{name}: {repeat + 1} of {options.repeats}", flush=True)
    for repeat in range(options.loader_repeats):  # two steps at a time, either one first
        for one in pair if repeat % 2 else reversed(pair):
            one.time(2)
    ways |= {"loaded": pair[0], "fixed": pair[1]}

    seconds = {kind: Times.medians(one.runs) for kind, one in ways.items()}
    load = load_time(cached(large), options.batch_size)
    return {
        "encoder": name,
        "encoder_parameters": sum(p.numel() for p in encoder.parameters()),
        "image_size": image_size,
        "tokens": shape[0],
        "latent_dim": shape[1],
        "precision": precision,
        "first_losses": losses,
        "noise_cache_mib": options.rows * shape[0] * shape[1] * 2 / 2**20,
        "step_s": {kind: vars(times) for kind, times in seconds.items()},
        "samples_per_s": {k: options.batch_size / t.wall for k, t in seconds.items()},
        "samples_ratio": seconds["encoded"].wall / seconds["cached"].wall,
        "samples_ratio_processor": seconds["encoded"].processor / seconds["cached"].processor,
        "loader_cost": seconds["loaded"].wall / seconds["fixed"].wall - 1,
        "loader_cost_processor": seconds["loaded"].processor / seconds["fixed"].processor - 1,
        "load_s": vars(load),
        "runs_s": {kind: [vars(times) for times in one.runs] for kind, one in ways.items()},
    }


def load_time(task: PredictionTask, batch_size: int, *, batches: int = 50) -> Times:
    """Returns what loading a batch takes by itself."""
    rng, generator = np.random.default_rng(1), torch.Generator()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(batches):
        task.load(task.draw(batch_size, rng, generator))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Times(wall / batches, processor / batches)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table: by the clock, and in brackets by processor time."""

    def both(step: dict[str, float]) -> str:
        return f"{1000 * step['wall']:.0f} ({1000 * step['processor']:.0f})"

    return markdown_table(
        [
            "encoder",
            "encoded [ms]",
            "cached [ms]",
            "samples/s",
            "times faster",
            "loading a batch [ms]",
            "loader costs",
        ],
        [
            [
                f"{r['encoder']}, {r['encoder_parameters'] / 1e6:.1f} M, {r['image_size']} px",
                both(r["step_s"]["encoded"]),
                both(r["step_s"]["cached"]),
                f"{r['samples_per_s']['encoded']:.1f} to {r['samples_per_s']['cached']:.1f}",
                f"{r['samples_ratio']:.1f} ({r['samples_ratio_processor']:.1f})",
                both(r["load_s"]),
                f"{r['loader_cost']:+.1%} ({r['loader_cost_processor']:+.1%})",
            ]
            for r in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = ["shipped", *VITS]
    parser.add_argument(
        "--encoders", nargs="+", choices=known, default=["shipped", "vit_small", "vit_large"]
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loader-repeats", type=int, default=30)
    parser.add_argument("--cached-steps", type=int, default=10, help="of a run")
    parser.add_argument("--encoded-steps", type=int, default=2, help="of a run")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps-of-episode", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4000, help="of the cache the loader reads")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the rows")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.encoders:
            rows.append(measure(name, Path(folder), options))
            print(table(rows), flush=True)
            if options.out is not None:
                write_json(options.out, report_of(rows, options))


def report_of(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Returns what is written of the rows measured so far."""
    return {
        "settings": {key: str(value) for key, value in vars(options).items()},
        "predictor": PREDICTOR,
        "targets": {"samples_ratio": TARGET_RATIO, "loader_cost": TARGET_LOADER},
        "rows": rows,
        "load_average": os.getloadavg(),
        "machine": describe_machine(),
    }


if __name__ == "__main__":
    main()
