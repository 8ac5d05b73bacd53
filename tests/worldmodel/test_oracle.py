import numpy as np
import pytest
import torch

from worldmodel.fleet import Scene
from worldmodel.oracle import GRIPPER_WEIGHT, SimulatorWorld, as_image, run_oracle
from worldmodel.planners.energy import latent_l1

SCENE = Scene(
    task="reach",
    variation="none",
    image_size=16,
    camera="exterior",
    backend="ray",
    control_hz=4.0,
    max_steps=4,
)


@pytest.fixture(scope="module")
def env():
    env = SCENE.make()
    env.reset(seed=1)
    yield env
    env.close()


def latents_of(world: SimulatorWorld, features: np.ndarray) -> torch.Tensor:
    return world.encode(torch.from_numpy(as_image(features).copy())[None, None])[:, 0]


@pytest.mark.parametrize("count", [4, 13, 14, 15])
def test_energy_is_the_sum_of_absolute_errors_in_metres(env, count: int) -> None:
    world = SimulatorWorld(env)
    rng = np.random.default_rng(0)
    here, there = rng.normal(size=(2, count))
    weights = np.where(np.arange(count) == 3, GRIPPER_WEIGHT, 1.0)
    energy = latent_l1(latents_of(world, here), latents_of(world, there))
    assert float(energy) == pytest.approx((weights * abs(here - there)).sum(), rel=1e-5)


def test_imagining_is_what_would_happen_and_leaves_the_scene_alone(env) -> None:
    env.reset(seed=1)
    inner, world = env.unwrapped, SimulatorWorld(env)
    before = inner.features()
    plans = np.random.default_rng(0).uniform(-0.05, 0.05, (3, 2, 7)).astype(np.float32)
    imagined = world.rollout(
        latents_of(world, before)[:, None], torch.zeros(1, 1, 7), torch.from_numpy(plans)[None]
    )
    assert imagined.shape == (1, 3, 2, 1, len(before))
    assert np.array_equal(inner.features(), before)
    for action in plans[1]:
        env.step(action)
    expected = latents_of(world, inner.features())
    torch.testing.assert_close(imagined[0, 1, -1], expected[0], atol=1e-3, rtol=0)


def test_the_oracle_reaches_and_repeats(env) -> None:
    first, again = (run_oracle(env, 2**31, axes=("x", "y", "z"), subgoals=True) for _ in range(2))
    assert first.distances[-1] < first.distances[0] - 0.1
    assert np.array_equal(first.actions, again.actions)
    assert not first.actions[:, 3:].any()
    assert first.energies.size == first.plan_ms.size == first.encode_ms.size == 0
    assert first.stage_names == ("reach",)
