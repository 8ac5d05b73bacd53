"""Pretrains an encoder with any objective of `worldmodel.objectives`, with state reading, or both.

Every step draws a batch for each objective, takes the gradients of its losses, and makes one step
of the optimizer. While it trains, it measures whether the encoder still tells pictures apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.clips import View, read_clips
from worldmodel.collapse import CollapseError, CollapseGuard, CollapseLimits, measure_spread
from worldmodel.data.source import Source
from worldmodel.data.windows import split_episodes
from worldmodel.encoder import VideoEncoder
from worldmodel.encoder_probes import probe_errors
from worldmodel.images import Crop
from worldmodel.jepa import encode_frames
from worldmodel.objectives.interface import Loss, Objective
from worldmodel.objectives.state_reading import StateReading
from worldmodel.pretraining import Pretraining, Term
from worldmodel.training import (
    MetricsLog,
    Precision,
    Schedule,
    autocast,
    load_state,
    make_optimizer,
    plot_metrics,
    save_state,
    select_device,
    set_learning_rate,
    step_generators,
)

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
) -> PretrainResult:
    """Trains an encoder on the frames of recordings and writes it to `run/encoder`.

    A run folder that already holds a state goes on from it; the loss curve is the same as if it
    had never stopped.

    Args:
        build_encoder: Makes the encoder; it is called with torch seeded by `seed`.
        build_objective: Makes the objective, given `encoder` and `grid_size`; called after it.
        source: Recordings of any format.
        run: Folder for state, metrics, curves and the encoder.
        camera: Camera whose frames are used.
        schedule: Learning rate and number of steps.
        batch_size: Windows a step.
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

    Raises:
        ValueError: Steps are to be made, but neither loss has a weight.
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder()
        side = clips.image_size // encoder.patch_size
        objective = build_objective(encoder=encoder, grid_size=(side, side))
        terms = {"objective": Term(objective, objective_weight, batch_size)}
        if state_weight:
            reading = StateReading(encoder=encoder, grid_size=(side, side), merge=merge)
            terms["state"] = Term(reading, state_weight, num_states)
        model = Pretraining(encoder=encoder, terms=terms, clips=clips).to(where)
    optimizer = make_optimizer([model], weight_decay=weight_decay)

    first = 1
    state = load_state(run)
    if state is not None:
        if "model" not in state:
            raise ValueError(
                f"the state in {run} is of an earlier version of this program and cannot be gone "
                "on with; name another run folder"
            )
        first = state["step"] + 1
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    log = MetricsLog(run, resume_step=first - 1)
    guard = CollapseGuard(collapse or CollapseLimits(), remedy=model.remedy)
    guard.replay(log.read())
    pictures = clips.pictures(SPREAD_PICTURES, seed=seed).to(where)

    bar = tqdm(
        range(first, schedule.steps + 1), initial=first - 1, total=schedule.steps, desc="pretrain"
    )
    for step in bar:
        set_learning_rate(optimizer, schedule(step))
        optimizer.zero_grad(set_to_none=True)
        drawn = model.draw(*step_generators(seed, step))
        batch = {name: values.to(where) for name, values in model.load(drawn).items()}
        metrics = {"learning_rate": schedule(step), "loss": 0.0}
        for loss in under_autocast(model.losses(batch), where, precision):
            loss.total.backward()
            metrics["loss"] += loss.total.item()
            for name, value in loss.parts.items():
                metrics[f"loss_{name}"] = metrics.get(f"loss_{name}", 0.0) + value.item()
        optimizer.step()
        model.after_step(step, schedule.steps)
        last = step == schedule.steps
        if step % log_every == 0 or last:
            with autocast(where, precision):
                spread = measure_spread(features(model.kept, pictures))
            log.write(step, {**metrics, **asdict(spread)})
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", rank=f"{spread.effective_rank:.1f}")
            if guard.collapsed(step, spread):
                draw_curves(log.read(), run)
                raise CollapseError(guard.message())
        if step % save_every == 0 or last:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(run, {"step": step, **saved})

    lines = log.read()
    draw_curves(lines, run)
    probe = probe_errors(model.kept, view, train_ids, validation_ids, merge=merge, device=where)
    left_out = len(train_ids) - len(clips.frames)
    tail = [line["loss"] for line in lines[-max(1, len(lines) // 10) :]]
    checkpoint.save_encoder(
        model.kept,
        run / "encoder",
        image_size=clips.image_size,
        provenance={
            "trained_by": "worldmodel pretrain",
            "episodes": len(clips.frames),
            "episodes_left_out": left_out,
            "frames": clips.num_frames,
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
    return PretrainResult(
        run / "encoder",
        loss=float(np.mean(tail)) if tail else float("nan"),
        probe_error_cm=probe.position_cm,
        probe_gripper_error=probe.gripper,
        episodes=len(clips.frames),
        episodes_left_out=left_out,
        frames=clips.num_frames,
    )


def under_autocast(
    losses: Iterator[Loss], device: torch.device, precision: Precision
) -> Iterator[Loss]:
    """Yields the losses, each computed under autocast, while gradients are taken outside of it."""
    while True:
        with autocast(device, precision):
            loss = next(losses, None)
        if loss is None:
            return
        yield loss


@torch.no_grad()
def features(
    encoder: VideoEncoder, pictures: UInt8[Tensor, "n height width 3"], at_once: int = 64
) -> Float[Tensor, "n tokens dim"]:
    """Returns the tokens of single pictures, normed as a world model norms them."""
    return torch.cat([encode_frames(encoder, part) for part in pictures.split(at_once)])


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
