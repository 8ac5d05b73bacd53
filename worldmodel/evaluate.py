"""Closed-loop evaluation: the planner and policies that do not look, on the same episodes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from worldmodel import envs
from worldmodel.envs.cameras import Backend
from worldmodel.envs.expert import make_policy
from worldmodel.jepa import JEPA
from worldmodel.planners.energy import latent_l1
from worldmodel.planners.interfaces import ActionBounds, Planner
from worldmodel.planners.mpc import MPC
from worldmodel.pose import ACTION_SIZE
from worldmodel.report import write_report
from worldmodel.results import EpisodeResult, Evaluation, PolicyResult
from worldmodel.runs import describe_machine, write_json
from worldmodel.training import select_device

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
BASELINES = ("random", "do_nothing")


@dataclass(frozen=True)
class PlannerSettings:
    """How the controller uses a planner.

    Attributes:
        search: Finds plans.
        axes: Names of the action axes it searches; the others stay zero.
        limits: Largest planned change per axis (7,), physical units; None takes the largest the
            world model was trained on.
        warm_start: Whether a plan starts from what is left of the one before.
        replan_every: Control steps between plans.
        num_context: Frames given to the predictor.
        deadline_ms: Time allowed for one decision; None is no limit.
    """

    search: Planner
    axes: tuple[str, ...]
    limits: tuple[float, ...] | None
    warm_start: bool
    replan_every: int
    num_context: int
    deadline_ms: float | None


def make_controller(
    world: JEPA, settings: PlannerSettings, env: gymnasium.Env, *, device: torch.device
) -> MPC:
    """Returns the controller of an environment's arm.

    Raises:
        ValueError: An axis has no such name, the limits do not fit, or model and arm run at
            different rates.
    """
    unknown = [axis for axis in settings.axes if axis not in AXES]
    if unknown:
        raise ValueError(f"unknown action axes {unknown}; available: {', '.join(AXES)}")
    limits = settings.limits if settings.limits is not None else world.action_limit
    if limits is None:
        raise ValueError(
            "the checkpoint states no action_limit; set planner.limits to the largest change per "
            "model step, seven numbers [m, rad, gripper]"
        )
    if len(limits) != ACTION_SIZE:
        raise ValueError(
            f"planner.limits must have {ACTION_SIZE} values ({', '.join(AXES)}), got {len(limits)}"
        )
    searched = [x if axis in settings.axes else 0.0 for axis, x in zip(AXES, limits, strict=True)]
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    return MPC(
        world,
        settings.search,
        plan_bounds=ActionBounds.symmetric(searched),
        step_bounds=ActionBounds(low=torch.tensor(space.low), high=torch.tensor(space.high)),
        control_hz=env.unwrapped.control_hz,  # type: ignore[attr-defined]
        warm_start=settings.warm_start,
        replan_every=settings.replan_every,
        num_context=settings.num_context,
        deadline_ms=settings.deadline_ms,
        device=device,
    )


def run_planner(
    env: gymnasium.Env,
    controller: MPC,
    *,
    seed: int,
    goal_image: np.ndarray | None = None,
    on_step: Callable[[int, float, float], None] | None = None,
) -> EpisodeResult:
    """Runs one episode of goal-image control.

    Args:
        env: A `worldmodel.envs` environment with render_mode "rgb_array".
        controller: Decides every step from the observed image and proprio alone.
        seed: Seed of the environment's reset and of the planner's noise.
        goal_image: Overrides the episode's own goal image.
        on_step: Called with (step, energy, distance) before each action.
    """
    observation, info = env.reset(seed=seed)
    goal = observation["goal_image"] if goal_image is None else goal_image
    controller.reset(seed=seed)
    controller.set_goal(goal)
    frames, distances = [np.asarray(env.render())], [info["distance"]]
    actions, energies, plan_ms, encode_ms = [], [], [], []
    ended = False
    while not ended:
        decision = controller.act(observation["image"], observation["proprio"])
        if on_step is not None:
            on_step(len(actions), decision.energy_now, distances[-1])
        observation, _, terminated, truncated, info = env.step(decision.action)
        ended = terminated or truncated
        frames.append(np.asarray(env.render()))
        distances.append(info["distance"])
        actions.append(decision.action)
        energies.append(decision.energy_now)
        plan_ms.append(decision.plan_ms)
        encode_ms.append(decision.encode_ms)
    energies.append(energy_between(controller.world, observation["image"], goal))
    return EpisodeResult(
        seed=seed,
        success=info["success"],
        distances=np.array(distances),
        energies=np.array(energies),
        actions=np.stack(actions),
        plan_ms=np.array(plan_ms),
        encode_ms=np.array(encode_ms),
        frames=np.stack(frames),
        goal_image=goal,
    )


def run_baseline(env: gymnasium.Env, name: str, *, seed: int) -> EpisodeResult:
    """Runs one episode of a policy of `worldmodel.envs.expert` that knows no goal."""
    observation, info = env.reset(seed=seed)
    policy, rng = make_policy(name), np.random.default_rng(seed)
    distances, actions = [info["distance"]], []
    ended = False
    while not ended:
        actions.append(policy(observation["proprio"], rng))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        ended = terminated or truncated
        distances.append(info["distance"])
    return EpisodeResult(
        seed=seed,
        success=info["success"],
        distances=np.array(distances),
        energies=np.zeros(0),
        actions=np.stack(actions),
        plan_ms=np.zeros(0),
        encode_ms=np.zeros(0),
    )


@torch.inference_mode()
def energy_between(world: Any, image: np.ndarray, goal_image: np.ndarray) -> float:
    """Returns the latent energy between two images (height, width, 3)."""
    pair = torch.from_numpy(np.stack([image, goal_image]))[None]
    latents = world.encode(pair)[0]  # (2, N, D)
    return float(latent_l1(latents[0], latents[1]))


def evaluate(
    *,
    world: JEPA,
    settings: PlannerSettings,
    run: Path,
    task: str,
    episodes: int,
    steps: int,
    seed: int,
    camera: str,
    backend: Backend,
    device: str,
    videos: int,
    description: dict[str, object],
    progress: bool = True,
) -> Evaluation:
    """Measures a planner beside its baselines and writes report, videos and numbers to `run`.

    Args:
        world: The world model.
        settings: The planner and its use.
        run: Folder of the results: report.html, metrics.json, results.json and pictures.
        task: Name of the task.
        episodes: How many episodes; their seeds are drawn from `seed`.
        steps: Control steps per episode.
        seed: Seed of the evaluation.
        camera: Camera the planner sees.
        backend: Renderer: "auto", "gl" or "ray".
        device: Where the model runs.
        videos: How many episodes are drawn, failures first.
        description: Settings to record with the results, JSON-able.
        progress: Whether to show progress bars.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    where = select_device(device)
    world = world.to(where)
    env = envs.make(
        task,
        image_size=world.image_size,
        camera=camera,
        backend=backend,
        control_hz=world.control_hz or 4.0,
        max_episode_steps=steps,
    )
    controller = make_controller(world, settings, env, device=where)
    seeds = episode_seeds(seed, episodes)
    planned: list[EpisodeResult] = []
    bar = tqdm(seeds, desc=f"plan {task}", unit="episode", disable=not progress)
    for number, episode_seed in enumerate(bar, start=1):
        planned.append(run_planner(env, controller, seed=episode_seed))
        bar.set_postfix_str(f"reached {sum(e.success for e in planned)} of {number}")
    baselines = []
    for name in BASELINES:
        bar = tqdm(seeds, desc=f"baseline {name}", unit="episode", disable=not progress)
        baselines.append(PolicyResult(name, tuple(run_baseline(env, name, seed=s) for s in bar)))
    renderer = env.unwrapped.renderer_name  # type: ignore[attr-defined]
    env.close()

    evaluation = Evaluation(
        task=task,
        seed=seed,
        planner=PolicyResult("planner", keep_frames(planned, videos)),
        baselines=tuple(baselines),
        settings={**description, "renderer": renderer},
        machine=describe_machine(),
    )
    write_json(run / "metrics.json", metrics(evaluation))
    write_json(run / "results.json", episode_table(evaluation))
    write_report(run, evaluation)
    return evaluation


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Returns the reset seeds of an evaluation: the first n of them do not depend on n.

    They lie at 2^31 and above, and `worldmodel collect` draws below it, so no evaluation episode
    can have been seen in training.
    """
    stream = np.random.default_rng(seed)
    return [int(stream.integers(2**31, 2**32)) for _ in range(episodes)]


def keep_frames(episodes: Iterable[EpisodeResult], videos: int) -> tuple[EpisodeResult, ...]:
    """Returns the episodes with the frames of `videos` of them, failures first, and no others."""
    episodes = list(episodes)
    shown = sorted(range(len(episodes)), key=lambda i: (episodes[i].success, i))[:videos]
    return tuple(
        episode if i in shown else replace(episode, frames=None)
        for i, episode in enumerate(episodes)
    )


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the numbers of an evaluation, JSON-able: success, intervals, times, settings."""
    planner = evaluation.planner
    encode_ms = np.concatenate([episode.encode_ms for episode in planner.episodes])
    return {
        "task": evaluation.task,
        "seed": evaluation.seed,
        **_rates(planner),
        "baselines": {baseline.name: _rates(baseline) for baseline in evaluation.baselines},
        "plan_ms": _percentiles(planner.plan_ms),
        "encode_ms": _percentiles(encode_ms),
        "settings": evaluation.settings,
        "machine": evaluation.machine,
    }


def _rates(result: PolicyResult) -> dict[str, Any]:
    final = 100 * result.final_distances
    return {
        "episodes": len(result.episodes),
        "successes": result.successes,
        "success_rate": result.success_rate,
        "wilson95": list(result.interval),
        "final_distance_cm": {
            "p50": float(np.median(final)),
            "p90": float(np.percentile(final, 90)),
        },
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)}


def episode_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns every episode's outcome without times: the same, byte for byte, for the same seed."""
    return [
        {
            "policy": result.name,
            "seed": episode.seed,
            "success": bool(episode.success),
            "distances": [round(float(x), 6) for x in episode.distances],
            "energies": [round(float(x), 6) for x in episode.energies],
            "actions": np.round(episode.actions.astype(float), 6).tolist(),
        }
        for result in (evaluation.planner, *evaluation.baselines)
        for episode in result.episodes
    ]
