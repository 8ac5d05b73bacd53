"""Where the energy is lowest, in worlds in which that is known in closed form."""

import numpy as np
import pytest
import torch

from worldmodel.pose import euler_to_matrix, matrix_to_euler
from worldmodel.validation.energy_argmin import energy_argmin
from worldmodel.validation.search import MIN_LIMITS, search_limits

SEARCH = {"windows": 24, "samples": 64, "iterations": 10, "seed": 0, "progress": False}


def argmin_of(world, held_out, **options):
    return energy_argmin(world, held_out, **(SEARCH | options))


@pytest.fixture(scope="module")
def perfect(toy):
    return argmin_of(toy.World(), toy.held_out())


def test_a_perfect_models_energy_is_lowest_at_the_true_action(perfect):
    assert perfect.error_cm < 0.05
    assert np.abs(perfect.offsets_deg).mean() < 0.1
    numbers = perfect.to_json(seed=0)
    assert numbers["gripper"] < 0.01
    assert numbers["outside_limits"] == 0
    assert numbers["error_cm"] == perfect.error_cm < numbers["still_error_cm"] / 50
    assert set(numbers["mean_absolute"]) == set(numbers["bias"]) == {
        "x_cm", "y_cm", "z_cm", "roll_deg", "pitch_deg", "yaw_deg",
    }  # fmt: skip


def test_of_a_model_that_moves_too_little_the_search_goes_too_far(toy):
    held_out = toy.held_out()
    slow = argmin_of(toy.World(lambda a: 0.8 * a), held_out, limits=[0.1] * 3 + [0.3] * 3 + [0.6])
    true = held_out.actions[:, 0]
    np.testing.assert_allclose(slow.found[:, :3], true[:, :3] / 0.8, atol=2e-3)
    expected = 100 * np.linalg.norm(true[:, :3], axis=1).mean() * (1 / 0.8 - 1)
    assert slow.error_cm == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(slow.found[:, 6], true[:, 6] / 0.8, atol=5e-3)


def test_a_shift_of_one_axis_is_the_bias_of_that_axis_alone(toy):
    shift = torch.tensor([0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0])
    held_out = toy.held_out()
    found = argmin_of(toy.World(lambda a: a + shift), held_out, limits=[0.1] * 3 + [0.3] * 4)
    bias = found.to_json(seed=0)["bias"]
    assert bias["y_cm"] == pytest.approx(-2, abs=0.05)
    assert max(abs(bias["x_cm"]), abs(bias["z_cm"])) < 0.05


def test_each_group_is_searched_with_the_others_as_they_were(toy):
    held_out = toy.held_out()

    def coupled(actions):  # this model takes a turn of the hand for a move along x as well
        moved = actions.clone()
        moved[..., 0] += 0.3 * actions[..., 5]
        return moved

    found = argmin_of(toy.World(coupled), held_out, windows=8, limits=[0.12] * 3 + [0.3] * 4)
    expected = found.true[:, 0] - 0.3 * found.true[:, 5]
    np.testing.assert_allclose(found.found[:, 0], expected, atol=3e-3)


def test_a_rotation_is_measured_as_the_turn_between_true_and_found(toy):
    further = euler_to_matrix(np.array([0.0, 0.0, np.radians(4.0)]))

    def believed(actions):
        turns = torch.tensor(further).float() @ euler_to_matrix(actions[..., 3:6])
        return torch.cat([actions[..., :3], matrix_to_euler(turns), actions[..., 6:]], dim=-1)

    found = argmin_of(toy.World(believed), toy.held_out(), limits=[0.1] * 3 + [0.3] * 3 + [0.4])
    np.testing.assert_allclose(found.offsets_deg.mean(axis=0), [0, 0, -4], atol=0.2)


def test_shuffled_action_columns_are_found_unshuffled(toy):
    held_out = toy.held_out()
    broken = argmin_of(toy.World(lambda a: a[..., [1, 2, 0, 3, 4, 5, 6]]), held_out)
    true = held_out.actions[:, 0, :3]
    np.testing.assert_allclose(broken.found[:, :3], true[:, [2, 0, 1]], atol=2e-3)
    expected = 100 * np.linalg.norm(true[:, [2, 0, 1]] - true, axis=1).mean()
    assert broken.error_cm == pytest.approx(expected, rel=0.03)


def test_the_box_is_that_of_the_recordings_and_a_glitch_does_not_stretch_it(toy):
    actions = toy.held_out(windows=300).actions[:, :1]
    limits = np.array(search_limits(actions))
    np.testing.assert_allclose(limits[:3], 1.25 * 0.05, rtol=0.03)
    glitch = actions.copy()
    glitch[0, 0, 0] = 9.0
    np.testing.assert_allclose(search_limits(glitch), limits, rtol=0.05)
    assert search_limits(np.zeros((5, 7))) == MIN_LIMITS
    with pytest.raises(ValueError, match="limits must be 7 numbers above 0"):
        argmin_of(toy.World(), toy.held_out(), limits=[0.1, 0.1])


def test_a_true_action_outside_the_box_is_counted(toy):
    found = argmin_of(toy.World(), toy.held_out(), limits=[0.01] * 3 + [0.3] * 4, iterations=2)
    assert found.outside > 12
    assert found.to_json(seed=0)["outside_limits"] == found.outside


def test_the_same_seed_finds_the_same_and_another_nearly_the_same(toy, perfect):
    again = argmin_of(toy.World(), toy.held_out(), windows=8)  # of each three one
    rows = np.unique(np.linspace(0, 23, 8).round().astype(int))
    np.testing.assert_array_equal(again.true, perfect.true[rows])
    np.testing.assert_allclose(again.found, perfect.found[rows], atol=5e-3)
    for seed, same in ((0, True), (1, False)):
        other = argmin_of(toy.World(), toy.held_out(), windows=8, seed=seed)
        assert np.array_equal(other.found, again.found) == same
