"""The open-loop action score, with known values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.validation.open_loop import OpenLoop, action_score, open_loop

PLAN = {
    "windows": 8,
    "horizon": 2,
    "samples": 128,
    "iterations": 14,
    "seed": 0,
    "progress": False,
}


def test_the_score_is_that_of_the_paper():
    for error_m, score in ((0.0, 80.0), (0.04, 48.0), (0.1, 0.0), (0.3, 0.0)):
        assert action_score(error_m) == pytest.approx(score, abs=1e-9)


@given(st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_larger_error_never_scores_higher(low, more):
    assert action_score(low + more) <= action_score(low)


def test_the_error_is_the_sum_over_axes_and_the_score_that_of_the_mean_error():
    planned = np.array([[0.01, -0.02, 0.0], [0.0, 0.0, 0.1]])
    found = OpenLoop(planned, np.zeros((2, 3)), 3, np.array([0, 1]))
    np.testing.assert_allclose(found.errors_m, [0.03, 0.1])
    assert found.score == pytest.approx(800 * (0.1 - 0.065))
    numbers = found.to_json(seed=0)
    assert numbers["error_cm"] == pytest.approx(6.5)
    assert numbers["still_score"] == 80  # nothing was done, and staying does that


def test_a_perfect_model_plans_to_where_the_arm_went(toy):
    found = open_loop(toy.World(), toy.held_out(turns=0.02), **PLAN)
    expected = toy.held_out(turns=0.02).take(8).actions[:, :2, :3].sum(axis=1)
    np.testing.assert_allclose(found.true, expected)
    assert found.score > 77
    assert found.to_json(seed=0)["still_score"] < 60


def test_wrong_models_score_lower(toy):
    held_out = toy.held_out(turns=0.02)
    perfect = open_loop(toy.World(), held_out, **PLAN).score
    for believed in (
        lambda a: a[..., [1, 2, 0, 3, 4, 5, 6]],
        lambda a: a + torch.tensor([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        toy.turned(50),
    ):
        assert open_loop(toy.World(believed), held_out, **PLAN).score < perfect - 10


def test_an_axis_of_limit_zero_rests(toy):
    limits = [0.0, 0.1, 0.1, 0.0, 0.0, 0.0, 0.5]
    found = open_loop(toy.World(), toy.held_out(), **PLAN, limits=limits)
    np.testing.assert_array_equal(found.planned[:, 0], 0)
    assert (np.abs(found.planned[:, 1]) > 0).all()


def test_a_plan_longer_than_the_windows_is_refused(toy):
    with pytest.raises(ValueError, match="horizon must be between 1 and the 4 steps"):
        open_loop(toy.World(), toy.held_out(), **(PLAN | {"horizon": 5}))
