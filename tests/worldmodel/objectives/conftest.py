"""Small objectives of every kind, and batches of the moving spot."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.barlow_twins import BarlowTwins
from worldmodel.objectives.ijepa import IJepa
from worldmodel.objectives.interface import Batch, Objective
from worldmodel.objectives.lewm import LeWorldModel
from worldmodel.objectives.state_reading import StateReading
from worldmodel.objectives.vicreg import VICReg
from worldmodel.objectives.vjepa import VJepa
from worldmodel.objectives.vjepa21 import VJepa21
from worldmodel.pose import integrate

SIZE, PATCH = 32, 4
GRID = (SIZE // PATCH, SIZE // PATCH)
PREDICTOR = {"predictor_dim": 24, "predictor_depth": 1, "predictor_heads": 2}
VIEWS = {"projector_dim": 32, "crop_scale": [0.6, 1.0], "brightness": 0.4, "contrast": 0.4}
MASKED: dict[str, Any] = {**PREDICTOR, "ema": [0.9, 0.99]}
MAKERS: dict[str, Callable[..., Objective]] = {
    "vjepa21": partial(VJepa21, clip_frames=1, levels=[0, 1], context_loss_weight=0.5, **MASKED),
    "vjepa": partial(VJepa, clip_frames=1, crop_scale=[0.5, 1.0], **MASKED),
    "ijepa": partial(
        IJepa,
        num_targets=4,
        target_scale=[0.15, 0.2],
        target_aspect=[0.75, 1.5],
        context_scale=[0.85, 1.0],
        min_context=10,
        crop_scale=[1.0, 1.0],
        **MASKED,
    ),
    "lewm": partial(
        LeWorldModel,
        frames=3,
        strides=[1, 2],
        cells=1,
        latent_dim=16,
        projector_dim=32,
        predictor_depth=1,
        predictor_heads=2,
        predictor_mlp_ratio=2.0,
        sigreg_weight=0.1,
        num_directions=64,
        num_knots=17,
    ),
    "barlow_twins": partial(BarlowTwins, redundancy_weight=0.005, **VIEWS),
    "vicreg": partial(
        VICReg, invariance_weight=25.0, variance_weight=25.0, covariance_weight=1.0, **VIEWS
    ),
    "state_reading": partial(StateReading, merge=2),
}


def make(name: str, *, seed: int = 0) -> tuple[VideoEncoder, Objective]:
    """Returns a tiny encoder and an objective for it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = VideoEncoder(patch_size=PATCH, embed_dim=24, depth=2, num_heads=2)
        return encoder, MAKERS[name](encoder=encoder, grid_size=GRID)


def spots(n: int, frames: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns frames (n, frames, 32, 32, 3) of a spot that moves, and proprio with its place."""
    rng = np.random.default_rng(seed)
    rest = np.tile([0.3, np.pi, 0, 0, 0.5], (n, 1))
    start = np.concatenate([rng.uniform(0.3, 0.7, (n, 2)), rest], axis=1)
    proprio = [start]
    for _ in range(frames - 1):
        action = np.concatenate([rng.uniform(-0.1, 0.1, (n, 2)), np.zeros((n, 5))], 1)
        proprio.append(integrate(proprio[-1], action))
    states = np.stack(proprio, axis=1)  # (n, frames, 7)
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    x, y = states[..., 0, None, None], states[..., 1, None, None]
    spot = np.exp(-((row - x) ** 2 + (column - y) ** 2) / (2 * 0.15**2))[..., None]
    pictures = np.array([40, 50, 60]) + spot * np.array([200, 120, -30])
    return torch.tensor(pictures).to(torch.uint8), torch.tensor(states).float()


def batch_for(objective: Objective, n: int, *, seed: int = 0) -> Batch:
    """Returns a batch as the loop would make it."""
    frames, proprio = spots(n, objective.needs.frames, seed=seed)
    return Batch(frames, proprio, objective.draw(n, torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """The functions above, for tests."""
    return SimpleNamespace(make=make, spots=spots, batch_for=batch_for, grid=GRID)
