"""Simulated robot-arm environments in which to plan.

    import gymnasium
    import worldmodel.envs  # registers the environments

    env = gymnasium.make("worldmodel/FrankaReach-v0")
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

Observation: ``image`` and ``goal_image`` (size, size, 3) uint8 RGB; ``proprio`` and
``goal_proprio`` (7,) float32. Action: (7,) float32, the wanted change of ``proprio`` over one step
of 0.25 s, in metres and radians. Info: ``distance`` to the goal [m], ``success``, ``timestamp``
[simulated s]. The conventions are those of `worldmodel.pose`;
`worldmodel.envs.franka_env.FrankaEnv` has the details and every option.

    opengl      can this process draw with OpenGL? decided before mujoco is imported
    cameras     the renderer interface, and OpenGL pictures    raycast   pictures without OpenGL
    panda       the arm and its gripper                        franka    the scene around it
    control     Cartesian steps to joint motion                tasks/    one task per file
    franka_env  the gymnasium environment                      expert    policies for data

Import this package before mujoco: MuJoCo picks its OpenGL platform while it is imported.
"""

from typing import TYPE_CHECKING

import gymnasium

from worldmodel.envs import opengl
from worldmodel.envs.tasks import TASKS, find_task

if TYPE_CHECKING:
    from worldmodel.envs.cameras import Backend

__all__ = ["ENV_IDS", "make"]

ENV_IDS = {name: f"worldmodel/Franka{spec.title}-v0" for name, spec in TASKS.items()}
"""Gymnasium id of each task."""

opengl.choose_platform()
for _name, _task in TASKS.items():
    gymnasium.register(
        id=ENV_IDS[_name],
        entry_point="worldmodel.envs.franka_env:FrankaEnv",
        max_episode_steps=_task.max_episode_steps,
        kwargs={"task": _name},
    )


def make(
    task: str,
    *,
    variation: str = "none",
    image_size: int = 128,
    camera: str = "exterior",
    backend: "Backend" = "auto",
    control_hz: float = 4.0,
    render_mode: str | None = "rgb_array",
    max_episode_steps: int | None = None,
) -> gymnasium.Env:
    """Make the environment of a task by the task's short name, such as ``reach``.

    Args:
        task: A name in `ENV_IDS`.
        variation: What differs from episode to episode, such as ``mild``; see
            `worldmodel.envs.variation`.
        image_size: Side of the observed images [pixels].
        camera: Which camera is observed: ``exterior``, ``exterior_right`` or ``wrist``.
        backend: Which renderer draws: ``gl``, ``ray``, or ``auto`` (gl where OpenGL works).
        control_hz: Steps per simulated second.
        render_mode: ``rgb_array`` lets ``env.render()`` return a larger image, None does not.
        max_episode_steps: Steps until ``truncated``; None takes the task's own number.

    Raises:
        ValueError: For an unknown task or camera, naming the nearest.
    """
    find_task(task)
    return gymnasium.make(
        ENV_IDS[task],
        max_episode_steps=max_episode_steps,
        variation=variation,
        image_size=image_size,
        camera=camera,
        backend=backend,
        control_hz=control_hz,
        render_mode=render_mode,
    )
