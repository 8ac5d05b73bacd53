"""Statistics of the whole batch when several processes hold a share of it each.

The mean over a batch is the mean of the shares' means; a variance, a correlation or a
characteristic function is not. These sums make such a statistic that of the whole batch. Every
process then has the same value, and the average of the processes' gradients, which is what data
parallel training takes, is the gradient one process with the whole batch would have.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


def num_processes() -> int:
    """Returns how many processes train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Returns the sum of `x` over all processes, with a gradient; `x` itself in a single one."""
    if num_processes() == 1:
        return x
    total = _Sum.apply(x)
    assert isinstance(total, Tensor)
    return total


class _Sum(torch.autograd.Function):
    """All-reduce, whose gradient is the sum of what all processes ask of the total."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def batch_moments(
    x: Float[Tensor, "batch dim"],
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"], int]:
    """Returns mean and variance (over n, not n - 1) of the whole batch, and its size n.

    Every process must hold as many rows.
    """
    n = len(x) * num_processes()
    mean = sum_over_processes(x.sum(dim=0)) / n
    variance = sum_over_processes((x - mean).square().sum(dim=0)) / n
    return mean, variance, n


class BatchNorm(nn.Module):
    """Batch normalisation by the whole batch, always: for heads that training throws away.

    Args:
        dim: Size of the rows.
        eps: Added to the variance.
        affine: Whether a scale and a shift are learned.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Returns the rows normalised, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            mean, variance, _ = batch_moments(x)
            x = (x - mean) * (variance + self.eps).rsqrt()
            if self.weight is not None and self.bias is not None:
                x = x * self.weight + self.bias
        return x
