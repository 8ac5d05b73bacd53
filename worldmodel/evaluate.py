"""Closed-loop evaluation: the planner beside policies that know more or less, on the same episodes.

An episode counts as a success if the task's condition is held at its last step. The rows:

    planner     the model under test: sees images and its own pose
    expert      scripted, reads the simulator: the task can be solved in the time given
    oracle      a small search in the true simulator (`worldmodel.oracle`), the first episodes only
    random      uniform actions
    do_nothing  stays
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldmodel.closed_loop import (
    AXES,
    PlannerSettings,
    drive,
    make_controller,
    redraw,
    run_policy,
)
from worldmodel.envs.cameras import Backend
from worldmodel.episode_log import EpisodeLog
from worldmodel.fleet import Fleet, Scene
from worldmodel.jepa import JEPA
from worldmodel.joined_views import check_cameras
from worldmodel.metrics import write_numbers
from worldmodel.oracle import run_oracle
from worldmodel.planners.mpc import MPC
from worldmodel.report import write_report
from worldmodel.results import EpisodeResult, Evaluation, PolicyResult
from worldmodel.runs import describe_machine
from worldmodel.training import select_device

__all__ = ["AXES", "BASELINES", "PlannerSettings", "episode_seeds", "evaluate"]

BASELINES = ("expert", "oracle", "random", "do_nothing")


def evaluate(
    *,
    world: JEPA,
    settings: PlannerSettings,
    run: Path,
    task: str,
    variation: str,
    episodes: int,
    steps: int | None,
    seed: int,
    camera: str,
    backend: Backend,
    device: str,
    num_envs: int,
    workers: int,
    latency_episodes: int,
    oracle_episodes: int,
    videos: int,
    description: dict[str, object],
    baselines: bool = True,
    command: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures a planner beside its baselines and writes report, videos and numbers to `run`.

    Every finished episode is kept in `episodes.jsonl`; the same call again goes on from there.

    Args:
        world: The world model.
        settings: The planner and its use.
        run: Folder of the results: report.html, metrics.json, results.json and pictures.
        task: Name of the task.
        variation: Name of the variation of the scene, see `worldmodel.envs.make`.
        episodes: How many episodes; their seeds are drawn from `seed`.
        steps: Control steps per episode; None takes the task's own number.
        seed: Seed of the evaluation.
        camera: Camera the planner sees; all that the model sees, joined by "+".
        backend: Renderer: "auto", "gl" or "ray".
        device: Where the model runs.
        num_envs: Arms planned for in one batch; 1 with a deadline, which is one arm's.
        workers: Processes that simulate; 1 is this one.
        latency_episodes: The first episodes are run with one arm alone, and the planner's times are
            theirs; in a batch, an arm would wait for the others.
        oracle_episodes: Episodes of the oracle, which is slow; 0 leaves it out.
        videos: How many episodes are drawn, failures first.
        description: Settings to record with the results, JSON-able.
        baselines: Whether the other policies play too. False is for comparing planners with one
            another; a success rate alone says little.
        command: Command line that repeats it.
        progress: Whether to show progress bars.

    Raises:
        ValueError: A number is out of range, or `run` holds what is not an episode.
        RuntimeError: A simulation process died; finished episodes are kept.
    """
    for name, value, low in (
        ("episodes", episodes, 1),
        ("num_envs", num_envs, 1),
        ("workers", workers, 1),
        ("latency_episodes", latency_episodes, 0),
        ("oracle_episodes", oracle_episodes, 0),
        ("videos", videos, 0),
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if settings.deadline_ms is not None and num_envs > 1:
        print("planner.deadline_ms is the time of one arm: num_envs is 1 instead", flush=True)
        num_envs = 1
    check_cameras(world, camera)
    where = select_device(device)
    world = world.to(where)
    scene = Scene(
        task=task,
        variation=variation,
        image_size=world.image_size,
        camera=camera,
        backend=backend,
        control_hz=world.control_hz or 4.0,
        max_steps=steps,
    )
    seeds = episode_seeds(seed, episodes)
    log = EpisodeLog(run / "episodes.jsonl")
    with Fleet(scene, num_arms=max(num_envs, workers), workers=workers) as fleet:

        def controller(num_arms: int) -> MPC:
            return make_controller(world, settings, fleet.body, num_arms=num_arms, device=where)

        controller(1)  # refuses wrong settings before anything is run
        with _bar(f"plan {task}", len(seeds), progress) as bar:
            for batch in batches(seeds, alone=latency_episodes, size=num_envs):
                if any(("planner", one) not in log.episodes for one in batch):
                    planned = drive(
                        fleet,
                        controller(len(batch)),
                        batch,
                        subgoals=settings.subgoals,
                        precision=settings.precision,
                    )
                    log.append("planner", planned)
                done = [e for (name, _), e in log.episodes.items() if name == "planner"]
                bar.update(len(batch))
                bar.set_postfix_str(f"reached {sum(e.success for e in done)} of {len(done)}")
        shares = {"planner": seeds}
        for name in BASELINES if baselines else ():
            shares[name] = seeds[:oracle_episodes] if name == "oracle" else seeds
            missing = [one for one in shares[name] if (name, one) not in log.episodes]
            with _bar(name, len(shares[name]), progress) as bar:
                bar.update(len(shares[name]) - len(missing))
                if name == "oracle":
                    function = partial(run_oracle, axes=settings.axes, subgoals=settings.subgoals)
                else:
                    function = partial(run_policy, name=name)
                for _, episode in fleet.map(function, missing):
                    log.append(name, [episode])
                    bar.update()
        results = [
            PolicyResult(name, tuple(log.episodes[name, one] for one in share))
            for name, share in shares.items()
            if share
        ]
        results[0] = PolicyResult("planner", _draw(fleet, results[0].episodes, videos, progress))
        renderer = fleet.body.renderer

    evaluation = Evaluation(
        task=task,
        variation=variation,
        seed=seed,
        subgoals=settings.subgoals,
        planner=results[0],
        baselines=tuple(results[1:]),
        settings={**description, "renderer": renderer},
        machine=describe_machine(),
        command=command,
    )
    write_numbers(run, evaluation)
    write_report(run, evaluation)
    return evaluation


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Returns the reset seeds of an evaluation: the first n of them do not depend on n.

    They lie at 2^31 and above, and `worldmodel collect` draws below it, so no evaluation episode
    can have been seen in training.
    """
    stream = np.random.default_rng(seed)
    return [int(stream.integers(2**31, 2**32)) for _ in range(episodes)]


def batches(seeds: Sequence[int], *, alone: int, size: int) -> list[list[int]]:
    """Returns the seeds in the groups that are run together: the first `alone` by themselves."""
    singles = [[one] for one in seeds[:alone]]
    rest = seeds[alone:]
    return singles + [list(rest[i : i + size]) for i in range(0, len(rest), size)]


def shown(episodes: Sequence[EpisodeResult], videos: int) -> list[int]:
    """Returns which episodes are drawn: failures first, in order."""
    return sorted(range(len(episodes)), key=lambda i: (episodes[i].success, i))[:videos]


def _draw(
    fleet: Fleet, episodes: Sequence[EpisodeResult], videos: int, progress: bool
) -> tuple[EpisodeResult, ...]:
    """Returns the episodes, `videos` of them with pictures."""
    drawn, indices = list(episodes), shown(episodes, videos)
    with _bar("draw", len(indices), progress) as bar:
        for number, episode in fleet.map(redraw, [episodes[i] for i in indices]):
            drawn[indices[number]] = episode
            bar.update()
    return tuple(drawn)


def _bar(name: str, total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc=name, unit="episode", disable=not progress)
