import math

import pytest
import torch
from torch import Tensor

from worldmodel.inverse import MIN_ACTION_STD, InverseDynamics, pose_vector
from worldmodel.losses import inverse_loss
from worldmodel.pose import action_between


def a_head() -> InverseDynamics:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InverseDynamics(latent_dim=12, num_tokens=4, token_dim=8, hidden_dim=32)


def poses(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.5])
    return (torch.rand(n, 7, generator=generator) * 2 - 1) * spread + 0.5


def seen(proprio: Tensor) -> Tensor:
    """Latents (B, 4, 12) that hold the pose, spread over the tokens."""
    mixing = torch.randn(7, 48, generator=torch.Generator().manual_seed(9))
    return (2 * proprio @ mixing).sin().unflatten(1, (4, 12))


def test_it_learns_to_read_the_action_between_two_frames() -> None:
    head, now, later = a_head(), poses(512), poses(512, seed=1)
    head.set_scales(now, later)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    actions = action_between(now, later)

    def loss() -> Tensor:
        return inverse_loss(head, seen(now), seen(later), now, actions)

    before = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    after = loss().item()
    assert after < 0.3 * before
    with torch.no_grad():
        swapped = inverse_loss(head, seen(later), seen(now), now, actions)
    assert swapped.item() > 3 * after


def test_actions_come_in_the_units_of_the_scales() -> None:
    head, now, later = a_head(), poses(256), poses(256, seed=1)
    with torch.no_grad():
        plain = head(seen(now), seen(later), now)
        head.action_std.copy_(torch.arange(1.0, 8.0))
        torch.testing.assert_close(head(seen(now), seen(later), now), plain * head.action_std)
    later[:, 6] = now[:, 6]
    head.set_scales(now, later)
    torch.testing.assert_close(head.action_std[:6], action_between(now, later).std(0)[:6])
    assert float(head.action_std[6]) == pytest.approx(MIN_ACTION_STD)  # it never moved
    scaled = (pose_vector(now) - head.pose_mean) / head.pose_std
    torch.testing.assert_close(scaled.mean(0), torch.zeros(10), atol=1e-5, rtol=0)


def test_the_order_of_frames_and_the_place_of_a_token_matter() -> None:
    head, now, later = a_head(), poses(3), poses(3, seed=1)
    with torch.no_grad():
        forward = head(seen(now), seen(later), now)
        assert not torch.allclose(head(seen(later), seen(now), now), forward, atol=1e-4)
        assert not torch.allclose(head(seen(now), seen(later).flip(1), now), forward, atol=1e-4)
        assert not torch.allclose(head(seen(now), seen(later), later), forward, atol=1e-4)


def test_a_pose_that_looks_down_has_no_jump() -> None:
    down = torch.tensor([[0.5, 0.0, 0.3, math.pi, 0.0, 0.2, 1.0]])
    same = down.clone()
    same[:, 3] = -math.pi
    torch.testing.assert_close(pose_vector(down), pose_vector(same), atol=1e-6, rtol=0)
    assert pose_vector(down).shape == (1, 10)


def test_under_autocast_the_action_is_float32_and_nearly_the_same() -> None:
    head, now, later = a_head(), poses(8), poses(8, seed=1)
    with torch.no_grad():
        exact = head(seen(now), seen(later), now)
        with torch.autocast("cpu", torch.bfloat16):
            lower = head(seen(now), seen(later), now)
    assert lower.dtype == torch.float32
    torch.testing.assert_close(lower, exact, atol=0.02, rtol=0)
    assert not torch.equal(lower, exact)


def test_latents_of_another_shape_are_refused(without_shape_checks) -> None:
    with pytest.raises(
        ValueError, match=r"latents `later` must have shape \(2, 4, 12\) .* got \(2, 3"
    ):
        a_head()(torch.zeros(2, 4, 12), torch.zeros(2, 3, 12), torch.zeros(2, 7))


def test_a_head_without_hidden_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="num_hidden must be 1 or more, got 0"):
        InverseDynamics(latent_dim=12, num_tokens=4, num_hidden=0)
