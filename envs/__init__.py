"""Simulated robot-arm environments in which to plan: one per task of `tasks.TASKS`.

    import gymnasium
    import worldmodel.envs  # registers the environments

    env = gymnasium.make("worldmodel/FrankaLift-v0", variation="mild")
    observation, info = env.reset(seed=0)
    env.unwrapped.subgoals  # what the camera should show at the end of each stage
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

Observation: ``image`` and ``goal_image`` (size, size, 3) uint8 RGB; ``proprio`` and
``goal_proprio`` (7,) float32. Action: (7,) float32, the wanted change of ``proprio`` over one step
of 0.25 s, in metres and radians. Info: ``distance`` to the goal [m], ``success``, ``timestamp``
[simulated s]. The conventions are those of `worldmodel.pose`;
`worldmodel.envs.franka_env.FrankaEnv` has the details and every option.

    franka_env  the gymnasium environment               tasks/       one task per file
    placing     where things lie at the start           waypoints    how a scripted expert goes
    expert      policies for data and as baselines      play         grasp, carry, stack and push
    variation   what may differ, and draws of it        varied       puts a draw into the model
    disturbance late and inexact actions and poses      violations   episodes that cannot happen
    panda       the arm and its gripper                 franka       the scene around it
    drawer      a cabinet with a drawer                 dressing     clutter, walls, patterns
    control     Cartesian steps to joint motion         opengl       can this process draw with it?
    cameras     renderers, and OpenGL pictures          raycast      pictures without OpenGL
    robots/     real arms, and this one alike        bridges/     benchmarks of other projects

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
        camera: Which camera is observed: ``exterior``, ``exterior_right`` or ``wrist``; or several
            of them, such as ``exterior+wrist``, whose images are then (V, size, size, 3).
        backend: Which renderer draws: ``gl``, ``ray``, or ``auto`` (gl where OpenGL works).
        control_hz: Steps per simulated second.
        render_mode: ``rgb_array`` lets ``env.render()`` return a larger image, None does not.
        max_episode_steps: Steps until ``truncated``; None takes the task's own number.

    Raises:
        ValueError: For an unknown task or camera, naming the nearest.
    """
    if "/" in task:
        from worldmodel.envs import bridges

        bridges.require_plain(task, variation)
        return bridges.make(
            task,
            image_size=image_size,
            camera=camera,
            backend=backend,
            control_hz=control_hz,
            render_mode=render_mode,
            max_episode_steps=max_episode_steps,
        )
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
