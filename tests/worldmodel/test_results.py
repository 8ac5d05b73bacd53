import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.results import EpisodeResult, PolicyResult, wilson_interval


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3;
# and the closed form z^2 / (n + z^2) for none of n.
@pytest.mark.parametrize(
    "successes, trials, low, high",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_the_rate_and_mirrors_failures(counts) -> None:
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= successes / trials <= high + 1e-12
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("successes, trials", [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {trials}"):
        wilson_interval(successes, trials)


def episode(success: bool, last: float) -> EpisodeResult:
    return EpisodeResult(
        seed=0,
        success=success,
        distances=np.array([0.3, last]),
        energies=np.array([1.0, 0.5]),
        actions=np.zeros((1, 7)),
        plan_ms=np.array([100 * last]),
        encode_ms=np.array([1.0]),
    )


def test_a_policy_sums_its_episodes_up() -> None:
    result = PolicyResult(
        "planner", (episode(True, 0.01), episode(False, 0.2), episode(True, 0.03))
    )
    assert result.successes == 2
    assert result.success_rate == pytest.approx(2 / 3)
    assert result.interval == wilson_interval(2, 3)
    assert result.final_distances.tolist() == [0.01, 0.2, 0.03]
    assert result.plan_ms.tolist() == pytest.approx([1, 20, 3])
