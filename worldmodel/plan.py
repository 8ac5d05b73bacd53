"""One goal image: plan to it, print every step, keep a video and a filmstrip."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from worldmodel import envs
from worldmodel.envs.cameras import Backend
from worldmodel.evaluate import PlannerSettings, make_controller, run_planner
from worldmodel.images import fit_frames
from worldmodel.jepa import JEPA
from worldmodel.report import write_filmstrip, write_video
from worldmodel.results import EpisodeResult
from worldmodel.runs import write_json
from worldmodel.training import select_device


def plan(
    *,
    world: JEPA,
    settings: PlannerSettings,
    run: Path,
    task: str,
    goal: Path | None,
    steps: int,
    seed: int,
    camera: str,
    backend: Backend,
    device: str,
) -> EpisodeResult:
    """Runs one episode in simulation and writes `episode.mp4`, `filmstrip.png`, `episode.json`.

    Args:
        world: The world model.
        settings: The planner and its use.
        run: Folder of the results.
        task: Name of the task.
        goal: An image file to reach; None takes the goal of the episode.
        steps: Control steps.
        seed: Seed of the episode.
        camera: Camera the planner sees.
        backend: Renderer: "auto", "gl" or "ray".
        device: Where the model runs.

    Raises:
        FileNotFoundError: There is no goal image.
        ValueError: The goal image is not of the model's size.
    """
    where = select_device(device)
    world = world.to(where)
    goal_image = None if goal is None else read_goal(goal, world=world)
    env = envs.make(
        task,
        image_size=world.image_size,
        camera=camera,
        backend=backend,
        control_hz=world.control_hz or 4.0,
        max_episode_steps=steps,
    )
    controller = make_controller(world, settings, env, device=where)

    def show(step: int, energy: float, distance: float) -> None:
        away = f"  distance {100 * distance:5.1f} cm" if goal is None else ""
        print(f"step {step:3d}  energy {energy:.4f}{away}", flush=True)

    episode = run_planner(env, controller, seed=seed, goal_image=goal_image, on_step=show)
    env.close()
    if goal is None:
        drawn = episode
    else:  # the simulator's own goal is another one: its distance and its success mean nothing here
        drawn = replace(episode, distances=np.full_like(episode.distances, np.nan))
    write_video(run / "episode.mp4", drawn)
    write_filmstrip(run / "filmstrip.png", drawn)
    write_json(
        run / "episode.json",
        {
            "seed": seed,
            "goal": None if goal is None else str(goal),
            "success": None if goal is not None else bool(episode.success),
            "distances": None if goal is not None else episode.distances.tolist(),
            "energies": episode.energies.tolist(),
            "actions": episode.actions.tolist(),
            "plan_ms": episode.plan_ms.tolist(),
        },
    )
    return episode


def read_goal(path: Path, *, world: JEPA) -> np.ndarray:
    """Returns an image file as uint8 RGB (size, size, 3), cut and resized as the model does."""
    if not path.is_file():
        raise FileNotFoundError(f"no goal image at {path}")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not an image that can be read")
    size = world.image_size
    if world.crop == "none" and image.shape != (size, size, 3):
        raise ValueError(
            f"the goal image {path} is {image.shape[1]}x{image.shape[0]} pixels, the model takes "
            f"{size}x{size}; resize it, and take it with the camera the model was trained on"
        )
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return fit_frames(rgb[None], size, world.crop)[0]
