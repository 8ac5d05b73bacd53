"""Frames of one camera of one episode, read when they are asked for and not before.

An episode of three HD cameras is gigabytes of pixels; its numbers are kilobytes. So everything that
reads a recording hands out `Frames`: an object that knows its shape and reads the frames that an
index names. A numpy array (n, height, width, 3) is one; the classes here stand for what lies in a
file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import ArrayLike

FRAMES_AT_ONCE = 32  # when all frames are gone through

_JPEG_BEGIN, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class FrameReadError(ValueError):
    """Frames that a recording declares cannot be read; says which file, which frame, and why."""


@runtime_checkable
class Frames(Protocol):
    """uint8 RGB frames (n, height, width, 3); `numpy.ndarray` and `LazyFrames` are ones."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, 3), as declared: reading may still find fewer."""
        ...

    def __len__(self) -> int:
        """Declared number of frames."""
        ...

    def __getitem__(self, index: int | slice | np.ndarray, /) -> np.ndarray:
        """Returns frame(s) as uint8 RGB; raises FrameReadError where one cannot be read."""
        ...


class LazyFrames(ABC):
    """Frames that lie in a file. Subclasses say how to fetch some of them.

    Pickles by its attributes: subclasses keep paths and offsets, never open handles.
    """

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        """Takes the declared shape (n, height, width, 3)."""
        self.shape = shape

    @abstractmethod
    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Returns uint8 RGB (k, height, width, 3) of frames `indices` (k,), k >= 1.

        The indices are int64 within the declared length, in any order, and may repeat.

        Raises:
            FrameReadError: A frame is not there or cannot be decoded.
        """

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Returns the frame at an integer, or frames (k, height, width, 3) at a slice or array."""
        chosen = np.arange(len(self))[index]
        if chosen.ndim > 1:
            raise IndexError(f"frames are chosen by one index, got {index!r}")
        if chosen.size == 0:
            return np.empty((0, *self.shape[1:]), np.uint8)
        wanted = np.atleast_1d(chosen)
        frames = self.fetch(wanted)
        if frames.shape != (len(wanted), *self.shape[1:]) or frames.dtype != np.uint8:
            raise FrameReadError(
                f"frames came as {frames.dtype} {frames.shape}; "
                f"expected uint8 {(len(wanted), *self.shape[1:])}"
            )
        return frames if chosen.ndim else frames[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields all frames (height, width, 3), with few of them in memory."""
        for first in range(0, len(self), FRAMES_AT_ONCE):
            yield from self[first : first + FRAMES_AT_ONCE]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("frames in a file cannot become an array without a copy")
        return self[:] if dtype is None else self[:].astype(dtype)  # type: ignore[arg-type]


class ChosenFrames(LazyFrames):
    """Some frames of others, in any order: a stretch of an episode, or frames at other times."""

    def __init__(self, frames: Frames, indices: ArrayLike) -> None:
        """Frame k of this is frame `indices[k]` of `frames`."""
        self.frames, self.indices = frames, np.asarray(indices, np.int64)
        super().__init__((len(self.indices), *frames.shape[1:]))  # type: ignore[arg-type]

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        return self.frames[self.indices[indices]]


class EncodedFrames(LazyFrames):
    """Frames that are each a JPEG or PNG in memory or behind a sequence that reads one.

    Args:
        images: Encoded bytes, one per frame.
        name: What to call the camera in an error.
        shape: Declared (n, height, width, 3); found from the first image if not given.
    """

    def __init__(
        self,
        images: Sequence[bytes],
        *,
        name: str,
        shape: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.images, self.name = images, name
        if shape is None:
            height = width = 0
            if images:
                height, width = decode_image(images[0], name=f"{name}, frame 0").shape[:2]
            shape = (len(images), height, width, 3)
        super().__init__(shape)

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        decoded = [
            decode_image(self.images[int(i)], name=f"{self.name}, frame {i}") for i in indices
        ]
        for i, image in zip(indices, decoded, strict=True):
            if image.shape != self.shape[1:]:
                raise FrameReadError(
                    f"{self.name}, frame {i}: image is {image.shape}, the first is {self.shape[1:]}"
                )
        return np.stack(decoded)


def decode_image(data: bytes, *, name: str) -> np.ndarray:
    """Returns uint8 RGB (height, width, 3) of an encoded image.

    Raises:
        FrameReadError: The bytes are no image that can be decoded.
    """
    if data.startswith(_JPEG_BEGIN) and _JPEG_END not in data[data.rfind(_JPEG_SCAN) :]:
        # OpenCV before version 5 returns such an image with its lower part made up.
        raise FrameReadError(f"{name}: the JPEG image ends early, after {len(data)} bytes")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise FrameReadError(
            f"{name}: cannot decode the image ({len(data)} bytes, starting {data[:8]!r}); "
            "expected JPEG or PNG"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
