import json
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.episode_log import EpisodeLog
from worldmodel.failures import where_it_fails
from worldmodel.results import (
    ARRAYS,
    EpisodeResult,
    Grip,
    PolicyResult,
    Switch,
    compare,
    episode_from_json,
    episode_to_json,
    mcnemar_p_value,
    wilson_interval,
)


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


# A fair coin: 2 * 0.5^6; 2 * (1 + 10 + 45) / 2^10; nothing differs.
@pytest.mark.parametrize("b, c, p", [(6, 0, 0.03125), (2, 8, 0.109375), (0, 0, 1.0), (5, 5, 1.0)])
def test_mcnemar_p_values_are_those_of_a_fair_coin(b: int, c: int, p: float) -> None:
    assert mcnemar_p_value(b, c) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_p_value_is_symmetric_and_counts_outcomes_as_unequal(b: int, c: int) -> None:
    n = b + c
    tails = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(b - c)) / 2**n
    assert mcnemar_p_value(b, c) == mcnemar_p_value(c, b) == pytest.approx(tails)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="got -1 and 2"):
        mcnemar_p_value(-1, 2)


def episode(
    seed: int = 0, *, successes: str = "0001", last: float = 0.01, gripper=(0, 0, 0, 0), cube=0.0
) -> EpisodeResult:
    """Returns an episode of three steps; the tool is at the origin, the nearest cube at `cube`."""
    features = np.zeros((4, 14))
    features[:, 3] = gripper
    features[:, 4:] = 9.0
    features[:, 7:10] = [cube, 0, 0]
    return EpisodeResult(
        seed=seed,
        successes=np.array([mark == "1" for mark in successes]),
        distances=np.array([0.3, 0.2, 0.1, last]),
        features=features,
        actions=np.full((3, 7), 1 / 3),
        stages=np.array([0, 0, 1, 1]),
        stage_names=("above", "grasp", "lift"),
        switches=(Switch(step=2, stage=1, reason="limit"),),
        energies=np.array([1.0, 0.5, 0.7, 0.1]),
        plan_ms=np.array([500.0, 0.0, 100 * last]),
        encode_ms=np.array([9.0, 1.0, 2.0]),
        goal_rejections=2,
        verdicts=("ok", "slow", "hold"),
    )


@pytest.mark.parametrize(
    "successes, end, ever, steps",
    [
        ("0011", True, True, 2),
        ("0101", True, True, 3),
        ("1111", True, True, 0),
        ("0110", False, True, None),
        ("0000", False, False, None),
    ],
)
def test_success_is_what_is_held_at_the_end(
    successes: str, end: bool, ever: bool, steps: int | None
) -> None:
    result = episode(successes=successes)
    assert (result.success, result.ever_successful, result.steps_to_success) == (end, ever, steps)


def test_the_first_grip_is_where_an_open_gripper_closes() -> None:
    grip = episode(gripper=(0, 0.1, 0.375, 0), cube=0.02).first_grip
    assert grip == Grip(step=2, distance=pytest.approx(0.02))
    assert episode(gripper=(0, 0.1, 0.2, 0.1)).first_grip is None
    assert episode(gripper=(1, 0, 1, 1)).first_grip is None  # it held something from the start


def test_a_policy_sums_its_episodes_up() -> None:
    result = PolicyResult(
        "planner",
        (episode(last=0.01), episode(last=0.2, successes="0110"), episode(last=0.03)),
    )
    assert result.successes == 2
    assert result.success_rate == pytest.approx(2 / 3)
    assert result.interval == wilson_interval(2, 3)
    assert result.final_distances.tolist() == [0.01, 0.2, 0.03]
    # Neither the first decision of an episode, which warms up, nor steps without a plan.
    assert result.plan_ms.tolist() == pytest.approx([1, 20, 3])
    assert result.encode_ms.tolist() == [1, 2] * 3


def test_two_policies_are_compared_on_the_seeds_both_had() -> None:
    def policy(name: str, marks: str, first: int = 0) -> PolicyResult:
        return PolicyResult(
            name, tuple(episode(i, successes=f"000{m}") for i, m in enumerate(marks, start=first))
        )

    paired = compare(policy("planner", "1111001"), policy("oracle", "01001", first=1))
    assert (paired.against, paired.episodes) == ("oracle", 5)
    assert (paired.only_planner, paired.only_other) == (2, 1)  # seeds 1, 3 against 5
    assert paired.p_value == mcnemar_p_value(2, 1)


def test_an_episode_survives_json_to_the_last_bit() -> None:
    before = episode()
    after = episode_from_json(json.loads(json.dumps(episode_to_json(before))))
    for name in ARRAYS:
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
        assert getattr(before, name).dtype == getattr(after, name).dtype, name
    for name in ("seed", "stage_names", "switches", "goal_rejections", "verdicts", "frames"):
        assert getattr(before, name) == getattr(after, name), name


def test_failures_are_counted_by_the_sub_goal_they_ended_in() -> None:
    in_lift = replace(
        episode(3, successes="0100", gripper=(0, 0, 1, 1), cube=0.05),
        stages=np.array([0, 1, 2, 2]),
        switches=(Switch(1, 1, "energy"), Switch(2, 2, "gain")),
    )
    fails = where_it_fails(
        [
            in_lift,
            episode(1, successes="0000"),
            episode(2, successes="0000", gripper=(0, 0, 1, 1), cube=0.02),
            episode(4),
        ]
    )
    assert [(f.stage, f.number, f.failures, f.seeds) for f in fails] == [
        ("grasp", 1, 2, (1, 2)),
        ("lift", 2, 1, (3,)),
    ]
    assert [(f.held_before, f.out_of_time, f.never_closed, f.closed_on_air) for f in fails] == [
        (0, 2, 1, 0),
        (1, 0, 0, 1),
    ]


def test_a_log_keeps_every_episode_and_cuts_a_torn_line_off(tmp_path) -> None:
    path = tmp_path / "episodes.jsonl"
    EpisodeLog(path).append("planner", [episode(1), episode(2)])
    whole = path.read_bytes()
    for cut in (1, 100, len(whole) // 2 - 1):
        path.write_bytes(whole + whole[:cut])
        log = EpisodeLog(path)
        assert log.episodes.keys() == {("planner", 1), ("planner", 2)}
        assert path.read_bytes() == whole
    log.append("random", [episode(1)])
    log.append("planner", [episode(2), episode(3)])  # the second is there
    assert list(EpisodeLog(path).episodes) == [
        ("planner", 1),
        ("planner", 2),
        ("random", 1),
        ("planner", 3),
    ]
    assert len(path.read_bytes().splitlines()) == 4


def test_a_log_with_other_damage_is_refused(tmp_path) -> None:
    path = tmp_path / "episodes.jsonl"
    EpisodeLog(path).append("planner", [episode(1)])
    path.write_bytes(b'{"policy": "planner"}\n' + path.read_bytes())
    with pytest.raises(ValueError, match="line 1 of .* is not a finished episode"):
        EpisodeLog(path)
