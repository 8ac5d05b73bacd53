"""Benchmarks of other projects, as environments that this project's tools run on unchanged.

    env = bridges.make("ogbench/cube-single", image_size=128)

A task is named ``<benchmark>/<task>``. Observation, action and info are those of
`worldmodel.envs.franka_env.FrankaEnv`, see `worldmodel.envs.bridges.goal_env`.

    goal_env  what the bridges have in common    behaviours  policies for data and baselines
    ogbench   cubes, UR5e                        robosuite   Lift and PickPlace, Panda
"""

import difflib
from typing import TYPE_CHECKING

import gymnasium

if TYPE_CHECKING:
    from worldmodel.envs.bridges.goal_env import GoalImageEnv
    from worldmodel.envs.cameras import Backend

TASKS = {
    "ogbench/cube-single": 40,
    "ogbench/cube-double": 100,
    "ogbench/cube-triple": 200,
    "ogbench/cube-quadruple": 200,
    "robosuite/lift": 40,
    "robosuite/pick_place_can": 80,
}
"""Steps of an episode at 4 Hz, by task."""


def is_bridge(task: str) -> bool:
    """Return whether a task's name is one of a benchmark, ``<benchmark>/<task>``."""
    return "/" in task


def require_plain(task: str, variation: str) -> None:
    """Raise ValueError for a variation: scenes of others have none."""
    if variation != "none":
        raise ValueError(f"{task} has no variations, got {variation!r}; leave it at none")


def make(
    task: str,
    *,
    image_size: int = 128,
    camera: str = "exterior",
    backend: "Backend" = "auto",
    control_hz: float = 4.0,
    render_mode: str | None = "rgb_array",
    max_episode_steps: int | None = None,
    terminate_on_success: bool = True,
) -> gymnasium.Env:
    """Make the environment of a benchmark's task.

    Args:
        task: A name in `TASKS`.
        image_size: Side of the observed images [pixels].
        camera: Which camera is observed; ``exterior`` is the benchmark's own main camera.
        backend: Which renderer draws; robosuite has its own and takes ``auto`` or ``gl``.
        control_hz: Steps per simulated second; must divide 20.
        render_mode: ``rgb_array`` lets ``env.render()`` return a larger image, None does not.
        max_episode_steps: Steps until ``truncated``; None takes the benchmark's own number.
        terminate_on_success: End the episode at the first success.

    Raises:
        ValueError: For an unknown task or camera.
        ImportError: The benchmark is not installed.
        RuntimeError: The benchmark runs in a process of its own, which could not be started.
    """
    env = make_unwrapped(
        task,
        image_size=image_size,
        camera=camera,
        backend=backend,
        control_hz=control_hz,
        render_mode=render_mode,
        terminate_on_success=terminate_on_success,
    )
    return gymnasium.wrappers.TimeLimit(env, max_episode_steps or TASKS[task])


def make_unwrapped(
    task: str,
    *,
    image_size: int = 128,
    camera: str = "exterior",
    backend: "Backend" = "auto",
    control_hz: float = 4.0,
    render_mode: str | None = None,
    terminate_on_success: bool = True,
) -> "GoalImageEnv":
    """Make the environment of a benchmark's task without a limit of steps; see `make`."""
    if task not in TASKS:
        nearest = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown task {task!r}; did you mean {nearest!r}? Available: {', '.join(TASKS)}"
        )
    benchmark, _, name = task.partition("/")
    if benchmark == "ogbench":
        from worldmodel.envs.bridges.ogbench import OGBenchEnv as Env
    else:
        from worldmodel.envs.bridges.robosuite import RobosuiteEnv as Env
    return Env(
        task=name,
        image_size=image_size,
        camera=camera,
        backend=backend,
        control_hz=control_hz,
        render_mode=render_mode,
        terminate_on_success=terminate_on_success,
    )
