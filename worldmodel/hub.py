"""Foreign checkpoints: reads the files Meta published into a `JEPA`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import JEPA
from worldmodel.predictor import ActionConditionedPredictor

# Buffers of ours that a foreign predictor does not have; their defaults are the identity.
_OWN_BUFFERS = {"proprio_mean", "proprio_std", "action_std"}
# Position tables that some files still carry although rotary positions replaced them.
_STALE_KEYS = {"pos_embed", "predictor_pos_embed"}


def load(path: str | Path, *, config: str | Path) -> JEPA:
    """Returns the V-JEPA 2-AC model in a checkpoint of Meta's layout, in evaluation mode.

    Args:
        path: The `.pt` file, with "encoder" and "predictor" state dicts. It is read with
            `weights_only=True`: nothing in it can run code.
        config: A JSON file with the geometry that a state dict does not tell: `image_size`,
            `patch_size`, `tubelet_size`, `layer_norm_eps`, and under `encoder` and `predictor`
            their `embed_dim`, `depth`, `num_heads`, `mlp_ratio` (and `use_extrinsics`).

    Raises:
        FileNotFoundError: A file is missing.
        KeyError: The config or the checkpoint lacks an entry.
        ValueError: The weights do not fit the geometry.
    """
    path, config = Path(path), Path(config)
    for file in (path, config):
        if not file.is_file():
            raise FileNotFoundError(f"no checkpoint file at {file}; download it first")
    geometry = json.loads(config.read_text())
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    encoder_geometry = _require(geometry, "encoder", config)
    predictor_geometry = _require(geometry, "predictor", config)
    image_size = _require(geometry, "image_size", config)
    patch_size = _require(geometry, "patch_size", config)
    layer_norm_eps = _require(geometry, "layer_norm_eps", config)
    side = image_size // patch_size
    encoder = VideoEncoder(
        patch_size=patch_size,
        tubelet_size=_require(geometry, "tubelet_size", config),
        embed_dim=_require(encoder_geometry, "embed_dim", config),
        depth=_require(encoder_geometry, "depth", config),
        num_heads=_require(encoder_geometry, "num_heads", config),
        mlp_ratio=_require(encoder_geometry, "mlp_ratio", config),
        rope="tiled",
        layer_norm_eps=layer_norm_eps,
    )
    predictor = ActionConditionedPredictor(
        latent_dim=encoder.embed_dim,
        grid_size=(side, side),
        embed_dim=_require(predictor_geometry, "embed_dim", config),
        depth=_require(predictor_geometry, "depth", config),
        num_heads=_require(predictor_geometry, "num_heads", config),
        mlp_ratio=_require(predictor_geometry, "mlp_ratio", config),
        use_extrinsics=_require(predictor_geometry, "use_extrinsics", config),
        rope="tiled",
        layer_norm_eps=layer_norm_eps,
        residual=False,
        rotation_input="euler",
        num_frequencies=0,
    )
    _load_strict(encoder, _strip(_require(checkpoint, "encoder", path)), "encoder", path)
    _load_strict(predictor, _strip(_require(checkpoint, "predictor", path)), "predictor", path)
    return JEPA(encoder=encoder, predictor=predictor, image_size=image_size).eval()


def _require(mapping: dict[str, Any], key: str, source: Path) -> Any:
    if key not in mapping:
        raise KeyError(f"{source} has no {key!r}; it has {', '.join(sorted(mapping))}")
    return mapping[key]


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes that Meta's training wrappers leave in the names."""
    return {key.replace("module.", "").replace("backbone.", ""): v for key, v in state.items()}


def _load_strict(module: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    expected = {k: v.shape for k, v in module.state_dict().items() if k not in _OWN_BUFFERS}
    got = {k: v.shape for k, v in state.items() if k not in _STALE_KEYS}
    problems = [f"missing {k}" for k in expected.keys() - got.keys()]
    problems += [f"unexpected {k}" for k in got.keys() - expected.keys()]
    problems += [
        f"{k} is {tuple(got[k])}, expected {tuple(expected[k])}"
        for k in expected.keys() & got.keys()
        if got[k] != expected[k]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"the {name} weights in {path} do not fit the config: {shown}{more}")
    module.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)
