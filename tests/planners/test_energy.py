import pytest
import torch

from worldmodel.planners import ActionPenalty, LatentEnergy, WeightedSum, latent_l1

GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(2, 5, 3, 4, 8, generator=GENERATOR)  # (B, S, H, N, D)
ACTIONS = torch.randn(2, 5, 3, 7, generator=GENERATOR)
GOAL = torch.randn(2, 4, 8, generator=GENERATOR)
NOW = torch.randn(2, 4, 8, generator=GENERATOR)


def by_hand(b, s, h):
    return float((LATENTS[b, s, h].double() - GOAL[b].double()).abs().sum() / 32)


def test_the_terminal_energy_is_the_mean_absolute_difference_of_the_last_step():
    energy = LatentEnergy(step="terminal")(LATENTS, ACTIONS, GOAL, NOW)
    assert energy.shape == (2, 5)
    assert energy[1, 3].item() == pytest.approx(by_hand(1, 3, 2), rel=1e-5)


def test_the_mean_energy_averages_over_the_horizon():
    energy = LatentEnergy(step="mean")(LATENTS, ACTIONS, GOAL, NOW)
    expected = sum(by_hand(0, 2, h) for h in range(3)) / 3
    assert energy[0, 2].item() == pytest.approx(expected, rel=1e-5)


def test_the_energy_leaves_its_inputs_alone_and_carries_gradients():
    latents = LATENTS.clone().requires_grad_()
    LatentEnergy()(latents, ACTIONS, GOAL, NOW).sum().backward()
    assert torch.equal(latents.detach(), LATENTS)
    assert latents.grad is not None
    torch.testing.assert_close(
        latents.grad[:, :, 2], (LATENTS[:, :, 2] - GOAL[:, None]).sign() / 32
    )
    assert latents.grad[:, :, :2].abs().max() == 0


def test_half_precision_latents_are_averaged_in_single_precision():
    ones = torch.ones(1, 300, 300, dtype=torch.bfloat16)
    assert latent_l1(ones, torch.zeros_like(ones)).dtype == torch.float32
    assert latent_l1(ones, torch.zeros_like(ones)).item() == 1.0


@pytest.mark.usefixtures("without_shape_checks")
def test_the_energy_refuses_a_goal_of_another_shape():
    with pytest.raises(ValueError, match=r"goal latents.*got \(2, 9, 8\)"):
        LatentEnergy()(LATENTS, ACTIONS, torch.zeros(2, 9, 8), NOW)


def test_the_l2_energy_is_the_mean_squared_difference():
    energy = LatentEnergy(distance="l2")(LATENTS, ACTIONS, GOAL, NOW)
    expected = (LATENTS[1, 3, 2].double() - GOAL[1].double()).square().sum() / 32
    assert energy[1, 3].item() == pytest.approx(float(expected), rel=1e-5)
    mean = LatentEnergy(distance="l2", step="mean")(LATENTS, ACTIONS, GOAL, NOW)
    squares = (LATENTS[0, 2].double() - GOAL[0].double()).square().sum((-2, -1)) / 32
    assert mean[0, 2].item() == pytest.approx(float(squares.mean()), rel=1e-5)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_energy_of_what_moves_weighs_each_token_by_its_change_to_the_goal(distance):
    now = GOAL.clone()
    now[:, 1] += 0.3
    now[:, 3] -= 0.1  # a third of the change of token 1
    energy = LatentEnergy(distance=distance, focus="moving")(LATENTS, ACTIONS, GOAL, now)
    difference = (LATENTS[:, :, -1] - GOAL[:, None]).double()
    size = (difference.abs() if distance == "l1" else difference.square()).mean(-1)
    expected = 0.75 * size[..., 1] + 0.25 * size[..., 3]
    torch.testing.assert_close(energy.double(), expected, rtol=1e-4, atol=0)


def test_an_error_in_the_resting_background_does_not_count_among_what_moves():
    now = GOAL.clone()
    now[:, 1] += 0.3
    blurred = LATENTS.clone()
    blurred[..., 0, :] += 5.0
    for step in ("terminal", "mean"):
        energy = LatentEnergy(step=step, focus="moving")
        sharp = energy(LATENTS, ACTIONS, GOAL, now)
        torch.testing.assert_close(energy(blurred, ACTIONS, GOAL, now), sharp)


def test_at_the_goal_where_nothing_moves_every_token_counts():
    moving = LatentEnergy(focus="moving")(LATENTS, ACTIONS, GOAL, GOAL)
    torch.testing.assert_close(moving, LatentEnergy()(LATENTS, ACTIONS, GOAL, GOAL))


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("focus", ["all", "moving"])
def test_every_energy_leaves_its_inputs_alone_and_carries_gradients(distance, focus):
    latents = LATENTS.clone().requires_grad_()
    energy = LatentEnergy(distance=distance, focus=focus)
    energy(latents, ACTIONS, GOAL, NOW).sum().backward()
    assert torch.equal(latents.detach(), LATENTS)
    assert latents.grad is not None and latents.grad[:, :, 2].abs().min() > 0
    half = energy(LATENTS.bfloat16(), ACTIONS, GOAL.bfloat16(), NOW.bfloat16())
    assert half.dtype == torch.float32


def test_an_unknown_step_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown step 'terminl'; did you mean 'terminal'"):
        LatentEnergy(step="terminl")


def test_the_action_penalty_is_its_weight_when_every_action_is_at_the_scale():
    scale = [0.075] * 3 + [0.15] * 3 + [0.0]
    actions = torch.tensor(scale).expand(2, 5, 3, 7).clone()
    actions[..., 6] = 0.3  # scale 0: free of charge
    penalty = ActionPenalty(weight=0.5, scale=scale)
    torch.testing.assert_close(penalty(LATENTS, actions, GOAL, NOW), torch.full((2, 5), 0.5))
    torch.testing.assert_close(penalty(LATENTS, actions / 2, GOAL, NOW), torch.full((2, 5), 0.125))


def test_the_weighted_sum_adds_its_costs():
    energy, penalty = LatentEnergy(), ActionPenalty(weight=1.0, scale=1.0)
    total = WeightedSum(costs=[energy, penalty], weights=[2.0, 0.1])(LATENTS, ACTIONS, GOAL, NOW)
    expected = 2 * energy(LATENTS, ACTIONS, GOAL, NOW) + 0.1 * ACTIONS.square().mean((-2, -1))
    torch.testing.assert_close(total, expected)


def test_the_weighted_sum_refuses_a_weight_too_few():
    with pytest.raises(ValueError, match="2 costs and 1 weights"):
        WeightedSum(costs=[LatentEnergy(), LatentEnergy()], weights=[1.0])
