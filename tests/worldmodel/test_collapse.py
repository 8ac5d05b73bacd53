import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldmodel.collapse import CollapseGuard, CollapseLimits, Spread, measure_spread

HEALTHY = Spread(effective_rank=12.0, feature_std=0.5, feature_std_min=0.3, feature_cosine=0.4)
FLAT = Spread(effective_rank=1.1, feature_std=0.001, feature_std_min=0.0, feature_cosine=0.999)


def tokens(pictures: int, places: int, dim: int, *, seed: int = 0) -> Tensor:
    return torch.randn(pictures, places, dim, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_numbers_are_those_of_their_definitions(pictures, places, dim, seed) -> None:
    latents = tokens(pictures, places, dim, seed=seed) + 0.5
    x = latents.double().numpy()
    flat = x.reshape(-1, dim)
    singular = np.linalg.svd(flat, compute_uv=False)
    share = singular / singular.sum()
    rank = math.exp(-sum(p * math.log(p) for p in share if p > 1e-12))
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for i, a in enumerate(flat)
        for j, b in enumerate(flat)
        if i != j
    ]
    std = x.std(axis=0, ddof=1).mean(axis=0)
    spread = measure_spread(latents)
    assert spread.effective_rank == pytest.approx(rank, rel=1e-3)
    assert spread.feature_std == pytest.approx(std.mean(), rel=1e-5)
    assert spread.feature_std_min == pytest.approx(std.min(), rel=1e-5)
    assert spread.feature_cosine == pytest.approx(np.mean(cosines), rel=1e-4, abs=1e-6)


def test_the_rank_is_how_many_directions_are_used() -> None:
    for used in (1, 3, 10):
        latents = tokens(200, 4, used) @ torch.linalg.qr(tokens(1, 16, 16)[0])[0][:used]
        assert measure_spread(latents).effective_rank == pytest.approx(used, rel=0.02)


def test_equal_features_have_rank_one_no_deviation_and_cosine_one() -> None:
    spread = measure_spread(torch.ones(10, 4, 8))
    assert spread.effective_rank == pytest.approx(1)
    assert spread.feature_std == 0
    assert spread.feature_cosine == pytest.approx(1)
    nothing = measure_spread(torch.zeros(10, 4, 8))
    assert nothing.effective_rank == pytest.approx(1) and nothing.feature_std == 0


def test_features_of_the_place_alone_have_no_deviation_over_pictures() -> None:
    latents = tokens(1, 16, 8).expand(10, -1, -1)
    spread = measure_spread(latents)
    assert spread.feature_std == pytest.approx(0, abs=1e-6)
    assert spread.effective_rank > 5  # which is why it is not enough to look at that


def test_a_run_is_stopped_when_a_limit_is_broken_often_enough_in_a_row() -> None:
    guard = CollapseGuard(CollapseLimits(patience=3, first_step=30), remedy="raise the roof")
    judged = [
        guard.collapsed(step, spread)
        for step, spread in [(10, FLAT), (20, FLAT), (30, FLAT), (40, FLAT), (50, HEALTHY)]
    ]
    judged += [guard.collapsed(step, FLAT) for step in (60, 70, 80)]
    assert judged == [False] * 7 + [True]
    message = guard.message()
    for words in ("steps 60, 70, 80", "effective rank 1.1 (limit: 2)", "raise the roof"):
        assert words in message
    assert "pictures 0.001 (limit: 0.02)" in message and "cosine 0.999 (limit: 0.99)" in message


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"effective_rank": 1.5}, "effective rank"),
        ({"feature_std": 0.01}, "standard deviation"),
        ({"feature_cosine": 0.995}, "cosine"),
    ],
)
def test_each_number_alone_can_break_its_limit(changed: dict[str, float], words: str) -> None:
    (broken,) = CollapseLimits().broken_by(Spread(**(vars(HEALTHY) | changed)))
    assert words in broken
    assert CollapseLimits().broken_by(HEALTHY) == []


def test_limits_can_be_switched_off() -> None:
    off = CollapseLimits(min_effective_rank=1, min_std=0, max_cosine=1, patience=1, first_step=0)
    assert off.broken_by(measure_spread(torch.ones(4, 4, 4))) == []
    with pytest.raises(ValueError, match="patience must be 1 or more, got 0"):
        CollapseLimits(patience=0)


def test_what_was_measured_before_a_stop_counts_after_it() -> None:
    limits = CollapseLimits(patience=3, first_step=0)
    guard = CollapseGuard(limits, remedy="")
    guard.replay([{"step": step, "loss": 1.0, **vars(FLAT)} for step in (10, 20)])
    assert guard.collapsed(30, FLAT)
    other = CollapseGuard(limits, remedy="")
    other.replay([{"step": 10, **vars(FLAT)}, {"step": 20, **vars(HEALTHY)}])
    assert not other.collapsed(30, FLAT)
