import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from worldmodel.checkpoint import arguments
from worldmodel.interfaces import Encoder
from worldmodel.sincos_encoders import IJepaEncoder, VJepa1Encoder


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def ijepa(*, image_size: int = 24, patch_size: int = 4, embed_dim: int = 32) -> IJepaEncoder:
    encoder = IJepaEncoder(
        image_size=image_size, patch_size=patch_size, embed_dim=embed_dim, depth=3, num_heads=2
    )
    randomise(encoder)
    return encoder.eval()


def vjepa1() -> VJepa1Encoder:
    encoder = VJepa1Encoder(
        image_size=12, num_frames=8, patch_size=4, embed_dim=32, depth=3, num_heads=2
    )
    randomise(encoder)
    return encoder.eval()


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def waves(position: int, size: int) -> list[float]:
    """The sinusoids of one position: sines, then cosines."""
    angles = [position / 10000 ** (2 * j / size) for j in range(size // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def textbook(encoder: Encoder, clip: Tensor, table: Tensor) -> Tensor:
    """The same weights in PyTorch's own transformer layers; patches are cut by hand."""
    weights = encoder.state_dict()
    kernel = weights["patch_embed.proj.weight"].flatten(1)  # (D, 3 * tubelet * patch * patch)
    t, p = encoder.tubelet_size, encoder.patch_size
    steps, rows, columns = (n // side for n, side in zip(clip.shape[2:], (t, p, p), strict=True))
    tubelets = [
        clip[:, :, t * s : t * (s + 1), p * r : p * (r + 1), p * c : p * (c + 1)].flatten(1)
        for s, r, c in product(range(steps), range(rows), range(columns))
    ]
    x = torch.stack(tubelets, dim=1) @ kernel.T + weights["patch_embed.proj.bias"] + table
    renamed = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
    } | {f"norm{i}.{kind}": f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    for i in range(3):
        layer = nn.TransformerEncoderLayer(
            d_model=32,
            nhead=2,
            dim_feedforward=128,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        ).eval()
        layer.load_state_dict({k: weights[f"blocks.{i}.{v}"] for k, v in renamed.items()})
        x = layer(x)
    return nn.functional.layer_norm(x, (32,), weights["norm.weight"], weights["norm.bias"], 1e-6)


def test_i_jepa_is_a_textbook_transformer_with_columns_before_rows() -> None:
    encoder, clip = ijepa(), pixels(2, 3, 1, 24, 24)
    table = [waves(column, 16) + waves(row, 16) for row in range(6) for column in range(6)]
    with torch.no_grad():
        expected = textbook(encoder, clip, torch.tensor(table))
        torch.testing.assert_close(encoder(clip), expected, atol=1e-5, rtol=0)


def test_v_jepa_1_is_a_textbook_transformer_with_time_row_and_column() -> None:
    # A third of 32 is no even number: 12 each, and the last 4 of the columns' are cut off.
    encoder, clip = vjepa1(), pixels(2, 3, 8, 12, 12)
    table = [
        (waves(step, 12) + waves(row, 12) + waves(column, 12))[:32]
        for step, row, column in product(range(4), range(3), range(3))
    ]
    with torch.no_grad():
        expected = textbook(encoder, clip, torch.tensor(table))
        torch.testing.assert_close(encoder(clip), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames, height, width", [(2, 12, 12), (4, 24, 12), (16, 20, 28)])
def test_v_jepa_1_resamples_its_table_for_other_clips(frames: int, height: int, width: int) -> None:
    encoder, clip = vjepa1(), pixels(1, 3, frames, height, width)
    table = encoder.pos_embed[0].unflatten(0, (4, 3, 3)).numpy()
    for axis, count in enumerate((frames // 2, height // 4, width // 4)):
        old = table.shape[axis]
        centres = (np.arange(count) + 0.5) * old / count - 0.5  # of the new cells, in old ones
        table = np.apply_along_axis(
            lambda line, at=centres, n=old: np.interp(at, np.arange(n), line), axis, table
        )
    resampled = torch.from_numpy(table).float().flatten(0, 2)
    with torch.no_grad():
        expected = textbook(encoder, clip, resampled)
        torch.testing.assert_close(encoder(clip), expected, atol=1e-5, rtol=0)


def test_i_jepa_encodes_the_frames_of_a_clip_each_by_itself() -> None:
    encoder, clip = ijepa(), pixels(2, 3, 3, 24, 24)
    assert encoder.frames_per_image == 1
    assert encoder.grid(3, 24, 24) == (3, 6, 6)
    with torch.no_grad():
        single = [encoder(clip[:, :, t : t + 1]) for t in range(3)]
        torch.testing.assert_close(encoder(clip), torch.cat(single, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "image_size, patch_size, embed_dim, depth, heads, mlp_ratio, tokens, parameters",
    [
        (224, 14, 1280, 32, 16, 4.0, 256, 630_434_560),
        (448, 16, 1280, 32, 16, 4.0, 784, 630_664_960),
        (224, 16, 1408, 40, 16, 48 / 11, 196, 1_011_092_608),
    ],
)
def test_published_i_jepa_models_have_the_published_layout(
    image_size: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    tokens: int,
    parameters: int,
) -> None:
    with torch.device("meta"):
        encoder = IJepaEncoder(
            image_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
        )
    weights = encoder.state_dict()
    assert weights["pos_embed"].shape == (1, tokens, embed_dim)
    assert weights["patch_embed.proj.weight"].shape == (embed_dim, 3, patch_size, patch_size)
    assert len(weights) == 5 + 12 * depth
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_the_published_v_jepa_1_has_the_published_layout() -> None:
    with torch.device("meta"):
        encoder = VJepa1Encoder(embed_dim=1024, depth=24, num_heads=16)
    weights = encoder.state_dict()
    assert weights["pos_embed"].shape == (1, 8 * 14 * 14, 1024)
    assert weights["patch_embed.proj.weight"].shape == (1024, 3, 2, 16, 16)
    assert sum(p.numel() for p in encoder.parameters()) == 303_885_312  # V-JEPA 2's ViT-L


def test_an_encoder_can_be_rebuilt_from_its_arguments_and_weights() -> None:
    for encoder, clip in ((ijepa(), pixels(1, 3, 1, 24, 24)), (vjepa1(), pixels(1, 3, 2, 12, 12))):
        rebuilt = type(encoder)(**arguments(encoder)).eval()
        rebuilt.load_state_dict(encoder.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(rebuilt(clip), encoder(clip))


def test_the_table_is_stored_and_not_trained() -> None:
    for encoder in (ijepa(), vjepa1()):
        assert "pos_embed" in encoder.state_dict()
        assert "pos_embed" not in dict(encoder.named_parameters())
        with torch.no_grad():
            moved = {**encoder.state_dict(), "pos_embed": torch.ones_like(encoder.pos_embed)}
            encoder.load_state_dict(moved)
            clip = pixels(1, 3, 1, 1, 1).expand(-1, -1, 8, 24, 24)
            tokens = encoder(clip)
        torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), atol=1e-5, rtol=0)


def test_i_jepa_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match="takes images of 24x24 pixels, got 24x28; resize them"):
        ijepa()(pixels(1, 3, 1, 24, 28))


def test_v_jepa_1_refuses_half_a_tubelet() -> None:
    with pytest.raises(ValueError, match="got 1; a single image makes 2"):
        vjepa1()(pixels(1, 3, 1, 12, 12))


def test_i_jepa_refuses_a_width_that_its_positions_do_not_fill() -> None:
    with pytest.raises(ValueError, match="embed_dim must be a multiple of 4, got 30"):
        ijepa(embed_dim=30)


def test_the_same_weights_in_transformers_give_the_same_i_jepa_tokens(tmp_path: Path) -> None:
    """Hugging Face's port of I-JEPA, saved with the names of the published folders."""
    pytest.importorskip("transformers")
    from transformers import IJepaConfig, IJepaModel  # type: ignore[import-not-found]

    config = IJepaConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=42,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    theirs = IJepaModel(config, add_pooling_layer=False).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    ours = IJepaEncoder(image_size=42, patch_size=14, embed_dim=48, depth=4, num_heads=3).eval()
    renamed = (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("attn.proj", "attention.output.dense"),
        ("attn.qkv", "attention.attention.qkv"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("norm.", "layernorm."),
        ("blocks", "encoder.layer"),
    )
    converted = {}
    for name in ours.state_dict():
        key = name
        for here, there in renamed:
            key = key.replace(here, there)
        parts = [key.replace("qkv", part) for part in ("query", "key", "value")]
        converted[name] = torch.cat([weights[k] for k in (parts if "qkv" in key else [key])])
    ours.load_state_dict(converted, strict=True)

    images = pixels(2, 3, 42, 42)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        torch.testing.assert_close(ours(images[:, :, None]), expected, atol=1e-5, rtol=0)
