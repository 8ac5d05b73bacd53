"""Robot-free validation: a number that says, without a robot, whether a model will plan.

    held_out = read_held_out(world, source, camera="exterior", hz=4.0, frames=9, ...)
    validation = measure(world, held_out, ...)
    validation.to_json()["identity_ratio"]

`worldmodel.validation` has the measures; here they are run together on the same windows, as
numbers, pictures and `validation.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from worldmodel.checkpoint import fingerprint
from worldmodel.data.collect import Backend, collect
from worldmodel.data.source import Source, open_source
from worldmodel.embodied import Embodied
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.encode import refuse_wrong_set
from worldmodel.jepa import JEPA
from worldmodel.joined_views import check_cameras, joined
from worldmodel.planners.action_space import POSES
from worldmodel.planners.interfaces import WorldModel
from worldmodel.runs import describe_machine, write_json
from worldmodel.tables import markdown_table
from worldmodel.training import Precision, autocast, select_device
from worldmodel.validation.action_ranking import ActionRanking, action_ranking
from worldmodel.validation.camera_rotation import (
    CameraRotation,
    camera_rotation,
    save_camera_rotation,
)
from worldmodel.validation.energy_argmin import EnergyArgmin, energy_argmin
from worldmodel.validation.held_out import HeldOut, read_held_out
from worldmodel.validation.joint_argmin import JointArgmin, joint_argmin
from worldmodel.validation.latent_errors import LatentErrors, latent_errors
from worldmodel.validation.open_loop import OpenLoop, open_loop
from worldmodel.validation.plots import (
    draw_action_ranking,
    draw_camera_rotation,
    draw_energy_argmin,
    draw_joint_argmin,
    draw_latent_errors,
    draw_open_loop,
    save,
)
from worldmodel.views import camera_names

VALIDATION_FILE = "validation.json"
FRESH_SEED = 7_000_000  # fresh episodes have seeds from here on; those of training are small
FRESH_TASKS = {"reach": 0.5, "pick_and_place": 0.5}
FRESH_BEHAVIOURS = {"noisy": 0.4, "play": 0.4, "explore": 0.2}


@dataclass(frozen=True, eq=False)
class Validation:
    """All measures of one model on the same windows.

    Attributes:
        errors: How well it predicts.
        ranking: Whether it tells the true action from others.
        argmin: How far from the true action its energy is lowest.
        open_loop: Where its plans of several steps lead.
        camera: Whether its moves are turned.
        seed: Of the draws, and of the intervals.
    """

    errors: LatentErrors
    ranking: ActionRanking
    argmin: EnergyArgmin
    open_loop: OpenLoop
    camera: CameraRotation
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers; those that matter most come first."""
        return {
            "identity_ratio": float(self.errors.identity_ratios[0]),
            "shuffled_action_ratio": float(self.errors.shuffled_ratios[0]),
            "argmin_error_cm": self.argmin.error_cm,
            "open_loop_score": self.open_loop.score,
            "action_ranking": self.ranking.to_json(seed=self.seed),
            "latent_errors": self.errors.to_json(seed=self.seed),
            "energy_argmin": self.argmin.to_json(seed=self.seed),
            "open_loop": self.open_loop.to_json(seed=self.seed),
            "camera_rotation": self.camera.to_json(seed=self.seed),
        }

    def pictures(self) -> dict[str, Figure]:
        """Returns a picture of each measure by its name."""
        return {
            "latent_errors": draw_latent_errors(self.errors),
            "action_ranking": draw_action_ranking(self.ranking),
            "energy_argmin": draw_energy_argmin(self.argmin),
            "open_loop": draw_open_loop(self.open_loop),
            "camera_rotation": draw_camera_rotation(self.camera),
        }


@dataclass(frozen=True, eq=False)
class JointValidation:
    """The measures of a model as an arm that speaks in joints knows it.

    Attributes:
        errors: How well it predicts.
        ranking: Whether it tells the true action from others.
        argmin: How far from the true action its energy is lowest.
        seed: Of the draws, and of the intervals.
    """

    errors: LatentErrors
    ranking: ActionRanking
    argmin: JointArgmin
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers; those that matter most come first."""
        return {
            "identity_ratio": float(self.errors.identity_ratios[0]),
            "shuffled_action_ratio": float(self.errors.shuffled_ratios[0]),
            "argmin_error_deg": self.argmin.error_deg,
            "action_ranking": self.ranking.to_json(seed=self.seed),
            "latent_errors": self.errors.to_json(seed=self.seed),
            "joint_argmin": self.argmin.to_json(seed=self.seed),
        }

    def pictures(self) -> dict[str, Figure]:
        """Returns a picture of each measure by its name."""
        return {
            "latent_errors": draw_latent_errors(self.errors),
            "action_ranking": draw_action_ranking(self.ranking),
            "joint_argmin": draw_joint_argmin(self.argmin),
        }


def measure(
    world: WorldModel,
    held_out: HeldOut,
    *,
    horizon: int,
    candidates: int,
    searches: int,
    samples: int,
    iterations: int,
    plan_steps: int,
    seed: int,
    limits: Sequence[float] | None = None,
    distance: str = "l2",
    progress: bool = True,
) -> Validation | JointValidation:
    """Takes all measures of a model; of an arm that speaks in joints those that are not of poses.

    Args:
        world: The model.
        held_out: Windows it was not trained on, of at least `horizon` and `plan_steps` steps.
        horizon: Steps of the latent errors.
        candidates: Actions that are ranked.
        searches: Windows that are searched, for the argmin and for plans.
        samples: Plans per iteration of a search.
        iterations: Its iterations.
        plan_steps: Steps of the plans of the open-loop score.
        seed: Of all draws.
        limits: Half the width of the box that is searched (7,), physical units; None takes it from
            the recordings.
        distance: Of latents, for errors and energies: "l1" or "l2".
        progress: Whether to show progress bars.

    Raises:
        ValueError: A number is out of range, the windows are too short or too few, nothing moves,
            or the model gives NaN.
    """
    errors = latent_errors(world, held_out, horizon=horizon, distance=distance, progress=progress)
    ranking = action_ranking(
        world, held_out, candidates=candidates, seed=seed, distance=distance, progress=progress
    )
    find_argmin = energy_argmin if held_out.space is POSES else joint_argmin
    argmin = find_argmin(
        world,
        held_out,
        windows=searches,
        samples=samples,
        iterations=iterations,
        seed=seed,
        limits=limits,
        distance=distance,
        progress=progress,
    )
    if isinstance(argmin, JointArgmin):
        return JointValidation(errors=errors, ranking=ranking, argmin=argmin, seed=seed)
    return Validation(
        errors=errors,
        ranking=ranking,
        argmin=argmin,
        open_loop=open_loop(
            world,
            held_out,
            windows=searches,
            horizon=plan_steps,
            samples=samples,
            iterations=iterations,
            seed=seed,
            limits=limits,
            distance=distance,
            progress=progress,
        ),
        camera=camera_rotation(argmin.found, argmin.true, argmin.episodes),
        seed=seed,
    )


def validate(
    *,
    world: JEPA,
    embodiment: str,
    device: str,
    source: Source | None,
    run: Path,
    correction: Path,
    camera: str,
    backend: Backend,
    model_hz: float | None,
    episodes: int,
    steps: int,
    windows: int,
    horizon: int,
    candidates: int,
    searches: int,
    samples: int,
    iterations: int,
    plan_steps: int,
    limits: Sequence[float] | None,
    distance: str,
    precision: Precision,
    seed: int,
    description: dict[str, Any],
    progress: bool = True,
) -> Validation | JointValidation:
    """Measures a model and writes `validation.json`, a picture of each measure, and the correction.

    Args:
        world: The model.
        embodiment: Who speaks in the recordings. Of an arm that speaks in joints, plans of several
            steps and the camera's turn are not measured: both are of poses.
        device: Where it computes: "auto", "cpu" or "cuda".
        source: Recordings it was not trained on; None records fresh ones in simulation.
        run: Folder of the results.
        correction: File of the camera rotation, for `planner.camera_rotation`.
        camera: Name of the camera; of all that the model sees, joined by "+".
        backend: Renderer of fresh episodes: "auto", "gl" or "ray".
        model_hz: Rate of the model [Hz], where its checkpoint does not say.
        episodes: Recordings read at most, or made.
        steps: Of each fresh episode.
        windows: Windows at most.
        horizon: See `measure`, as are the following.
        candidates: Actions that are ranked.
        searches: Windows that are searched.
        samples: Plans per iteration of a search.
        iterations: Its iterations.
        plan_steps: Steps of the plans of the open-loop score.
        limits: Half the width of the box that is searched, physical units.
        distance: "l1" or "l2".
        precision: Of the model, see `worldmodel.training.autocast`.
        seed: Of all draws, and of fresh episodes.
        description: The settings, for the JSON.
        progress: Whether to show progress bars.

    Raises:
        KeyError: A recording has no such camera.
        ValueError: The recordings are wrong as a whole, or do not go with the model; or see
            `measure`.
    """
    world = world.to(select_device(device))
    hz = _rate(world, model_hz)
    check_cameras(world, camera)
    own = None if embodiment == END_EFFECTOR else Embodied(joined(world), embodiment)
    if source is None:
        if own is not None:
            raise ValueError(
                f"fresh episodes are of the simulated arm, which speaks in poses; name recordings "
                f"of {embodiment!r} that the model was not trained on: data=..."
            )
        source = fresh_episodes(
            run / "episodes",
            world=world,
            hz=hz,
            camera=camera,
            backend=backend,
            episodes=episodes,
            steps=steps,
            seed=seed,
            progress=progress,
        )
    else:
        refuse_wrong_set(source)
    with torch.inference_mode(), autocast(world.device, precision):
        held_out = read_held_out(
            joined(world),
            source,
            camera=camera,
            hz=hz,
            frames=max(horizon, plan_steps) + 1,
            windows=windows,
            episodes=episodes,
            seed=seed,
            space=POSES if own is None else own.action_space,
            progress=progress,
        )
        found = measure(
            joined(world) if own is None else own,
            held_out,
            horizon=horizon,
            candidates=candidates,
            searches=searches,
            samples=samples,
            iterations=iterations,
            plan_steps=plan_steps,
            seed=seed,
            limits=limits,
            distance=distance,
            progress=progress,
        )
    recordings = f"{source.path.name}, {len(set(held_out.episodes.tolist()))} episodes"
    model = fingerprint(world)
    write_json(
        run / VALIDATION_FILE,
        {
            **found.to_json(),
            "model": model,
            "recordings": recordings,
            "settings": description,
            "machine": describe_machine(),
        },
    )
    write_pictures(found, run)
    if isinstance(found, Validation):
        correction.parent.mkdir(parents=True, exist_ok=True)
        save_camera_rotation(
            found.camera, correction, model=model, camera=camera, recordings=recordings, seed=seed
        )
    return found


def fresh_episodes(
    folder: Path,
    *,
    world: JEPA,
    hz: float,
    camera: str,
    backend: Backend,
    episodes: int,
    steps: int,
    seed: int,
    progress: bool = True,
) -> Source:
    """Records episodes of the simulated arm with seeds that no training set has.

    What is there already is not recorded again. Arguments are those of `validate`.
    """
    collect(
        folder,
        episodes=episodes,
        tasks=FRESH_TASKS,
        steps=steps,
        behaviours=FRESH_BEHAVIOURS,
        seed=FRESH_SEED + seed,
        image_size=world.image_size,
        cameras=camera_names(camera),
        backends=(backend,),
        control_hz=hz,
        progress=progress,
    )
    return open_source(folder)


def write_pictures(found: Validation | JointValidation, folder: Path) -> list[Path]:
    """Writes one PNG of each measure into a folder and returns the files."""
    return [save(figure, folder / f"{name}.png") for name, figure in found.pictures().items()]


def validation_table(numbers: dict[str, Any]) -> str:
    """Returns the content of `validation.json` as a table: what was measured, and what is bad."""
    errors, ranking = numbers["latent_errors"], numbers["action_ranking"]
    last = errors["horizon"]
    rows: list[list[object]] = [
        [
            "error / that of no change, 1 step",
            f"{numbers['identity_ratio']:.3f}",
            _interval(errors["identity_ratio_95"], ".3f"),
            "1",
        ],
        [f"the same, {last} steps", f"{errors['identity_ratios'][-1]:.3f}", None, "1"],
        [
            "error / that with wrong actions, 1 step",
            f"{numbers['shuffled_action_ratio']:.3f}",
            _interval(errors["shuffled_ratio_95"], ".3f"),
            "1",
        ],
        [f"the same, {last} steps", f"{errors['shuffled_ratios'][-1]:.3f}", None, "1"],
        [
            f"true action first among {ranking['candidates']}",
            f"{ranking['top1']:.1%}",
            _interval(ranking["top1_95"], ".1%"),
            f"{ranking['chance_top1']:.1%}",
        ],
        ["its mean rank", f"{ranking['mean_rank']:.2f}", None, ranking["chance_mean_rank"]],
        *(_joint_rows(numbers) if "joint_argmin" in numbers else _pose_rows(numbers)),
    ]
    return markdown_table(["", "value", "95 %", "worthless"], rows)


def _joint_rows(numbers: dict[str, Any]) -> list[list[object]]:
    argmin = numbers["joint_argmin"]
    return [
        [
            "lowest energy off by, a joint [degrees]",
            f"{argmin['error_deg']:.2f}",
            _interval(argmin["error_deg_95"], ".2f"),
            f"{argmin['still_error_deg']:.2f} (no move)",
        ],
        [
            "joint by joint [degrees]",
            ", ".join(f"{off:.1f}" for off in argmin["mean_absolute_deg"]),
            None,
            ", ".join(f"{off:.1f}" for off in argmin["still_mean_absolute_deg"]),
        ],
        ["gripper, of 1", f"{argmin['gripper']:.2f}", None, None],
    ]


def _pose_rows(numbers: dict[str, Any]) -> list[list[object]]:
    argmin, plans, turn = (
        numbers[name] for name in ("energy_argmin", "open_loop", "camera_rotation")
    )
    offsets = argmin["mean_absolute"]
    axes = ", ".join(f"{offsets[f'{axis}_cm']:.2f}" for axis in "xyz")
    turns = ", ".join(f"{offsets[f'{axis}_deg']:.1f}" for axis in ("roll", "pitch", "yaw"))
    return [
        [
            "lowest energy off by [cm]",
            f"{argmin['error_cm']:.2f}",
            _interval(argmin["error_cm_95"], ".2f"),
            f"{argmin['still_error_cm']:.2f} (no move)",
        ],
        ["along x, y, z [cm]", axes, None, None],
        ["about x, y, z [degrees]", turns, None, None],
        ["gripper, of 1", f"{argmin['gripper']:.2f}", None, None],
        [
            f"open-loop score, {plans['horizon']} steps",
            f"{plans['score']:.1f}",
            _interval(plans["score_95"], ".1f"),
            f"{plans['still_score']:.1f} (no move), best 80",
        ],
        [
            "moves turned by [degrees]",
            f"{turn['angle_deg']:+.1f}",
            _interval(turn["angle_deg_95"], "+.1f"),
            f"condition {turn['condition']:.2f}",
        ],
    ]


def _interval(bounds: Sequence[float], form: str) -> str:
    return f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def _rate(world: JEPA, model_hz: float | None) -> float:
    if world.control_hz is None and model_hz is None:
        raise ValueError(
            "the checkpoint states no control rate; say the one it was trained at: model_hz=..."
        )
    if world.control_hz is not None and model_hz not in (None, world.control_hz):
        raise ValueError(
            f"model_hz={model_hz:g}, but the checkpoint was trained at {world.control_hz:g} Hz; "
            "leave model_hz out"
        )
    hz = model_hz if world.control_hz is None else world.control_hz
    assert hz is not None
    return hz
