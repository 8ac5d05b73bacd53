"""The action-free predictor released with V-JEPA 2: features of hidden tokens from visible ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldmodel.rope import RopeStyle, rope_table
from worldmodel.transformer import initialise, make_blocks


class VJEPA2MaskPredictor(nn.Module):
    """V-JEPA 2 masked predictor (Assran et al. 2025, section 2.1); state-dict names are Meta's.

    The public code sorts the tokens by id before the blocks and undoes it after them. Attention
    does not depend on the order of its tokens, only on their positions, so here nothing is sorted.

    Args:
        latent_dim: Size D of the encoder's tokens, which go in and come out.
        grid_size: (rows, columns) of a time step's tokens. Ids are read on this grid, as in the
            public code; a clip of another size needs a predictor built for its grid.
        embed_dim: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        num_mask_tokens: How many learned tokens can stand for the hidden ones.
        rope: Rotary table, see `worldmodel.rope`.
        layer_norm_eps: Epsilon of every layer norm.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        grid_size: Sequence[int],
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_mask_tokens: int = 10,
        rope: RopeStyle = "tiled",
        layer_norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.latent_dim = latent_dim
        self.grid_size = (int(grid_size[0]), int(grid_size[1]))
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.num_mask_tokens = num_mask_tokens
        self.rope: RopeStyle = rope
        self.layer_norm_eps = layer_norm_eps

        self.predictor_embed = nn.Linear(latent_dim, embed_dim)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, embed_dim)) for _ in range(num_mask_tokens)
        )
        self.predictor_blocks = make_blocks(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.predictor_proj = nn.Linear(embed_dim, latent_dim)
        initialise(self, self.predictor_blocks)

    def forward(
        self,
        context: Float[Tensor, "batch kept dim"],
        kept: Int[Tensor, "batch kept"],
        hidden: Int[Tensor, "batch hidden"],
        *,
        mask_token: int,
    ) -> Float[Tensor, "batch hidden dim"]:
        """Returns the predicted features of the tokens `hidden`, in their order.

        Args:
            context: Encoder tokens of the visible part of the clip.
            kept: Their flat ids, counted over time steps, rows and columns.
            hidden: Flat ids of the tokens to predict; they may be among the visible ones.
            mask_token: Which mask token stands for the hidden ones. V-JEPA 2 was trained with 0;
                its published inference code and Hugging Face use 1, which training never touched.

        Raises:
            ValueError: A shape, an id or the index does not fit the model.
        """
        self._check(context, kept, hidden, mask_token)
        B, K, _ = context.shape
        queries = self.mask_tokens[mask_token].expand(B, hidden.shape[1], -1)
        x = torch.cat((self.predictor_embed(context), queries), dim=1)  # (B, K + M, E)
        positions = self._positions(torch.cat((kept, hidden), dim=1))
        cos, sin = rope_table(positions, self.embed_dim // self.num_heads, self.rope)
        for block in self.predictor_blocks:
            x = block(x, (cos[:, None], sin[:, None]))
        return self.predictor_proj(self.predictor_norm(x[:, K:]))

    def _positions(self, ids: Int[Tensor, "batch ids"]) -> Float[Tensor, "batch ids 3"]:
        rows, columns = self.grid_size
        time, place = ids // (rows * columns), ids % (rows * columns)
        return torch.stack((time, place // columns, place % columns), dim=-1).float()

    def _check(self, context: Tensor, kept: Tensor, hidden: Tensor, mask_token: int) -> None:
        if context.ndim != 3 or context.shape[-1] != self.latent_dim:
            raise ValueError(
                f"context must have shape (batch, kept, {self.latent_dim}), "
                f"got {tuple(context.shape)}"
            )
        B, K, _ = context.shape
        if kept.shape != (B, K):
            raise ValueError(
                f"kept must have shape ({B}, {K}) to go with context {tuple(context.shape)}, "
                f"got {tuple(kept.shape)}"
            )
        if hidden.ndim != 2 or len(hidden) != B:
            raise ValueError(f"hidden must have shape ({B}, hidden), got {tuple(hidden.shape)}")
        if not 0 <= mask_token < self.num_mask_tokens:
            raise ValueError(
                f"mask_token must be in 0..{self.num_mask_tokens - 1}, got {mask_token}"
            )
        for name, ids in (("kept", kept), ("hidden", hidden)):
            if ids.numel() and int(ids.min()) < 0:
                raise ValueError(f"{name} must hold ids from 0 on, got {int(ids.min())}")
