"""DINOv2 and DINOv3 as encoders, through the package `transformers` (extra `dino`)."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.extras import require
from worldmodel.interfaces import ImageEncoder

MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit")


class DinoEncoder(ImageEncoder):
    """DINOv2 (Oquab et al. 2023) or DINOv3 (Siméoni et al. 2025): the patch tokens of an image.

    The class and register tokens are dropped. Images may have any size that is a multiple of the
    patch; the model's own position rule applies. Keep it in evaluation mode: DINOv3 distorts the
    positions at random in training mode.

    Args:
        config: The contents of the `config.json` of a published folder; `model_type` is one of
            `MODEL_TYPES`. The weights are random, see `load`.

    Raises:
        ImportError: `transformers` is not installed.
        ValueError: The config is of another model type.
    """

    def __init__(self, *, config: dict[str, Any]):
        super().__init__()
        transformers = require("transformers", extra="dino")
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(
                f"model_type must be one of {', '.join(MODEL_TYPES)}, got {model_type}"
            )
        self.config = config
        parsed = transformers.CONFIG_MAPPING[model_type].from_dict(dict(config))
        self.model = transformers.AutoModel.from_config(parsed).float()
        self.patch_size: int = parsed.patch_size
        self.embed_dim: int = parsed.hidden_size
        registers = 0 if model_type == "dinov2" else parsed.num_register_tokens
        self.num_prefix_tokens = 1 + registers  # the class token is the first

    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the normed patch tokens (B, N, D) of images, in row-major order."""
        return self.model(pixel_values=images).last_hidden_state[:, self.num_prefix_tokens :]


def load(folder: str | Path) -> DinoEncoder:
    """Returns the encoder in a published folder on this disk, in float32 and evaluation mode.

    Args:
        folder: With `config.json` and `model.safetensors`, as Hugging Face publishes them. Nothing
            is downloaded.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: `transformers` is not installed.
        ValueError: The config is of another model type, or the weights do not fit it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not list(folder.glob("model*.safetensors")):
        raise FileNotFoundError(
            f"expected config.json and model.safetensors in {folder}; download the model's folder "
            "first"
        )
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):  # the random weights would only be thrown away
        encoder = DinoEncoder(config=config)
    transformers = require("transformers", extra="dino")
    encoder.model, report = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    encoder.model.float()
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        raise ValueError(f"the weights in {folder} do not fit its config: {problems}")
    return encoder.eval()
