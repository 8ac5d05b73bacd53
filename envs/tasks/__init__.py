"""The tasks an arm can be given, one per file.

A task sets the scene up, puts a second copy of the arm at the goal for its picture to be taken, and
measures how far the scene is from the goal. To add one, write a class with the methods of `Task`
in its own file and list it in `TASKS`; its environment is then registered too.
"""

import dataclasses
import difflib
import importlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from worldmodel.envs.control import Arm


class Task(Protocol):
    """What `FrankaEnv` asks of a task."""

    options: tuple[str, ...]
    """Names of the reset options the task understands."""

    def reset(self, arm: "Arm", rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose a goal and put arm and objects, freshly reset, at the start of an episode."""
        ...

    def move_to_goal(self, arm: "Arm") -> None:
        """Put arm and objects of a scratch copy of the scene where the goal is reached."""
        ...

    def distance(self, arm: "Arm") -> float:
        """Return the distance to the goal [m]."""
        ...

    def success(self, distance: float) -> bool:
        """Return whether this distance [m] counts as success."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """How to find a task without importing it (importing one imports mujoco)."""

    title: str
    entry_point: str
    max_episode_steps: int


TASKS = {
    "reach": TaskSpec("Reach", "worldmodel.envs.tasks.reach:Reach", max_episode_steps=16),
}


def find_task(name: str) -> TaskSpec:
    """Return the entry of a task.

    Raises:
        ValueError: For an unknown name; names the nearest and lists them all.
    """
    if name in TASKS:
        return TASKS[name]
    nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)
    raise ValueError(
        f"unknown task {name!r}; did you mean {nearest[0]!r}? Available: {', '.join(TASKS)}"
    )


def make_task(name: str) -> Task:
    """Import and build a task with its default settings."""
    module, _, attribute = find_task(name).entry_point.partition(":")
    return getattr(importlib.import_module(module), attribute)()
