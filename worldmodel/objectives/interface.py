"""What an objective of pretraining is to the loop: which batch it needs, and its losses on it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import normalise_rgb


@dataclass(frozen=True)
class Needs:
    """The windows of frames that an objective is to be given, with proprio at each frame.

    Attributes:
        frames: Frames of a window.
        strides: Distances of consecutive frames in model steps; one of them is drawn each time.
    """

    frames: int = 1
    strides: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Batch:
    """Windows, and the random choices that were made for them.

    Attributes:
        frames: RGB frames.
        proprio: End-effector states at the frames.
        chosen: What `Objective.draw` drew for these windows.
    """

    frames: UInt8[Tensor, "batch frames height width 3"]
    proprio: Float[Tensor, "batch frames 7"]
    chosen: Mapping[str, Tensor]

    def pixels(self) -> Float[Tensor, "batch frames 3 height width"]:
        """Returns the frames normalised."""
        return normalise_rgb(self.frames)


def as_clip(
    pixels: Float[Tensor, "batch frames 3 height width"], tubelet_size: int
) -> Float[Tensor, "batch 3 clip_frames height width"]:
    """Returns frames as a clip, channels before time; a single frame fills one tubelet."""
    clip = pixels.transpose(1, 2)
    return clip.expand(-1, -1, tubelet_size, -1, -1) if clip.shape[2] == 1 else clip


@dataclass(frozen=True)
class Loss:
    """What is to be minimised, and the numbers to write down of it.

    Attributes:
        total: A scalar with a gradient.
        parts: Scalars by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A way to train an encoder, and all that is trained beside it.

    It is built as `make(encoder=encoder, grid_size=(rows, columns))` with the tokens that a frame
    has, and keeps its other constructor arguments under their own names.

    Attributes:
        needs: The batch it takes.
        remedy: What to change when the encoder collapses, by setting.
    """

    needs: Needs
    remedy: str

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the random choices of a step for its n windows, such as masks.

        They are made for all processes together, so how many share the batch does not change them:
        each process gets its rows of every tensor, and what has no dimension is given to all.

        Args:
            n: Windows of the step, over all processes.
            generator: Source of randomness, on the CPU.
        """
        return {}

    @abstractmethod
    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields losses to be minimised together; parts of one name add up.

        The gradient of each can be taken before the next is asked for, so that only one graph is in
        memory. Each is a mean over the windows or, where it looks at the whole batch, the same in
        every process; so the average of the processes' gradients is that of the whole batch.

        Args:
            encoder: The encoder that is trained.
            batch: The windows of this process.
        """

    def set_scales(self, proprio: Sequence[Float[Tensor, "_ 7"]]) -> None:  # noqa: B027
        """Sets input scales, if there are any, from the states of each training episode."""

    def after_step(self, encoder: VideoEncoder, step: int, steps: int) -> None:  # noqa: B027
        """Is called when the optimizer has made step `step` of `steps`, counted from 1."""

    def kept(self, encoder: VideoEncoder) -> VideoEncoder:
        """Returns the encoder that is saved: the trained one, or what was made of it."""
        return encoder
