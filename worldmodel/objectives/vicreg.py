"""VICReg: two views agree, every number of an embedding varies, and no two vary together."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.interface import Loss
from worldmodel.objectives.processes import batch_moments, sum_over_processes
from worldmodel.objectives.two_views import TwoViews

VARIANCE_EPS = 1e-4


class VICReg(TwoViews):
    """VICReg (Bardes, Ponce and LeCun 2022, arXiv 2105.04906, equations 1 to 6).

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns; any will do.
        projector_dim: Size of the hidden layers of the projector, and of the embeddings.
        invariance_weight: Weight of the mean square between the views.
        variance_weight: Weight of the standard deviations' falling short of 1.
        covariance_weight: Weight of the covariances between numbers.
        crop_scale: Smallest and largest area of the random crops, of 1.
        brightness: See `worldmodel.objectives.augmentation.relit`.
        contrast: The same.
    """

    remedy = "raise objective.variance_weight or batch_size, or lower schedule.peak"

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        grid_size: Sequence[int],
        projector_dim: int,
        invariance_weight: float,
        variance_weight: float,
        covariance_weight: float,
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
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def compare(
        self, first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"]
    ) -> Loss:
        """Returns the three terms over the whole batch, and their weighted sum."""
        with torch.autocast(first.device.type, enabled=False):
            invariance = (first - second).square().mean()
            parts = [variance_and_covariance(view) for view in (first, second)]
        variance = (parts[0][0] + parts[1][0]) / 2
        covariance = parts[0][1] + parts[1][1]
        return Loss(
            total=self.invariance_weight * invariance
            + self.variance_weight * variance
            + self.covariance_weight * covariance,
            parts={"invariance": invariance, "variance": variance, "covariance": covariance},
        )


def variance_and_covariance(
    x: Float[Tensor, "batch dim"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns by how much standard deviations fall short of 1, and how much numbers vary together.

    Both are means over the numbers of the embedding, taken over the whole batch.
    """
    mean, variance, n = batch_moments(x)
    std = (variance * n / (n - 1) + VARIANCE_EPS).sqrt()
    centred = x - mean
    covariance = sum_over_processes(centred.T @ centred) / (n - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return (1 - std).relu().mean(), off_diagonal / x.shape[1]
