"""Random views of frames, kept simple: a square crop, brightness and contrast.

Nothing is mirrored, because a mirrored arm moves the other way, and no colour is dropped, because
objects are told apart by it.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CROP_DRAWS = 3  # numbers in [0, 1) that a crop takes: area, place along x and y
LIGHT_DRAWS = 2  # brightness and contrast


def cropped(
    pixels: Float[Tensor, "batch frames 3 height width"],
    draws: Float[Tensor, "batch 3"],
    scale: Sequence[float],
) -> Float[Tensor, "batch frames 3 height width"]:
    """Returns each window cut to a square and brought back to its size; its frames alike.

    Args:
        pixels: The frames.
        draws: `CROP_DRAWS` numbers in [0, 1) for each window.
        scale: Smallest and largest area of the square, of the frame's; [1, 1] cuts nothing.
    """
    low, high = scale
    if low == high == 1:
        return pixels
    side = (low + (high - low) * draws[:, 0]).sqrt()
    theta = pixels.new_zeros(len(draws), 2, 3)  # from the cut to the frame, both from -1 to 1
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = (2 * draws[:, 1:] - 1) * (1 - side)[:, None]
    T = pixels.shape[1]
    flat = pixels.flatten(0, 1)
    grid = F.affine_grid(theta.repeat_interleave(T, dim=0), list(flat.shape), align_corners=False)
    cut = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return cut.unflatten(0, (-1, T))


def relit(
    pixels: Float[Tensor, "batch frames 3 height width"],
    draws: Float[Tensor, "batch 2"],
    *,
    brightness: float,
    contrast: float,
) -> Float[Tensor, "batch frames 3 height width"]:
    """Returns each window brighter or darker and with more or less contrast.

    Args:
        pixels: The frames, normalised.
        draws: `LIGHT_DRAWS` numbers in [0, 1) for each window.
        brightness: Largest shift, in standard deviations of natural images.
        contrast: Largest share by which the distance from the window's mean grows or shrinks.
    """
    signed = (2 * draws - 1)[..., None, None, None, None]  # (B, 2, 1, 1, 1, 1)
    shift, stretch = brightness * signed[:, 0], contrast * signed[:, 1]
    mean = pixels.mean(dim=(1, 2, 3, 4), keepdim=True)
    return (pixels - mean) * (1 + stretch) + mean + shift


def check_crop_scale(scale: Sequence[float]) -> list[float]:
    """Returns a crop scale as a list.

    Raises:
        ValueError: It is not two areas above 0 and up to 1, in order.
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"crop_scale must be two areas above 0, up to 1, in order, got {list(scale)}"
        )
    return list(scale)
