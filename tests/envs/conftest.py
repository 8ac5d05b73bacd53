"""Environments for the tests, closed afterwards."""

from collections.abc import Callable, Iterator

import gymnasium
import pytest

import worldmodel.envs
from worldmodel.envs import opengl

BACKENDS = [
    pytest.param(
        "gl",
        marks=pytest.mark.skipif(
            opengl.why_unusable() is not None, reason=f"no OpenGL: {opengl.why_unusable()}"
        ),
    ),
    "ray",
]


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Each render backend this machine has."""
    return request.param


@pytest.fixture
def make_env() -> Iterator[Callable[..., gymnasium.Env]]:
    """`worldmodel.envs.make`, of reach, small and ray-cast unless told otherwise."""
    made: list[gymnasium.Env] = []

    def make(task="reach", *, image_size=32, backend="ray", **settings) -> gymnasium.Env:
        env = worldmodel.envs.make(task, image_size=image_size, backend=backend, **settings)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()
