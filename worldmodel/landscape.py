"""The energy landscape of one imagined step: what does the model make of every small move?

Two frames with poses are enough. From the first the model imagines one step of every move on a grid
over (dx, dy, dz), rotation and gripper left alone, and the energy of a move is how far the imagined
latents are from those of the second frame. A model that a planner can use has its lowest energy
near the move that was really made, and slopes that lead there.

Source: V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985, the energy landscapes of its planning
section), where the axes are 7.5 cm to each side.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldmodel import envs
from worldmodel.data.source import Source
from worldmodel.envs.cameras import Backend
from worldmodel.images import fit_frames
from worldmodel.jepa import JEPA
from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.interfaces import Observation, WorldModel
from worldmodel.planners.scoring import score_plans
from worldmodel.pose import ACTION_SIZE, GRIPPER, PROPRIO_SIZE, ROTATION, action_between
from worldmodel.runs import describe_machine, write_json
from worldmodel.video import DISTANCE, ENERGY, FAINT, INK, MUTED
from worldmodel.views import camera_names, check_views, side_by_side, together

AXES = ("dx", "dy", "dz")
KEYS = ("observations", "states")  # of a pair in an .npz file

_CUT_POINTS = 25
_PLANS_AT_ONCE = 64
_COLORS = LinearSegmentedColormap.from_list(
    "energy", ["#172554", "#1d4ed8", "#60a5fa", "#bfdbfe", "#eff6ff"]
)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two frames and the arm's state at each.

    Attributes:
        frames: RGB uint8 (2, height, width, 3), before and after; of several cameras
            (2, V, height, width, 3).
        proprio: (2, 7): x, y, z [m], roll, pitch, yaw [rad], gripper in [0, 1].
        name: Where they come from, for people.
    """

    frames: np.ndarray
    proprio: np.ndarray
    name: str

    def __post_init__(self) -> None:
        """Refuses wrong shapes, degrees, and a gripper outside [0, 1]."""
        _check_pair(self.frames, self.proprio, name=self.name)


@dataclass(frozen=True, eq=False)
class Landscape:
    """Energies around the first of two frames; deltas in metres.

    Attributes:
        frames: The pair, RGB uint8 (2, height, width, 3), or (2, V, height, width, 3).
        axis: Values (points,) that each of dx, dy, dz takes on the grid.
        energies: (points, points, points) over dx, dy, dz; rotation and gripper are zero.
        true_action: (7,) what was done between the frames.
        true_energy: Energy of exactly that, whether or not it lies within the grid.
        still_energy: Energy of no action.
        cut_axes: (3, n) values of dx, dy, dz along which the landscape is cut.
        cut_energies: (3, n) energy of the true action with that one value in place of its own.
    """

    frames: UInt8[np.ndarray, "2 *views height width 3"]
    axis: Float[np.ndarray, " points"]
    energies: Float[np.ndarray, "points points points"]
    true_action: Float[np.ndarray, "7"]
    true_energy: float
    still_energy: float
    cut_axes: Float[np.ndarray, "3 n"]
    cut_energies: Float[np.ndarray, "3 n"]

    @property
    def argmin(self) -> np.ndarray:
        """The move (3,) [m] of lowest energy on the grid."""
        return self.axis[list(np.unravel_index(np.argmin(self.energies), self.energies.shape))]

    @property
    def true_rank(self) -> int:
        """1 + the number of grid points whose energy is lower than the true action's."""
        return 1 + int((self.energies < self.true_energy).sum())

    @property
    def relief(self) -> float:
        """How far the lowest grid point lies below the highest, as a share of the highest.

        Near zero the model hardly minds which move is made, wherever the lowest point lies.
        """
        return float(1 - self.energies.min() / self.energies.max())


@torch.inference_mode()
def energy_landscape(
    world: WorldModel,
    frames: UInt8[np.ndarray, "2 *views height width 3"],
    proprio: Float[np.ndarray, "2 7"],
    *,
    limit: float = 0.075,
    points: int = 5,
    true_action: np.ndarray | None = None,
) -> Landscape:
    """Returns the energy of one imagined step from the first frame, over a grid of moves.

    Args:
        world: The world model; one of several cameras as `worldmodel.joined_views.joined` gives it.
        frames: RGB before and after; of the model's size, or one that its `crop` can bring to it.
        proprio: The arm's state before and after.
        limit: The grid spans -limit to +limit on each axis [m].
        points: Grid points on each axis.
        true_action: What was done between the frames (7,); None takes it from `proprio`.

    Raises:
        ValueError: The pair, the limit or the points make no sense, or an energy is NaN.
    """
    _check_pair(frames, proprio, name="the pair")
    if not 0 < limit < np.inf or points < 2:
        raise ValueError(
            f"expected a positive limit [m] and at least 2 points, got {limit} and {points}"
        )
    if true_action is None:
        true_action = action_between(proprio[0].astype(float), proprio[1].astype(float))
    if true_action.shape != (ACTION_SIZE,) or not np.isfinite(true_action).all():
        raise ValueError(f"true_action must be {ACTION_SIZE} finite numbers, got {true_action}")

    axis = np.linspace(-limit, limit, points)
    grid = np.zeros((points**3, ACTION_SIZE))
    grid[:, :3] = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    cut_axes = np.stack([_cut_axis(limit, value) for value in true_action[:3]])
    cuts = np.tile(true_action, (3, _CUT_POINTS, 1))
    for i in range(3):
        cuts[i, :, i] = cut_axes[i]
    still = np.zeros(ACTION_SIZE)
    actions = np.concatenate([grid, cuts.reshape(-1, ACTION_SIZE), true_action[None], still[None]])

    latents = world.encode(torch.from_numpy(frames)[None])  # (1, 2, N, D)
    state = torch.from_numpy(proprio[None, :1].astype(np.float32)).to(latents.device)
    energies = score_plans(
        world,
        LatentEnergy(),
        Observation(
            latents=latents[:, :1],
            proprio=state,
            past_actions=state.new_zeros(1, 0, ACTION_SIZE),
        ),
        latents[:, 1],
        torch.from_numpy(actions.astype(np.float32)).to(latents.device)[None, :, None],
        chunk_size=_PLANS_AT_ONCE,
    )[0]
    values = energies.cpu().numpy().astype(np.float64)  # (points^3 + 3 n + 2,)
    return Landscape(
        frames=frames,
        axis=axis,
        energies=values[: points**3].reshape(points, points, points),
        true_action=true_action,
        true_energy=float(values[-2]),
        still_energy=float(values[-1]),
        cut_axes=cut_axes,
        cut_energies=values[points**3 : -2].reshape(3, _CUT_POINTS),
    )


def _cut_axis(limit: float, true: float) -> np.ndarray:
    """Returns values from -limit to limit, and a little past the true one if it lies outside."""
    beyond = 1.2 * true if abs(true) > limit else 0.0
    return np.linspace(min(-limit, beyond), max(limit, beyond), _CUT_POINTS)


def read_pair(path: str | Path) -> Pair:
    """Reads two frames with poses from an .npz file.

    Its keys are `observations`, RGB uint8 (1, 2, height, width, 3), and `states`, float (1, 2, 7):
    x, y, z [m], roll, pitch, yaw [rad, extrinsic xyz], gripper in [0, 1]. It is the layout of the
    Franka example that is published beside V-JEPA 2-AC. Of several cameras `observations` is
    (1, 2, V, height, width, 3).

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: A key is missing.
        ValueError: The file is no .npz file, or what it holds has another shape, type or unit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no pair of frames at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete .npz file; write one with numpy.savez")
    with np.load(path) as arrays:
        for key in KEYS:
            if key not in arrays:
                raise KeyError(
                    f"{path} has no array '{key}', it has {arrays.files}; expected "
                    "'observations' (1, 2, height, width, 3) and 'states' (1, 2, 7)"
                )
        frames, states = (arrays[key] for key in KEYS)
    for key, array, shape, dimensions in (
        ("observations", frames, (1, 2, "height", "width", 3), (5, 6)),
        ("states", states, (1, 2, PROPRIO_SIZE), (3,)),
    ):
        if array.ndim not in dimensions or array.shape[:2] != (1, 2):
            raise ValueError(
                f"'{key}' in {path} must have shape ({', '.join(map(str, shape))}): one episode "
                f"of two frames; got {array.shape}"
            )
    return Pair(frames=frames[0], proprio=states[0], name=path.name)


def recorded_pair(
    source: Source, episode_id: int, rows: tuple[int, int], *, camera: str | None = None
) -> Pair:
    """Returns two frames of an episode of any recording.

    Args:
        source: The recordings.
        episode_id: Which episode.
        rows: Numbers of the two frames, from 0.
        camera: Name of the camera, or several joined by "+"; None takes the episode's first.

    Raises:
        KeyError: There is no such episode or camera.
        ValueError: There are no such rows, what they hold makes no sense, or the cameras differ in
            size.
    """
    episode = source.read(episode_id)
    camera = next(iter(episode.frames)) if camera is None else camera
    cameras = camera_names(camera)
    sizes = {name: frames.shape[1:3] for name, frames in episode.frames.items()}
    check_views(sizes, cameras, name=f"episode {episode_id}")
    length = len(episode.proprio)
    if rows[0] == rows[1] or not all(0 <= row < length for row in rows):
        raise ValueError(
            f"expected two different rows from 0 to {length - 1} of episode {episode_id}, got "
            f"{rows[0]} and {rows[1]}"
        )
    views = [episode.frames[name][np.array(rows)] for name in cameras]
    return Pair(
        frames=np.stack([together(moment) for moment in zip(*views, strict=True)]),
        proprio=episode.proprio[list(rows)],
        name=f"{source.path.name}, episode {episode_id}, {camera}, rows {rows[0]} and {rows[1]}",
    )


def simulated_pair(
    *,
    image_size: int,
    seed: int = 0,
    move: tuple[float, float, float] = (0.05, 0.04, -0.03),
    camera: str = "exterior",
    backend: Backend = "auto",
    control_hz: float = 4.0,
) -> Pair:
    """Returns the first frame of an episode of the reach task and the one after a known move.

    Args:
        image_size: Side of the frames [pixels].
        seed: Seed of the episode.
        move: What the arm is told to do in its first step, dx, dy, dz, at most 0.075 each [m].
        camera: Which camera is seen; several joined by "+".
        backend: Renderer: "auto", "gl" or "ray".
        control_hz: Steps per second.
    """
    env = envs.make(
        "reach", image_size=image_size, camera=camera, backend=backend, control_hz=control_hz
    )
    before, _ = env.reset(seed=seed)
    after, *_ = env.step(np.array([*move, 0.0, 0.0, 0.0, 0.0]))
    env.close()
    return Pair(
        frames=np.stack([before["image"], after["image"]]),
        proprio=np.stack([before["proprio"], after["proprio"]]),
        name=f"simulated reach, seed {seed}",
    )


def fit_pair(pair: Pair, world: JEPA) -> Pair:
    """Returns a pair that the model takes, and says in its name what was done to the frames.

    A model that states a crop cuts and resizes frames by itself. One that states none takes frames
    of its own size only; for those the middle square is resized here.
    """
    size = world.image_size
    height, width = pair.frames.shape[-3:-1]
    if world.crop != "none" or (height, width) == (size, size):
        return pair
    fitted = fit_frames(pair.frames.reshape(-1, height, width, 3), size, "square")
    return replace(
        pair,
        frames=fitted.reshape(*pair.frames.shape[:-3], size, size, 3),
        name=f"{pair.name}, middle square of {width} x {height} resized to {size} x {size} pixels",
    )


def summary(landscape: Landscape) -> str:
    """Returns the outcome in three lines of text."""
    return (
        f"true move   {_in_cm(landscape.true_action)} cm, energy {landscape.true_energy:.4f} "
        f"(no action {landscape.still_energy:.4f})\n"
        f"lowest at   {_in_cm(landscape.argmin)} cm, energy {landscape.energies.min():.4f}, "
        f"{100 * landscape.relief:.1f} % below the highest on the grid\n"
        f"{landscape.true_rank - 1} of {landscape.energies.size} grid points have a lower energy "
        "than the true move"
    )


def write_landscape(
    landscape: Landscape, folder: Path, *, model: str = "", pair: str = ""
) -> tuple[Path, Path]:
    """Writes `landscape.json` and `landscape.png`.

    Args:
        landscape: What was measured.
        folder: Where to write; made if it is not there.
        model: Name of the model.
        pair: Name of the pair.

    Returns:
        The paths of both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers, picture = folder / "landscape.json", folder / "landscape.png"
    write_json(
        numbers,
        {
            "model": model,
            "pair": pair,
            "axes": {name: landscape.axis.tolist() for name in AXES},
            "energies": landscape.energies.tolist(),
            "argmin": landscape.argmin.tolist(),
            "min_energy": float(landscape.energies.min()),
            "relief": landscape.relief,
            "true_action": landscape.true_action.tolist(),
            "true_energy": landscape.true_energy,
            "true_rank": landscape.true_rank,
            "no_action_energy": landscape.still_energy,
            "cuts": {
                name: {"values": values.tolist(), "energies": energies.tolist()}
                for name, values, energies in zip(
                    AXES, landscape.cut_axes, landscape.cut_energies, strict=True
                )
            },
            "machine": describe_machine(),
        },
    )
    figure = draw_landscape(landscape, model=model, pair=pair)
    figure.savefig(picture, format="png", metadata={"Software": None})
    return numbers, picture


def draw_landscape(landscape: Landscape, *, model: str = "", pair: str = "") -> Figure:
    """Draws the two frames, three projections of the grid, and a cut along each axis.

    A projection shows the minimum over its third axis; dark is low energy.

    Args:
        landscape: What was measured.
        model: Name of the model, for the title.
        pair: Name of the pair, for the title.
    """
    figure = Figure(figsize=(11, 6.2), dpi=100, layout="constrained", facecolor="white")
    cells = figure.subplots(2, 4)
    frames, projections, cuts = cells[:, 0], cells[0, 1:], cells[1, 1:]
    for axes in cuts[1:]:
        axes.sharey(cuts[0])  # a flat cut must look flat
        axes.tick_params(labelleft=False)
    for axes, frame, title in zip(
        frames, landscape.frames, ("before", "after: the goal"), strict=True
    ):
        axes.imshow(side_by_side(frame), interpolation="antialiased")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_axis_off()
    planes = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    meshes = [
        _plot_projection(axes, landscape, *plane)
        for axes, plane in zip(projections, planes, strict=True)
    ]
    bar = figure.colorbar(meshes[0], ax=projections, pad=0.01, aspect=18)
    bar.set_label("energy", fontsize=8.5, color=MUTED)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]  (a spine, typed as a method)
    for i, axes in enumerate(cuts):
        _plot_cut(axes, landscape, i)
    cuts[0].set_ylabel("energy", fontsize=8.5, color=MUTED)
    figure.suptitle(
        "Energy of one imagined step: the lowest point of the grid lies "
        f"{100 * landscape.relief:.1f} % below the highest\n"
        + ", ".join(filter(None, (model, pair))),
        x=0.01,
        ha="left",
        fontsize=10,
        color=INK,
    )
    handles = [*projections[0].lines, *cuts[0].lines]
    named = [line for line in handles if not str(line.get_label()).startswith("_")]
    figure.legend(
        handles=named, loc="outside lower center", ncols=len(named), frameon=False, fontsize=8.5
    )
    return figure


def _plot_projection(axes: Axes, landscape: Landscape, i: int, j: int, k: int) -> QuadMesh:
    """Draws the minimum over axis k; axis i < j to the right, axis j upward."""
    grid, true, lowest = (
        100 * values for values in (landscape.axis, landscape.true_action, landscape.argmin)
    )
    mesh = axes.pcolormesh(
        grid,
        grid,
        landscape.energies.min(axis=k).T,  # rows are axis j
        cmap=_COLORS,
        vmin=landscape.energies.min(),
        vmax=landscape.energies.max(),
        edgecolors="white",
        linewidth=4 / len(grid),
    )
    axes.plot(
        lowest[i],
        lowest[j],
        "o",
        color="white",
        markeredgecolor=INK,
        markersize=10,
        label="lowest on the grid",
    )
    axes.plot(
        true[i], true[j], "X", color=DISTANCE, markeredgecolor="white", ms=9, label="true move"
    )
    edge = grid[-1] + (grid[1] - grid[0]) / 2
    limits = min(-edge, 1.1 * true[:3].min()), max(edge, 1.1 * true[:3].max())
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title(f"minimum over {AXES[k]}", loc="left", fontsize=10)
    axes.set_xlabel(f"{AXES[i]} [cm]", fontsize=8.5, color=MUTED)
    axes.set_ylabel(f"{AXES[j]} [cm]", fontsize=8.5, color=MUTED, labelpad=1)
    _quieten(axes)
    return mesh


def _plot_cut(axes: Axes, landscape: Landscape, i: int) -> None:
    """Draws the energy along axis i, through the true action."""
    true = 100 * landscape.true_action[i]
    axes.axhline(
        landscape.still_energy,
        color=MUTED,
        linestyle=(0, (6, 4)),
        linewidth=0.9,
        label="energy of no action",
    )
    axes.axvline(true, color=DISTANCE, linewidth=0.9, alpha=0.6)
    axes.plot(
        100 * landscape.cut_axes[i],
        landscape.cut_energies[i],
        color=ENERGY,
        linewidth=2,
        label="energy along one axis through the true move",
    )
    axes.plot(true, landscape.true_energy, "X", color=DISTANCE, markeredgecolor="white", ms=9)
    axes.set_title(f"cut along {AXES[i]}", loc="left", fontsize=10)
    axes.set_xlabel(f"{AXES[i]} [cm]", fontsize=8.5, color=MUTED)
    axes.margins(x=0.02)
    axes.grid(color=FAINT, linewidth=0.4)
    _quieten(axes)


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=8, colors=MUTED, length=2)


def _in_cm(move: np.ndarray) -> str:
    return "(" + ", ".join(f"{100 * value:+.1f}" for value in move[:3]) + ")"


def _check_pair(frames: np.ndarray, proprio: np.ndarray, *, name: str) -> None:
    is_pair = frames.ndim in (4, 5) and (len(frames), frames.shape[-1]) == (2, 3)
    if frames.dtype != np.uint8 or not is_pair:
        raise ValueError(
            f"{name}: expected two RGB frames, uint8 (2, height, width, 3), got {frames.dtype} "
            f"{frames.shape}"
        )
    if proprio.shape != (2, PROPRIO_SIZE) or not np.issubdtype(proprio.dtype, np.floating):
        raise ValueError(
            f"{name}: expected states of two frames, float (2, {PROPRIO_SIZE}): x, y, z, roll, "
            f"pitch, yaw, gripper; got {proprio.dtype} {proprio.shape}"
        )
    if not np.isfinite(proprio).all():
        raise ValueError(f"{name}: the states are not finite: {proprio.tolist()}")
    angle = float(np.abs(proprio[:, ROTATION]).max())
    if angle > np.float32(np.pi):
        raise ValueError(
            f"{name}: an angle of the states is {angle:.4g}; expected radians within [-pi, pi]"
            + ("; these look like degrees: use numpy.radians" if angle > 2 * np.pi else "")
        )
    gripper = proprio[:, GRIPPER][:, 0]
    if gripper.min() < 0 or gripper.max() > 1:
        raise ValueError(
            f"{name}: the gripper goes from {gripper.min():.4g} to {gripper.max():.4g}; expected "
            "0 (open) to 1 (closed), not metres or percent"
        )
