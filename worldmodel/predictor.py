"""The action-conditioned predictor of V-JEPA 2-AC: latents, pose, action to the next latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    PROPRIO_SIZE,
    ROTATION,
    euler_to_matrix,
    integrate,
)
from worldmodel.rope import RopeStyle, grid_positions, rope_table
from worldmodel.transformer import KeyValueCache, initialise, make_blocks

EXTRINSICS_SIZE = 6
RotationInput = Literal["euler", "matrix"]


@dataclass
class PredictorCache:
    """What the predictor has already seen of a rollout.

    Attributes:
        layers: One key-value cache per block.
        num_frames: How many frames the cache holds.
    """

    layers: list[KeyValueCache]
    num_frames: int = 0

    def repeat(self, times: int) -> "PredictorCache":
        """Returns a cache in which each batch entry stands `times` times in a row."""
        return PredictorCache([layer.repeat(times) for layer in self.layers], self.num_frames)


class ActionConditionedPredictor(nn.Module):
    """V-JEPA 2-AC predictor (Assran et al. 2025, section 3.1); state-dict names are Meta's.

    Each frame becomes a group of tokens [action, proprio, (extrinsics), N patches]; a group attends
    to itself and to the groups before it. Output slice t predicts the latents of frame t + 1.

    Args:
        latent_dim: Size D of the latents that go in and come out.
        grid_size: (rows, columns) of a frame's tokens.
        embed_dim: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: MLP width over `embed_dim`.
        use_extrinsics: Whether a camera-pose token joins each group.
        rope: Rotary table, see `worldmodel.rope`.
        layer_norm_eps: Epsilon of every layer norm.
        residual: Whether the output is added to the input latents (ours) or not (Meta's).
        rotation_input: "euler" feeds the proprio as it is (Meta's); "matrix" feeds the first two
            columns of the rotation matrix in place of the angles. A gripper that looks straight
            down has roll pi or -pi, so as angles the same pose jumps between two far-apart inputs.
        num_frequencies: 0 feeds pose and action as they are (Meta's). Above 0, the position enters
            also as sines and cosines of this many octaves (Fourier features, Tancik et al. 2020),
            and the action token also carries the pose the action leads to. A small network learns
            features that change within centimetres much faster so.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    action_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        grid_size: Sequence[int],
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        use_extrinsics: bool = False,
        rope: RopeStyle = "interleaved",
        layer_norm_eps: float = 1e-6,
        residual: bool = True,
        rotation_input: RotationInput = "matrix",
        num_frequencies: int = 4,
    ):
        super().__init__()
        if rotation_input not in ("euler", "matrix"):
            raise ValueError(f"rotation_input must be 'euler' or 'matrix', got {rotation_input!r}")
        self.latent_dim = latent_dim
        self.grid_size = (int(grid_size[0]), int(grid_size[1]))
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.use_extrinsics = use_extrinsics
        self.rope: RopeStyle = rope
        self.layer_norm_eps = layer_norm_eps
        self.residual = residual
        self.rotation_input: RotationInput = rotation_input
        if num_frequencies < 0:
            raise ValueError(f"num_frequencies must be 0 or more, got {num_frequencies}")
        self.num_frequencies = num_frequencies

        scaled_size = PROPRIO_SIZE if rotation_input == "euler" else 3 + 6 + 1
        pose_size = scaled_size + 3 * 2 * num_frequencies
        action_size = ACTION_SIZE + (pose_size if num_frequencies else 0)
        self.predictor_embed = nn.Linear(latent_dim, embed_dim)
        self.action_encoder = nn.Linear(action_size, embed_dim)
        self.state_encoder = nn.Linear(pose_size, embed_dim)
        # Owned even when unused: Meta's checkpoints carry it (strict loading).
        self.extrinsics_encoder = nn.Linear(EXTRINSICS_SIZE, embed_dim)
        self.predictor_blocks = make_blocks(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_norm_eps=layer_norm_eps,
        )
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.predictor_proj = nn.Linear(embed_dim, latent_dim)
        # Input scales, set from the training data; the identity reproduces Meta's raw inputs.
        self.register_buffer("proprio_mean", torch.zeros(scaled_size))
        self.register_buffer("proprio_std", torch.ones(scaled_size))
        self.register_buffer("action_std", torch.ones(ACTION_SIZE))
        initialise(self, self.predictor_blocks)

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
            extrinsics: Camera pose (metres, extrinsic xyz Euler) at each frame.
            cache: The frames before these; this call adds its own to it. Cached and uncached
                results are equal because attention never looks ahead.

        Raises:
            ValueError: A shape does not fit the model.
        """
        self._check(latents, proprio, actions, extrinsics)
        B, T, N, _ = latents.shape
        past = cache.num_frames if cache is not None else 0

        conditioning = [
            self.action_encoder(self.action_features(proprio, actions)),
            self.state_encoder(self.pose_features(proprio)),
        ]
        if extrinsics is not None:
            conditioning.append(self.extrinsics_encoder(extrinsics))
        group = torch.cat(
            [token[:, :, None] for token in conditioning] + [self.predictor_embed(latents)], dim=2
        )  # (B, T, G, E)
        G = group.shape[2]
        rope = self._rope(past, T, num_conditioning=G - N, device=latents.device)
        mask = block_causal_mask(T, G, past_frames=past, device=latents.device) if T > 1 else None

        x = group.flatten(1, 2)  # (B, T * G, E)
        for index, block in enumerate(self.predictor_blocks):
            x = block(x, rope, mask, cache.layers[index] if cache is not None else None)
        if cache is not None:
            cache.num_frames += T
        x = x.view(B, T, G, self.embed_dim)[:, :, G - N :]  # (B, T, N, E)
        out = self.predictor_proj(self.predictor_norm(x))
        return latents + out if self.residual else out

    def new_cache(self) -> PredictorCache:
        """Returns an empty cache."""
        return PredictorCache([KeyValueCache() for _ in range(self.depth)])

    def pose_features(self, proprio: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch features"]:
        """Returns what the proprio token is made from: the scaled pose and its Fourier features."""
        scaled = (self.pose_vector(proprio) - self.proprio_mean) / self.proprio_std
        if self.num_frequencies == 0:
            return scaled
        octaves = 2.0 ** torch.arange(self.num_frequencies, device=proprio.device)
        phase = (scaled[..., POSITION, None] * octaves * (torch.pi / 2)).flatten(-2)
        return torch.cat((scaled, phase.sin(), phase.cos()), dim=-1)

    def action_features(
        self, proprio: Float[Tensor, "*batch 7"], actions: Float[Tensor, "*batch 7"]
    ) -> Float[Tensor, "*batch features"]:
        """Returns what the action token is made from: the scaled action, and where it leads."""
        scaled = actions / self.action_std
        if self.num_frequencies == 0:
            return scaled
        return torch.cat((scaled, self.pose_features(integrate(proprio, actions))), dim=-1)

    def pose_vector(self, proprio: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch values"]:
        """Returns the pose as numbers without a jump (`rotation_input`), in physical units."""
        if self.rotation_input == "euler":
            return proprio
        columns = euler_to_matrix(proprio[..., ROTATION])[..., :, :2].flatten(-2)  # (..., 6)
        return torch.cat((proprio[..., POSITION], columns, proprio[..., GRIPPER]), dim=-1)

    def _rope(
        self, past: int, num_frames: int, *, num_conditioning: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        rows, columns = self.grid_size
        patches = grid_positions(num_frames, rows, columns).view(num_frames, rows * columns, 3)
        # Conditioning tokens have a time only; position 0 leaves the other two slots unrotated.
        conditioning = torch.zeros(num_frames, num_conditioning, 3)
        conditioning[..., 0] = torch.arange(num_frames)[:, None]
        positions = torch.cat((conditioning, patches), dim=1).flatten(0, 1)  # (T * G, 3)
        positions[:, 0] += past
        return rope_table(positions.to(device), self.embed_dim // self.num_heads, self.rope)

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
            ("extrinsics", extrinsics, EXTRINSICS_SIZE),
        ):
            if value is not None and value.shape != (B, T, size):
                raise ValueError(
                    f"{name} must have shape ({B}, {T}, {size}) to go with latents "
                    f"{tuple(latents.shape)}, got {tuple(value.shape)}"
                )
        if self.use_extrinsics and extrinsics is None:
            raise ValueError("this predictor was built with use_extrinsics=True; pass extrinsics")
        if not self.use_extrinsics and extrinsics is not None:
            raise ValueError("this predictor takes no extrinsics (use_extrinsics=False)")


def block_causal_mask(
    num_frames: int, group_size: int, *, past_frames: int = 0, device: torch.device | None = None
) -> Bool[Tensor, "tokens all_tokens"]:
    """Returns the mask that lets each frame's tokens attend to their own and earlier frames.

    True where attention is allowed; rows are the tokens of the `num_frames` new frames, columns
    those of the `past_frames` cached frames and the new ones.
    """
    frame = torch.arange(past_frames + num_frames, device=device).repeat_interleave(group_size)
    return frame[past_frames * group_size :, None] >= frame[None, :]
