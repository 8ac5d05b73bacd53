"""Draws docs/images/findings/<code>.png: what each finding of the validator looks like.

    python docs/make_findings.py

Each shows the same short recording: what is right in grey or green, what is wrong in red. Each
function is named after the finding that it draws.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from worldmodel.data.checks.conventions import readings
from worldmodel.data.checks.findings import KINDS
from worldmodel.data.collect import collect
from worldmodel.data.mapping import RotationColumns
from worldmodel.data.rotations import angle_between, mean_rotation, to_rotvec
from worldmodel.data.source import open_source
from worldmodel.franka_arm import PANDA_JOINT_HIGH, PANDA_JOINT_LOW, hand_pose
from worldmodel.pose import matrix_to_euler

OUT = Path(__file__).parent / "images" / "findings"
DPI, WIDTH, HEIGHT = 100, 600, 300
COLOURS = 64  # of a picture, so that all of them together stay below a megabyte
GOOD, BAD, INK, FAINT = "#15803d", "#dc2626", "#1f2937", "#9ca3af"
HZ, ROWS = 15.0, 75

Frames = dict[str, np.ndarray]
Draw = Callable[[Figure, Frames], None]

_rng = np.random.default_rng(7)
SECONDS = np.arange(ROWS) / HZ
JOINTS = np.array([0.0, -0.5, 0.0, -2.1, 0.0, 1.7, 0.8]) + 0.35 * np.sin(
    2 * np.pi * _rng.uniform(0.1, 0.35, 7) * SECONDS[:, None] + _rng.uniform(0, 6, 7)
)
POSITION, ROTATION = hand_pose(JOINTS)
EULER = matrix_to_euler(ROTATION)
GRIPPER = 0.9 * np.clip((SECONDS - 1.4) * 2, 0, 1) * np.clip((4.2 - SECONDS) * 3, 0, 1)
MOTION = 1000 * np.diff(POSITION, axis=0)  # mm a step


def main() -> None:
    """Draws all pictures."""
    OUT.mkdir(parents=True, exist_ok=True)
    frames = _simulated_frames()
    for code, kind in KINDS.items():
        figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        PICTURES[code](figure, frames)
        figure.text(0.02, 0.93, kind.title, size=11, weight="bold", color=INK)
        figure.text(0.98, 0.935, code, size=8, color=FAINT, family="monospace", ha="right")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        picture.quantize(COLOURS).save(OUT / f"{code}.png", optimize=True)


def _simulated_frames() -> Frames:
    with tempfile.TemporaryDirectory() as folder:
        collect(
            Path(folder) / "store",
            episodes=1,
            steps=12,
            image_size=128,
            cameras=("exterior", "wrist"),
            behaviours={"scripted": 1.0},
            workers=1,
            progress=False,
        )
        episode = open_source(Path(folder) / "store").read(0)
        return {name: np.asarray(frames) for name, frames in episode.frames.items()}


# ------------------------------------------------------------------------------------- drawing


def plot(figure: Figure, y: str, *, left: float = 0.11, right: float = 0.97) -> Axes:
    """Returns axes over time."""
    axes = figure.add_axes((left, 0.17, right - left, 0.68))
    axes.set_xlabel("time [s]", size=8, color=INK)
    axes.set_ylabel(y, size=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    return axes


def note(axes: Axes, text: str, at: tuple[float, float], *, to: tuple[float, float] | None = None):
    """Writes in red at a place of the axes (0 to 1), with an arrow to a place of the data."""
    if to is None:
        axes.text(*at, text, transform=axes.transAxes, size=9, color=BAD)
        return
    axes.annotate(
        text,
        to,
        at,
        textcoords="axes fraction",
        size=9,
        color=BAD,
        arrowprops={"arrowstyle": "->", "color": BAD},
    )


def two(axes: Axes, right: np.ndarray, wrong: np.ndarray, names: Sequence[str]) -> None:
    """What is right and what is wrong, over time."""
    axes.plot(SECONDS[: len(right)], right, color=GOOD, lw=1.6, label=names[0])
    axes.plot(SECONDS[: len(wrong)], wrong, color=BAD, lw=1.6, label=names[1])
    axes.legend(frameon=False, fontsize=8)


def strip(
    figure: Figure,
    images: Sequence[np.ndarray | None],
    captions: Sequence[str],
    *,
    bad: Sequence[int] = (),
) -> None:
    """Pictures side by side, the faulty ones edged red; None stands for one that is not there."""
    width = 0.96 / len(images)
    height = width * WIDTH / HEIGHT
    top = 0.54 + height / 2
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_axes((0.02 + k * width, top - height, width - 0.012, height))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(color=BAD if k in bad else FAINT, linewidth=2.5 if k in bad else 0.8)
        if image is None:
            axes.set_facecolor("#f3f4f6")
            axes.text(0.5, 0.5, "?", ha="center", va="center", size=22, color=BAD)
        else:
            axes.imshow(image, aspect="auto")
        axes.set_xlabel(caption, size=8, color=BAD if k in bad else INK)


def below(figure: Figure, text: str) -> None:
    """A line under the pictures."""
    figure.text(0.02, 0.06, text, size=8.5, color=INK)


# ------------------------------------------------------------------------------------ the numbers


def unreadable(figure: Figure, frames: Frames) -> None:
    lines = ("run_017/", "  trajectory.h5     0 bytes", "  front.mp4       3.1 MB")
    for k, line in enumerate(lines):
        figure.text(
            0.08, 0.7 - 0.13 * k, line, size=13, family="monospace", color=(INK, BAD, INK)[k]
        )
    below(figure, "run_017/trajectory.h5: not an HDF5 file: quarantined, counted and named")


def too_short(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "episode")
    axes.barh([3, 2, 1], [5, 4.2, 4.8], color=GOOD, height=0.5)
    axes.barh([0], [0.3], color=BAD, height=0.5)
    axes.axvline(7 / HZ, color=INK, lw=0.8, ls="--")
    axes.set_yticks([0, 1, 2, 3])
    note(axes, "4 rows; a window has 8", (0.14, 0.07))


def not_finite(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "x [m]")
    x = POSITION[:, 0].copy()
    x[38:41] = np.nan
    axes.plot(SECONDS, x, ".-", color=INK, lw=1, ms=4)
    axes.axvspan(SECONDS[37], SECONDS[41], color=BAD, alpha=0.15)
    note(axes, "NaN", (0.62, 0.8), to=(SECONDS[39], float(POSITION[39, 0])))


def constant_column(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "position [m]")
    for k, name in enumerate("xy"):
        axes.plot(SECONDS, POSITION[:, k], color=FAINT, lw=1.4, label=name)
    axes.plot(SECONDS, np.full(ROWS, 0.3), color=BAD, lw=2, label="z")
    note(axes, "z is 0.3 in all episodes", (0.35, 0.62))
    axes.legend(frameon=False, fontsize=8)


def position_unit(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "hand to base [m]")
    reach = np.linalg.norm(POSITION, axis=1)
    axes.semilogy(SECONDS, reach, color=GOOD, lw=1.8)
    axes.semilogy(SECONDS, 1000 * reach, color=BAD, lw=1.8)
    axes.axhspan(0.2, 1.2, color=GOOD, alpha=0.12)
    note(axes, "millimetres taken for metres", (0.3, 0.68))
    axes.text(
        0.3, 0.33, "an arm's reach, 0.2 to 1.2 m", size=8, color=GOOD, transform=axes.transAxes
    )
    axes.set_ylim(0.1, 3000)


def angles_in_degrees(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "yaw, declared as radians")
    yaw = np.unwrap(EULER[:, 2])
    two(axes, yaw, np.degrees(yaw), ("radians", "degrees"))
    axes.axhspan(-np.pi, np.pi, color=GOOD, alpha=0.15)


def angles_in_radians(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "turned since the start [degrees]")
    turned = np.degrees(angle_between(ROTATION[:1], ROTATION))
    two(axes, turned, np.radians(turned), ("by the joints", "radians read as degrees"))


def gripper_range(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "gripper")
    two(axes, GRIPPER, 255 * GRIPPER, ("0 open to 1 closed", "bytes"))
    note(axes, "0 to 229\ninstead of 0 to 1", (0.47, 0.5))


def gripper_inverted(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "gripper")
    two(axes, GRIPPER, 1 - GRIPPER, ("0 open to 1 closed", "inverted"))
    note(axes, "starts closed\nin every episode", (0.03, 0.62))


def joint_limits(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "joint 4 [rad]")
    joint = JOINTS[:, 3] + 2.6 * np.exp(-(((SECONDS - 2.6) / 0.6) ** 2))
    inside = joint < PANDA_JOINT_HIGH[3]
    axes.axhspan(PANDA_JOINT_LOW[3], PANDA_JOINT_HIGH[3], color=GOOD, alpha=0.12)
    axes.plot(SECONDS, np.where(inside, joint, np.nan), color=INK, lw=1.6)
    axes.plot(SECONDS, np.where(inside, np.nan, joint), color=BAD, lw=2.2)
    axes.set_ylim(-3.2, 0.9)
    note(axes, "no Franka stands so", (0.66, 0.88))


def outlier(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "y [m]")
    y = POSITION[:, 1].copy()
    y[40] += 0.3
    axes.plot(SECONDS, y, ".-", color=INK, lw=1, ms=4)
    axes.plot(SECONDS[40], y[40], "o", color=BAD, ms=7)
    note(axes, "30 cm in 1/15 s", (0.65, 0.9), to=(SECONDS[40], y[40]))


def idle(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "motion per step [mm]")
    index = np.r_[:25, [25] * 40, 25:50]
    seconds = np.arange(len(index) - 1) / HZ
    moved = 1000 * np.linalg.norm(np.diff(POSITION[index], axis=0), axis=1)
    axes.plot(seconds, moved, color=INK, lw=1.6)
    axes.axvspan(25 / HZ, 64 / HZ, color=BAD, alpha=0.15)
    note(axes, "44 % of the steps", (0.37, 0.5))


def duplicate_episode(figure: Figure, frames: Frames) -> None:
    for k, name in enumerate(("episode 3", "episode 41")):
        axes = plot(figure, "x [m]" if k == 0 else "", left=0.1 + 0.46 * k, right=0.5 + 0.46 * k)
        axes.plot(SECONDS, POSITION[:, 0], color=(INK, BAD)[k], lw=1.6)
        axes.text(0.6, 0.92, name, size=9, color=(INK, BAD)[k], transform=axes.transAxes)


# ---------------------------------------------------------------------------------- the rotations


def _residual(matrices: np.ndarray) -> np.ndarray:
    wander = np.swapaxes(ROTATION, -1, -2) @ matrices
    return np.degrees(angle_between(mean_rotation(wander)[None], wander))


def rotation_convention(figure: Figure, frames: Frames) -> None:
    ways = [way for way in readings(RotationColumns(("r",))) if way.unit == "rad"]
    chosen = [way for way in ways if not way.inverse] + [ways[len(ways) // 2]]
    noisy = EULER + np.random.default_rng(0).normal(0, 2e-3, EULER.shape)
    medians = [float(np.median(_residual(way.matrices(noisy)))) for way in chosen]
    axes = plot(figure, "", left=0.27)
    names = [str(way).replace(" in rad", "").replace("euler_", "Euler ") for way in chosen]
    names[0] += " (right)"
    axes.barh(names[::-1], medians[::-1], color=[BAD] * (len(names) - 1) + [GOOD], height=0.6)
    axes.set_xlabel("hand's rotation against the joints, median [degrees]", size=8, color=INK)
    for k, value in enumerate(medians[::-1]):
        axes.text(value + 0.3, k, f"{value:.1f}", va="center", size=8, color=INK)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(0, 1.12 * max(medians))


def _turns(matrices: np.ndarray) -> np.ndarray:
    return np.degrees(to_rotvec(matrices[1:] @ np.swapaxes(matrices[:-1], -1, -2)))


def rotation_composition(figure: Figure, frames: Frames) -> None:
    commanded = _turns(ROTATION).ravel()
    wrong = next(way for way in readings(RotationColumns(("r",))) if way.form == "euler_XYZ")
    for k, (name, matrices) in enumerate(
        (("right order", ROTATION), ("wrong order", wrong.matrices(EULER)))
    ):
        axes = plot(figure, "measured turn [degrees]" if k == 0 else "", left=0.1 + 0.47 * k,
                    right=0.49 + 0.47 * k)  # fmt: skip
        axes.plot(commanded, _turns(matrices).ravel(), ".", color=(GOOD, BAD)[k], ms=4)
        axes.set_xlabel("commanded turn [degrees]", size=8, color=INK)
        axes.set_title(name, size=9, color=(GOOD, BAD)[k], pad=2)


def rotation_unverified(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "logged angles [rad]")
    axes.plot(SECONDS, np.unwrap(EULER, axis=0)[:, 1:], color=INK, lw=1.4)
    axes.set_ylim(-1.3, 1.8)
    note(axes, "Euler xyz? XYZ? zyx? a rotation vector? all are smooth", (0.1, 0.9))


def kinematics_mismatch(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "position against the joints [cm]")
    error = 100 * np.linalg.norm(POSITION - POSITION[::-1], axis=1)
    good = np.abs(np.random.default_rng(1).normal(0.1, 0.05, ROWS))
    two(axes, good, error, ("this robot's joints", "joints of something else"))


# ----------------------------------------------------------------------------------- the commands


def action_lag(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "motion along y [mm a step]")
    command = np.roll(MOTION[:, 1], -8)
    axes.plot(SECONDS[:-9], command[:-8], color=FAINT, lw=1.8, label="commanded")
    axes.plot(SECONDS[:-1], MOTION[:, 1], color=BAD, lw=1.8, label="measured")
    peak = int(MOTION[8:-8, 1].argmax()) + 8
    high = float(MOTION[peak, 1])
    axes.annotate(
        "", (SECONDS[peak], high), (SECONDS[peak - 8], high), arrowprops={"arrowstyle": "->"}
    )
    axes.text(SECONDS[peak - 4], high + 0.6, "8 steps", size=8, ha="center", color=INK)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)


def action_mismatch(figure: Figure, frames: Frames) -> None:
    for k, name in enumerate("xyz"):
        axes = plot(figure, "measured [mm]" if k == 0 else "", left=0.1 + 0.31 * k,
                    right=0.34 + 0.31 * k)  # fmt: skip
        asked = MOTION[:, k] + np.random.default_rng(k).normal(0, 1, len(MOTION))
        wrong = name == "y"
        axes.plot(-asked if wrong else asked, MOTION[:, k], ".", ms=4, color=BAD if wrong else GOOD)
        axes.set_xlabel(f"commanded {name} [mm]", size=8, color=INK)


# -------------------------------------------------------------------------------------- the clock


def time_not_increasing(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "timestamp [s]")
    stamps = SECONDS[:30].copy()
    stamps[14:] -= 0.3
    axes.plot(stamps, ".-", color=INK, lw=1, ms=5)
    axes.plot([13, 14], stamps[13:15], "o-", color=BAD, lw=2)
    axes.set_xlabel("row", size=8, color=INK)
    note(axes, "back by 0.3 s", (0.6, 0.3), to=(14, float(stamps[14])))


def time_unit(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "between two rows [s]")
    jitter = np.random.default_rng(2).normal(1, 0.02, ROWS - 1) / HZ
    axes.axhspan(1e-3, 2, color=GOOD, alpha=0.12)
    axes.semilogy(SECONDS[1:], jitter, color=GOOD, lw=1.5)
    axes.semilogy(SECONDS[1:], 1000 * jitter, color=BAD, lw=1.5)
    axes.set_ylim(5e-4, 500)
    note(axes, "milliseconds taken for seconds: 0.015 Hz", (0.25, 0.9))


def rate_mismatch(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "rate by the timestamps [Hz]")
    rate = HZ / np.random.default_rng(2).normal(1, 0.03, ROWS - 1)
    axes.plot(SECONDS[1:], rate, color=INK, lw=1.2)
    axes.axhline(60, color=BAD, lw=2)
    axes.set_ylim(0, 75)
    note(axes, "declared: 60 Hz", (0.4, 0.92))
    axes.text(0.4, 0.3, "measured: 15 Hz", size=9, color=INK, transform=axes.transAxes)


def gaps(figure: Figure, frames: Frames) -> None:
    axes = plot(figure, "between two rows [ms]")
    steps = 1000 / HZ * np.random.default_rng(2).normal(1, 0.03, ROWS - 1)
    steps[[22, 51]] = 201, 334
    axes.plot(np.cumsum(steps) / 1000, steps, color=INK, lw=1.2)
    axes.axhline(1.5 * 1000 / HZ, color=FAINT, lw=0.8, ls="--")
    note(axes, "5 rows dropped", (0.76, 0.85), to=(float(np.cumsum(steps)[51]) / 1000, 330))


# ------------------------------------------------------------------------------------ the cameras


def _some(frames: Frames, camera: str, count: int) -> list[np.ndarray]:
    index = np.linspace(0, len(frames[camera]) - 1, count).round().astype(int)
    return list(frames[camera][index])


def frame_count(figure: Figure, frames: Frames) -> None:
    images: list[np.ndarray | None] = [*_some(frames, "exterior", 4), None]
    strip(figure, images, [f"row {k}" for k in (0, 60, 120, 180, 240)], bad=[4])
    below(figure, "199 frames for 240 rows: were they lost at the end, or all along the way?")


def camera_missing(figure: Figure, frames: Frames) -> None:
    images = [frames["exterior"][0], frames["wrist"][0], frames["exterior"][6], None]
    strip(figure, images, ["3: exterior", "3: wrist", "4: exterior", "4: wrist"], bad=[3])
    below(figure, "episode 4 has no file for the camera that episode 3 has")


def camera_black(figure: Figure, frames: Frames) -> None:
    images: list[np.ndarray] = _some(frames, "exterior", 5)
    images[2] = images[3] = np.zeros_like(images[0])
    strip(figure, images, [f"frame {k}" for k in range(5)], bad=[2, 3])


def camera_frozen(figure: Figure, frames: Frames) -> None:
    images = _some(frames, "exterior", 5)
    images[2] = images[3] = images[4] = images[1]
    strip(figure, images, [f"hand at {k} cm" for k in (0, 5, 11, 18, 24)], bad=[2, 3, 4])
    below(figure, "the log says the hand moves, the pictures say it does not")


def video_truncated(figure: Figure, frames: Frames) -> None:
    images: list[np.ndarray | None] = [*_some(frames, "exterior", 3), None, None]
    strip(figure, images, [f"frame {k}" for k in (0, 85, 169, 170, 299)], bad=[3, 4])
    below(figure, "300 frames declared, the file ends after 170")


def frames_unreadable(figure: Figure, frames: Frames) -> None:
    images: list[np.ndarray | None] = list(_some(frames, "exterior", 5))
    images[2] = None
    strip(figure, images, [f"frame {k}" for k in range(40, 45)], bad=[2])
    below(figure, "frame 42: cannot decode the image (1 408 bytes); expected JPEG or PNG")


def stereo_pair(figure: Figure, frames: Frames) -> None:
    image = frames["exterior"][6]
    pair = np.concatenate([image[20:92], np.roll(image, 3, axis=1)[20:92]], axis=1)
    for box, aspect, caption in (
        ((0.02, 0.14, 0.64, 0.7), 1.0, "the file: two eyes side by side"),
        ((0.72, 0.14, 0.24, 0.7), pair.shape[1] / pair.shape[0], "what the model sees"),
    ):
        axes = figure.add_axes(box)
        axes.imshow(pair, aspect=aspect)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(color=BAD, linewidth=2)
        axes.set_xlabel(caption, size=8, color=BAD)


def channels_swapped(figure: Figure, frames: Frames) -> None:
    images = _some(frames, "exterior", 4)
    images[2] = images[2][..., ::-1]
    strip(figure, images, [f"episode {k}" for k in range(4)], bad=[2])


PICTURES: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        unreadable, too_short, not_finite, constant_column, position_unit, angles_in_degrees,
        angles_in_radians, gripper_range, gripper_inverted, joint_limits, outlier, idle,
        duplicate_episode, rotation_convention, rotation_composition, rotation_unverified,
        kinematics_mismatch, action_lag, action_mismatch, time_not_increasing, time_unit,
        rate_mismatch, gaps, frame_count, camera_missing, camera_black, camera_frozen,
        video_truncated, frames_unreadable, stereo_pair, channels_swapped,
    )
}  # fmt: skip

if __name__ == "__main__":
    main()
