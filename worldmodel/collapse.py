"""Whether an encoder still tells pictures apart, measured while it is trained.

An encoder that gives every picture the same features makes most losses of self-supervision zero
and is worth nothing: it has collapsed. A milder form keeps a few directions and loses the others.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldmodel.task import TrainingError


class CollapseError(TrainingError):
    """The encoder that is trained has collapsed."""


@dataclass(frozen=True)
class Spread:
    """How much the features of an encoder differ over pictures.

    Attributes:
        effective_rank: Over how many directions the tokens spread: the exponential of the entropy
            of their singular values, divided by their sum (Roy and Vetterli 2007; RankMe, Garrido
            et al. 2023, arXiv 2210.02885). From 1 to the size of a token.
        feature_std: Standard deviation over the pictures of a number of the token at one place,
            the mean over all places and numbers.
        feature_std_min: The same of the number that varies least.
        feature_cosine: Mean cosine between two tokens, of any pictures and places.
    """

    effective_rank: float
    feature_std: float
    feature_std_min: float
    feature_cosine: float


@dataclass(frozen=True)
class CollapseLimits:
    """When a run is stopped because its encoder has collapsed.

    Attributes:
        min_effective_rank: Smallest effective rank; 1 never stops a run.
        min_std: Smallest mean standard deviation; 0 never stops a run.
        max_cosine: Largest mean cosine; 1 never stops a run.
        patience: How many measurements in a row must be beyond a limit.
        first_step: Step before which nothing is judged: an untrained encoder is half collapsed.
    """

    min_effective_rank: float = 2.0
    min_std: float = 0.02
    max_cosine: float = 0.99
    patience: int = 3
    first_step: int = 100

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.patience < 1:
            raise ValueError(f"collapse.patience must be 1 or more, got {self.patience}")

    def broken_by(self, spread: Spread) -> list[str]:
        """Returns what is beyond a limit, in words."""
        broken = []
        if spread.effective_rank < self.min_effective_rank:
            broken.append(
                f"effective rank {spread.effective_rank:.3g} (limit: {self.min_effective_rank:g})"
            )
        if spread.feature_std < self.min_std:
            broken.append(
                f"standard deviation over pictures {spread.feature_std:.3g} "
                f"(limit: {self.min_std:g})"
            )
        if spread.feature_cosine > self.max_cosine:
            broken.append(
                f"mean pairwise cosine {spread.feature_cosine:.4g} (limit: {self.max_cosine:g})"
            )
        return broken


@torch.no_grad()
def measure_spread(latents: Float[Tensor, "pictures tokens dim"]) -> Spread:
    """Returns how much the tokens of two or more pictures differ."""
    latents = latents.double()
    tokens = latents.flatten(0, 1)  # (n, D)
    singular = torch.linalg.eigvalsh(tokens.T @ tokens).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    std = latents.std(dim=0).mean(dim=0)  # (D,)
    unit = F.normalize(tokens, dim=-1)
    n = len(unit)
    cosine = (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))
    return Spread(
        effective_rank=math.exp(float(entropy)),
        feature_std=float(std.mean()),
        feature_std_min=float(std.min()),
        feature_cosine=float(cosine),
    )


class CollapseGuard:
    """Says when the encoder of a run has stayed beyond a limit for too long.

    Args:
        limits: The limits.
        remedy: What to change, for the message.
    """

    def __init__(self, limits: CollapseLimits, *, remedy: str):
        self.limits = limits
        self.remedy = remedy
        self._beyond: list[tuple[int, Spread]] = []  # measurements in a row beyond a limit

    def replay(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Takes up what was measured before a run was stopped, from its metric lines."""
        for line in lines:
            self.collapsed_at(int(line["step"]), line)

    def collapsed_at(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Judges the measurement in a metric line."""
        return self.collapsed(step, Spread(**{f.name: metrics[f.name] for f in fields(Spread)}))

    def collapsed(self, step: int, spread: Spread) -> bool:
        """Judges one measurement: whether it is the last of `patience` in a row beyond a limit."""
        if step >= self.limits.first_step and self.limits.broken_by(spread):
            self._beyond.append((step, spread))
        else:
            self._beyond.clear()
        return len(self._beyond) >= self.limits.patience

    def message(self) -> str:
        """Returns what is wrong and what to change."""
        steps = ", ".join(str(step) for step, _ in self._beyond)
        step, spread = self._beyond[-1]
        return (
            f"the encoder collapsed: it hardly tells pictures apart (steps {steps}). At "
            f"step {step}: {'; '.join(self.limits.broken_by(spread))}. What to change: "
            f"{self.remedy}. Start a new run, for these weights will not come back. If you know "
            "better, move the limits (collapse.min_effective_rank, collapse.min_std, "
            "collapse.max_cosine)"
        )
