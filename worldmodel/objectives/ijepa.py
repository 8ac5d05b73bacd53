"""I-JEPA: the features of four blocks of an image, each inferred from one large context block."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.encoder import VideoEncoder
from worldmodel.masking import MultiBlock, sample_context_and_targets
from worldmodel.objectives.augmentation import CROP_DRAWS, check_crop_scale, cropped
from worldmodel.objectives.ema import EmaObjective, target_features
from worldmodel.objectives.interface import Batch, Loss, Needs, as_clip
from worldmodel.transformer import take_tokens
from worldmodel.vjepa2_mask_predictor import VJEPA2MaskPredictor

MASK_TOKEN_STD = 0.02


class IJepa(EmaObjective):
    """I-JEPA (Assran et al. 2023, arXiv 2301.08243, section 3), on single frames.

    Smooth L1 between what a predictor infers of each target block, block by block, and the normed
    features of the target encoder, which sees the whole image. Unlike there, positions are rotary,
    masks are cut as `sample_context_and_targets` says, and crops are square.

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns.
        predictor_dim: Width of the mask predictor.
        predictor_depth: Its depth.
        predictor_heads: Its attention heads.
        ema: Momentum of the target encoder at the first and at the last step.
        num_targets: Target blocks of an image.
        target_scale: Smallest and largest area of a target block, of the image's.
        target_aspect: Smallest and largest height over width of a target block.
        context_scale: Smallest and largest area of the context block.
        min_context: The context, without the targets, has more tokens than this.
        crop_scale: Smallest and largest area of a random crop, of 1; [1, 1] crops nothing.
    """

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        grid_size: Sequence[int],
        predictor_dim: int,
        predictor_depth: int,
        predictor_heads: int,
        ema: Sequence[float],
        num_targets: int,
        target_scale: Sequence[float],
        target_aspect: Sequence[float],
        context_scale: Sequence[float],
        min_context: int,
        crop_scale: Sequence[float],
    ):
        super().__init__(encoder=encoder, ema=ema)
        self.grid = (1, int(grid_size[0]), int(grid_size[1]))
        self.predictor_dim = predictor_dim
        self.predictor_depth = predictor_depth
        self.predictor_heads = predictor_heads
        self.num_targets = num_targets
        self.target_scale = list(target_scale)
        self.target_aspect = list(target_aspect)
        self.context_scale = list(context_scale)
        self.min_context = min_context
        self.crop_scale = check_crop_scale(crop_scale)
        self.needs = Needs(frames=1)
        self.blocks = MultiBlock(
            num_targets=num_targets,
            target_scale=(target_scale[0], target_scale[1]),
            target_aspect=(target_aspect[0], target_aspect[1]),
            context_scale=(context_scale[0], context_scale[1]),
            min_context=min_context,
        )
        self.predictor = VJEPA2MaskPredictor(
            latent_dim=encoder.embed_dim,
            grid_size=grid_size,
            embed_dim=predictor_dim,
            depth=predictor_depth,
            num_heads=predictor_heads,
            num_mask_tokens=1,
            rope="interleaved",
        )
        nn.init.trunc_normal_(self.predictor.mask_tokens[0], std=MASK_TOKEN_STD)

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the crops, and the ids of the tokens of context and target blocks."""
        crop = torch.rand(n, CROP_DRAWS, generator=generator)
        kept, blocks = sample_context_and_targets(
            self.blocks, batch_size=n, grid=self.grid, generator=generator
        )
        return {"crop": crop, "kept": kept, "blocks": blocks}

    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields the mean loss over the target blocks."""
        pixels = cropped(batch.pixels(), batch.chosen["crop"], self.crop_scale)
        clip = as_clip(pixels, encoder.tubelet_size)
        kept, blocks = batch.chosen["kept"], batch.chosen["blocks"]  # (B, K), (B, blocks, M)
        features = target_features(self.target, clip, [encoder.depth - 1])

        def for_each_block(x: Tensor) -> Tensor:
            return x.repeat_interleave(self.num_targets, dim=0)

        hidden = blocks.flatten(0, 1)  # (B * blocks, M)
        context = for_each_block(encoder(clip, keep=kept))
        predicted = self.predictor(context, for_each_block(kept), hidden, mask_token=0)
        wanted = take_tokens(for_each_block(features), hidden)
        loss = F.smooth_l1_loss(predicted.float(), wanted)
        yield Loss(total=loss, parts={"hidden": loss})
