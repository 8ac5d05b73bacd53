"""What a set of recordings holds, for eyes: a table, a contact sheet, and the paths of the hand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from worldmodel.data.episode import Episode
from worldmodel.data.frames import FrameReadError
from worldmodel.data.mapping import ColumnMapping
from worldmodel.data.source import Source
from worldmodel.pose import POSITION

AXES = ("x [m]", "y [m]", "z [m]", "roll [rad]", "pitch [rad]", "yaw [rad]", "gripper")
PERCENTILES = (1, 25, 50, 75, 99)
MAX_EPISODES = 200  # whose numbers are read for a summary; enough for its percentiles

_COLOURS = ("#3a6ea5", "#d1792b", "#4f9d69", "#a8456b", "#7a68a6", "#8c8c8c")
_INK = "#333333"


@dataclass(frozen=True)
class DatasetSummary:
    """What a set of recordings says of itself, and what its numbers say.

    Attributes:
        path: Where it is.
        format: What people call its format.
        episodes: Number of episodes.
        sampled: Number of episodes, evenly spread, that everything below comes from.
        steps: Number of actions.
        hours: Recorded time [h].
        cameras: "name height x width" -> number of episodes.
        tasks: Task -> number of episodes.
        behaviours: Behaviour -> number of episodes.
        successes: "success", "failure" or "unknown" -> number of episodes.
        clock: "measured" or "declared" -> number of episodes, see `EpisodeMetadata.clock`.
        declared_hz: Smallest and largest declared control rate [Hz].
        measured_hz: Smallest and largest rate of an episode by its timestamps [Hz].
        conventions: Quantity -> which columns it comes from, and in which units and form they are.
        action_percentiles: (5, 7) percentiles 1, 25, 50, 75, 99 of the actions.
        workspace: (2, 3) smallest and largest x, y, z of the hand [m].
        notes: What the reader says of the set.
        unreadable: Why an episode could not be read, one sentence each.
    """

    path: Path
    format: str
    episodes: int
    sampled: int
    steps: int
    hours: float
    cameras: dict[str, int]
    tasks: dict[str, int]
    behaviours: dict[str, int]
    successes: dict[str, int]
    clock: dict[str, int]
    declared_hz: tuple[float, float]
    measured_hz: tuple[float, float]
    conventions: dict[str, str]
    action_percentiles: np.ndarray
    workspace: np.ndarray
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]

    def __str__(self) -> str:
        """Returns a table to print."""
        part = "" if self.sampled == self.episodes else f"; below: {self.sampled}, evenly spread"
        rows = [
            ("path", str(self.path)),
            ("found", self.format),
            ("episodes", f"{self.episodes}{part}"),
            ("steps", f"{self.steps}  ({self.hours:.2f} h)"),
            ("cameras", _counts(self.cameras)),
            ("tasks", _counts(self.tasks)),
            ("behaviours", _counts(self.behaviours)),
            ("success", _counts(self.successes)),
            ("clock", f"{_range(self.measured_hz)} Hz, {_counts(self.clock)}"),
            ("declared", f"{_range(self.declared_hz)} Hz"),
            *self.conventions.items(),
        ]
        lines = [f"{name:<15}{value}" for name, value in rows]
        lines += [f"{'note':<15}{note}" for note in self.notes]
        lines += ["", f"{'actions':<15}" + "".join(f"{p:>8} %" for p in PERCENTILES)]
        lines += [
            f"{'d ' + axis:<15}" + "".join(f"{v + 0.0:>10.3f}" for v in column)
            for axis, column in zip(AXES, self.action_percentiles.T, strict=True)
        ]
        lines += ["", f"{'workspace':<15}{'from':>10}{'to':>10}"]
        lines += [
            f"{axis:<15}{low:>10.3f}{high:>10.3f}"
            for axis, low, high in zip(AXES, *self.workspace, strict=False)
        ]
        if self.unreadable:
            lines += ["", f"{len(self.unreadable)} of {self.sampled} episodes cannot be read:"]
            lines += [f"  {reason}" for reason in self.unreadable]
        return "\n".join(lines)


def summarise(
    source: Source, *, max_episodes: int = MAX_EPISODES, progress: bool = True
) -> DatasetSummary:
    """Reads the numbers of up to `max_episodes` episodes, and no frames.

    Raises:
        ValueError: The set is empty, or not one of these episodes can be read.
    """
    ids = _spread(_ids_of(source), max_episodes)
    cameras, tasks, behaviours = Counter(), Counter(), Counter()
    successes, clocks = Counter(), Counter()
    declared, measured, actions, positions, unreadable = [], [], [], [], []
    seconds = 0.0
    for i in tqdm(ids, desc="inspect", unit="episode", disable=not progress):
        try:
            episode = source.read(i)
        except ValueError as error:
            unreadable.append(f"episode {i}: {error}")
            continue
        if episode.steps < 1:
            unreadable.append(f"episode {i}: it has {len(episode.proprio)} rows, so no step")
            continue
        metadata = episode.metadata
        for name, frames in episode.frames.items():
            cameras[f"{name} {frames.shape[1]} x {frames.shape[2]}"] += 1
        tasks[metadata.task or "none given"] += 1
        behaviours[metadata.behaviour] += 1
        successes[{True: "success", False: "failure", None: "unknown"}[metadata.success]] += 1
        clocks[metadata.clock] += 1
        declared.append(metadata.control_hz)
        measured.append(1 / float(np.median(np.diff(episode.timestamps))))
        actions.append(episode.actions)
        positions.append(episode.proprio[:, POSITION])
        seconds += float(episode.timestamps[-1] - episode.timestamps[0])
    if not actions:
        raise ValueError(f"no episode of {source.path} can be read; {unreadable[0]}")
    everywhere = np.concatenate(positions)
    return DatasetSummary(
        path=source.path,
        format=f"{source.reader.title} ({source.format})",
        episodes=len(source),
        sampled=len(ids),
        steps=sum(map(len, actions)),
        hours=seconds / 3600,
        cameras=dict(cameras),
        tasks=dict(tasks),
        behaviours=dict(behaviours),
        successes=dict(successes),
        clock=dict(clocks),
        declared_hz=(min(declared), max(declared)),
        measured_hz=(min(measured), max(measured)),
        conventions=describe(source.mapping),
        action_percentiles=np.nanpercentile(np.concatenate(actions), PERCENTILES, axis=0),
        workspace=np.stack([np.nanmin(everywhere, axis=0), np.nanmax(everywhere, axis=0)]),
        notes=source.reader.notes,
        unreadable=tuple(unreadable),
    )


def describe(mapping: ColumnMapping) -> dict[str, str]:
    """Returns what a mapping takes each quantity from, in words."""
    words = {}
    if mapping.pose_from_joints:
        words["pose"] = f"from the joints, by the kinematics of a {mapping.pose_from_joints}"
    if mapping.position is not None:
        words["position"] = f"{_names(mapping.position.key)} in {mapping.position.unit}"
    if mapping.rotation is not None:
        angles = mapping.rotation.form.startswith(("euler", "rotvec"))
        unit = f" in {mapping.rotation.unit}" if angles else ""
        words["rotation"] = f"{_names(mapping.rotation.key)} as {mapping.rotation.form}{unit}"
    gripper = mapping.gripper
    words["gripper"] = (
        f"{_names(gripper.key)}, {gripper.open:g} open to {gripper.closed:g} closed"
        if gripper.key
        else "none"
    )
    if mapping.time is not None:
        words["time"] = f"{_names(mapping.time.key)} in {mapping.time.unit}"
    else:
        words["time"] = "counted from the declared rate"
    if mapping.joints:
        words["joints"] = f"{_names(mapping.joints)} in {mapping.joints_unit}"
    if mapping.usable is not None:
        words["usable"] = ("not " if mapping.usable.inverted else "") + _names(mapping.usable.key)
    words["action"] = "change of the measured pose from one row to the next, rotation on the left"
    if mapping.actions:
        words["kept as is"] = ", ".join(mapping.actions)
    return words


def contact_sheet(
    source: Source,
    path: str | Path,
    *,
    rows: int = 6,
    columns: int = 8,
) -> Path:
    """Draws frames as a PNG: a row per camera of an episode, time from left to right.

    A frame that cannot be read is left blank and says so; `worldmodel inspect --check` says why.

    Args:
        source: Where the episodes are.
        path: PNG to write.
        rows: How many rows, of episodes evenly spread over the set.
        columns: How many frames in each, evenly spread over its duration.

    Returns:
        `path`.

    Raises:
        ValueError: The set is empty, or `rows` or `columns` is not positive.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
    shown = [(i, e) for i in _spread(_ids_of(source), rows) if (e := _readable(source, i))]
    if not shown:
        raise ValueError(f"no episode of {source.path} can be read")
    num_cameras = max(len(episode.frames) for _, episode in shown)
    strips = [
        (*shown[k], camera)
        for k in _spread(range(len(shown)), max(1, rows // num_cameras))
        for camera in shown[k][1].frames
    ][:rows]
    cell, label, head = 1.28, 1.25, 0.42  # inches, at 150 dpi
    aspect = max(e.frames[camera].shape[2] / e.frames[camera].shape[1] for _, e, camera in strips)
    wide = cell * max(1.0, aspect)
    width, height = label + columns * wide, head + len(strips) * (cell + 0.2) + 0.05
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(
        0.12 / width, 1 - 0.27 / height, source.path.name, size=9, weight="bold", color=_INK
    )
    for row, (i, episode, camera) in enumerate(strips):
        frames = episode.frames[camera]
        top = head + row * (cell + 0.2)
        renderer = episode.metadata.renderer
        figure.text(
            0.12 / width,
            1 - (top + cell / 2) / height,
            f"episode {i}\n{episode.metadata.behaviour}\n{camera}"
            + f"\n{renderer}" * bool(renderer),
            size=7,
            color=_INK,
            va="center",
            linespacing=1.5,
        )
        for column, k in enumerate(_spread(range(len(frames)), columns)):
            left = label + column * wide
            box = (left / width, 1 - (top + cell) / height, (wide - 0.06) / width, cell / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            try:
                axes.imshow(frames[k], interpolation="antialiased")
            except FrameReadError:
                axes.text(
                    0.5, 0.5, f"frame {k}\ncannot be read", size=7, color="#b00020", ha="center"
                )
            seconds = episode.timestamps[k] - episode.timestamps[0]
            axes.set_title(f"{seconds:.2f} s", size=6, color=_INK, pad=2, loc="left")
    return _save(figure, path)


def path_figure(source: Source, path: str | Path, *, max_episodes: int = MAX_EPISODES) -> Path:
    """Draws the hand's paths from above and from the side, and histograms of the actions.

    Args:
        source: Where the episodes are.
        path: PNG to write.
        max_episodes: Draw at most so many, evenly spread over the set.

    Returns:
        `path`.

    Raises:
        ValueError: The set is empty.
    """
    ids = _spread(_ids_of(source), max_episodes)
    episodes = [episode for i in ids if (episode := _readable(source, i)) is not None]
    names = [episode.metadata.behaviour for episode in episodes]
    kinds = sorted(set(names))
    colours = {kind: _COLOURS[k % len(_COLOURS)] for k, kind in enumerate(kinds)}
    positions = [episode.proprio[:, POSITION] for episode in episodes]
    actions = [episode.actions for episode in episodes]

    figure = Figure(figsize=(11, 7), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2.4, 1))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    above, side = upper.subplots(1, 2)
    alpha = float(np.clip(12 / max(1, len(episodes)), 0.15, 0.8))
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
        limit = max(float(np.nanmax(np.abs(everything))), 1e-3)
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


def _ids_of(source: Source) -> Sequence[int]:
    ids = source.ids()
    if not ids:
        raise ValueError(f"{source.path} has no episodes")
    return ids


def _readable(source: Source, episode_id: int) -> Episode | None:
    try:
        return source.read(episode_id)
    except ValueError:  # `summarise` lists these
        return None


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` items, evenly spread, with the first and the last."""
    picks = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[k] for k in picks]


def _counts(counts: dict[str, int], most: int = 6) -> str:
    """Returns the most frequent names with their counts, and how many others there are."""
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    others = f", and {len(ranked) - most} more" if len(ranked) > most else ""
    return ", ".join(f"{name} ({count})" for name, count in ranked[:most]) + others


def _names(keys: Sequence[str]) -> str:
    return ", ".join(keys)


def _range(limits: tuple[float, float]) -> str:
    low, high = (f"{limit:.3g}" for limit in limits)
    return low if low == high else f"{low} to {high}"
