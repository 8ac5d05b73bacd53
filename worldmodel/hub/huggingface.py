"""Hugging Face folders (`config.json`, `model.safetensors`) of V-JEPA 2, in Meta's names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldmodel.hub.layout import State

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_NAMES = {
    "encoder.embeddings.patch_embeddings.": "patch_embed.",
    "encoder.layer.": "blocks.",
    "encoder.layernorm.": "norm.",
    "predictor.embeddings.predictor_embeddings.": "predictor_embed.",
    "predictor.layer.": "predictor_blocks.",
    "predictor.layernorm.": "predictor_norm.",
    "predictor.proj.": "predictor_proj.",
}
_MASK_TOKENS = "predictor.embeddings.mask_tokens"
# What the architecture fixes; a config may leave such a field out.
_FIXED = {"hidden_act": "gelu", "qkv_bias": True}


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config of a folder that `transformers` wrote.

    Raises:
        FileNotFoundError: The config or the weights are missing.
        ValueError: The config is damaged.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no Hugging Face model at {folder}: {' and '.join(missing)} missing"
        )
    try:
        return json.loads((folder / CONFIG_FILE).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is damaged ({error}); fetch it again") from error


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Returns the config of a V-JEPA 2 folder, and its "encoder" and "predictor" state dicts.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the model is another one than V-JEPA 2.
    """
    config = read_config(folder)
    wrong = {key: config[key] for key, value in _FIXED.items() if config.get(key, value) != value}
    if config.get("model_type") != "vjepa2" or wrong:
        raise ValueError(
            f"{folder / CONFIG_FILE} is of a {config.get('model_type')} model {wrong or ''}, "
            f"expected vjepa2 with {_FIXED}"
        )
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is damaged ({error}); fetch it again") from error
    return config, to_meta(weights)


def to_meta(weights: State) -> dict[str, dict[str, Tensor]]:
    """Returns the encoder and the masked predictor of a V-JEPA 2 in Meta's names, qkv fused.

    Args:
        weights: The whole state dict, also of a classifier. Pooler and classifier are left out; a
            name of the others that is not known stays as it is, and fails when it is loaded.
    """
    states: dict[str, dict[str, Tensor]] = {"encoder": {}, "predictor": {}}
    for name, value in weights.items():
        key = name.removeprefix("vjepa2.")  # classifiers hold the model under this name
        part = key.partition(".")[0]
        if part not in states:
            continue
        if key == _MASK_TOKENS:
            states[part] |= {f"mask_tokens.{i}": token for i, token in enumerate(value)}
            continue
        for theirs, ours in _NAMES.items():
            if key.startswith(theirs):
                key = ours + key.removeprefix(theirs)
                break
        # The earliest conversions named the attention twice.
        key = key.replace(".attention.attention.", ".attention.")
        states[part][key.replace(".attention.", ".attn.")] = value
    for state in states.values():
        _fuse(state)
    return states


def _fuse(state: dict[str, Tensor]) -> None:
    """Replaces query, key and value of each attention by their concatenation, in place."""
    for query in [key for key in state if ".attn.query." in key]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            fused = torch.cat([state.pop(part) for part in parts])
            state[query.replace(".query.", ".qkv.")] = fused
