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


@dataclass(frozen=True)
class MultiBlock:
    """Several targets and one context of an image (Assran et al. 2023, I-JEPA, section 3).

    Attributes:
        num_targets: How many target blocks; they may overlap.
        target_scale: Smallest and largest area of a target over that of the image.
        target_aspect: Smallest and largest height over width of a target.
        context_scale: Smallest and largest area of the context block, a square.
        min_context: The context has more tokens than this, when the targets are taken from it.
    """

    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.20)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context: int = 10


def sample_context_and_targets(
    spec: MultiBlock,
    *,
    batch_size: int,
    grid: tuple[int, int, int],
    generator: torch.Generator,
    max_attempts: int = 200,
) -> tuple[Int[Tensor, "batch kept"], Int[Tensor, "batch blocks target"]]:
    """Returns the flat ids of the context of each image and of each of its target blocks.

    Blocks have one size for the whole batch and their own places in each image. As in the public
    code one random number gives both scale and aspect. Unlike there, a block may lie at the last
    row and column (theirs never does, so tokens at the edge are never targets); an image whose
    context is too small is drawn again (theirs lets the context see targets after 20 attempts); and
    contexts are cut to the smallest of the batch at random, as in `sample_masks`.

    Args:
        spec: Number, size and shape of the blocks.
        batch_size: Number of images.
        grid: Tokens along (time, rows, columns); blocks span all of time.
        generator: Source of randomness, on the CPU.
        max_attempts: How often the blocks of an image that leave too little context are drawn.
    """
    T, rows, columns = grid
    height, width = _correlated_size(
        spec.target_scale, spec.target_aspect, rows, columns, generator
    )
    tall, wide = _correlated_size(spec.context_scale, (1.0, 1.0), rows, columns, generator)

    def place(height: int, width: int) -> Tensor:
        block = torch.zeros(rows, columns, dtype=torch.bool)
        top = int(torch.randint(rows - height + 1, (), generator=generator))
        left = int(torch.randint(columns - width + 1, (), generator=generator))
        block[top : top + height, left : left + width] = True
        return block

    contexts, targets = [], []
    for _ in range(batch_size):
        for _ in range(max_attempts):
            blocks = torch.stack([place(height, width) for _ in range(spec.num_targets)])
            context = place(tall, wide) & ~blocks.any(dim=0)
            if int(context.sum()) > spec.min_context:
                break
        else:
            raise ValueError(
                f"{max_attempts} draws of {spec} on a {rows}x{columns} grid left no context of "
                f"more than {spec.min_context} tokens; use fewer or smaller targets, larger "
                "images, or a smaller min_context"
            )
        contexts.append(context)
        targets.append(blocks)
    kept = torch.stack(contexts).flatten(1)[:, None].expand(-1, T, -1).flatten(1)
    hidden = torch.stack(targets).flatten(2)[:, :, None].expand(-1, -1, T, -1).flatten(2)
    ids = hidden.flatten(0, 1).nonzero()[:, 1]  # every block has as many tokens
    return _first_ids(kept, generator), ids.view(batch_size, spec.num_targets, -1)


def _correlated_size(
    scale: tuple[float, float],
    aspect: tuple[float, float],
    rows: int,
    columns: int,
    generator: torch.Generator,
) -> tuple[int, int]:
    draw = float(torch.rand((), generator=generator))
    area = rows * columns * (scale[0] + draw * (scale[1] - scale[0]))
    ratio = aspect[0] + draw * (aspect[1] - aspect[0])
    height = min(max(round(math.sqrt(area * ratio)), 1), rows)
    width = min(max(round(math.sqrt(area / ratio)), 1), columns)
    return height, width
