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


class LatentEnergy:
    """Distance between imagined latents and the goal's. The defaults are V-JEPA 2-AC's energy."""

    def __init__(self, *, distance: str = "l1", step: str = "terminal", focus: str = "all") -> None:
        """Chooses what is compared.

        Args:
            distance: "l1", the mean absolute difference, or "l2", the mean squared one.
            step: "terminal", the last imagined step only; "mean", the average of all.
            focus: "all" tokens alike, or "moving": each weighs as much as it must change from now
                to the goal (by L1; the weights of an image add up to 1), so that the resting
                background and what imagination errs about it do not count.
        """
        require_choice("distance", distance, ("l1", "l2"))
        require_choice("step", step, ("terminal", "mean"))
        require_choice("focus", focus, ("all", "moving"))
        self.distance = distance
        self.step = step
        self.focus = focus

    def __call__(
        self,
        latents: Float[Tensor, "batch sample horizon token latent"],
        actions: Float[Tensor, "batch sample horizon action"],
        goal: Float[Tensor, "batch token latent"],
        now: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch sample"]:
        """Returns the energy of every imagined future, in float32.

        Raises:
            ValueError: the goal's latents have another shape than the imagined ones.
        """
        if latents.shape[-2:] != goal.shape[-2:] or latents.shape[0] != goal.shape[0]:
            raise ValueError(
                f"goal latents must be (B, N, D) like the imagined ones {tuple(latents.shape)} "
                f"(B, S, H, N, D), got {tuple(goal.shape)}; encode both with the same world model"
            )
        first = latents.shape[2] - 1 if self.step == "terminal" else 0
        difference = latents[:, :, first:] - goal[:, None, None]  # (B, S, 1 or H, N, D)
        size = difference.abs_() if self.distance == "l1" else difference.square_()
        if self.focus == "all":
            return size.mean(dim=(-2, -1), dtype=torch.float32).mean(dim=-1)
        weights = moving_tokens(now, goal)[:, None, None]  # (B, 1, 1, N)
        return (size.mean(dim=-1, dtype=torch.float32) * weights).sum(dim=-1).mean(dim=-1)


def moving_tokens(
    now: Float[Tensor, "batch token latent"], goal: Float[Tensor, "batch token latent"]
) -> Float[Tensor, "batch token"]:
    """Returns how much of the change from now to the goal is each token's; they add up to 1.

    Where nothing changes at all, every token weighs the same.
    """
    change = (goal - now).abs().mean(dim=-1, dtype=torch.float32)  # (B, N)
    total = change.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, change / total, 1 / change.shape[-1])


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
        now: Float[Tensor, "batch token latent"],
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
        now: Float[Tensor, "batch token latent"],
    ) -> Float[Tensor, "batch sample"]:
        """Returns the weighted sum for every imagined future."""
        # Added up one by one: a matrix product would lose precision under autocast.
        terms = [
            weight * cost(latents, actions, goal, now)
            for cost, weight in zip(self.costs, self.weights, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)  # (B, S)
