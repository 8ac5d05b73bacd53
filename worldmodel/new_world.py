"""A world model with its first weights, and the scales of the recordings it will learn from."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.data.latent_views import LatentViews
from worldmodel.data.latents import LatentCache
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.encode import LatentJob
from worldmodel.jepa import JEPA
from worldmodel.pose import action_between
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.state_head import MIN_POSE_STD, StateHead

MIN_LATENT_STD = 0.02  # below this a latent channel is constant and must not be blown up
MIN_ACTION_STD = 0.01  # [m, rad, gripper]; keeps an axis that never moves from exploding


def new_world(
    build_predictor: Callable[..., ActionConditionedPredictor | AdaLNPredictor],
    *,
    job: LatentJob,
    num_views: int,
    hz: float,
    proprio: Float[Tensor, "n frames 7"],
    state_head: bool,
    standardise: bool,
    seed: int,
) -> JEPA:
    """Returns a world model with its first weights, on the frozen encoder of a job.

    Args:
        build_predictor: Makes the predictor, given `latent_dim` and `grid_size`, and `num_views`
            where there are several.
        job: What the latents are of.
        num_views: Cameras seen at once.
        hz: Their rate [Hz].
        proprio: Poses of training windows, which say how far one step goes.
        state_head: Whether it has one.
        standardise: Whether latents are standardised.
        seed: Of the weights.

    Raises:
        ValueError: The predictor takes one view only.
    """
    views = {}
    if num_views > 1:
        if getattr(build_predictor, "func", build_predictor) is AdaLNPredictor:
            raise ValueError(
                "an AdaLNPredictor sees one camera; use predictor=mini, small or vjepa2_ac for "
                "several"
            )
        views = {"num_views": num_views}
    encoder, merge, pool = job.encode.encoder, job.encode.merge, job.recipe.pool
    side = job.encode.image_size // encoder.patch_size // merge // pool
    latent_dim = encoder.embed_dim * merge**2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        predictor = build_predictor(latent_dim=latent_dim, grid_size=(side, side), **views)
        tokens = num_views * side**2
        head = StateHead(latent_dim=latent_dim, num_tokens=tokens) if state_head else None
    steps = action_between(proprio[:, :-1], proprio[:, 1:]).abs().flatten(0, 1)
    world = JEPA(
        encoder=encoder,
        predictor=predictor,
        image_size=job.encode.image_size,
        merge=merge,
        pool=pool,
        standardise=standardise,
        control_hz=hz,
        crop=job.encode.crop,
        action_limit=steps.quantile(0.99, dim=0).tolist(),
        state_head=head,
    )
    world.encoder.requires_grad_(False)
    if head is not None:
        head.set_scales(proprio.flatten(0, 1))
    return world


def freeze_unused(
    predictor: ActionConditionedPredictor | AdaLNPredictor, embodiment: str = END_EFFECTOR
) -> None:
    """Freezes what windows of an embodiment never use: DDP need not look for it.

    A predictor owns it because published checkpoints carry it, or for other embodiments.
    """
    if isinstance(predictor, ActionConditionedPredictor):
        predictor.extrinsics_encoder.requires_grad_(predictor.use_extrinsics)
        predictor.embodiment_encoders.requires_grad_(False)
        if embodiment != END_EFFECTOR:
            predictor.embodiment_encoders[embodiment].requires_grad_(True)
            predictor.action_encoder.requires_grad_(False)
            predictor.state_encoder.requires_grad_(False)


@torch.no_grad()
def set_input_scales(
    world: JEPA,
    cache: LatentCache | LatentViews,
    ids: Sequence[int],
    proprio: Float[Tensor, "n frames 7"],
) -> None:
    """Sets latent statistics over the episodes `ids`, and pose and action scales from windows."""
    moments = cache.moments(ids)
    world.latent_mean.copy_(torch.as_tensor(moments.mean))
    world.latent_std.copy_(torch.as_tensor(moments.std).clamp_min(MIN_LATENT_STD))

    predictor = world.predictor
    features = predictor.pose_vector(proprio).flatten(0, 1)
    predictor.proprio_mean.copy_(features.mean(0))
    predictor.proprio_std.copy_(features.std(0).clamp_min(MIN_POSE_STD))
    actions = action_between(proprio[:, :-1], proprio[:, 1:]).flatten(0, 1)
    predictor.action_std.copy_(actions.std(0).clamp_min(MIN_ACTION_STD))
