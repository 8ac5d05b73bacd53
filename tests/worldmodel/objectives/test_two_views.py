import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldmodel.objectives.augmentation import cropped, relit
from worldmodel.objectives.processes import BatchNorm
from worldmodel.objectives.vicreg import variance_and_covariance

sizes = st.tuples(st.integers(3, 12), st.integers(0, 99))


def embeddings(small, name: str, n: int, seed: int) -> tuple[object, Tensor, Tensor]:
    _, objective = small.make(name)
    generator = torch.Generator().manual_seed(seed)
    first = 2 * torch.randn(n, 32, generator=generator) + 1
    return objective, first, first + 0.5 * torch.randn(n, 32, generator=generator)


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_barlow_twins_is_equation_one_of_its_paper(small, size) -> None:
    objective, first, second = embeddings(small, "barlow_twins", *size)
    a, b = (x.double().numpy() for x in (first, second))
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (a, b))
    on, off = 0.0, 0.0
    for i in range(32):
        for j in range(32):
            c = (a[:, i] * b[:, j]).mean()
            if i == j:
                on += (1 - c) ** 2
            else:
                off += c**2
    loss = objective.compare(first, second)  # type: ignore[attr-defined]
    assert float(loss.parts["invariance"]) == pytest.approx(on, rel=1e-3, abs=1e-4)
    assert float(loss.parts["redundancy"]) == pytest.approx(off, rel=1e-3)
    assert float(loss.total) == pytest.approx(on + 0.005 * off, rel=1e-3)


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_vicreg_is_equations_one_to_six_of_its_paper(small, size) -> None:
    objective, first, second = embeddings(small, "vicreg", *size)
    n = size[0]
    a, b = (x.double().numpy() for x in (first, second))
    invariance = ((a - b) ** 2).mean()
    variance, covariance = 0.0, 0.0
    for x in (a, b):
        variance += np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean() / 2
        c = (x - x.mean(0)).T @ (x - x.mean(0)) / (n - 1)
        covariance += (c**2).sum() / 32 - (np.diag(c) ** 2).sum() / 32
    loss = objective.compare(first, second)  # type: ignore[attr-defined]
    assert float(loss.parts["invariance"]) == pytest.approx(invariance, rel=1e-4)
    assert float(loss.parts["variance"]) == pytest.approx(variance, rel=1e-3, abs=1e-6)
    assert float(loss.parts["covariance"]) == pytest.approx(covariance, rel=1e-3)
    expected = 25 * invariance + 25 * variance + covariance
    assert float(loss.total) == pytest.approx(expected, rel=1e-3)


def test_equal_views_that_vary_independently_cost_little_and_collapsed_ones_much(small) -> None:
    _, twins = small.make("barlow_twins")
    _, vicreg = small.make("vicreg")
    good = 1.5 * torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    flat = good[:, :1].expand(-1, 32)  # one number, 32 times
    for objective in (twins, vicreg):
        assert float(objective.compare(good, good).total) < 0.3
        assert float(objective.compare(flat, flat).total) > 3
    constant = torch.ones(100, 32)
    assert float(vicreg.compare(constant, constant).parts["variance"]) == pytest.approx(0.99)
    assert float(twins.compare(constant, constant).parts["invariance"]) == pytest.approx(32)


def test_variance_and_covariance_ignore_where_the_centre_is() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for one, other in zip(variance_and_covariance(x), variance_and_covariance(x + 5), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_batch_norm_is_torchs_in_training() -> None:
    x = 3 * torch.randn(10, 4, generator=torch.Generator().manual_seed(0)) + 2
    torch.testing.assert_close(BatchNorm(4)(x), torch.nn.BatchNorm1d(4)(x))
    assert not list(BatchNorm(4, affine=False).parameters())


def picture(size: int = 16) -> Tensor:
    """Frames (1, 1, 3, size, size) whose two first channels are column and row, from -1 to 1."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    return torch.stack(
        [line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)]
    )[None, None]


@given(st.floats(0.1, 1.0), st.floats(0.0, 0.99), st.floats(0.0, 0.99), st.floats(0.0, 0.99))
@settings(max_examples=30, deadline=None)
def test_a_crop_is_a_square_inside_the_picture_of_the_area_that_was_drawn(low, area, x, y) -> None:
    draws = torch.tensor([[area, x, y]], dtype=torch.float32)
    cut = cropped(picture(), draws, [low, 1.0])[0, 0]
    side = (low + (1 - low) * area) ** 0.5
    inner = cut[:2, 4:12, 4:12]  # away from the border, where the picture ends
    step = inner[0, :, 1:] - inner[0, :, :-1]
    torch.testing.assert_close(step, torch.full_like(step, side * 2 / 16), atol=2e-3, rtol=0.02)
    torch.testing.assert_close(inner[1].T[:, 1:] - inner[1].T[:, :-1], step, atol=2e-3, rtol=0.02)
    centre = torch.tensor([2 * x - 1, 2 * y - 1]) * (1 - side)
    torch.testing.assert_close(inner.mean(dim=(1, 2)), centre.float(), atol=0.02, rtol=0)
    assert inner.abs().max() <= 1


def test_the_frames_of_a_window_are_cut_alike_and_windows_are_not() -> None:
    pixels = picture().expand(2, 3, -1, -1, -1)
    draws = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    cut = cropped(pixels, draws, [0.3, 0.9])
    assert torch.equal(cut[0, 0], cut[0, 2]) and not torch.equal(cut[0], cut[1])
    assert torch.equal(cropped(pixels, draws, [1.0, 1.0]), pixels)


def test_light_moves_the_mean_and_stretches_around_it() -> None:
    pixels = torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.0]])
    lit = relit(pixels, draws, brightness=0.4, contrast=0.5)
    torch.testing.assert_close(lit[0], pixels[0])
    torch.testing.assert_close(lit[1], pixels[1] + 0.4)
    torch.testing.assert_close(lit[2].mean(), pixels[2].mean())
    torch.testing.assert_close(lit[2].std(), 0.5 * pixels[2].std())


def test_the_two_views_differ_and_come_from_the_same_frame(small) -> None:
    _, objective = small.make("vicreg")
    batch = small.batch_for(objective, 4)
    first, second = objective.view(batch, 0), objective.view(batch, 1)
    assert first.shape == (4, 3, 32, 32)
    assert not torch.allclose(first, second, atol=0.05)
