"""Where a policy fails: how far it came, why it went on, where it first closed the gripper."""

from collections.abc import Sequence
from dataclasses import dataclass

from worldmodel.results import EpisodeResult

GRASP_DISTANCE = 0.03  # [m] from tool to the nearest cube's centre: farther away it closes on air


@dataclass(frozen=True)
class StageFailures:
    """Failed episodes that ended while the same sub-goal was pursued.

    Attributes:
        stage: Name of the sub-goal.
        number: Which it is, from 0.
        failures: Failed episodes that ended in it.
        held_before: Of these, the goal was held at some step and left again.
        out_of_time: Of these, some sub-goal before was left because its time was over.
        never_closed: Of these, the gripper was never closed.
        closed_on_air: Of these, it first closed more than 3 cm from the nearest cube.
        seeds: Their seeds.
    """

    stage: str
    number: int
    failures: int
    held_before: int
    out_of_time: int
    never_closed: int
    closed_on_air: int
    seeds: tuple[int, ...]


def where_it_fails(episodes: Sequence[EpisodeResult]) -> tuple[StageFailures, ...]:
    """Returns the failed episodes by the sub-goal in which they ended, the first sub-goal first.

    Args:
        episodes: Episodes of a policy with sub-goals.
    """
    failed = [episode for episode in episodes if not episode.success]
    numbers = sorted({int(episode.stages[-1]) for episode in failed})
    return tuple(
        _stage(number, [episode for episode in failed if episode.stages[-1] == number])
        for number in numbers
    )


def _stage(number: int, failed: Sequence[EpisodeResult]) -> StageFailures:
    grips = [episode.first_grip for episode in failed]
    return StageFailures(
        stage=failed[0].stage_names[number],
        number=number,
        failures=len(failed),
        held_before=sum(episode.ever_successful for episode in failed),
        out_of_time=sum(
            any(switch.reason == "limit" for switch in episode.switches) for episode in failed
        ),
        never_closed=sum(grip is None for grip in grips),
        closed_on_air=sum(grip is not None and grip.distance > GRASP_DISTANCE for grip in grips),
        seeds=tuple(episode.seed for episode in failed),
    )
