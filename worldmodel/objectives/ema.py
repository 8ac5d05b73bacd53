"""Objectives whose targets come from an exponential moving average of the encoder."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import LATENT_NORM_EPS
from worldmodel.objectives.interface import Objective


class EmaObjective(Objective):
    """An objective with a target encoder that follows the trained one, and is what is kept.

    Args:
        encoder: The encoder that is trained.
        ema: Momentum of the target at the first and at the last step, linear between them.
    """

    remedy = (
        "make the target slower (raise objective.ema, such as [0.996, 1.0]) or the encoder "
        "(lower schedule.peak, more schedule.warmup_steps)"
    )

    def __init__(self, *, encoder: VideoEncoder, ema: Sequence[float]):
        super().__init__()
        if len(ema) != 2 or not all(0 <= momentum <= 1 for momentum in ema):
            raise ValueError(
                f"ema must be two momenta within 0..1, at the first and the last step, got "
                f"{list(ema)}"
            )
        self.ema = list(ema)
        self.target = copy.deepcopy(encoder).requires_grad_(False)

    def after_step(self, encoder: VideoEncoder, step: int, steps: int) -> None:
        """Moves the target towards the encoder."""
        first, last = self.ema
        update_ema(self.target, encoder, first + (last - first) * step / steps)

    def kept(self, encoder: VideoEncoder) -> VideoEncoder:
        """Returns the target."""
        return self.target


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Moves every parameter of `target` towards `online`."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


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
