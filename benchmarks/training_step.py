"""How much of a device's arithmetic does a step of post-training use?

The step is that of `worldmodel train` (`worldmodel.stepping.Stepper`): teacher forcing, a rollout
of two steps, backward, AdamW. Two ways in turns: plainly in float32, and with the settings under
test (precision, compile, activation checkpointing). They start from the same weights and see the
same batch, so their first losses must agree before any time is taken.

FLOP are those the task takes, counted by hand: 6 for each weight of a matrix and token (2 forward,
4 backward), 12 for each pair of tokens of which one may see the other, each number of the width and
each block. What is computed again (activation checkpointing) or hidden by the mask is not counted.

    python -m benchmarks.training_step                                 # a small one, on a CPU
    python -m benchmarks.training_step --device cuda --full --batch-size 8 --compile --out FILE
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rollout import (
    FULL,
    GRID,
    MID,
    matmul_peak,
    peak_memory_mib,
    reset_peak_memory,
    synchronise,
)
from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import JEPA
from worldmodel.new_world import freeze_unused
from worldmodel.prediction_task import PredictorLosses
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.runs import describe_machine, write_json
from worldmodel.stepping import Execution, Stepper
from worldmodel.tables import markdown_table
from worldmodel.task import Batch, Draw, Task

TARGET_SHARE = 0.5  # of the peak, on a GPU, with --full
LOSS_TOLERANCE = 0.02  # between precisions
LEARNING_RATE = 1e-5


class NoiseTask(Task):
    """The losses of a predictor on windows of latents that mean nothing and weigh as much."""

    def __init__(self, losses: PredictorLosses, *, grid: int, frames: int):
        self.module, self._losses = losses, losses
        self.shape = (frames, grid**2, losses.predictor.latent_dim)

    def draw(self, n: int, rng: np.random.Generator, generator: torch.Generator) -> Draw:
        return {"seed": np.arange(n)}

    def load(self, draw: Draw) -> Batch:
        generator = torch.Generator().manual_seed(int(draw["seed"][0]))
        n, frames = len(draw["seed"]), self.shape[0]
        hand = torch.tensor([0.45, 0.0, 0.3, 3.1, 0.1, -0.2, 0.5])
        return {
            "latents": torch.randn(n, *self.shape, generator=generator),
            "proprio": hand + 0.05 * torch.randn(n, frames, 7, generator=generator),
            "actions": 0.05 * torch.randn(n, frames - 1, 7, generator=generator),
        }

    @property
    def blocks(self):
        return list(self._losses.predictor.predictor_blocks)


def losses_of(size: dict[str, int], grid: int) -> PredictorLosses:
    """Returns the published losses of a predictor with random weights, the same every time."""
    torch.manual_seed(0)
    predictor = ActionConditionedPredictor(
        **size,
        grid_size=(grid, grid),
        rope="tiled",
        residual=False,
        rotation_input="euler",
        num_frequencies=0,
    )
    freeze_unused(predictor)
    encoder = VideoEncoder(embed_dim=size["latent_dim"], depth=1, num_heads=1)  # plays no part
    world = JEPA(encoder=encoder, predictor=predictor, image_size=16 * grid)
    return PredictorLosses(world, rollout_steps=2, distance="l1", state_weight=0.0)


def flop_of_step(predictor: ActionConditionedPredictor, *, windows: int, frames: int) -> float:
    """Returns what a step takes: the frames of teacher forcing, and two more for the rollout."""
    matrices = sum(
        module.weight.numel()
        for name, module in predictor.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name not in ("action_encoder", "state_encoder", "extrinsics_encoder")
    )
    group = predictor.grid_size[0] * predictor.grid_size[1] + 2
    flop = 0.0
    for passed in (frames - 1, 2):
        tokens = passed * group
        pairs = group**2 * passed * (passed + 1) / 2  # a frame sees itself and those before it
        flop += 6 * matrices * tokens + 12 * pairs * predictor.embed_dim * predictor.depth
    return windows * flop


class Way:
    """One way to compute the same steps."""

    def __init__(self, execution: Execution, options: argparse.Namespace, run: Path):
        self.device = torch.device(options.device)
        task = NoiseTask(
            losses_of(FULL if options.full else MID, options.grid),
            grid=options.grid,
            frames=options.frames,
        )
        self.stepper = Stepper(
            task,
            run=run,
            batch_size=options.batch_size,
            weight_decay=0.04,
            seed=0,
            device=self.device,
            execution=execution,
            clip_norm=None,
        )
        draw = task.draw(options.batch_size, np.random.default_rng(0), torch.Generator())
        self._made = draw, [task.load(draw)]
        self.seconds: list[float] = []
        self.memory_mib = 0.0
        self.first_loss = self.step()
        self.seconds.clear()

    def step(self) -> float:
        """Makes one step, times it, and returns its loss."""
        reset_peak_memory(self.device.type)
        synchronise(self.device.type)
        start = time.perf_counter()
        losses = self.stepper.step(1, *self._made, LEARNING_RATE)
        synchronise(self.device.type)
        self.seconds.append(time.perf_counter() - start)
        self.memory_mib = max(self.memory_mib, peak_memory_mib(self.device.type))
        return losses["loss"]


def measure(options: argparse.Namespace, run: Path) -> list[dict[str, Any]]:
    """Returns a row of each way."""
    executions = {
        "float32, plainly": Execution(precision="float32"),
        "under test": Execution(
            precision=options.precision,
            compile=options.compile,
            activation_checkpointing=options.activation_checkpointing,
        ),
    }
    ways = {name: Way(execution, options, run) for name, execution in executions.items()}
    plain, tested = (way.first_loss for way in ways.values())
    if abs(tested / plain - 1) > LOSS_TOLERANCE:
        raise SystemExit(f"the first losses must agree, got {plain:.4f} and {tested:.4f}")
    for _ in range(options.repeats):
        for way in ways.values():
            way.step()
    predictor = ways["under test"].stepper.task.module.predictor
    assert isinstance(predictor, ActionConditionedPredictor)
    flop = flop_of_step(predictor, windows=options.batch_size, frames=options.frames)
    rows = []
    for name, way in ways.items():
        precision = executions[name].precision
        peak = matmul_peak(options.device, getattr(torch, precision))
        times = np.array(way.seconds)
        rows.append(
            {
                "way": name,
                "precision": precision,
                "first_loss": way.first_loss,
                "p50_s": float(np.quantile(times, 0.5)),
                "p95_s": float(np.quantile(times, 0.95)),
                "best_s": float(times.min()),
                "windows_per_s": options.batch_size / float(np.quantile(times, 0.5)),
                "tflop": flop / 1e12,
                "tflop_per_s": flop / float(np.quantile(times, 0.5)) / 1e12,
                "matmul_peak_tflop_per_s": peak / 1e12,
                "share_of_peak": flop / float(np.quantile(times, 0.5)) / peak,
                "peak_memory_mib": way.memory_mib,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--full", action="store_true", help="the 305 M predictor on ViT-g latents")
    parser.add_argument("--frames", type=int, default=8, help="of a window, as published")
    parser.add_argument("--grid", type=int, default=GRID, help="side of a frame's tokens")
    parser.add_argument("--batch-size", type=int, default=1, help="windows of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device on this machine")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    ratio = rows[0]["p50_s"] / rows[1]["p50_s"]
    table = markdown_table(
        ["", "precision", "p50 [ms]", "windows/s", "TFLOP/s", "of the matmul peak", "MiB"],
        [
            [
                row["way"],
                row["precision"],
                f"{1000 * row['p50_s']:.0f}",
                f"{row['windows_per_s']:.2f}",
                f"{row['tflop_per_s']:.3g}",
                f"{row['share_of_peak']:.0%}",
                f"{row['peak_memory_mib']:.0f}",
            ]
            for row in rows
        ],
    )
    print(table)
    goal = f"; the goal is {TARGET_SHARE:.0%}" if options.full and options.device == "cuda" else ""
    print(f"{ratio:.2f} times as fast as plainly, {rows[1]['share_of_peak']:.0%} of peak{goal}")
    report = {
        "settings": {key: str(value) for key, value in vars(options).items()},
        "predictor": FULL if options.full else MID,
        "rows": rows,
        "ratio": ratio,
        "target_share": TARGET_SHARE,
        "load_average": os.getloadavg(),
        "machine": describe_machine(),
    }
    if options.out is not None:
        write_json(options.out, report)


if __name__ == "__main__":
    main()
