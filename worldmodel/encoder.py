"""The V-JEPA 2 video encoder: tubelets, rotary positions, a plain pre-norm vision transformer."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from worldmodel.rope import RopeStyle, grid_positions, rope_table
from worldmodel.transformer import initialise, make_blocks, take_tokens


class PatchEmbed(nn.Module):
    """Cuts a clip into tubelets and projects each to a token."""

    def __init__(self, *, patch_size: int, tubelet_size: int, embed_dim: int):
        super().__init__()
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, height, width) to tokens (B, N, D), time-major then row-major."""
        return self.proj(clip).flatten(2).transpose(1, 2)


class VideoEncoder(nn.Module):
    """V-JEPA 2 encoder (Assran et al. 2025, arXiv 2506.09985); state-dict names are Meta's.

    Args:
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames a token spans; a clip's length must be a multiple of it.
        embed_dim: Token size D.
        depth: Number of transformer blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        rope: "tiled" for released V-JEPA 2 weights, "interleaved" for the textbook table.
        layer_norm_eps: Epsilon of every layer norm.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        tubelet_size: int = 2,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        rope: RopeStyle = "interleaved",
        layer_norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.rope: RopeStyle = rope
        self.layer_norm_eps = layer_norm_eps
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, tubelet_size=tubelet_size, embed_dim=embed_dim
        )
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
        self,
        clip: Float[Tensor, "batch 3 frames height width"],
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the normed tokens (B, N, D) of a clip.

        Args:
            clip: Normalised pixels, channels before time.
            keep: Flat token ids to encode, the rest of the clip is dropped (masked pretraining).

        Raises:
            ValueError: The clip cannot be cut into whole tubelets.
        """
        return self.levels(clip, (self.depth - 1,), keep)[0]

    def levels(
        self,
        clip: Float[Tensor, "batch 3 frames height width"],
        indices: Sequence[int],
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Returns the outputs of the blocks `indices` (from 0), each through the final norm."""
        self._check(clip)
        if any(not 0 <= index < self.depth for index in indices):
            raise ValueError(f"levels must be in 0..{self.depth - 1}, got {list(indices)}")
        T, rows, columns = self.grid(clip.shape[2], clip.shape[3], clip.shape[4])
        x = self.patch_embed(clip)  # (B, N, D)
        positions = grid_positions(T, rows, columns).to(x.device)  # (N, 3)
        head_dim = self.embed_dim // self.num_heads
        if keep is None:
            rope = rope_table(positions, head_dim, self.rope)  # (N, head_dim)
        else:
            x = take_tokens(x, keep)  # (B, kept, D)
            cos, sin = rope_table(positions[keep], head_dim, self.rope)
            rope = cos[:, None], sin[:, None]  # (B, 1, kept, head_dim)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x, rope)
            if index in indices:
                outputs[index] = self.norm(x)
        return [outputs[index] for index in indices]

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns how many tokens a clip of this size has along time, rows and columns."""
        return (
            num_frames // self.tubelet_size,
            height // self.patch_size,
            width // self.patch_size,
        )

    def _check(self, clip: Tensor) -> None:
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError(
                f"clip must have shape (batch, 3, frames, height, width), got {tuple(clip.shape)}"
            )
        frames, height, width = clip.shape[2:]
        if frames == 0 or frames % self.tubelet_size:
            raise ValueError(
                f"a clip needs a multiple of tubelet_size={self.tubelet_size} frames, got {frames};"
                " repeat a single image along time"
            )
        if not height or not width or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image sides must be multiples of patch_size={self.patch_size}, "
                f"got {height}x{width}"
            )
