"""The V-JEPA 2.1 encoder: one transformer for images and clips, with four output levels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldmodel.encoder import PatchEmbed, run_blocks
from worldmodel.interfaces import Encoder
from worldmodel.rope import grid_positions
from worldmodel.transformer import initialise, make_blocks

# The blocks (from 0) whose outputs have a norm of their own, by depth. Source: V-JEPA 2.1's code.
LEVELS = {
    12: (2, 5, 8, 11),
    24: (5, 11, 17, 23),
    40: (9, 19, 29, 39),
    48: (11, 23, 37, 47),
}
LAST_POSITION = 15  # of rows and columns, whatever their number: that of 16 patches


class VideoEncoder21(Encoder):
    """V-JEPA 2.1 encoder (Mur-Labadia et al. 2026, arXiv 2603.14482); state-dict names are Meta's.

    It differs from V-JEPA 2 in this: the rotary table is the textbook one, rows and columns are
    spread over 0..15 at every image size, a one-frame clip is an image with patches of its own, a
    learned vector tells images from clips, and each of four levels has its own norm.

    Args:
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames a token of a clip spans; a token of an image spans one.
        embed_dim: Token size D.
        depth: Number of transformer blocks, one of 12, 24, 40, 48.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        layer_norm_eps: Epsilon of every layer norm.

    Attributes:
        level_indices: The blocks that have a norm; the last is the encoder's output.

    Raises:
        ValueError: No levels are published for the depth.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        tubelet_size: int = 2,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
    ):
        super().__init__()
        if depth not in LEVELS:
            known = ", ".join(str(known) for known in LEVELS)
            raise ValueError(f"V-JEPA 2.1 has depth {known}, got {depth}")
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.layer_norm_eps = layer_norm_eps
        self.level_indices = LEVELS[depth]
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, tubelet_size=tubelet_size, embed_dim=embed_dim
        )
        self.patch_embed_img = PatchEmbed(
            patch_size=patch_size, tubelet_size=1, embed_dim=embed_dim
        )
        self.video_mod_embed = nn.Parameter(1e-6 * torch.randn(1, 1, embed_dim))
        self.img_mod_embed = nn.Parameter(1e-6 * torch.randn(1, 1, embed_dim))
        self.blocks = make_blocks(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        self.norms_block = nn.ModuleList(
            nn.LayerNorm(embed_dim, eps=layer_norm_eps) for _ in self.level_indices
        )
        initialise(self, self.blocks)

    @property
    def frames_per_image(self) -> int:
        """One: a single frame is an image, not a clip."""
        return 1

    def forward(
        self,
        clip: Float[Tensor, "batch 3 frames height width"],
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the normed tokens (B, N, D) of a clip, or of an image if it has one frame.

        Args:
            clip: Normalised pixels, channels before time.
            keep: Flat token ids to encode, the rest is dropped (masked pretraining).

        Raises:
            ValueError: The clip cannot be cut into whole tubelets, or is but one patch wide or
                high.
        """
        return self.levels(clip, self.level_indices[-1:], keep)[0]

    def levels(
        self,
        clip: Float[Tensor, "batch 3 frames height width"],
        indices: Sequence[int],
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Returns the outputs of the blocks `indices` (from 0), each through the norm it has."""
        self._check(clip)
        unknown = [index for index in indices if index not in self.level_indices]
        if unknown:
            raise ValueError(f"levels must be among {list(self.level_indices)}, got {unknown}")
        if clip.shape[2] == 1:
            x = self.patch_embed_img(clip) + self.img_mod_embed  # (B, N, D)
        else:
            x = self.patch_embed(clip) + self.video_mod_embed
        outputs = run_blocks(
            self.blocks,
            x,
            self._positions(*self.grid(clip.shape[2], clip.shape[3], clip.shape[4])),
            indices,
            num_heads=self.num_heads,
            rope="interleaved",
            keep=keep,
        )
        norms = [self.norms_block[self.level_indices.index(index)] for index in indices]
        return [norm(output) for norm, output in zip(norms, outputs, strict=True)]

    def _positions(self, steps: int, rows: int, columns: int) -> Float[Tensor, "tokens 3"]:
        if rows < 2 or columns < 2:
            raise ValueError(
                f"V-JEPA 2.1 spreads positions over the image and needs at least 2x2 patches of "
                f"{self.patch_size} pixels, got {rows}x{columns}"
            )
        scale = torch.tensor([1.0, LAST_POSITION / (rows - 1), LAST_POSITION / (columns - 1)])
        return grid_positions(steps, rows, columns) * scale
