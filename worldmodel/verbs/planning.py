"""plan, landscape, evaluate, demo: a world model put to use."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.verbs.shared import (
    Call,
    UserError,
    build,
    check_backends,
    load_world,
    open_folder,
    open_recordings,
)

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from worldmodel.closed_loop import PlannerSettings
    from worldmodel.landscape import Pair
    from worldmodel.planners.gate import SurpriseGate


def planner_settings(config: "DictConfig", world: Any) -> "PlannerSettings":
    """Returns the planner that the settings describe, for a world model."""
    from worldmodel.closed_loop import PlannerSettings
    from worldmodel.planners.subgoals import SwitchRule

    planner = config.planner
    chunk_size = planner.search.chunk_size
    if planner.memory_mib is not None:
        if chunk_size is not None:
            raise UserError("planner.memory_mib and planner.search.chunk_size exclude each other")
        steps = planner.num_context - 1 + planner.search.horizon
        views = world.predictor.num_views
        chunk_size = world.plans_within(planner.memory_mib, steps=steps, num_views=views)
    return PlannerSettings(
        search=build(planner.search, chunk_size=chunk_size),
        axes=tuple(planner.axes),
        limits=None if planner.limits is None else tuple(planner.limits),
        warm_start=planner.warm_start,
        replan_every=planner.replan_every,
        num_context=planner.num_context,
        deadline_ms=planner.deadline_ms,
        subgoals=planner.subgoals,
        switch=SwitchRule(**planner.switch),
        gripper_snap=planner.gripper_snap,
        gate=_gate(planner.gate, planner.gate_calibration, config, world),
        camera_rotation=_camera_rotation(planner.camera_rotation, config, world),
        precision=planner.precision,
    )


def _camera_rotation(path: str | None, config: "DictConfig", world: Any) -> "np.ndarray | None":
    """Returns the rotation that `worldmodel validate` measured, if there is a file of it."""
    from worldmodel.checkpoint import fingerprint
    from worldmodel.validation.camera_rotation import load_camera_rotation

    if path is None:
        return None
    return load_camera_rotation(path, model=fingerprint(world), camera=config.camera)


def _gate(
    model: str | None, path: str | None, config: "DictConfig", world: Any
) -> "SurpriseGate | None":
    """Returns the gate of a model that watches; its thresholds are quantiles of a calibration."""
    from worldmodel.checkpoint import folder_of, load
    from worldmodel.planners.gate import SurpriseGate
    from worldmodel.surprise_calibration import CALIBRATION_FILE, load_calibration
    from worldmodel.training import select_device

    if model is None:
        if path is not None:
            raise UserError("planner.gate_calibration is of planner.gate, which names no model")
        return None
    if Path(model).is_file():
        raise UserError(
            f"planner.gate={model} is a file; it names the folder of a model that watches, or "
            "watch, the shipped one; a calibration is for planner.gate_calibration"
        )
    watcher = load(model).to(select_device(config.device))
    if watcher.control_hz != world.control_hz:
        raise UserError(
            f"planner.gate={model} predicts {watcher.control_hz} frames a second, and the model "
            f"that plans {world.control_hz}; a gate needs the same"
        )
    if (watcher.image_size, watcher.crop) != (world.image_size, world.crop):
        raise UserError(
            f"planner.gate={model} sees {watcher.image_size} pixels (crop {watcher.crop}), and the "
            f"model that plans {world.image_size} (crop {world.crop}); a gate is shown the same"
        )
    file = folder_of(model) / CALIBRATION_FILE if path is None else Path(path)
    calibration = load_calibration(file, world=watcher, camera=config.camera)
    return SurpriseGate(
        watcher,
        calibration.step_surprise,
        calm_below=calibration.step_quantile(0.90),
        slow_above=calibration.step_quantile(0.99),
        hold_above=calibration.step_quantile(0.999),
    )


def plan(config: "DictConfig", *, call: Call) -> int:
    """Runs one episode to a goal image, shown step by step."""
    from worldmodel.plan import plan

    check_backends(config.backend)
    world = load_world(config, several_views=True)
    settings = planner_settings(config, world)
    run = open_folder("plan", config)
    episode = plan(
        world=world,
        settings=settings,
        run=run,
        task=config.task,
        variation=config.variation,
        goal=None if config.goal is None else Path(config.goal),
        steps=config.steps,
        seed=config.seed,
        camera=config.camera,
        backend=config.backend,
        device=config.device,
    )
    print(f"look at {run / 'episode.mp4'} and {run / 'filmstrip.png'}")
    if config.goal is None:
        print(
            f"{'reached' if episode.success else 'not reached'}: "
            f"{100 * episode.distances[-1]:.1f} cm from the goal"
        )
    else:
        print(f"energy to the goal image {episode.energies[0]:.3f} -> {episode.energies[-1]:.3f}")
    return 0


def landscape(config: "DictConfig", *, call: Call) -> int:
    """Draws the energy of small moves."""
    from worldmodel.joined_views import check_cameras, joined
    from worldmodel.landscape import energy_landscape, fit_pair, summary, write_landscape
    from worldmodel.training import select_device

    if config.pair is not None and config.data is not None:
        raise UserError("landscape takes pair=... or data=..., not both")
    world = load_world(config, several_views=True).to(select_device(config.device))
    check_cameras(world, config.camera)
    pair = fit_pair(_landscape_pair(config, world), world)
    run = open_folder("landscape", config)
    landscape = energy_landscape(
        joined(world), pair.frames, pair.proprio, limit=config.limit, points=config.points
    )
    model = "shipped model" if config.checkpoint is None else Path(config.checkpoint).name
    files = write_landscape(landscape, run, model=model, pair=pair.name)
    print(f"look at {' and '.join(map(str, files))}")
    print(pair.name)
    print(summary(landscape))
    return 0


def _landscape_pair(config: "DictConfig", world: Any) -> "Pair":
    from worldmodel.landscape import read_pair, recorded_pair, simulated_pair

    if config.pair is not None:
        return read_pair(config.pair)
    if config.data is not None:
        first, second = config.rows
        return recorded_pair(
            open_recordings(config), config.episode, (first, second), camera=config.camera
        )
    check_backends(config.backend)
    x, y, z = config.move
    return simulated_pair(
        image_size=world.image_size,
        seed=config.seed,
        move=(x, y, z),
        camera=config.camera,
        backend=config.backend,
        control_hz=world.control_hz or 4.0,
    )


def evaluate(config: "DictConfig", *, call: Call) -> int:
    """Measures a planner on one task, beside its baselines."""
    run = open_folder("evaluate", config)
    _measure(config, task=config.task, run=run, command=call.command)
    if call.json_to is not None:
        print((run / "metrics.json").read_text(), end="", file=call.json_to)
    else:
        _print_evaluation(run)
    return 0


def demo(config: "DictConfig", *, call: Call) -> int:
    """Measures a few episodes of some tasks, to watch."""
    run = open_folder("demo", config)
    for task in config.tasks:
        _measure(config, task=task, run=run / task, command=call.command)
    numbers = [json.loads((run / task / "metrics.json").read_text()) for task in config.tasks]
    if call.json_to is not None:
        print(json.dumps(numbers), file=call.json_to)
        return 0
    for task in config.tasks:
        _print_evaluation(run / task)
    print(
        "\nnext: worldmodel evaluate task=lift   (or: worldmodel plan task=pick_and_place seed=7)"
    )
    planners = [one["rows"][0] for one in numbers]
    solved, tried = (sum(one[key] for one in planners) for key in ("successes", "episodes"))
    print(f"solved {solved} of {tried}")
    return 0


def _measure(config: "DictConfig", *, task: str, run: Path, command: str) -> None:
    from omegaconf import OmegaConf

    from worldmodel.evaluate import evaluate

    check_backends(config.backend)
    world = load_world(config, several_views=True)
    settings = planner_settings(config, world)
    run.mkdir(parents=True, exist_ok=True)
    description = OmegaConf.to_container(config, resolve=True)
    assert isinstance(description, dict)
    description.pop("run")
    evaluate(
        world=world,
        settings=settings,
        run=run,
        task=task,
        variation=config.variation,
        episodes=config.episodes,
        steps=config.steps,
        seed=config.seed,
        camera=config.camera,
        backend=config.backend,
        device=config.device,
        num_envs=config.num_envs,
        workers=config.workers or len(os.sched_getaffinity(0)),
        latency_episodes=config.latency_episodes,
        oracle_episodes=config.oracle_episodes,
        videos=config.videos,
        baselines=config.baselines,
        description={str(key): value for key, value in description.items()},
        command=command,
    )


def _print_evaluation(run: Path) -> None:
    numbers = json.loads((run / "metrics.json").read_text())
    print(f"\n{(run / 'results.md').read_text()}")
    planner = numbers["rows"][0]
    times = planner["plan_ms"]
    if times is not None:
        print(f"planning time per step: {times['p50']:.0f} ms median, {times['p95']:.0f} ms p95")
    print(f"report: {run / 'report.html'}")
    print(f"{numbers['task']}: solved {planner['successes']} of {planner['episodes']}")
