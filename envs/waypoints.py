"""Following waypoints: what the scripted experts, the goal images and the play data are made of."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from worldmodel.pose import ACTION_SIZE, GRIPPER, POSITION

ARRIVED = 0.008  # [m]
NOISE_FADES = 0.05  # [m]
GRIP_STEPS = 2  # control steps the fingers are given to open or close
MAX_MOVE = 0.075  # [m] per control step, as `worldmodel.envs.franka_env.MAX_ACTION`


@dataclasses.dataclass(frozen=True)
class Waypoint:
    """Where the gripper should be, pointing straight down.

    Attributes:
        position: Tool centre point x, y, z in the base frame [m].
        closed: Whether the gripper is closed there; it moves its fingers after arriving.
        stage: Name of the stage that ends here, or None. What the camera shows then is a sub-goal.
    """

    position: tuple[float, float, float]
    closed: bool
    stage: str | None = None


class Follow:
    """Goes from waypoint to waypoint and stays at the last.

    Attributes:
        ended: The stages that have ended, in order.
    """

    def __init__(self, waypoints: Sequence[Waypoint], *, speed: float = 1.0, closed: bool = False):
        """Start before the first waypoint.

        Args:
            waypoints: At least one.
            speed: Part of the largest move per control step, in (0, 1].
            closed: Whether the gripper is closed at the start.
        """
        self._waypoints, self._speed, self._closed = list(waypoints), speed, closed
        self._next, self._grip_steps = 0, 0
        self.ended: list[str] = []

    @property
    def done(self) -> bool:
        """Whether the last waypoint was reached."""
        return self._next == len(self._waypoints)

    def update(self, proprio: np.ndarray) -> None:
        """Take note of the measured proprio (7,): call it once before each action."""
        if self.done:
            return
        waypoint = self._waypoints[self._next]
        if not self._at(waypoint, proprio):
            return
        if waypoint.closed != self._closed:
            self._closed, self._grip_steps = waypoint.closed, GRIP_STEPS
        elif self._grip_steps:
            self._grip_steps -= 1
        if not self._grip_steps:
            self._next += 1
            if waypoint.stage is not None:
                self.ended.append(waypoint.stage)

    def action(self, proprio: np.ndarray) -> np.ndarray:
        """Return the next action (7,) float32 at the measured proprio (7,)."""
        target = self._waypoints[min(self._next, len(self._waypoints) - 1)]
        action = np.zeros(ACTION_SIZE)
        action[POSITION] = shorten(
            np.subtract(target.position, proprio[POSITION]), self._speed * MAX_MOVE
        )
        # All the way: the arm adds it to its last command and stops at open or closed.
        action[GRIPPER] = 1.0 if self._closed else -1.0
        return action.astype(np.float32)

    @staticmethod
    def _at(waypoint: Waypoint, proprio: np.ndarray) -> bool:
        return bool(np.linalg.norm(proprio[POSITION] - waypoint.position) <= ARRIVED)


def end_of_stages(
    way: Follow,
    *,
    proprio: Callable[[], np.ndarray],
    act: Callable[[np.ndarray], object],
    most_steps: int,
) -> Iterator[tuple[str, int]]:
    """Go all the way, and stop where a stage ends: yield its name and how many steps it took.

    Args:
        way: From where the arm is.
        proprio: Measures it (7,).
        act: Moves it by one action (7,).
        most_steps: Of all stages together; the way may then not be done.
    """
    begun = 0
    for step in range(most_steps):
        known = len(way.ended)
        way.update(proprio())
        if len(way.ended) > known:
            yield way.ended[-1], step - begun
            begun = step
        if way.done:
            return
        act(way.action(proprio()))


def noisy_action(
    way: Follow, proprio: np.ndarray, rng: np.random.Generator, *, noise: float
) -> np.ndarray:
    """Return the next action (7,) float32 of `way`, shaken.

    Args:
        way: Updated with `proprio`.
        proprio: Measured state (7,).
        rng: Source of the noise.
        noise: Standard deviation as a part of the largest move. It fades within 5 cm of the
            waypoint, or nothing small would ever be grasped.
    """
    action = way.action(proprio)
    fade = min(1.0, float(np.linalg.norm(action[POSITION])) / NOISE_FADES)
    action[POSITION] += rng.normal(size=3) * noise * fade * MAX_MOVE
    action[POSITION] = np.clip(action[POSITION], -MAX_MOVE, MAX_MOVE)
    return action


def shorten(vector: np.ndarray, length: float) -> np.ndarray:
    """Return `vector`, scaled down if need be to at most `length`."""
    size = np.linalg.norm(vector)
    return vector if size <= length else vector * (length / size)
