"""Play: grasp, carry, drop, stack and push whatever lies about, so that a model sees contact."""

from typing import TYPE_CHECKING

import numpy as np

from worldmodel.envs import placing
from worldmodel.envs.drawer import TRAVEL
from worldmodel.envs.tasks.drawer_open import KNOB_GRIP
from worldmodel.envs.tasks.grasp import ABOVE, grasp_waypoints
from worldmodel.envs.waypoints import Follow, Waypoint, noisy_action

if TYPE_CHECKING:
    from worldmodel.envs.franka_env import FrankaEnv

LOW, HIGH = np.array([0.32, -0.29, 0.05]), np.array([0.63, 0.29, 0.42])  # [m] where play goes
AIM_NOISE = 0.006  # [m] standard deviation: most grasps succeed, some fail
STEP_NOISE = 0.15  # as a part of the largest action
BEHIND = 0.07  # [m] from a cube's centre before a push


class Play:
    """One short skill after another on a randomly chosen object, each drawn anew.

    Calling it returns the next action (7,) float32.
    """

    def __init__(self, env: "FrankaEnv"):
        self._env = env
        self._way: Follow | None = None

    def __call__(self, proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the next action (7,) float32 at the measured proprio (7,)."""
        if self._way is not None:
            self._way.update(proprio)
        # Now and then a skill is dropped halfway: things are let go of, or carried elsewhere.
        if self._way is None or self._way.done or rng.random() < 0.02:
            self._way = Follow(
                self._skill(rng), speed=rng.uniform(0.4, 1.0), closed=self._env.gripper_closed
            )
            self._way.update(proprio)
        return noisy_action(self._way, proprio, rng, noise=STEP_NOISE)

    def _skill(self, rng: np.random.Generator) -> list[Waypoint]:
        """Return the waypoints of a random skill."""
        skills = [self._carry, self._push, self._hover, self._wander]
        weights = np.array([0.5, 0.15, 0.15, 0.2])
        if self._env.knob_pos_base is not None:
            skills.append(self._drawer)
            weights = np.append(0.6 * weights, 0.4)
        return skills[rng.choice(len(skills), p=weights / weights.sum())](rng)

    def _carry(self, rng: np.random.Generator) -> list[Waypoint]:
        """Grasp a cube and put it, drop it, or keep it somewhere."""
        cubes = self._env.cube_pos_base
        name = str(rng.choice(list(cubes)))
        cube = _aim(cubes[name], rng)
        height = max(placing.GRASP_HEIGHT, float(cube[2]))
        lifted = (float(cube[0]), float(cube[1]), float(rng.uniform(0.10, 0.30)))
        x, y, z = _place(rng)
        if rng.random() < 0.25:  # onto another cube
            other = cubes[str(rng.choice([other for other in cubes if other != name]))]
            x, y = (float(value) for value in _aim(other, rng)[:2])
        z = max(z, 0.10)
        way = [
            *grasp_waypoints(cube, height=height),
            Waypoint(lifted, closed=True),
            Waypoint((x, y, z), closed=True),
        ]
        end = rng.random()
        if end < 0.5:  # put it down
            down = float(rng.uniform(0.03, 0.045))
            way += [Waypoint((x, y, down), closed=True), Waypoint((x, y, down), closed=False)]
        elif end < 0.75:  # drop it
            way.append(Waypoint((x, y, z), closed=False))
        if way[-1].closed is False and rng.random() < 0.7:
            way.append(Waypoint((x, y, z), closed=False))
        return way

    def _push(self, rng: np.random.Generator) -> list[Waypoint]:
        """Go down beside a cube and through it, sideways, the gripper closed or open."""
        cubes = self._env.cube_pos_base
        cube = _aim(cubes[str(rng.choice(list(cubes)))], rng)
        side, closed = rng.choice([-1.0, 1.0]), bool(rng.random() < 0.8)
        x, y = float(cube[0]), float(cube[1])
        begin = y - side * BEHIND
        end = float(np.clip(y + side * rng.uniform(0.0, 0.16), LOW[1], HIGH[1]))
        height = float(rng.uniform(0.03, 0.04))
        return [
            Waypoint((x, begin, ABOVE), closed=closed),
            Waypoint((x, begin, height), closed=closed),
            Waypoint((x, end, height), closed=closed),
            Waypoint((x, end, ABOVE), closed=closed),
        ]

    def _hover(self, rng: np.random.Generator) -> list[Waypoint]:
        """Go near a cube, above it or around it, and open or close."""
        cubes = self._env.cube_pos_base
        cube = cubes[str(rng.choice(list(cubes)))]
        x, y = (float(value) for value in cube[:2] + rng.normal(size=2) * 0.03)
        z = float(rng.uniform(0.07, 0.2))
        closed = bool(rng.random() < 0.5)
        return [
            Waypoint((x, y, max(z, ABOVE)), closed=closed),
            Waypoint((x, y, z), closed=closed),
            Waypoint((x, y, z), closed=not closed),
        ]

    def _wander(self, rng: np.random.Generator) -> list[Waypoint]:
        """Go anywhere."""
        return [Waypoint(_place(rng), closed=bool(rng.random() < 0.4))]

    def _drawer(self, rng: np.random.Generator) -> list[Waypoint]:
        """Grasp the knob and pull or push it."""
        knob = self._env.knob_pos_base
        assert knob is not None  # the skill is only drawn where there is one
        aim = _aim(knob, rng)
        x, y = float(aim[0] - rng.uniform(-TRAVEL, TRAVEL)), float(aim[1])
        x = float(np.clip(x, 0.38, 0.60))
        return [
            *grasp_waypoints(aim, height=KNOB_GRIP),
            Waypoint((x, y, KNOB_GRIP), closed=True),
            Waypoint((x, y, KNOB_GRIP), closed=False),
            Waypoint((x, y, KNOB_GRIP + ABOVE), closed=False),
        ]


def _aim(position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a position (3,) missed by a little, within reach [m]."""
    missed = position + rng.normal(size=3) * AIM_NOISE
    return np.clip(missed, [LOW[0], LOW[1], placing.GRASP_HEIGHT], HIGH)


def _place(rng: np.random.Generator) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in rng.uniform(LOW, HIGH))
    return x, y, z
