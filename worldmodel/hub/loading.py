"""One line from a name or a path to a model of ours with published weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldmodel import dino
from worldmodel.encoder import VideoEncoder
from worldmodel.encoder21 import VideoEncoder21
from worldmodel.hub import huggingface, meta
from worldmodel.hub.download import read_receipt, resolve
from worldmodel.hub.layout import (
    OWN_BUFFERS,
    Layout,
    State,
    candidates,
    fit,
    guess,
    mlp_ratio,
    read_layout,
)
from worldmodel.hub.meta import ENCODER_KEYS
from worldmodel.hub.registry import MODELS, Model, Weights, find
from worldmodel.images import Crop
from worldmodel.interfaces import Encoder
from worldmodel.jepa import JEPA
from worldmodel.names import unknown
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.sincos_encoders import IJepaEncoder, VJepa1Encoder
from worldmodel.vjepa2_mask_predictor import VJEPA2MaskPredictor

LAYER_NORM_EPS = 1e-6  # of every V-JEPA
PATCH_SIZE = 16  # of every V-JEPA 2 with a masked predictor


@dataclass(frozen=True)
class LoadedEncoder:
    """A published encoder and where it comes from.

    Attributes:
        encoder: The model, in evaluation mode.
        image_size: Side in pixels of the images it was trained on.
        provenance: JSON-able: `source` (the file), `sha256` (None if it was not downloaded by us),
            `model` (None if it is not a published one), `licence`, and `weights`, which of the
            state dicts in the file was taken.
    """

    encoder: Encoder
    image_size: int
    provenance: dict[str, Any]


def load_encoder(
    source: str | Path,
    *,
    name: str | None = None,
    weights: Weights | None = None,
    config: str | Path | None = None,
) -> LoadedEncoder:
    """Returns a published encoder: V-JEPA 2, 2.1 and 1, I-JEPA, DINOv2 and DINOv3.

    Args:
        source: The name of a published model, which is downloaded once; Meta's file; or a Hugging
            Face folder (`config.json` and `model.safetensors`) of V-JEPA 2 or a DINO.
        name: The published model a file is of, where its shapes and file name leave that open.
        weights: Which of the encoders in the file to take: "encoder", the online one, which the
            Hugging Face folders were made from; or "target_encoder", its moving average, which
            Meta's evaluations and V-JEPA 2-AC's training use. By default the registry's choice.
        config: Geometry of an unpublished model, see `load`.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: There is no such published model, or the file has no such weights.
        ImportError: It is a DINO, and `transformers` is not installed.
        ValueError: The file is damaged or refused, its model is not clear, or not supported.
    """
    path, model = resolve(source)
    if name is not None:
        model = find(name)
    chosen: Weights = "encoder"
    if path.is_dir():
        if weights not in (None, "encoder"):
            raise KeyError(f"{path} has no {weights!r}: such folders hold only the 'encoder'")
        encoder, image_size = _load_folder(path)
    else:
        contents = meta.read(path)
        if config is not None:
            hidden = _hidden_of_config(Path(config))
        else:
            model = model or _recognise(contents, path)
            hidden = _hidden_of(model)
            weights = weights or model.weights
        state, chosen = meta.encoder_state(contents, weights, path)
        encoder = _build_encoder(state, hidden, what=f"the {chosen} weights in {path}")
        image_size = hidden.image_size
    receipt = read_receipt(path / huggingface.WEIGHTS_FILE if path.is_dir() else path)
    provenance = {
        "source": str(path),
        "sha256": receipt["sha256"] if receipt else None,
        "model": model.name if model else None,
        "licence": model.licence if model else None,
        "weights": chosen,
    }
    return LoadedEncoder(encoder.eval(), image_size, provenance)


def load(
    source: str | Path,
    *,
    name: str | None = None,
    config: str | Path | None = None,
    encoder: Encoder | None = None,
) -> JEPA:
    """Returns a published action-conditioned world model (V-JEPA 2-AC), in evaluation mode.

    Args:
        source: The name of a published model, or its file, with "encoder" and "predictor" state
            dicts. Nothing in it can run code. The encoder is the one in the file if there is one:
            the predictor was trained on it.
        name: The published model a file is of, where its file name leaves that open.
        config: For an unpublished geometry, a JSON file with what a state dict does not tell:
            `image_size`, `layer_norm_eps`, `family` (as in the registry; "vjepa2" if left out), and
            under `encoder` and `predictor` their `depth` and `num_heads`.
        encoder: The encoder of a file that holds only a predictor, from `load_encoder`.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: There is no such published model, or the config or the file lacks an entry.
        ValueError: The file is damaged or refused, or its weights fit no known geometry.
    """
    path, model = resolve(source)
    if name is not None:
        model = find(name)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; published world models are single files. load_encoder reads a "
            "Hugging Face folder, worldmodel.load one of ours"
        )
    contents = meta.read(path)
    predictor_state = meta.predictor_state(contents, path)
    clock_hz = None
    if config is not None:
        hidden = _hidden_of_config(Path(config))
    else:
        recognised = model or _recognise_world(predictor_state, path)
        hidden, clock_hz = _hidden_of(recognised), recognised.clock_hz
    if encoder is not None and "encoder" in contents:
        raise ValueError(f"{path} has the encoder its predictor was trained on; leave encoder= out")
    if encoder is None:
        state, _ = meta.encoder_state(contents, "encoder", path)
        encoder = _build_encoder(state, hidden, what=f"the encoder weights in {path}")
    predictor = _build_predictor(
        predictor_state,
        hidden,
        patch_size=encoder.patch_size,
        what=f"the predictor weights in {path}",
    )
    world = JEPA(
        encoder=encoder,
        predictor=predictor,
        image_size=hidden.image_size,
        crop=hidden.crop,
        control_hz=clock_hz,
    )
    return world.eval()


def load_mask_predictor(
    source: str | Path, *, name: str | None = None, config: str | Path | None = None
) -> VJEPA2MaskPredictor:
    """Returns the masked predictor that was released with a V-JEPA 2 encoder.

    It is for clips of the image size the encoder was trained on. For the encoder that goes with it
    take weights="encoder": the two were trained together.

    Args:
        source: The name of a published V-JEPA 2, Meta's file, or a Hugging Face folder.
        name: The published model a file is of, where its shapes and file name leave that open.
        config: Geometry of an unpublished model, see `load`.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: There is no such published model, or the file has no predictor.
        ValueError: The file is damaged or refused, or the predictor is of another kind.
    """
    path, model = resolve(source)
    if name is not None:
        model = find(name)
    if path.is_dir():
        folder_config, contents = huggingface.read(path)
        hidden = _hidden_of_folder(folder_config, path)
    else:
        contents = meta.read(path)
        if config is not None:
            hidden = _hidden_of_config(Path(config))
        else:
            hidden = _hidden_of(model or _recognise(contents, path))
    state = meta.predictor_state(contents, path)
    what = f"the predictor weights in {path}"
    width, latent_dim, mlp_dim = _predictor_sizes(state, what)
    depth, heads = _predictor_hidden(hidden, what)
    side = hidden.image_size // PATCH_SIZE
    with torch.device("meta"):
        predictor = VJEPA2MaskPredictor(
            latent_dim=latent_dim,
            grid_size=(side, side),
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio(width, mlp_dim),
            num_mask_tokens=sum(key.startswith("mask_tokens.") for key in state),
            layer_norm_eps=hidden.layer_norm_eps,
        )
    fit(predictor, state, what=what)
    return predictor.eval()


@dataclass(frozen=True)
class _Hidden:
    """What a state dict does not tell, or tells only if nothing is missing (the depth)."""

    family: str
    image_size: int
    layer_norm_eps: float
    encoder_depth: int
    encoder_heads: int
    predictor_depth: int | None = None
    predictor_heads: int | None = None
    crop: Crop = "none"


def _hidden_of(model: Model) -> _Hidden:
    if model.family not in _ENCODERS:
        raise ValueError(
            f"{model.name} is a {model.family} model; Meta's files are read of the families "
            + ", ".join(_ENCODERS)
        )
    predictor = model.predictor
    return _Hidden(
        family=model.family,
        image_size=model.image_size,
        layer_norm_eps=LAYER_NORM_EPS,
        encoder_depth=model.encoder.depth,
        encoder_heads=model.encoder.num_heads,
        predictor_depth=predictor.depth if predictor else None,
        predictor_heads=predictor.num_heads if predictor else None,
        crop=model.crop,
    )


def _hidden_of_config(config: Path) -> _Hidden:
    if not config.is_file():
        raise FileNotFoundError(f"no config file at {config}")
    geometry = json.loads(config.read_text())
    encoder = _require(geometry, "encoder", config)
    predictor = geometry.get("predictor")  # absent for a file with only an encoder
    family = geometry.get("family", "vjepa2")
    if family not in _ENCODERS:
        raise ValueError(f"{config}: {unknown('family', family, _ENCODERS)}")
    return _Hidden(
        family=family,
        image_size=_require(geometry, "image_size", config),
        layer_norm_eps=_require(geometry, "layer_norm_eps", config),
        encoder_depth=_require(encoder, "depth", config),
        encoder_heads=_require(encoder, "num_heads", config),
        predictor_depth=_require(predictor, "depth", config) if predictor else None,
        predictor_heads=_require(predictor, "num_heads", config) if predictor else None,
    )


def _recognise(contents: dict[str, Any], path: Path) -> Model:
    """Returns the published model whose shapes a file's encoder has."""
    present: list[Weights] = [key for key in ENCODER_KEYS if key in contents]
    first: Weights = present[0] if present else "encoder"
    state, _ = meta.encoder_state(contents, first, path)
    return _the_one(candidates(read_layout(state)), state, path)


def _recognise_world(predictor_state: State, path: Path) -> Model:
    """Returns the published world model whose predictor a file has."""
    embed = predictor_state.get("predictor_embed.weight")
    sizes = tuple(embed.shape) if embed is not None else None
    found = [
        model
        for model in MODELS
        if model.family == "vjepa2-ac"
        and model.predictor is not None
        and (model.predictor.embed_dim, model.encoder.embed_dim) == sizes
    ]
    return _the_one(found, predictor_state, path)


def _the_one(found: list[Model], state: State, path: Path) -> Model:
    """Returns the model among `found` that the file name tells, or the only one."""
    found = [model for model in found if model.files[0].name == path.name] or found
    if not found:
        raise ValueError(
            f"{path} holds {guess(state)}; pass config= with its geometry, see worldmodel.hub.load"
        )
    if len(found) > 1:
        raise ValueError(
            f"{path} could be {' or '.join(model.name for model in found)}, which have the same "
            "shapes; pass name= with the one it is"
        )
    return found[0]


def _load_folder(folder: Path) -> tuple[Encoder, int]:
    """Returns the encoder in a Hugging Face folder, and its image size."""
    config = huggingface.read_config(folder)
    if config.get("model_type") in dino.MODEL_TYPES:
        return dino.load(folder), _require(config, "image_size", folder)
    config, states = huggingface.read(folder)
    hidden = _hidden_of_folder(config, folder)
    encoder = _build_encoder(states["encoder"], hidden, what=f"the encoder weights in {folder}")
    return encoder, hidden.image_size


def _hidden_of_folder(config: dict[str, Any], folder: Path) -> _Hidden:
    return _Hidden(
        family="vjepa2",
        image_size=_require(config, "crop_size", folder),
        layer_norm_eps=_require(config, "layer_norm_eps", folder),
        encoder_depth=_require(config, "num_hidden_layers", folder),
        encoder_heads=_require(config, "num_attention_heads", folder),
        predictor_depth=_require(config, "pred_num_hidden_layers", folder),
        predictor_heads=_require(config, "pred_num_attention_heads", folder),
    )


def _build_encoder(state: State, hidden: _Hidden, *, what: str) -> Encoder:
    layout = read_layout(state)
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        encoder = _ENCODERS[hidden.family](layout, hidden)
    fit(encoder, state, what=what)
    return encoder


def _vjepa2(layout: Layout, hidden: _Hidden) -> Encoder:
    return VideoEncoder(
        patch_size=layout.patch_size,
        tubelet_size=layout.tubelet_size,
        embed_dim=layout.embed_dim,
        depth=hidden.encoder_depth,
        num_heads=hidden.encoder_heads,
        mlp_ratio=mlp_ratio(layout.embed_dim, layout.mlp_dim),
        rope="tiled",
        layer_norm_eps=hidden.layer_norm_eps,
    )


def _vjepa21(layout: Layout, hidden: _Hidden) -> Encoder:
    return VideoEncoder21(
        patch_size=layout.patch_size,
        tubelet_size=layout.tubelet_size,
        embed_dim=layout.embed_dim,
        depth=hidden.encoder_depth,
        num_heads=hidden.encoder_heads,
        mlp_ratio=mlp_ratio(layout.embed_dim, layout.mlp_dim),
        layer_norm_eps=hidden.layer_norm_eps,
    )


def _vjepa1(layout: Layout, hidden: _Hidden) -> Encoder:
    return VJepa1Encoder(
        image_size=hidden.image_size,
        patch_size=layout.patch_size,
        tubelet_size=layout.tubelet_size,
        embed_dim=layout.embed_dim,
        depth=hidden.encoder_depth,
        num_heads=hidden.encoder_heads,
        mlp_ratio=mlp_ratio(layout.embed_dim, layout.mlp_dim),
        layer_norm_eps=hidden.layer_norm_eps,
    )


def _ijepa(layout: Layout, hidden: _Hidden) -> Encoder:
    return IJepaEncoder(
        image_size=hidden.image_size,
        patch_size=layout.patch_size,
        embed_dim=layout.embed_dim,
        depth=hidden.encoder_depth,
        num_heads=hidden.encoder_heads,
        mlp_ratio=mlp_ratio(layout.embed_dim, layout.mlp_dim),
        layer_norm_eps=hidden.layer_norm_eps,
    )


_ENCODERS = {
    "vjepa2": _vjepa2,
    "vjepa2-ac": _vjepa2,
    "vjepa2.1": _vjepa21,
    "vjepa1": _vjepa1,
    "ijepa": _ijepa,
}


def _build_predictor(
    state: State, hidden: _Hidden, *, patch_size: int, what: str
) -> ActionConditionedPredictor:
    width, latent_dim, mlp_dim = _predictor_sizes(state, what)
    depth, heads = _predictor_hidden(hidden, what)
    side = hidden.image_size // patch_size
    predictor = ActionConditionedPredictor(
        latent_dim=latent_dim,
        grid_size=(side, side),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio(width, mlp_dim),
        use_extrinsics=False,
        rope="tiled",
        layer_norm_eps=hidden.layer_norm_eps,
        residual=False,
        rotation_input="euler",
        num_frequencies=0,
    )
    fit(predictor, state, what=what, ignored=OWN_BUFFERS)
    return predictor


def _predictor_sizes(state: State, what: str) -> tuple[int, int, int]:
    """Returns a predictor's width, the size of its latents, and the width of its MLPs."""
    embed, fc1 = "predictor_embed.weight", "predictor_blocks.0.mlp.fc1.weight"
    if embed not in state or fc1 not in state:
        raise ValueError(f"{what} look like {guess(state)}, expected a predictor with one {embed}")
    width, latent_dim = state[embed].shape
    return width, latent_dim, state[fc1].shape[0]


def _predictor_hidden(hidden: _Hidden, what: str) -> tuple[int, int]:
    """Returns a predictor's depth and heads."""
    if hidden.predictor_depth is None or hidden.predictor_heads is None:
        raise ValueError(f"{what}: no depth and num_heads are known for a predictor of this model")
    return hidden.predictor_depth, hidden.predictor_heads


def _require(mapping: dict[str, Any], key: str, source: Path) -> Any:
    if key not in mapping:
        raise KeyError(f"{source} has no {key!r}; it has {', '.join(sorted(mapping))}")
    return mapping[key]
