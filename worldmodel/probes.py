"""Small decoders that ask what a frozen latent knows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from features to targets.

    Attributes:
        weight: (features, targets).
        feature_mean: (features,).
        target_mean: (targets,).
    """

    weight: Tensor
    feature_mean: Tensor
    target_mean: Tensor

    def __call__(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch targets"]:
        """Returns the decoded targets."""
        return (features - self.feature_mean) @ self.weight + self.target_mean


def fit_linear_probe(
    features: Float[Tensor, "batch features"],
    targets: Float[Tensor, "batch targets"],
    *,
    ridge: float = 1e-2,
) -> LinearProbe:
    """Returns the ridge-regression probe; `ridge` is relative to the mean feature variance."""
    if len(features) != len(targets):
        raise ValueError(f"{len(features)} features do not go with {len(targets)} targets")
    feature_mean, target_mean = features.mean(0), targets.mean(0)
    x, y = (features - feature_mean).double(), (targets - target_mean).double()
    if x.shape[1] <= x.shape[0]:
        gram = x.T @ x
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, x.T @ y)
    else:  # fewer frames than features: the dual form solves the same problem
        gram = x @ x.T
        gram.diagonal().add_(ridge * gram.diagonal().mean() * x.shape[0] / x.shape[1])
        weight = x.T @ torch.linalg.solve(gram, y)
    return LinearProbe(weight.to(features.dtype), feature_mean, target_mean)
