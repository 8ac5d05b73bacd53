"""Meta's checkpoint files (`.pt`, `.pth.tar`): pickled dicts of state dicts, read without code."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.hub.layout import strip
from worldmodel.hub.registry import Weights

ENCODER_KEYS: tuple[Weights, ...] = ("encoder", "target_encoder", "ema_encoder")

# jepa-wms renamed one layer of the action-conditioned predictor.
_RENAMED = {"proprio_encoder.": "state_encoder."}


def read(path: Path) -> dict[str, Any]:
    """Returns the top-level dict of a checkpoint file; its tensors stay on disk until used.

    Nothing in the file can run: a pickle that names anything but tensors and plain values is
    refused.

    Raises:
        ValueError: The file holds code, is cut short or damaged, or is no dict.
    """
    with path.open("rb") as stream:
        archive = stream.read(2) == b"PK"
    if archive and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is cut short ({path.stat().st_size} bytes and no end of archive); fetch it "
            "again"
        )
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ValueError(
                f"{path} is damaged, or no checkpoint at all; fetch it again"
            ) from error
        raise ValueError(
            f"refused {path}: reading it would run code ({code[1]}), expected tensors and plain "
            "values only; get the file from its publisher"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__}, expected a dict of weights")
    return contents


def encoder_state(
    contents: dict[str, Any], weights: Weights | None, path: Path
) -> tuple[dict[str, Tensor], Weights]:
    """Returns the encoder `weights` of a checkpoint, and which it is.

    The online encoder ("encoder") and its moving average ("target_encoder", "ema_encoder") differ;
    without a choice there must be only one.

    Raises:
        KeyError: There is no such entry.
        ValueError: There are several and none was chosen.
    """
    present: list[Weights] = [key for key in ENCODER_KEYS if key in contents]
    if weights is None and len(present) > 1:
        raise ValueError(
            f"{path} holds several encoders; pass weights= one of {', '.join(present)}"
        )
    chosen: Weights = weights or (present[0] if present else "encoder")
    if chosen not in contents:
        raise KeyError(f"{path} has no {chosen!r}; it has {', '.join(sorted(map(str, contents)))}")
    return strip(contents[chosen]), chosen


def predictor_state(contents: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Returns the predictor of a checkpoint in our names.

    Raises:
        KeyError: There is none.
    """
    if "predictor" not in contents:
        raise KeyError(f"{path} has no 'predictor'; it has {', '.join(sorted(map(str, contents)))}")
    state = strip(contents["predictor"])
    for theirs, ours in _RENAMED.items():
        state = {
            ours + key.removeprefix(theirs) if key.startswith(theirs) else key: value
            for key, value in state.items()
        }
    return state
