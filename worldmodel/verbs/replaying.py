"""replay: a recorded decision, made again and explained."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.verbs.driving import make_drive_controller
from worldmodel.verbs.planning import planner_settings
from worldmodel.verbs.shared import Call, UserError, load_world

if TYPE_CHECKING:
    from omegaconf import DictConfig


def replay(config: "DictConfig", *, call: Call) -> int:
    """Makes a recorded decision again and explains it; shows what tripped."""
    import numpy as np
    import omegaconf

    from worldmodel.driving.calibration import ModelFrame
    from worldmodel.driving.replay import draw, explain, open_drive, what_happened
    from worldmodel.images import fit_views

    recording = open_drive(Path(config.recording), trip=config.trip)
    print(f"reading {recording.folder}")
    happened = what_happened(recording)
    if happened is not None:
        print(f"\n{happened}")
    plans = list(recording.plans())
    if not plans:
        raise UserError(f"{recording.folder} holds no whole plan")
    if not -len(plans) <= config.step < len(plans):
        raise UserError(f"step must be from 0 to {len(plans) - 1}, got {config.step}")
    number = config.step % len(plans)
    record = plans[number]
    saved = omegaconf.OmegaConf.create(recording.header["settings"])
    assert isinstance(saved, omegaconf.DictConfig)
    if config.checkpoint is not None:
        saved.checkpoint = config.checkpoint
    saved.planner.deadline_ms = None
    saved.planner.gate = saved.planner.gate_calibration = None  # the search does not ask it
    if record.deadline_hit and "num_iterations" in saved.planner.search:
        saved.planner.search.num_iterations = record.iterations
    world = load_world(saved, several_views=True)
    settings = replace(planner_settings(saved, world), subgoals=False)
    goals = [recording.goal(digest) for digest in record.goal.split("+")]
    explanation = explain(
        make_drive_controller(world, settings, saved),
        record,
        fit_views(goals, world.image_size, saved.crop),
        frame=ModelFrame(np.array(saved.rotation, dtype=float)),
        image_size=world.image_size,
        crop=saved.crop,
        precision=settings.precision,
    )
    picture = Path(config.out or f"replay-{number}.png")
    draw(explanation).savefig(picture, format="png", metadata={"Software": None})
    judged = "" if record.surprise is None else f"; surprise {record.surprise:.2f}"
    judged += "" if record.verdict is None else f"; the gate said {record.verdict}"
    print(
        f"\nplan {number} of {len(plans)}, made from observation {record.obs_seq} in "
        f"{record.plan_ms:.0f} ms; energy to the goal {record.energy_now:.4f}"
        f"{judged}\n"
    )
    print(explanation.table())
    if explanation.goal_read is not None:
        where = ", ".join(f"{100 * x:.1f}" for x in explanation.goal_read[:3])
        print(f"\nthe state head reads the goal at {where} cm")
    print(f"look at {picture}")
    if explanation.same:
        print("the search finds the same plan, to the last bit")
        return 0
    off = float(np.abs(explanation.again - record.actions).max())
    print(f"the search finds another plan, {off:.2g} away: other weights, machine or version")
    return 1
