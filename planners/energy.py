"""Costs: the latent distance to the goal, a price on large actions, and weighted sums of costs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.planners.checks import per_axis, require_choice, require_fractions
from worldmodel.planners.interfaces import Cost


def latent_l1(
    latents: Float[Tensor, "*batch token latent"], goal: Float[Tensor, "*#batch token latent"]
) -> Float[Tensor, "*batch"]:
    """Returns the mean absolute difference over tokens and channels, in float32.

    The energy of V-JEPA 2-AC (Assran et al. 2025, arXiv 2506.09985, section 3.2).
    """
    difference = latents - goal
    # In place: at ViT-g size the difference of 800 plans is 1.1 GB, and one of it is enough.
    return difference.abs_().mean(dim=(-2, -1), dtype=torch.float32)


class LatentL1Energy:
    """Mean absolute difference between imagined latents and the goal's."""

    def __init__(self, *, step: str = "terminal") -> None:
        """Chooses which steps count: "terminal", the last only; "mean", the average of all."""
        require_choice("step", step, ("terminal", "mean"))
        self.step = step

    def __call__(
        self,
        latents: Float[Tensor, "batch sample horizon token latent"],
        actions: Float[Tensor, "batch sample horizon action"],
        goal: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch sample"]:
        """Returns the energy of every imagined future.

        Raises:
            ValueError: the goal's latents have another shape than the imagined ones.
        """
        if latents.shape[-2:] != goal.shape[-2:] or latents.shape[0] != goal.shape[0]:
            raise ValueError(
                f"goal latents must be (B, N, D) like the imagined ones {tuple(latents.shape)} "
                f"(B, S, H, N, D), got {tuple(goal.shape)}; encode both with the same world model"
            )
        if self.step == "terminal":
            return latent_l1(latents[:, :, -1], goal[:, None])
        return latent_l1(latents, goal[:, None, None]).mean(dim=-1)


class ActionPenalty:
    """Weight times the mean square of the actions, each axis in units of its `scale`."""

    def __init__(self, *, weight: float, scale: float | Sequence[float]) -> None:
        """Prices large actions.

        Args:
            weight: cost of a plan whose every action is as large as `scale`.
            scale: what counts as large, one number or one per axis, physical units; usually the
                upper action bounds. An axis with scale 0 is free of charge.
        """
        require_fractions("weight", weight)
        require_fractions("scale", scale)
        self.weight = weight
        self.scale = scale

    def __call__(
        self,
        latents: Float[Tensor, "batch sample horizon token latent"],
        actions: Float[Tensor, "batch sample horizon action"],
        goal: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch sample"]:
        """Returns the penalty of every plan."""
        scale = per_axis("scale", self.scale, actions.shape[-1]).to(actions)
        priced = scale > 0
        return self.weight * (actions[..., priced] / scale[priced]).square().mean(dim=(-2, -1))


class WeightedSum:
    """A sum of costs, each multiplied by its weight."""

    def __init__(self, *, costs: Sequence[Cost], weights: Sequence[float]) -> None:
        """Adds up `costs`; one weight each."""
        if not costs or len(costs) != len(weights):
            raise ValueError(
                "a weighted sum needs at least one cost and one weight per cost, got "
                f"{len(costs)} costs and {len(weights)} weights"
            )
        self.costs = tuple(costs)
        self.weights = tuple(float(weight) for weight in weights)

    def __call__(
        self,
        latents: Float[Tensor, "batch sample horizon token latent"],
        actions: Float[Tensor, "batch sample horizon action"],
        goal: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch sample"]:
        """Returns the weighted sum for every imagined future."""
        terms = [cost(latents, actions, goal) for cost in self.costs]  # each (B, S)
        weights = torch.tensor(self.weights, dtype=terms[0].dtype, device=terms[0].device)
        return torch.tensordot(weights, torch.stack(terms), dims=1)
