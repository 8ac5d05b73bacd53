"""Post-trains the action-conditioned predictor on the cached latents of a frozen encoder.

A head that reads the state can be trained beside it, on the frames of the same windows: what it
reads from a goal proposes where to go. The loop is that of `worldmodel.engine`, what it trains is
`worldmodel.prediction_task`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldmodel import checkpoint, training_state
from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.data.latent_views import LatentViews
from worldmodel.data.latents import LatentCache
from worldmodel.data.windows import split_episodes
from worldmodel.distributed import here
from worldmodel.embodied import learn_to_speak, read_joints
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.encode import LatentJob
from worldmodel.engine import Cadence, Execution, Fitted, fit
from worldmodel.finetune import check_fits, continued, merge_low_rank
from worldmodel.jepa import JEPA
from worldmodel.losses import Distance
from worldmodel.new_world import freeze_unused, new_world, set_input_scales
from worldmodel.prediction_task import PredictionTask, PredictorLosses, Windows
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.robot_free import PREFIX, RobotFree, is_measured
from worldmodel.state_errors import JointError, StateError
from worldmodel.tracking import Tracker
from worldmodel.training import Precision, Schedule, plot_metrics, select_device
from worldmodel.verdict import Rival, verdict_of_run

STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}
SCALE_WINDOWS = 4096  # that the scales of poses and actions are measured on
VALIDATION_WINDOWS = 512


@dataclass(frozen=True)
class TrainResult:
    """What a training run ends with.

    Attributes:
        checkpoint: Folder of the world model, with the last weights.
        best_checkpoint: Folder of the one with the lowest validation loss; `checkpoint` where that
            is the last.
        validation_loss: Mean distance of one-step predictions on held-out episodes.
        copy_loss: That of predicting no change, on the same windows.
        shuffled_loss: That with the actions of other windows; near `validation_loss` means that the
            model ignores the action.
        state_error: How far the poses, or joints, read from held-out frames are off; None without
            a head.
        verdict: One sentence: better or worse than which checkpoint, on which metric.
    """

    checkpoint: Path
    best_checkpoint: Path
    validation_loss: float
    copy_loss: float
    shuffled_loss: float
    state_error: StateError | JointError | None
    verdict: str


def train(
    *,
    build_predictor: Callable[..., ActionConditionedPredictor | AdaLNPredictor],
    job: LatentJob,
    latents: LatentCache | LatentViews,
    encoder_provenance: dict[str, Any],
    run: Path,
    window: int,
    strides: list[int],
    rollout_steps: int,
    schedule: Schedule,
    batch_size: int,
    weight_decay: float,
    validation_fraction: float,
    seed: int,
    device: str,
    log_every: int,
    validate_every: int,
    save_every: int,
    measure_every: int | None = None,
    measured_windows: int = 64,
    measured_searches: int = 16,
    keep_last: int = 2,
    dtype: Literal["float32", "float16"] = "float32",
    distance: Distance = "l1",
    legacy_rollout: bool = False,
    state_weight: float = 1.0,
    standardise: bool = True,
    clip_norm: float | None = 1.0,
    precision: Precision = "auto",
    accumulate: int = 1,
    activation_checkpointing: bool = False,
    compile: bool = False,
    fsdp: bool = False,
    trackers: Sequence[Tracker] = ("tensorboard",),
    compare_with: str | None = None,
    finetune: str | None = None,
    lora_rank: int | None = None,
    rate_was_chosen: bool = False,
    embodiment: str = END_EFFECTOR,
) -> TrainResult:
    """Trains a predictor, and a state head beside it, and writes them to `run/model`.

    A run folder that already holds a state goes on from it; the loss curve is the same as if it
    had never stopped. Inside `worldmodel.distributed.joined` the processes share the work.

    Args:
        build_predictor: Makes the predictor, given `latent_dim` and `grid_size`, and `num_views`
            where there are several; it is called with torch seeded by `seed`.
        job: What the latents are of; with several cameras, the job of any of them.
        latents: The finished cache of this job, or those of all cameras.
        encoder_provenance: Where the encoder comes from, for the checkpoint.
        run: Folder for state, metrics, curves and the model.
        window: Frames of a training window.
        strides: Distances of a window's frames in model steps. With several, one action can be
            a short or a long move, and a plan may look far ahead in one step. One named k times
            is drawn k times as often.
        rollout_steps: Steps of the rollout loss.
        schedule: Learning rate and number of steps.
        batch_size: Windows a step, over all processes.
        weight_decay: AdamW weight decay.
        validation_fraction: Share of episodes held out.
        seed: Seed of initialisation and batches.
        device: "auto", "cpu" or "cuda".
        log_every: Steps between metric lines.
        validate_every: Steps between validations.
        save_every: Steps between saved states.
        measure_every: Steps between the robot-free measures (`worldmodel.robot_free`), which are
            also taken at the end; None takes none.
        measured_windows: Held-out windows that they are taken on.
        measured_searches: How many of those are searched for the lowest energy.
        keep_last: How many states are kept; the best weights are kept beside them.
        dtype: Precision of the stored model.
        distance: Of predictions from what was seen, see `worldmodel.losses.prediction_loss`.
        legacy_rollout: The rollout loss with the mistake of the first release, see there.
        state_weight: Weight of the loss of the state head, which learns nothing from the predictor,
            nor the predictor from it; 0 trains none.
        standardise: Whether latents, poses and actions are standardised over the training set; if
            not, they enter as they are, as published.
        clip_norm: Norm that the gradients of predictor and head are clipped to; None clips none.
        precision: See `worldmodel.training.autocast`.
        accumulate: See `worldmodel.engine.Execution`, as for the next three.
        activation_checkpointing: Whether blocks are computed again on the way back.
        compile: Whether blocks are compiled.
        fsdp: Whether weights are sharded over the processes.
        trackers: "tensorboard", "wandb": who is told besides metrics.jsonl.
        compare_with: World-model folder that the last sentence compares with; None compares with
            the earlier validations of this run.
        finetune: World-model folder, or "default", to go on from, in place of `build_predictor`:
            its predictor, latent scales and state head are kept, see `worldmodel.finetune`.
        lora_rank: Of the changes of its large matrices; None trains all of it.
        rate_was_chosen: Whether the rate of the latents was asked for; if not, it must be that of
            the model to go on from.
        embodiment: Who the recordings are of. Another name than the end effector's is that of an
            arm that speaks in its joints, which gets input layers and a head of its own, see
            `worldmodel.embodied`.
    """
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(STORED_DTYPES)}, got {dtype!r}")
    where = select_device(device)
    train_ids, validation_ids = split_episodes(latents.ids.tolist(), validation_fraction, seed=0)
    if not validation_ids:
        raise ValueError(
            f"validation_fraction={validation_fraction} leaves no episode of {len(train_ids)} to "
            "validate on; raise it or collect more episodes"
        )
    num_views, joints = len(latents.cameras), None
    reads_poses = state_weight > 0 and embodiment == END_EFFECTOR
    if embodiment != END_EFFECTOR:
        joints = read_joints(job.source, latents, latents.ids.tolist())
    windows_of = partial(Windows, latents, dt=1 / latents.hz, joints=joints)
    windows = windows_of(train_ids, frames=window, strides=strides)
    held_out = windows_of(validation_ids, frames=window, strides=strides)
    sample = windows.draw(np.random.default_rng(seed), SCALE_WINDOWS)
    poses = windows.poses(sample)

    start = None
    if finetune is not None:
        start = checkpoint.load(finetune)
        check_fits(
            start,
            finetune,
            job=job,
            num_views=num_views,
            hz=latents.hz,
            rate_was_chosen=rate_was_chosen,
            proprio=poses,
        )
        if lora_rank is not None and fsdp:
            raise ValueError("fsdp=true cannot shard low-rank changes; leave out one of the two")
    elif lora_rank is not None:
        raise ValueError("lora_rank changes a trained predictor; name one with finetune=...")

    def new_losses() -> tuple[JEPA, PredictorLosses]:
        if start is not None:
            world = continued(
                start,
                hz=latents.hz,
                proprio=poses,
                state_head="trained" if reads_poses else "dropped" if joints is None else "kept",
                lora_rank=lora_rank,
                seed=seed,
            )
        else:
            world = new_world(
                build_predictor,
                job=job,
                num_views=num_views,
                hz=latents.hz,
                proprio=poses,
                state_head=reads_poses,
                standardise=standardise,
                seed=seed,
            )
            if standardise:
                set_input_scales(world, latents, train_ids, poses)
        if joints is not None:
            moves = windows.actions(windows.proprio(sample)).flatten(0, 1)
            learn_to_speak(world, embodiment, joints, moves, joint_head=state_weight > 0, seed=seed)
        freeze_unused(world.predictor, embodiment)
        losses = PredictorLosses(
            world,
            rollout_steps=rollout_steps,
            distance=distance,
            state_weight=state_weight,
            legacy_rollout=legacy_rollout,
            embodiment=embodiment,
        )
        return world.to(where), losses

    robot_free = None
    if measure_every is not None:
        robot_free = RobotFree.draw(
            windows_of(validation_ids, frames=2, strides=[min(strides)]),
            windows=measured_windows,
            searches=measured_searches,
            distance=distance,
            seed=seed,
            embodiment=embodiment,
        )
    rival = None
    if compare_with is not None:
        rival = Rival.load(
            compare_with,
            job=job,
            num_views=num_views,
            held_out=held_out,
            device=where,
            embodiment=embodiment,
        )
    world, losses = new_losses()
    task = PredictionTask(
        losses,
        windows,
        held_out,
        validation_windows=VALIDATION_WINDOWS,
        at_once=min(VALIDATION_WINDOWS, 4 * batch_size // accumulate),
        seed=seed,
        measures=partial(robot_free.measure, world) if robot_free is not None else dict,
    )
    fitted = fit(
        task,
        run=run,
        schedule=schedule,
        batch_size=batch_size,
        weight_decay=weight_decay,
        seed=seed,
        device=where,
        cadence=Cadence(
            log_every=log_every,
            validate_every=validate_every,
            measure_every=measure_every,
            save_every=save_every,
            keep_last=keep_last,
        ),
        execution=Execution(
            precision=precision,
            accumulate=accumulate,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
            fsdp=fsdp,
        ),
        clip_norm=clip_norm,
        trackers=trackers,
    )
    final = fitted.metrics
    kind = StateError if joints is None else JointError
    names = {f"state_{f.name}": f.name for f in fields(kind)}
    error = None
    if state_weight:
        error = kind(**{name: final[key] for key, name in names.items()})
    provenance = {
        "trained_by": "worldmodel train",
        "encoder": encoder_provenance,
        "recordings": job.source.path.name,
        "format": job.source.format,
        "episodes": len(train_ids),
        "camera": "+".join(latents.cameras),
        "crop": job.encode.crop,
        "quarantined": len(latents.quarantined),
        "window": window,
        "strides": list(strides),
        "rollout_steps": rollout_steps,
        "legacy_rollout": legacy_rollout,
        "steps": schedule.steps,
        "batch_size": batch_size,
        "seed": seed,
        "device": where.type,
        "precision": precision,
        "distance": distance,
        "state_weight": state_weight,
        "finetuned_from": finetune,
        "lora_rank": lora_rank,
        "embodiment": embodiment,
    }
    result = TrainResult(
        checkpoint=run / "model",
        best_checkpoint=run / ("best" if _earlier_best(fitted) else "model"),
        validation_loss=final["validation_loss"],
        copy_loss=final["copy_loss"],
        shuffled_loss=final["shuffled_loss"],
        state_error=error,
        verdict=rival.verdict(final, distance, robot_free) if rival else verdict_of_run(fitted),
    )
    if here().first:
        exports = [(result.checkpoint, fitted.last, final)]
        if (best := _earlier_best(fitted)) is not None:
            exports.append((result.best_checkpoint, best, best.meta))
        for folder, saved, metrics in exports:
            # Read from the state, for those of the task may be in shards.
            world, losses = new_losses()
            if saved is not None:
                losses.load_state_dict(training_state.read_weights(saved, losses.state_dict()))
            merge_low_rank(world.predictor)
            read = {name: metrics[key] for key, name in names.items() if key in metrics}
            plain = {k: v for k, v in metrics.items() if k not in names}
            checkpoint.save(
                world,
                folder,
                provenance={**provenance, "state_error": read or None, **plain},
                dtype=STORED_DTYPES[dtype],
            )
        _plot(fitted, run / "curves.png")
    return result


def _earlier_best(fitted: Fitted) -> training_state.Saved | None:
    """Returns the best weights, if they are not the last."""
    if fitted.best is None or fitted.last is None or fitted.best.step == fitted.last.step:
        return None
    return fitted.best


def _plot(fitted: Fitted, file: Path) -> None:
    groups = {
        "training loss": ["loss_teacher_forcing", "loss_rollout"],
        "held-out loss": ["validation_loss", "copy_loss", "shuffled_loss"],
        "state read": [
            "loss_state",
            *(name for name in fitted.metrics if name.startswith("state_")),
        ],
        "learning rate": ["learning_rate"],
    }
    if is_measured(fitted.metrics):
        names = ("identity_ratio", "shuffled_action_ratio", "ranking_top1")
        groups["without a robot"] = [PREFIX + name for name in names]
        groups["argmin error [cm]"] = [PREFIX + "argmin_error_cm"]
    plot_metrics(fitted.lines, file, groups=groups, title="action-conditioned prediction")
