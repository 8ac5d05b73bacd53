"""What is the surprise gate worth when the camera freezes, and what does it cost when it does not?

The shipped planner drives simulated arms to goals, with and without `planner.gate=watch`. In half
of the runs the picture stands still for two seconds in the middle of the way: what the arm then
does, it does blindly.

    python benchmarks/gate.py [--episodes 20] [--variation none] [--out FILE]
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from worldmodel import envs  # noqa: F401  (starts OpenGL before torch's threads)
from worldmodel.cli import compose
from worldmodel.closed_loop import PlannerSettings, drive, make_controller
from worldmodel.evaluate import episode_seeds
from worldmodel.fleet import Fleet, Scene
from worldmodel.jepa import JEPA
from worldmodel.results import EpisodeResult, wilson_interval
from worldmodel.runs import describe_machine, write_json
from worldmodel.verbs.planning import planner_settings
from worldmodel.verbs.shared import load_world

OUT = Path(__file__).with_name("results") / "gate.json"
TASKS = {"reach": 30, "pick_and_place": 60}  # control steps of an episode
FROZEN = range(2, 10)  # control steps in which the camera shows what it showed at the first
SEED = 31


class Camera:
    """Shows the planner its pictures; a frozen one shows an old one."""

    def __init__(self, frozen: range) -> None:
        self._frozen, self._views, self._kept = frozen, 0, np.zeros(0)

    def __call__(self, seen: object) -> np.ndarray:
        """Returns a view's picture, or that of a goal."""
        image: np.ndarray = seen.image  # type: ignore[attr-defined]
        if not hasattr(seen, "distance"):  # a goal
            return image
        now, self._views = self._views, self._views + 1
        if now not in self._frozen:
            return image
        if now == self._frozen.start:
            self._kept = image
        return self._kept


def main() -> None:
    """Runs all rows, prints them and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--gate", default="watch", help="model that watches")
    parser.add_argument("--calibration", default="null", help="of it; null is the one beside it")
    parser.add_argument("--variation", default="none", help="of the scenes")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    for task, steps in TASKS.items():
        for frozen in (range(0), FROZEN):
            for gate in ("null", options.gate):
                calibration = "null" if gate == "null" else options.calibration
                words = [f"planner.gate={gate}", f"planner.gate_calibration={calibration}"]
                config = compose("evaluate", [f"task={task}", *words])
                world = load_world(config)
                settings = planner_settings(config, world)
                scene = Scene(
                    task, options.variation, world.image_size, "exterior", "auto", 4.0, steps
                )
                episodes = run(world, settings, scene, frozen, options.episodes)
                rows.append({"task": task, "gate": gate != "null", **summary(episodes, frozen)})
                print(rows[-1], flush=True)
    write_json(
        options.out,
        {
            "rows": rows,
            "episodes": options.episodes,
            "frozen_steps": [FROZEN.start, FROZEN.stop],
            "gate": options.gate,
            "variation": options.variation,
            "seed": SEED,
            "machine": describe_machine(),
        },
    )


def run(
    world: JEPA, settings: PlannerSettings, scene: Scene, frozen: range, episodes: int
) -> list[EpisodeResult]:
    """Drives one arm after the other."""
    found = []
    with Fleet(scene, num_arms=1, workers=1) as fleet:
        for seed in episode_seeds(SEED, episodes):
            controller = make_controller(world, settings, fleet.body, device=torch.device("cpu"))
            found += drive(
                fleet, controller, [seed], precision=settings.precision, look=Camera(frozen)
            )
    return found


def summary(episodes: list[EpisodeResult], frozen: range) -> dict[str, object]:
    """Returns how many succeeded, and how far the hand went while the camera stood still."""
    solved = sum(bool(episode.successes[-1]) for episode in episodes)
    row: dict[str, object] = {
        "frozen": bool(frozen),
        "success": [solved, len(episodes)],
        "wilson95": list(wilson_interval(solved, len(episodes))),
    }
    ways = [
        np.linalg.norm(np.diff(episode.features[frozen.start : frozen.stop, :3], axis=0), axis=1)
        for episode in episodes
        if frozen
    ]
    if ways:
        blind = 100 * np.array([way.sum() for way in ways])
        row["blind_way_cm"] = {"p50": float(np.median(blind)), "max": float(blind.max())}
    return row


if __name__ == "__main__":
    main()
