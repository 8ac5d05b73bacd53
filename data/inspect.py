"""What a store holds, for eyes: a table, a contact sheet, and the paths of the hand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from worldmodel.data.episode import find_problems
from worldmodel.data.store import EpisodeStore
from worldmodel.pose import POSITION

AXES = ("x [m]", "y [m]", "z [m]", "roll [rad]", "pitch [rad]", "yaw [rad]", "gripper")
PERCENTILES = (1, 25, 50, 75, 99)
RATE_TOLERANCE = 0.05  # of the declared rate

_COLOURS = ("#3a6ea5", "#d1792b", "#4f9d69", "#a8456b", "#7a68a6", "#8c8c8c")
_INK = "#333333"


@dataclass(frozen=True)
class DatasetSummary:
    """The contents of a store.

    Attributes:
        path: Folder of the store.
        episodes: Number of episodes.
        steps: Number of actions.
        hours: Recorded time [h].
        size_bytes: Size on disk.
        cameras: "name height x width" -> number of episodes.
        tasks: Task -> number of episodes.
        behaviours: Behaviour -> number of episodes.
        renderers: Renderer -> number of episodes.
        declared_hz: Smallest and largest declared control rate [Hz].
        measured_hz: Smallest and largest rate of an episode by its timestamps [Hz].
        action_percentiles: (5, 7) percentiles 1, 25, 50, 75, 99 of the actions.
        workspace: (2, 3) smallest and largest x, y, z of the hand [m].
        problems: What is wrong, one sentence each.
    """

    path: Path
    episodes: int
    steps: int
    hours: float
    size_bytes: int
    cameras: dict[str, int]
    tasks: dict[str, int]
    behaviours: dict[str, int]
    renderers: dict[str, int]
    declared_hz: tuple[float, float]
    measured_hz: tuple[float, float]
    action_percentiles: np.ndarray
    workspace: np.ndarray
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """Returns a table to print."""
        mean_size = self.size_bytes / self.episodes
        rows = [
            ("store", str(self.path)),
            ("episodes", f"{self.episodes}"),
            ("steps", f"{self.steps}  ({self.hours:.2f} h)"),
            ("size", f"{_size(self.size_bytes)}  ({_size(mean_size)} an episode)"),
            ("cameras", _counts(self.cameras)),
            ("tasks", _counts(self.tasks)),
            ("behaviours", _counts(self.behaviours)),
            ("renderers", _counts(self.renderers)),
            ("measured", f"{_range(self.measured_hz)} Hz by timestamps"),
            ("declared", f"{_range(self.declared_hz)} Hz"),
        ]
        lines = [f"{name:<12}{value}" for name, value in rows]
        lines += ["", f"{'actions':<12}" + "".join(f"{p:>8} %" for p in PERCENTILES)]
        lines += [
            f"{'d ' + axis:<12}" + "".join(f"{v + 0.0:>10.3f}" for v in column)
            for axis, column in zip(AXES, self.action_percentiles.T, strict=True)
        ]
        lines += ["", f"{'workspace':<12}{'from':>10}{'to':>10}"]
        lines += [
            f"{axis:<12}{low:>10.3f}{high:>10.3f}"
            for axis, low, high in zip(AXES, *self.workspace, strict=False)
        ]
        lines += ["", f"{len(self.problems)} problems" + (":" if self.problems else "")]
        lines += [f"  {problem}" for problem in self.problems]
        return "\n".join(lines)


def summarise(store: EpisodeStore, *, progress: bool = True) -> DatasetSummary:
    """Reads and checks every episode.

    Raises:
        ValueError: The store is empty.
    """
    ids = _ids_of(store)
    cameras, tasks, behaviours, renderers = Counter(), Counter(), Counter(), Counter()
    declared, measured, actions, positions, problems = [], [], [], [], []
    seconds = 0.0
    for i in tqdm(ids, desc="inspect", unit="episode", disable=not progress):
        episode = store.read(i)
        problems += [f"episode {i}: {problem}" for problem in find_problems(episode)]
        metadata = episode.metadata
        for name, frames in episode.frames.items():
            cameras[f"{name} {frames.shape[1]} x {frames.shape[2]}"] += 1
        tasks[metadata.task] += 1
        behaviours[metadata.behaviour] += 1
        renderers[metadata.renderer or "real"] += 1
        declared.append(metadata.control_hz)
        measured.append(1 / float(np.median(np.diff(episode.timestamps))))
        if abs(measured[-1] / metadata.control_hz - 1) > RATE_TOLERANCE:
            problems.append(
                f"episode {i}: timestamps run at {measured[-1]:.3g} Hz but metadata declares "
                f"{metadata.control_hz:.3g} Hz"
            )
        actions.append(episode.actions)
        positions.append(episode.proprio[:, POSITION])
        seconds += float(episode.timestamps[-1] - episode.timestamps[0])
    everywhere = np.concatenate(positions)
    return DatasetSummary(
        path=store.path,
        episodes=len(ids),
        steps=sum(map(len, actions)),
        hours=seconds / 3600,
        size_bytes=store.summary().size_bytes,
        cameras=dict(cameras),
        tasks=dict(tasks),
        behaviours=dict(behaviours),
        renderers=dict(renderers),
        declared_hz=(min(declared), max(declared)),
        measured_hz=(min(measured), max(measured)),
        action_percentiles=np.percentile(np.concatenate(actions), PERCENTILES, axis=0),
        workspace=np.stack([everywhere.min(axis=0), everywhere.max(axis=0)]),
        problems=tuple(problems),
    )


def contact_sheet(
    store: EpisodeStore,
    path: str | Path,
    *,
    camera: str | None = None,
    rows: int = 6,
    columns: int = 8,
) -> Path:
    """Draws frames as a PNG: a row per episode, time from left to right.

    Args:
        store: Where the episodes are.
        path: PNG to write.
        camera: Which camera; the first of every episode if not given.
        rows: How many episodes, evenly spread over the store.
        columns: How many frames of each, evenly spread over its duration.

    Returns:
        `path`.

    Raises:
        ValueError: The store is empty, or `rows` or `columns` is not positive.
        KeyError: An episode lacks the camera.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
    ids = _spread(_ids_of(store), rows)
    cell, label, head = 1.28, 1.25, 0.42  # inches, at 150 dpi
    width, height = label + columns * cell, head + len(ids) * (cell + 0.2) + 0.05
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.12 / width, 1 - 0.27 / height, store.path.name, size=9, weight="bold", color=_INK)
    for row, i in enumerate(ids):
        metadata, timestamps = store.read_metadata(i), store.read_timestamps(i)
        frames = store.read_frames(i, camera or metadata.cameras[0])
        top = head + row * (cell + 0.2)
        figure.text(
            0.12 / width,
            1 - (top + cell / 2) / height,
            f"episode {i}\n{metadata.behaviour}\n{camera or metadata.cameras[0]}\n"
            f"{metadata.renderer or 'real'}",
            size=7,
            color=_INK,
            va="center",
            linespacing=1.5,
        )
        for column, k in enumerate(_spread(range(len(frames)), columns)):
            left = label + column * cell
            box = (left / width, 1 - (top + cell) / height, (cell - 0.06) / width, cell / height)
            axes = figure.add_axes(box)
            axes.imshow(frames[k], interpolation="antialiased")
            axes.set_axis_off()
            seconds = timestamps[k] - timestamps[0]
            axes.set_title(f"{seconds:.2f} s", size=6, color=_INK, pad=2, loc="left")
    return _save(figure, path)


def path_figure(store: EpisodeStore, path: str | Path, *, max_episodes: int = 200) -> Path:
    """Draws the hand's paths from above and from the side, and histograms of the actions.

    Args:
        store: Where the episodes are.
        path: PNG to write.
        max_episodes: Draw at most so many, evenly spread over the store.

    Returns:
        `path`.

    Raises:
        ValueError: The store is empty.
    """
    ids = _spread(_ids_of(store), max_episodes)
    names = [store.read_metadata(i).behaviour for i in ids]
    kinds = sorted(set(names))
    colours = {kind: _COLOURS[k % len(_COLOURS)] for k, kind in enumerate(kinds)}
    positions = [store.read_proprio(i)[:, POSITION] for i in ids]
    actions = [store.read_actions(i) for i in ids]

    figure = Figure(figsize=(11, 7), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2.4, 1))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    above, side = upper.subplots(1, 2)
    alpha = float(np.clip(12 / len(ids), 0.15, 0.8))
    for name, position in zip(names, positions, strict=True):
        for axes, (horizontal, vertical) in ((above, (1, 0)), (side, (0, 2))):
            line = position[:, [horizontal, vertical]].T
            axes.plot(*line, color=colours[name], alpha=alpha, linewidth=1)
            axes.plot(*line[:, :1], "o", color=colours[name], alpha=min(1.0, 2 * alpha), ms=2.5)
    for kind in kinds:
        above.plot([], [], color=colours[kind], label=f"{kind} ({names.count(kind)})")
    above.invert_xaxis()  # The arm looks up the page; its left is left.
    upper.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=len(kinds))
    _label(above, "from above", "y [m]", "x [m]")
    _label(side, "from the side", "x [m]", "z [m]")

    for k, (axis, axes) in enumerate(zip(AXES, lower.subplots(1, len(AXES)), strict=True)):
        everything = np.concatenate(actions)[:, k]
        limit = max(float(np.abs(everything).max()), 1e-3)
        groups = [
            np.concatenate([a[:, k] for a, n in zip(actions, names, strict=True) if n == kind])
            for kind in kinds
        ]
        axes.hist(
            groups,
            bins=np.linspace(-limit, limit, 42).tolist(),
            stacked=True,
            color=[colours[kind] for kind in kinds],
        )
        axes.set_yticks([])
        axes.set_title(f"Δ {axis}", size=8, color=_INK)
        axes.tick_params(labelsize=7, colors=_INK)
        axes.spines[["top", "left", "right"]].set_visible(False)
    return _save(figure, path)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"hand, {title}", size=9, color=_INK, loc="left")
    axes.set_xlabel(x, size=8, color=_INK)
    axes.set_ylabel(y, size=8, color=_INK)
    axes.tick_params(labelsize=7, colors=_INK)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _ids_of(store: EpisodeStore) -> list[int]:
    ids = store.ids()
    if not ids:
        raise ValueError(f"{store.path} has no episodes")
    return ids


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` items, evenly spread, with the first and the last."""
    picks = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[k] for k in picks]


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))


def _range(limits: tuple[float, float]) -> str:
    low, high = (f"{limit:.3g}" for limit in limits)
    return low if low == high else f"{low} to {high}"
