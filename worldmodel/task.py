"""What a training loop trains: networks, and the batches they are shown (`worldmodel.engine`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Draw = Mapping[str, Any]  # of numpy arrays or tensors
Batch = dict[str, Tensor]
Evaluate = Callable[[Batch], dict[str, Tensor]]


class TrainingError(RuntimeError):
    """A run that must not go on; the message says why, and what to do."""


class Task(ABC):
    """What is trained, and on what; see the module's text.

    Attributes:
        module: Everything that is trained, and nothing else with parameters. `module(batch)` gives
            scalars by name: "loss" is minimised, all are logged. In evaluation mode it may also
            give other tensors, for `validate`.
        metric: Which number of `validate` says how good the weights are; lower is better. None if
            none does, and then no best weights are kept.
    """

    module: nn.Module
    metric: str | None = None

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator, generator: torch.Generator) -> Draw:
        """Returns what the batch of a step is made of, for all processes; cheap.

        Arrays have a multiple of the number of processes as rows, usually n; each process gets its
        rows of each. What has no dimension (a seed, say) is given to all.
        """

    @abstractmethod
    def load(self, draw: Draw) -> Batch:
        """Returns the batch that some rows of a draw stand for, on the CPU.

        It is called in a thread of its own, while the step before is computed.
        """

    @property
    def clip_groups(self) -> Sequence[nn.Module]:
        """Parts of the module whose gradients are clipped each by itself."""
        return [self.module]

    @property
    def companions(self) -> Mapping[str, nn.Module]:
        """Networks that are not trained but change, such as a moving average: part of the state."""
        return {}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Transformer blocks: what is checkpointed, compiled and sharded as a unit."""
        return []

    def after_step(self, step: int) -> None:  # noqa: B027  (nothing to do is a fine answer)
        """Is called when the optimiser has made a step."""

    def validate(self, evaluate: Evaluate) -> dict[str, float]:
        """Returns held-out numbers; every process computes all of them.

        Args:
            evaluate: What the module in evaluation mode gives for a batch, without gradients, in
                the precision and on the device of the training.
        """
        return {}

    def measure(self) -> dict[str, float]:
        """Returns costlier held-out numbers of the module as it is; every process computes all.

        It is in evaluation mode, without gradients, with whole weights in every process.
        """
        return {}

    def watch(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """Looks at every metric line, the same in all processes; may raise `TrainingError`."""

    def name_rows(self, draw: Draw) -> list[str]:
        """Returns what people call the rows of a draw, such as their episodes."""
        return []


def rows_of(draw: Draw, *, part: int, parts: int) -> dict[str, Any]:
    """Returns one of `parts` equal shares of the rows of a draw.

    Raises:
        ValueError: The rows of an array cannot be divided so.
    """
    share = {}
    for name, values in draw.items():
        if np.ndim(values) == 0:
            share[name] = values
            continue
        size, left = divmod(len(values), parts)
        if left:
            raise ValueError(
                f"{len(values)} rows of {name!r} cannot be shared out in {parts} equal parts "
                "(processes times accumulate)"
            )
        share[name] = values[part * size : (part + 1) * size]
    return share
