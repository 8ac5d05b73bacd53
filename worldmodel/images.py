"""From a camera's picture to the square that an encoder takes: cut, then resized.

What a model was trained on it must also see when it plans, goal and live picture alike, so there is
this one way only. The cut is one of
    square   the middle square; nothing is distorted, and every pixel counts (area averages)
    squash   the middle, at most 1.35 times as wide as high (or 0.75 times), then pressed into a
             square: what the published augmentation of V-JEPA 2-AC amounts to
    eval     the middle square of 224/256 of the shorter side: the evaluation transform of V-JEPA 2
    none     the picture must already have the size

"squash" and "eval" interpolate bilinearly and do not average when they shrink, as published.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import cv2
import numpy as np

from worldmodel.views import together

Crop = Literal["square", "squash", "eval", "none"]

WIDEST, NARROWEST = 1.35, 0.75  # width to height of "squash"; V-JEPA 2-AC's aspect range


EVAL_ENLARGED = 256 / 224  # the shorter side, in sides of the model's picture, before "eval" cuts


def crop_box(height: int, width: int, crop: Crop) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the part of a picture that is kept.

    Source of "squash": V-JEPA 2-AC's training transform (vjepa2 repository, random resized crop
    whose area never fits, so that its central fallback always applies).

    "eval" keeps all here, and cuts after resizing.

    Raises:
        ValueError: The crop is unknown.
    """
    if crop not in get_args(Crop):
        raise ValueError(f"crop must be one of {', '.join(get_args(Crop))}, got '{crop}'")
    kept_height, kept_width = height, width
    if crop == "square":
        kept_height = kept_width = min(height, width)
    elif crop == "squash" and width > WIDEST * height:
        kept_width = round(WIDEST * height)
    elif crop == "squash" and width < NARROWEST * height:
        kept_height = round(width / NARROWEST)
    return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width


def fit_frames(frames: np.ndarray, size: int, crop: Crop) -> np.ndarray:
    """Returns uint8 frames (n, size, size, 3) of frames (n, height, width, 3).

    Frames that already have the size come back as they are: fitting twice is fitting once.

    Raises:
        ValueError: The crop is unknown; or it is "none" and the frames have another size.
    """
    height, width = frames.shape[1:3]
    top, left, kept_height, kept_width = crop_box(height, width, crop)
    if (height, width) == (size, size):
        return frames
    if crop == "eval":
        return _fit_eval(frames, size)
    if crop == "none":
        raise ValueError(
            f"frames are {height} x {width} pixels but the encoder takes {size} x {size}; "
            "say crop=square (or squash) to cut and resize them"
        )
    kept = frames[:, top : top + kept_height, left : left + kept_width]
    averages = crop == "square" and kept_height > size
    return _resize(kept, size, size, cv2.INTER_AREA if averages else cv2.INTER_LINEAR)


def fit_views(pictures: Sequence[np.ndarray], size: int, crop: Crop) -> np.ndarray:
    """Returns one moment as a model sees it: (size, size, 3), or (V, size, size, 3) of V cameras.

    Args:
        pictures: uint8 (height, width, 3) of each camera, in the model's order; sizes may differ.
        size: height and width that the model takes.
        crop: how pictures become so large.

    Raises:
        ValueError: as `fit_frames` does.
    """
    return together([fit_frames(picture[None], size, crop)[0] for picture in pictures])


def _fit_eval(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to 256/224 of `size`, then cuts the middle out.

    Source: the evaluation transform of the vjepa2 repository.
    """
    height, width = frames.shape[1:3]
    short = int(size * EVAL_ENLARGED)
    scale = short / min(height, width)
    rows, columns = (
        short if side == min(height, width) else int(side * scale) for side in (height, width)
    )
    resized = _resize(frames, rows, columns, cv2.INTER_LINEAR)
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    return resized[:, top : top + size, left : left + size]


def _resize(frames: np.ndarray, height: int, width: int, method: int) -> np.ndarray:
    resized = [cv2.resize(frame, (width, height), interpolation=method) for frame in frames]
    return np.stack(resized) if resized else np.empty((0, height, width, 3), np.uint8)
