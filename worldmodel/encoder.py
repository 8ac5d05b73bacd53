"""The V-JEPA 2 video encoder: tubelets, rotary positions, a plain pre-norm vision transformer."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldmodel.interfaces import Encoder
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
        # The convolution written as a product: its backward pass is ten times slower on a CPU.
        time, size = self.proj.kernel_size[0], self.proj.kernel_size[1]
        cut = clip.unflatten(4, (-1, size)).unflatten(3, (-1, size)).unflatten(2, (-1, time))
        patches = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ConvEmbed(nn.Module):
    """Turns a clip into tokens by small overlapping convolutions.

    What a patch shows is then found wherever it lies in the patch, and with far fewer images
    (Xiao et al. 2021, "Early Convolutions Help Transformers See Better", arXiv 2106.14881). Frames
    of a tubelet are averaged.
    """

    def __init__(self, *, patch_size: int, tubelet_size: int, embed_dim: int):
        super().__init__()
        halvings = (patch_size // 4).bit_length() - 1
        if patch_size != 4 << halvings or embed_dim % 2:
            raise ValueError(
                "stem='conv' takes a patch_size of 4, 8, 16, ... and an even embed_dim, got "
                f"{patch_size} and {embed_dim}"
            )
        self.tubelet_size = tubelet_size
        width = embed_dim // 2 if halvings else embed_dim
        layers: list[nn.Module] = [nn.Conv2d(3, width, 8, stride=4, padding=2)]
        for halving in range(halvings):
            wider = embed_dim if halving == halvings - 1 else width
            layers += [nn.GroupNorm(1, width), nn.GELU()]
            layers.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
            width = wider
        layers += [nn.GroupNorm(1, width), nn.GELU(), nn.Conv2d(width, embed_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, height, width) to tokens (B, N, D), time-major then row-major."""
        frames = clip.transpose(1, 2).flatten(0, 1)
        maps = self.layers(frames.contiguous(memory_format=torch.channels_last))
        maps = maps.unflatten(0, (len(clip), -1, self.tubelet_size)).mean(dim=2)  # (B, T, D, h, w)
        return maps.flatten(3).transpose(2, 3).flatten(1, 2)


STEMS = {"patch": PatchEmbed, "conv": ConvEmbed}


class VideoEncoder(Encoder):
    """V-JEPA 2 encoder (Assran et al. 2025, arXiv 2506.09985); state-dict names are Meta's.

    Args:
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames a token spans; a clip's length must be a multiple of it.
        embed_dim: Token size D.
        depth: Number of transformer blocks; 0 is the stem and the final norm alone.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        rope: "tiled" for released V-JEPA 2 weights, "interleaved" for the textbook table.
        layer_norm_eps: Epsilon of every layer norm.
        stem: "patch", one product per patch as published, or "conv", see `ConvEmbed`.
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
        stem: Literal["patch", "conv"] = "patch",
    ):
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem must be 'patch' or 'conv', got {stem!r}")
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.rope: RopeStyle = rope
        self.layer_norm_eps = layer_norm_eps
        self.stem = stem
        self.patch_embed = STEMS[stem](
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
        if not self.depth:
            self._check(clip)
            tokens = self.patch_embed(clip)
            return self.norm(tokens if keep is None else take_tokens(tokens, keep))
        return self.levels(clip, (self.depth - 1,), keep)[0]

    def first_blocks(self, number: int) -> "VideoEncoder":
        """Returns a copy that ends after so many blocks; with 0 it is the stem alone.

        A block lets every token hear of all others. The fewer there are, the more a token says of
        its own place and nothing else. The final norm stays, as in `levels`.

        Raises:
            ValueError: There are not so many.
        """
        if not 0 <= number <= self.depth:
            raise ValueError(f"this encoder has {self.depth} blocks, asked were {number}")
        shorter = copy.deepcopy(self)
        shorter.blocks, shorter.depth = shorter.blocks[:number], number
        return shorter

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
        x = self.patch_embed(clip)  # (B, N, D)
        positions = grid_positions(*self.grid(clip.shape[2], clip.shape[3], clip.shape[4]))
        outputs = run_blocks(
            self.blocks,
            x,
            positions,
            indices,
            num_heads=self.num_heads,
            rope=self.rope,
            keep=keep,
        )
        return [self.norm(output) for output in outputs]


def run_blocks(
    blocks: nn.ModuleList,
    x: Float[Tensor, "batch tokens dim"],
    positions: Float[Tensor, "tokens 3"],
    indices: Sequence[int],
    *,
    num_heads: int,
    rope: RopeStyle,
    keep: Int[Tensor, "batch kept"] | None = None,
) -> list[Float[Tensor, "batch out dim"]]:
    """Runs tokens through all blocks and returns the outputs of the blocks `indices` (from 0).

    Args:
        blocks: The transformer blocks.
        x: All tokens of a clip.
        positions: Their (time, row, column).
        indices: Which outputs to return, in this order.
        num_heads: Attention heads per block.
        rope: See `rope_table`.
        keep: Ids of the tokens to go on with; all if None.
    """
    head_dim = x.shape[-1] // num_heads
    positions = positions.to(x.device)
    if keep is None:
        table = rope_table(positions, head_dim, rope)  # (N, head_dim)
    else:
        x = take_tokens(x, keep)  # (B, kept, D)
        cos, sin = rope_table(positions[keep], head_dim, rope)
        table = cos[:, None], sin[:, None]  # (B, 1, kept, head_dim)
    outputs: dict[int, Tensor] = {}
    for index, block in enumerate(blocks):
        x = block(x, table)
        if index in indices:
            outputs[index] = x
    return [outputs[index] for index in indices]
