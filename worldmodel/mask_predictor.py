"""The action-free predictor of masked pretraining: infers hidden tokens from visible ones."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from worldmodel.rope import RopeStyle, grid_positions, rope_table
from worldmodel.transformer import initialise, make_blocks


class MaskPredictor(nn.Module):
    """Narrow transformer from context tokens to target features, V-JEPA 2.1 form.

    Unlike V-JEPA 2 it also predicts the features of the visible tokens (dense loss, Mur-Labadia
    et al. 2026, arXiv 2603.14482), through an output layer of their own.

    Args:
        context_dim: Size of the context tokens.
        target_dim: Size of the features to predict.
        embed_dim: Width of the predictor.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        rope: Rotary table, see `worldmodel.rope`.
        layer_norm_eps: Epsilon of every layer norm.
    """

    def __init__(
        self,
        *,
        context_dim: int,
        target_dim: int,
        embed_dim: int = 96,
        depth: int = 4,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        rope: RopeStyle = "interleaved",
        layer_norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.rope: RopeStyle = rope
        self.predictor_embed = nn.Linear(context_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.predictor_blocks = make_blocks(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.predictor_proj = nn.Linear(embed_dim, target_dim)
        self.predictor_proj_context = nn.Linear(embed_dim, target_dim)
        initialise(self, self.predictor_blocks)

    def forward(
        self,
        context: Float[Tensor, "batch kept dim"],
        kept: Int[Tensor, "batch kept"],
        hidden: Int[Tensor, "batch hidden"],
        grid: tuple[int, int, int],
    ) -> tuple[Float[Tensor, "batch hidden out"], Float[Tensor, "batch kept out"]]:
        """Returns the predicted features of the hidden tokens, and those of the kept ones.

        Args:
            context: Encoded visible tokens.
            kept: Their flat ids in the grid.
            hidden: Flat ids of the tokens to predict.
            grid: Tokens along (time, rows, columns).
        """
        B, K, _ = context.shape
        queries = self.mask_token.expand(B, hidden.shape[1], -1)
        x = torch.cat((self.predictor_embed(context), queries), dim=1)  # (B, K + M, E)
        positions = grid_positions(*grid).to(x.device)[torch.cat((kept, hidden), dim=1)]
        cos, sin = rope_table(positions, self.embed_dim // self.num_heads, self.rope)
        for block in self.predictor_blocks:
            x = block(x, (cos[:, None], sin[:, None]))
        x = self.predictor_norm(x)
        return self.predictor_proj(x[:, K:]), self.predictor_proj_context(x[:, :K])
