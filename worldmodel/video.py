"""Pictures of one episode: what the camera saw, the goal, and what the model made of it."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from worldmodel.results import EpisodeResult

ENERGY, DISTANCE = "#2563eb", "#b45309"
REACHED, MISSED = "#15803d", "#dc2626"
SURPRISED = "#f59e0b"  # the edge of what the gate was surprised by
INK, MUTED, FAINT = "#1f2937", "#6b7280", "#d1d5db"

_DPI = 100
_GAP, _HEADER = 8, 28  # [pixels] around and between panels, above them
_FIRST_HELD_S, _LAST_HELD_S = 0.5, 1.5
_VIDEO_PANEL, _GIF_PANEL = 256, 190
_FILM_PANEL, _FILM_FRAMES, _FILM_CAPTION = 168, 8, 58


def write_video(path: Path, episode: EpisodeResult, *, fps: float = 4) -> None:
    """Writes an H.264 MP4: camera | present sub-goal | energy so far.

    Where the surprise gate slowed, replanned or held, it says so, and the camera's edge is amber.
    The first picture stays for half a second more, the last for one and a half; its edge is green
    where the goal was reached and red where it was missed.

    Args:
        path: File to write; its folder exists.
        episode: An episode with frames.
        fps: Control steps shown per second.

    Raises:
        ValueError: The episode kept no frames, or `fps` is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pictures = draw_steps(episode, panel=_VIDEO_PANEL)
    pictures = [
        *[pictures[0]] * round(_FIRST_HELD_S * fps),
        *pictures,
        *[pictures[-1]] * round(_LAST_HELD_S * fps),
    ]
    height, width = pictures[0].shape[:2]
    # The index at the front (faststart) lets a browser play before it has the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "medium"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, episode: EpisodeResult, *, fps: float = 4) -> None:
    """Writes the pictures of `write_video` as an endless GIF, 602 pixels wide.

    Raises:
        ValueError: The episode kept no frames, or `fps` is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pictures = draw_steps(episode, panel=_GIF_PANEL)
    # One palette for all, taken from the whole episode: the colours do not flicker.
    palette = Image.fromarray(np.concatenate(pictures)).quantize(256)
    images = [
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures
    ]
    held_ms = [round(1000 / fps)] * len(images)
    held_ms[0] += round(1000 * _FIRST_HELD_S)
    held_ms[-1] += round(1000 * _LAST_HELD_S)
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=held_ms, loop=0
    )


def write_filmstrip(path: Path, episode: EpisodeResult) -> None:
    """Writes a PNG of up to eight frames over time and the goals, with distances and energies.

    The edge of the last frame is green where the goal was reached and red where it was missed.

    Raises:
        ValueError: The episode kept no frames.
    """
    frames, goals = _images(episode)
    last = len(frames) - 1
    steps = np.linspace(0, last, min(_FILM_FRAMES, last + 1)).round().astype(int)
    panel = _FILM_PANEL
    lefts = [_GAP + column * (panel + _GAP) for column in range(len(steps) + len(goals))]
    goal_lefts = lefts[len(steps) :]
    sheet = _Sheet(lefts[-1] + panel + _GAP, _GAP + panel + _FILM_CAPTION)
    lines = [_GAP + panel + below for below in (6, 23, 40)]
    for left, step in zip(lefts, steps, strict=False):
        stage = f": {episode.stage_names[episode.stages[step]]}" if len(goals) > 1 else ""
        sheet.text(left, lines[0], f"step {step}{stage}{_gate_text(episode, step)}", weight="bold")
        sheet.text(left, lines[1], _distance_text(episode, step), color=DISTANCE)
        sheet.text(left, lines[2], _energy_text(episode, step), color=ENERGY)
    verdict, color = _verdict(episode)
    for stage, left in enumerate(goal_lefts):
        sheet.text(left, lines[0], _goal_text(episode, stage), weight="bold")
    sheet.text(goal_lefts[-1], lines[1], verdict, color=color)
    picture = sheet.draw()
    for left, image in zip(lefts, [*frames[steps], *goals], strict=True):
        _paste(picture, image, left, _GAP, panel)
    for left, step in zip(lefts, steps, strict=False):
        if _gate_text(episode, step):
            _edge(picture, left, _GAP, panel, SURPRISED)
    if verdict:
        _edge(picture, lefts[len(steps) - 1], _GAP, panel, color)
    Image.fromarray(picture).save(path, format="PNG")


def draw_steps(episode: EpisodeResult, *, panel: int) -> list[np.ndarray]:
    """Returns one picture a step: camera | present sub-goal | energy so far, under their names.

    A curve of energies ends with its sub-goal, for those to another one do not compare; a dotted
    line marks the step at which the next one took over.

    Args:
        episode: An episode with frames.
        panel: Side of each of the three panels [pixels].

    Returns:
        T + 1 images, uint8 RGB (panel + 36, 3 * panel + 32, 3).

    Raises:
        ValueError: The episode kept no frames.
    """
    frames, goals = _images(episode)
    stages = _stages(episode)
    last = len(frames) - 1
    camera_left, goal_left, curve_left = (_GAP + i * (panel + _GAP) for i in range(3))
    sheet = _Sheet(curve_left + panel + _GAP, _HEADER + panel + _GAP)
    camera_title = sheet.text(camera_left, 8, "", changes=True)
    goal_title = sheet.text(goal_left, 8, "", changes=True)
    energy_title = sheet.text(curve_left, 8, "", color=ENERGY, changes=True)
    distance_title = sheet.text(
        curve_left + panel, 8, "", color=DISTANCE, align="right", changes=True
    )
    energy_axes, distance_axes = sheet.twin_axes(curve_left, _HEADER, panel, last)
    for switch in np.flatnonzero(np.diff(stages)) + 1:
        energy_axes.axvline(float(switch), color=MUTED, linestyle=":", linewidth=1)
    curves = (
        _Curve(sheet, distance_axes, 100 * episode.distances, DISTANCE, width=1.0, from_zero=True),
        _Curve(sheet, energy_axes, episode.energies, ENERGY, width=2.0, stages=stages),
    )
    verdict, color = _verdict(episode)
    pictures = []
    for step, frame in enumerate(frames):
        result = f": {verdict}" if verdict and step == last else ""
        gate = _gate_text(episode, step)
        camera_title.set_text(f"camera, step {step} of {last}{gate}{result}")
        goal_title.set_text(_goal_text(episode, stages[step]))
        energy_title.set_text(_energy_text(episode, step))
        distance_title.set_text(_distance_text(episode, step))
        for curve in curves:
            curve.show_until(step)
        picture = sheet.draw()
        _paste(picture, frame, camera_left, _HEADER, panel)
        _paste(picture, goals[stages[step]], goal_left, _HEADER, panel)
        if gate or result:
            _edge(picture, camera_left, _HEADER, panel, color if result else SURPRISED)
        pictures.append(picture)
    return pictures


class _Sheet:
    """A white page measured in pixels from its top left, with text and axes by matplotlib.

    What never changes is drawn once; `changing` holds what is drawn anew on top of it each time.
    """

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.changing: list[Artist] = []
        self._still = None

    def text(
        self,
        left: int,
        top: int,
        text: str,
        *,
        color: str = INK,
        weight: str = "normal",
        align: str = "left",
        changes: bool = False,
    ) -> Text:
        artist = self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            color=color,
            weight=weight,
            fontsize=8.5,
            ha=align,
            va="top",
            animated=changes,
        )
        if changes:
            self.changing.append(artist)
        return artist

    def twin_axes(self, left: int, top: int, side: int, last: int) -> tuple[Axes, Axes]:
        """Returns axes over steps 0 to `last` in a square: energy on the left, cm on the right."""
        border = 30  # for the numbers
        energy = self.figure.add_axes(
            (
                (left + border) / self.width,
                1 - (top + side - border) / self.height,
                (side - 2 * border) / self.width,
                (side - border - 4) / self.height,
            )
        )
        distance = energy.twinx()
        energy.set_xlim(0, max(last, 1))
        energy.set_xlabel("step", fontsize=7.5, color=MUTED, labelpad=1)
        energy.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        for axes, color in ((energy, ENERGY), (distance, DISTANCE)):
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
            axes.tick_params(axis="y", labelsize=7, colors=color, length=2, pad=2)
            axes.tick_params(axis="x", labelsize=7, colors=MUTED, length=2, pad=2)
            for spine in axes.spines.values():
                spine.set_color(FAINT)
        return energy, distance

    def draw(self) -> np.ndarray:
        """Returns the page as it is now, uint8 RGB (height, width, 3)."""
        if self._still is None:
            self.canvas.draw()
            self._still = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self._still)
        for artist in self.changing:
            self.figure.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


class _Curve:
    """A line that grows with time, in axes that have room for all of it from the start.

    It is broken where `stages` (T + 1,) changes.
    """

    def __init__(
        self,
        sheet: _Sheet,
        axes: Axes,
        values: np.ndarray,
        color: str,
        *,
        width: float,
        from_zero: bool = False,
        stages: np.ndarray | None = None,
    ):
        self.values = values
        self.stages = np.zeros(len(values), int) if stages is None else stages
        if not values.size or not np.isfinite(values).all():
            self.values = np.zeros(0)
            axes.set_yticks([])
        else:
            low, high = 0.0 if from_zero else values.min(), values.max()
            margin = 0.05 * (high - low) or 0.5
            axes.set_ylim(low - margin, high + margin)
        self.line, self.dot = (
            Line2D([], [], color=color, linewidth=width, animated=True, clip_on=False, marker=mark)
            for mark in ("", "o")
        )
        self.dot.set_markersize(2 + 1.5 * width)
        for artist in (self.line, self.dot):
            axes.add_line(artist)
            sheet.changing.append(artist)

    def show_until(self, step: int) -> None:
        now = self.values[: step + 1]
        self.line.set_data(*split_curve(now, self.stages[: len(now)]))
        self.dot.set_data(np.arange(len(now))[-1:], now[-1:])


def split_curve(values: np.ndarray, stages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of a curve over the steps, with a gap (NaN) wherever the stage changes.

    Args:
        values: One number a step (T,).
        stages: The stage of each step (T,).
    """
    breaks = np.flatnonzero(np.diff(stages)) + 1
    steps = np.insert(np.arange(len(values), dtype=float), breaks, np.nan)
    return steps, np.insert(values.astype(float), breaks, np.nan)


def _images(episode: EpisodeResult) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames (T + 1, height, width, 3) and goal images (G, ...) of an episode."""
    if episode.frames is None or episode.goal_images is None:
        raise ValueError(
            f"episode {episode.seed} kept no frames or no goal image, so it cannot be drawn"
        )
    return episode.frames, episode.goal_images


def _stages(episode: EpisodeResult) -> np.ndarray:
    """Returns the stage of every step (T + 1,), 0 for a policy without sub-goals."""
    return episode.stages if episode.stages.size else np.zeros(len(episode.distances), int)


def _goal_text(episode: EpisodeResult, stage: int) -> str:
    """Returns the name of a sub-goal, and which it is of how many."""
    count = len(episode.stage_names)
    return "goal" if count < 2 else f"sub-goal {stage + 1} of {count}: {episode.stage_names[stage]}"


def _energy_text(episode: EpisodeResult, step: int) -> str:
    return f"energy {episode.energies[step]:.3f}" if episode.energies.size else ""


def _gate_text(episode: EpisodeResult, step: int) -> str:
    """Returns what the surprise gate did before a step, nothing where it let the arm go on."""
    verdict = episode.verdicts[step] if step < len(episode.verdicts) else "ok"
    return "" if verdict == "ok" else f" ({verdict})"


def _distance_text(episode: EpisodeResult, step: int) -> str:
    away = 100 * episode.distances[step]
    return f"{away:.1f} cm away" if np.isfinite(away) else ""


def _verdict(episode: EpisodeResult) -> tuple[str, str]:
    """Returns what to say of the end and its colour; nothing where no distance was measured."""
    if not np.isfinite(episode.distances[-1]):
        return "", INK
    return ("reached", REACHED) if episode.success else ("missed", MISSED)


def _paste(picture: np.ndarray, image: np.ndarray, left: int, top: int, side: int) -> None:
    """Scales an image into a square of a picture, keeping its proportions, in the middle."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    top, left = top + (side - height) // 2, left + (side - width) // 2
    picture[top : top + height, left : left + width] = cv2.resize(
        image, (width, height), interpolation=method
    )


def _edge(picture: np.ndarray, left: int, top: int, side: int, color: str, width: int = 4) -> None:
    """Draws a square's edge, inside it."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    square = picture[top : top + side, left : left + side]
    square[:width] = square[-width:] = rgb
    square[:, :width] = square[:, -width:] = rgb
