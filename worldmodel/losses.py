"""Training losses: latent dynamics for the predictor, states for the heads that read them."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldmodel.joint_head import JointHead
from worldmodel.readout import Readout
from worldmodel.state_head import POSE_COLUMNS, POSE_GRIPPER, POSE_POSITION, StateHead


@runtime_checkable
class Predicts(Protocol):
    """What the loss needs of a world model."""

    def predict(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        """Returns the latents predicted for the frame after each given one."""
        ...


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
    world: Predicts,
    latents: Float[Tensor, "batch frames tokens dim"],
    proprio: Float[Tensor, "batch frames proprio"],
    actions: Float[Tensor, "batch steps action"],
    *,
    rollout_steps: int = 2,
    distance: Distance = "l1",
    legacy_rollout: bool = False,
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
        legacy_rollout: Rolls out from the prediction of frame 2 where that of frame 1 belongs, as
            the first release of V-JEPA 2-AC did (mended upstream on 2025-06-20, and its published
            weights are older). For reproducing them, and nothing else.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be 'l1' or 'l2', got {distance!r}")
    compare = DISTANCES[distance]
    steps = actions.shape[1]
    if not 1 <= rollout_steps <= steps:
        raise ValueError(f"rollout_steps must be between 1 and {steps}, got {rollout_steps}")
    if legacy_rollout and steps < 2:
        raise ValueError("legacy_rollout takes the prediction of frame 2; windows have 2 frames")
    forced = world.predict(latents[:, :-1], proprio[:, :-1], actions)
    seed = forced[:, 1:2] if legacy_rollout else forced[:, :1]
    sequence = torch.cat((latents[:, :1], seed), dim=1)  # frame 0 and imagined frame 1
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
    error = _read_error(head, latents, head.normalise(proprio))
    return StateLoss(
        position=error[POSE_POSITION].mean(),
        rotation=error[POSE_COLUMNS].mean(),
        gripper=error[POSE_GRIPPER].mean(),
    )


def joint_loss(
    head: JointHead,
    latents: Float[Tensor, "batch tokens dim"],
    joints: Float[Tensor, "batch joints"],
) -> Tensor:
    """Returns how far the joints read from frames are off, in units of `joints_std`: a scalar.

    The smooth L1 of `state_loss`; the gripper, the last number, counts as much as all joints.

    Args:
        head: Reads the joints.
        latents: Latents of the frames.
        joints: The true ones.
    """
    error = _read_error(head, latents, head.normalise(joints))
    return (error[:-1].mean() + error[-1]) / 2


def _read_error(
    head: Readout, latents: Tensor, expected: Float[Tensor, "batch size"]
) -> Float[Tensor, " size"]:
    return F.smooth_l1_loss(head.normalised(latents), expected, beta=0.1, reduction="none").mean(0)
