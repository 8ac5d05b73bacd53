"""What the names and shapes of a state dict tell: its geometry, and which model it looks like."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.hub.registry import MODELS, Model

State = Mapping[str, Tensor]

# Position tables that some files still carry although rotary positions replaced them.
STALE_KEYS = {"pos_embed", "predictor_pos_embed"}
# The buffers of our predictor that published ones do not have; their defaults are the identity.
OWN_BUFFERS = {"proprio_mean", "proprio_std", "action_std"}


@dataclass(frozen=True)
class Layout:
    """The geometry of a vision transformer in Meta's naming.

    Attributes:
        embed_dim: Width.
        depth: Number of blocks.
        mlp_dim: Width of the MLPs' hidden layer.
        patch_size: Side in pixels of a patch.
        tubelet_size: Frames a token spans; 1 if the patch embedding is two-dimensional.
        position_tokens: Length of the position table; None if there is none.
        per_level_norms: Whether it has V-JEPA 2.1's output norms in place of one.
    """

    embed_dim: int
    depth: int
    mlp_dim: int
    patch_size: int
    tubelet_size: int
    position_tokens: int | None
    per_level_norms: bool


def strip(state: State) -> dict[str, Tensor]:
    """Removes the prefixes that Meta's training wrappers leave in the names."""
    return {key.replace("module.", "").replace("backbone.", ""): v for key, v in state.items()}


def depth_of(state: State, blocks: str) -> int:
    """Returns how many blocks there are under the name `blocks`: one more than the last number."""
    numbers = [int(key.split(".")[1]) for key in state if key.startswith(f"{blocks}.")]
    return max(numbers, default=-1) + 1


def read_layout(state: State) -> Layout:
    """Returns the geometry of an encoder's state dict.

    Raises:
        ValueError: The state dict is not that of a vision transformer in Meta's naming.
    """
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(
            f"no encoder in Meta's naming: {' and '.join(missing)} missing; it holds {guess(state)}"
        )
    kernel = state["patch_embed.proj.weight"].shape  # (D, 3, [tubelet,] patch, patch)
    table = state.get("pos_embed")
    return Layout(
        embed_dim=kernel[0],
        depth=depth_of(state, "blocks"),
        mlp_dim=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=kernel[-1],
        tubelet_size=kernel[2] if len(kernel) == 5 else 1,
        position_tokens=table.shape[-2] if table is not None else None,
        per_level_norms="norms_block.0.weight" in state,
    )


def mlp_ratio(embed_dim: int, mlp_dim: int) -> float:
    """Returns the ratio from which a model computes exactly this MLP width."""
    ratio = mlp_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def candidates(layout: Layout) -> list[Model]:
    """Returns the published models whose encoder has this geometry.

    V-JEPA 1 and 2 share their shapes; the table of fixed positions tells them apart, but only by
    its length, since some V-JEPA 2 files still carry a stale one.
    """
    found = [
        model
        for model in MODELS
        if (model.encoder.embed_dim, model.encoder.depth) == (layout.embed_dim, layout.depth)
        and model.encoder.mlp_dim in (layout.mlp_dim, None)
        and (model.patch_size, model.tubelet_size) == (layout.patch_size, layout.tubelet_size)
        and (model.family == "vjepa2.1") == layout.per_level_norms
        and model.weights is not None
        and len(model.files) == 1  # a Hugging Face folder has other names
    ]
    fixed = [m for m in found if m.position_tokens == layout.position_tokens is not None]
    return fixed or [m for m in found if m.position_tokens is None]


def guess(state: State) -> str:
    """Returns in words what a state dict looks like, after its wrappers' prefixes are removed."""
    if not state:
        return "nothing"
    if "action_encoder.weight" in state:
        width = state["action_encoder.weight"].shape[0]
        depth = depth_of(state, "predictor_blocks")
        return f"an action-conditioned predictor of {depth} blocks, {width} wide"
    if any(key.startswith("mask_tokens.") for key in state):
        return f"a masked predictor of {depth_of(state, 'predictor_blocks')} blocks"
    if any(key.startswith("encoder.layer.") for key in state):
        return "a Hugging Face model; load its folder (config.json and model.safetensors)"
    if "patch_embed.proj.weight" in state and "blocks.0.mlp.fc1.weight" in state:
        layout = read_layout(state)
        known = ", ".join(model.name for model in candidates(layout))
        return f"an encoder of {layout.depth} blocks, {layout.embed_dim} wide " + (
            f"(the shapes of {known})" if known else "(of no published geometry)"
        )
    shown = ", ".join(sorted(state)[:3])
    return f"no model of the family (its first entries: {shown})"


def fit(module: nn.Module, state: State, *, what: str, ignored: Iterable[str] = ()) -> None:
    """Puts float32 copies of `state` into `module`, every name and shape of which must agree.

    Args:
        module: The model; its weights may be on the "meta" device.
        state: The weights in the model's names.
        what: What they are and where they come from, for the message.
        ignored: Names that only the model has.

    Raises:
        ValueError: Names or shapes differ; the message lists what is missing, what is extra, what
            has another shape, and what the weights look like.
    """
    own = module.state_dict()
    expected = {k: tuple(v.shape) for k, v in own.items() if k not in ignored}
    got = {k: tuple(v.shape) for k, v in state.items() if k not in STALE_KEYS - own.keys()}
    shapes = [
        f"{k} is {got[k]}, expected {expected[k]}"
        for k in sorted(expected.keys() & got.keys())
        if got[k] != expected[k]
    ]
    problems = [
        some
        for some in (
            _some("missing", sorted(expected.keys() - got.keys())),
            _some("unexpected", sorted(got.keys() - expected.keys())),
            _some("of another shape:", shapes),
        )
        if some
    ]
    if problems:
        raise ValueError(f"{what} do not fit: {'; '.join(problems)}. They look like {guess(state)}")
    weights = {k: state[k].to(torch.float32, copy=True) for k in expected}
    module.load_state_dict(weights, strict=False, assign=True)


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{what} {', '.join(names[:4])}{more}"
