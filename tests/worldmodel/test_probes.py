import pytest
import torch

from worldmodel.probes import fit_linear_probe


def data(rows: int, features: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows, features", [(200, 10), (40, 60)])
def test_a_linear_relation_is_found(rows: int, features: int) -> None:
    x, weight = data(rows, features, 0) + 3, data(features, 2, 1)
    y = x @ weight + torch.tensor([1.0, -2.0])
    probe = fit_linear_probe(x, y, ridge=1e-6)
    torch.testing.assert_close(probe(x), y, atol=1e-2, rtol=1e-3)
    if rows > features:
        torch.testing.assert_close(probe.weight, weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rows, features", [(31, 30), (29, 30)])
def test_both_forms_solve_the_ridge_problem(rows: int, features: int) -> None:
    x, y, ridge = data(rows, features, 0), data(rows, 2, 1), 0.3
    probe = fit_linear_probe(x, y, ridge=ridge)
    x, y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    penalty = ridge * x.square().sum() / features  # ridge times the mean of the Gram diagonal
    expected = torch.linalg.solve(x.T @ x + penalty * torch.eye(features).double(), x.T @ y)
    torch.testing.assert_close(probe.weight.double(), expected, atol=1e-5, rtol=1e-4)


def test_noise_is_decoded_as_the_mean() -> None:
    probe = fit_linear_probe(data(100, 50, 0), data(100, 1, 1) + 5, ridge=1e4)
    torch.testing.assert_close(probe(data(20, 50, 2)), torch.full((20, 1), 5.0), atol=0.3, rtol=0)


def test_lengths_that_differ_are_refused(without_shape_checks) -> None:
    with pytest.raises(ValueError, match="10 features do not go with 9 targets"):
        fit_linear_probe(data(10, 3, 0), data(9, 2, 1))
