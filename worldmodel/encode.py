"""Caches what a frozen encoder sees of recordings, so that training never encodes again."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.checkpoint import arguments, fingerprint
from worldmodel.data.latent_jobs import build
from worldmodel.data.latent_ray import RayCluster
from worldmodel.data.latent_shards import LatentDtype, Recipe
from worldmodel.data.latent_verify import Verification, check_source, verify
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import Source
from worldmodel.data.validate import check_by_id, check_set
from worldmodel.images import Crop, fit_frames
from worldmodel.interfaces import Encoder
from worldmodel.jepa import LATENT_NORM_EPS, PIXEL_MEAN, PIXEL_STD, encode_frames
from worldmodel.training import Precision, autocast, resolve_precision, select_device

SAMPLED_EPISODES = 20  # that tell whether a whole set is wrong


class FrameEncoder:
    """A frozen encoder as `worldmodel.data.latent_units` calls it; pickles, weights included.

    Args:
        encoder: Frozen encoder.
        image_size: Height and width that frames are brought to.
        crop: How, see `worldmodel.images`.
        merge: See `worldmodel.jepa.JEPA`.
        device: "auto", "cpu" or "cuda"; under torchrun, "auto" is the GPU of the local rank.
        batch_size: Frames encoded at once.
        precision: See `worldmodel.training.autocast`.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        image_size: int,
        crop: Crop,
        merge: int,
        device: str,
        batch_size: int = 64,
        precision: Precision = "float32",
    ):
        self.crop: Crop = crop
        self.image_size, self.merge = image_size, merge
        self.device, self.batch_size = device, batch_size
        self._where = select_device(_of_local_rank(device, os.environ.get("LOCAL_RANK")))
        self.precision: Precision = resolve_precision(self._where, precision)
        self.encoder = encoder.to(self._where).eval()

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Returns float32 latents (T, tokens, size) of uint8 frames (T, height, width, 3)."""
        fitted = torch.from_numpy(fit_frames(frames, self.image_size, self.crop))
        batches = [batch.to(self._where) for batch in fitted.split(self.batch_size)]
        with autocast(self._where, self.precision):
            latents = [encode_frames(self.encoder, batch, self.merge).cpu() for batch in batches]
        return torch.cat(latents).numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the weights as bytes: sharing tensors would take an open file for each."""
        weights = io.BytesIO()
        torch.save({k: v.cpu() for k, v in self.encoder.state_dict().items()}, weights)
        settings = {
            "image_size": self.image_size,
            "crop": self.crop,
            "merge": self.merge,
            "device": self.device,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }
        return _restore, (
            type(self.encoder),
            arguments(self.encoder),
            weights.getvalue(),
            settings,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and of all that is done to a frame before and after, readable end."""
        steps: tuple[Any, ...] = (
            self.image_size,
            self.crop,
            PIXEL_MEAN,
            PIXEL_STD,
            LATENT_NORM_EPS,
        )
        if self.precision != "float32":
            steps += (self.precision,)
        whole = hashlib.sha256(f"{fingerprint(self.encoder)} {steps}".encode()).hexdigest()[:16]
        return f"{whole}-merge{self.merge}"


@dataclass(frozen=True)
class LatentJob:
    """Which latents are wanted: of which recordings, by which encoder, and where they are kept.

    Attributes:
        source: The recordings.
        encode: The frozen encoder.
        recipe: Which rows of them, and how they are stored.
        folder: Folder of this cache alone.
    """

    source: Source
    encode: FrameEncoder
    recipe: Recipe
    folder: Path

    def build(
        self,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
        cluster: RayCluster | None = None,
        max_quarantined: float = 0.1,
        confirm_above_gib: float = 50.0,
        confirmed: bool = False,
    ) -> LatentCache | None:
        """Encodes what the cache lacks, or has of an older state of the recordings.

        Every episode is compared with what the cache was made from, and checked before it is
        encoded; of a new set, some are checked together first. Arguments, result and errors are
        those of `worldmodel.data.latent_jobs.build`.
        """
        if not (self.folder / "index.json").exists():
            refuse_wrong_set(self.source)
        return build(
            self.folder,
            self.source,
            self.encode,
            recipe=self.recipe,
            check=errors_of,
            rank=rank,
            world=world,
            workers=workers,
            cluster=cluster,
            max_quarantined=max_quarantined,
            confirm_above_gib=confirm_above_gib,
            confirmed=confirmed,
        )

    def verify(self, *, sample: int) -> Verification:
        """Encodes so many episodes again, after asking whether any recording has changed since.

        See `check_source` and `verify` of `worldmodel.data.latent_verify`, also for errors.
        """
        check_source(self.folder, self.source)
        return verify(self.folder, self.source, self.encode, sample=sample)


def latent_job(
    *,
    encoder: Encoder,
    image_size: int,
    source: Source,
    cache: Path,
    camera: str,
    merge: int,
    device: str,
    crop: Crop = "none",
    model_hz: float | None = None,
    dtype: LatentDtype = "float16",
    pool: int = 1,
    batch_size: int = 64,
    precision: Precision = "float32",
) -> LatentJob:
    """Returns the job of encoding recordings.

    Args:
        encoder: Frozen encoder.
        image_size: Height and width in pixels that it takes.
        source: Recordings of any format.
        cache: Folder of all caches; each lies under the name of its recordings and a key made from
            the encoder's weights, the preprocessing, the camera, the rate and the type.
        camera: Camera to encode.
        merge: See `worldmodel.jepa.JEPA`.
        device: "auto", "cpu" or "cuda".
        crop: How frames of another size are brought to `image_size`, see `worldmodel.images`.
        model_hz: Rate of the model, and of the rows [Hz]; None keeps every row.
        dtype: "float16", or "int8" with a scale per token: half the size.
        pool: Side of the square of neighbouring tokens averaged into one, after `merge`.
        batch_size: Frames encoded at once.
        precision: Of the encoder, see `worldmodel.training.autocast`; bfloat16 has its own cache.
    """
    encode = FrameEncoder(
        encoder,
        image_size=image_size,
        crop=crop,
        merge=merge,
        device=device,
        batch_size=batch_size,
        precision=precision,
    )
    recipe = Recipe(encode.fingerprint, camera, hz=model_hz, dtype=dtype, pool=pool)
    folder = cache / Path(source.path).resolve().stem / recipe.key
    return LatentJob(source, encode, recipe, folder)


def errors_of(source: Source, episode: int) -> Sequence[str]:
    """Returns what the validator finds in an episode that must not be learned from."""
    findings, _ = check_by_id(source, episode)
    return [f"{f.code}: {f.message}" for f in findings if f.severity == "error"]


def refuse_wrong_set(source: Source) -> None:
    """Raises ValueError if recordings are wrong as a whole, such as an inverted gripper.

    No single episode shows this, so some, evenly spread, are checked together.
    """
    ids = source.ids()
    chosen = np.unique(np.linspace(0, len(ids) - 1, SAMPLED_EPISODES).round().astype(int))
    facts = [check_by_id(source, ids[i])[1] for i in chosen]
    findings = check_set([fact for fact in facts if fact is not None], source.mapping)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        listed = "\n".join(f"  {f.code}: {f.message} {f.fix}" for f in errors)
        raise ValueError(
            f"{source.path} is wrong as a whole:\n{listed}\n"
            f"look at it: worldmodel inspect {source.path} --check"
        )


def _restore(
    encoder_class: type[Encoder],
    architecture: dict[str, Any],
    weights: bytes,
    settings: dict[str, Any],
) -> FrameEncoder:
    encoder = encoder_class(**architecture)
    encoder.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    return FrameEncoder(encoder, **settings)


def _of_local_rank(device: str, local_rank: str | None) -> str:
    if device == "auto" and local_rank is not None and torch.cuda.is_available():
        return f"cuda:{int(local_rank) % torch.cuda.device_count()}"
    return device
