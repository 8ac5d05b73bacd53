"""What an evaluation measured: episodes, success rates with intervals, planning times."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class EpisodeResult:
    """One closed-loop episode of T steps.

    Attributes:
        seed: Seed of the environment's reset.
        success: Whether the last state meets the task's success test.
        distances: Distance to the goal [m] before each step and at the end, (T + 1,).
        energies: Latent energy to the goal image likewise, (T + 1,); empty for a policy without a
            world model.
        actions: Executed actions (T, 7), physical units.
        plan_ms: Planning time of each step [ms], (T,); empty for a policy that does not plan.
        encode_ms: Encoding time of each step [ms], (T,); empty likewise.
        frames: RGB images before each step and at the end, uint8 (T + 1, height, width, 3), or
            None where they were not kept.
        goal_image: The goal as the planner saw it, uint8 (height, width, 3), or None.
    """

    seed: int
    success: bool
    distances: np.ndarray
    energies: np.ndarray
    actions: np.ndarray
    plan_ms: np.ndarray
    encode_ms: np.ndarray
    frames: np.ndarray | None = None
    goal_image: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PolicyResult:
    """All episodes of one policy.

    Attributes:
        name: "planner", "random" or "do_nothing".
        episodes: One result an episode, in the order of their seeds.
    """

    name: str
    episodes: tuple[EpisodeResult, ...]

    @property
    def successes(self) -> int:
        """How many episodes ended in success."""
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of episodes that ended in success."""
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success rate."""
        return wilson_interval(self.successes, len(self.episodes))

    @property
    def final_distances(self) -> np.ndarray:
        """Distance to the goal [m] at the end of each episode."""
        return np.array([episode.distances[-1] for episode in self.episodes])

    @property
    def plan_ms(self) -> np.ndarray:
        """Planning times [ms] of all steps of all episodes."""
        return np.concatenate([episode.plan_ms for episode in self.episodes])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A planner beside its baselines, on the same episodes.

    Attributes:
        task: Name of the task.
        seed: Seed of the evaluation.
        planner: The policy under test.
        baselines: Policies that use no goal, on the same seeds.
        settings: What was run: planner settings, checkpoint, renderer, steps, JSON-able.
        machine: Processor, cores, threads and library versions, JSON-able.
    """

    task: str
    seed: int
    planner: PolicyResult
    baselines: tuple[PolicyResult, ...]
    settings: dict[str, object]
    machine: dict[str, object]


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the Wilson score interval of a success rate (Wilson 1927), 95 % by default."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 <= successes <= trials > 0, got {successes} of {trials}")
    rate = successes / trials
    scale = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)
