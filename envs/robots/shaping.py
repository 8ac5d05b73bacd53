"""How fast an arm may go, here and now: velocities from which it can still stop in time.

All functions take any leading dimensions, so that they can be tested on many arms at once.
"""

import math

import numpy as np

from worldmodel.envs.robots.limits import Envelope


def stoppable_speed(distance, *, reaction_s: float, deceleration: float) -> np.ndarray:
    """Returns the largest speed from which rest is reached within a distance; 0 beyond it.

    It solves v t + v^2 / (2 a) = d: the arm first goes on for the reaction time.

    Args:
        distance: (...) [m] or [rad].
        reaction_s: Time before braking begins.
        deceleration: How it brakes.
    """
    lag = deceleration * reaction_s
    return np.sqrt(lag**2 + 2 * deceleration * np.maximum(distance, 0.0)) - lag


def keep_in_box(
    velocity: np.ndarray, position: np.ndarray, envelope: Envelope, *, life_s: float = 0.0
) -> np.ndarray:
    """Returns a velocity (..., 3) with which the tool comes to rest inside the workspace.

    Each axis is cut by itself, so the tool slides along a wall. Outside of the box only the way
    back is left.

    Args:
        velocity: Of the tool (..., 3) [m/s].
        position: Of the tool (..., 3) [m].
        envelope: With the workspace.
        life_s: How long the velocity is kept before the brake.
    """
    reaction_s, deceleration = life_s + envelope.reaction_s, envelope.axis_deceleration
    up = stoppable_speed(
        np.asarray(envelope.workspace_high) - position,
        reaction_s=reaction_s,
        deceleration=deceleration,
    )
    down = stoppable_speed(
        position - np.asarray(envelope.workspace_low),
        reaction_s=reaction_s,
        deceleration=deceleration,
    )
    return np.clip(velocity, -down, up)


def shrink(vector: np.ndarray, largest) -> np.ndarray:
    """Returns a vector (..., n) of at most a norm, in the same direction."""
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector * np.minimum(1.0, largest / np.maximum(norm, 1e-300))


class Ramp:
    """A velocity that follows a wanted one with limited acceleration and jerk.

    `raw` goes straight to the wanted velocity, which bounds the acceleration; `velocity` is a
    low-pass of it with the time constant 2 acceleration / jerk, which bounds the jerk. Both only
    ever average velocities that were allowed, so a speed limit that holds for them holds here.
    """

    def __init__(self, shape: tuple[int, ...], *, acceleration: float, jerk: float, per_axis: bool):
        """Starts at rest.

        Args:
            shape: (..., n).
            acceleration: Largest norm of the acceleration, or of each axis by itself.
            jerk: Largest jerk, the same.
            per_axis: Whether the limits are those of each axis by itself.
        """
        self._acceleration, self._time_constant = acceleration, 2 * acceleration / jerk
        self._order = np.inf if per_axis else None
        self._shape = shape
        self.reset()

    def reset(self) -> None:
        """Puts it at rest at once, for an arm that has stopped by itself."""
        self.raw, self.velocity = np.zeros(self._shape), np.zeros(self._shape)

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves."""
        return not (self.raw.any() or self.velocity.any())

    def step(self, wanted: np.ndarray, *, braked: np.ndarray, dt: float) -> np.ndarray:
        """Returns the velocity (..., n) after a time.

        Args:
            wanted: Where to go (..., n).
            braked: What `raw` must come down to first (..., n); it takes what acceleration it
                needs, so that a turn in one axis never delays the brake of another.
            dt: The time [s].
        """
        budget = np.full((*self._shape[:-1], 1), self._acceleration * dt)
        first = self._towards(self.raw, braked, budget)
        left = budget - self._norm(first - self.raw)
        self.raw = self._towards(first, wanted, np.maximum(left, 0.0))
        self.velocity = self.velocity + (self.raw - self.velocity) * -math.expm1(
            -dt / self._time_constant
        )
        small = 1e-6 * self._acceleration
        self.velocity = np.where(np.abs(self.velocity - self.raw) < small, self.raw, self.velocity)
        return self.velocity

    def _towards(self, start: np.ndarray, end: np.ndarray, reach: np.ndarray) -> np.ndarray:
        change = end - start
        norm = self._norm(change)
        return np.where(norm <= reach, end, start + change * (reach / np.maximum(norm, 1e-300)))

    def _norm(self, vector: np.ndarray) -> np.ndarray:
        return np.linalg.norm(vector, ord=self._order, axis=-1, keepdims=True)
