"""The tasks an arm can be given, one per file.

A task sets the scene up, says how a scripted expert would solve it, and judges the state of the
simulation. To add one, write a class with the methods of `Task` in its own file and list it in
`TASKS`; its environment is then registered too.
"""

import dataclasses
import difflib
import importlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from worldmodel.envs.control import Arm
    from worldmodel.envs.waypoints import Waypoint


class Task(Protocol):
    """What `FrankaEnv` asks of a task."""

    options: tuple[str, ...]
    """Names of the reset options the task understands."""

    drawer: bool
    """Whether the scene has the cabinet with the drawer."""

    def reset(self, arm: "Arm", rng: np.random.Generator, options: dict[str, Any]) -> None:
        """Choose a goal and put arm and objects, freshly reset, at the start of an episode."""
        ...

    def waypoints(self, arm: "Arm") -> "list[Waypoint]":
        """Return how the scripted expert goes from this state to the goal.

        The stages that end on the way are the sub-goals; the last waypoint ends the last one.
        """
        ...

    def distance(self, arm: "Arm") -> float:
        """Return the distance to the goal [m]."""
        ...

    def success(self, arm: "Arm") -> bool:
        """Return whether the goal is reached in this state."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """How to find a task without importing it (importing one imports mujoco)."""

    title: str
    entry_point: str
    max_episode_steps: int


TASKS = {
    "reach": TaskSpec("Reach", "worldmodel.envs.tasks.reach:Reach", 16),
    "reach_with_object": TaskSpec(
        "ReachWithObject", "worldmodel.envs.tasks.reach_with_object:ReachWithObject", 16
    ),
    "grasp": TaskSpec("Grasp", "worldmodel.envs.tasks.grasp:Grasp", 24),
    "lift": TaskSpec("Lift", "worldmodel.envs.tasks.lift:Lift", 30),
    "push": TaskSpec("Push", "worldmodel.envs.tasks.push:Push", 24),
    "pick_and_place": TaskSpec(
        "PickAndPlace", "worldmodel.envs.tasks.pick_and_place:PickAndPlace", 48
    ),
    "stack": TaskSpec("Stack", "worldmodel.envs.tasks.stack:Stack", 48),
    "drawer_open": TaskSpec("DrawerOpen", "worldmodel.envs.tasks.drawer_open:DrawerOpen", 30),
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
