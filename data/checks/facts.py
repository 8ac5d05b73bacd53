"""What is kept of an episode after it was checked, so that the whole set can be judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ActionFacts:
    """How one logged command and the motion after it go together, summed over an episode.

    Attributes:
        measures: What it is compared with: "position", "joints" or "gripper".
        absolute: Whether it commands where to be, and not how far to go.
        lags: (MAX_LAG + 1, axes, 3): sums of command squared, motion squared and their product,
            for motion that many steps after the command.
        scale: (axes, 2): for absolute commands, sums of command times measured and of measured
            squared, each less its mean.
    """

    measures: str
    absolute: bool
    lags: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, eq=False)
class EpisodeFacts:
    """A kilobyte or so on one episode.

    Attributes:
        episode: Its id.
        steps: Number of actions.
        hz: Measured rate; None where nothing measured it.
        cameras: Camera -> mean of R, G and B; empty where no frame could be seen.
        low: (7,) smallest proprio.
        high: (7,) largest proprio.
        first_gripper: Gripper at the start.
        idle_steps: Steps without motion, of those that are usable.
        usable_steps: Steps that the log does not say to leave out.
        content: Hash of the poses.
        rotation_judged: Whether something could tell right from wrong rotations.
        actions: Logged command -> how it goes together with the motion.
        turns: (hypotheses, sides, lags, 3) sums as in `ActionFacts.lags`, of commanded and measured
            turns for each way to read the rotation; None where there are no commanded turns.
    """

    episode: int
    steps: int
    hz: float | None
    cameras: Mapping[str, tuple[float, ...]]
    low: np.ndarray
    high: np.ndarray
    first_gripper: float
    idle_steps: int
    usable_steps: int
    content: str
    rotation_judged: bool
    actions: Mapping[str, ActionFacts]
    turns: np.ndarray | None
