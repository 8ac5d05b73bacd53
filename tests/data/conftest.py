from collections.abc import Callable

import numpy as np
import pytest

from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.pose import integrate


def _make_episode(
    seed: int = 0, *, steps: int = 5, size: int = 8, cameras: tuple[str, ...] = ("exterior",)
) -> Episode:
    """A valid episode of small random motions and random pictures."""
    rng = np.random.default_rng(seed)
    proprio = [np.array([0.5, 0.0, 0.3, np.pi - 0.1, 0.0, 0.5, 0.2])]
    for _ in range(steps):
        proprio.append(integrate(proprio[-1], rng.uniform(-0.1, 0.1, 7)))
    measured = np.stack(proprio).astype(np.float32)
    return Episode(
        frames={c: rng.integers(0, 256, (steps + 1, size, size, 3), np.uint8) for c in cameras},
        proprio=measured,
        timestamps=100.0 + np.arange(steps + 1) * 0.25 + rng.uniform(0, 0.02, steps + 1),
        metadata=EpisodeMetadata(
            source="simulation",
            task="reach",
            behaviour="noisy",
            seed=seed,
            control_hz=4.0,
            renderer="ray",
            mujoco_version="3.5.0",
            cameras=cameras,
        ),
    )


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    return _make_episode
