"""Prediction errors with known values: of a perfect, a slow, a deaf and a wrong model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.validation.latent_errors import latent_errors


def errors_of(world, held_out, **options):
    return latent_errors(world, held_out, **({"horizon": 4, "progress": False} | options))


def test_a_perfect_model_errs_by_nothing_and_a_deaf_one_as_much_as_a_copy(toy):
    held_out = toy.held_out()
    perfect = errors_of(toy.World(), held_out)
    np.testing.assert_allclose(perfect.predicted, 0, atol=1e-9)
    assert (perfect.shuffled.mean(axis=0) > 0).all()
    np.testing.assert_allclose(perfect.identity_ratios, 0, atol=1e-6)
    deaf = errors_of(toy.World(deaf=True), held_out)
    np.testing.assert_allclose(deaf.identity_ratios, 1, rtol=1e-6)
    np.testing.assert_allclose(deaf.shuffled_ratios, 1, rtol=1e-6)


@given(st.floats(0.0, 2.0), st.sampled_from(["l1", "l2"]))
@settings(max_examples=25, deadline=None)
def test_of_a_model_that_moves_too_little_the_ratio_is_known(toy, share, distance):
    held_out = toy.held_out(turns=1e-9)
    slow = toy.World(believed=lambda actions: share * actions)
    found = errors_of(slow, held_out, distance=distance)
    expected = abs(1 - share) if distance == "l1" else (1 - share) ** 2
    np.testing.assert_allclose(found.identity_ratios, expected, atol=1e-3)


def test_errors_are_of_each_window_and_step_by_hand(toy):
    held_out = toy.held_out(windows=40)
    found = errors_of(toy.World(deaf=True), held_out, horizon=3, distance="l1")
    assert found.identity.shape == (40, 3)
    by_hand = (held_out.latents[7, 2] - held_out.latents[7, 0]).abs().mean()
    assert found.identity[7, 1] == pytest.approx(float(by_hand), rel=1e-5)
    shuffled = errors_of(toy.World(), held_out, horizon=3, distance="l1").shuffled
    other = held_out.others()[7]
    assert other != 7
    gone = held_out.proprio[7, 0].astype(float)
    from worldmodel.pose import integrate

    for action in held_out.actions[other, :2]:
        gone = integrate(gone, action)
    imagined = toy.World().latents_of(torch.tensor(gone).float())
    assert shuffled[7, 1] == pytest.approx(
        float((imagined - held_out.latents[7, 2]).abs().mean()), rel=1e-4
    )


def test_shuffled_action_columns_make_both_ratios_worse(toy):
    held_out = toy.held_out()
    broken = errors_of(toy.World(lambda a: a[..., [1, 2, 0, 3, 4, 5, 6]]), held_out)
    perfect = errors_of(toy.World(), held_out)
    assert (broken.identity_ratios > perfect.identity_ratios + 0.2).all()
    assert (broken.shuffled_ratios > perfect.shuffled_ratios + 0.1).all()


def test_the_numbers_of_the_json_are_those_of_the_ratios(toy):
    found = errors_of(toy.World(lambda a: 0.5 * a), toy.held_out())
    numbers = found.to_json(seed=0)
    assert numbers["identity_ratios"] == found.identity_ratios.tolist()
    low, high = numbers["identity_ratio_95"]
    assert low <= found.identity_ratios[0] <= high and high - low < 0.2
    assert numbers["horizon"] == 4 and numbers["windows"] == 24
    assert found.to_json(seed=0) == numbers


def test_what_says_nothing_is_refused(toy):
    held_out = toy.held_out()
    with pytest.raises(ValueError, match="horizon must be between 1 and the 4 steps"):
        errors_of(toy.World(), held_out, horizon=5)
    with pytest.raises(ValueError, match="unknown distance 'l3'; did you mean"):
        errors_of(toy.World(), held_out, distance="l3")
    with pytest.raises(ValueError, match="is not finite"):
        errors_of(toy.World(lambda a: a * float("nan")), held_out)
    still = type(held_out)(
        held_out.latents[:, :1].expand(-1, 5, -1, -1),
        np.repeat(held_out.proprio[:, :1], 5, axis=1),
        held_out.episodes,
    )
    with pytest.raises(ValueError, match="nothing changes in these windows"):
        errors_of(toy.World(), still)
