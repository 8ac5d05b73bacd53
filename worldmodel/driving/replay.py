"""A recorded decision, made again from the recording and explained.

The recording holds all that a search depends on: the picture, the pose, the actions that were under
way, the state of the noise and the warm start. So on the same machine, with the same weights, the
search finds the same plan to the last bit; and what it chose can be put beside what it did not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.driving.calibration import ModelFrame
from worldmodel.envs.robots.recording import Recording, find_recordings, read_recording
from worldmodel.envs.robots.recording_format import PlanRecord
from worldmodel.images import Crop, fit_views
from worldmodel.planners.interfaces import Cost, Proposer
from worldmodel.planners.mpc import MPC
from worldmodel.planners.scoring import score_plans
from worldmodel.pose import POSITION
from worldmodel.tables import markdown_table
from worldmodel.training import Precision, autocast
from worldmodel.video import ENERGY, FAINT, INK, MUTED
from worldmodel.views import side_by_side

FLIGHT = "flight"  # folder of the recording in the folder of a drive
BEFORE_TRIP_S = 2.0
LEAST_SHOWN_CM = 2.0  # of what the drawings of places show, however little moves


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing that could have been done, as the model imagines it.

    Attributes:
        name: "plan", what was chosen; "stay"; "proposal", what the state head would do.
        move: (7,) the sum of its actions, robot's base frame.
        cost: that the search gives it.
        end: (7,) where the state head sees the arm in what is imagined; None without a head.
    """

    name: str
    move: Float[np.ndarray, "7"]
    cost: float
    end: Float[np.ndarray, "7"] | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """A decision that was made again.

    Attributes:
        record: as it was recorded.
        again: (H, 7) the plan found now, to be compared with `record.actions`.
        candidates: what it was chosen from: plan, stay, and proposal where there is a state head.
        frame: the picture that it was made from, as the model sees it, of each camera.
        goal: the goal image, as the model sees it.
        here: (7,) where the plan begins: measured, moved on by what was under way.
        goal_read: (7,) where the state head sees the arm in the goal; None without a head.
    """

    record: PlanRecord
    again: Float[np.ndarray, "horizon 7"]
    candidates: tuple[Candidate, ...]
    frame: UInt8[np.ndarray, "*views height width 3"]
    goal: UInt8[np.ndarray, "*views height width 3"]
    here: Float[np.ndarray, "7"]
    goal_read: Float[np.ndarray, "7"] | None

    @property
    def same(self) -> bool:
        """Whether it is the same plan, to the last bit."""
        return np.array_equal(self.again, self.record.actions)

    def table(self) -> str:
        """Returns the candidates, the cheapest first."""
        stay = next(c.cost for c in self.candidates if c.name == "stay")
        rows = []
        for one in sorted(self.candidates, key=lambda candidate: candidate.cost):
            move = ", ".join(f"{100 * x:+.1f}" for x in one.move[POSITION])
            end = "" if one.end is None else _in_cm(one.end)
            saved = 100 * (stay - one.cost) / stay if stay else 0.0
            rows.append((one.name, f"{one.cost:.5f}", f"{saved:+.1f} %", move, end))
        header = ("choice", "cost", "below staying", "move x, y, z [cm]", "seen to end at [cm]")
        return markdown_table(header, rows)


@torch.inference_mode()
def explain(
    controller: MPC,
    record: PlanRecord,
    goal: UInt8[np.ndarray, "*views height width 3"],
    *,
    frame: ModelFrame,
    image_size: int,
    crop: Crop,
    precision: Precision,
) -> Explanation:
    """Makes a decision again.

    Args:
        controller: of one arm, as it was; its goal is set here. Its search must be one that has a
            `cost`, and without a deadline.
        record: of the decision.
        goal: image of the record's goal, as the model sees it.
        frame: how the model's axes lay in the robot's base frame.
        image_size: of the model.
        crop: of the model.
        precision: that the model computed in.
    """
    moments = zip(record.frames, *record.other_views, strict=True)
    images = np.stack([fit_views(pictures, image_size, crop) for pictures in moments])
    proprio = np.stack([frame.to_model(p) for p in record.proprio]).astype(np.float32)
    world, search = controller.world, controller.planner
    with autocast(controller.device, precision):
        controller.set_goal(goal)
        observation, there = controller.problem(
            images, proprio, committed=frame.actions_to_model(record.committed)
        )
        generator = torch.Generator()
        if record.generator_state is None:
            generator.manual_seed(record.seed)
        else:
            generator.set_state(torch.from_numpy(record.generator_state.copy()))
        warm = record.warm_start
        again = search.plan(
            world,
            observation,
            there,
            bounds=controller.plan_bounds,
            warm_start=None if warm is None else torch.from_numpy(warm)[None].to(there.device),
            generator=[generator],
        )
        horizon = len(record.actions)
        choices = {"plan": np.asarray(record.actions, np.float32)}
        choices["stay"] = np.zeros_like(choices["plan"])
        head = getattr(world, "state_head", None)
        if head is not None and isinstance(world, Proposer):
            proposed = world.propose(observation.latents[:, -1], observation.proprio[:, -1], there)
            low, high = (b.cpu() for b in (controller.plan_bounds.low, controller.plan_bounds.high))
            each = (proposed[0].float().cpu() / horizon).clamp(low, high).numpy()
            choices["proposal"] = np.tile(each, (horizon, 1))
        plans = torch.from_numpy(np.stack(list(choices.values())))[None].to(observation.proprio)
        cost = cast(Cost, search.cost)  # type: ignore[attr-defined]
        scores = score_plans(world, cost, observation, there, plans)[0].float().cpu().tolist()
        past = observation.past_actions[:, None].expand(-1, plans.shape[1], -1, -1)
        imagined = world.rollout(
            observation.latents, observation.proprio, torch.cat([past, plans], dim=2)
        )[0, :, -1]  # (S, N, D)
        ends = None if head is None else head(imagined).cpu().numpy()
        read = None if head is None else head(there)[0].cpu().numpy()
    return Explanation(
        record=record,
        again=again.actions[0].float().cpu().numpy(),
        candidates=tuple(
            Candidate(
                name=name,
                move=frame.actions_to_robot(actions.sum(0)[None])[0],
                cost=scores[k],
                end=None if ends is None else frame.to_robot(ends[k]),
            )
            for k, (name, actions) in enumerate(choices.items())
        ),
        frame=images[-1],
        goal=goal,
        here=frame.to_robot(observation.proprio[0, -1].float().cpu().numpy()),
        goal_read=None if read is None else frame.to_robot(read),
    )


def draw(explanation: Explanation) -> Figure:
    """Draws what was seen, the goal, where each choice leads from above and aside, and its cost."""
    figure = Figure(figsize=(13, 3.4), dpi=100, layout="constrained", facecolor="white")
    cells = figure.subplots(1, 5)
    for axes, image, title in zip(
        cells, (explanation.frame, explanation.goal), ("what the camera saw", "goal"), strict=False
    ):
        axes.imshow(side_by_side(image))
        axes.set_title(title, color=INK, fontsize=10)
        axes.set_axis_off()
    _draw_places(cells[2], explanation, 0, 1)
    _draw_places(cells[3], explanation, 0, 2)
    names = [candidate.name for candidate in explanation.candidates]
    costs = [candidate.cost for candidate in explanation.candidates]
    colours = [ENERGY if name == "plan" else FAINT for name in names]
    cells[4].barh(names, costs, color=colours)
    cells[4].invert_yaxis()
    cells[4].set_title("imagined cost", color=INK, fontsize=10)
    for axes in cells[2:]:
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_places(axes: Axes, explanation: Explanation, i: int, j: int) -> None:
    places = [explanation.here]

    def mark(place: np.ndarray, label: str, marker: str, colour: str) -> None:
        places.append(place)
        axes.plot(100 * place[i], 100 * place[j], marker, color=colour, markersize=8, label=label)

    mark(explanation.here, "arm", "o", INK)
    if explanation.goal_read is not None:
        mark(explanation.goal_read, "goal as read", "*", ENERGY)
    for one, marker in zip(explanation.candidates, "s^v", strict=False):
        if one.end is not None:
            mark(one.end, f"{one.name}, imagined", marker, MUTED)
        places.append(explanation.here + one.move)
        axes.plot(
            *(100 * np.array([places[0][k], places[-1][k]]) for k in (i, j)),
            color=ENERGY if one.name == "plan" else FAINT,
        )
    shown = 100 * np.array(places)[:, [i, j]]  # (n, 2)
    half = 0.6 * max(float(np.ptp(shown, axis=0).max()), LEAST_SHOWN_CM)
    x, y = (shown.min(0) + shown.max(0)) / 2
    axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")
    axes.set_title(f"{'xyz'[i]} and {'xyz'[j]} [cm]", color=INK, fontsize=10)
    axes.legend(fontsize=6, frameon=False)


def open_drive(folder: Path, *, trip: int | None) -> Recording:
    """Reads the recording of a drive.

    Args:
        folder: of the drive, of its recording, or of one trip.
        trip: number of the trip, from 1; None is the last thing that was kept.

    Raises:
        FileNotFoundError: there is no recording.
        ValueError: there is no such trip.
    """
    if (folder / "trip.json").is_file():
        return read_recording(folder)
    flight = folder / FLIGHT if (folder / FLIGHT).is_dir() else folder
    found = find_recordings(flight) if flight.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no recording in {folder}; it is the folder that a drive wrote")
    if trip is None:
        return read_recording(found[-1])
    chosen = [path for path in found if path.name.startswith(f"{trip:06d}")]
    if not chosen:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"no trip {trip} in {folder}; there are {names}")
    return read_recording(chosen[0])


def what_happened(recording: Recording) -> str | None:
    """Returns what tripped and the two seconds before it as a table; None when nothing did."""
    trips = list(recording.of("trip"))
    if not trips:
        return None
    first = trips[0]
    end = float(first["at"])
    rows = list(_rows(recording, since=end - BEFORE_TRIP_S, end=end))
    header = ("s", "state", "picture [ms]", "tool x, y, z [cm]", "command", "answer")
    reasons = "; ".join(f"{one['reason']} at {float(one['at']):.2f} s" for one in trips)
    return f"tripped: {reasons}\n\n{markdown_table(header, rows)}"


def _rows(recording: Recording, *, since: float, end: float) -> Iterator[tuple[str, ...]]:
    row: list[str] | None = None
    for event in recording.events:
        at = float(event["at"])
        if not since <= at <= end:
            continue
        if event["event"] == "observation":
            if row is not None:
                yield tuple(row)
            ages = [
                f"{1000 * (at - float(f['captured_at'])):.0f}" for f in event["frames"].values()
            ]
            where = _in_cm(np.array(event["proprio"], dtype=float))
            row = [f"{at - end:+.2f}", event["state"], " ".join(ages), where, "", ""]
        elif row is not None and event["event"] == "command":
            row[4] = _command(event) + row[4]
        elif row is not None and event["event"] == "ack":
            row[5] = event["reason"] or " ".join(["taken", *event["clamped"]])
        elif row is not None and event["event"] == "plan":
            row[4] += f" (plan of observation {event['obs_seq']})"
    if row is not None:
        yield tuple(row)


def _command(event: dict[str, Any]) -> str:
    values = event["values"]
    if event["kind"] == "twist" and isinstance(values, list) and len(values) == 6:
        speed = 100 * np.linalg.norm([float(value) for value in values[:3]])
        return f"twist {speed:.1f} cm/s"
    return str(event["kind"])


def _in_cm(proprio: np.ndarray) -> str:
    return ", ".join(f"{100 * x:.1f}" for x in proprio[POSITION])
