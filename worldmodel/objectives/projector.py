"""What stands between an encoder's tokens and a loss that compares whole frames."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.processes import BatchNorm


class Projector(nn.Sequential):
    """Linear layers with batch normalisation and an activation between them.

    Args:
        sizes: Size of the input, of each hidden layer, and of the output.
        activation: What follows each batch normalisation.
    """

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module]):
        layers: list[nn.Module] = []
        *hidden, last = pairwise(sizes)
        for size_in, size_out in hidden:
            layers += [nn.Linear(size_in, size_out), BatchNorm(size_out), activation()]
        super().__init__(*layers, nn.Linear(*last))


def pooled_tokens(
    encoder: VideoEncoder, images: Float[Tensor, "batch 3 height width"], side: int
) -> Float[Tensor, "batch cells dim"]:
    """Returns the tokens of single images averaged over `side` x `side` equal cells.

    Raises:
        ValueError: The tokens of an image do not fill so many cells.
    """
    clip = images[:, :, None].expand(-1, -1, encoder.frames_per_image, -1, -1)
    _, rows, columns = encoder.grid(clip.shape[2], clip.shape[3], clip.shape[4])
    if side < 1 or rows % side or columns % side:
        raise ValueError(
            f"{rows} x {columns} tokens cannot be averaged over {side} x {side} equal cells"
        )
    maps = encoder(clip).transpose(1, 2).unflatten(2, (rows, columns))  # (B, D, rows, columns)
    cells = F.avg_pool2d(maps, (rows // side, columns // side))
    return cells.flatten(2).transpose(1, 2)
