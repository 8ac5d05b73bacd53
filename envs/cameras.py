"""Pictures of the scene: one small interface, two renderers behind it.

``gl`` draws with OpenGL (`mujoco.Renderer`), ``ray`` casts rays with MuJoCo and numpy and needs no
system library. Their pictures look alike but are not equal, so a dataset should record which one
made it, and a model should see one kind only.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import logging
from typing import Literal, Protocol, get_args

import cv2
import mujoco
import numpy as np

from worldmodel.envs import opengl
from worldmodel.envs.raycast import RayRenderer

Backend = Literal["auto", "gl", "ray"]
SUPERSAMPLING = 2
logger = logging.getLogger(__name__)
_announced: set[str] = set()


class Renderer(Protocol):
    """Draws what a camera sees."""

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Return a new uint8 RGB image (height, width, 3) of the state in `data`."""
        ...

    def close(self) -> None:
        """Free what the renderer holds; it cannot draw afterwards."""
        ...


class GLRenderer:
    """OpenGL pictures, without the effects that cost most on a machine without a GPU.

    Create it in the process that draws: a process forked after any OpenGL call hangs.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        self._renderer = mujoco.Renderer(model, height, width)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        flags[mujoco.mjtRndFlag.mjRND_HAZE] = False

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Return a new uint8 RGB image (height, width, 3) of the state in `data`."""
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


class Supersampled:
    """Smooth pictures: drawn larger and averaged down, as a lens and a sensor would.

    Without it an edge moves by whole pixels, and motion below half a pixel, 4 mm at 128 pixels, is
    invisible.
    """

    def __init__(self, renderer: Renderer, height: int, width: int):
        self._renderer, self._size = renderer, (width, height)

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Return a new uint8 RGB image (height, width, 3) of the state in `data`."""
        large = self._renderer.render(data, camera)
        return cv2.resize(large, self._size, interpolation=cv2.INTER_AREA)

    def close(self) -> None:
        """Free what the renderer holds."""
        self._renderer.close()


def choose_backend(backend: Backend) -> Literal["gl", "ray"]:
    """Turn a wish into the backend that will draw.

    Args:
        backend: ``gl``, ``ray``, or ``auto``: gl where OpenGL works, else ray; the choice is logged
            once.

    Raises:
        ValueError: For an unknown name.
        RuntimeError: For ``gl`` where OpenGL does not work.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown render backend {backend!r}; choose from auto, gl, ray")
    if backend == "ray":
        return "ray"
    problem = opengl.why_unusable()
    if backend == "gl" and problem:
        raise RuntimeError(
            f"backend='gl' needs OpenGL, but {problem}. To fix it {opengl.INSTALL_HINT}; "
            "backend='ray' works without OpenGL."
        )
    chosen = "ray" if problem else "gl"
    if backend == "auto" and chosen not in _announced:
        _announced.add(chosen)
        logger.info("drawing with the %s renderer%s", chosen, f": {problem}" if problem else "")
    return chosen


def make_renderer(
    model: mujoco.MjModel, height: int, width: int, *, backend: Literal["gl", "ray"]
) -> Renderer:
    """Build a renderer for pictures of one size [pixels], smooth where the buffer allows it."""
    kind = GLRenderer if backend == "gl" else RayRenderer
    largest = min(model.vis.global_.offwidth, model.vis.global_.offheight)
    if SUPERSAMPLING * max(height, width) > largest:
        return kind(model, height, width)
    return Supersampled(kind(model, SUPERSAMPLING * height, SUPERSAMPLING * width), height, width)
