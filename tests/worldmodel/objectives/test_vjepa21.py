from types import SimpleNamespace

import torch
from torch import Tensor

from worldmodel.mask_predictor import MaskPredictor
from worldmodel.masking import SHORT_RANGE, sample_masks
from worldmodel.objectives.ema import target_features, update_ema
from worldmodel.objectives.vjepa21 import context_weights, masked_loss


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


def test_the_target_moves_towards_the_online_encoder() -> None:
    target, online = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    slow, fast = target.weight.detach().clone(), online.weight.detach()
    update_ema(target, online, 0.75)
    torch.testing.assert_close(target.weight.detach(), 0.75 * slow + 0.25 * fast)
