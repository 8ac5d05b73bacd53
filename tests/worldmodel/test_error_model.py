"""An error model in a world where the errors' distribution is known."""

import numpy as np
import pytest
import torch

from worldmodel.error_model import ErrorModel, new_error_model, teach

CHANNELS, SIDE, STEPS = 6, 4, 3000


def clean_steps(seed: int, *, steps: int = STEPS):
    """Log errors are normal: larger where a patch is dark, at the left, or beside what moves."""
    drawn = torch.Generator().manual_seed(seed)
    before = torch.randn(steps, CHANNELS, SIDE, SIDE, generator=drawn)
    ahead = torch.zeros_like(before)
    rows, columns = torch.randint(SIDE, (2, steps), generator=drawn)
    ahead[torch.arange(steps), :, rows, columns] = 1.0
    moving = ahead.mean(dim=1)
    beside = torch.zeros_like(moving)
    beside[:, :, 1:] = moving[:, :, :-1]  # to the right of it
    dark = (before[:, 0] < 0).float()
    left = torch.zeros(SIDE)
    left[0] = 1.0
    middle = -3 + dark + left + 2 * beside
    width = 0.1 + 0.4 * dark
    logs = middle + width * torch.randn(middle.shape, generator=drawn)
    return before, before + ahead, logs, middle, width


@pytest.fixture(scope="module")
def taught() -> ErrorModel:
    before, predicted, logs, *_ = clean_steps(0)
    model = new_error_model(channels=CHANNELS, side=SIDE)
    teach(model, model.features(before, predicted), logs, progress=False)
    return model


def test_it_learns_how_large_and_how_sure_errors_are(taught):
    before, predicted, _, middle, width = clean_steps(1)
    found, sure = taught(taught.features(before, predicted))
    assert (found - middle).abs().mean() < 0.12 < (middle - middle.mean()).abs().mean() / 4
    assert (sure / width).log().abs().mean() < 0.3 < (width.log() - width.log().mean()).abs().mean()


def test_clean_errors_are_standard_normal_in_its_eyes(taught):
    before, predicted, logs, *_ = clean_steps(2)
    units = taught.widths_above(taught.features(before, predicted), logs).numpy()
    assert units.mean() == pytest.approx(0, abs=0.1)
    assert units.std() == pytest.approx(1, abs=0.15)
    assert 2.0 < np.quantile(units, 0.99) < 3.2  # 2.33 of a normal distribution


def test_the_same_error_is_odder_where_nothing_is_uncertain(taught):
    before, predicted, logs, middle, width = clean_steps(3, steps=200)
    features = taught.features(before, predicted)
    raised = taught.widths_above(features, middle + 0.5)
    calm, unsure = raised[width < 0.2], raised[width > 0.4]
    assert calm.median() > 3 * unsure.median() > 0


def test_what_it_learned_is_the_same_every_time(taught):
    before, predicted, logs, *_ = clean_steps(0)
    torch.manual_seed(5)
    again = new_error_model(channels=CHANNELS, side=SIDE)
    teach(again, again.features(before, predicted), logs, progress=False)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, taught.state_dict()[name], msg=name)


def test_lessons_that_teach_nothing_are_refused():
    model = new_error_model(channels=CHANNELS, side=SIDE)
    before, predicted, logs, *_ = clean_steps(0, steps=8)
    features = model.features(before, predicted)
    with pytest.raises(ValueError, match="two clean steps or more, got 1"):
        teach(model, features[:1], logs[:1], progress=False)
    with pytest.raises(ValueError, match="not finite"):
        teach(model, features, logs * float("nan"), progress=False)
