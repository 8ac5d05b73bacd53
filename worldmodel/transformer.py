"""The pre-norm transformer block that encoder and predictors share."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldmodel.rope import rotate


@dataclass
class KeyValueCache:
    """Keys and values of the tokens one attention layer has already seen.

    Attributes:
        keys: (B, heads, tokens, head_dim), rotated; None before the first call.
        values: (B, heads, tokens, head_dim).
        is_last: The next tokens are the last. They are not kept, and what was kept is let go once
            they have seen it, so no more than one layer's is held twice.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    is_last: bool = False

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new tokens and returns all keys and values, old and new."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        elif not self.is_last:
            values = values.contiguous()  # a view would keep the whole query-key-value tensor
        self.keys, self.values = (None, None) if self.is_last else (keys, values)
        return keys, values

    def repeat(self, times: int) -> "KeyValueCache":
        """Returns a cache in which each batch entry stands `times` times in a row."""
        if self.keys is None or self.values is None:
            return KeyValueCache()
        return KeyValueCache(
            self.keys.repeat_interleave(times, dim=0), self.values.repeat_interleave(times, dim=0)
        )


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions and one fused query-key-value layer."""

    def __init__(self, *, embed_dim: int, num_heads: int):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        rope: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "*masks tokens all_tokens"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attends from `x` to itself, after the cached tokens if there is a cache."""
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_dim)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.append(k, v)
        out = attend(q, k, v, mask)
        return self.proj(out.transpose(1, 2).reshape(B, N, D))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Returns scaled dot-product attention; all (B, heads, tokens, head_dim).

    On a CPU the fused kernel's backward pass is slower in bfloat16 than in float32, and many times
    slower than plain products.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


class MLP(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, *, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., embed_dim) to (..., embed_dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float, layer_norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.attn = Attention(embed_dim=embed_dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.mlp = MLP(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        rope: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "*masks tokens all_tokens"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Maps tokens to tokens; `mask` is True where attention is allowed."""
        x = x + self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm2(x))


def make_blocks(
    *, depth: int, embed_dim: int, num_heads: int, mlp_ratio: float, layer_norm_eps: float
) -> nn.ModuleList:
    """Returns `depth` blocks of one size."""
    return nn.ModuleList(
        Block(
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        for _ in range(depth)
    )


def take_tokens(
    x: Float[Tensor, "batch tokens dim"], ids: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken dim"]:
    """Returns the tokens `ids` of each batch entry."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def initialise(module: nn.Module, blocks: nn.ModuleList) -> None:
    """Initialises `module` in place as V-JEPA 2 does (Assran et al. 2025, public code).

    Linear and convolution weights are truncated normal with std 0.02, biases 0, norms 1 and 0;
    the output layers of the l-th block (from 1) are then divided by sqrt(2 l).
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2.0 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2.0 * number))
