"""Surprise to look at: its course with the 1 % line, and the worst step with a heat map over it."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from worldmodel.data.source import Source
from worldmodel.jepa import JEPA
from worldmodel.runs import describe_machine, write_json
from worldmodel.surprise import EpisodeSurprise, episode_surprise
from worldmodel.surprise_calibration import LEVEL, QUESTIONS, SurpriseCalibration
from worldmodel.video import DISTANCE, ENERGY, FAINT, INK, MUTED

_QUESTION_COLORS = ("#0d9488", "#7c3aed")
_PICTURE = {"format": "png", "metadata": {"Software": None}}


def score_recordings(
    world: JEPA,
    calibration: SurpriseCalibration,
    source: Source,
    run: Path,
    *,
    pictures: int = 4,
    progress: bool = True,
) -> dict[int, EpisodeSurprise]:
    """Scores every recording, writes `surprise.json`, and draws the most surprising ones.

    Args:
        world: The model.
        calibration: Of this model; its camera is used.
        source: The recordings.
        run: Folder of the results.
        pictures: How many episodes are drawn.
        progress: Whether to show a progress bar.

    Returns:
        The surprise of each episode by its id, the least probable first.

    Raises:
        ValueError: A recording is broken, too short, or of another rate than the model's.
        KeyError: A recording does not have the calibration's camera.
    """
    bar = tqdm(source.ids(), desc="surprise", unit="episode", disable=not progress)
    found = {i: episode_surprise(world, calibration, source.read(i)) for i in bar}
    ranked = dict(sorted(found.items(), key=lambda item: (item[1].p_value, item[0])))
    for i, surprise in list(ranked.items())[:pictures]:
        frames = source.read(i).frames[calibration.camera][frames_around(surprise)]
        write_pictures(run, surprise, frames, name=f"episode_{i}")
    write_json(
        run / "surprise.json",
        {
            "recordings": str(source.path),
            "camera": calibration.camera,
            "calibration": calibration.recordings,
            "level": LEVEL,
            "flagged": [i for i, surprise in found.items() if surprise.flagged],
            "episodes": {str(i): _to_json(surprise) for i, surprise in found.items()},
            "machine": describe_machine(),
        },
    )
    return ranked


def surprise_table(ranked: dict[int, EpisodeSurprise], *, lines: int = 10) -> str:
    """Returns the most surprising steps, one an episode, as lines of text."""
    rows = ["episode  frame  surprise  line      p  because"]
    for i, surprise in list(ranked.items())[:lines]:
        worst = surprise.worst
        because = QUESTIONS[int(np.argmax(surprise.judgement.questions[worst]))]
        rows.append(
            f"{i:>7}  {surprise.rows[worst]:>5}  {surprise.scores[worst]:>8.2f}  "
            f"{surprise.threshold:>4.2f}  {surprise.p_value:>5.2g}  {because}"
            f"{', flagged' if surprise.flagged else ''}"
        )
    return "\n".join(rows)


def write_pictures(
    folder: Path, surprise: EpisodeSurprise, frames: np.ndarray, *, name: str
) -> tuple[Path, Path]:
    """Writes the course and the worst step of one episode as two PNG files.

    Args:
        folder: Where to write; made if it is not there.
        surprise: Of the episode.
        frames: RGB uint8 (4, height, width, 3): the worst step's picture, the two before it, and
            the one after it; see `frames_around`.
        name: Name of the files and of the episode, for the titles.

    Returns:
        The paths of both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    course, worst = folder / f"{name}_surprise.png", folder / f"{name}_worst_step.png"
    draw_course(surprise, name=name).savefig(course, **_PICTURE)
    draw_worst_step(surprise, frames, name=name).savefig(worst, **_PICTURE)
    return course, worst


def frames_around(surprise: EpisodeSurprise) -> np.ndarray:
    """Returns the rows (4,) of a recording that show its worst step: two before, it, one after.

    At an end of the recording the nearest row is repeated.
    """
    all_rows = np.append(surprise.rows[0] - 1, surprise.rows)
    at = surprise.worst + 1
    return all_rows[np.clip([at - 2, at - 1, at, at + 1], 0, len(all_rows) - 1)]


def draw_course(surprise: EpisodeSurprise, *, name: str) -> Figure:
    """Draws the surprise of every step, its parts, and the line that 1 % of clean episodes cross.

    Below, the error behind it, beside that of predicting no change.
    """
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained", facecolor="white")
    scores, errors = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rows = surprise.rows
    for i, question in enumerate(QUESTIONS):
        scores.plot(
            rows,
            surprise.judgement.questions[:, i],
            lw=1,
            color=_QUESTION_COLORS[i],
            label=question,
        )
    scores.plot(rows, surprise.scores, "o-", color=ENERGY, lw=2, ms=3, label="surprise")
    scores.axhline(
        surprise.threshold,
        color=DISTANCE,
        linestyle=(0, (6, 4)),
        lw=1,
        label=f"{LEVEL:.0%} of clean episodes cross this",
    )
    scores.plot(rows[surprise.worst], surprise.scores[surprise.worst], "X", color=DISTANCE, ms=9)
    scores.set_ylim(bottom=min(-1.0, 1.1 * float(surprise.judgement.questions.min().clip(-3))))
    verdict = "flagged" if surprise.flagged else "not flagged"
    scores.set_title(
        f"{name}: {verdict}, p = {surprise.p_value:.2g}, most surprising at frame "
        f"{rows[surprise.worst]}",
        loc="left",
        fontsize=10,
        color=INK,
    )
    errors.plot(
        rows,
        surprise.judgement.prediction.errors.mean(axis=1),
        color=ENERGY,
        lw=1.5,
        label="prediction",
    )
    errors.plot(
        rows,
        surprise.judgement.prediction.changes.mean(axis=1),
        color=MUTED,
        lw=1.5,
        label="no change",
    )
    errors.set_ylim(bottom=0)
    errors.set_xlabel("frame", fontsize=8.5, color=MUTED)
    for axes, label in ((scores, "surprise"), (errors, "error, latent L1")):
        axes.set_ylabel(label, fontsize=8.5, color=MUTED)
        axes.legend(frameon=False, fontsize=8, ncols=3)
        axes.margins(x=0.02)
        _quieten(axes)
    return figure


def draw_worst_step(surprise: EpisodeSurprise, frames: np.ndarray, *, name: str) -> Figure:
    """Draws the pictures around the most surprising step, and where in it the surprise lies."""
    row, worst = surprise.rows[surprise.worst], surprise.judgement.patches[surprise.worst]
    figure = Figure(figsize=(11, 2.9), dpi=110, layout="constrained", facecolor="white")
    cells = figure.subplots(1, 5)
    titles = ("two before", "one before", f"frame {row}", "where", "one after")
    for axes, title, frame in zip(cells, titles, frames[[0, 1, 2, 2, 3]], strict=True):
        axes.imshow(frame, interpolation="antialiased")
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_axis_off()
    height, width = frames.shape[1:3]
    heat = cells[3].imshow(
        patch_map(worst, height=height, width=width),
        cmap="inferno",
        alpha=0.55,
        vmin=0,
        vmax=max(1.0, float(worst.max())),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
    bar = figure.colorbar(heat, ax=list(cells), pad=0.01, aspect=14)
    bar.set_label("1: 1 % of clean episodes\nreach it somewhere", fontsize=7.5, color=MUTED)
    bar.ax.tick_params(labelsize=7.5, colors=MUTED, length=2)
    figure.suptitle(
        f"{name}: surprise {surprise.scores[surprise.worst]:.2f}, the line is at "
        f"{surprise.threshold:.2f}",
        x=0.01,
        ha="left",
        fontsize=10,
        color=INK,
    )
    return figure


def patch_map(values: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Returns values (N,) of row-major patches as the grid (rows, columns) that covers a picture.

    Raises:
        ValueError: N patches do not tile a square picture.
    """
    side = round(len(values) ** 0.5)
    if side * side != len(values) or height != width:
        raise ValueError(
            f"{len(values)} patches of a {height} x {width} picture: expected a square grid of a "
            "square picture"
        )
    return values.reshape(side, side)


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=8, colors=MUTED, length=2)


def _to_json(surprise: EpisodeSurprise) -> dict[str, object]:
    questions = zip(QUESTIONS, surprise.judgement.questions.T, strict=True)
    return {
        "flagged": surprise.flagged,
        "p_value": surprise.p_value,
        "threshold": surprise.threshold,
        "worst_frame": int(surprise.rows[surprise.worst]),
        "frames": surprise.rows.tolist(),
        "scores": np.round(surprise.scores, 4).tolist(),
        **{name: np.round(values, 4).tolist() for name, values in questions},
        "errors": np.round(surprise.judgement.prediction.errors.mean(axis=1), 5).tolist(),
        "copy_errors": np.round(surprise.judgement.prediction.changes.mean(axis=1), 5).tolist(),
        "worst_patches": np.round(surprise.judgement.patches[surprise.worst], 3).tolist(),
    }
