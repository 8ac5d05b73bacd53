"""The cross-entropy method: sample plans, keep the elites, sample again around them.

Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999; kept
elites as in Pinneri et al., "Sample-efficient Cross-Entropy Method for Real-time Planning", 2020.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.planners.action_space import GRIPPER
from worldmodel.planners.checks import per_axis, require_choice, require_count, require_fractions
from worldmodel.planners.interfaces import (
    ActionBounds,
    Cost,
    Generators,
    Observation,
    Plan,
    Proposer,
    WorldModel,
    require_finite,
)
from worldmodel.planners.scoring import score_plans

MIN_CORRELATION_STD = 0.1  # keeps a few elites from squeezing the search into a plane


class CEM:
    """Cross-entropy planner: our defaults, and by its arguments the public V-JEPA 2-AC one.

    A batch of B problems is solved at once. With a generator for each of them, a problem sees the
    noise it would see alone, and its plan is the one it would get alone, up to the rounding of
    the world's and the cost's arithmetic on a batch. With a single generator, the problems share
    one noise tensor drawn in the order (B, S, H, A).
    """

    def __init__(
        self,
        *,
        cost: Cost,
        horizon: int = 1,
        num_samples: int = 256,
        num_samples_first: int | None = None,
        num_elites: int = 24,
        num_iterations: int = 6,
        keep_elites: float = 0.25,
        first_iteration: str = "normal",
        num_proposals: int = 0,
        proposal_std: float | Sequence[float] = 0.1,
        initial_std: float | Sequence[float] = 0.5,
        min_std: float | Sequence[float] = 0.02,
        mean_momentum: float | Sequence[float] = 0.0,
        std_momentum: float | Sequence[float] = 0.0,
        covariance: str = "diagonal",
        returns: str = "mean",
        hold: bool = False,
        gripper_dead_zone: float = 0.0,
        close_gripper: int | None = None,
        chunk_size: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Sets the search up.

        Args:
            cost: scores imagined futures.
            horizon: planned model steps.
            num_samples: new plans per iteration.
            num_samples_first: plans of the first iteration; None means `num_samples`.
            num_elites: best plans that define the next distribution.
            num_iterations: iterations when no deadline interferes.
            keep_elites: fraction of the elites, rounded up, that compete again in the next
                iteration. They are not imagined again. 0 forgets them.
            first_iteration: "normal" around the mean, or "uniform" over the bounds, which searches
                them all when the energy is flat near the mean.
            num_proposals: plans of the first iteration, among `num_samples_first`, drawn normally
                around the action the world proposes, spread evenly over the horizon; the first
                of them is exactly that. Above 0 the world must be a `Proposer`.
            proposal_std: their standard deviation in units of half the bounds' width, one number
                or one per axis, where the proposal is as long as the bounds allow. A guess errs
                less the shorter the move: around half as long a one they lie half as wide, and
                never closer than `min_std`.
            initial_std: standard deviation at the start in units of half the bounds' width, one
                number or one per axis.
            min_std: the standard deviation never falls below this, same units.
            mean_momentum: m in `mean = (1 - m) * elite_mean + m * mean`, one number or per axis.
            std_momentum: the same for the standard deviation.
            covariance: "diagonal" samples every axis by itself; "full" follows the elites'
                covariance over all steps and axes. Depth is what one camera sees worst, so the
                energy has a narrow valley along the line of sight, askew to the axes, and a
                diagonal search ends on its wall.
            returns: "mean", the last elite mean, or "best", the best plan ever imagined.
            hold: whether staying put competes with the plan found, scored by what the camera shows
                now instead of by imagination. At the goal, where imagination errs more than the
                arm, this ends the search for a better place. Right for a scene at rest.
            gripper_dead_zone: a returned gripper change smaller than this becomes 0.
            close_gripper: model step from which every sample closes the gripper, by +1 whatever
                the bounds; None leaves the gripper to the search.
            chunk_size: most plans imagined at once, to bound memory; None is all.
            clock: seconds, monotonic; replaced in tests.
        """
        require_count("horizon", horizon, low=1)
        require_count("num_iterations", num_iterations, low=1)
        require_count("num_samples", num_samples, low=2)
        if num_samples_first is not None:
            require_count("num_samples_first", num_samples_first, low=2)
        fewest = min(num_samples, num_samples_first or num_samples)
        require_count("num_elites", num_elites, low=2, high=fewest)
        # One place stays free for the warm start.
        most = (num_samples_first or num_samples) - 1
        require_count("num_proposals", num_proposals, low=0, high=most)
        if not 0 <= keep_elites <= 1:
            raise ValueError(f"keep_elites must be a fraction in [0, 1], got {keep_elites}")
        require_choice("first_iteration", first_iteration, ("normal", "uniform"))
        require_choice("covariance", covariance, ("diagonal", "full"))
        require_choice("returns", returns, ("mean", "best"))
        require_fractions("proposal_std", proposal_std)
        require_fractions("initial_std", initial_std)
        require_fractions("min_std", min_std)
        require_fractions("mean_momentum", mean_momentum, high=1)
        require_fractions("std_momentum", std_momentum, high=1)
        require_fractions("gripper_dead_zone", gripper_dead_zone)
        if close_gripper is not None:
            require_count("close_gripper", close_gripper, low=0, high=horizon - 1)
        if chunk_size is not None:
            require_count("chunk_size", chunk_size, low=1)
        self.cost = cost
        self.horizon = horizon
        self.num_samples = num_samples
        self.num_samples_first = num_samples_first or num_samples
        self.num_elites = num_elites
        self.num_iterations = num_iterations
        self.num_kept = math.ceil(keep_elites * num_elites)
        self.first_iteration = first_iteration
        self.num_proposals = num_proposals
        self.proposal_std = proposal_std
        self.initial_std = initial_std
        self.min_std = min_std
        self.mean_momentum = mean_momentum
        self.std_momentum = std_momentum
        self.covariance = covariance
        self.returns = returns
        self.hold = hold
        self.gripper_dead_zone = gripper_dead_zone
        self.close_gripper = close_gripper
        self.chunk_size = chunk_size
        self.clock = clock

    @torch.inference_mode()
    def plan(
        self,
        world: WorldModel,
        observation: Observation,
        goal: Float[Tensor, "batch token latent"],
        *,
        bounds: ActionBounds,
        warm_start: Float[Tensor, "batch horizon action"] | None = None,
        deadline_ms: float | None = None,
        generator: Generators,
    ) -> Plan:
        """Returns the best plan found.

        Args:
            world: imagines the plans.
            observation: where they start.
            goal: latents of the goal image.
            bounds: allowed actions; an axis with low == high stays at that value.
            warm_start: the first mean, clipped to the bounds, and itself a candidate of the first
                iteration. None starts from zero actions.
            deadline_ms: stop before an iteration that would end later than this. The first
                iteration always runs.
            generator: source of all noise, or one source per problem; same state, same plan. It
                may live on another device than the latents: noise is drawn where it lives.

        Raises:
            TypeError: proposals are asked of a world that makes none.
            ValueError: `warm_start`, `bounds`, the generators or the deadline do not fit.
        """
        start = self.clock()
        if deadline_ms is not None and not deadline_ms >= 0:
            raise ValueError(f"deadline_ms must be at least 0, got {deadline_ms}")
        B, H, A = observation.latents.shape[0], self.horizon, bounds.low.shape[0]
        K = self.num_elites
        device = observation.latents.device

        low, high = bounds.low.to(device).expand(H, A), bounds.high.to(device).expand(H, A)
        half_width = (high - low) / 2  # (H, A)
        mean_momentum = per_axis("mean_momentum", self.mean_momentum, A).to(device)
        std_momentum = per_axis("std_momentum", self.std_momentum, A).to(device)
        min_std = per_axis("min_std", self.min_std, A).to(device) * half_width
        std = per_axis("initial_std", self.initial_std, A).to(device) * half_width
        std = std.expand(B, H, A)
        proposal_std = per_axis("proposal_std", self.proposal_std, A).to(device) * half_width
        mean = self._first_mean(warm_start, shape=(B, H, A)).to(low).clamp(low, high)

        # Sampling has limits of its own: close_gripper forces values outside the bounds.
        sample_low, sample_high = low.clone(), high.clone()
        if self.close_gripper is not None:
            sample_low[self.close_gripper :, GRIPPER] = 1.0
            sample_high[self.close_gripper :, GRIPPER] = 1.0

        elites, elite_cost = mean.new_empty(B, 0, H, A), mean.new_empty(B, 0)
        best, best_cost = mean, mean.new_full((B,), math.inf)
        history: list[Tensor] = []
        evaluations, cut_short = 0, False
        for iteration in range(self.num_iterations):
            S = self.num_samples if iteration else self.num_samples_first
            iteration_start = self.clock()
            fresh = S if iteration else S - self.num_proposals
            if iteration == 0 and self.first_iteration == "uniform":
                noise = draw(torch.rand, (B, fresh, H, A), generator).to(device)
                plans = sample_low + (sample_high - sample_low) * noise
            else:
                noise = draw(torch.randn, (B, fresh, H, A), generator).to(device)
                if iteration and self.covariance == "full":
                    noise = correlate(noise, elites, min_ratio=MIN_CORRELATION_STD)
                plans = mean[:, None] + std[:, None] * noise
            if fresh < S:
                noise = draw(torch.randn, (B, S - fresh, H, A), generator).to(device)
                noise[:, 0] = 0.0
                proposed = self._propose(world, observation, goal).to(mean)[:, None, None]
                length = (proposed.abs() / half_width).where(half_width > 0, 0.0)
                length = length.amax(dim=(-2, -1), keepdim=True).clamp(max=1.0)  # (B, 1, 1, 1)
                spread = (proposal_std * length).maximum(min_std)
                plans = torch.cat([plans, proposed + spread * noise], dim=1)
            plans = plans.clamp(sample_low, sample_high)  # (B, S, H, A)
            if iteration == 0 and warm_start is not None:
                plans[:, 0] = mean.clamp(sample_low, sample_high)
            cost = score_plans(
                world, self.cost, observation, goal, plans, chunk_size=self.chunk_size
            )
            evaluations += S

            plans = torch.cat([elites[:, : self.num_kept], plans], dim=1)
            cost = torch.cat([elite_cost[:, : self.num_kept], cost.to(mean)], dim=1)
            elite_cost, order = cost.topk(K, dim=1, largest=False)  # (B, K), the best first
            elites = plans.take_along_dim(order[:, :, None, None], dim=1)  # (B, K, H, A)
            mean = (1 - mean_momentum) * elites.mean(dim=1) + mean_momentum * mean
            std = (1 - std_momentum) * elites.std(dim=1) + std_momentum * std
            std = std.maximum(min_std)
            better = elite_cost[:, 0] < best_cost
            best = torch.where(better[:, None, None], elites[:, 0], best)
            best_cost = torch.where(better, elite_cost[:, 0], best_cost)
            history.append(elite_cost[:, 0])

            if deadline_ms is not None and iteration + 1 < self.num_iterations:
                now = self.clock()
                # Time grows with the number of plans; two more are scored below.
                predicted = (now - iteration_start) * (self.num_samples + 2) / S
                if 1000 * (now + predicted - start) > deadline_ms:
                    cut_short = True
                    break

        if self.returns == "best":
            actions = best
        else:
            # Rounding must not carry a mean of plans inside the bounds out of them.
            actions = mean.clamp(low.minimum(sample_low), high.maximum(sample_high))
        grip = actions[..., GRIPPER]
        dead = (grip != 0) & (grip.abs() < self.gripper_dead_zone)  # (B, H)
        if dead.any():
            actions = actions.clone()
            actions[..., GRIPPER] = grip.masked_fill(dead, 0.0)
        still = torch.zeros_like(actions)
        scored = score_plans(
            world,
            self.cost,
            observation,
            goal,
            torch.stack([still, actions], dim=1),
            chunk_size=self.chunk_size,
        ).to(mean)
        evaluations += 2
        still_cost, best_cost = scored.unbind(dim=1)
        gain = (still_cost - best_cost) / still_cost.clamp_min(torch.finfo(mean.dtype).tiny)
        if self.hold:
            now = observation.latents[:, -1]
            stayed = now[:, None, None].expand(-1, 1, H, -1, -1)  # (B, 1, H, N, D)
            seen_cost = self.cost(stayed, still[:, None], goal, now)[:, 0].to(mean)
            allowed = ((low <= 0) & (high >= 0)).all()
            stays = (seen_cost <= best_cost) & allowed
            actions = torch.where(stays[:, None, None], still, actions)
            best_cost = torch.where(stays, seen_cost, best_cost)
        elapsed_ms = 1000 * (self.clock() - start)
        return Plan(
            actions=actions,
            std=std,
            cost=best_cost,
            gain=gain,
            evaluations=evaluations,
            iterations=len(history),
            elapsed_ms=elapsed_ms,
            deadline_hit=cut_short or (deadline_ms is not None and elapsed_ms > deadline_ms),
            cost_history=torch.stack(history),
        )

    def _propose(self, world: WorldModel, observation: Observation, goal: Tensor) -> Tensor:
        """Returns one step of the world's proposal (B, A)."""
        if not isinstance(world, Proposer):
            raise TypeError(
                f"num_proposals={self.num_proposals} needs a world model that proposes actions, "
                f"but {type(world).__name__} has no method propose(latents, proprio, goal); set "
                "num_proposals to 0 or take a model trained with a state head"
            )
        proposal = world.propose(observation.latents[:, -1], observation.proprio[:, -1], goal)
        require_finite("proposed action", proposal)
        return proposal / self.horizon

    @staticmethod
    def _first_mean(warm_start: Tensor | None, *, shape: tuple[int, int, int]) -> Tensor:
        if warm_start is None:
            return torch.zeros(shape)
        if warm_start.shape != shape:
            raise ValueError(f"warm_start must be {shape} (B, H, A), got {tuple(warm_start.shape)}")
        return warm_start


def draw(sample: Callable[..., Tensor], shape: tuple[int, ...], generator: Generators) -> Tensor:
    """Returns `sample` noise (B, ...): of one generator, or of one for each of the B problems."""
    if isinstance(generator, torch.Generator):
        return sample(shape, generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"a batch of {shape[0]} problems needs one generator or {shape[0]}, "
            f"got {len(generator)}"
        )
    return torch.stack([sample(shape[1:], generator=g, device=g.device) for g in generator])


def correlate(
    noise: Float[Tensor, "batch sample horizon action"],
    elites: Float[Tensor, "batch elite horizon action"],
    *,
    min_ratio: float,
) -> Float[Tensor, "batch sample horizon action"]:
    """Returns unit noise with the correlations of the elites over all steps and axes.

    Args:
        noise: independent, standard normal.
        elites: plans whose correlation matrix the result follows.
        min_ratio: no direction gets a smaller standard deviation than this.
    """
    with torch.autocast(noise.device.type, enabled=False):  # the world may imagine in bfloat16
        deviations = (elites - elites.mean(dim=1, keepdim=True)).flatten(2)  # (B, K, H * A)
        spread = deviations.std(dim=1, keepdim=True)
        moving = spread > 0
        unit = deviations / torch.where(moving, spread, 1.0)
        correlation = unit.mT @ unit / (elites.shape[1] - 1)  # (B, H * A, H * A)
        still = torch.diag_embed((~moving[:, 0]).to(unit))  # fixed axes: variance 1
        values, vectors = torch.linalg.eigh(correlation + still)
        scales = values.clamp_min(0).sqrt().clamp_min(min_ratio)
        root = (vectors * scales[:, None]) @ vectors.mT
        return (noise.flatten(2) @ root).view_as(noise)
