"""encode, pretrain, train: from recordings to a world model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.verbs.shared import (
    Call,
    UserError,
    build,
    is_published,
    open_folder,
    open_recordings,
    schedule,
    set_threads,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.latent_ray import RayCluster
    from worldmodel.data.latents import LatentCache
    from worldmodel.encode import LatentJob
    from worldmodel.interfaces import Encoder


# What a run may be resumed with other values of: nothing that is computed, up to rounding.
MAY_CHANGE = (
    "accumulate",
    "activation_checkpointing",
    "compare_with",
    "compile",
    "confirm_above_gib",
    "confirmed",
    "device",
    "fsdp",
    "keep_last",
    "save_every",
    "threads",
    "trackers",
    "workers",
)

# Objectives that look at the whole batch see one accumulated part of it.
PRETRAIN_MAY_CHANGE = tuple(name for name in MAY_CHANGE if name != "accumulate")


def encode(config: "DictConfig", *, call: Call) -> int:
    """Caches the latents of recordings."""
    import os

    from worldmodel.data.latent_jobs import rank_and_world
    from worldmodel.data.latent_ray import RayCluster
    from worldmodel.invocations import EXECUTORS
    from worldmodel.names import unknown

    if config.executor not in EXECUTORS:
        raise ValueError(unknown("executor", config.executor, EXECUTORS))
    jobs, _ = _latent_jobs(config)
    if config.verify:
        for job in jobs:
            checked = job.verify(sample=config.verify)
            print(
                f"{job.recipe.camera}: {checked.episodes} episodes encoded again, {checked.rows} "
                f"rows: largest difference {checked.max_difference:.2g}, root mean square "
                f"{checked.rms_difference:.2g}"
            )
        return 0
    cluster = None
    if config.executor == "ray":
        cluster = RayCluster(address=config.address, cpus=config.cpus, gpus=config.gpus)
    rank, world = rank_and_world(os.environ)
    for job in jobs:
        cache = _build_latents(
            job,
            config,
            cluster=cluster,
            rank=rank if config.rank is None else config.rank,
            world=world if config.world is None else config.world,
        )
        if cache is None:
            print("this share is done, others are not; whoever finishes last completes the cache")
        else:
            print(f"latents of {len(cache)} episodes in {cache.path}")
    return 0


def _load_encoder(source: str, blocks: int | None) -> "tuple[Encoder, int, dict[str, Any]]":
    """Returns an encoder, its image size and where it comes from: ours, or a published one.

    Args:
        source: What it is called, or where it is.
        blocks: How many of its blocks are used; None is all.
    """
    from worldmodel.encoder import VideoEncoder

    encoder, image_size, provenance = _whole_encoder(source)
    if blocks is None:
        return encoder, image_size, provenance
    if not isinstance(encoder, VideoEncoder):
        raise UserError(
            f"encoder_blocks is for encoders of V-JEPA 2's kind, {source} is a "
            f"{type(encoder).__name__}; leave it out"
        )
    return encoder.first_blocks(blocks), image_size, {**provenance, "blocks_used": blocks}


def _whole_encoder(source: str) -> "tuple[Encoder, int, dict[str, Any]]":
    from worldmodel import checkpoint, hub

    if is_published(source):
        loaded = hub.load_encoder(source)
        return loaded.encoder, loaded.image_size, dict(loaded.provenance)
    encoder, image_size = checkpoint.load_encoder(source)
    return encoder, image_size, checkpoint.read_config(source)["provenance"]


def _latent_jobs(config: "DictConfig") -> "tuple[list[LatentJob], dict[str, Any]]":
    """Returns the job of each camera that the settings name, and where the encoder comes from."""
    from worldmodel.encode import latent_job
    from worldmodel.views import camera_names

    encoder, image_size, provenance = _load_encoder(
        config.encoder_checkpoint, config.encoder_blocks
    )
    source = open_recordings(config)
    jobs = [
        latent_job(
            encoder=encoder,
            image_size=image_size,
            source=source,
            cache=Path(config.cache),
            camera=camera,
            merge=config.merge,
            device=config.device,
            crop=config.crop,
            model_hz=config.model_hz,
            dtype=config.latent_dtype,
            pool=config.pool,
            precision=config.encode_precision,
        )
        for camera in camera_names(config.camera)
    ]
    return jobs, provenance


def _build_latents(
    job: "LatentJob",
    config: "DictConfig",
    *,
    cluster: "RayCluster | None" = None,
    rank: int = 0,
    world: int = 1,
) -> "LatentCache | None":
    print(f"writing latents to {job.folder}", flush=True)
    return job.build(
        rank=rank,
        world=world,
        workers=config.workers,
        cluster=cluster,
        max_quarantined=config.max_quarantined,
        confirm_above_gib=config.confirm_above_gib,
        confirmed=config.confirmed,
    )


def pretrain(config: "DictConfig", *, call: Call) -> int:
    """Trains an encoder, by one process or by those that torchrun started."""
    from worldmodel.collapse import CollapseLimits
    from worldmodel.distributed import here, joined, of_first
    from worldmodel.engine import TrainingError
    from worldmodel.pretrain import Start, pretrain

    with joined() as place:
        start = None
        if config.finetune is not None:
            encoder, image_size, _ = _whole_encoder(config.finetune)
            start = Start(config.finetune, encoder, image_size)
        source = open_recordings(config)
        set_threads(config)
        opened = None
        if place.first:
            opened = open_folder("pretrain", config, may_change=PRETRAIN_MAY_CHANGE)
        run = of_first(opened)
        assert run is not None
        try:
            result = pretrain(
                build_encoder=build(config.encoder, _partial_=True),
                build_objective=build(config.objective),
                source=source,
                run=run,
                camera=config.camera,
                image_size=config.image_size,
                crop=config.crop,
                model_hz=config.model_hz,
                frames_in_memory=config.frames_in_memory,
                objective_weight=config.objective_weight,
                state_weight=config.state_weight,
                state_batch_size=config.state_batch_size,
                merge=config.merge,
                precision=config.precision,
                collapse=CollapseLimits(**config.collapse),
                schedule=schedule(config),
                batch_size=config.batch_size,
                weight_decay=config.weight_decay,
                validation_fraction=config.validation_fraction,
                seed=config.seed,
                device=config.device,
                log_every=config.log_every,
                save_every=config.save_every,
                keep_last=config.keep_last,
                accumulate=config.accumulate,
                activation_checkpointing=config.activation_checkpointing,
                compile=config.compile,
                trackers=list(config.trackers),
                start=start,
            )
        except TrainingError as error:
            raise UserError(str(error)) from error
        if not here().first:
            return 0
    print(
        f"curves: {run / 'curves.png'}; next: worldmodel train encoder_checkpoint={result.encoder}"
    )
    learned = f"loss {result.loss:.4f}" if config.schedule.steps else "nothing learned"
    print(
        f"{learned} on {result.frames} frames of {result.episodes} episodes; a linear "
        f"probe places the hand within {result.probe_error_cm:.2f} cm and the gripper within "
        f"{result.probe_gripper_error:.2f} on held-out episodes"
    )
    return 0


def train(config: "DictConfig", *, call: Call) -> int:
    """Trains a predictor on a frozen encoder, by one process or by those that torchrun started."""
    from worldmodel.data.latent_views import LatentViews
    from worldmodel.data.latents import LatentCache
    from worldmodel.distributed import here, joined, of_first, wait_for_all
    from worldmodel.engine import TrainingError
    from worldmodel.state_errors import StateError
    from worldmodel.train import train

    with joined() as place:
        jobs, encoder_provenance = _latent_jobs(config)
        set_threads(config)
        opened = open_folder("train", config, may_change=MAY_CHANGE) if place.first else None
        run = of_first(opened)
        assert run is not None
        built = [_build_latents(job, config, rank=place.rank, world=place.world) for job in jobs]
        wait_for_all()
        caches = [
            LatentCache(job.folder, job.recipe.key) if cache is None else cache  # made by others
            for job, cache in zip(jobs, built, strict=True)
        ]
        latents = LatentViews(caches) if len(caches) > 1 else caches[0]
        try:
            result = train(
                build_predictor=build(config.predictor),
                job=jobs[0],
                latents=latents,
                encoder_provenance=encoder_provenance,
                run=run,
                window=config.window,
                strides=list(config.strides),
                rollout_steps=config.rollout_steps,
                distance=config.distance,
                legacy_rollout=config.legacy_rollout,
                state_weight=config.state_weight,
                standardise=config.standardise,
                clip_norm=config.clip_norm,
                precision=config.precision,
                accumulate=config.accumulate,
                activation_checkpointing=config.activation_checkpointing,
                compile=config.compile,
                fsdp=config.fsdp,
                schedule=schedule(config),
                batch_size=config.batch_size,
                weight_decay=config.weight_decay,
                validation_fraction=config.validation_fraction,
                seed=config.seed,
                device=config.device,
                log_every=config.log_every,
                validate_every=config.validate_every,
                measure_every=config.measure_every,
                measured_windows=config.measured_windows,
                measured_searches=config.measured_searches,
                dtype=config.dtype,
                save_every=config.save_every,
                keep_last=config.keep_last,
                trackers=list(config.trackers),
                compare_with=config.compare_with,
                finetune=config.finetune,
                lora_rank=config.lora_rank,
                rate_was_chosen=config.model_hz is not None,
                embodiment=config.embodiment,
            )
        except TrainingError as error:
            raise UserError(str(error)) from error
        if not here().first:
            return 0
    print(f"curves: {run / 'curves.png'}")
    if config.embodiment == "end_effector":  # the other verbs speak in poses
        view = "" if config.camera == "exterior" else f" camera={config.camera}"
        alone = "" if config.state_weight else " planner.search.num_proposals=0"
        print(f"next: worldmodel evaluate checkpoint={result.checkpoint}{view}{alone}")
    else:
        told = f"checkpoint={result.checkpoint} embodiment={config.embodiment}"
        print(f"next: worldmodel validate data=HELD_OUT_RECORDINGS {told}")
    if result.best_checkpoint != result.checkpoint:
        print(f"the lowest validation loss had {result.best_checkpoint}")
    if isinstance(error := result.state_error, StateError):
        print(
            f"read from a held-out frame: the hand within {error.x_cm:.2f}, {error.y_cm:.2f}, "
            f"{error.z_cm:.2f} cm along x, y, z and {error.rotation_rad:.3f} rad, the gripper open "
            f"or closed rightly in {error.gripper_accuracy:.1%}"
        )
    elif error is not None:
        print(
            f"read from a held-out frame: a joint within {error.joints_deg:.1f} degrees, the worst "
            f"{error.worst_joint_deg:.1f}, the gripper open or closed rightly in "
            f"{error.gripper_accuracy:.1%}"
        )
    print(result.verdict)
    print(
        f"held-out {config.distance} {result.validation_loss:.4f} (no change "
        f"{result.copy_loss:.4f}, wrong actions {result.shuffled_loss:.4f})"
    )
    return 0
