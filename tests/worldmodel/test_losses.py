from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from worldmodel.losses import (
    context_weights,
    masked_loss,
    prediction_loss,
    state_loss,
    target_features,
)
from worldmodel.mask_predictor import MaskPredictor
from worldmodel.masking import SHORT_RANGE, sample_masks
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


def test_a_visible_token_counts_less_the_farther_it_is_from_a_hidden_one() -> None:
    # A grid of 2 x 2 x 3; token 0 is at (0, 0, 0), token 5 at (0, 1, 2), token 11 at (1, 1, 2).
    kept, hidden = torch.tensor([[1, 5, 11]]), torch.tensor([[0, 3]])
    distances = torch.tensor([[1.0, 2.0, 5.0**0.5]])
    torch.testing.assert_close(context_weights(kept, hidden, (2, 2, 3)), distances**-0.5)


@torch.inference_mode()
def test_targets_are_normed_levels_side_by_side(make_encoder) -> None:
    encoder = make_encoder()
    clip = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = target_features(encoder, clip, [0, 1])
    assert targets.shape == (2, 16, 48)
    first, last = targets.split(24, dim=-1)
    for part, level in zip((first, last), encoder.levels(clip, [0, 1]), strict=True):
        expected = (level - level.mean(-1, keepdim=True)) / level.std(
            -1, keepdim=True, correction=0
        )
        torch.testing.assert_close(part, expected, atol=1e-3, rtol=1e-3)


def masked_setting(make_encoder) -> SimpleNamespace:
    encoder = make_encoder()
    torch.manual_seed(0)
    predictor = MaskPredictor(context_dim=48, target_dim=48, embed_dim=24, depth=1, num_heads=2)
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(3, 3, 4, 64, 64, generator=generator)
    kept, hidden = sample_masks(SHORT_RANGE, batch_size=3, grid=(2, 8, 8), generator=generator)
    return SimpleNamespace(
        encoder=encoder,
        predictor=predictor,
        clip=clip,
        targets=target_features(encoder, clip, [0, 1]),
        kept=kept,
        hidden=hidden,
    )


def loss_in(s: SimpleNamespace, *, clip: Tensor | None = None, targets: Tensor | None = None):
    return masked_loss(
        s.encoder,
        s.predictor,
        s.clip if clip is None else clip,
        s.targets if targets is None else targets,
        kept=s.kept,
        hidden=s.hidden,
        levels=[0, 1],
    )


@torch.inference_mode()
def test_the_masked_loss_is_the_weighted_error_at_hidden_and_at_visible_tokens(
    make_encoder,
) -> None:
    s = masked_setting(make_encoder)
    for name in ("predictor_proj", "predictor_proj_context"):  # predict zero everywhere
        getattr(s.predictor, name).weight.zero_()
        getattr(s.predictor, name).bias.zero_()
    loss = loss_in(s)
    weights = context_weights(s.kept, s.hidden, (2, 8, 8))
    at = [
        torch.stack([t[i] for t, i in zip(s.targets, ids, strict=True)]).abs().mean(-1)
        for ids in (s.hidden, s.kept)
    ]
    torch.testing.assert_close(loss.hidden, at[0].mean())
    torch.testing.assert_close(loss.context, (weights * at[1]).mean())


@torch.inference_mode()
def test_each_visible_token_is_compared_with_its_own_target(
    without_shape_checks, make_encoder
) -> None:
    s = masked_setting(make_encoder)
    seen = torch.cat(s.encoder.levels(s.clip, [0, 1], keep=s.kept), dim=-1)

    def as_seen(context: Tensor, kept: Tensor, hidden: Tensor, grid: tuple) -> tuple:
        return torch.zeros(*hidden.shape, 48), context

    targets = torch.zeros(3, 128, 48).scatter(1, s.kept[..., None].expand(-1, -1, 48), seen)
    s.predictor = as_seen
    assert float(loss_in(s, targets=targets).context) == 0


@torch.inference_mode()
def test_hidden_pixels_cannot_help_to_predict_themselves(make_encoder) -> None:
    s = masked_setting(make_encoder)
    other = s.clip.clone()
    for clip, ids in zip(other, s.hidden % 64, strict=True):  # the same places at all times
        for place in ids.unique().tolist():
            row, column = 8 * (place // 8), 8 * (place % 8)
            clip[:, :, row : row + 8, column : column + 8] = 3.0
    before, after = loss_in(s), loss_in(s, clip=other)
    assert torch.equal(before.hidden, after.hidden) and torch.equal(before.context, after.context)


def test_targets_get_no_gradient_and_the_online_encoder_does(make_encoder) -> None:
    s = masked_setting(make_encoder)
    assert not s.targets.requires_grad
    loss = loss_in(s)
    (loss.hidden + loss.context).backward()
    assert s.encoder.patch_embed.proj.weight.grad.abs().max() > 0
    assert s.predictor.mask_token.grad.abs().max() > 0


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
