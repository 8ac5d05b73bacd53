"""Behaviours that act in a bridge: the baselines, the experts, and those that collect data.

policy = make_policy("play", env)
action = policy(proprio, rng)  # (7,) float32, physical units, within the bounds

random        uniform within the bounds: the baseline that knows nothing
do_nothing    zero: the baseline that stays
scripted      goes to random waypoints at varied speed, opening and closing the gripper
noisy         the same with Gaussian noise on every action
expert        carries the objects to their goals; reads the simulator
noisy_expert  the same with noise
play          carries a random object to a random place, again and again, with noise; reads the
simulator, and does not know the goal
"""

import difflib
from collections.abc import Callable

import numpy as np

from worldmodel.envs.bridges.goal_env import GoalImageEnv, pick_and_place
from worldmodel.envs.expert import Policy, Wander
from worldmodel.envs.waypoints import Follow, noisy_action
from worldmodel.pose import ACTION_SIZE

NOISE = 0.2  # standard deviation, as a part of the largest move
CARRY_STEPS = 30  # control steps after which play drops a carry that does not get on
_TOOL_FEATURES = 4  # features before the objects: x, y, z and gripper


class Play:
    """Carries a random object to a random place, then the next."""

    def __init__(self, env: GoalImageEnv):
        self._env, self._age = env, 0
        self._carry: Follow | None = None

    def __call__(self, proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the next action (7,) float32."""
        if self._carry is None or self._carry.done or self._age >= CARRY_STEPS:
            self._carry, self._age = self._new_carry(proprio, rng), 0
        self._age += 1
        self._carry.update(proprio)
        return noisy_action(self._carry, proprio, rng, noise=NOISE)

    def _new_carry(self, proprio: np.ndarray, rng: np.random.Generator) -> Follow:
        objects = self._env.features()[_TOOL_FEATURES:].reshape(-1, 3)
        taken = objects[rng.integers(len(objects))]
        put = np.append(rng.uniform(self._env.place_low, self._env.place_high), taken[2])
        speed = rng.uniform(0.5, 1.0)
        route = pick_and_place(taken, put, release=True)
        return Follow(route, speed=speed, closed=bool(proprio[-1] > 0.5))


def _random(env: GoalImageEnv) -> Policy:
    high = env.max_action
    return lambda proprio, rng: rng.uniform(-high, high).astype(np.float32)


def _do_nothing(env: GoalImageEnv) -> Policy:
    return lambda proprio, rng: np.zeros(ACTION_SIZE, np.float32)


def _wander(env: GoalImageEnv, *, noise: float) -> Policy:
    low, high = env.workspace_low.tolist(), env.workspace_high.tolist()
    return Wander(
        noise=noise, workspace_low=tuple(low), workspace_high=tuple(high), max_action=env.max_action
    )


def _expert(env: GoalImageEnv, *, noise: float) -> Policy:
    follow = env.expert()

    def act(proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        follow.update(proprio)
        return noisy_action(follow, proprio, rng, noise=noise)

    return act


POLICIES: dict[str, Callable[[GoalImageEnv], Policy]] = {
    "random": _random,
    "do_nothing": _do_nothing,
    "scripted": lambda env: _wander(env, noise=0.0),
    "noisy": lambda env: _wander(env, noise=0.25),
    "expert": lambda env: _expert(env, noise=0.0),
    "noisy_expert": lambda env: _expert(env, noise=NOISE),
    "play": Play,
}
"""Makers of the behaviours by name."""


def make_policy(name: str, env: GoalImageEnv) -> Policy:
    """Make a fresh policy for one episode of `env`, which has been reset.

    Raises:
        ValueError: For an unknown name; names the nearest and lists them all.
    """
    if name not in POLICIES:
        nearest = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown behaviour {name!r}; did you mean {nearest!r}? "
            f"Available: {', '.join(POLICIES)}"
        )
    return POLICIES[name](env)
