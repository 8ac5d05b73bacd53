"""V-JEPA 2: masked latent prediction at hidden tokens, with short- and long-range masks."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.masking import LONG_RANGE, SHORT_RANGE, sample_masks
from worldmodel.objectives.augmentation import CROP_DRAWS, check_crop_scale, cropped
from worldmodel.objectives.ema import EmaObjective, target_features
from worldmodel.objectives.interface import Batch, Loss, Needs, as_clip
from worldmodel.transformer import take_tokens
from worldmodel.vjepa2_mask_predictor import VJEPA2MaskPredictor

MASK_GROUPS = {"short": SHORT_RANGE, "long": LONG_RANGE}


class VJepa(EmaObjective):
    """V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985, section 2; Bardes et al. 2024).

    L1 between what a predictor infers at hidden tokens and the normed last-block features of the
    target encoder, the mean of two groups of masks: eight blocks of 0.15 of a frame, and two of
    0.7, all of them tubes through time. Unlike there, masks are cut as `sample_masks` says, crops
    are square, and nothing is mirrored.

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns.
        clip_frames: Frames of a clip; 1 doubles a single frame, as the world model does.
        predictor_dim: Width of the mask predictor.
        predictor_depth: Its depth.
        predictor_heads: Its attention heads.
        ema: Momentum of the target encoder at the first and at the last step.
        crop_scale: Smallest and largest area of a random crop, of 1; [1, 1] crops nothing.
    """

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        grid_size: Sequence[int],
        clip_frames: int,
        predictor_dim: int,
        predictor_depth: int,
        predictor_heads: int,
        ema: Sequence[float],
        crop_scale: Sequence[float],
    ):
        super().__init__(encoder=encoder, ema=ema)
        self.grid = clip_grid(encoder, grid_size, clip_frames)
        self.clip_frames = clip_frames
        self.predictor_dim = predictor_dim
        self.predictor_depth = predictor_depth
        self.predictor_heads = predictor_heads
        self.crop_scale = check_crop_scale(crop_scale)
        self.needs = Needs(frames=clip_frames)
        self.predictor = VJEPA2MaskPredictor(
            latent_dim=encoder.embed_dim,
            grid_size=grid_size,
            embed_dim=predictor_dim,
            depth=predictor_depth,
            num_heads=predictor_heads,
            num_mask_tokens=1,
            rope="interleaved",
        )

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the crops, and the ids of the tokens kept and hidden in each of the groups."""
        crop = torch.rand(n, CROP_DRAWS, generator=generator)
        return {"crop": crop, **draw_masks(n, self.grid, generator)}

    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields half the loss of each of the two groups of masks."""
        pixels = cropped(batch.pixels(), batch.chosen["crop"], self.crop_scale)
        clip = as_clip(pixels, encoder.tubelet_size)
        targets = target_features(self.target, clip, [encoder.depth - 1])
        for group in MASK_GROUPS:
            kept, hidden = batch.chosen[f"kept_{group}"], batch.chosen[f"hidden_{group}"]
            predicted = self.predictor(encoder(clip, keep=kept), kept, hidden, mask_token=0)
            loss = (predicted - take_tokens(targets, hidden)).abs().mean()
            yield Loss(total=loss / 2, parts={"hidden": loss / 2})


def clip_grid(
    encoder: VideoEncoder, grid_size: Sequence[int], clip_frames: int
) -> tuple[int, int, int]:
    """Returns how many tokens a clip has along time, rows and columns.

    Raises:
        ValueError: The frames do not fill whole tubelets.
    """
    steps, left = (1, 0) if clip_frames == 1 else divmod(clip_frames, encoder.tubelet_size)
    if left or clip_frames < 1:
        raise ValueError(
            f"clip_frames must be 1 or a multiple of the encoder's tubelet_size="
            f"{encoder.tubelet_size}, got {clip_frames}"
        )
    return steps, int(grid_size[0]), int(grid_size[1])


def draw_masks(
    n: int, grid: tuple[int, int, int], generator: torch.Generator
) -> dict[str, Int[Tensor, "batch _"]]:
    """Returns the ids of the tokens kept and hidden in each of the two groups of masks."""
    drawn = {}
    for group, spec in MASK_GROUPS.items():
        kept, hidden = sample_masks(spec, batch_size=n, grid=grid, generator=generator)
        drawn |= {f"kept_{group}": kept, f"hidden_{group}": hidden}
    return drawn
