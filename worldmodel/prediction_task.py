"""What post-training trains: a predictor on windows of cached latents, and a state head beside it.

They share nothing but the latents: neither learns from the other's loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.data.latent_views import LatentViews
from worldmodel.data.latents import LatentCache
from worldmodel.data.windows import WindowIndex
from worldmodel.embodied import Embodied
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.jepa import JEPA
from worldmodel.joined_views import joined
from worldmodel.losses import DISTANCES, Distance, joint_loss, prediction_loss, state_loss
from worldmodel.pose import action_between
from worldmodel.state_errors import joint_error, state_error
from worldmodel.state_head import StateHead
from worldmodel.task import Batch, Draw, Evaluate, Task

MAX_GAP_STEPS = 1.75  # rows further apart than so many steps have lost one between them


class Windows:
    """Windows of cached latents at several time scales.

    Args:
        cache: The latents.
        ids: Episodes.
        dt: Model step [s].
        frames: Of a window.
        strides: Distances of its frames in model steps.
        joints: What an arm with joints of its own says of every row, (rows, P) by episode; then
            these are proprio and their changes actions. None speaks in end-effector poses.
    """

    def __init__(
        self,
        cache: LatentCache | LatentViews,
        ids: Sequence[int],
        *,
        dt: float,
        frames: int,
        strides: list[int],
        joints: Mapping[int, np.ndarray] | None = None,
    ):
        self.cache, self.joints = cache, joints
        self.ids = np.asarray(ids, np.int64)
        times = [cache.timestamps(i) for i in self.ids]
        self.index = WindowIndex(times, dt, frames, strides=strides, max_gap=MAX_GAP_STEPS * dt)

    def draw(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """Returns which n windows: ids of their episodes (n,) and their rows there (n, F)."""
        episodes, frames = self.index.sample(rng, n)
        return {"episodes": self.ids[episodes], "frames": frames}

    def load(self, draw: Draw) -> Batch:
        """Returns raw latents (n, F, N, D), proprio (n, F, P) and actions (n, F - 1, A)."""
        latents = torch.from_numpy(self.cache.gather(draw["episodes"], draw["frames"]))
        proprio = self.proprio(draw)
        return {"latents": latents, "proprio": proprio, "actions": self.actions(proprio)}

    def proprio(self, draw: Draw) -> Float[Tensor, "n frames proprio"]:
        """Returns the proprio of windows alone."""
        if self.joints is None:
            return self.poses(draw)
        windows = zip(draw["episodes"], draw["frames"], strict=True)
        return torch.from_numpy(np.stack([self.joints[int(i)][rows] for i, rows in windows]))

    def poses(self, draw: Draw) -> Float[Tensor, "n frames 7"]:
        """Returns the end-effector poses of windows, whatever they speak in."""
        return torch.from_numpy(self.cache.gather_proprio(draw["episodes"], draw["frames"]))

    def actions(
        self, proprio: Float[Tensor, "n frames proprio"]
    ) -> Float[Tensor, "n steps action"]:
        """Returns what lies between the frames of windows."""
        if self.joints is None:
            return action_between(proprio[:, :-1], proprio[:, 1:])
        return proprio.diff(dim=1)


class PredictorLosses(nn.Module):
    """The losses of a world model's predictor, and of its head that reads states if it has one.

    Args:
        world: The model; its encoder is not looked at and is no part of this module.
        rollout_steps: Steps of the rollout loss.
        distance: Of predictions from what was seen, see `worldmodel.losses.prediction_loss`.
        state_weight: Weight of the head's loss; 0 leaves it out.
        legacy_rollout: The rollout loss with the first release's mistake, see there.
        embodiment: Whose proprio and actions the batches have.
    """

    def __init__(
        self,
        world: JEPA,
        *,
        rollout_steps: int,
        distance: Distance,
        state_weight: float,
        legacy_rollout: bool = False,
        embodiment: str = END_EFFECTOR,
    ):
        super().__init__()
        self.predictor, seen = world.predictor, joined(world)
        heads = {END_EFFECTOR: world.state_head, **world.joint_heads}
        self.state_head = heads.get(embodiment) if state_weight else None
        # In tuples, so that the frozen encoder does not become a part.
        self._spoken = (seen if embodiment == END_EFFECTOR else Embodied(seen, embodiment),)
        self._world = (world,)
        self.rollout_steps, self.legacy_rollout = rollout_steps, legacy_rollout
        self.distance: Distance = distance
        self.state_weight = state_weight

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of raw latents (B, F, N, D), proprio (B, F, P), actions (B, F-1, A).

        In evaluation mode also "copy", the distance of no change, and "states" (B * F, P), read.
        """
        (world,) = self._world
        latents = (batch["latents"].float() - world.latent_mean) / world.latent_std
        loss = prediction_loss(
            self._spoken[0],
            latents,
            batch["proprio"],
            batch["actions"],
            rollout_steps=self.rollout_steps,
            distance=self.distance,
            legacy_rollout=self.legacy_rollout,
        )
        losses = {
            "loss": loss.total,
            "loss_teacher_forcing": loss.teacher_forcing,
            "loss_rollout": loss.rollout,
        }
        if not self.training:
            losses["copy"] = DISTANCES[self.distance](latents[:, 1:], latents[:, :-1])
        if self.state_head is not None:
            frames, states = latents.flatten(0, 1), batch["proprio"].flatten(0, 1)
            if not self.training:
                losses["states"] = self.state_head(frames)
            if isinstance(self.state_head, StateHead):
                losses["loss_state"] = state_loss(self.state_head, frames, states).total
            else:
                losses["loss_state"] = joint_loss(self.state_head, frames, states)
            losses["loss"] = losses["loss"] + self.state_weight * losses["loss_state"]
        return losses


class PredictionTask(Task):
    """Trains the predictor of a world model on windows of cached latents.

    Args:
        losses: The losses.
        windows: Windows to learn from.
        held_out: Windows to validate on.
        validation_windows: How many of those.
        at_once: How many are computed at once.
        seed: Of their choice.
        measures: Costlier numbers of the module, taken now and then.
    """

    metric = "validation_loss"

    def __init__(
        self,
        losses: PredictorLosses,
        windows: Windows,
        held_out: Windows,
        *,
        validation_windows: int,
        at_once: int,
        seed: int,
        measures: Callable[[], dict[str, float]] = dict,
    ):
        self.module, self._losses = losses, losses
        self._measures = measures
        self.windows, self.held_out = windows, held_out
        self.at_once = at_once
        self._validation = held_out.draw(np.random.default_rng(seed), validation_windows)

    def draw(self, n: int, rng: np.random.Generator, generator: torch.Generator) -> Draw:
        """Returns n windows."""
        return self.windows.draw(rng, n)

    def load(self, draw: Draw) -> Batch:
        """Returns their latents, proprio and actions."""
        return self.windows.load(draw)

    @property
    def clip_groups(self) -> Sequence[nn.Module]:
        """Predictor and state head, so that neither feels the other."""
        predictor, head = self._losses.predictor, self._losses.state_head
        return [predictor] if head is None else [predictor, head]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The predictor's transformer blocks."""
        return list(self._losses.predictor.predictor_blocks)

    def name_rows(self, draw: Draw) -> list[str]:
        """Returns the episodes of windows."""
        return [
            f"episode {e} rows {rows[0]} to {rows[-1]}"
            for e, rows in zip(draw["episodes"], draw["frames"], strict=True)
        ]

    def validate(self, evaluate: Evaluate) -> dict[str, float]:
        """Returns held-out losses beside what copying and what wrong actions would give."""
        return validate(evaluate, self.held_out, self._validation, at_once=self.at_once)

    def measure(self) -> dict[str, float]:
        """Returns the costlier numbers."""
        return self._measures()


def validate(
    evaluate: Evaluate, held_out: Windows, draw: Draw, *, at_once: int
) -> dict[str, float]:
    """Returns losses of a model on windows, beside what copying and wrong actions would give.

    Args:
        evaluate: `PredictorLosses` in evaluation mode, without gradients.
        held_out: Where the windows are.
        draw: Which windows.
        at_once: How many are computed at once.

    Returns:
        "validation_loss" and "validation_rollout_loss"; "copy_loss", of no change; "shuffled_loss",
        with the actions of other windows; "identity_ratio", the first over that of no change, so 1
        says that nothing was learned; and "state_..." with a head, see `worldmodel.state_errors`.
    """
    proprio = held_out.proprio(draw)
    wrong = held_out.actions(proprio).roll(1, dims=0)
    sums: dict[str, float] = {}
    states: list[Tensor] = []
    for first in range(0, len(proprio), at_once):
        rows = slice(first, first + at_once)
        batch = held_out.load({name: values[rows] for name, values in draw.items()})
        seen, shuffled = evaluate(batch), evaluate({**batch, "actions": wrong[rows]})
        if "states" in seen:
            states.append(seen["states"].cpu())
        for name, value in {
            "validation_loss": seen["loss_teacher_forcing"],
            "validation_rollout_loss": seen["loss_rollout"],
            "copy_loss": seen["copy"],
            "shuffled_loss": shuffled["loss_teacher_forcing"],
        }.items():
            share = len(batch["proprio"]) / len(proprio)
            sums[name] = sums.get(name, 0.0) + share * float(value)
    metrics = {**sums, "identity_ratio": sums["validation_loss"] / sums["copy_loss"]}
    if states:
        off = state_error if held_out.joints is None else joint_error
        error = off(torch.cat(states), proprio.flatten(0, 1))
        metrics |= {f"state_{name}": value for name, value in asdict(error).items()}
    return metrics
