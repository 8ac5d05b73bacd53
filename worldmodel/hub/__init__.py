"""Published models: one line fetches, verifies and loads them; nothing in a file can run.

    world = hub.load("vjepa2-ac")                    # or the path of the file
    loaded = hub.load_encoder("vjepa2-l-hf")         # .encoder, .image_size, .provenance
    print(hub.list_models())
    print(hub.verify("vjepa2-ac-vitg.pt"))

- `registry`: every published model, its size, licence, source.
- `download`: resumed, verified, cached.
- `meta`, `huggingface`: the two file formats.
- `layout`: what names and shapes tell.
- `loading`: from a file to a model.
- `forensics`: what is really in a file.
"""

from worldmodel.hub.download import cache_folder, fetch
from worldmodel.hub.forensics import Report, describe_checkpoint, verify
from worldmodel.hub.loading import LoadedEncoder, load, load_encoder, load_mask_predictor
from worldmodel.hub.registry import MODELS, Model, find, list_models

__all__ = [
    "MODELS",
    "LoadedEncoder",
    "Model",
    "Report",
    "cache_folder",
    "describe_checkpoint",
    "fetch",
    "find",
    "list_models",
    "load",
    "load_encoder",
    "load_mask_predictor",
    "verify",
]
