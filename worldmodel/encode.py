"""Caches what a frozen encoder sees of an episode store, so that training never encodes again."""

from pathlib import Path

import numpy as np
import torch

from worldmodel.checkpoint import fingerprint
from worldmodel.data.latents import LatentCache
from worldmodel.data.store import EpisodeStore
from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import encode_frames
from worldmodel.training import select_device


def encode(
    *,
    encoder: VideoEncoder,
    data: Path,
    cache: Path,
    camera: str,
    merge: int,
    device: str,
    batch_size: int = 64,
) -> LatentCache:
    """Returns the latent cache of a store, building what is missing of it.

    Args:
        encoder: Frozen encoder.
        data: Episode store.
        cache: Folder of all caches; each lies under a key of its own, made from the encoder's
            weights, the camera and `merge`, so stale latents cannot be used.
        camera: Camera to encode.
        merge: See `worldmodel.jepa.JEPA`.
        device: "auto", "cpu" or "cuda".
        batch_size: Frames encoded at once.
    """
    where = select_device(device)
    encoder = encoder.to(where).eval()
    key = f"{fingerprint(encoder)}-{camera}-merge{merge}"

    @torch.inference_mode()
    def run(frames: np.ndarray) -> np.ndarray:
        chunks = torch.from_numpy(frames).split(batch_size)
        return torch.cat([encode_frames(encoder, c.to(where), merge).cpu() for c in chunks]).numpy()

    return LatentCache.build(cache / key, EpisodeStore(data), run, key=key, camera=camera)
