"""Rotary position embedding over (time, row, column), in the two forms the V-JEPA family uses."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

RopeStyle = Literal["tiled", "interleaved"]


def axis_width(head_dim: int) -> int:
    """Returns how many of a head's dimensions each of the three axes rotates (an even number)."""
    return 2 * (head_dim // 3 // 2)


def rope_table(
    positions: Float[Tensor, "*batch tokens 3"], head_dim: int, style: RopeStyle
) -> tuple[Float[Tensor, "*batch tokens dim"], Float[Tensor, "*batch tokens dim"]]:
    """Returns the cosine and sine tables that `rotate` needs, each (..., tokens, head_dim).

    The head is split into a time, a row and a column slot of `axis_width` dimensions; the tail is
    left as it is (cosine 1, sine 0), and so is any axis at position 0.

    Args:
        positions: (time, row, column) of each token.
        head_dim: Size of an attention head.
        style: "tiled" repeats the list of frequencies, as the released V-JEPA 2 and 2-AC weights
            expect although pairs of neighbours are rotated; "interleaved" is the textbook table
            (each frequency twice in place), as V-JEPA 2.1 uses.
    """
    if style not in ("tiled", "interleaved"):
        raise ValueError(f"rope must be 'tiled' or 'interleaved', got {style!r}")
    width = axis_width(head_dim)
    half = width // 2
    index = torch.arange(half, device=positions.device, dtype=torch.float64)
    frequencies = 10000.0 ** (-index / half)
    if style == "tiled":
        frequencies = frequencies.repeat(2)
    else:
        frequencies = frequencies.repeat_interleave(2)
    angles = (positions.double()[..., None] * frequencies).flatten(-2)  # (..., tokens, 3 * width)
    angles = torch.nn.functional.pad(angles, (0, head_dim - 3 * width))
    return angles.cos().float(), angles.sin().float()


def rotate(
    x: Float[Tensor, "... tokens dim"],
    cos: Float[Tensor, "... tokens dim"],
    sin: Float[Tensor, "... tokens dim"],
) -> Float[Tensor, "... tokens dim"]:
    """Rotates neighbouring pairs of `x` (..., tokens, head_dim) by the tables of `rope_table`."""
    even, odd = x[..., 0::2], x[..., 1::2]
    partner = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + partner * sin.to(x.dtype)


def grid_positions(num_steps: int, rows: int, columns: int) -> Float[Tensor, "tokens 3"]:
    """Returns (time, row, column) of every token of a clip, in time-major, row-major order."""
    axes = [torch.arange(n, dtype=torch.float32) for n in (num_steps, rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
