"""What does a trained predictor bring to another arm, of which there are 30 minutes of recordings?

The second arm is simulated too, but nothing that the shipped predictor was told holds for it: it
speaks in joints (eight numbers, seven angles and the gripper, and not the hand's pose), makes two
steps a second and not four, is orange, and is seen by another camera. What stays is a hand that
moves over a table. Three predictors of one size learn the same windows: one from its first
weights, one from the shipped predictor with new input layers, one from it by low-rank changes. A
head beside each learns to read the joints from a picture. Their errors are of recordings held out.
Then each of them plans, in joints, to goal images that nobody showed it: the search begins near
what the head proposes. Beside them the best of them plans without its head, the head moves without
any planning, and there are moves at random and none.

    python benchmarks/bring_your_arm.py [--run runs/arm] [--steps 400] [--out FILE]

What is done is not done again, so the same command goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from worldmodel.checkpoint import load
from worldmodel.data import Episode, EpisodeMetadata, EpisodeStore
from worldmodel.embodied import Embodied
from worldmodel.envs.expert import make_policy
from worldmodel.envs.franka_env import FrankaEnv
from worldmodel.evaluate import episode_seeds
from worldmodel.planners import CEM, MPC, ActionBounds, LatentEnergy
from worldmodel.results import wilson_interval
from worldmodel.runs import describe_machine, write_json
from worldmodel.tables import markdown_table

ARM, CAMERA, HZ, STEPS = "orange", "exterior_right", 2.0, 30
REACH_STEPS = 24  # 12 s
JOINT_STEP = [0.25] * 7 + [1.0]  # [rad, gripper] what the arm may do in one step
ORANGE, WHITE = (0.93, 0.45, 0.10), (0.90, 0.91, 0.92)
PROPOSALS = 128  # of the 256 plans that a search begins with
BEHAVIOURS = ("scripted", "noisy", "explore", "noisy")
SETTINGS = {
    "from scratch": ["predictor=small"],
    "fine-tuned": ["finetune=default"],
    "fine-tuned, rank 8": ["finetune=default", "lora_rank=8"],
}


def second_arm() -> FrankaEnv:
    """Returns its environment."""
    env = FrankaEnv(task="reach", image_size=128, camera=CAMERA, backend="ray", control_hz=HZ)
    white = np.isclose(env._plain.geom_rgba[:, :3], WHITE, atol=0.01).all(axis=1)
    env._plain.geom_rgba[white, :3] = ORANGE
    return env


def record(store: EpisodeStore, i: int, env: FrankaEnv) -> None:
    """Records an episode of the second arm."""
    seen, _ = env.reset(seed=i, options={"demonstrate": False})
    policy, rng = make_policy(BEHAVIOURS[i % len(BEHAVIOURS)], env), np.random.default_rng(i)
    frames, proprio, joints = [seen["image"]], [seen["proprio"]], [env.joints[:-1]]
    times = [0.0]
    for _ in range(STEPS):
        seen, _, _, _, info = env.step(policy(proprio[-1], rng))
        frames.append(seen["image"])
        proprio.append(seen["proprio"])
        joints.append(env.joints[:-1])
        times.append(info["timestamp"])
    metadata = EpisodeMetadata(
        source="simulation",
        task="reach",
        behaviour=BEHAVIOURS[i % len(BEHAVIOURS)],
        seed=i,
        control_hz=HZ,
        renderer=env.renderer_name,
        mujoco_version=env.mujoco_version,
        cameras=(CAMERA,),
        robot=ARM,
    )
    store.write(
        i,
        Episode(
            {CAMERA: np.stack(frames)},
            np.stack(proprio).astype(np.float32),
            np.array(times),
            metadata,
            joints=np.array(joints, np.float32),
        ),
    )


def record_all(path: Path, minutes: float) -> int:
    """Records what is missing and returns the number of episodes."""
    episodes = round(minutes * 60 * HZ / STEPS)
    store = EpisodeStore(path, mode="a")
    missing = sorted(set(range(episodes)) - set(store.ids()))
    if missing:
        env = second_arm()
        for i in tqdm(missing, desc="record", unit="episode"):
            record(store, i, env)
    return episodes


def folder(name: str, options: argparse.Namespace) -> Path:
    """Returns where a row is trained."""
    return options.run / name.replace(" ", "_").replace(",", "")


def train(name: str, data: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Trains one row by the program, and returns its metric lines."""
    run = folder(name, options)
    words = [
        f"data={data}",
        "encoder_checkpoint=default",
        f"cache={options.run / 'latents'}",
        f"camera={CAMERA}",
        f"model_hz={HZ:g}",
        f"embodiment={ARM}",
        "strides=[1,2,3]",
        f"schedule.steps={options.steps}",
        f"schedule.warmup_steps={options.steps // 10}",
        f"schedule.peak={options.peak}",
        f"batch_size={options.batch_size}",
        "validation_fraction=0.2",
        f"validate_every={options.steps // 8}",
        f"measure_every={options.steps // 4}",
        f"save_every={options.steps // 4}",
        f"run={run}",
        *SETTINGS[name],
    ]
    print("worldmodel train", *words, flush=True)
    subprocess.run([sys.executable, "-m", "worldmodel.cli", "train", *words], check=True)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def planner(model: Path, *, proposals: int = PROPOSALS) -> MPC:
    """Returns a controller in joints: the checkpoint says how far it may look in one step."""
    world = Embodied(load(model).eval(), ARM)
    search = CEM(
        cost=LatentEnergy(distance="l2"),
        horizon=1,
        num_samples_first=256,
        num_proposals=proposals,
        num_samples=64,
        num_elites=12,
        num_iterations=4,
        covariance="full",
    )
    return MPC(
        world,
        search,
        plan_bounds=ActionBounds.symmetric([*world.action_limit[:-1], 0.0]),  # the hand stays open
        step_bounds=ActionBounds.symmetric(JOINT_STEP),
        control_hz=HZ,
    )


Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``act(image, joints) -> action``, of one episode."""


def planning(controller: MPC) -> Callable[[np.ndarray, int], Act]:
    """Returns what begins an episode of a controller, given its goal image and seed."""

    def begin(goal: np.ndarray, seed: int) -> Act:
        controller.reset(seeds=[seed])
        controller.set_goal(goal)
        return lambda image, joints: controller.act(image[None], joints[None])[0].action

    return begin


def head_alone(model: Path) -> Callable[[np.ndarray, int], Act]:
    """Returns what begins an episode that goes where the head says, and imagines nothing."""
    world = Embodied(load(model).eval(), ARM)

    @torch.inference_mode()
    def latents(image: np.ndarray) -> torch.Tensor:
        return world.encode(torch.from_numpy(image)[None, None])[:, 0]

    def begin(goal: np.ndarray, seed: int) -> Act:
        there, high = latents(goal), np.array([*JOINT_STEP[:-1], 0.0])

        @torch.inference_mode()
        def act(image: np.ndarray, joints: np.ndarray) -> np.ndarray:
            (move,) = world.propose(latents(image), torch.from_numpy(joints)[None], there).numpy()
            too_long = np.abs(move[:-1] / high[:-1]).max()
            return np.clip(move / max(1.0, too_long), -high, high)

        return act

    return begin


def at_random(goal: np.ndarray, seed: int) -> Act:
    """Begins an episode of random moves."""
    rng, high = np.random.default_rng(seed), np.array([*JOINT_STEP[:-1], 0.0])
    return lambda image, joints: rng.uniform(-high, high)


def do_nothing(goal: np.ndarray, seed: int) -> Act:
    """Begins an episode of no moves."""
    return lambda image, joints: np.zeros(len(JOINT_STEP))


def reach(
    name: str, begin: Callable[[np.ndarray, int], Act], *, seed: int, episodes: int
) -> list[dict[str, Any]]:
    """Plays episodes to goal images; every row gets the same ones."""
    env, ended = second_arm(), []
    for one in tqdm(episode_seeds(seed, episodes), desc=f"reach, {name}", unit="episode"):
        seen, info = env.reset(seed=one)
        start_cm, act = 100 * info["distance"], begin(seen["goal_image"], one)
        for _ in range(REACH_STEPS):
            seen, _, _, _, info = env.step_joints(act(seen["image"], env.joints))
        final_cm = 100 * info["distance"]
        ended.append(
            {"seed": one, "start_cm": start_cm, "final_cm": final_cm, "success": info["success"]}
        )
    env.close()
    return ended


def curve(lines: list[dict[str, float]], name: str) -> dict[int, float]:
    """Returns a number over steps, where it was measured."""
    return {int(line["step"]): line[name] for line in lines if name in line}


def reach_table(reached: dict[str, list[dict[str, Any]]]) -> str:
    """Returns how near each row came."""
    rows = []
    for name, episodes in reached.items():
        solved = sum(episode["success"] for episode in episodes)
        low, high = wilson_interval(solved, len(episodes))
        start, final = ([episode[key] for episode in episodes] for key in ("start_cm", "final_cm"))
        rows.append(
            [
                name,
                f"{solved} of {len(episodes)} ({100 * low:.0f} to {100 * high:.0f} %)",
                f"{np.median(start):.1f}",
                f"{np.median(final):.1f}",
                f"{sum(cm < 5 for cm in final)}",
            ]
        )
    return markdown_table(["", "held at 2 cm", "start, cm", "end, cm", "ended within 5 cm"], rows)


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Returns one row a predictor: held-out error over that of no change, and the last measures."""
    steps = sorted(curve(next(iter(rows.values())), "identity_ratio"))
    shown = [steps[0], steps[1], steps[3], steps[-1]]
    measures = ("shuffled_action_ratio", "ranking_top1")
    return markdown_table(
        ["", *(f"step {step}" for step in shown), "with wrong actions", "true action first of 16"],
        [
            [
                name,
                *(f"{curve(lines, 'identity_ratio')[step]:.3f}" for step in shown),
                *(f"{lines[-1]['robot_free_' + measure]:.3f}" for measure in measures),
            ]
            for name, lines in rows.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/arm"))
    parser.add_argument("--minutes", type=float, default=30.0, help="of recordings")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--reach-episodes", type=int, default=20, help="of each row")
    parser.add_argument("--seed", type=int, default=0, help="of these episodes")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the rows")
    options = parser.parse_args()
    data = options.run / "recordings"
    episodes = record_all(data, options.minutes)
    rows = {name: train(name, data, options) for name in SETTINGS}
    tuned = folder("fine-tuned", options) / "model"
    players = {name: planning(planner(folder(name, options) / "model")) for name in SETTINGS} | {
        "fine-tuned, without its head": planning(planner(tuned, proposals=0)),
        "the head, without planning": head_alone(tuned),
        "random": at_random,
        "do nothing": do_nothing,
    }
    reached = {
        name: reach(name, begin, seed=options.seed, episodes=options.reach_episodes)
        for name, begin in players.items()
    }
    report: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("run", "out")},
        "episodes": episodes,
        "rows": {
            name: [line for line in lines if "identity_ratio" in line]
            for name, lines in rows.items()
        },
        "reached": reached,
        "machine": describe_machine(),
    }
    if options.out is not None:
        write_json(options.out, report)
    print(table(rows))
    print(reach_table(reached))


if __name__ == "__main__":
    main()
