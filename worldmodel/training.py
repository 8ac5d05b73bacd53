"""What training is made of: schedules, parameter groups, devices, precision, metrics.

The batch of step n is drawn from a generator seeded by (seed, n) alone, so a run that was killed
and resumed sees the same batches as one that was not.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

ScheduleName = Literal["cosine", "wsd"]
Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Schedule:
    """Learning rate over steps: warm-up, then cosine decay, or stable and linear decay (WSD).

    Attributes:
        name: "cosine" or "wsd".
        peak: Learning rate after the warm-up.
        start: Learning rate the warm-up begins from.
        final: Learning rate at the end.
        steps: Length of the run.
        warmup_steps: Steps of linear warm-up.
        decay_steps: Steps of linear decay at the end ("wsd" only).
    """

    name: ScheduleName
    peak: float
    steps: int
    warmup_steps: int
    start: float = 0.0
    final: float = 0.0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        """Checks that the phases fit into the run."""
        if self.name not in ("cosine", "wsd"):
            raise ValueError(f"schedule must be 'cosine' or 'wsd', got {self.name!r}")
        if not 0 <= self.warmup_steps + self.decay_steps <= self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} do not fit "
                f"into steps={self.steps}"
            )

    def __call__(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1."""
        if step <= self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        if self.name == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        left = self.steps - step
        if left >= self.decay_steps:
            return self.peak
        return self.final + (self.peak - self.final) * left / self.decay_steps


def make_optimizer(
    modules: Iterable[nn.Module], *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Returns AdamW that does not decay biases and norms (parameters of one dimension)."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def step_generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Returns the sources of randomness of one training step."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def select_device(name: str) -> torch.device:
    """Returns the device called `name`; "auto" is a GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name} but torch sees no GPU; use device=cpu or device=auto")
    return torch.device(name)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Says whether matrix products in bfloat16 are much faster than in float32 on a device.

    They are on every GPU that torch still supports with tensor cores, and on CPUs with AMX (Intel
    Xeon from Sapphire Rapids on), reached through oneDNN. CPUs with AVX-512 alone gain little.
    """
    if device.type == "cuda":
        return True
    return torch.cpu._is_amx_tile_supported() and torch.backends.mkldnn.is_available()


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Returns the context in which a model computes; its weights stay float32.

    Args:
        device: Where the model is.
        precision: "float32"; "bfloat16" for the large products and what lies between them; or
            "auto": bfloat16 where `has_fast_bfloat16`, else float32.

    Raises:
        ValueError: The precision is another word.
    """
    lower = resolve_precision(device, precision) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower)


def resolve_precision(device: torch.device, precision: Precision) -> Literal["float32", "bfloat16"]:
    """Returns what "auto" is on this device, see `autocast`, and anything else as it is.

    Raises:
        ValueError: The precision is another word.
    """
    if precision == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


class MetricsLog:
    """JSON lines, one a logged step; on resume, lines after the resumed step are dropped."""

    def __init__(self, run: Path, *, resume_step: int):
        self.path = run / METRICS_FILE
        lines = self.read() if self.path.exists() else []
        kept = [line for line in lines if line["step"] <= resume_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Returns all complete lines (a kill can leave half a line at the end)."""
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines


def plot_metrics(
    lines: list[dict[str, Any]], path: Path, *, groups: dict[str, list[str]], title: str
) -> None:
    """Draws training curves: one panel a group of metric names, over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(groups), 3.4), layout="constrained")
    for axes, (label, names) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1.4)
        axes.set(xlabel="step", title=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
