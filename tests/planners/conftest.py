"""Worlds with known answers: latents are a fixed linear map of the arm's pose."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.planners import ActionBounds, Observation
from worldmodel.pose import integrate

TOKENS, LATENT = 4, 8


class LinearWorld:
    """Latents are `proprio @ matrix`; an image carries its proprio in its first 28 bytes."""

    control_hz = 4.0

    def __init__(self, matrix: torch.Tensor, on_rollout=lambda num_plans: None) -> None:
        self.matrix = matrix  # (7, N * D)
        self.on_rollout = on_rollout

    def latents_of(self, proprio: torch.Tensor) -> torch.Tensor:
        return (proprio @ self.matrix).unflatten(-1, (TOKENS, LATENT))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        raw = frames.flatten(2)[..., :28].contiguous().numpy()
        return self.latents_of(torch.from_numpy(raw.view(np.float32).copy()))

    def predict(self, latents, proprio, actions):
        return self.latents_of(integrate(proprio, actions))

    def rollout(self, latents, proprio, actions):
        C = proprio.shape[1]
        torch.testing.assert_close(latents, self.latents_of(proprio))  # they belong together
        past = actions[:, 0, : C - 1]
        torch.testing.assert_close(integrate(proprio[:, :-1], past), proprio[:, 1:])
        self.on_rollout(actions.shape[1])
        pose = proprio[:, None, -1].expand(-1, actions.shape[1], -1)
        imagined = []
        for action in actions[:, :, C - 1 :].unbind(2):
            pose = integrate(pose, action)
            imagined.append(self.latents_of(pose))
        return torch.stack(imagined, dim=2)  # (B, S, H, N, D)


def image_of(proprio) -> np.ndarray:
    pixels = np.zeros(48, dtype=np.uint8)
    pixels[:28] = np.asarray(proprio, dtype=np.float32).view(np.uint8)
    return pixels.reshape(4, 4, 3)


def observation_of(world: LinearWorld, proprio: torch.Tensor) -> Observation:
    """From proprio (B, 7): one context frame."""
    return Observation(
        latents=world.latents_of(proprio)[:, None],
        proprio=proprio[:, None],
        past_actions=proprio.new_zeros(len(proprio), 0, 7),
    )


@pytest.fixture(scope="session")
def toy():
    """The toy worlds and their helpers; session-wide so that property tests may use it."""
    generator = torch.Generator().manual_seed(7)
    mixed = torch.randn(7, TOKENS * LATENT, generator=generator)
    # Every latent sees one axis only, so the best plan in a box is the clipped best plan.
    separable = torch.zeros(7, TOKENS * LATENT)
    for column in range(TOKENS * LATENT):
        separable[column % 7, column] = 1.0 + column / 10
    return SimpleNamespace(
        LinearWorld=LinearWorld,
        mixed=LinearWorld(mixed),
        separable=LinearWorld(separable),
        observation_of=observation_of,
        image_of=image_of,
        start=torch.tensor([[0.45, 0.0, 0.3, 0.1, -0.2, 0.3, 0.5]]),
        bounds=ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [0.4]),
    )
