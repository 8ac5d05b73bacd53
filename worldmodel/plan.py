"""One goal: plan to it by its sub-goals, print every step, keep a video and a filmstrip."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from worldmodel.closed_loop import PlannerSettings, drive, make_controller, redraw
from worldmodel.envs.cameras import Backend
from worldmodel.fleet import Arms, Scene, View
from worldmodel.images import fit_frames
from worldmodel.jepa import JEPA
from worldmodel.joined_views import check_cameras
from worldmodel.planners.mpc import Decision
from worldmodel.report import write_filmstrip, write_video
from worldmodel.results import EpisodeResult
from worldmodel.runs import write_json
from worldmodel.training import select_device
from worldmodel.views import side_by_side


def plan(
    *,
    world: JEPA,
    settings: PlannerSettings,
    run: Path,
    task: str,
    variation: str,
    goal: Path | None,
    steps: int | None,
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
        variation: Name of the variation of the scene, see `worldmodel.envs.make`.
        goal: An image file to reach, or one of each camera, joined by "+"; None takes the sub-goals
            of the episode.
        steps: Control steps; None takes the task's own number.
        seed: Seed of the episode.
        camera: Camera the planner sees; all that the model sees, joined by "+".
        backend: Renderer: "auto", "gl" or "ray".
        device: Where the model runs.

    Raises:
        FileNotFoundError: There is no goal image.
        ValueError: The goal image is not of the model's size, or there are too many or too few.
    """
    check_cameras(world, camera)
    where = select_device(device)
    world = world.to(where)
    goal_image = None if goal is None else read_goals(goal, world=world)
    scene = Scene(
        task=task,
        variation=variation,
        image_size=world.image_size,
        camera=camera,
        backend=backend,
        control_hz=world.control_hz or 4.0,
        max_steps=steps,
    )
    env = scene.make()
    arms = Arms([env])
    controller = make_controller(world, settings, arms.body(), device=where)
    names: list[str] = []

    def show(step: int, decision: Decision, view: View) -> None:
        if not names and goal is None:
            names.extend(one.name for one in env.unwrapped.subgoals)  # type: ignore[attr-defined]
        away = f"  distance {100 * view.distance:5.1f} cm" if goal is None else ""
        stage = ""
        if settings.subgoals and len(names) > 1:
            stage = f"  stage {decision.stage + 1} of {len(names)}: {names[decision.stage]}"
        gate = ""
        if settings.gate is not None and step:  # before the first step nothing was predicted
            gate = f"  surprise {decision.gate.score:5.2f}: {decision.gate.verdict}"
        print(f"step {step:3d}  energy {decision.energy_now:.4f}{away}{stage}{gate}", flush=True)

    (episode,) = drive(
        arms,
        controller,
        [seed],
        subgoals=settings.subgoals,
        precision=settings.precision,
        goal_image=goal_image,
        on_step=show,
    )
    drawn = redraw(env, episode)
    arms.close()
    if goal_image is not None:
        # The simulator's own goal is another one: its distance and success mean nothing here.
        unknown = np.full_like(episode.distances, np.nan)
        drawn = replace(drawn, goal_images=side_by_side(goal_image)[None], distances=unknown)
    write_video(run / "episode.mp4", drawn)
    write_filmstrip(run / "filmstrip.png", drawn)
    write_json(
        run / "episode.json",
        {
            "seed": seed,
            "goal": None if goal is None else str(goal),
            "success": None if goal is not None else episode.success,
            "distances": None if goal is not None else episode.distances.tolist(),
            "energies": episode.energies.tolist(),
            "stages": [episode.stage_names[stage] for stage in episode.stages],
            "actions": episode.actions.tolist(),
            "plan_ms": episode.plan_ms.tolist(),
            "gate": list(episode.verdicts),
        },
    )
    return episode


def read_goals(path: Path, *, world: JEPA) -> np.ndarray:
    """Returns a goal as the model sees it: (size, size, 3), or (V, size, size, 3) of V cameras.

    Args:
        path: An image file; of a model of several cameras their files, joined by "+".
        world: The model.
    """
    views = world.predictor.num_views
    if views == 1:
        return read_goal(path, world=world)
    files = [Path(name) for name in str(path).split("+")]
    if len(files) != views:
        raise ValueError(
            f"this model sees {views} cameras at once, and goal={path} names {len(files)} image "
            "file(s); name one of each camera, joined by +, such as goal=front.png+wrist.png"
        )
    return np.stack([read_goal(file, world=world) for file in files])


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
