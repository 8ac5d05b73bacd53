import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldmodel.objectives.sigreg import random_directions, sigreg


def normal(n: int, dim: int, *, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, dim, generator=torch.Generator().manual_seed(seed))


def directions(dim: int, number: int = 256, *, seed: int = 1) -> Tensor:
    return random_directions(dim, number, generator=torch.Generator().manual_seed(seed))


def oracle(latents: np.ndarray, along: np.ndarray, *, knots: int = 17, end: float = 3.0) -> float:
    """The mean statistic, with the integral over both halves taken one direction after another."""
    n, groups, _ = latents.shape
    t = np.linspace(-end, end, 2 * knots - 1)
    values = []
    for g in range(groups):
        for k in range(along.shape[1]):
            x = latents[:, g].astype(np.float64) @ along[:, k].astype(np.float64)
            phi = np.exp(1j * t[:, None] * x).mean(axis=1)
            height = np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
            values.append(n * np.sum((height[1:] + height[:-1]) / 2 * np.diff(t)))
    return float(np.mean(values))


@given(
    st.integers(2, 20), st.integers(1, 3), st.integers(1, 6), st.integers(2, 20), st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_it_is_the_epps_pulley_statistic(n, groups, dim, knots, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = 2 * torch.randn(n, groups, dim, generator=generator) + 0.5
    along = directions(dim, 7, seed=seed)
    expected = oracle(latents.numpy(), along.numpy(), knots=knots)
    value = sigreg(latents, along, num_knots=knots)
    assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_directions_have_length_one_and_point_everywhere() -> None:
    along = directions(3, 4000)
    torch.testing.assert_close(along.norm(dim=0), torch.ones(4000))
    torch.testing.assert_close(along @ along.T / 4000, torch.eye(3) / 3, atol=0.02, rtol=0)
    assert along.mean(dim=1).abs().max() < 0.05


@pytest.mark.parametrize("n", [50, 500, 5000])
def test_standard_normal_latents_cost_about_one_however_many_they_are(n: int) -> None:
    # The expectation: the integral of (1 - exp(-t^2)) exp(-t^2/2) over [-3, 3].
    t = np.linspace(-3, 3, 10_001)
    expected = np.trapezoid((1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), t)
    assert float(sigreg(normal(n, 16), directions(16))) == pytest.approx(expected, rel=0.25)


@given(st.integers(0, 20))
@settings(max_examples=10, deadline=None)
def test_collapsed_shifted_scaled_and_flat_latents_cost_more(seed: int) -> None:
    good, along = normal(400, 8, seed=seed), directions(8)
    price = float(sigreg(good, along))
    flat = good * torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])  # half of the directions are lost
    two = torch.where(good[..., :1] > 0, 2.0, -2.0).expand_as(good)  # two points
    for worse in (0 * good, good + 1.0, 3 * good, good / 3, flat, two):
        assert float(sigreg(worse, along)) > 5 * price
    assert float(sigreg(0 * good, along)) > float(sigreg(good / 3, along))


def test_the_order_of_rows_does_not_matter_and_groups_are_apart() -> None:
    latents, along = torch.cat([normal(40, 4), 3 * normal(40, 4, seed=5)], dim=1), directions(4)
    shuffled = latents[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(sigreg(latents, along), sigreg(shuffled, along))
    each = [sigreg(latents[:, g : g + 1], along) for g in (0, 1)]
    torch.testing.assert_close(sigreg(latents, along), (each[0] + each[1]) / 2)


def test_descent_makes_collapsed_latents_normal() -> None:
    latents = (0.01 * normal(256, 4, seed=3)).requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for step in range(200):
        optimizer.zero_grad()
        sigreg(latents, directions(4, 64, seed=step)).backward()
        optimizer.step()
    found = latents.detach()[:, 0]
    assert found.mean(0).abs().max() < 0.15
    torch.testing.assert_close(torch.cov(found.T), torch.eye(4), atol=0.25, rtol=0)


def test_it_is_computed_in_full_precision() -> None:
    latents, along = normal(64, 8), directions(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = sigreg(latents, along)
    assert lower.dtype == torch.float32
    assert torch.equal(lower, sigreg(latents, along))
