"""The action-conditioned predictor of V-JEPA 2-AC: latents, pose, action to the next latents.

With several views, several embodiments and a window it is that predictor's extension along the line
of RoboJEPA (arXiv 2610.10515); with the defaults it is exactly V-JEPA 2-AC's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldmodel.embodiment import END_EFFECTOR, Embodiment, embodiment_sizes
from worldmodel.frame_groups import block_causal_mask, group_positions, hide_missing, join_views
from worldmodel.names import unknown
from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    PROPRIO_SIZE,
    ROTATION,
    euler_to_matrix,
    integrate,
)
from worldmodel.rope import RopeStyle, rope_table
from worldmodel.transformer import KeyValueCache, initialise, make_blocks

EXTRINSICS_SIZE = 6
RotationInput = Literal["euler", "matrix"]


@dataclass
class PredictorCache:
    """What the predictor has already seen of a rollout.

    Attributes:
        layers: One key-value cache per block.
        num_frames: How many frames were seen. With a window the layers hold the last of them only.
        view_mask: Which views the held frames had, (B, held frames, V); None if all had all.
    """

    layers: list[KeyValueCache]
    num_frames: int = 0
    view_mask: Tensor | None = None

    def repeat(self, times: int) -> "PredictorCache":
        """Returns a cache in which each batch entry stands `times` times in a row."""
        views = self.view_mask
        return PredictorCache(
            [layer.repeat(times) for layer in self.layers],
            self.num_frames,
            views.repeat_interleave(times, dim=0) if views is not None else None,
        )

    def drop(self, num_frames: int, group_size: int) -> None:
        """Forgets the `num_frames` oldest frames held, of `group_size` tokens each."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys = layer.keys[:, :, num_frames * group_size :]
                layer.values = layer.values[:, :, num_frames * group_size :]
        if self.view_mask is not None:
            self.view_mask = self.view_mask[:, num_frames:]


class ActionConditionedPredictor(nn.Module):
    """V-JEPA 2-AC predictor (Assran et al. 2025, section 3.1); state-dict names are Meta's.

    Each frame becomes a group of tokens [action, proprio, (extrinsics), N patches]; a group attends
    to itself and to the groups before it. Output slice t predicts the latents of frame t + 1.
    With V views a group is [action, proprio, (V extrinsics), V * N patches].

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
        num_views: Camera views V of a frame. Above 1, latents are (B, T, V, N, D), and what comes
            from a view carries the embedding learned for it.
        embodiments: Further robots by name, each with the sizes (action, proprio) of what it
            speaks in. They share all but their projections (`Embodiment`). An arm that speaks in
            end-effector poses needs none: it is "end_effector", which every predictor has.
        window: How many frames a frame attends to, its own included; all before it if None.
            Through the blocks it still hears of older ones, `window - 1` more with each.
        use_proprio: Whether the end effector's pose is told at all. If not, zeros stand where it
            would enter, so that the same weights fit; latents and action alone then say what comes.
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
        num_views: int = 1,
        embodiments: Mapping[str, Sequence[int]] | None = None,
        window: int | None = None,
        use_proprio: bool = True,
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
        if num_views < 1:
            raise ValueError(f"num_views must be 1 or more, got {num_views}")
        self.num_views = num_views
        self.embodiments = embodiment_sizes(embodiments or {})
        if window is not None and window < 1:
            raise ValueError(f"window must be 1 or more frames, or None for all, got {window}")
        self.window = window
        if not use_proprio and self.embodiments:
            raise ValueError(
                "use_proprio=False leaves out the end effector's pose, not that of other "
                f"embodiments ({', '.join(self.embodiments)}); leave them out, or use the pose"
            )
        self.use_proprio = use_proprio

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
        self.embodiment_encoders = nn.ModuleDict(
            {
                name: Embodiment(action_size=action, proprio_size=proprio, embed_dim=embed_dim)
                for name, (action, proprio) in self.embodiments.items()
            }
        )
        initialise(self, self.predictor_blocks)
        if num_views > 1:
            self.view_embed = nn.Parameter(torch.empty(num_views, embed_dim))
            nn.init.trunc_normal_(self.view_embed, std=0.02)

    def forward(
        self,
        latents: Float[Tensor, "batch frames *views tokens dim"],
        proprio: Float[Tensor, "batch frames proprio"],
        actions: Float[Tensor, "batch frames action"],
        extrinsics: Float[Tensor, "batch frames *views 6"] | None = None,
        cache: PredictorCache | None = None,
        *,
        view_mask: Bool[Tensor, "batch frames num_views"] | None = None,
        embodiment: str = END_EFFECTOR,
    ) -> Float[Tensor, "batch frames *views tokens dim"]:
        """Returns the predicted latents of the frame after each given one, before any norm.

        Args:
            latents: Latents of T frames, (B, T, N, D), or (B, T, V, N, D) with several views.
            proprio: State at each frame: the end effector's, or what the embodiment speaks in.
            actions: Action that leaves each frame.
            extrinsics: Camera pose (metres, extrinsic xyz Euler) of each view at each frame.
            cache: The frames before these; this call adds its own to it. Cached and uncached
                results are equal because attention never looks ahead.
            view_mask: False where a view is missing; each frame needs one that is there. What
                stands in for a missing view is never read: nothing attends to its tokens, and they
                enter as zeros. What comes out for it is a guess that no loss should use.
            embodiment: Whose actions and proprio these are; one for the whole batch.

        Raises:
            ValueError: A shape does not fit the model, the embodiment is unknown, or a frame has no
                view at all.
        """
        self._check(latents, proprio, actions, extrinsics, view_mask, embodiment)
        B, T = latents.shape[:2]
        V, N = self.num_views, latents.shape[-2]
        past = cache.num_frames if cache is not None else 0
        held = past if self.window is None else min(past, self.window - 1)
        if view_mask is not None:
            latents = latents.masked_fill(~view_mask[..., None, None], 0)
            if extrinsics is not None:
                extrinsics = extrinsics.masked_fill(~view_mask[..., None], 0)

        conditions = [token[:, :, None] for token in self._conditions(proprio, actions, embodiment)]
        if extrinsics is not None:
            cameras = self.extrinsics_encoder(extrinsics)
            conditions.append(cameras + self.view_embed if V > 1 else cameras[:, :, None])
        patches = self.predictor_embed(latents)
        if V > 1:
            patches = (patches + self.view_embed[:, None]).flatten(2, 3)  # (B, T, V * N, E)
        group = torch.cat([*conditions, patches], dim=2)  # (B, T, G, E)
        G = group.shape[2]
        positions = group_positions(
            T, self.grid_size, num_conditions=G - V * N, num_views=V, first_frame=past
        )
        rope = rope_table(positions.to(latents.device), self.embed_dim // self.num_heads, self.rope)
        mask = None  # one frame sees itself and all that the cache still holds
        if T > 1:
            mask = block_causal_mask(
                T, G, past_frames=held, window=self.window, device=latents.device
            )
        views = join_views(cache.view_mask if cache is not None else None, view_mask, (held, T))
        if views is not None:
            mask = hide_missing(mask, views, num_frames=T, num_patches=N, group_size=G)

        x = group.flatten(1, 2)  # (B, T * G, E)
        for index, block in enumerate(self.predictor_blocks):
            x = block(x, rope, mask, cache.layers[index] if cache is not None else None)
        if cache is not None:
            cache.num_frames += T
            cache.view_mask = views
            if self.window is not None and held + T >= self.window:
                cache.drop(held + T - (self.window - 1), G)
        x = x.view(B, T, G, self.embed_dim)[:, :, G - V * N :]  # (B, T, V * N, E)
        out = self.predictor_proj(self.predictor_norm(x)).view(latents.shape)
        return latents + out if self.residual else out

    def add_embodiment(self, name: str, *, action_size: int, proprio_size: int) -> Embodiment:
        """Adds the projections of another robot, with first weights, and keeps all the others.

        Raises:
            ValueError: The name is taken, or the predictor is told no proprio.
        """
        if name in self.embodiments:
            raise ValueError(f"there is an embodiment {name!r} already")
        if not self.use_proprio:
            raise ValueError("a predictor with use_proprio=False takes no other embodiments")
        self.embodiments = embodiment_sizes({**self.embodiments, name: (action_size, proprio_size)})
        robot = Embodiment(
            action_size=action_size, proprio_size=proprio_size, embed_dim=self.embed_dim
        )
        initialise(robot, nn.ModuleList())
        self.embodiment_encoders[name] = robot
        return robot

    def new_cache(self) -> PredictorCache:
        """Returns an empty cache."""
        return PredictorCache([KeyValueCache() for _ in range(self.depth)])

    def pose_features(self, proprio: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch features"]:
        """Returns what the proprio token is made from: the scaled pose and its Fourier features.

        All zero without `use_proprio`.
        """
        if not self.use_proprio:
            return proprio.new_zeros(*proprio.shape[:-1], self.state_encoder.in_features)
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

    def _conditions(self, proprio: Tensor, actions: Tensor, embodiment: str) -> list[Tensor]:
        if embodiment != END_EFFECTOR:
            return self.embodiment_encoders[embodiment](proprio, actions)
        with torch.autocast(actions.device.type, enabled=False):  # poses to the millimetre
            action, pose = self.action_features(proprio, actions), self.pose_features(proprio)
        return [self.action_encoder(action), self.state_encoder(pose)]

    def _check(
        self,
        latents: Tensor,
        proprio: Tensor,
        actions: Tensor,
        extrinsics: Tensor | None,
        view_mask: Tensor | None,
        embodiment: str,
    ) -> None:
        sizes = {END_EFFECTOR: (ACTION_SIZE, PROPRIO_SIZE), **self.embodiments}
        if embodiment not in sizes:
            raise ValueError(unknown("embodiment", embodiment, sizes))
        action_size, proprio_size = sizes[embodiment]
        whose = f" and embodiment {embodiment!r}" if self.embodiments else ""
        views = (self.num_views,) if self.num_views > 1 else ()
        frame = (*views, self.grid_size[0] * self.grid_size[1], self.latent_dim)
        if latents.ndim != 2 + len(frame) or latents.shape[2:] != frame:
            raise ValueError(
                f"latents must have shape (batch, frames, {', '.join(map(str, frame))}), "
                f"got {tuple(latents.shape)}"
            )
        B, T = latents.shape[:2]
        for name, value, shape in (
            ("proprio", proprio, (B, T, proprio_size)),
            ("actions", actions, (B, T, action_size)),
            ("extrinsics", extrinsics, (B, T, *views, EXTRINSICS_SIZE)),
            ("view_mask", view_mask, (B, T, self.num_views)),
        ):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape} to go with latents {tuple(latents.shape)}"
                    f"{whose}, got {tuple(value.shape)}"
                )
        if self.use_extrinsics and extrinsics is None:
            raise ValueError("this predictor was built with use_extrinsics=True; pass extrinsics")
        if not self.use_extrinsics and extrinsics is not None:
            raise ValueError("this predictor takes no extrinsics (use_extrinsics=False)")
        if view_mask is not None and self.num_views == 1:
            raise ValueError("view_mask needs several views, but this predictor has num_views=1")
        if view_mask is not None and not view_mask.any(dim=2).all():
            entry, time = (~view_mask.any(dim=2)).nonzero()[0].tolist()
            raise ValueError(
                f"view_mask leaves frame {time} of batch entry {entry} no view at all; leave such "
                "frames out of the batch"
            )
