"""What does a trained predictor bring to another arm, of which there are 30 minutes of recordings?

The second arm is simulated too, but nothing that the shipped predictor was told holds for it: it
speaks in joints (eight numbers, seven angles and the gripper, and not the hand's pose), makes two
steps a second and not four, is orange, and is seen by another camera. What stays is a hand that
moves over a table. Three predictors of one size learn the same windows: one from its first
weights, one from the shipped predictor with new input layers, one from it by low-rank changes.
Every number is of recordings held out.

    python benchmarks/bring_your_arm.py [--run runs/arm] [--steps 400] [--out FILE]

What is done is not done again, so the same command goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from worldmodel.data import Episode, EpisodeMetadata, EpisodeStore
from worldmodel.envs.expert import make_policy
from worldmodel.envs.franka_env import FrankaEnv
from worldmodel.envs.panda import JOINTS
from worldmodel.runs import describe_machine, write_json
from worldmodel.tables import markdown_table

CAMERA, HZ, STEPS = "exterior_right", 2.0, 30
ORANGE, WHITE = (0.93, 0.45, 0.10), (0.90, 0.91, 0.92)
BEHAVIOURS = ("scripted", "noisy", "explore", "noisy")
SETTINGS = {
    "from scratch": ["predictor=small"],
    "fine-tuned": ["finetune=default"],
    "fine-tuned, rank 8": ["finetune=default", "lora_rank=8"],
}


def record(store: EpisodeStore, i: int, env: FrankaEnv) -> None:
    """Records an episode of the second arm."""
    env.reset(seed=i, options={"demonstrate": False})
    policy, rng = make_policy(BEHAVIOURS[i % len(BEHAVIOURS)], env), np.random.default_rng(i)
    arm = env._arm  # joints are no part of what the environment shows
    frames, proprio, joints, times = [], [], [], []
    for step in range(STEPS + 1):
        frames.append(env.view(CAMERA))
        proprio.append(arm.proprio)
        joints.append([arm.data.joint(name).qpos[0] for name in JOINTS])
        times.append(arm.data.time)
        if step < STEPS:
            env.step(policy(proprio[-1], rng))
    metadata = EpisodeMetadata(
        source="simulation",
        task="reach",
        behaviour=BEHAVIOURS[i % len(BEHAVIOURS)],
        seed=i,
        control_hz=HZ,
        renderer=env.renderer_name,
        mujoco_version=env.mujoco_version,
        cameras=(CAMERA,),
        robot="orange",
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
        env = FrankaEnv(task="reach", image_size=128, camera=CAMERA, backend="ray", control_hz=HZ)
        white = np.isclose(env._plain.geom_rgba[:, :3], WHITE, atol=0.01).all(axis=1)
        env._plain.geom_rgba[white, :3] = ORANGE
        for i in tqdm(missing, desc="record", unit="episode"):
            record(store, i, env)
    return episodes


def train(name: str, data: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Trains one row by the program, and returns its metric lines."""
    run = options.run / name.replace(" ", "_").replace(",", "")
    words = [
        f"data={data}",
        "encoder_checkpoint=default",
        f"cache={options.run / 'latents'}",
        f"camera={CAMERA}",
        f"model_hz={HZ:g}",
        "embodiment=orange",
        "state_weight=0",
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


def curve(lines: list[dict[str, float]], name: str) -> dict[int, float]:
    """Returns a number over steps, where it was measured."""
    return {int(line["step"]): line[name] for line in lines if name in line}


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
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the rows")
    options = parser.parse_args()
    data = options.run / "recordings"
    episodes = record_all(data, options.minutes)
    rows: dict[str, list[dict[str, float]]] = {}
    for name in SETTINGS:
        rows[name] = train(name, data, options)
    report: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("run", "out")},
        "episodes": episodes,
        "rows": {
            name: [line for line in lines if "identity_ratio" in line]
            for name, lines in rows.items()
        },
        "machine": describe_machine(),
    }
    if options.out is not None:
        write_json(options.out, report)
    print(table(rows))


if __name__ == "__main__":
    main()
