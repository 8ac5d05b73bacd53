"""Pretrains the encoder: masked latent prediction, state reading, or both.

Masked latent prediction is that of V-JEPA 2 with the dense loss of V-JEPA 2.1. State reading asks
for position, rotation and gripper of the end-effector in a frame, which recordings hold anyway.
"""

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
from worldmodel.jepa import encode_frames, normalise_rgb
from worldmodel.losses import masked_loss, state_loss, target_features
from worldmodel.mask_predictor import MaskPredictor
from worldmodel.masking import LONG_RANGE, SHORT_RANGE, sample_masks
from worldmodel.pose import GRIPPER, POSITION
from worldmodel.probes import fit_linear_probe
from worldmodel.state_head import StateHead
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


@dataclass(frozen=True)
class ProbeErrors:
    """How well linear probes of the latents know the arm, on held-out episodes.

    Attributes:
        position_cm: Mean distance of the hand from where the probe puts it.
        gripper: Mean absolute error of the gripper's opening, of 1.
    """

    position_cm: float
    gripper: float


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run ends with.

    Attributes:
        encoder: Folder of the encoder checkpoint (the EMA weights).
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
        """Returns frames (n, size, size, 3), proprio (n, 7) and times (n,) [s], and the rate.

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
        return frames, episode.proprio[rows], episode.timestamps[rows], hz


class Clips:
    """Frames of one camera in memory with their proprio, and what is drawn from them.

    Args:
        view: What is read.
        ids: Episodes to read.
        clip_frames: Frames of a clip.
        frames_in_memory: About how many frames may be kept: episodes are taken in random order
            until there are so many. None keeps all.
        seed: Of that order.

    Attributes:
        frames: Frames (n, size, size, 3) of each episode kept.
        proprio: Proprio (n, 7) of each.
    """

    def __init__(
        self,
        view: View,
        ids: list[int],
        *,
        clip_frames: int,
        frames_in_memory: int | None = None,
        seed: int = 0,
    ):
        self.frames: list[np.ndarray] = []
        self.proprio: list[np.ndarray] = []
        times, kept, hz = [], 0, 1.0
        if frames_in_memory is not None:
            ids = np.random.default_rng((seed, 0)).permutation(ids).tolist()  # steps begin at 1
        for i in tqdm(ids, desc="reading frames", unit="episode"):
            frames, proprio, seconds, hz = view.read(i)
            self.frames.append(frames)
            self.proprio.append(proprio)
            times.append(seconds)
            kept += len(frames)
            if frames_in_memory is not None and kept >= frames_in_memory:
                break
        self.windows = WindowIndex(times, 1 / hz, clip_frames)
        self._ends = np.cumsum([len(frames) for frames in self.frames])

    @property
    def num_frames(self) -> int:
        """How many frames are in memory."""
        return int(self._ends[-1])

    def sample(self, rng: np.random.Generator, n: int) -> UInt8[Tensor, "n frames height width 3"]:
        """Returns n random clips; a clip of one frame is that frame, to be doubled."""
        episodes, rows = self.windows.sample(rng, n)
        return torch.from_numpy(_gather(self.frames, episodes, rows))

    def sample_states(
        self, rng: np.random.Generator, n: int
    ) -> tuple[UInt8[Tensor, "n height width 3"], Float[Tensor, "n 7"]]:
        """Returns n random frames, of all in memory, and proprio at them."""
        places = rng.integers(self.num_frames, size=n)
        episodes = np.searchsorted(self._ends, places, side="right")
        rows = places - self._ends[episodes]  # counted from the end of the episode
        frames = _gather(self.frames, episodes, rows)
        return torch.from_numpy(frames), torch.from_numpy(_gather(self.proprio, episodes, rows))


def _gather(arrays: list[np.ndarray], episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.stack([arrays[e][r] for e, r in zip(episodes, rows, strict=True)])


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
    frames_in_memory: int | None = None,
    masked_weight: float = 1.0,
    state_weight: float = 0.0,
    state_batch_size: int | None = None,
    merge: int = 2,
    precision: Precision = "auto",
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
        frames_in_memory: About how many frames to keep in memory, of randomly chosen episodes (49
            kB each of 128 pixels); None keeps all.
        masked_weight: Weight of masked latent prediction; 0 leaves it out.
        state_weight: Weight of state reading: proprio at a frame, read from its latents by a small
            head that is thrown away; 0 leaves it out.
        state_batch_size: Frames whose state is read, a step; None is as many as clips.
        merge: Side of the square of tokens joined into one before head and probe, as in planning.
        precision: See `worldmodel.training.autocast`.

    Raises:
        ValueError: Steps are to be made, but neither loss has a weight.
    """
    if schedule.steps and not masked_weight and not state_weight:
        raise ValueError(
            "masked_weight and state_weight are both 0, so there is nothing to learn; set one, "
            "or schedule.steps=0 for an encoder with its first weights"
        )
    num_states = batch_size if state_batch_size is None else state_batch_size
    where = select_device(device)
    view = View(source, camera, model_hz=model_hz, image_size=image_size, crop=crop)
    train_ids, validation_ids = split_episodes(source.ids(), validation_fraction, seed=0)
    clips = Clips(
        view,
        train_ids,
        clip_frames=clip_frames,
        frames_in_memory=frames_in_memory,
        seed=seed,
    )
    height = clips.frames[0].shape[1]
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
        head = None
        if state_weight:
            head = StateHead(
                latent_dim=encoder.embed_dim * merge**2,
                num_tokens=(height // encoder.patch_size // merge) ** 2,
            )
            head.set_scales(torch.from_numpy(np.concatenate(clips.proprio)))
            head = head.to(where)
    encoder, predictor = encoder.to(where), predictor.to(where)
    target = copy.deepcopy(encoder).requires_grad_(False)
    trained = [encoder, predictor] if head is None else [encoder, predictor, head]
    optimizer = make_optimizer(trained, weight_decay=weight_decay)

    state = load_state(run)
    first = 1
    if state is not None:
        first = state["step"] + 1
        encoder.load_state_dict(state["encoder"])
        predictor.load_state_dict(state["predictor"])
        target.load_state_dict(state["target"])
        optimizer.load_state_dict(state["optimizer"])
        if head is not None:
            head.load_state_dict(state["state_head"])
    log = MetricsLog(run, resume_step=first - 1)

    bar = tqdm(
        range(first, schedule.steps + 1), initial=first - 1, total=schedule.steps, desc="pretrain"
    )
    for step in bar:
        rng, generator = step_generators(seed, step)
        set_learning_rate(optimizer, schedule(step))
        optimizer.zero_grad(set_to_none=True)
        metrics = {"learning_rate": schedule(step), "loss": 0.0}
        if masked_weight:
            clip = to_clip(clips.sample(rng, batch_size).to(where), encoder.tubelet_size)
            grid = encoder.grid(clip.shape[2], clip.shape[3], clip.shape[4])
            metrics |= {"loss_hidden": 0.0, "loss_context": 0.0}
            with autocast(where, precision):
                targets = target_features(target, clip, levels)
            for spec in (SHORT_RANGE, LONG_RANGE):
                kept, hidden = sample_masks(
                    spec, batch_size=batch_size, grid=grid, generator=generator
                )
                with autocast(where, precision):
                    masked = masked_loss(
                        encoder,
                        predictor,
                        clip,
                        targets,
                        kept=kept.to(where),
                        hidden=hidden.to(where),
                        levels=levels,
                    )
                loss = masked_weight * (masked.hidden + context_loss_weight * masked.context) / 2
                loss.backward()
                metrics["loss"] += loss.item()
                metrics["loss_hidden"] += masked.hidden.item() / 2
                metrics["loss_context"] += masked.context.item() / 2
            # Spread of a token's features over the batch: near zero means the encoder collapsed.
            metrics["target_std"] = float(targets.std(dim=0).mean())
        if head is not None:
            frames, proprio = (x.to(where) for x in clips.sample_states(rng, num_states))
            with autocast(where, precision):
                read = state_loss(head, encode_frames(encoder, frames, merge), proprio)
            loss = state_weight * read.total
            loss.backward()
            metrics["loss"] += loss.item()
            metrics |= {
                "loss_position": read.position.item(),
                "loss_rotation": read.rotation.item(),
                "loss_gripper": read.gripper.item(),
            }
        optimizer.step()
        update_ema(target, encoder, ema[0] + (ema[1] - ema[0]) * step / schedule.steps)
        if step % log_every == 0 or step == schedule.steps:
            log.write(step, metrics)
            bar.set_postfix(loss=f"{metrics['loss']:.3f}")
        if step % save_every == 0 or step == schedule.steps:
            save_state(
                run,
                {
                    "step": step,
                    "encoder": encoder.state_dict(),
                    "predictor": predictor.state_dict(),
                    "target": target.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "state_head": head.state_dict() if head is not None else {},
                },
            )

    lines = log.read()
    plot_metrics(
        lines,
        run / "curves.png",
        groups={
            "loss": ["loss_hidden", "loss_context"],
            "state read": ["loss_position", "loss_rotation", "loss_gripper"],
            "spread of targets": ["target_std"],
            "learning rate": ["learning_rate"],
        },
        title="pretraining",
    )
    probe = probe_errors(target, view, train_ids, validation_ids, merge=merge, device=where)
    tail = [line["loss"] for line in lines[-max(1, len(lines) // 10) :]]
    checkpoint.save_encoder(
        target,
        run / "encoder",
        image_size=height,
        provenance={
            "trained_by": "worldmodel pretrain",
            "episodes": len(clips.frames),
            "episodes_left_out": len(train_ids) - len(clips.frames),
            "frames": clips.num_frames,
            "masked_weight": masked_weight,
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
        episodes_left_out=len(train_ids) - len(clips.frames),
        frames=clips.num_frames,
    )


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
def probe_errors(
    encoder: VideoEncoder,
    view: View,
    train_ids: list[int],
    validation_ids: list[int],
    *,
    merge: int,
    device: torch.device,
    max_episodes: int = 100,
) -> ProbeErrors:
    """Returns how well linear probes of the latents know the arm on held-out episodes.

    The latents are those a planner sees. Without held-out episodes the errors are NaN.
    """

    def features(ids: list[int]) -> tuple[Tensor, Tensor]:
        latents, states = [], []
        for i in ids[:max_episodes]:
            frames, proprio, _, _ = view.read(i)
            seen = encode_frames(encoder, torch.from_numpy(frames[::2]).to(device), merge)
            latents.append(seen.flatten(1).cpu())
            states.append(torch.from_numpy(proprio[::2]))
        return torch.cat(latents), torch.cat(states)

    if not validation_ids:
        return ProbeErrors(float("nan"), float("nan"))
    probe = fit_linear_probe(*features(train_ids))
    latents, states = features(validation_ids)
    error = probe(latents) - states
    return ProbeErrors(
        position_cm=100 * float(error[:, POSITION].norm(dim=-1).mean()),
        gripper=float(error[:, GRIPPER].abs().mean()),
    )
