"""What the objectives that compare two views of a picture share."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.augmentation import (
    CROP_DRAWS,
    LIGHT_DRAWS,
    check_crop_scale,
    cropped,
    relit,
)
from worldmodel.objectives.interface import Batch, Loss, Needs, Objective
from worldmodel.objectives.projector import Projector, pooled_tokens


class TwoViews(Objective):
    """Makes two random views of each frame, and one embedding of each view.

    The embedding is a projector's, from the mean of the encoder's tokens.

    Args:
        encoder: The encoder that is trained.
        projector_dim: Size of the hidden layers of the projector, and of the embeddings.
        crop_scale: Smallest and largest area of the random crops, of 1.
        brightness: See `worldmodel.objectives.augmentation.relit`.
        contrast: The same.
    """

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        projector_dim: int,
        crop_scale: Sequence[float],
        brightness: float,
        contrast: float,
    ):
        super().__init__()
        if brightness < 0 or not 0 <= contrast < 1:
            raise ValueError(
                f"brightness must be 0 or more and contrast within 0..1, got {brightness} and "
                f"{contrast}"
            )
        self.projector_dim = projector_dim
        self.crop_scale = check_crop_scale(crop_scale)
        self.brightness = brightness
        self.contrast = contrast
        self.needs = Needs(frames=1)
        self.projector = Projector((encoder.embed_dim, *[projector_dim] * 3), nn.ReLU)

    @abstractmethod
    def compare(
        self, first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"]
    ) -> Loss:
        """Returns the loss of the embeddings of the two views of each frame."""

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns what makes the two views of each frame."""
        crop = torch.rand(n, 2, CROP_DRAWS, generator=generator)
        return {"crop": crop, "light": torch.rand(n, 2, LIGHT_DRAWS, generator=generator)}

    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields the loss of one pair of views a frame."""
        views = torch.cat([self.view(batch, which) for which in (0, 1)])  # (2 B, 3, H, W)
        pooled = pooled_tokens(encoder, views, 1)[:, 0]
        first, second = (self.projector(half).float() for half in pooled.chunk(2))
        yield self.compare(first, second)

    def view(self, batch: Batch, which: int) -> Float[Tensor, "batch 3 height width"]:
        """Returns the first (0) or the second (1) view of each frame."""
        pixels = cropped(batch.pixels(), batch.chosen["crop"][:, which], self.crop_scale)
        light = batch.chosen["light"][:, which]
        return relit(pixels, light, brightness=self.brightness, contrast=self.contrast)[:, 0]
