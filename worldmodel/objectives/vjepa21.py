"""V-JEPA 2.1: dense masked latent prediction, of several levels and at visible tokens too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.mask_predictor import MaskPredictor
from worldmodel.objectives.ema import EmaObjective, target_features
from worldmodel.objectives.interface import Batch, Loss, Needs, as_clip
from worldmodel.objectives.vjepa import MASK_GROUPS, clip_grid, draw_masks
from worldmodel.rope import grid_positions
from worldmodel.transformer import take_tokens


class VJepa21(EmaObjective):
    """V-JEPA 2.1 (Mur-Labadia et al. 2026, arXiv 2603.14482, section 3).

    L1 between what a predictor makes of the visible tokens and the normed features of the target
    encoder, at hidden tokens and, weighted by how near they are to one, at visible tokens; once
    with many small blocks hidden and once with two large ones. Unlike there, the context loss has
    its weight from the first step on, and masks are cut as `sample_masks` says.

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns.
        clip_frames: Frames of a clip; 1 doubles a single frame, as the world model does.
        levels: Encoder blocks whose outputs are context and target.
        predictor_dim: Width of the mask predictor.
        predictor_depth: Its depth.
        predictor_heads: Its attention heads.
        context_loss_weight: Weight of the loss at visible tokens.
        ema: Momentum of the target encoder at the first and at the last step.
    """

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        grid_size: Sequence[int],
        clip_frames: int,
        levels: Sequence[int],
        predictor_dim: int,
        predictor_depth: int,
        predictor_heads: int,
        context_loss_weight: float,
        ema: Sequence[float],
    ):
        super().__init__(encoder=encoder, ema=ema)
        self.grid = clip_grid(encoder, grid_size, clip_frames)
        if not levels or not all(0 <= level < encoder.depth for level in levels):
            raise ValueError(
                f"levels must name blocks 0..{encoder.depth - 1} of the encoder, got {list(levels)}"
            )
        self.clip_frames = clip_frames
        self.levels = list(levels)
        self.predictor_dim = predictor_dim
        self.predictor_depth = predictor_depth
        self.predictor_heads = predictor_heads
        self.context_loss_weight = context_loss_weight
        self.needs = Needs(frames=clip_frames)
        self.predictor = MaskPredictor(
            context_dim=encoder.embed_dim * len(levels),
            target_dim=encoder.embed_dim * len(levels),
            embed_dim=predictor_dim,
            depth=predictor_depth,
            num_heads=predictor_heads,
        )

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the ids of the tokens kept and hidden in each of the two groups."""
        return draw_masks(n, self.grid, generator)

    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields half the loss of each of the two groups of masks."""
        clip = as_clip(batch.pixels(), encoder.tubelet_size)
        targets = target_features(self.target, clip, self.levels)
        for group in MASK_GROUPS:
            loss = masked_loss(
                encoder,
                self.predictor,
                clip,
                targets,
                kept=batch.chosen[f"kept_{group}"],
                hidden=batch.chosen[f"hidden_{group}"],
                levels=self.levels,
            )
            yield Loss(
                total=(loss.hidden + self.context_loss_weight * loss.context) / 2,
                parts={"hidden": loss.hidden / 2, "context": loss.context / 2},
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
