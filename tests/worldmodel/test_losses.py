import pytest
import torch
from torch import Tensor

from worldmodel.losses import prediction_loss, state_loss
from worldmodel.state_head import StateHead, pose_vector


class Drift:
    """A world whose every prediction is its input plus a step of its own."""

    def __init__(self, step: float):
        self.step = step
        self.calls: list[tuple[int, ...]] = []

    def predict(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        assert latents.shape[1] == proprio.shape[1] == actions.shape[1]
        self.calls.append(tuple(latents.shape))
        return latents + self.step


def drifting(frames: int, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Latents that grow by `step` a frame, with zero poses and actions."""
    latents = step * torch.arange(frames).float()[None, :, None, None].expand(2, -1, 3, 4)
    return latents, torch.zeros(2, frames, 7), torch.zeros(2, frames - 1, 7)


@pytest.mark.parametrize(
    "rollout_steps, rollout", [(1, 0.5), (2, (0.5 + 1.0) / 2), (3, (0.5 + 1.0 + 1.5) / 3)]
)
def test_errors_add_up_over_a_rollout_and_not_under_teacher_forcing(
    without_shape_checks, rollout_steps: int, rollout: float
) -> None:
    world = Drift(step=1.0)
    loss = prediction_loss(world, *drifting(4, step=1.5), rollout_steps=rollout_steps)  # type: ignore[arg-type]
    assert float(loss.teacher_forcing) == pytest.approx(0.5)
    assert float(loss.rollout) == pytest.approx(rollout)
    assert float(loss.total) == pytest.approx(0.5 + rollout)
    # One pass over all true frames, then one for every imagined step after the first.
    assert [shape[1] for shape in world.calls] == [3, *range(2, rollout_steps + 1)]


def test_a_perfect_world_has_no_loss(without_shape_checks) -> None:
    loss = prediction_loss(Drift(1.5), *drifting(4, step=1.5), rollout_steps=3)  # type: ignore[arg-type]
    assert float(loss.total) == 0


@torch.inference_mode()
def test_the_rollout_part_is_the_error_of_the_models_own_rollout(make_world, make_motion) -> None:
    world, (proprio, actions) = make_world(merge=2, standardise=True), make_motion(2, 4)
    latents = torch.randn(2, 4, 4, 96, generator=torch.Generator().manual_seed(0))
    loss = prediction_loss(world, latents, proprio, actions[:, :3], rollout_steps=3)
    imagined = world.rollout(latents[:, :1], proprio[:, :3], actions[:, :3])
    expected = (imagined - latents[:, 1:]).abs().mean()
    torch.testing.assert_close(loss.rollout, expected, atol=1e-5, rtol=1e-5)


def test_every_imagined_frame_is_trained_through(make_world, make_motion) -> None:
    world, (proprio, actions) = make_world(merge=2, standardise=True), make_motion(2, 3)
    latents = torch.randn(2, 3, 4, 96, generator=torch.Generator().manual_seed(0))
    weights = [p for n, p in world.predictor.named_parameters() if "extrinsics" not in n]
    loss = prediction_loss(world, latents, proprio, actions[:, :2])
    imagined = world.rollout(latents[:, :1], proprio[:, :2], actions[:, :2])
    error = (imagined - latents[:, 1:]).abs().mean()
    torch.testing.assert_close(
        torch.autograd.grad(loss.rollout, weights),
        torch.autograd.grad(error, weights),
        atol=1e-5,
        rtol=1e-3,
    )


@pytest.mark.parametrize("rollout_steps", [0, 4])
def test_a_rollout_longer_than_the_window_is_refused(
    without_shape_checks, rollout_steps: int
) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 3, got {rollout_steps}"):
        prediction_loss(Drift(1.0), *drifting(4, step=1.0), rollout_steps=rollout_steps)  # type: ignore[arg-type]


def test_the_rollout_of_the_first_release_starts_from_the_wrong_frame(
    without_shape_checks,
) -> None:
    """Frame k is at 2 k and every prediction adds 1, so all errors can be counted by hand."""
    args = drifting(4, step=2.0)
    right, legacy = Drift(1.0), Drift(1.0)
    # Imagined are 1 and 2, of true 2 and 4.
    assert float(prediction_loss(right, *args).rollout) == pytest.approx(1.5)  # type: ignore[arg-type]
    # The prediction of frame 2 from the true frame 1 is 3, held against frame 1 (2); from there 4.
    loss = prediction_loss(legacy, *args, legacy_rollout=True)  # type: ignore[arg-type]
    assert float(loss.rollout) == pytest.approx(0.5)
    assert float(loss.teacher_forcing) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="windows have 2 frames"):
        prediction_loss(
            legacy,  # type: ignore[arg-type]
            *drifting(2, step=2.0),
            rollout_steps=1,
            legacy_rollout=True,
        )


def test_the_squared_distance_is_the_mean_square(without_shape_checks) -> None:
    loss = prediction_loss(Drift(1.5), *drifting(4, step=1.0), distance="l2")  # type: ignore[arg-type]
    assert loss.teacher_forcing.item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="distance must be 'l1' or 'l2', got 'l3'"):
        prediction_loss(Drift(1.0), *drifting(4, step=1.0), distance="l3")  # type: ignore[arg-type]


def test_the_groups_of_a_state_count_alike_however_many_numbers_they_have() -> None:
    head = StateHead(latent_dim=3, num_tokens=2)
    proprio = torch.tensor([[0.4, 0.1, 0.2, 3.1, 0.1, -0.5, 0.7]]).repeat(2, 1)
    right = pose_vector(proprio[0])
    off = torch.tensor([1.05, 0, 0, 2.05, 0, 0, 0, 0, 0, 0.02])
    with torch.no_grad():
        head.pose_std.fill_(0.5)
        for parameter in head.parameters():
            parameter.zero_()
        head.mlp[-1].bias.copy_(right / 0.5 + off)  # what every frame is read as
        loss = state_loss(head, torch.zeros(2, 2, 3), proprio)
    # Beyond 0.1 linear, less half of that; below quadratic: 0.02^2 / (2 * 0.1).
    assert float(loss.position) == pytest.approx(1.0 / 3, rel=1e-4)
    assert float(loss.rotation) == pytest.approx(2.0 / 6, rel=1e-4)
    assert float(loss.gripper) == pytest.approx(0.002, rel=1e-3)
    assert float(loss.total) == pytest.approx((1 / 3 + 0.5 / 3 + 0.002) / 2.5, rel=1e-4)
