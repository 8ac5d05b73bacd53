"""Pretrains an encoder with any objective of `worldmodel.objectives`, with state reading, or both.

What is trained is in `worldmodel.pretraining`, the loop is `worldmodel.engine`. While it trains, it
measures whether the encoder still tells pictures apart.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import checkpoint, training_state
from worldmodel.clips import View, read_clips
from worldmodel.collapse import CollapseGuard, CollapseLimits
from worldmodel.data.source import Source
from worldmodel.data.windows import split_episodes
from worldmodel.distributed import here, of_first, wait_for_all
from worldmodel.encoder import VideoEncoder
from worldmodel.encoder_probes import probe_errors
from worldmodel.engine import Cadence, Execution, fit
from worldmodel.images import Crop
from worldmodel.interfaces import Encoder
from worldmodel.objectives.interface import Objective
from worldmodel.objectives.state_reading import StateReading
from worldmodel.pretraining import Pretraining, PretrainTask, Term
from worldmodel.tracking import Tracker
from worldmodel.training import MetricsLog, Precision, Schedule, plot_metrics, select_device

SPREAD_PICTURES = 64  # by which collapse is judged


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run ends with.

    Attributes:
        encoder: Folder of the encoder checkpoint (the weights that the objective keeps).
        loss: Mean weighted loss over the last tenth of the run; NaN for a run of no steps.
        probe_error_cm: Mean hand-position error of a linear probe on held-out episodes.
        probe_gripper_error: Mean absolute error of its gripper, of 1.
        episodes: Number of training episodes in memory.
        episodes_left_out: Number of training episodes that `frames_in_memory` left no room for.
        frames: Number of training frames in memory.
    """

    encoder: Path
    loss: float
    probe_error_cm: float
    probe_gripper_error: float
    episodes: int
    episodes_left_out: int
    frames: int


@dataclass(frozen=True)
class Start:
    """An encoder that a run goes on from.

    Attributes:
        name: What people call it.
        encoder: The encoder, which is left as it is.
        image_size: Height and width of the frames it was trained on.
    """

    name: str
    encoder: Encoder
    image_size: int

    def copied(self) -> VideoEncoder:
        """Returns a copy to train.

        Raises:
            ValueError: It is not of the kind that objectives train.
        """
        if not isinstance(self.encoder, VideoEncoder):
            raise ValueError(
                f"finetune={self.name} is a {type(self.encoder).__name__}; objectives train "
                "encoders of V-JEPA 2's kind, name one of those"
            )
        return copy.deepcopy(self.encoder).requires_grad_(True)


def pretrain(
    *,
    build_encoder: Callable[[], VideoEncoder],
    build_objective: Callable[..., Objective],
    source: Source,
    run: Path,
    camera: str,
    schedule: Schedule,
    batch_size: int,
    weight_decay: float,
    validation_fraction: float,
    seed: int,
    device: str,
    log_every: int,
    save_every: int,
    image_size: int | None = None,
    crop: Crop = "none",
    model_hz: float | None = None,
    frames_in_memory: int | None = None,
    objective_weight: float = 1.0,
    state_weight: float = 0.0,
    state_batch_size: int | None = None,
    merge: int = 2,
    precision: Precision = "auto",
    collapse: CollapseLimits | None = None,
    keep_last: int = 2,
    accumulate: int = 1,
    activation_checkpointing: bool = False,
    compile: bool = False,
    trackers: Sequence[Tracker] = ("tensorboard",),
    start: Start | None = None,
) -> PretrainResult:
    """Trains an encoder on the frames of recordings and writes it to `run/encoder`.

    A run folder that already holds a state goes on from it; the loss curve is the same as if it
    had never stopped. Inside `worldmodel.distributed.joined` the processes share the work.

    Args:
        build_encoder: Makes the encoder; it is called with torch seeded by `seed`.
        build_objective: Makes the objective, given `encoder` and `grid_size`; called after it.
        source: Recordings of any format.
        run: Folder for state, metrics, curves and the encoder.
        camera: Camera whose frames are used; those of several, joined by "+", are single pictures
            like any other.
        schedule: Learning rate and number of steps.
        batch_size: Windows a step, over all processes.
        weight_decay: AdamW weight decay.
        validation_fraction: Share of episodes kept for the probe.
        seed: Seed of initialisation, batches and masks.
        device: "auto", "cpu" or "cuda".
        log_every: Steps between metric lines, with a measurement of collapse each.
        save_every: Steps between saved states.
        image_size: Height and width that frames are brought to; None keeps square frames.
        crop: How, see `worldmodel.images`.
        model_hz: Model steps per second; None takes every row of the recordings at their own rate.
        frames_in_memory: About how many frames to keep in memory, of randomly chosen episodes (49
            kB each of 128 pixels); None keeps all.
        objective_weight: Weight of the objective; 0 leaves it out.
        state_weight: Weight of state reading, see `worldmodel.objectives.state_reading`; 0 leaves
            it out.
        state_batch_size: Frames whose state is read, a step; None is as many as windows.
        merge: Side of the square of tokens joined into one before head and probe, as in planning.
        precision: See `worldmodel.training.autocast`.
        collapse: When a collapsed run is stopped; None is the default limits.
        keep_last: How many states are kept.
        accumulate: See `worldmodel.engine.Execution`, as for the next two. What looks at the whole
            batch (SIGReg, Barlow Twins, VICReg) sees one part of it at a time.
        activation_checkpointing: Whether the encoder's blocks are computed again on the way back.
        compile: Whether they are compiled.
        trackers: "tensorboard", "wandb": who is told besides metrics.jsonl.
        start: Encoder whose weights the run begins with, in place of `build_encoder`.

    Raises:
        ValueError: Steps are to be made, but neither loss has a weight; or the encoder to go on
            from was trained on frames of another size, and `image_size` does not ask for it.
        CollapseError: The encoder hardly tells pictures apart any more.
    """
    if schedule.steps and not objective_weight and not state_weight:
        raise ValueError(
            "objective_weight and state_weight are both 0, so there is nothing to learn; set one, "
            "or schedule.steps=0 for an encoder with its first weights"
        )
    num_states = batch_size if state_batch_size is None else state_batch_size
    where = select_device(device)
    view = View(source, camera, model_hz=model_hz, image_size=image_size, crop=crop)
    train_ids, validation_ids = split_episodes(source.ids(), validation_fraction, seed=0)
    clips = read_clips(view, train_ids, frames_in_memory=frames_in_memory, seed=seed)
    if start is not None and clips.image_size != start.image_size and image_size is None:
        raise ValueError(
            f"the frames have {clips.image_size} pixels, {start.name} was trained on "
            f"{start.image_size}; set image_size={start.image_size} (and crop=square) to bring "
            f"them to its size, or image_size={clips.image_size} to teach it theirs"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder() if start is None else start.copied()
        side = clips.image_size // encoder.patch_size
        objective = build_objective(encoder=encoder, grid_size=(side, side))
        terms = {"objective": Term(objective, objective_weight, batch_size)}
        if state_weight:
            reading = StateReading(encoder=encoder, grid_size=(side, side), merge=merge)
            terms["state"] = Term(reading, state_weight, num_states)
        model = Pretraining(encoder=encoder, terms=terms, clips=clips).to(where)
    guard = CollapseGuard(collapse or CollapseLimits(), remedy=model.remedy)
    if (before := training_state.last(run)) is not None:
        log = MetricsLog(run, resume_step=before.step) if here().first else None
        guard.replay(of_first(log.read() if log is not None else []))
    task = PretrainTask(
        model,
        steps=schedule.steps,
        guard=guard,
        pictures=clips.pictures(SPREAD_PICTURES, seed=seed).to(where),
        precision=precision,
    )
    cadence = Cadence(
        log_every=log_every, validate_every=log_every, save_every=save_every, keep_last=keep_last
    )
    execution = Execution(
        precision=precision,
        accumulate=accumulate,
        activation_checkpointing=activation_checkpointing,
        compile=compile,
    )
    try:
        lines = fit(
            task,
            run=run,
            schedule=schedule,
            batch_size=batch_size,
            weight_decay=weight_decay,
            seed=seed,
            device=where,
            cadence=cadence,
            execution=execution,
            trackers=trackers,
            name="pretrain",
        ).lines
    finally:
        if here().first:
            draw_curves(MetricsLog(run, resume_step=schedule.steps).read(), run)
    probe = probe_errors(model.kept, view, train_ids, validation_ids, merge=merge, device=where)
    left_out = len(train_ids) - clips.num_episodes
    tail = [line["loss"] for line in lines[-max(1, len(lines) // 10) :]]
    if here().first:
        checkpoint.save_encoder(
            model.kept,
            run / "encoder",
            image_size=clips.image_size,
            provenance={
                "trained_by": "worldmodel pretrain",
                "episodes": clips.num_episodes,
                "camera": camera,
                "episodes_left_out": left_out,
                "frames": clips.num_frames,
                "finetuned_from": None if start is None else start.name,
                "objective": type(objective).__name__,
                "objective_weight": objective_weight,
                "state_weight": state_weight,
                "state_batch_size": num_states,
                "steps": schedule.steps,
                "batch_size": batch_size,
                "seed": seed,
                "device": where.type,
                "precision": precision,
                "probe_error_cm": probe.position_cm,
                "probe_gripper_error": probe.gripper,
            },
        )
    wait_for_all()
    return PretrainResult(
        run / "encoder",
        loss=float(np.mean(tail)) if tail else float("nan"),
        probe_error_cm=probe.position_cm,
        probe_gripper_error=probe.gripper,
        episodes=clips.num_episodes,
        episodes_left_out=left_out,
        frames=clips.num_frames,
    )


def draw_curves(lines: list[dict[str, Any]], run: Path) -> None:
    """Draws the metrics of a run to `run/curves.png`, one panel for each thing they are about."""
    names = dict.fromkeys(name for line in lines for name in line)
    state = [f"loss_{name}" for name in ("position", "rotation", "gripper")]
    objective = [name for name in names if name.startswith("loss_") and name not in state]
    groups = {
        "loss": objective or ["loss"],
        "state read": state,
        "effective rank": ["effective_rank"],
        "spread of features": ["feature_std", "feature_std_min", "feature_cosine"],
        "learning rate": ["learning_rate"],
    }
    plot_metrics(lines, run / "curves.png", groups=groups, title="pretraining")
