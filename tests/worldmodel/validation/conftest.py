"""A world with known answers: latents are linear in the arm's pose, actions may be mistaken."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.pose import integrate
from worldmodel.validation.held_out import HeldOut

TOKENS, LATENT = 2, 7
WIDTHS = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1])  # of pose axes in a latent


class ToyWorld:
    """Latents are the pose, twice; what an action does is `believed(action)`."""

    control_hz = 4.0

    def __init__(self, believed=lambda actions: actions, deaf=False):
        self.believed, self.deaf = believed, deaf

    def latents_of(self, proprio):
        return torch.stack([proprio * WIDTHS, 2 * proprio * WIDTHS], dim=-2)

    def encode(self, frames):
        raise NotImplementedError("the windows of these tests hold latents")

    def predict(self, latents, proprio, actions):
        if self.deaf:
            return latents
        return self.latents_of(integrate(proprio, self.believed(actions)))

    def rollout(self, latents, proprio, actions):
        B, S, H, _ = actions.shape
        torch.testing.assert_close(latents, self.latents_of(proprio))  # they belong together
        if self.deaf:
            return latents[:, None].expand(B, S, H, TOKENS, LATENT).clone()
        pose, imagined = proprio[:, 0, None].expand(B, S, 7), []
        for action in self.believed(actions).unbind(2):
            pose = integrate(pose, action)
            imagined.append(self.latents_of(pose))
        return torch.stack(imagined, dim=2)  # (B, S, H, N, D)


def make_held_out(
    *, windows: int = 24, steps: int = 4, episodes: int = 6, seed: int = 0, turns: float = 0.1
) -> HeldOut:
    """Windows of random moves of up to 5 cm a step, rotations of `turns` radians, and gripping."""
    rng = np.random.default_rng(seed)
    limit = np.array([0.05] * 3 + [turns] * 3 + [0.2])
    proprio = [np.tile([0.45, 0.0, 0.3, 0.0, 0.0, 0.0, 0.5], (windows, 1))]
    for _ in range(steps):
        action = rng.uniform(-limit, limit, (windows, 7))
        action[:, 6] = np.where(proprio[-1][:, 6] > 0.5, -1, 1) * np.abs(action[:, 6])
        proprio.append(integrate(proprio[-1], action))
    states = np.stack(proprio, axis=1).astype(np.float32)  # (W, F, 7)
    return HeldOut(
        latents=ToyWorld().latents_of(torch.from_numpy(states)),
        proprio=states,
        episodes=np.sort(np.arange(windows) % episodes),
    )


def turned(degrees: float):
    """Actions turned about the vertical: what a model believes behind a turned camera."""
    angle = np.radians(degrees)
    matrix = torch.tensor(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32
    )
    return lambda actions: torch.cat([actions[..., :2] @ matrix.mT, actions[..., 2:]], dim=-1)


@pytest.fixture(scope="session")
def toy():
    """The toy world and its windows; session-wide so that property tests may use it."""
    return SimpleNamespace(World=ToyWorld, held_out=make_held_out, turned=turned)
