"""What an evaluation measured: episodes, success rates with intervals, paired comparisons."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

FEATURE_GRIPPER, FEATURE_CUBES = 3, 4  # features: tcp x, y, z [m], gripper, cubes' x, y, z [m], ...
CLOSED = 0.25  # gripper reading of closed fingers; on a 5 cm cube they stop at 0.375


@dataclass(frozen=True)
class Switch:
    """The controller went on to the next sub-goal.

    Attributes:
        step: First step under the new sub-goal.
        stage: Number of the new sub-goal.
        reason: Why the one before was left, see `worldmodel.planners.subgoals.SwitchReason`;
            "limit" means that its time was over.
    """

    step: int
    stage: int
    reason: str


@dataclass(frozen=True)
class Grip:
    """The first closing of the gripper.

    Attributes:
        step: Step at which the fingers were first seen closed.
        distance: From the tool centre point to the nearest cube's centre at that step [m].
    """

    step: int
    distance: float


@dataclass(frozen=True, eq=False)
class EpisodeResult:
    """One closed-loop episode of T steps.

    Attributes:
        seed: Seed of the environment's reset.
        successes: Whether the goal was held, before each step and at the end, bool (T + 1,).
        distances: Distance to the goal [m] likewise, (T + 1,).
        features: State of the simulator likewise (T + 1, n): tool centre point [m], gripper,
            cubes [m], ...; see `worldmodel.envs`. For analysis; no planner sees it.
        actions: Executed actions (T, 7), physical units.
        stages: Number of the sub-goal pursued likewise, int (T + 1,); empty for a policy without
            sub-goals.
        stage_names: Name of each sub-goal, in order; empty likewise.
        switches: When the controller went on to another sub-goal, and why; empty likewise.
        energies: Latent energy to the image of the sub-goal pursued, (T + 1,); empty for a policy
            without a world model. Energies to different sub-goals do not compare.
        plan_ms: Planning time of each step [ms], (T,), where one arm was driven alone; else empty.
        encode_ms: Encoding time of each step [ms], likewise.
        goal_rejections: Placements the environment drew again because they were solved at the start
            or not solvable.
        verdicts: What the surprise gate said before each step, see
            `worldmodel.planners.gate.Verdict`; empty without a gate.
        frames: RGB images before each step and at the end, uint8 (T + 1, height, width, 3), or
            None where they were not drawn.
        goal_images: The sub-goals as the planner saw them, uint8 (G, height, width, 3), the last
            one the goal; or None.
    """

    seed: int
    successes: np.ndarray
    distances: np.ndarray
    features: np.ndarray
    actions: np.ndarray
    stages: np.ndarray
    stage_names: tuple[str, ...]
    switches: tuple[Switch, ...]
    energies: np.ndarray
    plan_ms: np.ndarray
    encode_ms: np.ndarray
    goal_rejections: int = 0
    verdicts: tuple[str, ...] = ()
    frames: np.ndarray | None = None
    goal_images: np.ndarray | None = None

    @property
    def success(self) -> bool:
        """Whether the goal was held at the last step: what counts as success."""
        return bool(self.successes[-1])

    @property
    def ever_successful(self) -> bool:
        """Whether the goal was held at any step, be it left again or not."""
        return bool(self.successes.any())

    @property
    def steps_to_success(self) -> int | None:
        """The first step from which the goal was held to the end; None if it was not."""
        if not self.success:
            return None
        missed = np.flatnonzero(~self.successes)
        return int(missed[-1]) + 1 if missed.size else 0

    @property
    def first_grip(self) -> Grip | None:
        """The first closing of a gripper that was open at the start; None if there was none."""
        closed = self.features[:, FEATURE_GRIPPER] >= CLOSED
        if closed[0] or not closed.any():
            return None
        step = int(closed.argmax())
        tcp, rest = self.features[step, :3], self.features[step, FEATURE_CUBES:]
        cubes = rest[: len(rest) // 3 * 3].reshape(-1, 3)
        return Grip(step=step, distance=float(np.linalg.norm(cubes - tcp, axis=1).min()))


ARRAYS = {
    "successes": np.bool_,
    "distances": np.float64,
    "features": np.float64,
    "actions": np.float64,
    "stages": np.int64,
    "energies": np.float64,
    "plan_ms": np.float64,
    "encode_ms": np.float64,
}


def episode_to_json(episode: EpisodeResult) -> dict[str, Any]:
    """Returns an episode without its pictures, JSON-able; no digit is lost."""
    return {
        "seed": episode.seed,
        **{name: getattr(episode, name).tolist() for name in ARRAYS},
        "stage_names": list(episode.stage_names),
        "switches": [asdict(switch) for switch in episode.switches],
        "goal_rejections": episode.goal_rejections,
        "verdicts": list(episode.verdicts),
    }


def episode_from_json(content: dict[str, Any]) -> EpisodeResult:
    """Returns the episode that `episode_to_json` wrote."""
    return EpisodeResult(
        seed=content["seed"],
        **{name: np.array(content[name], dtype) for name, dtype in ARRAYS.items()},
        stage_names=tuple(content["stage_names"]),
        switches=tuple(Switch(**switch) for switch in content["switches"]),
        goal_rejections=content["goal_rejections"],
        verdicts=tuple(content.get("verdicts", ())),  # logs from before there were gates have none
    )


@dataclass(frozen=True, eq=False)
class PolicyResult:
    """All episodes of one policy.

    Attributes:
        name: "planner", "expert", "oracle", "random" or "do_nothing".
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
        """Times of the plans made [ms] where one arm was driven alone.

        The first decision of an episode is left out: it warms up. So are steps that went on with
        an earlier plan.
        """
        times = np.concatenate([episode.plan_ms[1:] for episode in self.episodes])
        return times[times > 0]

    @property
    def encode_ms(self) -> np.ndarray:
        """Times to encode an image [ms] likewise."""
        return np.concatenate([episode.encode_ms[1:] for episode in self.episodes])


@dataclass(frozen=True)
class Paired:
    """Two policies on the same episodes.

    Attributes:
        against: Name of the policy that the planner is compared with.
        episodes: How many episodes both did.
        only_planner: Episodes in which only the planner succeeded.
        only_other: Episodes in which only the other did.
        p_value: Exact McNemar test, two-sided.
    """

    against: str
    episodes: int
    only_planner: int
    only_other: int
    p_value: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A planner beside its baselines, on the same episodes.

    Attributes:
        task: Name of the task.
        variation: Name of the variation of the scene.
        seed: Seed of the evaluation.
        subgoals: Whether the planner was given all sub-goals, or the goal image only.
        planner: The policy under test.
        baselines: Policies beside it, on the same seeds or the first of them.
        settings: What was run: planner settings, checkpoint, renderer, steps, JSON-able.
        machine: Processor, cores, threads and library versions, JSON-able.
        command: Command line that repeats it, or None.
    """

    task: str
    variation: str
    seed: int
    subgoals: bool
    planner: PolicyResult
    baselines: tuple[PolicyResult, ...]
    settings: dict[str, object]
    machine: dict[str, object]
    command: str | None = None

    @property
    def policies(self) -> tuple[PolicyResult, ...]:
        """The planner, then the baselines."""
        return (self.planner, *self.baselines)

    @property
    def goal_rejections(self) -> int:
        """Placements that the environment drew again, over the planner's episodes."""
        return sum(episode.goal_rejections for episode in self.planner.episodes)

    @cached_property
    def paired(self) -> tuple[Paired, ...]:
        """The planner against each baseline."""
        return tuple(compare(self.planner, baseline) for baseline in self.baselines)


def compare(planner: PolicyResult, other: PolicyResult) -> Paired:
    """Returns how often one policy succeeded where the other did not, on the seeds both had."""
    succeeded = {episode.seed: episode.success for episode in other.episodes}
    pairs = [
        (episode.success, succeeded[episode.seed])
        for episode in planner.episodes
        if episode.seed in succeeded
    ]
    only_planner, only_other = pairs.count((True, False)), pairs.count((False, True))
    return Paired(
        against=other.name,
        episodes=len(pairs),
        only_planner=only_planner,
        only_other=only_other,
        p_value=mcnemar_p_value(only_planner, only_other),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Returns the two-sided p-value of the exact McNemar test (McNemar 1947).

    Under the null hypothesis the episodes in which just one of two policies succeeds fall to either
    like coins: the p-value is twice the smaller tail of a binomial(n, 1/2), at most 1.

    Args:
        only_first: Episodes in which only the first policy succeeded.
        only_second: Episodes in which only the second did.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must be at least 0, got {only_first} and {only_second}")
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the Wilson score interval of a success rate (Wilson 1927), 95 % by default."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 <= successes <= trials > 0, got {successes} of {trials}")
    rate = successes / trials
    scale = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)
