"""The released masked predictor, against Hugging Face's and against a plain second writing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.transformer import take_tokens
from worldmodel.vjepa2_mask_predictor import VJEPA2MaskPredictor

TOKENS = 24  # two time steps of 3 x 4


def randomise(module: torch.nn.Module, *, seed: int, std: float = 0.15) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = std * torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(noise + 1 if is_scale else noise)


@pytest.fixture(scope="module")
def predictor() -> VJEPA2MaskPredictor:
    predictor = VJEPA2MaskPredictor(
        latent_dim=10, grid_size=(3, 4), embed_dim=24, depth=2, num_heads=2, num_mask_tokens=3
    )
    randomise(predictor, seed=0)
    return predictor


def inputs(*, kept: int = 9, hidden: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Context and ids of two clips, in no order."""
    order = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    context = torch.randn(2, kept, 10, generator=torch.Generator().manual_seed(1))
    return context, order[:, :kept], order[:, kept : kept + hidden]


def as_published(
    weights: dict[str, Tensor],
    context: Tensor,
    kept: Tensor,
    hidden: Tensor,
    *,
    mask_token: int,
    grid_size: tuple[int, int],
    depth: int,
    num_heads: int,
) -> Tensor:
    """One sample at a time and one rotated pair at a time: sort, run, unsort, take the targets."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        size = x.shape[-1:]
        return F.layer_norm(x, size, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def rotated(x: Tensor, places: list[tuple[int, int, int]]) -> Tensor:
        out, width = x.clone(), 2 * (x.shape[-1] // 3 // 2)
        for token, place in enumerate(places):
            for axis, p in enumerate(place):
                for e in range(width):
                    angle = torch.tensor(p * 10000.0 ** (-(e % (width // 2)) / (width // 2)))
                    here = axis * width + e
                    partner = -x[token, here + 1] if e % 2 == 0 else x[token, here - 1]
                    out[token, here] = x[token, here] * angle.cos() + partner * angle.sin()
        return out

    rows, columns = grid_size
    samples = []
    for z, visible, target in zip(context, kept.tolist(), hidden.tolist(), strict=True):
        mask = weights[f"mask_tokens.{mask_token}"].view(1, -1).repeat(len(target), 1)
        x = torch.cat((linear(z, "predictor_embed"), mask))
        ids = visible + target
        order = sorted(range(len(ids)), key=lambda i: ids[i])
        x = x[order]
        places = [
            (i // (rows * columns), i % (rows * columns) // columns, i % columns)
            for i in (ids[k] for k in order)
        ]
        head = x.shape[1] // num_heads
        for block in (f"predictor_blocks.{i}" for i in range(depth)):
            q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=1)
            heads = []
            for h in range(num_heads):
                cut = slice(h * head, (h + 1) * head)
                scores = rotated(q[:, cut], places) @ rotated(k[:, cut], places).T / head**0.5
                heads.append(scores.softmax(dim=1) @ v[:, cut])
            x = x + linear(torch.cat(heads, dim=1), f"{block}.attn.proj")
            inner = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            x = x + linear(inner, f"{block}.mlp.fc2")
        x = norm(x, "predictor_norm")[torch.tensor(order).argsort()]
        samples.append(linear(x[len(visible) :], "predictor_proj"))
    return torch.stack(samples)


@torch.inference_mode()
@pytest.mark.parametrize("kept, hidden", [(9, 11), (1, 5), (13, 1)])
@pytest.mark.parametrize("mask_token", [0, 2])
def test_it_computes_what_was_published(predictor, kept: int, hidden: int, mask_token: int) -> None:
    arguments = inputs(kept=kept, hidden=hidden)
    expected = as_published(
        predictor.state_dict(),
        *arguments,
        mask_token=mask_token,
        grid_size=(3, 4),
        depth=2,
        num_heads=2,
    )
    assert float(expected.abs().max()) > 1
    predicted = predictor(*arguments, mask_token=mask_token)
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_neither_the_order_of_the_visible_nor_of_the_hidden_tokens_matters(predictor) -> None:
    context, kept, hidden = inputs()
    predicted = predictor(context, kept, hidden, mask_token=1)
    backwards = predictor(context.flip(1), kept.flip(1), hidden.flip(1), mask_token=1)
    torch.testing.assert_close(backwards.flip(1), predicted, atol=1e-5, rtol=0)


def test_of_v_jepa_2_giant_it_has_the_published_number_of_parameters_and_names() -> None:
    with torch.device("meta"):
        predictor = VJEPA2MaskPredictor(latent_dim=1408, grid_size=(16, 16))
    shapes = {name: tuple(value.shape) for name, value in predictor.state_dict().items()}
    assert sum(p.numel() for p in predictor.parameters()) == 22_381_312
    assert shapes["predictor_embed.weight"] == (384, 1408)
    assert all(shapes[f"mask_tokens.{k}"] == (1, 1, 384) for k in range(10))
    assert shapes["predictor_blocks.11.attn.qkv.weight"] == (3 * 384, 384)
    assert shapes["predictor_blocks.0.mlp.fc1.weight"] == (1536, 384)
    assert shapes["predictor_norm.bias"] == (384,)
    assert shapes["predictor_proj.weight"] == (1408, 384)
    assert len(shapes) == 2 + 10 + 12 * 12 + 2 + 2


def test_a_new_predictor_has_mask_tokens_of_zero() -> None:
    predictor = VJEPA2MaskPredictor(
        latent_dim=10, grid_size=(3, 4), embed_dim=24, depth=1, num_heads=2
    )
    assert all(not token.any() for token in predictor.mask_tokens)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("context", torch.zeros(2, 9, 12), r"context must have shape \(batch, kept, 10\), got"),
        ("kept", torch.zeros(2, 8).long(), r"kept must have shape \(2, 9\) .* got \(2, 8\)"),
        ("hidden", torch.zeros(3, 11).long(), r"hidden must have shape \(2, hidden\), got \(3, 11"),
        ("kept", torch.full((2, 9), -1), "kept must hold ids from 0 on, got -1"),
        ("hidden", torch.full((2, 11), -2), "hidden must hold ids from 0 on, got -2"),
        ("mask_token", 3, r"mask_token must be in 0\.\.2, got 3"),
        ("mask_token", -1, r"mask_token must be in 0\.\.2, got -1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    without_shape_checks, predictor, name: str, value: Any, message: str
) -> None:
    context, kept, hidden = inputs()
    arguments = {"context": context, "kept": kept, "hidden": hidden, "mask_token": 0}
    with pytest.raises(ValueError, match=message):
        predictor(**(arguments | {name: value}))


# Hugging Face: an implementation that is not ours.


HUGGING_FACE_NAMES = {
    "predictor_embed": "embeddings.predictor_embeddings",
    "predictor_norm": "layernorm",
    "predictor_proj": "proj",
}


def from_hugging_face(theirs: Any) -> VJEPA2MaskPredictor:
    """Returns our predictor with the weights of a `transformers.VJEPA2Model`."""
    config = theirs.config
    side = config.crop_size // config.patch_size
    ours = VJEPA2MaskPredictor(
        latent_dim=config.hidden_size,
        grid_size=(side, side),
        embed_dim=config.pred_hidden_size,
        depth=config.pred_num_hidden_layers,
        num_heads=config.pred_num_attention_heads,
        mlp_ratio=config.pred_mlp_ratio,
        num_mask_tokens=config.pred_num_mask_tokens,
        layer_norm_eps=config.layer_norm_eps,
    )
    weights = theirs.predictor.state_dict()
    state = {}
    for name in ours.state_dict():
        if name.startswith("mask_tokens"):
            state[name] = weights["embeddings.mask_tokens"][int(name.split(".")[1])]
        elif ".qkv." in name:
            block, kind = name.replace("predictor_blocks", "layer").split(".attn.qkv.")
            parts = [f"{block}.attention.{part}.{kind}" for part in ("query", "key", "value")]
            state[name] = torch.cat([weights[part] for part in parts])
        else:
            key = name.replace("predictor_blocks", "layer").replace(".attn.", ".attention.")
            for word, their_word in HUGGING_FACE_NAMES.items():
                key = key.replace(word, their_word)
            state[name] = weights[key]
    ours.load_state_dict(state)
    return ours


@torch.inference_mode()
@pytest.mark.parametrize(
    "hidden_size, heads, crop_size, depth",
    [(1024, 16, 256, 12), (1280, 16, 256, 2), (1408, 22, 256, 2), (1408, 22, 384, 2)],
    ids=["L", "H", "g", "g-384"],
)
def test_it_equals_hugging_faces(hidden_size: int, heads: int, crop_size: int, depth: int) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = transformers.VJEPA2Model(
            transformers.VJEPA2Config(
                hidden_size=hidden_size,
                num_attention_heads=heads,
                num_hidden_layers=1,
                crop_size=crop_size,
                frames_per_clip=4,
                pred_num_hidden_layers=depth,
            )
        ).eval()
    randomise(theirs.predictor, seed=2, std=0.05)
    ours = from_hugging_face(theirs)
    generator = torch.Generator().manual_seed(3)
    clip = torch.randn(2, 4, 3, crop_size, crop_size, generator=generator)
    order = torch.rand(2, 2 * (crop_size // 16) ** 2, generator=generator).argsort(dim=1)
    masks = [
        (order[:, :40], order[:, 40:100]),  # scattered, unsorted
        (order[:, :7].sort(dim=1).values, order[:, 7:207].sort(dim=1).values),  # few see many
        (order[:, :100], order[:, 50:90]),  # what is to be predicted is visible too
        (order[:, :1], order[:, -1:]),
    ]
    tokens = theirs(clip, skip_predictor=True).last_hidden_state
    for kept, hidden in masks:
        expected = theirs.predictor(tokens, [kept], [hidden]).last_hidden_state
        context = take_tokens(tokens, kept)
        predicted = ours(context, kept, hidden, mask_token=1)
        difference = float((predicted - expected).abs().max())
        print(f"largest value {float(expected.abs().max()):.2f}, difference {difference:.1e}")
        assert float(expected.abs().max()) > 1
        assert difference < 1e-5
        other = ours(context, kept, hidden, mask_token=0)
        assert float((other - expected).abs().max()) > 1e-2
