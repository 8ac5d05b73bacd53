"""LeWorldModel: encoder and dynamics end to end from pixels, with two loss terms and no target."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.interface import Batch, Loss, Needs, Objective
from worldmodel.objectives.projector import Projector, pooled_tokens
from worldmodel.objectives.sigreg import random_directions, sigreg
from worldmodel.pose import action_between

MIN_ACTION_STD = 0.01  # [m, rad, gripper]; keeps an axis that never moves from exploding


class LeWorldModel(Objective):
    """LeWorldModel (Maes et al. 2026, arXiv 2603.19312): next latents from actions, plus SIGReg.

    Each frame becomes one latent (or one for each of some cells); a causal transformer, steered by
    the actions, predicts that of the next frame. The loss is the mean square of its error, with a
    gradient through both sides, plus SIGReg, which alone keeps the latents apart. Unlike there, the
    latent comes from the mean of the tokens and not from a class token, positions are rotary, the
    gates of the predictor begin small but not at zero, there is no dropout, and statistics are
    those of the whole batch over all processes.

    Args:
        encoder: The encoder that is trained.
        grid_size: Tokens of a frame along rows and columns.
        frames: Frames of a window; all but the last are history.
        strides: Distances of consecutive frames in model steps; one of them is drawn each time.
        cells: Side of the square of cells whose tokens are averaged into one latent each; 1 as
            published.
        latent_dim: Size of a latent.
        projector_dim: Hidden size of the two projectors, after the encoder and after the predictor.
        predictor_depth: Blocks of the predictor.
        predictor_heads: Its attention heads.
        predictor_mlp_ratio: Its MLP width over `latent_dim`.
        sigreg_weight: Weight of SIGReg.
        num_directions: Random directions, drawn anew each step.
        num_knots: See `worldmodel.objectives.sigreg`.
    """

    remedy = "raise objective.sigreg_weight, or batch_size, on which SIGReg sees the distribution"

    def __init__(
        self,
        *,
        encoder: VideoEncoder,
        grid_size: Sequence[int],
        frames: int,
        strides: Sequence[int],
        cells: int,
        latent_dim: int,
        projector_dim: int,
        predictor_depth: int,
        predictor_heads: int,
        predictor_mlp_ratio: float,
        sigreg_weight: float,
        num_directions: int,
        num_knots: int,
    ):
        super().__init__()
        if frames < 2:
            raise ValueError(
                f"frames must be 2 or more, to have a next one to predict, got {frames}"
            )
        self.frames = frames
        self.strides = list(strides)
        self.cells = cells
        self.latent_dim = latent_dim
        self.projector_dim = projector_dim
        self.predictor_depth = predictor_depth
        self.predictor_heads = predictor_heads
        self.predictor_mlp_ratio = predictor_mlp_ratio
        self.sigreg_weight = sigreg_weight
        self.num_directions = num_directions
        self.num_knots = num_knots
        self.needs = Needs(frames=frames, strides=tuple(strides))
        self.projector = Projector((encoder.embed_dim, projector_dim, latent_dim), nn.GELU)
        self.predictor = AdaLNPredictor(
            latent_dim=latent_dim,
            grid_size=(cells, cells),
            embed_dim=latent_dim,
            depth=predictor_depth,
            num_heads=predictor_heads,
            mlp_ratio=predictor_mlp_ratio,
            proprio_dim=0,
            rope="interleaved",
            residual=False,
        )
        self.predicted_projector = Projector((latent_dim, projector_dim, latent_dim), nn.GELU)

    @torch.no_grad()
    def set_scales(self, proprio: Sequence[Float[Tensor, "_ 7"]]) -> None:
        """Sets the scale of each axis of the actions."""
        actions = torch.cat(
            [action_between(p[:-s], p[s:]) for p in proprio for s in self.strides if len(p) > s]
        )
        self.predictor.action_std.copy_(actions.std(0).clamp_min(MIN_ACTION_STD))

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the seed of the directions, which are the same in every process."""
        return {"seed": torch.randint(2**62, (), generator=generator)}

    def losses(self, encoder: VideoEncoder, batch: Batch) -> Iterator[Loss]:
        """Yields prediction and SIGReg in one."""
        generator = torch.Generator().manual_seed(int(batch.chosen["seed"]))
        latents = self.latents(encoder, batch)  # (B, T, cells^2, latent_dim)
        predicted = self.predict(latents, batch.proprio)
        prediction = (predicted - latents[:, 1:]).square().mean()
        directions = random_directions(
            self.latent_dim, self.num_directions, generator=generator
        ).to(latents.device)
        normality = sigreg(latents.flatten(1, 2), directions, num_knots=self.num_knots)
        yield Loss(
            total=prediction + self.sigreg_weight * normality,
            parts={"prediction": prediction, "sigreg": normality},
        )

    def latents(
        self, encoder: VideoEncoder, batch: Batch
    ) -> Float[Tensor, "batch frames cells dim"]:
        """Returns the projected latents of every frame."""
        images = batch.pixels().flatten(0, 1)
        pooled = pooled_tokens(encoder, images, self.cells)  # (B * T, cells^2, D)
        projected = self.projector(pooled.flatten(0, 1)).float()
        return projected.unflatten(0, (len(batch.frames), self.frames, self.cells**2))

    def predict(
        self,
        latents: Float[Tensor, "batch frames cells dim"],
        proprio: Float[Tensor, "batch frames 7"],
    ) -> Float[Tensor, "batch steps cells dim"]:
        """Returns what follows each frame but the last, of the frames up to it and the actions."""
        actions = action_between(proprio[:, :-1], proprio[:, 1:])
        ahead = self.predictor(latents[:, :-1], proprio[:, :-1], actions)
        projected = self.predicted_projector(ahead.flatten(0, 2)).float()
        return projected.unflatten(0, ahead.shape[:3])
