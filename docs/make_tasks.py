"""Draws docs/images/tasks.png: where each task starts, and what its planner is shown to reach.

.venv/bin/python docs/make_tasks.py
"""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from worldmodel import envs
from worldmodel.envs.tasks import TASKS

IMAGES = Path(__file__).parent / "images"
SEED, SIZE = 3, 192
COLUMNS = 8  # the start, and up to seven stages


def draw(path: Path) -> None:
    matplotlib.use("Agg")
    figure, axes = plt.subplots(len(TASKS), COLUMNS, figsize=(13, 13.6), dpi=80)
    for row, task in zip(axes, TASKS, strict=True):
        env = envs.make(task, image_size=SIZE)
        observation, _ = env.reset(seed=SEED)
        pictures = [("start", observation["image"])]
        pictures += [(goal.name, goal.image) for goal in env.unwrapped.subgoals]
        env.close()
        for cell in row:
            cell.axis("off")
        for cell, (name, image) in zip(row, pictures, strict=False):
            cell.imshow(image)
            cell.set_title(name, fontsize=9, pad=3)
        row[0].text(
            -0.08,
            0.5,
            task.replace("_", " "),
            rotation=90,
            ha="right",
            va="center",
            transform=row[0].transAxes,
            fontsize=11,
        )
    figure.subplots_adjust(left=0.03, right=0.998, top=0.98, bottom=0.005, wspace=0.03, hspace=0.12)
    figure.savefig(path)


if __name__ == "__main__":
    draw(IMAGES / "tasks.png")
