import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.planners import (
    CEM,
    ActionBounds,
    ActionPenalty,
    LatentEnergy,
    WeightedSum,
    random_shooting,
)
from worldmodel.planners.cem import correlate
from worldmodel.pose import action_between, integrate


def solve(planner, world, toy, target, *, bounds=None, seed=0, start=None, **arguments):
    """Plans from the toy start to proprio `target` (B, 7)."""
    start = toy.start if start is None else start
    return planner.plan(
        world,
        toy.observation_of(world, start),
        world.latents_of(target),
        bounds=toy.bounds if bounds is None else bounds,
        generator=torch.Generator().manual_seed(seed),
        **arguments,
    )


def cem(**changes):
    return CEM(cost=LatentEnergy(), **changes)


def long_cem(**changes):
    return cem(**({"num_iterations": 30, "min_std": 1e-4} | changes))


class FakeClock:
    """A clock that only a world moves: each imagined plan takes `seconds_per_plan`."""

    def __init__(self, seconds_per_plan):
        self.now, self.seconds_per_plan = 100.0, seconds_per_plan

    def __call__(self):
        return self.now

    def on_rollout(self, num_plans):
        self.now += num_plans * self.seconds_per_plan


# --- The optimum --------------------------------------------------------------------------------


def test_finds_the_action_that_reaches_the_goal_exactly(toy):
    action = torch.tensor([[0.03, -0.05, 0.01, 0.02, -0.1, 0.05, 0.2]])
    plan = solve(long_cem(), toy.mixed, toy, integrate(toy.start, action))
    torch.testing.assert_close(plan.actions[:, 0], action, atol=2e-3, rtol=0)
    assert plan.cost.item() < 2e-3


def test_finds_the_clipped_optimum_when_the_optimum_lies_outside_the_bounds(toy):
    target = toy.start + torch.tensor([[0.3, -0.5, 0.02, 0, 0, 0, 0.45]])
    plan = solve(long_cem(), toy.separable, toy, target)
    expected = torch.tensor([[0.075, -0.075, 0.02, 0, 0, 0, 0.4]])
    torch.testing.assert_close(plan.actions[:, 0], expected, atol=2e-3, rtol=0)


def test_reaches_in_two_steps_what_one_cannot(toy):
    target = toy.start + torch.tensor([[0.12, -0.1, 0.05, 0, 0, 0, 0]])
    one = solve(long_cem(horizon=1), toy.separable, toy, target)
    two = solve(long_cem(horizon=2), toy.separable, toy, target)
    assert two.actions.shape == (1, 2, 7)
    assert two.cost.item() < 0.1 * one.cost.item()


def test_every_problem_of_a_batch_reaches_its_own_optimum(toy):
    actions = torch.tensor([[0.05, 0, 0, 0, 0, 0, 0], [0, -0.04, 0.02, 0, 0, 0.1, 0.3]])
    start = toy.start + torch.tensor([[0.0] * 7, [0.1, 0, 0, 0, 0, 0, 0]])
    plan = solve(long_cem(), toy.mixed, toy, integrate(start, actions), start=start)
    torch.testing.assert_close(plan.actions[:, 0], actions, atol=3e-3, rtol=0)
    assert plan.cost.shape == (2,) and plan.cost_history.shape == (30, 2)


@pytest.mark.parametrize("returns", ["mean", "best"])
def test_the_cost_of_a_plan_is_the_cost_of_its_actions(toy, returns):
    target = toy.start + 0.05
    plan = solve(cem(horizon=2, returns=returns), toy.mixed, toy, target)
    pose = integrate(integrate(toy.start, plan.actions[:, 0]), plan.actions[:, 1])
    energy = (toy.mixed.latents_of(pose) - toy.mixed.latents_of(target)).abs().mean()
    torch.testing.assert_close(plan.cost, energy[None])


def test_returns_the_best_plan_ever_imagined_even_when_no_elites_are_kept(toy):
    planner = cem(
        returns="best", keep_elites=0.0, num_samples=8, num_elites=4, num_iterations=12, min_std=0.5
    )
    target = toy.start + 0.04
    plan = solve(planner, toy.mixed, toy, target)
    assert plan.cost.item() == plan.cost_history.min().item() < plan.cost_history[-1].item()
    pose = integrate(toy.start, plan.actions[:, 0])
    energy = (toy.mixed.latents_of(pose) - toy.mixed.latents_of(target)).abs().mean()
    torch.testing.assert_close(plan.cost, energy[None])


# --- Bounds -------------------------------------------------------------------------------------

limits = st.floats(0.0, 0.5, width=32)


@settings(max_examples=25, deadline=None)
@given(
    low=st.lists(limits, min_size=7, max_size=7),
    width=st.lists(limits, min_size=7, max_size=7),
    offset=st.floats(-1.0, 1.0, width=32),
    returns=st.sampled_from(["mean", "best"]),
    first_iteration=st.sampled_from(["normal", "uniform"]),
    seed=st.integers(0, 1000),
)
def test_never_leaves_the_bounds(toy, low, width, offset, returns, first_iteration, seed):
    low = torch.tensor(low) - 0.25
    bounds = ActionBounds(low=low, high=low + torch.tensor(width))
    seen = []

    def record(latents, actions, goal, now):
        seen.append(actions)
        return LatentEnergy()(latents, actions, goal, now)

    planner = CEM(
        cost=record,
        horizon=2,
        num_samples=12,
        num_elites=3,
        num_iterations=3,
        initial_std=2.0,
        mean_momentum=0.15,
        returns=returns,
        first_iteration=first_iteration,
    )
    warm_start = torch.full((1, 2, 7), offset)
    plan = solve(
        planner, toy.mixed, toy, toy.start + offset, bounds=bounds, seed=seed, warm_start=warm_start
    )
    for actions in [plan.actions, *seen[:-1]]:  # the last has staying put, which is no plan
        assert (actions >= bounds.low).all() and (actions <= bounds.high).all()


def test_axes_with_equal_bounds_stay_at_their_value(toy):
    low, high = toy.bounds.low.clone(), toy.bounds.high.clone()
    low[3:6] = high[3:6] = 0.0
    low[2] = high[2] = 0.033
    plan = solve(
        cem(initial_std=1.0, min_std=0.1),
        toy.mixed,
        toy,
        toy.start + 0.2,
        bounds=ActionBounds(low=low, high=high),
    )
    assert (plan.actions[..., 3:6] == 0).all()
    assert (plan.actions[..., 2] == high[2]).all()
    assert (plan.std[..., 2:6] == 0).all()


def test_a_uniform_first_iteration_covers_the_bounds_evenly(toy):
    seen = []

    def record(latents, actions, goal, now):
        seen.append(actions)
        return LatentEnergy()(latents, actions, goal, now)

    planner = CEM(
        cost=record, num_samples=50, num_samples_first=4000, num_iterations=2,
        first_iteration="uniform", initial_std=0.01,
    )  # fmt: skip
    plan = solve(planner, toy.mixed, toy, toy.start + 0.05)
    first = seen[0]
    assert [len(actions[0]) for actions in seen] == [4000, 50, 2]  # staying put, the mean
    unit = (first[0, :, 0] - toy.bounds.low) / (toy.bounds.high - toy.bounds.low)  # (S, A)
    quarters = torch.stack(
        [((unit >= q / 4) & (unit < (q + 1) / 4)).float().mean(0) for q in range(4)]
    )
    assert (quarters - 0.25).abs().max() < 0.03
    assert plan.evaluations == 4052


# --- Reproducible, monotone, warm ---------------------------------------------------------------


def test_the_same_seed_gives_the_same_plan_bit_for_bit_and_another_seed_another(toy):
    plans = [solve(cem(), toy.mixed, toy, toy.start + 0.05, seed=s) for s in (3, 3, 4)]
    assert torch.equal(plans[0].actions, plans[1].actions)
    assert torch.equal(plans[0].cost_history, plans[1].cost_history)
    assert not torch.equal(plans[0].actions, plans[2].actions)


def test_planning_does_not_touch_the_global_random_state(toy):
    before = torch.get_rng_state()
    solve(cem(first_iteration="uniform"), toy.mixed, toy, toy.start + 0.05)
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), keep=st.floats(0.01, 1.0))
def test_more_iterations_never_worsen_the_best_cost_when_elites_are_kept(toy, seed, keep):
    planner = cem(num_samples=8, num_elites=4, num_iterations=12, keep_elites=keep, min_std=0.5)
    history = solve(planner, toy.mixed, toy, toy.start + 0.04, seed=seed).cost_history[:, 0]
    assert (history.diff() <= 0).all()


def test_without_kept_elites_the_best_cost_of_an_iteration_can_rise(toy):
    planner = cem(num_samples=8, num_elites=4, num_iterations=12, keep_elites=0.0, min_std=0.5)
    history = solve(planner, toy.mixed, toy, toy.start + 0.04).cost_history[:, 0]
    assert (history.diff() > 0).any()


def test_a_warm_start_is_a_candidate_so_the_best_plan_is_never_worse(toy):
    action = torch.tensor([[[0.031, -0.052, 0.013, 0.02, -0.1, 0.05, 0.2]]])
    target = integrate(toy.start, action[:, 0])
    planner = cem(num_samples=4, num_elites=2, num_iterations=1, returns="best")
    cold = solve(planner, toy.mixed, toy, target)
    warm = solve(planner, toy.mixed, toy, target, warm_start=action)
    assert torch.equal(warm.actions, action) and warm.cost.item() < 1e-6
    assert cold.cost.item() > 0.01


def test_a_warm_start_moves_the_first_distribution(toy):
    action = torch.tensor([[[0.06, -0.06, 0.06, 0, 0, 0, 0]]])
    planner = cem(num_iterations=1, initial_std=0.01, num_samples=16, num_elites=4)
    plan = solve(planner, toy.mixed, toy, toy.start, warm_start=action)
    torch.testing.assert_close(plan.actions, action, atol=5e-3, rtol=0)


def test_a_warm_start_of_another_horizon_is_refused(toy):
    with pytest.raises(ValueError, match=r"warm_start must be \(1, 2, 7\).*got \(1, 1, 7\)"):
        solve(cem(horizon=2), toy.mixed, toy, toy.start, warm_start=torch.zeros(1, 1, 7))


def test_the_std_floor_is_kept_in_units_of_half_the_bounds(toy):
    plan = solve(cem(min_std=0.2, num_iterations=20), toy.mixed, toy, toy.start)
    assert (plan.std >= 0.2 * toy.bounds.high * (1 - 1e-6)).all()


def test_chunks_change_the_batch_size_and_nothing_else(toy):
    sizes = []
    world = toy.LinearWorld(toy.mixed.matrix, on_rollout=sizes.append)
    whole = solve(cem(num_samples=25), toy.mixed, toy, toy.start + 0.05)
    chunked = solve(cem(num_samples=25, chunk_size=10), world, toy, toy.start + 0.05)
    torch.testing.assert_close(chunked.actions, whole.actions)
    assert sizes[:3] == [10, 10, 5] and chunked.evaluations == whole.evaluations == 6 * 25 + 2


# --- Deadline -----------------------------------------------------------------------------------


def test_stops_before_an_iteration_that_would_end_after_the_deadline(toy):
    clock = FakeClock(seconds_per_plan=0.001)
    world = toy.LinearWorld(toy.mixed.matrix, on_rollout=clock.on_rollout)
    planner = cem(num_samples=100, num_iterations=10, clock=clock)
    plan = solve(planner, world, toy, toy.start, deadline_ms=350)
    assert plan.iterations == 3 and plan.deadline_hit
    assert plan.elapsed_ms == pytest.approx(302) and plan.cost_history.shape == (3, 1)


def test_a_larger_first_iteration_does_not_make_the_next_look_slow(toy):
    clock = FakeClock(seconds_per_plan=0.001)
    world = toy.LinearWorld(toy.mixed.matrix, on_rollout=clock.on_rollout)
    planner = cem(num_samples=100, num_samples_first=200, num_iterations=10, clock=clock)
    assert solve(planner, world, toy, toy.start, deadline_ms=350).iterations == 2


def test_always_does_one_iteration_and_says_that_it_was_late(toy):
    clock = FakeClock(seconds_per_plan=0.001)
    world = toy.LinearWorld(toy.mixed.matrix, on_rollout=clock.on_rollout)
    for num_iterations in (1, 10):
        planner = cem(num_samples=100, num_iterations=num_iterations, clock=clock)
        plan = solve(planner, world, toy, toy.start, deadline_ms=0)
        assert plan.iterations == 1 and plan.deadline_hit


def test_a_generous_deadline_is_not_hit(toy):
    clock = FakeClock(seconds_per_plan=0.001)
    world = toy.LinearWorld(toy.mixed.matrix, on_rollout=clock.on_rollout)
    planner = cem(num_samples=100, num_iterations=3, clock=clock)
    plan = solve(planner, world, toy, toy.start, deadline_ms=303)
    assert plan.iterations == 3 and not plan.deadline_hit


# --- Errors and the baseline --------------------------------------------------------------------


def test_a_nan_cost_is_an_error_and_not_a_bad_rank(toy):
    def broken(latents, actions, goal, now):
        cost = LatentEnergy()(latents, actions, goal, now)
        cost[:, 3] = math.nan
        return cost

    with pytest.raises(ValueError, match="1 of 16 imagined futures have a NaN cost"):
        solve(CEM(cost=broken, num_samples=16, num_elites=2), toy.mixed, toy, toy.start)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_elites": 512}, "num_elites must be between 2 and 256, got 512"),
        ({"num_elites": 1}, "num_elites must be between 2 and 256, got 1"),
        ({"num_samples_first": 10}, "num_elites must be between 2 and 10, got 24"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"returns": "mena"}, "unknown returns 'mena'; did you mean 'mean'"),
        ({"first_iteration": "unifrom"}, "did you mean 'uniform'"),
        ({"mean_momentum": 1.0}, r"mean_momentum must be in \[0, 1\), got 1.0"),
        ({"min_std": -0.1}, "min_std must be at least 0, got -0.1"),
        ({"keep_elites": 3}, r"keep_elites must be a fraction in \[0, 1\], got 3"),
        ({"close_gripper": 1}, "close_gripper must be between 0 and 0, got 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        cem(**arguments)


def test_a_setting_with_too_few_axes_is_refused(toy):
    with pytest.raises(ValueError, match=r"initial_std must be one number or one per action axis"):
        solve(cem(initial_std=[0.1, 0.2]), toy.mixed, toy, toy.start)


def test_random_shooting_takes_the_best_of_uniform_plans(toy):
    target = toy.start + torch.tensor([[0.05, 0, 0, 0, 0, 0, 0]])
    shooting = random_shooting(cost=LatentEnergy(), num_samples=500)
    plan = solve(shooting, toy.mixed, toy, target)
    searched = solve(cem(num_samples=83), toy.mixed, toy, target)
    assert plan.iterations == 1 and plan.evaluations == 502
    assert plan.cost.item() == plan.cost_history[0, 0].item()
    assert searched.cost.item() < plan.cost.item()  # the same effort, spent with a plan


@pytest.mark.gpu
def test_plans_on_the_gpu_as_on_the_cpu_when_the_noise_comes_from_the_cpu(toy):
    target = toy.start + 0.05
    expected = solve(cem(), toy.mixed, toy, target)
    world = toy.LinearWorld(toy.mixed.matrix.cuda())
    plan = solve(cem(), world, toy, target.cuda(), start=toy.start.cuda())
    assert plan.actions.is_cuda
    torch.testing.assert_close(plan.actions.cpu(), expected.actions, atol=1e-3, rtol=0)


# --- Full covariance ------------------------------------------------------------------------------


def valley_world(toy, *, weak=0.05):
    """Latents see motion along (1, 1, 1) `weak` times as well as motion across it."""
    along = torch.ones(3, 1) / math.sqrt(3)
    seen = torch.eye(3) - (1 - weak) * along @ along.T  # (3, 3)
    matrix = torch.zeros(7, 32)
    matrix[:3] = seen.repeat(1, 11)[:, :32]
    return toy.LinearWorld(matrix)


def test_full_covariance_follows_a_narrow_valley_askew_to_the_axes(toy):
    world = valley_world(toy)
    bounds = ActionBounds.symmetric([0.3] * 3 + [0.0] * 4)
    target = toy.start + torch.tensor([[0.2, 0.18, 0.21, 0, 0, 0, 0]])

    def miss(covariance, seed):
        planner = cem(
            covariance=covariance, first_iteration="uniform", num_samples=128, num_iterations=6
        )
        plan = solve(planner, world, toy, target, bounds=bounds, seed=seed)
        return float((plan.actions[0, 0, :3] - (target - toy.start)[0, :3]).norm())

    full = sum(miss("full", seed) for seed in range(8)) / 8
    diagonal = sum(miss("diagonal", seed) for seed in range(8)) / 8
    assert full < 0.5 * diagonal
    assert full < 0.03


def test_correlated_noise_has_the_correlations_of_the_elites_and_unit_variance():
    generator = torch.Generator().manual_seed(0)
    direction = torch.tensor([1.0, -2.0, 0.5])
    elites = torch.randn(1, 64, 1, 1, generator=generator) * direction
    elites = elites + 0.2 * torch.randn(1, 64, 1, 3, generator=generator)
    noise = correlate(
        torch.randn(1, 20_000, 1, 3, generator=generator), elites, min_ratio=1e-3
    ).flatten(0, 2)
    expected = torch.corrcoef(elites.flatten(0, 2).T)
    torch.testing.assert_close(torch.cov(noise.T), expected, atol=0.05, rtol=0)


def test_full_covariance_keeps_fixed_axes_fixed_and_stays_in_the_bounds(toy):
    target = toy.start + torch.tensor([[0.3, -0.5, 0.02, 0, 0, 0, 0.45]])
    bounds = ActionBounds.symmetric([0.075, 0.0, 0.075, 0.0, 0.0, 0.0, 0.4])
    plan = solve(cem(covariance="full", horizon=2), toy.mixed, toy, target, bounds=bounds)
    assert (plan.actions.abs() <= bounds.high).all()
    assert (plan.actions[..., [1, 3, 4, 5]] == 0).all()


# --- Holding still --------------------------------------------------------------------------------


class BiasedWorld:
    """Imagines every future slightly off, as a learned model does, but sees the present exactly."""

    control_hz = 4.0

    def __init__(self, world, bias):
        self.world, self.bias = world, bias

    def encode(self, frames):
        return self.world.encode(frames)

    def predict(self, latents, proprio, actions):
        return self.world.predict(latents, proprio, actions) + self.bias

    def rollout(self, latents, proprio, actions):
        return self.world.rollout(latents, proprio, actions) + self.bias


@pytest.mark.parametrize("distance, holds", [(0.0, True), (0.05, False)])
def test_holds_where_seeing_beats_imagining_and_moves_elsewhere(toy, distance, holds):
    world = BiasedWorld(toy.separable, bias=torch.linspace(0.0, 0.01, 32).view(4, 8))
    target = toy.start + distance * torch.tensor([[1.0, -1.0, 1.0, 0, 0, 0, 0]])
    biased = cem(hold=True).plan(
        world,
        toy.observation_of(toy.separable, toy.start),
        toy.separable.latents_of(target),
        bounds=toy.bounds,
        generator=torch.Generator().manual_seed(0),
    )
    restless = cem(hold=False).plan(
        world,
        toy.observation_of(toy.separable, toy.start),
        toy.separable.latents_of(target),
        bounds=toy.bounds,
        generator=torch.Generator().manual_seed(0),
    )
    assert bool((biased.actions == 0).all()) == holds
    assert not (restless.actions == 0).all()
    if holds:
        assert biased.cost.item() == pytest.approx(0.0, abs=1e-6)
        assert restless.cost.item() > biased.cost.item()
    else:
        torch.testing.assert_close(biased.actions, restless.actions)


def test_does_not_hold_where_the_bounds_forbid_standing_still(toy):
    bounds = ActionBounds(
        low=torch.tensor([0.02] + [-0.01] * 6), high=torch.tensor([0.05] + [0.01] * 6)
    )
    plan = solve(cem(hold=True), toy.separable, toy, toy.start, bounds=bounds)
    assert (plan.actions[..., 0] >= 0.02).all()


# --- Proposals ------------------------------------------------------------------------------------


def guessing(toy, error):
    """The mixed world with a method `propose`: the right action plus `error` (7,)."""

    class Guessing(toy.LinearWorld):
        def propose(self, latents, proprio, goal):
            torch.testing.assert_close(latents, self.latents_of(proprio))
            target = goal.flatten(1) @ torch.linalg.pinv(self.matrix)
            return action_between(proprio, target) + error

    return Guessing(toy.mixed.matrix)


def recording(seen):
    def cost(latents, actions, goal, now):
        seen.append(actions)
        return LatentEnergy()(latents, actions, goal, now)

    return cost


ACTION = torch.tensor([[0.05, -0.06, 0.03, 0.02, -0.1, 0.05, 0.2]])


def test_proposals_are_the_last_of_the_first_samples_and_lie_around_the_proposal(toy):
    seen = []
    planner = CEM(
        cost=recording(seen), horizon=2, num_samples=64, num_samples_first=500, num_elites=4,
        num_iterations=2, first_iteration="uniform", num_proposals=400, proposal_std=0.05,
    )  # fmt: skip
    error = torch.tensor([0.0, 0, 0, 0, 0, 0, 1.0])  # proposes a gripper change out of bounds
    solve(planner, guessing(toy, error), toy, integrate(toy.start, ACTION))
    first, second = seen[0][0], seen[1][0]
    assert len(first) == 500 and len(second) == 64
    expected = (ACTION / 2).expand(2, -1).clone()
    expected[:, 6] = 0.4  # the bound
    torch.testing.assert_close(first[100], expected, atol=1e-4, rtol=0)
    proposed = first[100:, :, :6]
    torch.testing.assert_close(proposed.mean(0), expected[:, :6], atol=3e-3, rtol=0)
    std = 0.05 * toy.bounds.high[:6]  # in full: the gripper's change is as long as can be
    torch.testing.assert_close(proposed.std(0), std.expand(2, -1), atol=0.0, rtol=0.15)
    assert first[:100, :, 0].std() > 0.5 * toy.bounds.high[0]  # the others are as configured


@pytest.mark.parametrize(("share", "std"), [(0.6, 0.12), (0.05, 0.03), (0.0, 0.03)])
def test_proposals_of_shorter_moves_lie_closer_but_never_closer_than_min_std(toy, share, std):
    seen = []
    planner = CEM(
        cost=recording(seen), num_samples=500, num_elites=4, num_iterations=1,
        num_proposals=400, proposal_std=0.2, min_std=0.03,
    )  # fmt: skip
    action = torch.zeros(1, 7)
    action[0, 1] = share * toy.bounds.low[1]  # any axis, either direction
    solve(planner, guessing(toy, torch.zeros(7)), toy, integrate(toy.start, action))
    proposed = seen[0][0, 100:, 0] / toy.bounds.high
    torch.testing.assert_close(proposed.std(0), torch.full((7,), std), atol=0.0, rtol=0.15)


def test_a_warm_start_competes_beside_proposals(toy):
    seen = []
    planner = CEM(cost=recording(seen), num_samples=8, num_elites=2, num_proposals=7)
    warm_start = torch.full((1, 1, 7), 0.033)
    solve(planner, guessing(toy, torch.zeros(7)), toy, toy.start, warm_start=warm_start)
    torch.testing.assert_close(seen[0][:, 0], warm_start)


def test_with_a_good_guess_a_quarter_of_the_samples_finds_a_better_plan(toy):
    world, bounds = guessing(toy, torch.full((7,), 0.005)), ActionBounds.symmetric([0.3] * 7)
    generator = torch.Generator().manual_seed(1)
    wins = 0
    for seed in range(10):
        action = 0.25 * (2 * torch.rand(1, 7, generator=generator) - 1)
        target = integrate(toy.start, action)
        arguments = {"bounds": bounds, "seed": seed}
        plain = solve(cem(num_samples=128, num_elites=8), world, toy, target, **arguments)
        guided = solve(
            cem(num_samples=32, num_elites=8, num_proposals=16), world, toy, target, **arguments
        )
        wins += guided.cost.item() < plain.cost.item()
    assert wins >= 9


def test_a_bad_guess_does_not_spoil_the_search(toy):
    world = guessing(toy, torch.tensor([-0.12, 0.12, -0.1, 0, 0, 0, 0]))
    target = integrate(toy.start, ACTION)
    plain = solve(cem(), toy.mixed, toy, target)
    misled = solve(cem(num_proposals=32), world, toy, target)
    assert misled.cost.item() < 1.5 * plain.cost.item()


def test_proposals_of_a_world_that_makes_none_are_refused(toy):
    with pytest.raises(TypeError, match="LinearWorld has no method propose.*num_proposals to 0"):
        solve(cem(num_proposals=4), toy.mixed, toy, toy.start)
    with pytest.raises(ValueError, match="num_proposals must be between 0 and 255, got 256"):
        cem(num_proposals=256)
    broken = guessing(toy, torch.full((7,), math.nan))
    with pytest.raises(ValueError, match="proposed action contains NaN"):
        solve(cem(num_proposals=4), broken, toy, toy.start)


# --- A generator for every problem ----------------------------------------------------------------


@pytest.mark.parametrize("first_iteration", ["normal", "uniform"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_problem_is_solved_in_a_batch_as_alone_when_it_has_its_own_generator(
    toy, first_iteration, covariance
):
    world = guessing(toy, torch.full((7,), 0.02))
    planner = cem(
        first_iteration=first_iteration, covariance=covariance, horizon=2, num_proposals=5
    )
    start = toy.start + torch.linspace(0, 0.1, 3)[:, None]
    target = start + torch.tensor([[0.04], [-0.03], [0.06]])

    def solved(rows):
        return planner.plan(
            world,
            toy.observation_of(world, start[rows]),
            world.latents_of(target[rows]),
            bounds=toy.bounds,
            generator=[torch.Generator().manual_seed(seed) for seed in range(3)[rows]],
        )

    together = solved(slice(0, 3))
    for i in range(3):
        alone = solved(slice(i, i + 1))
        # Not bit for bit: a matrix product on a batch rounds otherwise than on one problem.
        torch.testing.assert_close(together.problem(i).actions, alone.actions, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            together.problem(i).cost_history, alone.cost_history, atol=1e-5, rtol=0
        )


def test_a_list_of_one_generator_is_that_generator(toy):
    target = toy.start + 0.05
    single = solve(cem(), toy.mixed, toy, target, seed=3)
    listed = cem().plan(
        toy.mixed,
        toy.observation_of(toy.mixed, toy.start),
        toy.mixed.latents_of(target),
        bounds=toy.bounds,
        generator=[torch.Generator().manual_seed(3)],
    )
    assert torch.equal(single.actions, listed.actions)


def test_too_few_generators_are_refused(toy):
    with pytest.raises(ValueError, match="batch of 1 problems needs one generator or 1, got 2"):
        cem().plan(
            toy.mixed,
            toy.observation_of(toy.mixed, toy.start),
            toy.mixed.latents_of(toy.start),
            bounds=toy.bounds,
            generator=[torch.Generator(), torch.Generator()],
        )


# --- What a plan says, and precision --------------------------------------------------------------


def test_the_gain_compares_the_plan_with_staying_put_as_imagined(toy):
    # Imagination errs everywhere by as much as the goal is away, so the camera's picture beats it.
    bias = 0.1
    target = toy.start + torch.tensor([[0.05, -0.05, 0.05, 0, 0, 0, 0]])
    for hold in (False, True):
        plan = cem(horizon=2, hold=hold).plan(
            BiasedWorld(toy.mixed, bias=bias),
            toy.observation_of(toy.mixed, toy.start),
            toy.mixed.latents_of(target),
            bounds=toy.bounds,
            generator=torch.Generator().manual_seed(0),
        )
        staying = (toy.mixed.latents_of(toy.start) + bias - toy.mixed.latents_of(target)).abs()
        if not hold:
            torch.testing.assert_close(plan.gain, 1 - plan.cost / staying.mean((1, 2)))
        assert plan.gain.item() > 0.2
    there = solve(cem(num_iterations=2), toy.mixed, toy, toy.start)
    assert there.gain.item() < 0  # nothing beats standing at the goal


def test_the_search_keeps_single_precision_when_the_world_imagines_in_bfloat16(toy):
    class Exact(toy.LinearWorld):
        def latents_of(self, proprio):
            with torch.autocast("cpu", enabled=False):
                return super().latents_of(proprio)

        def rollout(self, latents, proprio, actions):
            with torch.autocast("cpu", enabled=False):
                return super().rollout(latents, proprio, actions)

    penalty = ActionPenalty(weight=0.01, scale=0.1)
    cost = WeightedSum(costs=[LatentEnergy(), penalty], weights=[1.0, 0.3])
    planner = CEM(cost=cost, covariance="full", horizon=2, num_samples=64)
    world, target = Exact(toy.mixed.matrix), toy.start + 0.05
    expected = solve(planner, world, toy, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = solve(planner, world, toy, target)
    assert torch.equal(plan.actions, expected.actions) and torch.equal(plan.cost, expected.cost)
