from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.encoder21 import VideoEncoder21
from worldmodel.jepa import encode_frames


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "vjepa21_tiny_io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module", params=["ema_encoder", "target_encoder"])
def golden_encoder(shared: Path, request: pytest.FixtureRequest) -> VideoEncoder21:
    checkpoint = torch.load(shared / "golden" / "vjepa21_tiny.pt", weights_only=True)
    weights = {
        name.removeprefix("module.").removeprefix("backbone."): value
        for name, value in checkpoint[request.param].items()
    }
    encoder = VideoEncoder21(embed_dim=96, depth=12, num_heads=3, mlp_ratio=2.0)
    encoder.load_state_dict(weights, strict=True)
    return encoder.eval()


def random_encoder(*, patch_size: int = 4, seed: int = 0) -> VideoEncoder21:
    encoder = VideoEncoder21(patch_size=patch_size, embed_dim=24, depth=12, num_heads=2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def as_vjepa2(encoder: VideoEncoder21) -> VideoEncoder:
    """A V-JEPA 2 encoder of the same weights; the modality vector moves into a bias."""
    weights = encoder.state_dict()
    weights["patch_embed.proj.bias"] = (
        weights["patch_embed.proj.bias"] + weights["video_mod_embed"].flatten()
    )
    for kind in ("weight", "bias"):
        weights[f"norm.{kind}"] = weights[f"norms_block.3.{kind}"]
    older = VideoEncoder(patch_size=4, embed_dim=24, depth=12, num_heads=2, rope="interleaved")
    older.load_state_dict({name: weights[name] for name in older.state_dict()})
    return older.eval()


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["clip", "image"])
def test_tokens_are_those_of_the_reference_implementation(
    golden_encoder, golden, kind: str
) -> None:
    encoder = golden_encoder
    with torch.inference_mode():
        tokens = encoder(golden[kind])
        levels = torch.cat(encoder.levels(golden[kind], encoder.level_indices), dim=-1)
    torch.testing.assert_close(tokens, golden[f"{kind}_tokens"], atol=1e-5, rtol=0)
    torch.testing.assert_close(levels, golden[f"{kind}_tokens_four_levels"], atol=1e-5, rtol=0)


def test_sixteen_patches_a_side_are_where_v_jepa_2_has_them() -> None:
    encoder, clip = random_encoder(), pixels(1, 3, 4, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(clip), as_vjepa2(encoder)(clip), atol=1e-5, rtol=0)


def test_other_sizes_spread_rows_and_columns_over_the_same_range() -> None:
    # 2 rows and 4 columns are rows 0, 15 and columns 0, 5, 10, 15 of 16.
    encoder, large = random_encoder(), pixels(1, 3, 2, 64, 64)
    patches = large.unflatten(4, (16, 4)).unflatten(3, (16, 4))  # (1, 3, 2, row, 4, column, 4)
    small = patches[:, :, :, [0, 15]][:, :, :, :, :, [0, 5, 10, 15]].flatten(5).flatten(3, 4)
    assert small.shape == (1, 3, 2, 8, 16)
    ids = torch.tensor([[16 * row + column for row in (0, 15) for column in (0, 5, 10, 15)]])
    with torch.inference_mode():
        expected = as_vjepa2(encoder)(large, keep=ids)
        torch.testing.assert_close(encoder(small), expected, atol=1e-5, rtol=0)


def test_a_single_frame_is_an_image_and_not_a_short_clip() -> None:
    encoder, image = random_encoder(), pixels(2, 3, 1, 16, 24)
    doubled = image.expand(-1, -1, 2, -1, -1)
    assert encoder.frames_per_image == 1
    assert encoder.grid(1, 16, 24) == encoder.grid(2, 16, 24) == (1, 4, 6)
    assert encoder.grid(6, 16, 24) == (3, 4, 6)
    with torch.inference_mode():
        tokens, clip_tokens = encoder(image), encoder(doubled)
        assert tokens.shape == clip_tokens.shape == (2, 24, 24)
        assert not torch.allclose(tokens, clip_tokens, atol=1e-2)
        # The image's patches are all that its own embedder and vector decide.
        for kind in ("weight", "bias"):
            getattr(encoder.patch_embed_img.proj, kind).zero_()
        blank = encoder(image)
        torch.testing.assert_close(blank, encoder(torch.zeros_like(image)))


def test_a_frame_of_a_world_model_enters_as_an_image() -> None:
    encoder, frames = random_encoder(), pixels(2, 3, 16, 24)
    with torch.inference_mode():
        latents = encode_frames(encoder, frames)
        tokens = encoder(frames[:, :, None])
    expected = torch.nn.functional.layer_norm(tokens, (24,))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_keeping_all_tokens_in_another_order_gives_them_in_that_order() -> None:
    encoder, clip = random_encoder(), pixels(2, 3, 4, 16, 8)
    order = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    with torch.inference_mode():
        tokens, shuffled = encoder(clip), encoder(clip, keep=order)
    expected = torch.stack([t[o] for t, o in zip(tokens, order, strict=True)])
    torch.testing.assert_close(shuffled, expected, atol=1e-5, rtol=1e-5)


def test_levels_come_in_the_order_asked_for() -> None:
    encoder, clip = random_encoder(), pixels(1, 3, 2, 8, 8)
    with torch.inference_mode():
        all_levels = encoder.levels(clip, encoder.level_indices)
        last, second = encoder.levels(clip, [11, 5])
    assert torch.equal(last, all_levels[3]) and torch.equal(second, all_levels[1])


@pytest.mark.parametrize(
    "embed_dim, depth, num_heads, indices",
    [
        (768, 12, 12, (2, 5, 8, 11)),
        (1024, 24, 16, (5, 11, 17, 23)),
        (1408, 40, 22, (9, 19, 29, 39)),
        (1664, 48, 26, (11, 23, 37, 47)),
    ],
)
def test_a_published_model_has_the_published_weights(
    embed_dim: int, depth: int, num_heads: int, indices: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        encoder = VideoEncoder21(embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        older = VideoEncoder(embed_dim=embed_dim, depth=depth, num_heads=num_heads)
    assert encoder.level_indices == indices
    ours, theirs = encoder.state_dict(), older.state_dict()
    assert set(theirs) - set(ours) == {"norm.weight", "norm.bias"}
    assert {name: tuple(ours[name].shape) for name in set(ours) - set(theirs)} == {
        "patch_embed_img.proj.weight": (embed_dim, 3, 1, 16, 16),
        "patch_embed_img.proj.bias": (embed_dim,),
        "img_mod_embed": (1, 1, embed_dim),
        "video_mod_embed": (1, 1, embed_dim),
        **{
            f"norms_block.{i}.{kind}": (embed_dim,) for i in range(4) for kind in ("weight", "bias")
        },
    }


@torch.no_grad()
def test_modality_vectors_start_at_next_to_nothing() -> None:
    torch.manual_seed(0)
    encoder = VideoEncoder21(embed_dim=192, depth=12, num_heads=3)
    for vector in (encoder.img_mod_embed, encoder.video_mod_embed):
        assert float(vector.std()) == pytest.approx(1e-6, rel=0.3)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 3, 16, 16), "a multiple of tubelet_size=2 frames, got 3; a single image makes 1"),
        ((1, 3, 0, 16, 16), "a multiple of tubelet_size=2 frames, got 0"),
        ((1, 3, 1, 18, 16), "image sides must be multiples of patch_size=4, got 18x16"),
        ((1, 3, 1, 4, 16), "at least 2x2 patches of 4 pixels, got 1x4"),
        ((3, 1, 16, 16), r"clip must have shape .* got \(3, 1, 16, 16\)"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(
    without_shape_checks, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        random_encoder()(torch.zeros(shape))


def test_a_level_without_a_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"levels must be among \[2, 5, 8, 11\], got \[4\]"):
        random_encoder().levels(pixels(1, 3, 2, 8, 8), [4, 11])


def test_a_depth_without_published_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="V-JEPA 2.1 has depth 12, 24, 40, 48, got 6"):
        VideoEncoder21(embed_dim=24, depth=6, num_heads=2)
