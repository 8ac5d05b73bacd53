"""Cameras of the simulated arm: pictures at their own rate, and all that can be wrong with them.

A picture is taken when it is due and drawn when somebody looks at it, in a thread of its own, as
OpenGL demands.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import mujoco
import numpy as np
from jaxtyping import UInt8

from worldmodel.envs import franka
from worldmodel.envs.cameras import Backend, Renderer, choose_backend, make_renderer
from worldmodel.envs.robots.interface import CameraFrame, CameraInfo, StaleObservationError

STATE = "state"  # the arm and gripper as a sensor, beside the cameras
MEMORY_S = 10.0  # of pictures not yet delivered
_EXACT = 1e-6  # part of a frame by which times may be off


@dataclass
class SensorFaults:
    """What is wrong with the sensors, for tests; by camera name or `STATE`.

    Attributes:
        frozen: deliver nothing new.
        repeating: cameras that deliver their last picture again and again, with new stamps.
        lag_s: delivered so much late, at most `MEMORY_S`.
        loss: part of the frames of a camera that is lost, at random.
    """

    frozen: set[str] = field(default_factory=set)
    repeating: set[str] = field(default_factory=set)
    lag_s: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture that may not be drawn yet: when it was taken, and of which positions (nq,)."""

    taken_at: float
    qpos: np.ndarray


class SimulatedFrame(CameraFrame):
    """A picture that is drawn when somebody looks at it first, whenever and in whatever thread.

    Its fingerprint is that of the scene it is drawn of: what watches over cameras never draws.
    """

    def __init__(self, shot: Shot, camera: CameraInfo, draw: Callable[[np.ndarray], np.ndarray]):
        self.captured_at = shot.taken_at
        self._qpos, self._camera, self._draw = shot.qpos, camera, draw
        self._drawn: np.ndarray | None = None

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]:
        """The picture, RGB; the caller's to keep."""
        if self._drawn is None:
            self._drawn = self._draw(self._qpos)
        return self._drawn

    @property
    def fingerprint(self) -> int:
        """A number that stays the same when the camera repeats its picture."""
        return zlib.crc32(self._qpos.data)

    def fits(self, camera: CameraInfo) -> bool:
        """Returns whether it is a picture such as a camera says that it takes."""
        size = (self._camera.height, self._camera.width)
        return size == (camera.height, camera.width)


class SimulatedCameras:
    """Takes, keeps and draws the pictures of all cameras."""

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Mapping[str, CameraInfo],
        faults: SensorFaults,
        *,
        first: np.ndarray,
        backend: Backend,
        seed: int,
    ):
        """Begins with a picture of each camera, taken at time 0.

        Args:
            model: the scene.
            cameras: by name, which is one of `franka.CAMERAS`.
            faults: what is wrong, now and later.
            first: positions (nq,) of the first pictures.
            backend: which renderer draws.
            seed: of lost frames.

        Raises:
            ValueError: for an unknown camera, or a picture that is too large.
        """
        for name, camera in cameras.items():
            _check(name, camera)
        self._model, self._data = model, mujoco.MjData(model)
        self._cameras, self._faults = dict(cameras), faults
        self._backend: Backend = backend
        self._rng = np.random.default_rng(seed)
        self._shots = {
            name: deque([Shot(0.0, first)], round(MEMORY_S * camera.fps) + 1)
            for name, camera in cameras.items()
        }
        self._drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._renderers: dict[tuple[int, int], Renderer] = {}
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None

    def expose(self, *, before: float, now: float, qpos: np.ndarray) -> None:
        """Takes the pictures that have become due since the tick before [s]."""
        for name, camera in self._cameras.items():
            if int(now * camera.fps + _EXACT) == int(before * camera.fps + _EXACT):
                continue
            lost = self._faults.loss.get(name, 0.0)
            if name in self._faults.frozen or (lost and self._rng.random() < lost):
                continue
            shots = self._shots[name]
            repeats = name in self._faults.repeating
            shots.append(Shot(now, shots[-1].qpos if repeats else qpos))

    def delivered(self, *, now: float, max_age_s: float) -> dict[str, Shot]:
        """Returns the newest picture of each camera that has arrived, but of optional ones too old.

        Raises:
            StaleObservationError: a camera that is not optional has none that is new enough.
        """
        newest = {}
        for name, camera in self._cameras.items():
            latest = now - self._faults.lag_s.get(name, 0.0) + _EXACT / camera.fps
            shots = self._shots[name]
            shot = next((shot for shot in reversed(shots) if shot.taken_at <= latest), shots[0])
            age = now - shot.taken_at
            if age <= max_age_s:
                newest[name] = shot
            elif not camera.optional:
                raise StaleObservationError(name, age_s=age, max_age_s=max_age_s)
        return newest

    def frames(self, shots: Mapping[str, Shot]) -> dict[str, CameraFrame]:
        """Returns pictures that are drawn when they are looked at."""
        return {
            name: SimulatedFrame(shot, self._cameras[name], partial(self._draw_in_thread, name))
            for name, shot in shots.items()
        }

    def close(self) -> None:
        """Frees the renderers; the next picture that is drawn makes new ones."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._close_renderers).result()
            thread.shutdown()

    def _draw_in_thread(self, camera: str, qpos: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "simulated-cameras")
            drawing = self._thread.submit(self._draw, camera, qpos)
        return drawing.result()

    def _draw(self, camera: str, qpos: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        last = self._drawn.get(camera)
        if last is None or last[0] is not qpos:
            size = (self._cameras[camera].height, self._cameras[camera].width)
            if size not in self._renderers:
                self._renderers[size] = make_renderer(
                    self._model, *size, backend=choose_backend(self._backend)
                )
            self._data.qpos = qpos
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_camlight(self._model, self._data)
            last = qpos, self._renderers[size].render(self._data, camera)
            self._drawn[camera] = last
        return last[1].copy()

    def _close_renderers(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def _check(name: str, camera: CameraInfo) -> None:
    if name not in franka.CAMERAS:
        raise ValueError(f"unknown camera {name!r}; choose from {', '.join(franka.CAMERAS)}")
    for side in (camera.height, camera.width):
        if not 1 <= side <= franka.MAX_IMAGE_SIZE:
            raise ValueError(
                f"camera {name!r} must be 1 to {franka.MAX_IMAGE_SIZE} pixels high and wide, got "
                f"{camera.height} x {camera.width}"
            )
    if not 0 < camera.fps < np.inf:
        raise ValueError(f"camera {name!r} must have a rate above 0, got {camera.fps} fps")
