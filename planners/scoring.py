"""Imagine candidate plans with the world model and score them: what every planner does."""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.planners.interfaces import Cost, Observation, WorldModel


def score_plans(
    world: WorldModel,
    cost: Cost,
    observation: Observation,
    goal: Float[Tensor, "batch token latent"],
    plans: Float[Tensor, "batch sample horizon action"],
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, "batch sample"]:
    """Returns the cost of every plan.

    Args:
        world: imagines the plans.
        cost: scores what was imagined.
        observation: where the plans start.
        goal: latents of the goal image.
        plans: candidates, physical units per model step.
        chunk_size: most plans imagined at once per batch element, to bound memory; None is all.

    Raises:
        ValueError: a cost is NaN, so the ranking would be meaningless.
    """
    now = observation.latents[:, -1]
    costs = []
    for chunk in plans.split(chunk_size or plans.shape[1], dim=1):
        past = observation.past_actions[:, None].expand(-1, chunk.shape[1], -1, -1)
        actions = torch.cat([past, chunk], dim=2)  # (B, S, C-1+H, A)
        latents = world.rollout(observation.latents, observation.proprio, actions)
        costs.append(cost(latents, chunk, goal, now))
    scores = torch.cat(costs, dim=1)  # (B, S)
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise ValueError(
            f"{num_nan} of {scores.numel()} imagined futures have a NaN cost; check the world "
            "model's weights and precision on this input"
        )
    return scores
