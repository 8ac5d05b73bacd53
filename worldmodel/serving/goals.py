"""Goals by name: the prompt `red cube` is the picture `goals/red cube.png`.

A goal must be taken by the camera that it is compared with, through the same resizing: it has the
size of the live pictures, and both are then fitted to the model in one way.

A prompt is only ever looked up among the names of the files that are there, and never becomes part
of a path.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from worldmodel.images import Crop, fit_frames
from worldmodel.names import nearest
from worldmodel.serving.dialects import RequestError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,.'_-]{0,99}")


@dataclass(frozen=True, eq=False)
class Goal:
    """A picture to reach.

    Attributes:
        name: the prompt that asks for it.
        image: RGB, fitted to the model.
        taken_size: height and width of the picture in its file.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    taken_size: tuple[int, int]


class Goals:
    """The goals in one folder. A picture that is added later is found when it is asked for."""

    def __init__(self, folder: Path, *, image_size: int, crop: Crop):
        """Reads them all.

        Args:
            folder: of PNG files.
            image_size: height and width that the model takes.
            crop: how pictures become so large, see `worldmodel.images`.

        Raises:
            FileNotFoundError: there is no such folder, or no goal in it.
            ValueError: a file has a name that is no prompt, is no picture, or does not fit.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of goals at {folder}; put <prompt>.png files there")
        self.folder, self.image_size = folder, image_size
        self.crop: Crop = crop
        self._goals: dict[str, Goal] = {}
        self._read_new()
        if not self._goals:
            raise FileNotFoundError(f"no goal in {folder}; put <prompt>.png files there")

    @property
    def names(self) -> tuple[str, ...]:
        """The goals that are known, sorted."""
        return tuple(sorted(self._goals))

    def find(self, prompt: str, *, live_size: tuple[int, int]) -> Goal:
        """Returns the goal of a prompt.

        Args:
            prompt: its name.
            live_size: height and width of the picture that it will be compared with.

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
        if goal.taken_size != live_size:
            (height, width), (live_height, live_width) = goal.taken_size, live_size
            raise RequestError(
                "goal_mismatch",
                f"the goal {prompt!r} is {width}x{height} pixels and the camera sends {live_width}x"
                f"{live_height}; save goals from what the camera sends",
            )
        return goal

    def _read_new(self) -> None:
        for path in sorted(self.folder.glob("*.png")):
            if path.stem not in self._goals:
                self._goals[path.stem] = self._read(path)

    def _read(self, path: Path) -> Goal:
        if not _NAME.fullmatch(path.stem):
            raise ValueError(
                f"{path.name!r} names no goal; use letters, digits, spaces and , . ' _ -"
            )
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path} is not an image that can be read")
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        try:
            (fitted,) = fit_frames(rgb[None], self.image_size, self.crop)
        except ValueError as error:
            raise ValueError(f"goal {path}: {error}") from error
        return Goal(name=path.stem, image=fitted, taken_size=(rgb.shape[0], rgb.shape[1]))
