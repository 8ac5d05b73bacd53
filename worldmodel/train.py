"""Post-trains the action-conditioned predictor on the cached latents of a frozen encoder.

A state head can be trained beside it, on the frames of the same windows: what it reads from a goal
proposes where to go. They share nothing but the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.data.latents import LatentCache
from worldmodel.data.windows import WindowIndex, split_episodes
from worldmodel.encode import LatentJob
from worldmodel.jepa import JEPA
from worldmodel.losses import DISTANCES, Distance, PredictionLoss, prediction_loss, state_loss
from worldmodel.pose import GRIPPER, POSITION, ROTATION, action_between, euler_to_matrix
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.state_head import MIN_POSE_STD, StateHead
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

STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}
MAX_GAP_STEPS = 1.75  # rows further apart than so many steps have lost one between them
MIN_LATENT_STD = 0.02  # below this a latent channel is constant and must not be blown up
VALIDATION_WINDOWS = 512
MIN_ACTION_STD = 0.01  # [m, rad, gripper]; keeps an axis that never moves from exploding
GRIPPER_CLOSED = 0.2  # of 1; a gripper further closed than this counts as closed


@dataclass(frozen=True)
class StateError:
    """How far the states read from held-out frames are off, on average.

    Attributes:
        x_cm: Of the position, along x.
        y_cm: Along y.
        z_cm: Along z.
        rotation_rad: Angle between the rotation read and the true one.
        gripper: Of the gripper, of 1.
        gripper_accuracy: Share of frames in which it is rightly read as open or closed.
    """

    x_cm: float
    y_cm: float
    z_cm: float
    rotation_rad: float
    gripper: float
    gripper_accuracy: float


@dataclass(frozen=True)
class TrainResult:
    """What a training run ends with.

    Attributes:
        checkpoint: Folder of the world model.
        validation_loss: Mean distance of one-step predictions on held-out episodes.
        copy_loss: That of predicting no change, on the same windows.
        shuffled_loss: That with the actions of other windows; near `validation_loss` means that the
            model ignores the action.
        state_error: How far the states read from held-out frames are off; None without a state
            head.
    """

    checkpoint: Path
    validation_loss: float
    copy_loss: float
    shuffled_loss: float
    state_error: StateError | None


@dataclass(frozen=True)
class Batch:
    """Windows ready for the loss: latents (B, F, N, D), proprio (B, F, 7), actions (B, F-1, 7)."""

    latents: Tensor
    proprio: Tensor
    actions: Tensor


class Windows:
    """Random windows of cached latents at several time scales."""

    def __init__(
        self, cache: LatentCache, ids: Sequence[int], *, dt: float, frames: int, strides: list[int]
    ):
        self.cache = cache
        self.ids = np.asarray(ids, np.int64)
        times = [cache.timestamps(i) for i in self.ids]
        self.index = WindowIndex(times, dt, frames, strides=strides, max_gap=MAX_GAP_STEPS * dt)

    def sample(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Returns raw latents (n, F, N, D) and proprio (n, F, 7) of n windows."""
        episodes, frames = self.index.sample(rng, n)
        latents = self.cache.gather(self.ids[episodes], frames)
        proprio = self.cache.gather_proprio(self.ids[episodes], frames)
        return torch.from_numpy(latents), torch.from_numpy(proprio)


def train(
    *,
    build_predictor: Callable[..., ActionConditionedPredictor | AdaLNPredictor],
    job: LatentJob,
    latents: LatentCache,
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
    dtype: Literal["float32", "float16"] = "float32",
    distance: Distance = "l1",
    state_weight: float = 1.0,
    precision: Precision = "auto",
) -> TrainResult:
    """Trains a predictor, and a state head beside it, and writes them to `run/model`.

    A run folder that already holds a state goes on from it; the loss curve is the same as if it
    had never stopped.

    Args:
        build_predictor: Makes the predictor, given `latent_dim` and `grid_size`; it is called with
            torch seeded by `seed`.
        job: What the latents are of.
        latents: The finished cache of this job.
        encoder_provenance: Where the encoder comes from, for the checkpoint.
        run: Folder for state, metrics, curves and the model.
        window: Frames of a training window.
        strides: Distances of a window's frames in model steps. With several, one action can be
            a short or a long move, and a plan may look far ahead in one step. One named k times
            is drawn k times as often.
        rollout_steps: Steps of the rollout loss.
        schedule: Learning rate and number of steps.
        batch_size: Windows a step.
        weight_decay: AdamW weight decay.
        validation_fraction: Share of episodes held out.
        seed: Seed of initialisation and batches.
        device: "auto", "cpu" or "cuda".
        log_every: Steps between metric lines.
        validate_every: Steps between validations.
        save_every: Steps between saved states.
        dtype: Precision of the stored model.
        distance: Of predictions from what was seen, see `worldmodel.losses.prediction_loss`.
        state_weight: Weight of the loss of the state head, which learns nothing from the predictor,
            nor the predictor from it; 0 trains none.
        precision: See `worldmodel.training.autocast`.
    """
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(STORED_DTYPES)}, got {dtype!r}")
    where = select_device(device)
    frozen, image_size = job.encode.encoder, job.encode.image_size
    merge, pool = job.encode.merge, job.recipe.pool
    train_ids, validation_ids = split_episodes(latents.ids.tolist(), validation_fraction, seed=0)
    if not validation_ids:
        raise ValueError(
            f"validation_fraction={validation_fraction} leaves no episode of {len(train_ids)} to "
            "validate on; raise it or collect more episodes"
        )
    dt = 1 / latents.hz
    windows = Windows(latents, train_ids, dt=dt, frames=window, strides=strides)
    held_out = Windows(latents, validation_ids, dt=dt, frames=window, strides=strides)

    side = image_size // frozen.patch_size // merge // pool
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        latent_dim = frozen.embed_dim * merge**2
        predictor = build_predictor(latent_dim=latent_dim, grid_size=(side, side))
        state_head = None
        if state_weight:
            state_head = StateHead(latent_dim=latent_dim, num_tokens=side**2)
    samples = windows.sample(np.random.default_rng(seed), 4096)[1]
    world = JEPA(
        encoder=frozen,
        predictor=predictor,
        image_size=image_size,
        merge=merge,
        pool=pool,
        standardise=True,
        control_hz=latents.hz,
        crop=job.encode.crop,
        action_limit=action_between(samples[:, :-1], samples[:, 1:])
        .abs()
        .flatten(0, 1)
        .quantile(0.99, dim=0)
        .tolist(),
        state_head=state_head,
    )
    set_input_scales(world, latents, train_ids, samples)
    world = world.to(where)
    world.encoder.requires_grad_(False)
    trained = [world.predictor] if state_head is None else [world.predictor, state_head]
    optimizer = make_optimizer(trained, weight_decay=weight_decay)

    def batch_of(raw: Tensor, proprio: Tensor) -> Batch:
        proprio = proprio.to(where)
        z = (raw.to(where).float() - world.latent_mean) / world.latent_std
        return Batch(z, proprio, action_between(proprio[:, :-1], proprio[:, 1:]))

    def loss_of(batch: Batch) -> PredictionLoss:
        with autocast(where, precision):
            return prediction_loss(
                world,
                batch.latents,
                batch.proprio,
                batch.actions,
                rollout_steps=rollout_steps,
                distance=distance,
            )

    first = 1
    state = load_state(run)
    if state is not None:
        first = state["step"] + 1
        world.predictor.load_state_dict(state["predictor"])
        optimizer.load_state_dict(state["optimizer"])
        if state_head is not None:
            state_head.load_state_dict(state["state_head"])
    log = MetricsLog(run, resume_step=first - 1)
    validation = batch_of(*held_out.sample(np.random.default_rng(seed), VALIDATION_WINDOWS))

    @torch.no_grad()
    def error_of_states() -> StateError | None:
        if state_head is None:
            return None
        with autocast(where, precision):
            read = state_head(validation.latents.flatten(0, 1))
        return state_error(read, validation.proprio.flatten(0, 1))

    bar = tqdm(
        range(first, schedule.steps + 1), initial=first - 1, total=schedule.steps, desc="train"
    )
    for step in bar:
        rng, _ = step_generators(seed, step)
        set_learning_rate(optimizer, schedule(step))
        batch = batch_of(*windows.sample(rng, batch_size))
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        metrics = {}
        if state_head is not None:
            with autocast(where, precision):
                frames, states = batch.latents.flatten(0, 1), batch.proprio.flatten(0, 1)
                read = state_loss(state_head, frames, states).total
            (state_weight * read).backward()
            metrics["loss_state"] = read.item()
        for module in trained:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        last = step == schedule.steps
        validates = step % validate_every == 0 or last
        if step % log_every == 0 or validates:
            metrics |= {
                "loss_teacher_forcing": loss.teacher_forcing.item(),
                "loss_rollout": loss.rollout.item(),
                "learning_rate": schedule(step),
            }
            if validates:
                metrics |= validate(world, validation, loss_of, distance=distance)
                if (error := error_of_states()) is not None:
                    metrics |= {f"state_{name}": value for name, value in asdict(error).items()}
            log.write(step, metrics)
            bar.set_postfix(loss=f"{metrics['loss_teacher_forcing']:.3f}")
        if step % save_every == 0 or last:
            save_state(
                run,
                {
                    "step": step,
                    "predictor": world.predictor.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "state_head": state_head.state_dict() if state_head is not None else {},
                },
            )

    plot_metrics(
        log.read(),
        run / "curves.png",
        groups={
            "training loss": ["loss_teacher_forcing", "loss_rollout"],
            "held-out loss": ["validation_loss", "copy_loss", "shuffled_loss"],
            "state read": ["loss_state", *(f"state_{f.name}" for f in fields(StateError))],
            "learning rate": ["learning_rate"],
        },
        title="action-conditioned prediction",
    )
    final = validate(world, validation, loss_of, distance=distance)
    error = error_of_states()
    checkpoint.save(
        world,
        run / "model",
        provenance={
            "trained_by": "worldmodel train",
            "encoder": encoder_provenance,
            "recordings": job.source.path.name,
            "format": job.source.format,
            "episodes": len(train_ids),
            "camera": job.recipe.camera,
            "crop": job.encode.crop,
            "quarantined": len(latents.quarantined),
            "window": window,
            "strides": list(strides),
            "steps": schedule.steps,
            "batch_size": batch_size,
            "seed": seed,
            "device": where.type,
            "precision": precision,
            "distance": distance,
            "state_weight": state_weight,
            "state_error": asdict(error) if error is not None else None,
            **final,
        },
        dtype=STORED_DTYPES[dtype],
    )
    return TrainResult(
        run / "model",
        final["validation_loss"],
        final["copy_loss"],
        final["shuffled_loss"],
        error,
    )


@torch.no_grad()
def set_input_scales(
    world: JEPA, cache: LatentCache, ids: Sequence[int], proprio: Float[Tensor, "n frames 7"]
) -> None:
    """Sets latent statistics over the episodes `ids`, and pose and action scales from windows."""
    moments = cache.moments(ids)
    world.latent_mean.copy_(torch.as_tensor(moments.mean))
    world.latent_std.copy_(torch.as_tensor(moments.std).clamp_min(MIN_LATENT_STD))

    predictor = world.predictor
    features = predictor.pose_vector(proprio).flatten(0, 1)
    predictor.proprio_mean.copy_(features.mean(0))
    predictor.proprio_std.copy_(features.std(0).clamp_min(MIN_POSE_STD))
    actions = action_between(proprio[:, :-1], proprio[:, 1:]).flatten(0, 1)
    predictor.action_std.copy_(actions.std(0).clamp_min(MIN_ACTION_STD))
    if world.state_head is not None:
        world.state_head.set_scales(proprio.flatten(0, 1))


@torch.no_grad()
def validate(
    world: JEPA,
    batch: Batch,
    loss_of: Callable[[Batch], PredictionLoss],
    *,
    distance: Distance,
) -> dict[str, float]:
    """Returns held-out losses beside what copying and what wrong actions would give."""
    world.predictor.eval()
    loss = loss_of(batch)
    shuffled = loss_of(Batch(batch.latents, batch.proprio, batch.actions.roll(1, dims=0)))
    copy = DISTANCES[distance](batch.latents[:, 1:], batch.latents[:, :-1])
    world.predictor.train()
    return {
        "validation_loss": float(loss.teacher_forcing),
        "validation_rollout_loss": float(loss.rollout),
        "copy_loss": float(copy),
        "shuffled_loss": float(shuffled.teacher_forcing),
    }


def state_error(read: Float[Tensor, "n 7"], true: Float[Tensor, "n 7"]) -> StateError:
    """Returns how far states that were read are off."""
    error = (read - true).abs().mean(0)
    x_cm, y_cm, z_cm = (100 * error[POSITION]).tolist()
    turned = euler_to_matrix(read[:, ROTATION]) - euler_to_matrix(true[:, ROTATION])
    chord = turned.flatten(1).norm(dim=1) / 8**0.5  # the sine of half the angle
    closed = read[:, GRIPPER] > GRIPPER_CLOSED, true[:, GRIPPER] > GRIPPER_CLOSED
    return StateError(
        x_cm=x_cm,
        y_cm=y_cm,
        z_cm=z_cm,
        rotation_rad=float(2 * chord.clamp(max=1).arcsin().mean()),
        gripper=float(error[GRIPPER]),
        gripper_accuracy=float((closed[0] == closed[1]).float().mean()),
    )
