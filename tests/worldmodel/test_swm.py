"""Our world model behind stable-worldmodel's protocol, and the real package where it is there."""

import contextlib
import io

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.jepa import JEPA
from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.interfaces import Observation
from worldmodel.planners.scoring import score_plans
from worldmodel.pose import action_between, integrate
from worldmodel.swm import ActionScaler, SWMCostModel

SCALE = (0.075, 0.05, 0.025, 0.1, 0.1, 0.2, 1.0)


@pytest.fixture(scope="module")
def world() -> JEPA:
    from worldmodel.checkpoint import load_default

    return load_default().eval()


def info_of(world: JEPA, *, num_envs: int, samples: int, frames: int = 1, seed: int = 0) -> dict:
    """What swm's solver hands over: everything repeated over the samples."""
    rng = np.random.default_rng(seed)
    size = world.image_size
    images = rng.integers(0, 256, (num_envs, frames, size, size, 3), dtype=np.uint8)
    goals = rng.integers(0, 256, (num_envs, 1, size, size, 3), dtype=np.uint8)
    proprio = rng.uniform(-0.3, 0.3, (num_envs, frames, 7)).astype(np.float32)
    entries = {"pixels": images, "goal": goals, "proprio": proprio}
    return {
        name: torch.from_numpy(value)[:, None].expand(-1, samples, *value.shape[1:])
        for name, value in entries.items()
    }


@pytest.mark.parametrize("frames", [1, 2])
def test_costs_are_those_of_our_own_scoring(world: JEPA, frames: int) -> None:
    scaler = ActionScaler(SCALE)
    info = info_of(world, num_envs=2, samples=3, frames=frames)
    candidates = torch.randn(2, 3, 2, 7, generator=torch.Generator().manual_seed(0))
    costs = SWMCostModel(world, scaler=scaler, env_hz=4.0).get_cost(dict(info), candidates)
    with torch.inference_mode():
        proprio = info["proprio"][:, 0]
        observation = Observation(
            latents=world.encode(info["pixels"][:, 0]),
            proprio=proprio,
            past_actions=action_between(proprio[:, :-1], proprio[:, 1:]),
        )
        plans = torch.from_numpy(scaler.inverse_transform(candidates.numpy()))
        goal = world.encode(info["goal"][:, 0])[:, -1]
        expected = score_plans(world, LatentEnergy(), observation, goal, plans)
    torch.testing.assert_close(costs, expected)
    assert costs.shape == (2, 3)
    assert costs.std() > 0


def test_a_block_is_one_step_of_the_same_motion(world: JEPA) -> None:
    cost = SWMCostModel(world, scaler=ActionScaler(SCALE), env_hz=12.0, action_block=3)
    blocks = torch.rand(1, 2, 1, 21, generator=torch.Generator().manual_seed(1)) * 0.6 - 0.3
    physical = cost._physical(blocks)[0, :, 0].numpy()
    for plan, action in zip(blocks[0, :, 0].numpy(), physical, strict=True):
        start = np.array([0.4, 0.1, 0.2, 3.0, 0.1, 0.4, 0.5])
        step_by_step = start
        for part in plan.reshape(3, 7) * SCALE:
            step_by_step = integrate(step_by_step, part)
        moved = action_between(start, step_by_step)
        np.testing.assert_allclose(action[:6], moved[:6], atol=1e-5)


def test_candidates_beyond_the_scale_count_as_what_the_arm_does(world: JEPA) -> None:
    cost = SWMCostModel(world, scaler=ActionScaler(SCALE), env_hz=4.0)
    info = info_of(world, num_envs=1, samples=2)
    candidates = torch.ones(1, 2, 1, 7)
    candidates[:, 1] = 5.0
    first, second = cost.get_cost(info, candidates)[0]
    assert first == second


def test_an_observation_is_encoded_once(world: JEPA, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = SWMCostModel(world, scaler=ActionScaler(SCALE), env_hz=4.0)
    calls = []
    encode = world.encode
    monkeypatch.setattr(world, "encode", lambda frames: calls.append(1) or encode(frames))
    info = info_of(world, num_envs=1, samples=2)
    for _ in range(3):
        cost.get_cost(info, torch.zeros(1, 2, 1, 7))
    assert len(calls) == 2  # the image and the goal


def test_scaler_goes_there_and_back_and_fixes_axes() -> None:
    scaler = ActionScaler((*SCALE[:6], 0.0))
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 14)).astype(np.float32)
    actions[:, [6, 13]] = 0.0
    np.testing.assert_allclose(
        scaler.transform(scaler.inverse_transform(actions)), actions, atol=1e-6
    )
    assert (scaler.inverse_transform(np.full((1, 7), 9.0))[0] == np.float32(scaler.scale)).all()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [("rate", "4 Hz"), ("width", "action_block"), ("key", "it has")],
)
def test_mistakes_are_named(world: JEPA, mistake: str, message: str) -> None:
    scaler = ActionScaler(SCALE)
    with pytest.raises((ValueError, KeyError), match=message):
        if mistake == "rate":
            SWMCostModel(world, scaler=scaler, env_hz=20.0)
        cost = SWMCostModel(world, scaler=scaler, env_hz=4.0)
        info = info_of(world, num_envs=1, samples=2)
        if mistake == "key":
            info["image"] = info.pop("pixels")
        cost.get_cost(info, torch.zeros(1, 2, 1, 14 if mistake == "width" else 7))


class Dot(gymnasium.Env):
    """A point whose position is the colour of the picture; the goal is a colour."""

    def __init__(self) -> None:
        image = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
        proprio = gymnasium.spaces.Box(-1, 1, (7,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            image=image, goal_image=image, proprio=proprio
        )
        self.action_space = gymnasium.spaces.Box(-0.2, 0.2, (7,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._at, self._goal = self.np_random.uniform(0, 1, (2, 3))
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self._at = np.clip(self._at + action[:3], 0, 1)
        reached = bool(np.abs(self._at - self._goal).max() < 0.05)
        return self._seen(), 0.0, reached, False, {}

    def _seen(self) -> dict:
        def picture(position: np.ndarray) -> np.ndarray:
            return np.broadcast_to(np.round(255 * position), (4, 4, 3)).astype(np.uint8)

        proprio = np.concatenate([self._at, np.zeros(4)]).astype(np.float32)
        return {"image": picture(self._at), "goal_image": picture(self._goal), "proprio": proprio}


class KnowsDot:
    """The true model of `Dot`: its one latent token is the colour."""

    control_hz = 4.0

    def encode(self, frames: Tensor) -> Tensor:
        return frames.float().mean(dim=(-3, -2))[:, :, None] / 255  # (B, T, 1, 3)

    def predict(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        return latents + actions[:, :, None, :3]

    def rollout(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        return latents[:, None, -1:] + actions[..., :3].cumsum(dim=-2)[:, :, :, None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of swm and what it imports
def test_the_real_solver_and_world_reach_goals_of_a_known_world() -> None:
    swm = pytest.importorskip("stable_worldmodel")
    from stable_worldmodel.policy import WorldModelPolicy  # pyright: ignore[reportMissingImports]
    from stable_worldmodel.solver import CEMSolver  # pyright: ignore[reportMissingImports]

    gymnasium.register("worldmodel-tests/Dot-v0", entry_point=Dot)
    scaler = ActionScaler([0.2, 0.2, 0.2, 0, 0, 0, 0])
    cost = SWMCostModel(
        KnowsDot(), scaler=scaler, env_hz=4.0, image_key="image", goal_key="goal_image"
    )
    solver = CEMSolver(cost, num_samples=64, n_steps=6, topk=8, var_scale=0.5)
    config = swm.PlanConfig(horizon=2, receding_horizon=1)
    pool = swm.World("worldmodel-tests/Dot-v0", num_envs=2, add_pixels=False, max_episode_steps=12)
    pool.set_policy(WorldModelPolicy(solver, config, process={"action": scaler}))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the time of every plan
        result = pool.evaluate(episodes=6, seed=0)
    pool.close()
    assert result["success_rate"] == 100
