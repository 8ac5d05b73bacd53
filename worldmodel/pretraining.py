"""What pretraining trains: an encoder and the objectives beside it, and the batches they take."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from worldmodel import task
from worldmodel.clips import Clips, ClipWindows
from worldmodel.collapse import CollapseError, CollapseGuard, measure_spread
from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import encode_frames
from worldmodel.objectives.interface import Batch, Loss, Objective
from worldmodel.training import Precision, autocast

EPISODES, ROWS, FRAMES, PROPRIO = "episodes", "rows", "frames", "proprio"


@dataclass(frozen=True)
class Term:
    """An objective of a run.

    Attributes:
        objective: The objective.
        weight: Its weight in the sum; 0 leaves it out.
        batch_size: Windows it is given a step.
    """

    objective: Objective
    weight: float
    batch_size: int


class Pretraining(nn.Module):
    """An encoder and the objectives that train it together.

    Draws and batches are flat: what belongs to an objective has its name before a slash, such as
    "state/frames".

    Args:
        encoder: The encoder.
        terms: The objectives by name. The first says which encoder is kept.
        clips: Frames that all batches are of.
    """

    def __init__(self, *, encoder: VideoEncoder, terms: Mapping[str, Term], clips: Clips):
        super().__init__()
        self.encoder = encoder
        self.objectives = nn.ModuleDict({name: term.objective for name, term in terms.items()})
        self.clips = clips
        self.terms = {name: term for name, term in terms.items() if term.weight}
        self._windows = {
            name: ClipWindows(
                clips, frames=term.objective.needs.frames, strides=term.objective.needs.strides
            )
            for name, term in self.terms.items()
        }
        for term in terms.values():
            term.objective.set_scales([torch.from_numpy(states) for states in clips.proprio])
            if not term.weight:
                term.objective.requires_grad_(False)

    @property
    def kept(self) -> VideoEncoder:
        """The encoder that is saved in the end."""
        first = next(iter(self.objectives.values()))
        assert isinstance(first, Objective)
        return first.kept(self.encoder)

    @property
    def remedy(self) -> str:
        """What to change when the encoder collapses."""
        return "; or ".join(term.objective.remedy for term in self.terms.values())

    def draw(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Any]:
        """Returns what the batch of a step is made of: which windows, and all random choices."""
        drawn: dict[str, Any] = {}
        for name, term in self.terms.items():
            episodes, rows = self._windows[name].draw(rng, term.batch_size)
            chosen = term.objective.draw(term.batch_size, generator)
            drawn |= _under(name, {EPISODES: episodes, ROWS: rows, **chosen})
        return drawn

    def load(self, drawn: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the batch that a draw, or some rows of one, stands for, on the CPU."""
        batch: dict[str, Tensor] = {}
        for name in self.terms:
            chosen = _of(name, drawn)
            episodes, rows = chosen.pop(EPISODES), chosen.pop(ROWS)
            frames, proprio = self._windows[name].load(episodes, rows)
            batch |= _under(name, {FRAMES: frames, PROPRIO: proprio, **chosen})
        return batch

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Loss]:
        """Yields the weighted losses of a batch, one graph after another."""
        for name, term in self.terms.items():
            chosen = _of(name, batch)
            windows = Batch(chosen.pop(FRAMES), chosen.pop(PROPRIO), chosen)
            for loss in term.objective.losses(self.encoder, windows):
                yield Loss(term.weight * loss.total, loss.parts)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns "loss", to be minimised, and its parts, unweighted, as "loss_<part>".

        The gradient of each loss is taken before the next is computed, so that only one graph is in
        memory, and "loss" hands on their sum.
        """
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        gradients: list[Tensor | None] = [None] * len(weights)
        values: dict[str, Tensor] = {}
        for loss in self.losses(batch):
            parts = {f"loss_{part}": value.detach() for part, value in loss.parts.items()}
            for key, value in {"loss": loss.total.detach(), **parts}.items():
                values[key] = values[key] + value if key in values else value
            if torch.is_grad_enabled():
                with torch.autocast(loss.total.device.type, enabled=False):
                    found = torch.autograd.grad(loss.total, weights, allow_unused=True)
                gradients = [_sum(a, b) for a, b in zip(gradients, found, strict=True)]
        total = _WithGradients.apply(values["loss"], gradients, *weights)
        assert isinstance(total, Tensor)
        return {**values, "loss": total}

    def after_step(self, step: int, steps: int) -> None:
        """Lets the objectives follow the encoder."""
        for objective in self.objectives.values():
            assert isinstance(objective, Objective)
            objective.after_step(self.encoder, step, steps)

    def name_rows(self, drawn: Mapping[str, Any]) -> list[str]:
        """Returns the episodes that the windows of a draw are of."""
        places = {int(place) for name in self.terms for place in _of(name, drawn)[EPISODES]}
        return [f"episode {self.clips.ids[place]}" for place in sorted(places)]


class PretrainTask(task.Task):
    """Pretraining as the engine knows it; its validation measures how near collapse it is.

    Args:
        model: What is trained.
        steps: Steps of the run.
        guard: Says when the encoder has collapsed.
        pictures: What that is judged by.
        precision: See `worldmodel.training.autocast`.
    """

    def __init__(
        self,
        model: Pretraining,
        *,
        steps: int,
        guard: CollapseGuard,
        pictures: UInt8[Tensor, "n height width 3"],
        precision: Precision,
    ):
        self.module = self.model = model
        self.steps, self.guard = steps, guard
        self.pictures = pictures
        self.precision: Precision = precision

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the encoder."""
        return list(self.model.encoder.blocks)

    def draw(self, n: int, rng: np.random.Generator, generator: torch.Generator) -> task.Draw:
        """Returns what the batch of a step is made of; every objective knows its own size."""
        return self.model.draw(rng, generator)

    def load(self, draw: task.Draw) -> task.Batch:
        """Returns the batch that some rows of a draw stand for."""
        return self.model.load(draw)

    def after_step(self, step: int) -> None:
        """Lets targets follow the encoder."""
        self.model.after_step(step, self.steps)

    @torch.no_grad()
    def validate(self, evaluate: task.Evaluate) -> dict[str, float]:
        """Returns how much the features of the encoder that is kept differ over the pictures."""
        with autocast(self.pictures.device, self.precision):
            return asdict(measure_spread(encode_frames(self.model.kept, self.pictures)))

    def watch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stops a run whose encoder has collapsed."""
        if self.guard.collapsed_at(step, metrics):
            raise CollapseError(self.guard.message())

    def name_rows(self, draw: task.Draw) -> list[str]:
        """Returns the episodes that windows are of."""
        return self.model.name_rows(draw)


class _WithGradients(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *weights: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = factors
        return None, None, *(g if g is None else factor * g for g in ctx.gradients)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _under(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}/{key}": value for key, value in values.items()}


def _of(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what belongs to an objective, by its own names."""
    begin = f"{name}/"
    return {key.removeprefix(begin): v for key, v in values.items() if key.startswith(begin)}
