"""What an encoder is to the rest of the package: a module that turns a clip into tokens."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Turns a clip of normalised pixels into tokens, in time-major, then row-major order.

    Attributes:
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames a token spans; a clip's length must be a multiple of it.
        embed_dim: Token size D.
    """

    patch_size: int
    tubelet_size: int
    embed_dim: int

    @property
    def frames_per_image(self) -> int:
        """How many times a single image stands in the clip that makes one time step of it."""
        return self.tubelet_size

    @abstractmethod
    def forward(
        self, clip: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the tokens (B, N, D) of a clip of ImageNet-normalised pixels.

        Raises:
            ValueError: The clip has a size the encoder does not take.
        """

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns how many tokens a clip of this size has along time, rows and columns."""
        steps = 1 if num_frames == self.frames_per_image else num_frames // self.tubelet_size
        return steps, height // self.patch_size, width // self.patch_size

    def _check(self, clip: Tensor) -> None:
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError(
                f"clip must have shape (batch, 3, frames, height, width), got {tuple(clip.shape)}"
            )
        frames, height, width = clip.shape[2:]
        whole = frames == self.frames_per_image or (frames > 0 and frames % self.tubelet_size == 0)
        if not whole:
            raise ValueError(
                f"a clip needs a multiple of tubelet_size={self.tubelet_size} frames, got {frames};"
                f" a single image makes {self.frames_per_image}"
            )
        if not height or not width or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image sides must be multiples of patch_size={self.patch_size}, "
                f"got {height}x{width}"
            )


class ImageEncoder(Encoder):
    """An encoder of single images; the frames of a clip are encoded each by itself."""

    tubelet_size = 1

    @abstractmethod
    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the patch tokens (B, N, D) of images, in row-major order."""

    def forward(
        self, clip: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the tokens (B, T * rows * columns, D) of a clip of ImageNet-normalised pixels.

        Raises:
            ValueError: The frames have a size the encoder does not take.
        """
        self._check(clip)
        images = clip.transpose(1, 2)  # (B, T, 3, height, width)
        tokens = self.encode_images(images.flatten(0, 1))
        return tokens.unflatten(0, tuple(images.shape[:2])).flatten(1, 2)
