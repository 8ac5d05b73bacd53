"""encode, pretrain, train: from recordings to a world model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.verbs.shared import (
    Call,
    build,
    is_published,
    open_folder,
    open_recordings,
    schedule,
    set_threads,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.latents import LatentCache
    from worldmodel.encode import LatentJob
    from worldmodel.interfaces import Encoder


def encode(config: "DictConfig", *, call: Call) -> int:
    """Caches the latents of recordings."""
    import os

    from worldmodel.data.latent_jobs import rank_and_world

    job, _ = _latent_job(config)
    if config.verify:
        checked = job.verify(sample=config.verify)
        print(
            f"{checked.episodes} episodes encoded again, {checked.rows} rows: largest difference "
            f"{checked.max_difference:.2g}, root mean square {checked.rms_difference:.2g}"
        )
        return 0
    rank, world = rank_and_world(os.environ)
    cache = _build_latents(
        job,
        config,
        rank=rank if config.rank is None else config.rank,
        world=world if config.world is None else config.world,
    )
    if cache is None:
        print("this share is done, others are not; whoever finishes last completes the cache")
    else:
        print(f"latents of {len(cache)} episodes in {cache.path}")
    return 0


def _load_encoder(source: str) -> "tuple[Encoder, int, dict[str, Any]]":
    """Returns an encoder, its image size and where it comes from: ours, or a published one."""
    from worldmodel import checkpoint, hub

    if is_published(source):
        loaded = hub.load_encoder(source)
        return loaded.encoder, loaded.image_size, dict(loaded.provenance)
    encoder, image_size = checkpoint.load_encoder(source)
    return encoder, image_size, checkpoint.read_config(source)["provenance"]


def _latent_job(config: "DictConfig") -> "tuple[LatentJob, dict[str, Any]]":
    """Returns the job that the settings describe, and where its encoder comes from."""
    from worldmodel.encode import latent_job

    encoder, image_size, provenance = _load_encoder(config.encoder_checkpoint)
    job = latent_job(
        encoder=encoder,
        image_size=image_size,
        source=open_recordings(config),
        cache=Path(config.cache),
        camera=config.camera,
        merge=config.merge,
        device=config.device,
        crop=config.crop,
        model_hz=config.model_hz,
        dtype=config.latent_dtype,
        pool=config.pool,
        precision=config.encode_precision,
    )
    return job, provenance


def _build_latents(
    job: "LatentJob", config: "DictConfig", *, rank: int = 0, world: int = 1
) -> "LatentCache | None":
    print(f"writing latents to {job.folder}", flush=True)
    return job.build(
        rank=rank,
        world=world,
        workers=config.workers,
        max_quarantined=config.max_quarantined,
        confirm_above_gib=config.confirm_above_gib,
        confirmed=config.confirmed,
    )


def pretrain(config: "DictConfig", *, call: Call) -> int:
    """Trains an encoder."""
    from worldmodel.pretrain import pretrain

    source = open_recordings(config)
    set_threads(config)
    run = open_folder("pretrain", config)
    result = pretrain(
        build_encoder=build(config.encoder, _partial_=True),
        source=source,
        run=run,
        camera=config.camera,
        image_size=config.image_size,
        crop=config.crop,
        model_hz=config.model_hz,
        clip_frames=config.clip_frames,
        levels=list(config.levels),
        predictor_dim=config.predictor_dim,
        predictor_depth=config.predictor_depth,
        predictor_heads=config.predictor_heads,
        context_loss_weight=config.context_loss_weight,
        frames_in_memory=config.frames_in_memory,
        masked_weight=config.masked_weight,
        state_weight=config.state_weight,
        state_batch_size=config.state_batch_size,
        merge=config.merge,
        precision=config.precision,
        ema=(config.ema[0], config.ema[1]),
        schedule=schedule(config),
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        device=config.device,
        log_every=config.log_every,
        save_every=config.save_every,
    )
    print(
        f"curves: {run / 'curves.png'}; next: worldmodel train encoder_checkpoint={result.encoder}"
    )
    print(
        f"loss {result.loss:.4f} on {result.frames} frames of {result.episodes} episodes; a linear "
        f"probe places the hand within {result.probe_error_cm:.2f} cm and the gripper within "
        f"{result.probe_gripper_error:.2f} on held-out episodes"
    )
    return 0


def train(config: "DictConfig", *, call: Call) -> int:
    """Trains a predictor on a frozen encoder."""
    from worldmodel.train import train

    job, encoder_provenance = _latent_job(config)
    set_threads(config)
    run = open_folder("train", config)
    latents = _build_latents(job, config)
    assert latents is not None  # one process has the whole share
    result = train(
        build_predictor=build(config.predictor),
        job=job,
        latents=latents,
        encoder_provenance=encoder_provenance,
        run=run,
        window=config.window,
        strides=list(config.strides),
        rollout_steps=config.rollout_steps,
        distance=config.distance,
        state_weight=config.state_weight,
        precision=config.precision,
        schedule=schedule(config),
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        device=config.device,
        log_every=config.log_every,
        validate_every=config.validate_every,
        dtype=config.dtype,
        save_every=config.save_every,
    )
    print(f"curves: {run / 'curves.png'}; next: worldmodel evaluate checkpoint={result.checkpoint}")
    if (error := result.state_error) is not None:
        print(
            f"read from a held-out frame: the hand within {error.x_cm:.2f}, {error.y_cm:.2f}, "
            f"{error.z_cm:.2f} cm along x, y, z and {error.rotation_rad:.3f} rad, the gripper open "
            f"or closed rightly in {error.gripper_accuracy:.1%}"
        )
    print(
        f"held-out {config.distance} {result.validation_loss:.4f} (no change "
        f"{result.copy_loss:.4f}, wrong actions {result.shuffled_loss:.4f})"
    )
    return 0
