"""Goals by name: the prompt `red cube` is the picture `goals/red cube.png`.

A goal must be taken by the camera that it is compared with, through the same resizing: it has the
size of the live pictures, and both are then fitted to the model in one way.

A goal of several cameras is one picture of each: `goals/red cube.exterior.png` and
`goals/red cube.wrist.png`.

A prompt is only ever looked up among the names of the files that are there, and never becomes part
of a path.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from worldmodel.images import Crop, fit_frames
from worldmodel.names import nearest
from worldmodel.serving.dialects import RequestError
from worldmodel.views import together

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,.'_-]{0,99}")


@dataclass(frozen=True, eq=False)
class Goal:
    """A picture to reach.

    Attributes:
        name: the prompt that asks for it.
        image: RGB, fitted to the model; of several cameras (V, height, width, 3).
        taken_sizes: height and width of the picture in each camera's file.
    """

    name: str
    image: UInt8[np.ndarray, "*views height width 3"]
    taken_sizes: tuple[tuple[int, int], ...]


class Goals:
    """The goals in one folder. A picture that is added later is found when it is asked for."""

    def __init__(
        self,
        folder: Path,
        *,
        image_size: int,
        crop: Crop,
        cameras: tuple[str, ...] = ("exterior",),
    ):
        """Reads them all.

        Args:
            folder: of PNG files.
            image_size: height and width that the model takes.
            crop: how pictures become so large, see `worldmodel.images`.
            cameras: that the model sees, in its order.

        Raises:
            FileNotFoundError: there is no such folder, or no goal in it.
            ValueError: a file has a name that is no prompt, is no picture, or does not fit; or one
                of several cameras has no picture.
        """
        self.cameras = cameras
        self._endings = [f".{camera}.png" for camera in cameras] if len(cameras) > 1 else [".png"]
        files = " and ".join(f"<prompt>{ending}" for ending in self._endings)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of goals at {folder}; put {files} files there")
        self.folder, self.image_size = folder, image_size
        self.crop: Crop = crop
        self._goals: dict[str, Goal] = {}
        self._read_new()
        if not self._goals:
            raise FileNotFoundError(f"no goal in {folder}; put {files} files there")

    @property
    def names(self) -> tuple[str, ...]:
        """The goals that are known, sorted."""
        return tuple(sorted(self._goals))

    def find(self, prompt: str, *, live_sizes: Sequence[tuple[int, int]]) -> Goal:
        """Returns the goal of a prompt.

        Args:
            prompt: its name.
            live_sizes: height and width of the pictures that it will be compared with, of each
                camera.

        Raises:
            RequestError: there is none ("unknown_goal"), a file added meanwhile is unfit
                ("bad_goal"), or the goal has another size than the picture ("goal_mismatch").
        """
        if prompt not in self._goals:
            try:
                self._read_new()
            except ValueError as error:
                raise RequestError("bad_goal", str(error)) from error
        if prompt not in self._goals:
            near = nearest(prompt, self.names)
            names = ", ".join(self.names)
            raise RequestError("unknown_goal", f"{prompt[:100]!r};{near} available: {names}")
        goal = self._goals[prompt]
        for camera, taken, live in zip(self.cameras, goal.taken_sizes, live_sizes, strict=True):
            if taken != live:
                (height, width), (live_height, live_width) = taken, live
                raise RequestError(
                    "goal_mismatch",
                    f"the goal {prompt!r} is {width}x{height} pixels and the {camera} camera sends "
                    f"{live_width}x{live_height}; save goals from what the camera sends",
                )
        return goal

    def _read_new(self) -> None:
        for path in sorted(self.folder.glob("*.png")):
            name = self._name(path)
            if name not in self._goals:
                self._goals[name] = self._read(name)

    def _name(self, path: Path) -> str:
        """Returns the prompt that asks for a file."""
        fitting = [ending for ending in self._endings if path.name.endswith(ending)]
        if not fitting:
            names = " or ".join(f"<prompt>{ending}" for ending in self._endings)
            raise ValueError(f"{path} is of no camera that the model sees; call it {names}")
        name = path.name.removesuffix(fitting[0])
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{path.name!r} names no goal; use letters, digits, spaces and , . ' _ -"
            )
        return name

    def _read(self, name: str) -> Goal:
        read = [self._read_picture(self.folder / f"{name}{ending}") for ending in self._endings]
        return Goal(
            name=name,
            image=together([fitted for fitted, _ in read]),
            taken_sizes=tuple(taken for _, taken in read),
        )

    def _read_picture(self, path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns a picture as the model sees it, and height and width of its file."""
        if not path.is_file():
            raise ValueError(f"{path} is missing; a goal is one picture of each camera")
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path} is not an image that can be read")
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        try:
            (fitted,) = fit_frames(rgb[None], self.image_size, self.crop)
        except ValueError as error:
            raise ValueError(f"goal {path}: {error}") from error
        return fitted, (rgb.shape[0], rgb.shape[1])
