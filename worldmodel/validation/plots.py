"""A picture of each measure."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldmodel.pose import GRIPPER
from worldmodel.validation.action_ranking import ActionRanking
from worldmodel.validation.camera_rotation import CameraRotation
from worldmodel.validation.energy_argmin import POSE_AXES, EnergyArgmin
from worldmodel.validation.joint_argmin import JointArgmin
from worldmodel.validation.latent_errors import LatentErrors
from worldmodel.validation.open_loop import OpenLoop
from worldmodel.video import DISTANCE, ENERGY, FAINT, INK, MUTED

TEAL = "#0d9488"


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG that is the same, byte for byte, for the same figure."""
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def draw_latent_errors(errors: LatentErrors) -> Figure:
    """Draws the error over steps ahead, beside no change and wrong actions; and the ratios."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, errors.predicted.shape[1] + 1)
    for values, color, label in (
        (errors.shuffled, DISTANCE, "wrong actions"),
        (errors.identity, MUTED, "no change"),
        (errors.predicted, ENERGY, "prediction"),
    ):
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        left.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        left.plot(steps, middle, "o-", color=color, lw=1.6, ms=3, label=label)
    left.set_title("latent error: median and quartiles", loc="left", fontsize=10, color=INK)
    right.axhline(1, color=MUTED, linestyle=(0, (6, 4)), lw=1)
    for ratios, color, label in (
        (errors.identity_ratios, ENERGY, "to predicting no change"),
        (errors.shuffled_ratios, DISTANCE, "to wrong actions"),
    ):
        right.plot(steps, ratios, "o-", color=color, lw=1.6, ms=3, label=label)
    right.set_title("ratio of mean errors: 1 is worthless", loc="left", fontsize=10, color=INK)
    for axes in (left, right):
        axes.set_xlabel("model steps ahead", fontsize=8.5, color=MUTED)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
        _quieten(axes)
    return figure


def draw_action_ranking(ranking: ActionRanking) -> Figure:
    """Draws how often the true action came in at each rank."""
    figure = _figure(6, 3.4)
    axes = figure.subplots()
    places = np.arange(1, ranking.candidates + 1)
    shares = np.array([np.mean(ranking.ranks == place) for place in places])
    axes.bar(places, 100 * shares, color=ENERGY, width=0.8)
    axes.axhline(100 / ranking.candidates, color=MUTED, linestyle=(0, (6, 4)), lw=1, label="chance")
    axes.set_title(
        f"rank of the true action's energy among {ranking.candidates}: first in "
        f"{ranking.top1:.0%}, mean {ranking.mean_rank:.2f}",
        loc="left",
        fontsize=10,
        color=INK,
    )
    axes.set_xlabel("rank", fontsize=8.5, color=MUTED)
    axes.set_ylabel("% of windows", fontsize=8.5, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    _quieten(axes)
    return figure


def draw_energy_argmin(argmin: EnergyArgmin) -> Figure:
    """Draws, axis by axis, the value of lowest energy over the true one."""
    figure = _figure(12, 5.6)
    cells = figure.subplots(2, 4).ravel()
    true, found = argmin.true, argmin.found
    numbers = np.concatenate(
        [np.abs(argmin.offsets_cm).mean(axis=0), np.abs(argmin.offsets_deg).mean(axis=0)]
    )
    for i, axis in enumerate(POSE_AXES):
        unit, scale = ("cm", 100.0) if i < 3 else ("°", 180 / np.pi)
        limit = scale * max(argmin.limits[i], float(np.abs(true[:, i]).max()))
        _scatter(cells[i], scale * true[:, i], scale * found[:, i], limit)
        cells[i].set_title(
            f"{axis} [{unit}]: off by {numbers[i]:.2g}", loc="left", fontsize=10, color=INK
        )
    limit = max(argmin.limits[6], float(np.abs(true[:, GRIPPER]).max()))
    _scatter(cells[6], true[:, 6], found[:, 6], limit)
    off = float(np.abs(found - true)[:, GRIPPER].mean())
    cells[6].set_title(f"gripper: off by {off:.2g}", loc="left", fontsize=10, color=INK)
    distances = np.linalg.norm(argmin.offsets_cm, axis=1)
    cells[7].hist(distances, bins=24, color=ENERGY)
    cells[7].axvline(argmin.error_cm, color=DISTANCE, lw=1.2)
    cells[7].set_title(
        f"distance [cm]: mean {argmin.error_cm:.2f}", loc="left", fontsize=10, color=INK
    )
    _quieten(cells[7])
    figure.supxlabel("what was done", fontsize=9, color=MUTED)
    figure.supylabel("where the energy is lowest", fontsize=9, color=MUTED)
    return figure


def draw_joint_argmin(argmin: JointArgmin) -> Figure:
    """Draws, joint by joint, the change of lowest energy over the true one; the gripper last."""
    size = argmin.true.shape[1]
    columns = min(4, size)
    rows = -(-size // columns)
    figure = _figure(3 * columns, 2.8 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(cells[:size]):
        gripper = i == size - 1
        scale, unit = (1.0, "") if gripper else (180 / np.pi, "°")
        true, found = scale * argmin.true[:, i], scale * argmin.found[:, i]
        limit = max(scale * argmin.limits[i], float(np.abs(true).max()))
        _scatter(axes, true, found, limit)
        name = "gripper" if gripper else f"joint {i + 1}"
        off = float(np.abs(found - true).mean())
        axes.set_title(f"{name}: off by {off:.2g}{unit}", loc="left", fontsize=10, color=INK)
    for axes in cells[size:]:
        axes.set_axis_off()
    figure.supxlabel("what was done", fontsize=9, color=MUTED)
    figure.supylabel("where the energy is lowest", fontsize=9, color=MUTED)
    return figure


def draw_open_loop(open_loop: OpenLoop) -> Figure:
    """Draws planned over true sums of moves."""
    figure = _figure(9.5, 3.5)
    cells = figure.subplots(1, 3)
    planned, true = 100 * open_loop.planned, 100 * open_loop.true
    limit = float(max(np.abs(planned).max(), np.abs(true).max()))
    for i, axes in enumerate(cells):
        _scatter(axes, true[:, i], planned[:, i], limit)
        off = np.abs(planned - true)[:, i].mean()
        axes.set_title(f"{POSE_AXES[i]} [cm]: off by {off:.2g}", loc="left", fontsize=10, color=INK)
    figure.suptitle(
        f"plans of {open_loop.horizon} steps, sums of moves: score {open_loop.score:.1f} of 80",
        x=0.01,
        ha="left",
        fontsize=10,
        color=INK,
    )
    figure.supxlabel("what was done", fontsize=9, color=MUTED)
    figure.supylabel("what was planned", fontsize=9, color=MUTED)
    return figure


def draw_camera_rotation(fitted: CameraRotation) -> Figure:
    """Draws horizontal moves, what the model finds of them, and that turned by the correction."""
    figure = _figure(9, 4.4)
    cells = figure.subplots(1, 2)
    true = 100 * fitted.true
    before, after = fitted.errors_cm()
    turned = fitted.found @ fitted.rotation.T
    limit = 1.08 * float(max(np.abs(true).max(), 100 * np.abs(fitted.found).max()))
    for axes, moves, title in (
        (cells[0], fitted.found, f"as they are: off by {before:.2f} cm"),
        (cells[1], turned, f"turned by {fitted.angle_deg:+.1f}°: off by {after:.2f} cm"),
    ):
        ends = 100 * moves
        axes.plot(
            *np.stack([true, ends, np.full_like(true, np.nan)], axis=1).reshape(-1, 2).T,
            color=FAINT,
            lw=1,
        )
        axes.plot(*true.T, "X", color=DISTANCE, markeredgecolor="white", ms=6, label="made")
        axes.plot(*ends.T, "o", color=ENERGY, ms=3.5, label="found")
        axes.axhline(0, color=FAINT, lw=0.6)
        axes.axvline(0, color=FAINT, lw=0.6)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("x [cm]", fontsize=8.5, color=MUTED)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        _quieten(axes)
    cells[0].set_ylabel("y [cm]", fontsize=8.5, color=MUTED)
    cells[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"horizontal moves: condition number {fitted.condition:.2f}"
        + (", mirrored" if fitted.mirrored else ""),
        x=0.01,
        ha="left",
        fontsize=10,
        color=INK,
    )
    return figure


def _scatter(axes: Axes, true: np.ndarray, found: np.ndarray, limit: float) -> None:
    axes.plot([-limit, limit], [-limit, limit], color=MUTED, linestyle=(0, (6, 4)), lw=1)
    axes.plot(true, found, "o", color=TEAL, ms=3.5, alpha=0.7, markeredgewidth=0)
    axes.set(xlim=(-1.08 * limit, 1.08 * limit), ylim=(-1.08 * limit, 1.08 * limit))
    axes.set_aspect("equal")
    _quieten(axes)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=8, colors=MUTED, length=2)
