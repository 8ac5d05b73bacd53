"""The published planner against a second, independent implementation in numpy."""

import dataclasses

import numpy as np
import pytest
import torch

from worldmodel.planners import Observation, vjepa2_bounds, vjepa2_cem

SEED = 11


def reference(
    world_matrix, start, goal, noise, *, max_norm, num_elites, momenta, close_gripper=None
):
    """Spec of the public planner, step by step: position and gripper kept apart, no torch.

    Args:
        world_matrix: (7, N * D) of the linear world.
        start: (7,) proprio; goal: (N * D,) latents.
        noise: (iterations, S, H, 7) standard normal numbers.
        momenta: mean and std for position, mean and std for the gripper.
    """
    mean_m, std_m, grip_mean_m, grip_std_m = momenta
    _, S, H, _ = noise.shape
    mean_xyz, std_xyz = np.zeros((H, 3)), np.full((H, 3), max_norm)
    mean_grip, std_grip = np.zeros(H), np.ones(H)
    for iteration_noise in noise:
        xyz, grip = np.zeros((S, H, 3)), np.zeros((S, H))
        energy = np.zeros(S)
        for s in range(S):
            pose = start.copy()
            for h in range(H):
                draw = iteration_noise[s, h]
                xyz[s, h] = np.clip(mean_xyz[h] + std_xyz[h] * draw[:3], -max_norm, max_norm)
                grip[s, h] = np.clip(mean_grip[h] + std_grip[h] * draw[6], -0.75, 0.75)
                if close_gripper is not None and h >= close_gripper:
                    grip[s, h] = 1.0
                pose[:3] += xyz[s, h]
                pose[6] = np.clip(pose[6] + grip[s, h], 0, 1)
            energy[s] = np.abs(pose @ world_matrix - goal).mean()
        best = np.argsort(energy)[:num_elites]
        mean_xyz = (1 - mean_m) * xyz[best].mean(0) + mean_m * mean_xyz
        std_xyz = (1 - std_m) * xyz[best].std(0, ddof=1) + std_m * std_xyz
        mean_grip = (1 - grip_mean_m) * grip[best].mean(0) + grip_mean_m * mean_grip
        std_grip = (1 - grip_std_m) * grip[best].std(0, ddof=1) + grip_std_m * std_grip
    plan = np.zeros((H, 7))
    plan[:, :3] = mean_xyz
    plan[:, 6] = np.where(np.abs(mean_grip) < 0.25, 0, mean_grip)
    std = np.concatenate([std_xyz, np.zeros((H, 3)), std_grip[:, None]], axis=1)
    return plan, std


def run(toy, *, iterations, horizon, target, max_norm=0.05, close_gripper=None, samples=40):
    world = toy.separable
    momenta = (0.15, 0.75, 0.3, 0.45)  # all different, so that none can stand for another
    planner = vjepa2_cem(
        horizon=horizon,
        num_samples=samples,
        num_elites=10,
        num_iterations=iterations,
        mean_momentum=momenta[0],
        std_momentum=momenta[1],
        gripper_mean_momentum=momenta[2],
        gripper_std_momentum=momenta[3],
        close_gripper=close_gripper,
    )
    goal = world.latents_of(target)
    plan = planner.plan(
        world,
        toy.observation_of(world, toy.start),
        goal,
        bounds=vjepa2_bounds(max_norm=max_norm),
        generator=torch.Generator().manual_seed(SEED),
    )
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, samples, horizon, 7)
    noise = [torch.randn(shape, generator=generator)[0].double().numpy() for _ in range(iterations)]
    expected = reference(
        world.matrix.double().numpy(),
        toy.start[0].double().numpy(),
        goal.double().flatten().numpy(),
        np.stack(noise),
        max_norm=max_norm,
        num_elites=10,
        momenta=momenta,
        close_gripper=close_gripper,
    )
    return plan, expected


@pytest.mark.parametrize("iterations, horizon", [(1, 1), (2, 1), (1, 2), (6, 2)])
def test_agrees_with_an_independent_implementation(toy, iterations, horizon):
    target = toy.start + torch.tensor([[0.2, -0.03, 0.01, 0, 0, 0, -0.45]])
    plan, (actions, std) = run(toy, iterations=iterations, horizon=horizon, target=target)
    np.testing.assert_allclose(plan.actions[0].numpy(), actions, atol=1e-6)
    np.testing.assert_allclose(plan.std[0].numpy(), std, atol=1e-6)
    assert np.abs(actions[:, 6]).max() > 0.25  # the gripper is searched in this problem


def test_closing_the_gripper_is_forced_beyond_the_clip_and_enters_the_statistics(toy):
    target = toy.start + torch.tensor([[0.02, 0, 0, 0, 0, 0, -0.5]])
    plan, (actions, std) = run(toy, iterations=2, horizon=3, target=target, close_gripper=1)
    np.testing.assert_allclose(plan.actions[0].numpy(), actions, atol=1e-6)
    np.testing.assert_allclose(plan.std[0].numpy(), std, atol=1e-6)
    np.testing.assert_allclose(plan.actions[0, 1:, 6].numpy(), 1 - 0.3**2, atol=1e-6)


def test_a_small_gripper_change_is_returned_as_zero_and_priced_so(toy):
    target = toy.start + torch.tensor([[0.02, 0, 0, 0, 0, 0, 0.1]])
    plan, (actions, _) = run(toy, iterations=8, horizon=1, target=target, samples=200)
    assert plan.actions[0, 0, 6] == 0 and actions[0, 6] == 0
    moved = toy.start.clone()
    moved[:, :3] += plan.actions[:, 0, :3]
    world = toy.separable
    energy = (world.latents_of(moved) - world.latents_of(target)).abs().mean()
    torch.testing.assert_close(plan.cost, energy[None])


def test_rotation_is_not_searched_and_the_box_allows_thirteen_centimetres(toy):
    target = toy.start + torch.tensor([[0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0]])
    plan, _ = run(toy, iterations=12, horizon=1, target=target, max_norm=0.075, samples=200)
    assert (plan.actions[..., 3:6] == 0).all()
    length = plan.actions[0, 0, :3].norm().item()
    assert 0.12 < length <= 0.1299039


def test_the_default_settings_are_the_papers(toy):
    planner = vjepa2_cem()
    assert (planner.num_samples, planner.num_iterations, planner.num_elites) == (800, 10, 10)
    assert planner.horizon == 1 and planner.num_kept == 0 and planner.returns == "mean"
    bounds = vjepa2_bounds()
    torch.testing.assert_close(bounds.high, torch.tensor([0.075] * 3 + [0.0] * 3 + [0.75]))


def test_an_observation_is_a_frozen_record(toy):
    observation = toy.observation_of(toy.separable, toy.start)
    assert isinstance(observation, Observation)
    with pytest.raises(dataclasses.FrozenInstanceError):
        observation.proprio = toy.start  # pyright: ignore
