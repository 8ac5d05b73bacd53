"""Is the turn of the moves that a model finds linear in the camera's angle? Does knowing it help?

The exterior camera of the simulated scene is swept about the vertical through the middle of the
table. At each angle the arm wanders, the turn is measured as `worldmodel validate` does, and the
planner reaches to goal images with and without the correction, on the same seeds:

    python benchmarks/camera_rotation.py [--angles -20 -10 0 10 20] [--out camera_rotation.json]

The experiment is that of V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985), section on sensitivity to
the camera position; there the error was almost linear in the angle.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import envs
from worldmodel.checkpoint import load_default
from worldmodel.cli import compose
from worldmodel.closed_loop import drive, make_controller
from worldmodel.data import Episode, EpisodeMetadata, EpisodeStore, open_source
from worldmodel.envs.cameras import Backend
from worldmodel.envs.expert import make_policy
from worldmodel.envs.franka_env import FrankaEnv
from worldmodel.fleet import Arms
from worldmodel.jepa import JEPA
from worldmodel.runs import describe_machine
from worldmodel.training import autocast
from worldmodel.validation.camera_rotation import CameraRotation, camera_rotation
from worldmodel.validation.energy_argmin import energy_argmin
from worldmodel.validation.held_out import read_held_out
from worldmodel.validation.latent_errors import latent_errors
from worldmodel.verbs.planning import planner_settings

CENTRE = (0.42, 0.0)  # [m] the cameras look at it
CAMERA = "exterior"
EPISODES, STEPS, WINDOWS = 16, 14, 64
SEED = 8_000_000


def turned_arms(degrees: float, *, backend: Backend) -> Arms:
    """Returns one arm whose exterior camera stands `degrees` further, seen from above."""
    env = envs.make("reach", image_size=128, camera=CAMERA, backend=backend)
    inner = env.unwrapped
    assert isinstance(inner, FrankaEnv)
    plain, angle = inner._plain, math.radians(degrees)
    camera = plain.camera(CAMERA).id
    cos, sin = math.cos(angle), math.sin(angle)
    offset = plain.cam_pos[camera, :2] - CENTRE
    plain.cam_pos[camera, :2] = np.array([[cos, -sin], [sin, cos]]) @ offset + CENTRE
    w, x, y, z = plain.cam_quat[camera]
    c, s = math.cos(angle / 2), math.sin(angle / 2)
    plain.cam_quat[camera] = (c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w)
    return Arms([env])


def record(env: FrankaEnv, folder: Path) -> None:
    """Writes episodes of a wandering arm."""
    store = EpisodeStore(folder, mode="a")
    for number in range(EPISODES):
        observation, info = env.reset(seed=SEED + number, options={"demonstrate": False})
        policy, rng = make_policy("noisy", env), np.random.default_rng(number)
        frames, proprio = [observation["image"]], [observation["proprio"]]
        times = [info["timestamp"]]
        for _ in range(STEPS):
            observation, _, _, _, info = env.step(policy(proprio[-1], rng))
            frames.append(observation["image"])
            proprio.append(observation["proprio"])
            times.append(info["timestamp"])
        metadata = EpisodeMetadata("simulation", "reach", "noisy", number, 4.0, "", "", (CAMERA,))
        pictures = {CAMERA: np.stack(frames)}
        store.write(number, Episode(pictures, np.stack(proprio), np.array(times), metadata))


def diagnose(world: JEPA, env: FrankaEnv) -> tuple[CameraRotation, float]:
    """Returns the turn, and the one-step error over that of a copy."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), autocast(world.device):
        record(env, Path(folder) / "episodes")
        held_out = read_held_out(
            world,
            open_source(Path(folder) / "episodes"),
            camera=CAMERA,
            hz=4.0,
            frames=2,
            windows=4 * WINDOWS,
            episodes=EPISODES,
            seed=0,
            progress=False,
        )
        found = energy_argmin(
            world, held_out, windows=WINDOWS, samples=64, iterations=6, seed=0, progress=False
        )
        ratio = latent_errors(world, held_out, horizon=1, progress=False).identity_ratios[0]
    return camera_rotation(found.found, found.true, found.episodes), float(ratio)


def reach(world: JEPA, arms: Arms, rotation: np.ndarray | None, episodes: int) -> dict[str, Any]:
    """Returns how the planner reaches, with a correction or without."""
    import dataclasses

    settings = planner_settings(compose("evaluate", []), world)
    settings = dataclasses.replace(settings, camera_rotation=rotation)
    controller = make_controller(world, settings, arms.body(), device=torch.device("cpu"))
    results = [
        drive(arms, controller, [SEED + seed], precision=settings.precision)[0]
        for seed in range(episodes)
    ]
    final = 100 * np.array([result.distances[-1] for result in results])
    return {
        "successes": sum(result.success for result in results),
        "episodes": episodes,
        "final_distance_cm": {"p50": float(np.median(final)), "mean": float(final.mean())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Sweep a camera.")
    parser.add_argument("--angles", type=float, nargs="+", default=[-20, -10, -5, 0, 5, 10, 20])
    parser.add_argument("--episodes", type=int, default=12, help="of the planner, an angle")
    parser.add_argument("--backend", default="auto", choices=["auto", "gl", "ray"])
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args()
    world, rows = load_default(), []
    for degrees in arguments.angles:
        arms = turned_arms(degrees, backend=arguments.backend)
        inner = arms.environments[0].unwrapped
        assert isinstance(inner, FrankaEnv)
        fitted, ratio = diagnose(world, inner)
        row = {"camera_deg": degrees, "identity_ratio": ratio, **fitted.to_json(seed=0)}
        if arguments.episodes:
            row["plain"] = reach(world, arms, None, arguments.episodes)
            row["corrected"] = reach(world, arms, fitted.rotation, arguments.episodes)
        arms.close()
        rows.append(row)
        low, high = row["angle_deg_95"]
        text = (
            f"camera {degrees:+6.1f}: moves {row['angle_deg']:+6.1f} ({low:+.1f} to {high:+.1f}), "
            f"condition {row['condition']:.2f}, error {row['error_cm']:.2f} -> "
            f"{row['corrected_error_cm']:.2f} cm, {ratio:.2f} of a copy"
        )
        if arguments.episodes:
            plain, corrected = row["plain"], row["corrected"]
            text += (
                f"; reach {plain['successes']} -> {corrected['successes']} of "
                f"{arguments.episodes}, {plain['final_distance_cm']['p50']:.1f} -> "
                f"{corrected['final_distance_cm']['p50']:.1f} cm"
            )
        print(text, flush=True)
    if arguments.out is not None:
        result = {"angles": rows, "machine": describe_machine()}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
