"""Multi-block masks of V-JEPA: which tokens of a clip the encoder sees, and which it must infer."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class MaskSpec:
    """One group of masks (Bardes et al. 2024, V-JEPA; Assran et al. 2025, V-JEPA 2).

    Attributes:
        num_blocks: How many blocks are hidden; they may overlap.
        scale: Area of a block over the area of a frame.
        min_keep: Smallest visible fraction of a frame; masks that leave less are drawn again, so
            that one unlucky clip does not cut the context of its whole batch.
        aspect: Smallest and largest height over width of a block.
    """

    num_blocks: int
    scale: float
    min_keep: float
    aspect: tuple[float, float] = (0.75, 1.5)


SHORT_RANGE = MaskSpec(num_blocks=8, scale=0.15, min_keep=0.30)
LONG_RANGE = MaskSpec(num_blocks=2, scale=0.70, min_keep=0.14)


def sample_masks(
    spec: MaskSpec,
    *,
    batch_size: int,
    grid: tuple[int, int, int],
    generator: torch.Generator,
    max_attempts: int = 200,
) -> tuple[Int[Tensor, "batch kept"], Int[Tensor, "batch hidden"]]:
    """Returns the flat ids of the kept and of the hidden tokens of each clip, both ascending.

    A block has one size for the whole batch, its own place in each clip, and spans all of time.
    All clips are cut to the smallest kept and hidden counts of the batch by dropping tokens at
    random (Meta's code drops the last ones, which favours early frames).

    Args:
        spec: Number, size and shape of the blocks.
        batch_size: Number of clips.
        grid: Tokens along (time, rows, columns).
        generator: Source of randomness, on the CPU.
        max_attempts: How often the masks of a clip that hide too much are drawn again.
    """
    T, rows, columns = grid
    height, width = _block_size(spec, rows, columns, generator)
    hidden = torch.zeros(batch_size, rows, columns, dtype=torch.bool)
    for frame in hidden:
        for _ in range(max_attempts):
            frame.zero_()
            for _ in range(spec.num_blocks):
                top = int(torch.randint(rows - height + 1, (), generator=generator))
                left = int(torch.randint(columns - width + 1, (), generator=generator))
                frame[top : top + height, left : left + width] = True
            visible = rows * columns - int(frame.sum())
            if visible >= max(1, spec.min_keep * rows * columns):
                break
        else:
            raise ValueError(
                f"{max_attempts} draws of {spec} on a {rows}x{columns} grid left too little "
                "visible; use fewer or smaller blocks, or a smaller min_keep"
            )
    hidden = hidden.flatten(1)[:, None].expand(-1, T, -1).flatten(1)  # (B, N)
    return _first_ids(~hidden, generator), _first_ids(hidden, generator)


def _block_size(
    spec: MaskSpec, rows: int, columns: int, generator: torch.Generator
) -> tuple[int, int]:
    low, high = spec.aspect
    aspect = low + (high - low) * float(torch.rand((), generator=generator))
    area = rows * columns * spec.scale
    height = min(max(round(math.sqrt(area * aspect)), 1), rows)
    width = min(max(round(math.sqrt(area / aspect)), 1), columns)
    return height, width


def _first_ids(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Returns as many ids of the True tokens as every clip of the batch has, ascending."""
    count = int(chosen.sum(dim=1).min())
    priority = torch.rand(chosen.shape, generator=generator).masked_fill(~chosen, 2.0)
    return priority.argsort(dim=1)[:, :count].sort(dim=1).values
