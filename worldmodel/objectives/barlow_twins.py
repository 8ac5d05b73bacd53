"""Barlow Twins: the numbers of an embedding agree between two views, and not with one another."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.interface import Loss
from worldmodel.objectives.processes import BatchNorm, num_processes, sum_over_processes
from worldmodel.objectives.two_views import TwoViews


class BarlowTwins(TwoViews):
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, equation 1).

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns; any will do.
        projector_dim: Size of the hidden layers of the projector, and of the embeddings.
        redundancy_weight: Weight of what different numbers have in common, lambda in the paper.
        crop_scale: Smallest and largest area of the random crops, of 1.
        brightness: See `worldmodel.objectives.augmentation.relit`.
        contrast: The same.
    """

    remedy = "raise objective.redundancy_weight or batch_size, or lower schedule.peak"

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        grid_size: Sequence[int],
        projector_dim: int,
        redundancy_weight: float,
        crop_scale: Sequence[float],
        brightness: float,
        contrast: float,
    ):
        super().__init__(
            encoder=encoder,
            projector_dim=projector_dim,
            crop_scale=crop_scale,
            brightness=brightness,
            contrast=contrast,
        )
        self.redundancy_weight = redundancy_weight
        self.standardise = BatchNorm(projector_dim, affine=False)

    def compare(
        self, first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"]
    ) -> Loss:
        """Returns the loss of the cross-correlation of the two views over the whole batch."""
        with torch.autocast(first.device.type, enabled=False):
            products = self.standardise(first).T @ self.standardise(second)
            correlation = sum_over_processes(products) / (len(first) * num_processes())
        on_diagonal = correlation.diagonal()
        invariance = (1 - on_diagonal).square().sum()
        redundancy = correlation.square().sum() - on_diagonal.square().sum()
        return Loss(
            total=invariance + self.redundancy_weight * redundancy,
            parts={"invariance": invariance, "redundancy": redundancy},
        )
