"""Several cameras that show one moment: how settings name them, and how people look at them.

A setting names one camera, or several joined by "+", as in `camera=exterior+wrist`. An image of V
views is an array (V, height, width, 3), the views in the order of their names.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from worldmodel.names import unknown


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


def check_views(sizes: Mapping[str, tuple[int, ...]], cameras: Sequence[str], *, name: str) -> None:
    """Refuses a recording whose pictures cannot be shown together, as views of one moment.

    Args:
        sizes: height and width of the pictures of each camera that it has.
        cameras: that are to be shown.
        name: of the recording.

    Raises:
        KeyError: It has no such camera.
        ValueError: The cameras differ in size.
    """
    for camera in cameras:
        if camera not in sizes:
            raise KeyError(f"{name}: {unknown('camera', camera, sizes)}")
    if len({sizes[camera] for camera in cameras}) > 1:
        told = ", ".join(f"{camera} {'x'.join(map(str, sizes[camera]))}" for camera in cameras)
        raise ValueError(
            f"{name}: its cameras differ in size ({told}), and views are measured at one size; "
            "transcode the recordings to the size of the model"
        )


def together(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the picture of one camera as it is, of several (V, height, width, 3)."""
    return pictures[0] if len(pictures) == 1 else np.stack(pictures)


def side_by_side(image: np.ndarray) -> np.ndarray:
    """Returns an image (height, width, 3); the views of (V, height, width, 3) in one row."""
    return image if image.ndim == 3 else np.concatenate(list(image), axis=1)
