"""Several cameras that show one moment: how settings name them, and how people look at them.

A setting names one camera, or several joined by "+", as in `camera=exterior+wrist`. An image of V
views is an array (V, height, width, 3), the views in the order of their names.
"""

from collections.abc import Sequence

import numpy as np


def camera_names(camera: str) -> tuple[str, ...]:
    """Returns the cameras that a setting names.

    Raises:
        ValueError: A name is empty, or one camera is named twice.
    """
    names = tuple(camera.split("+"))
    if "" in names or len(set(names)) < len(names):
        raise ValueError(
            f"camera={camera} must name one camera, or several different ones joined by +, such as "
            "exterior+wrist"
        )
    return names


def together(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the picture of one camera as it is, of several (V, height, width, 3)."""
    return pictures[0] if len(pictures) == 1 else np.stack(pictures)


def side_by_side(image: np.ndarray) -> np.ndarray:
    """Returns an image (height, width, 3); the views of (V, height, width, 3) in one row."""
    return image if image.ndim == 3 else np.concatenate(list(image), axis=1)
