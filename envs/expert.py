"""Behaviours that collect data and baselines: policies that need no camera.

A policy remembers where it is going, so make one for each episode, after the reset::

    policy = make_policy("noisy", env)
    action = policy(proprio, rng)  # (7,) float32, physical units, within the bounds

Some read nothing but proprio:

    scripted      goes to random waypoints at varied speed, opening and closing the gripper
    noisy         the same with Gaussian noise on every action
    explore       noisy, and waypoints also turn and tilt the gripper
    random        uniform within the bounds: the baseline that knows nothing
    do_nothing    zero: the baseline that stays

Others read the state of the simulation:

    expert        solves the task, then stays: the row that shows what the arm can do
    noisy_expert  the same with noise, then plays
    play          grasps, carries, drops, stacks and pushes what lies about, with noise
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from worldmodel.envs.play import Play
from worldmodel.envs.waypoints import noisy_action, shorten
from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    ROTATION,
    euler_to_matrix,
    matrix_to_euler,
    rotation_delta,
)

if TYPE_CHECKING:
    from worldmodel.envs.franka_env import FrankaEnv

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""``policy(proprio, rng) -> action``, both (7,); see `worldmodel.pose`."""

MAX_ACTION = np.array([0.075] * 3 + [0.15] * 3 + [1.0])  # [m], [rad], gripper
WORKSPACE_LOW, WORKSPACE_HIGH = (0.31, -0.30, 0.05), (0.64, 0.30, 0.43)  # [m]
DOWNWARD_EULER = np.array([np.pi, 0.0, 0.0])  # [rad] the home orientation of the gripper
EXPERT_NOISE = 0.2  # standard deviation, as a part of the largest action


@dataclasses.dataclass
class Wander:
    """Go from one random waypoint to the next.

    Attributes:
        noise: Standard deviation of the noise on an action, as a part of the largest action.
        max_yaw: Largest turn of a waypoint about the vertical [rad].
        max_tilt: Largest tilt of a waypoint from straight down [rad].
        workspace_low: Smallest x, y, z of a waypoint [m].
        workspace_high: Largest.
        renewal: Chance per step to drop the waypoint for a new one.
        gripper_toggle: Chance per step to open a closed gripper or close an open one.
        max_action: Largest action (7,), physical units.
    """

    noise: float = 0.0
    max_yaw: float = 0.0
    max_tilt: float = 0.0
    workspace_low: tuple[float, float, float] = WORKSPACE_LOW
    workspace_high: tuple[float, float, float] = WORKSPACE_HIGH
    renewal: float = 0.05
    gripper_toggle: float = 0.05
    max_action: np.ndarray = dataclasses.field(default_factory=MAX_ACTION.copy)

    def __post_init__(self):
        """Start without a waypoint."""
        self._position: np.ndarray | None = None
        self._euler, self._speed, self._close = DOWNWARD_EULER, 1.0, False

    def __call__(self, proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the next action (7,) float32."""
        if rng.random() < self.gripper_toggle:
            self._close = not self._close
        if self._position is None or rng.random() < self.renewal or self._arrived(proprio):
            self._new_waypoint(rng)
        action = np.zeros(ACTION_SIZE)
        action[POSITION] = shorten(
            self._position - proprio[POSITION], self._speed * self.max_action[0]
        )
        action[ROTATION] = shorten(
            rotation_delta(np.asarray(proprio[ROTATION], float), self._euler),
            self._speed * self.max_action[3],
        )
        action[GRIPPER] = float(self._close) - proprio[GRIPPER]
        action += rng.normal(size=ACTION_SIZE) * self.noise * self.max_action
        return np.clip(action, -self.max_action, self.max_action).astype(np.float32)

    def _arrived(self, proprio: np.ndarray) -> bool:
        return bool(np.linalg.norm(proprio[POSITION] - self._position) < 0.01)

    def _new_waypoint(self, rng: np.random.Generator) -> None:
        self._position = rng.uniform(self.workspace_low, self.workspace_high)
        self._speed = rng.uniform(0.2, 1.0)
        yaw = rng.uniform(-self.max_yaw, self.max_yaw)
        tilt, towards = rng.uniform(0, self.max_tilt), rng.uniform(-np.pi, np.pi)
        lean = np.array([tilt * np.cos(towards), tilt * np.sin(towards), 0.0])
        turn = np.array([0.0, 0.0, yaw])
        home = euler_to_matrix(DOWNWARD_EULER)
        self._euler = matrix_to_euler(euler_to_matrix(lean) @ euler_to_matrix(turn) @ home)


class Expert:
    """Solves the task of an environment, then stays, or plays if it is noisy.

    Args:
        env: Read now for the way, and by the play that follows.
        noise: Standard deviation of the noise, as a part of the largest action.
    """

    def __init__(self, env: "FrankaEnv", *, noise: float = 0.0):
        self._way, self._noise = env.expert(), noise
        self._afterwards = Play(env) if noise else None

    def __call__(self, proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the next action (7,) float32."""
        self._way.update(proprio)
        if not self._way.done:
            return noisy_action(self._way, proprio, rng, noise=self._noise)
        if self._afterwards is None:
            return np.zeros(ACTION_SIZE, np.float32)
        return self._afterwards(proprio, rng)


def _random(proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-MAX_ACTION, MAX_ACTION).astype(np.float32)


def _do_nothing(proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.zeros(ACTION_SIZE, np.float32)


POLICIES: dict[str, Callable[["FrankaEnv"], Policy]] = {
    "scripted": lambda env: Wander(),
    "noisy": lambda env: Wander(noise=0.25),
    "explore": lambda env: Wander(noise=0.25, max_yaw=0.6, max_tilt=0.25),
    "random": lambda env: _random,
    "do_nothing": lambda env: _do_nothing,
    "expert": lambda env: Expert(env),
    "noisy_expert": lambda env: Expert(env, noise=EXPERT_NOISE),
    "play": lambda env: Play(env),
}
"""Makers of the behaviours by name."""


def make_policy(name: str, env: "FrankaEnv") -> Policy:
    """Make a fresh policy for the episode that `env` was just reset to.

    Raises:
        ValueError: For an unknown name; names the nearest and lists them all.
    """
    own = getattr(env, "make_policy", None)
    if own is not None:  # a scene of others, see worldmodel.envs.bridges
        return own(name)
    if name not in POLICIES:
        nearest = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown behaviour {name!r}; did you mean {nearest!r}? "
            f"Available: {', '.join(POLICIES)}"
        )
    return POLICIES[name](env)
