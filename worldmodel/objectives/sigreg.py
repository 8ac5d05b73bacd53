"""SIGReg: how far a batch of latents is from a standard normal distribution, by random sketches."""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.objectives.processes import num_processes, sum_over_processes


def random_directions(
    dim: int, num_directions: int, *, generator: torch.Generator
) -> Float[Tensor, "dim directions"]:
    """Returns directions of length 1, spread evenly over all there are."""
    directions = torch.randn(dim, num_directions, generator=generator)
    return directions / directions.norm(dim=0)


def sigreg(
    latents: Float[Tensor, "batch groups dim"],
    directions: Float[Tensor, "dim directions"],
    *,
    num_knots: int = 17,
    max_knot: float = 3.0,
) -> Float[Tensor, ""]:
    """Returns the mean Epps-Pulley statistic of the latents along the directions.

    Along a direction, with phi(t) the characteristic function of the n rows of the batch:
    n * integral over [-max_knot, max_knot] of |phi(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt, by the
    trapezoid rule (both halves are alike). Of standard normal latents it is about 1 whatever n is;
    else it grows with n. By the Cramer-Wold theorem a distribution whose every projection is
    standard normal is standard normal.

    Source: Balestriero and LeCun 2025 (LeJEPA, arXiv 2511.08544), as used by LeWorldModel (Maes et
    al. 2026, arXiv 2603.19312): 17 knots on [0, 3], 1024 directions. Over several processes phi is
    that of the whole batch, which it is not in the public code.

    Args:
        latents: Rows that should be normally distributed, for each of several groups.
        directions: The directions, the same in every process.
        num_knots: Points of the trapezoid rule on [0, max_knot].
        max_knot: Where the integral ends.
    """
    with torch.autocast(latents.device.type, enabled=False):
        along = latents.float() @ directions  # (B, G, K)
        knots = torch.linspace(0, max_knot, num_knots, device=latents.device)
        sums = torch.stack(
            [torch.stack(((t * along).cos().sum(0), (t * along).sin().sum(0))) for t in knots]
        )  # (knots, 2, G, K)
        n = len(latents) * num_processes()
        real, imaginary = (sum_over_processes(sums) / n).unbind(1)
        normal = (-knots.square() / 2).exp()[:, None, None]
        distance = (real - normal).square() + imaginary.square()
        return 2 * n * torch.trapezoid(distance * normal, knots, dim=0).mean()
