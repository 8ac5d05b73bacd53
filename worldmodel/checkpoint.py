"""Our checkpoint format: a folder with `weights.safetensors` and `config.json`, nothing pickled.

`config.json` holds `format`, `version`, `kind` ("encoder" or "jepa"), the constructor arguments of
each module under its name (`state_head` and `joint_heads` only if it has them), which class it is
(`encoder_type`, `predictor_type`; files that do not say hold the first of each), and `provenance`
(how the weights were made). The names of the classes are fixed here; a config never names code.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.dino import DinoEncoder
from worldmodel.encoder import VideoEncoder
from worldmodel.encoder21 import VideoEncoder21
from worldmodel.interfaces import Encoder
from worldmodel.jepa import JEPA
from worldmodel.joint_head import JointHead
from worldmodel.names import unknown
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.sincos_encoders import IJepaEncoder, VJepa1Encoder
from worldmodel.state_head import StateHead

FORMAT = "worldmodel"
VERSION = 1
WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
DEFAULT_CHECKPOINT = Path(__file__).parent / "weights" / "default"
WATCH_CHECKPOINT = DEFAULT_CHECKPOINT.with_name("watch")
SHIPPED = {"default": DEFAULT_CHECKPOINT, "watch": WATCH_CHECKPOINT}  # which plans, which watches

ENCODERS: dict[str, type[Encoder]] = {
    "vjepa2": VideoEncoder,
    "vjepa2_1": VideoEncoder21,
    "ijepa": IJepaEncoder,
    "vjepa1": VJepa1Encoder,
    "dino": DinoEncoder,
}
PREDICTORS: dict[str, type[ActionConditionedPredictor] | type[AdaLNPredictor]] = {
    "action_conditioned": ActionConditionedPredictor,
    "adaln": AdaLNPredictor,
}


def arguments(module: nn.Module) -> dict[str, Any]:
    """Returns the constructor arguments of a module that keeps each under its own name."""
    names = inspect.signature(type(module)).parameters
    values = {name: getattr(module, name) for name in names}
    return {name: v for name, v in values.items() if not isinstance(v, nn.Module)}


def save_encoder(
    encoder: Encoder,
    path: str | Path,
    *,
    image_size: int,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes an encoder checkpoint folder; `image_size` is what it was trained on."""
    config = {
        "kind": "encoder",
        "image_size": image_size,
        "encoder_type": _type_of(encoder, ENCODERS),
        "encoder": arguments(encoder),
    }
    _save(encoder, path, config, provenance, dtype)


def save(
    world: JEPA,
    path: str | Path,
    *,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a world-model checkpoint folder.

    Args:
        world: The model.
        path: The folder; made if needed, an older checkpoint in it is replaced.
        provenance: How the weights came about (data, steps, hardware, ...), JSON-able.
        dtype: Precision of the stored weights; float16 halves the folder.
    """
    config = {
        "kind": "jepa",
        "encoder_type": _type_of(world.encoder, ENCODERS),
        "encoder": arguments(world.encoder),
        "predictor_type": _type_of(world.predictor, PREDICTORS),
        "predictor": arguments(world.predictor),
        "jepa": {name: v for name, v in arguments(world).items() if name != "state_head"},
    }
    if world.state_head is not None:
        config["state_head"] = arguments(world.state_head)
    if world.joint_heads:
        config["joint_heads"] = {name: arguments(h) for name, h in world.joint_heads.items()}
    _save(world, path, config, provenance, dtype)


def folder_of(path: str | Path) -> Path:
    """Returns the folder of a checkpoint: that of a shipped one by its name, or `path` itself."""
    return SHIPPED.get(str(path), Path(path))


def load(path: str | Path) -> JEPA:
    """Returns the world model in a checkpoint folder, in float32 and evaluation mode.

    "default" and "watch" are the shipped ones: the one that plans, and the one that knows what is
    normal, for `worldmodel surprise`.

    Raises:
        FileNotFoundError: The folder, its config or its weights are missing.
        ValueError: The folder is of another kind or version, or the weights do not fit.
    """
    config = read_config(path, kind="jepa")
    world = JEPA(
        encoder=_class(config, "encoder_type", ENCODERS)(**config["encoder"]),
        predictor=_class(config, "predictor_type", PREDICTORS)(**config["predictor"]),
        state_head=StateHead(**config["state_head"]) if "state_head" in config else None,
        joint_heads={name: JointHead(**h) for name, h in config.get("joint_heads", {}).items()},
        **config["jepa"],
    )
    _load_weights(world, folder_of(path))
    return world.eval()


def load_default() -> JEPA:
    """Returns the world model that ships with the package."""
    return load(DEFAULT_CHECKPOINT)


def load_encoder(path: str | Path) -> tuple[Encoder, int]:
    """Returns the encoder in a checkpoint folder and the image size it was trained on.

    The folder may be that of an encoder or of a whole world model; "default" is the shipped one.
    """
    path = folder_of(path)
    config = read_config(path)
    if config["kind"] == "jepa":
        world = load(path)
        return world.encoder, world.image_size
    encoder = _class(config, "encoder_type", ENCODERS)(**config["encoder"])
    _load_weights(encoder, Path(path))
    return encoder.eval(), config["image_size"]


def read_config(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """Returns the config of a checkpoint folder after checking format, version and kind.

    Args:
        path: The folder; "default" is the shipped world model.
        kind: "encoder" or "jepa"; either if not given.
    """
    path = folder_of(path)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no checkpoint at {path}: {' and '.join(missing)} missing; expected a folder written "
            f"by `worldmodel {'train' if kind == 'jepa' else 'pretrain'}`, or leave the setting "
            "out to use the shipped model"
        )
    try:
        config = json.loads((path / CONFIG_FILE).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / CONFIG_FILE} is damaged ({error}); fetch it again") from error
    if config.get("format") != FORMAT:
        raise ValueError(f"{path / CONFIG_FILE} is not a {FORMAT} checkpoint")
    if config.get("version") != VERSION:
        raise ValueError(
            f"{path} has checkpoint version {config.get('version')}, this program reads {VERSION}; "
            "update worldmodel or export the checkpoint again"
        )
    if kind is not None and config.get("kind") != kind:
        raise ValueError(f"{path} holds a checkpoint of kind {config.get('kind')!r}, not {kind!r}")
    return config


def fingerprint(module: nn.Module) -> str:
    """Returns a hash of a module's weights and constructor arguments (16 hex digits)."""
    digest = hashlib.sha256(json.dumps(arguments(module), sort_keys=True, default=list).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _type_of(module: nn.Module, known: Mapping[str, type]) -> str:
    for name, cls in known.items():
        if type(module) is cls:
            return name
    raise ValueError(f"a {type(module).__name__} cannot be saved; known: {', '.join(known)}")


def _class(config: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> Any:
    name = config.get(key, next(iter(known)))  # the first is what files were that do not say
    if name not in known:
        raise ValueError(unknown(key.replace("_", " "), name, known))
    return known[name]


def _save(
    module: nn.Module,
    path: str | Path,
    config: dict[str, Any],
    provenance: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in module.state_dict().items()
    }
    config = {"format": FORMAT, "version": VERSION, **config, "provenance": provenance}
    # Each file appears whole or not at all; the config comes last and marks a complete folder.
    save_file(weights, path / f"{WEIGHTS_FILE}.part")
    os.replace(path / f"{WEIGHTS_FILE}.part", path / WEIGHTS_FILE)
    (path / f"{CONFIG_FILE}.part").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(path / f"{CONFIG_FILE}.part", path / CONFIG_FILE)


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        weights = load_file(path / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS_FILE} is damaged ({error}); fetch it again") from error
    floats = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    try:
        module.load_state_dict(floats, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its config: {error}") from error
