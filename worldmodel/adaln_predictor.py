"""The action-conditioned predictor of JEPA-WMs: the action steers the norms of every block."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldmodel.frame_groups import block_causal_mask, group_positions
from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    PROPRIO_SIZE,
    ROTATION,
    euler_to_matrix,
)
from worldmodel.predictor import PredictorCache
from worldmodel.rope import RopeStyle, rope_table
from worldmodel.transformer import MLP, Attention, KeyValueCache, initialise

POSE_SIZE = 3 + 6 + 1  # position, two columns of the rotation matrix, gripper
MODULATION_STD = 0.2  # ten times that of the other layers, as JEPA-WMs'


class AdaLNBlock(nn.Module):
    """A transformer block that one condition per frame steers (Peebles and Xie 2023, section 3.2).

    A linear layer of SiLU(condition) gives shift, scale and gate for each of the two branches:
    x + gate * Attention((1 + scale) * LN(x) + shift), then the same with the MLP. The norms have no
    weights of their own.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float, layer_norm_eps: float):
        super().__init__()
        self.modulation = nn.Linear(embed_dim, 6 * embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim, eps=layer_norm_eps, elementwise_affine=False)
        self.attn = Attention(embed_dim=embed_dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=layer_norm_eps, elementwise_affine=False)
        self.mlp = MLP(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "batch frames tokens dim"],
        condition: Float[Tensor, "batch frames dim"],
        rope: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "queries keys"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch frames tokens dim"]:
        """Maps tokens to tokens; all tokens of a frame share its condition."""
        frames = x.shape[1:3]
        modulation = self.modulation(F.silu(condition))[:, :, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation  # each (B, T, 1, E)
        steered = (1 + scale) * self.norm1(x) + shift
        attended = self.attn(steered.flatten(1, 2), rope, mask, cache).unflatten(1, frames)
        x = x + gate * attended
        return x + mlp_gate * self.mlp((1 + mlp_scale) * self.norm2(x) + mlp_shift)


class AdaLNPredictor(nn.Module):
    """AdaLN predictor (JEPA-WMs, arXiv 2512.24497): latents, pose, action to the next latents.

    A frame is its N patches; a patch attends to its own frame and to those before it. The action
    that leaves a frame is no token: it shifts, scales and gates the frame's patches in every block.
    Output slice t predicts the latents of frame t + 1. It stands wherever an
    `ActionConditionedPredictor` does. The defaults are the size trained on DROID.

    Args:
        latent_dim: Size D of the latents that go in and come out.
        grid_size: (rows, columns) of a frame's tokens.
        embed_dim: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        proprio_dim: Size of the pose embedding that joins every patch's channels; 0 leaves the pose
            out, as for DROID.
        rope: Rotary table, see `worldmodel.rope`.
        layer_norm_eps: Epsilon of every layer norm.
        residual: Whether the output is added to the input latents (ours) or not (JEPA-WMs').
    """

    num_views = 1  # no more than one camera, and its pose is not asked for
    use_extrinsics = False
    proprio_mean: Tensor
    proprio_std: Tensor
    action_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        grid_size: Sequence[int],
        embed_dim: int = 1024,
        depth: int = 12,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        proprio_dim: int = 0,
        rope: RopeStyle = "tiled",
        layer_norm_eps: float = 1e-6,
        residual: bool = True,
    ):
        super().__init__()
        if proprio_dim < 0:
            raise ValueError(f"proprio_dim must be 0 or more, got {proprio_dim}")
        self.latent_dim = latent_dim
        self.grid_size = (int(grid_size[0]), int(grid_size[1]))
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.proprio_dim = proprio_dim
        self.rope: RopeStyle = rope
        self.layer_norm_eps = layer_norm_eps
        self.residual = residual

        self.predictor_embed = nn.Linear(latent_dim + proprio_dim, embed_dim)
        self.action_encoder = nn.Linear(ACTION_SIZE, embed_dim)
        self.state_encoder = nn.Linear(POSE_SIZE, proprio_dim) if proprio_dim else None
        self.predictor_blocks = nn.ModuleList(
            AdaLNBlock(
                embed_dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                layer_norm_eps=layer_norm_eps,
            )
            for _ in range(depth)
        )
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.predictor_proj = nn.Linear(embed_dim, latent_dim)
        # Input scales, set from the training data; the identity leaves the inputs as they are.
        self.register_buffer("proprio_mean", torch.zeros(POSE_SIZE))
        self.register_buffer("proprio_std", torch.ones(POSE_SIZE))
        self.register_buffer("action_std", torch.ones(ACTION_SIZE))
        # No output layer is scaled down with depth: the gates keep young branches small.
        initialise(self, nn.ModuleList())
        for block in self.predictor_blocks:
            assert isinstance(block, AdaLNBlock)
            nn.init.trunc_normal_(block.modulation.weight, std=MODULATION_STD)

    def forward(
        self,
        latents: Float[Tensor, "batch frames tokens dim"],
        proprio: Float[Tensor, "batch frames 7"],
        actions: Float[Tensor, "batch frames 7"],
        extrinsics: Float[Tensor, "batch frames 6"] | None = None,
        cache: PredictorCache | None = None,
    ) -> Float[Tensor, "batch frames tokens dim"]:
        """Returns the predicted latents of the frame after each given one, before any norm.

        Args:
            latents: Latents of T frames.
            proprio: End-effector state at each frame.
            actions: Action that leaves each frame.
            extrinsics: Always None; part of what every predictor is called with.
            cache: The frames before these; this call adds its own to it. Cached and uncached
                results are equal because attention never looks ahead.

        Raises:
            ValueError: A shape does not fit the model, or there are extrinsics.
        """
        self._check(latents, proprio, actions, extrinsics)
        T, N = latents.shape[1:3]
        past = cache.num_frames if cache is not None else 0
        positions = group_positions(T, self.grid_size, num_conditions=0, first_frame=past)
        rope = rope_table(positions.to(latents.device), self.embed_dim // self.num_heads, self.rope)
        mask = block_causal_mask(T, N, past_frames=past, device=latents.device) if T > 1 else None

        x = latents
        with torch.autocast(actions.device.type, enabled=False):  # poses to the millimetre
            condition = self.action_encoder(actions / self.action_std)  # (B, T, E)
            if self.state_encoder is not None:
                pose = (self.pose_vector(proprio) - self.proprio_mean) / self.proprio_std
                state = self.state_encoder(pose)[:, :, None].expand(-1, -1, N, -1)
                x = torch.cat((latents, state), dim=-1)
        x = self.predictor_embed(x)  # (B, T, N, E)
        for index, block in enumerate(self.predictor_blocks):
            layer = cache.layers[index] if cache is not None else None
            x = block(x, condition, rope, mask, layer)
        if cache is not None:
            cache.num_frames += T
        out = self.predictor_proj(self.predictor_norm(x))
        return latents + out if self.residual else out

    def new_cache(self) -> PredictorCache:
        """Returns an empty cache."""
        return PredictorCache([KeyValueCache() for _ in range(self.depth)])

    def pose_vector(self, proprio: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch values"]:
        """Returns the pose as numbers without a jump: a rotation matrix in place of the angles."""
        columns = euler_to_matrix(proprio[..., ROTATION])[..., :, :2].flatten(-2)  # (..., 6)
        return torch.cat((proprio[..., POSITION], columns, proprio[..., GRIPPER]), dim=-1)

    def _check(
        self, latents: Tensor, proprio: Tensor, actions: Tensor, extrinsics: Tensor | None
    ) -> None:
        N = self.grid_size[0] * self.grid_size[1]
        if latents.ndim != 4 or latents.shape[2:] != (N, self.latent_dim):
            raise ValueError(
                f"latents must have shape (batch, frames, {N}, {self.latent_dim}), "
                f"got {tuple(latents.shape)}"
            )
        B, T = latents.shape[:2]
        for name, value, size in (
            ("proprio", proprio, PROPRIO_SIZE),
            ("actions", actions, ACTION_SIZE),
        ):
            if value.shape != (B, T, size):
                raise ValueError(
                    f"{name} must have shape ({B}, {T}, {size}) to go with latents "
                    f"{tuple(latents.shape)}, got {tuple(value.shape)}"
                )
        if extrinsics is not None:
            raise ValueError("an AdaLNPredictor takes no extrinsics; leave them out")
