"""Training losses: masked latent prediction for the encoder, latent dynamics for the predictor."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import JEPA, LATENT_NORM_EPS
from worldmodel.mask_predictor import MaskPredictor
from worldmodel.rope import grid_positions
from worldmodel.state_head import POSE_COLUMNS, POSE_GRIPPER, POSE_POSITION, StateHead
from worldmodel.transformer import take_tokens


@dataclass(frozen=True)
class PredictionLoss:
    """The two parts of the action-conditioned loss, each a scalar tensor.

    Attributes:
        teacher_forcing: L1 of every next frame predicted from true ones.
        rollout: L1 of the frames imagined from the first one alone.
    """

    teacher_forcing: Tensor
    rollout: Tensor

    @property
    def total(self) -> Tensor:
        """What training minimises: their sum."""
        return self.teacher_forcing + self.rollout


Distance = Literal["l1", "l2"]
DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}


def prediction_loss(
    world: JEPA,
    latents: Float[Tensor, "batch frames tokens dim"],
    proprio: Float[Tensor, "batch frames 7"],
    actions: Float[Tensor, "batch steps 7"],
    *,
    rollout_steps: int = 2,
    distance: Distance = "l1",
) -> PredictionLoss:
    """Returns teacher-forcing and rollout loss of a window (Assran et al. 2025, eq. 2 and 3).

    Args:
        world: The model; its predictor is what is trained.
        latents: Normed latents of F frames.
        proprio: End-effector states at the frames.
        actions: The F - 1 actions between them.
        rollout_steps: Steps imagined from frame 0; the first is the teacher-forced prediction
            itself, so its error counts twice, as in V-JEPA 2-AC.
        distance: "l1", as published, or "l2", the mean square as in JEPA-WMs (arXiv 2512.24497).
            The L1 of a change that is mostly zero is least for predicting none, and training from
            scratch can stay there; the square cannot.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be 'l1' or 'l2', got {distance!r}")
    compare = DISTANCES[distance]
    steps = actions.shape[1]
    if not 1 <= rollout_steps <= steps:
        raise ValueError(f"rollout_steps must be between 1 and {steps}, got {rollout_steps}")
    forced = world.predict(latents[:, :-1], proprio[:, :-1], actions)
    sequence = torch.cat((latents[:, :1], forced[:, :1]), dim=1)  # frame 0 and imagined frame 1
    for t in range(2, rollout_steps + 1):
        ahead = world.predict(sequence, proprio[:, :t], actions[:, :t])
        sequence = torch.cat((sequence, ahead[:, -1:]), dim=1)
    imagined = sequence[:, 1:]
    return PredictionLoss(
        teacher_forcing=compare(forced, latents[:, 1:]),
        rollout=compare(imagined, latents[:, 1 : rollout_steps + 1]),
    )


@dataclass(frozen=True)
class StateLoss:
    """How far states read from latents are off, by group, each a scalar tensor.

    Attributes:
        position: Of the three numbers of the position.
        rotation: Of the six of the rotation.
        gripper: Of the gripper, which counts as much as the position and not one tenth.
    """

    position: Tensor
    rotation: Tensor
    gripper: Tensor

    @property
    def total(self) -> Tensor:
        """What training minimises: their mean, with weights 1, 0.5 and 1."""
        return (self.position + 0.5 * self.rotation + self.gripper) / 2.5


def state_loss(
    head: StateHead, latents: Float[Tensor, "batch tokens dim"], proprio: Float[Tensor, "batch 7"]
) -> StateLoss:
    """Returns how far the states read from frames are off, in units of `pose_std`.

    A smooth L1: what is wrong by less than a tenth of a standard deviation counts quadratically.

    Args:
        head: Reads the states.
        latents: Latents of the frames.
        proprio: The true states.
    """
    error = F.smooth_l1_loss(
        head.normalised(latents), head.normalise(proprio), beta=0.1, reduction="none"
    ).mean(0)
    return StateLoss(
        position=error[POSE_POSITION].mean(),
        rotation=error[POSE_COLUMNS].mean(),
        gripper=error[POSE_GRIPPER].mean(),
    )


def target_features(
    encoder: VideoEncoder, clip: Float[Tensor, "batch 3 frames height width"], levels: list[int]
) -> Float[Tensor, "batch tokens dim"]:
    """Returns the features masked prediction aims at: several levels, each normed, side by side."""
    with torch.no_grad():
        features = encoder.levels(clip, levels)
    return torch.cat(
        [F.layer_norm(level.float(), level.shape[-1:], eps=LATENT_NORM_EPS) for level in features],
        dim=-1,
    )


@dataclass(frozen=True)
class MaskedLoss:
    """The two parts of the masked-prediction loss, each a scalar tensor.

    Attributes:
        hidden: L1 at the hidden tokens.
        context: L1 at the visible tokens, weighted by how near they are to a hidden one.
    """

    hidden: Tensor
    context: Tensor


def masked_loss(
    encoder: VideoEncoder,
    predictor: MaskPredictor,
    clip: Float[Tensor, "batch 3 frames height width"],
    targets: Float[Tensor, "batch tokens dim"],
    *,
    kept: Int[Tensor, "batch kept"],
    hidden: Int[Tensor, "batch hidden"],
    levels: list[int],
) -> MaskedLoss:
    """Returns the V-JEPA 2.1 loss for one group of masks (Mur-Labadia et al. 2026, section 3).

    Args:
        encoder: The online encoder.
        predictor: Takes the encoder's `levels`, concatenated.
        clip: Normalised pixels.
        targets: `target_features` of the EMA encoder for the whole clip.
        kept: Ids of the tokens the encoder sees.
        hidden: Ids of the tokens it must infer.
        levels: Blocks whose outputs make context and targets.
    """
    grid = encoder.grid(clip.shape[2], clip.shape[3], clip.shape[4])
    context = torch.cat(encoder.levels(clip, levels, keep=kept), dim=-1)
    at_hidden, at_kept = predictor(context, kept, hidden, grid)
    hidden_error = (at_hidden - take_tokens(targets, hidden)).abs().mean(-1)
    kept_error = (at_kept - take_tokens(targets, kept)).abs().mean(-1)
    weights = context_weights(kept, hidden, grid)
    return MaskedLoss(hidden=hidden_error.mean(), context=(weights * kept_error).mean())


def context_weights(
    kept: Int[Tensor, "batch kept"], hidden: Int[Tensor, "batch hidden"], grid: tuple[int, int, int]
) -> Float[Tensor, "batch kept"]:
    """Returns 1 / sqrt(d), d the distance [tokens] of a visible token to the nearest hidden one."""
    positions = grid_positions(*grid).to(kept.device)
    distance = torch.cdist(positions[kept], positions[hidden]).amin(dim=-1)
    return distance.rsqrt()
