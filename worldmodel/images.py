"""From a camera's picture to the square that an encoder takes: cut, then resized.

What a model was trained on it must also see when it plans, goal and live picture alike, so there is
this one way only. The cut is one of
    square   the middle square; nothing is distorted
    squash   the middle, at most 1.35 times as wide as high (or 0.75 times), then pressed into a
             square: what the published augmentation of V-JEPA 2-AC amounts to
    none     the picture must already have the size
"""

from typing import Literal, get_args

import cv2
import numpy as np

Crop = Literal["square", "squash", "none"]

WIDEST, NARROWEST = 1.35, 0.75  # width to height of "squash"; V-JEPA 2-AC's aspect range


def crop_box(height: int, width: int, crop: Crop) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the part of a picture that is kept.

    Source of "squash": V-JEPA 2-AC's training transform (vjepa2 repository, random resized crop
    whose area never fits, so that its central fallback always applies).

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

    Frames that already have the size come back as they are.

    Raises:
        ValueError: The crop is unknown; or it is "none" and the frames have another size.
    """
    height, width = frames.shape[1:3]
    top, left, kept_height, kept_width = crop_box(height, width, crop)
    if (height, width) == (size, size):
        return frames
    if crop == "none":
        raise ValueError(
            f"frames are {height} x {width} pixels but the encoder takes {size} x {size}; "
            "say crop=square (or squash) to cut and resize them"
        )
    kept = frames[:, top : top + kept_height, left : left + kept_width]
    shrinks = kept_height > size or kept_width > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = [cv2.resize(frame, (size, size), interpolation=method) for frame in kept]
    return np.stack(resized) if resized else np.empty((0, size, size, 3), np.uint8)
