import pytest
import torch
from torch import Tensor

from worldmodel.checkpoint import arguments
from worldmodel.encoder import VideoEncoder
from worldmodel.transformer import Block


def clip_of(frames: int, height: int, width: int, *, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, frames, height, width, generator=generator)


def test_a_clip_gives_the_tokens_of_the_reference_implementation(golden_world, golden) -> None:
    with torch.inference_mode():
        tokens = golden_world.encoder(golden["clip"])
    assert tokens.shape == (2, 48, 176)
    torch.testing.assert_close(tokens, golden["encoder_clip_tokens"], atol=1e-5, rtol=0)


def test_tokens_are_in_time_then_row_then_column_order() -> None:
    # Without blocks a token is its own tubelet's alone, so one bright tubelet is one changed token.
    encoder = VideoEncoder(patch_size=8, embed_dim=24, depth=1, num_heads=2).patch_embed
    dark = torch.zeros(1, 3, 4, 16, 24)
    for t in range(2):
        for row in range(2):
            for column in range(3):
                bright = dark.clone()
                bright[0, :, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column :][..., :8] = 1
                changed = (encoder(bright) != encoder(dark)).any(-1)[0]
                assert changed.nonzero().tolist() == [[6 * t + 3 * row + column]]


@pytest.mark.parametrize("rope", ["tiled", "interleaved"])
def test_tokens_know_where_they_are(make_encoder, rope: str) -> None:
    encoder, clip = make_encoder(rope=rope), clip_of(4, 16, 16)
    with torch.inference_mode():
        tokens = encoder(clip)
        for dims in ((2,), (3,), (4,)):  # exchange halves of time, rows, columns
            moved = encoder(clip.roll(clip.shape[dims[0]] // 2, dims=dims))
            grid = moved.unflatten(1, (2, 2, 2)).roll(1, dims=[d - 1 for d in dims]).flatten(1, 3)
            assert float((grid - tokens).abs().max()) > 1e-3


def test_keeping_all_tokens_in_another_order_gives_them_in_that_order(make_encoder) -> None:
    encoder, clip = make_encoder(), clip_of(4, 16, 24)
    order = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    with torch.inference_mode():
        tokens, shuffled = encoder(clip), encoder(clip, keep=order)
    expected = torch.stack([t[o] for t, o in zip(tokens, order, strict=True)])
    torch.testing.assert_close(shuffled, expected, atol=1e-5, rtol=1e-5)


def test_tokens_that_are_not_kept_have_no_influence(make_encoder) -> None:
    encoder, clip = make_encoder(), clip_of(2, 16, 16)
    keep = torch.tensor([[0, 3], [0, 3]])
    changed = clip.clone()
    changed[..., :8, 8:] = 5.0  # token 1
    changed[..., 8:, :8] = -5.0  # token 2
    with torch.inference_mode():
        assert torch.equal(encoder(changed, keep=keep), encoder(clip, keep=keep))
        assert not torch.equal(encoder(changed), encoder(clip))


def test_levels_are_the_outputs_of_blocks_through_the_final_norm(make_encoder) -> None:
    deep, clip = make_encoder(depth=3), clip_of(2, 16, 16)
    shallow = make_encoder(depth=2)
    shallow.load_state_dict(
        {name: deep.state_dict()[name] for name in shallow.state_dict()}, strict=True
    )
    with torch.inference_mode():
        last, middle = deep.levels(clip, [2, 1])
        assert torch.equal(last, deep(clip))
        assert torch.equal(middle, shallow(clip))


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_blocks_are_an_encoder_of_their_own(make_encoder, number: int) -> None:
    encoder, clip = make_encoder(), torch.randn(2, 3, 2, 32, 32)
    first = encoder.first_blocks(number)
    assert arguments(first) == arguments(encoder) | {"depth": number}
    assert torch.equal(first(clip), encoder.levels(clip, [number - 1])[0])
    assert len(encoder.blocks) == 2


def test_without_blocks_a_token_sees_its_own_patch_only(make_encoder) -> None:
    stem, clip = make_encoder().first_blocks(0), torch.randn(1, 3, 2, 32, 32)
    other = clip.clone()
    other[..., :8, 8:16] += 1  # the second patch
    changed = (stem(clip) != stem(other)).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [1]
    ids = torch.tensor([[3, 1]])
    assert torch.equal(stem(clip, ids)[0], stem(clip)[0, [3, 1]])
    with pytest.raises(ValueError, match="has 2 blocks, asked were 3"):
        make_encoder().first_blocks(3)


@pytest.mark.parametrize(
    "embed_dim, depth, num_heads, height, width",
    [(192, 12, 3, 64, 64), (384, 2, 6, 32, 48), (1280, 1, 16, 32, 16), (1408, 1, 22, 16, 16)],
)
def test_any_size_from_vit_tiny_up_can_be_built(
    embed_dim: int, depth: int, num_heads: int, height: int, width: int
) -> None:
    encoder = VideoEncoder(embed_dim=embed_dim, depth=depth, num_heads=num_heads)
    with torch.inference_mode():
        tokens = encoder(clip_of(4, height, width, batch=1))
    assert tokens.shape == (1, 2 * (height // 16) * (width // 16), embed_dim)
    assert torch.isfinite(tokens).all()


def test_vit_l_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = VideoEncoder(embed_dim=1024, depth=24, num_heads=16)
        giant = VideoEncoder(embed_dim=1408, depth=40, num_heads=22, mlp_ratio=48 / 11)
    assert sum(p.numel() for p in encoder.parameters()) == 303_885_312
    assert sum(p.numel() for p in giant.parameters()) == 1_012_173_952


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 3, 16, 16), "a multiple of tubelet_size=2 frames, got 3; a single image makes 2"),
        ((1, 3, 0, 16, 16), "a multiple of tubelet_size=2 frames, got 0"),
        ((1, 3, 2, 20, 16), "image sides must be multiples of patch_size=8, got 20x16"),
        ((1, 3, 2, 16, 0), "image sides must be multiples of patch_size=8, got 16x0"),
        (
            (1, 2, 3, 16, 16),
            r"clip must have shape \(batch, 3, frames, height, width\), got \(1, 2",
        ),
        ((3, 2, 16, 16), r"clip must have shape .* got \(3, 2, 16, 16\)"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(
    without_shape_checks, make_encoder, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_encoder()(torch.zeros(shape))


def test_a_level_beyond_the_last_block_is_refused(make_encoder) -> None:
    with pytest.raises(ValueError, match=r"levels must be in 0..1, got \[2\]"):
        make_encoder().levels(clip_of(2, 16, 16), [2])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="embed_dim=24 is not divisible by num_heads=5"):
        VideoEncoder(embed_dim=24, num_heads=5, depth=1)


@torch.no_grad()
def test_initialisation_is_that_of_v_jepa_2() -> None:
    torch.manual_seed(0)
    encoder = VideoEncoder(embed_dim=192, depth=3, num_heads=3)
    assert float(encoder.patch_embed.proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    for number, block in enumerate(encoder.blocks, start=1):
        assert isinstance(block, Block)
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert float(weight.std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)
        assert float(block.attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.05)
        assert float(block.attn.qkv.bias.abs().max()) == 0


def test_the_same_weights_in_transformers_give_the_same_tokens() -> None:
    """Hugging Face's port of V-JEPA 2, with its own names for the weights."""
    pytest.importorskip("transformers")
    from transformers import VJEPA2Config, VJEPA2Model  # type: ignore[import-not-found]

    config = VJEPA2Config(
        crop_size=64,
        frames_per_clip=6,
        hidden_size=96,
        num_attention_heads=3,
        num_hidden_layers=3,
        mlp_ratio=4.0,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    torch.manual_seed(0)
    theirs = VJEPA2Model(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ours = VideoEncoder(embed_dim=96, depth=3, num_heads=3, rope="tiled").eval()
    weights = theirs.state_dict()
    converted = {}
    for name in ours.state_dict():
        if name.startswith("patch_embed"):
            key = name.replace("patch_embed", "encoder.embeddings.patch_embeddings")
        elif name.startswith("norm"):
            key = name.replace("norm", "encoder.layernorm")
        else:
            key = name.replace("blocks", "encoder.layer").replace("attn", "attention")
        if ".qkv." in key:
            parts = [key.replace("qkv", part) for part in ("query", "key", "value")]
            converted[name] = torch.cat([weights[part] for part in parts])
        else:
            converted[name] = weights[key]
    ours.load_state_dict(converted, strict=True)

    clip = clip_of(6, 64, 64, seed=2)
    with torch.inference_mode():
        expected = theirs.get_vision_features(clip.transpose(1, 2))
        torch.testing.assert_close(ours(clip), expected, atol=1e-4, rtol=0)
