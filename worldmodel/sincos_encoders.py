"""The encoders before V-JEPA 2, whose positions are fixed sines and cosines added to the tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.encoder import PatchEmbed, run_blocks
from worldmodel.interfaces import Encoder, ImageEncoder
from worldmodel.rope import grid_positions
from worldmodel.transformer import initialise, make_blocks


def sincos(positions: Float[Tensor, " tokens"], size: int) -> Float[Tensor, "tokens size"]:
    """Returns the sines, then the cosines, of positions / 10000^(2 j / size), j < size / 2.

    Source: Vaswani et al. 2017, section 3.5, with all sines before all cosines.
    """
    frequencies = 10000.0 ** (-torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


class ImagePatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, *, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, height, width) to tokens (B, N, D), row-major."""
        return self.proj(images).flatten(2).transpose(1, 2)


class IJepaEncoder(ImageEncoder):
    """I-JEPA encoder (Assran et al. 2023, arXiv 2301.08243); state-dict names are Meta's.

    Args:
        image_size: Height and width in pixels; other images are refused.
        patch_size: Side of a patch in pixels.
        embed_dim: Token size D, a multiple of 4.
        depth: Number of transformer blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        layer_norm_eps: Epsilon of every layer norm.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
    ):
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim must be a multiple of 4, got {embed_dim}")
        self.image_size = image_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.layer_norm_eps = layer_norm_eps
        self.patch_embed = ImagePatchEmbed(patch_size=patch_size, embed_dim=embed_dim)
        side = image_size // patch_size
        _, row, column = grid_positions(1, side, side).unbind(1)
        # The column comes first, as in the published table.
        table = torch.cat([sincos(axis, embed_dim // 2) for axis in (column, row)], dim=1)
        self.register_buffer("pos_embed", table[None])  # (1, N, D)
        self.blocks = make_blocks(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        initialise(self, self.blocks)

    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the normed patch tokens (B, N, D) of images, in row-major order.

        Raises:
            ValueError: The images have another size than `image_size`.
        """
        height, width = images.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"this I-JEPA takes images of {self.image_size}x{self.image_size} pixels, got "
                f"{height}x{width}; resize them"
            )
        x = self.patch_embed(images) + self.pos_embed  # (B, N, D)
        return self.norm(_run_unrotated(self.blocks, x, self.num_heads))


class VJepa1Encoder(Encoder):
    """V-JEPA encoder (Bardes et al. 2024, arXiv 2404.08471); state-dict names are Meta's.

    A clip of another size than the table's has it resampled (trilinearly), as the published code
    does; a single frame, doubled, so gets the mean of the two middle time steps.

    Args:
        image_size: Height and width in pixels of the position table.
        num_frames: Frames of the position table.
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames a token spans.
        embed_dim: Token size D.
        depth: Number of transformer blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        layer_norm_eps: Epsilon of every layer norm.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        image_size: int = 224,
        num_frames: int = 16,
        patch_size: int = 16,
        tubelet_size: int = 2,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.image_size = image_size
        self.num_frames = num_frames
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.layer_norm_eps = layer_norm_eps
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, tubelet_size=tubelet_size, embed_dim=embed_dim
        )
        axes = grid_positions(*self.grid(num_frames, image_size, image_size)).unbind(1)
        width = 2 * -(-embed_dim // 6)  # a third of D, rounded up to an even number
        table = torch.cat([sincos(axis, width) for axis in axes], dim=1)[:, :embed_dim]
        self.register_buffer("pos_embed", table[None])  # (1, N, D)
        self.blocks = make_blocks(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        initialise(self, self.blocks)

    def forward(
        self, clip: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the normed tokens (B, N, D) of a clip.

        Raises:
            ValueError: The clip cannot be cut into whole tubelets.
        """
        self._check(clip)
        x = self.patch_embed(clip) + self._table(self.grid(*clip.shape[2:]))  # (B, N, D)
        return self.norm(_run_unrotated(self.blocks, x, self.num_heads))

    def _table(self, grid: tuple[int, int, int]) -> Float[Tensor, "1 tokens dim"]:
        own = self.grid(self.num_frames, self.image_size, self.image_size)
        if grid == own:
            return self.pos_embed
        table = self.pos_embed.transpose(1, 2).unflatten(2, own)  # (1, D, steps, rows, columns)
        table = F.interpolate(table, size=grid, mode="trilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2)


def _run_unrotated(blocks: nn.ModuleList, x: Tensor, num_heads: int) -> Tensor:
    """Returns the last block's output, with all tokens at 0, where no pair is rotated."""
    zeros = torch.zeros(x.shape[1], 3)
    last = len(blocks) - 1
    return run_blocks(blocks, x, zeros, (last,), num_heads=num_heads, rope="interleaved")[0]
