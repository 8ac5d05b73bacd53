"""Pretrains the encoder by masked latent prediction (V-JEPA 2 with the V-JEPA 2.1 dense loss)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.data.sampling import rows_at_rate
from worldmodel.data.source import Source
from worldmodel.data.windows import WindowIndex, split_episodes
from worldmodel.encoder import VideoEncoder
from worldmodel.images import Crop, fit_frames
from worldmodel.jepa import normalise_rgb
from worldmodel.losses import masked_loss, target_features
from worldmodel.mask_predictor import MaskPredictor
from worldmodel.masking import LONG_RANGE, SHORT_RANGE, sample_masks
from worldmodel.probes import fit_linear_probe
from worldmodel.training import (
    MetricsLog,
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


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run ends with.

    Attributes:
        encoder: Folder of the encoder checkpoint (the EMA weights).
        loss: Mean loss over the last tenth of the run.
        probe_error_cm: Mean hand-position error of a linear probe on held-out episodes.
    """

    encoder: Path
    loss: float
    probe_error_cm: float


@dataclass(frozen=True)
class View:
    """What an encoder is shown of recordings.

    Attributes:
        source: Recordings of any format.
        camera: Camera whose frames are used.
        model_hz: Rate of the rows [Hz]; None keeps every row.
        image_size: Height and width that frames are brought to; None keeps square frames.
        crop: How, see `worldmodel.images`.
    """

    source: Source
    camera: str
    model_hz: float | None = None
    image_size: int | None = None
    crop: Crop = "none"

    def read(self, episode_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Returns frames (n, size, size, 3), positions (n, 3) [m] and times (n,) [s], and the rate.

        Raises:
            ValueError: The camera is missing, the rate does not fit, or frames have another size.
        """
        episode = self.source.read(episode_id)
        if self.camera not in episode.frames:
            raise ValueError(
                f"episode {episode_id} of {self.source.path} has no camera '{self.camera}'; it has "
                f"{', '.join(episode.frames)}"
            )
        rows = rows_at_rate(episode.timestamps, self.model_hz, usable=episode.usable)
        frames = episode.frames[self.camera][rows]
        frames = fit_frames(frames, self.image_size or frames.shape[1], self.crop)
        hz = self.model_hz or episode.metadata.control_hz
        return frames, episode.proprio[rows, :3], episode.timestamps[rows], hz


class Clips:
    """The frames of one camera in memory, and clips drawn from them."""

    def __init__(self, view: View, ids: list[int], *, clip_frames: int):
        self.clip_frames = clip_frames
        read = [view.read(i) for i in tqdm(ids, desc="reading frames", unit="episode")]
        self.frames = [frames for frames, _, _, _ in read]
        self.windows = WindowIndex([times for _, _, times, _ in read], 1 / read[0][3], clip_frames)

    def sample(self, rng: np.random.Generator, n: int) -> UInt8[Tensor, "n frames height width 3"]:
        """Returns n random clips; a clip of one frame is that frame, to be doubled."""
        episodes, frames = self.windows.sample(rng, n)
        clips = [self.frames[e][f] for e, f in zip(episodes, frames, strict=True)]
        return torch.from_numpy(np.stack(clips))


def pretrain(
    *,
    build_encoder: Callable[[], VideoEncoder],
    source: Source,
    run: Path,
    camera: str,
    clip_frames: int,
    levels: list[int],
    predictor_dim: int,
    predictor_depth: int,
    predictor_heads: int,
    context_loss_weight: float,
    ema: tuple[float, float],
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
) -> PretrainResult:
    """Trains an encoder on the frames of recordings and writes it to `run/encoder`.

    A run folder that already holds a state goes on from it; the loss curve is the same as if it
    had never stopped.

    Args:
        build_encoder: Makes the encoder; it is called with torch seeded by `seed`.
        source: Recordings of any format.
        run: Folder for state, metrics, curves and the encoder.
        camera: Camera whose frames are used.
        clip_frames: Frames of a clip; 1 doubles a single frame, as the world model does.
        levels: Encoder blocks whose outputs are context and target.
        predictor_dim: Width of the mask predictor.
        predictor_depth: Its depth.
        predictor_heads: Its attention heads.
        context_loss_weight: Weight of the loss at visible tokens.
        ema: Momentum of the target encoder at the first and at the last step.
        schedule: Learning rate and number of steps.
        batch_size: Clips a step.
        weight_decay: AdamW weight decay.
        validation_fraction: Share of episodes kept for the probe.
        seed: Seed of initialisation, batches and masks.
        device: "auto", "cpu" or "cuda".
        log_every: Steps between metric lines.
        save_every: Steps between saved states.
        image_size: Height and width that frames are brought to; None keeps square frames.
        crop: How, see `worldmodel.images`.
        model_hz: Model steps per second; None takes every row of the recordings at their own rate.
    """
    where = select_device(device)
    view = View(source, camera, model_hz=model_hz, image_size=image_size, crop=crop)
    train_ids, validation_ids = split_episodes(source.ids(), validation_fraction, seed=0)
    clips = Clips(view, train_ids, clip_frames=clip_frames)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder()
        predictor = MaskPredictor(
            context_dim=encoder.embed_dim * len(levels),
            target_dim=encoder.embed_dim * len(levels),
            embed_dim=predictor_dim,
            depth=predictor_depth,
            num_heads=predictor_heads,
        )
    encoder, predictor = encoder.to(where), predictor.to(where)
    target = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = make_optimizer([encoder, predictor], weight_decay=weight_decay)

    state = load_state(run)
    first = 1
    if state is not None:
        first = state["step"] + 1
        encoder.load_state_dict(state["encoder"])
        predictor.load_state_dict(state["predictor"])
        target.load_state_dict(state["target"])
        optimizer.load_state_dict(state["optimizer"])
    log = MetricsLog(run, resume_step=first - 1)

    bar = tqdm(
        range(first, schedule.steps + 1), initial=first - 1, total=schedule.steps, desc="pretrain"
    )
    for step in bar:
        rng, generator = step_generators(seed, step)
        set_learning_rate(optimizer, schedule(step))
        clip = to_clip(clips.sample(rng, batch_size).to(where), encoder.tubelet_size)
        grid = encoder.grid(clip.shape[2], clip.shape[3], clip.shape[4])
        optimizer.zero_grad(set_to_none=True)
        metrics = {"learning_rate": schedule(step), "loss_hidden": 0.0, "loss_context": 0.0}
        with autocast(where):
            targets = target_features(target, clip, levels)
            for spec in (SHORT_RANGE, LONG_RANGE):
                kept, hidden = sample_masks(
                    spec, batch_size=batch_size, grid=grid, generator=generator
                )
                loss = masked_loss(
                    encoder,
                    predictor,
                    clip,
                    targets,
                    kept=kept.to(where),
                    hidden=hidden.to(where),
                    levels=levels,
                )
                ((loss.hidden + context_loss_weight * loss.context) / 2).backward()
                metrics["loss_hidden"] += loss.hidden.item() / 2
                metrics["loss_context"] += loss.context.item() / 2
        optimizer.step()
        update_ema(target, encoder, ema[0] + (ema[1] - ema[0]) * step / schedule.steps)
        # Spread of a token's features over the batch: near zero means the encoder collapsed.
        metrics["target_std"] = float(targets.float().std(dim=0).mean())
        if step % log_every == 0 or step == schedule.steps:
            log.write(step, metrics)
            bar.set_postfix(
                loss=f"{metrics['loss_hidden']:.3f}", std=f"{metrics['target_std']:.2f}"
            )
        if step % save_every == 0 or step == schedule.steps:
            save_state(
                run,
                {
                    "step": step,
                    "encoder": encoder.state_dict(),
                    "predictor": predictor.state_dict(),
                    "target": target.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
            )

    lines = log.read()
    plot_metrics(
        lines,
        run / "curves.png",
        groups={
            "loss": ["loss_hidden", "loss_context"],
            "spread of targets": ["target_std"],
            "learning rate": ["learning_rate"],
        },
        title="masked latent prediction",
    )
    probe = probe_error_cm(target, view, train_ids, validation_ids, device=where)
    tail = [line["loss_hidden"] for line in lines[-max(1, len(lines) // 10) :]]
    height = clips.frames[0].shape[1]
    checkpoint.save_encoder(
        target,
        run / "encoder",
        image_size=height,
        provenance={
            "trained_by": "worldmodel pretrain",
            "episodes": len(train_ids),
            "frames": sum(len(frames) for frames in clips.frames),
            "steps": schedule.steps,
            "batch_size": batch_size,
            "seed": seed,
            "device": where.type,
            "probe_error_cm": probe,
        },
    )
    return PretrainResult(run / "encoder", float(np.mean(tail)), probe)


def to_clip(
    frames: UInt8[Tensor, "batch frames height width 3"], tubelet_size: int
) -> Float[Tensor, "batch 3 clip_frames height width"]:
    """Returns normalised clips, channels before time; a single frame fills one tubelet."""
    clip = normalise_rgb(frames).transpose(1, 2)
    return clip.expand(-1, -1, tubelet_size, -1, -1) if clip.shape[2] == 1 else clip


@torch.no_grad()
def update_ema(target: torch.nn.Module, online: torch.nn.Module, momentum: float) -> None:
    """Moves every parameter of `target` towards `online`."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


@torch.inference_mode()
def probe_error_cm(
    encoder: VideoEncoder,
    view: View,
    train_ids: list[int],
    validation_ids: list[int],
    *,
    device: torch.device,
    max_episodes: int = 100,
) -> float:
    """Returns how far [cm] a linear probe of the tokens puts the hand on held-out episodes."""

    def features(ids: list[int]) -> tuple[Tensor, Tensor]:
        tokens, positions = [], []
        for i in ids[:max_episodes]:
            pictures, places, _, _ = view.read(i)
            frames = torch.from_numpy(pictures[::2]).to(device)
            tokens.append(encoder(to_clip(frames[:, None], encoder.tubelet_size)).flatten(1).cpu())
            positions.append(torch.from_numpy(places[::2]))
        return torch.cat(tokens), torch.cat(positions)

    if not validation_ids:
        return float("nan")
    probe = fit_linear_probe(*features(train_ids))
    tokens, positions = features(validation_ids)
    return 100 * float((probe(tokens) - positions).norm(dim=-1).mean())
