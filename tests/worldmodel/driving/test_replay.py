import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodel.closed_loop import PlannerSettings, make_controller
from worldmodel.driving.calibration import ModelFrame, about_z
from worldmodel.driving.reference import TwistLaw
from worldmodel.driving.replanning import Replanner, Schedule
from worldmodel.driving.replay import draw, explain, open_drive, what_happened
from worldmodel.envs.robots.interface import CameraFrame
from worldmodel.envs.robots.recorded import RecordedRobot
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.fleet import Body
from worldmodel.images import fit_views
from worldmodel.planners import CEM, LatentEnergy
from worldmodel.state_head import StateHead


@pytest.fixture
def recorded(make_rig, tmp_path):
    """A drive that an operator stopped, and its recording."""
    rig = make_rig(latency_s=0.15, camera_delay_s=0.1, move=(0.15, 0.1, 0.0))
    recorder = FlightRecorder(
        tmp_path / "run" / "flight", settings={}, robot=rig.safe.info, clock=rig.fake.now
    )
    rig.recorder, rig.robot = recorder, RecordedRobot(rig.safe, recorder)
    image = rig.image_of(rig.goal)
    rig.replanner.begin(image, sha256=recorder.goal("there", image))

    def during() -> None:
        if rig.fake.now() > 103.0 and rig.stop_reason is None:
            rig.stop_reason = "key"

    rig.during = during
    rig.run()
    recorder.close()
    return rig, tmp_path / "run"


def explained(rig, record, *, goal, **changes):
    rig.make()  # a fresh controller, as in another process
    settings = {"frame": rig.frame, "image_size": 4, "crop": "none", "precision": "float32"}
    return explain(rig.controller, record, goal, **settings | changes)


def test_every_decision_is_made_again_to_the_last_bit(recorded) -> None:
    rig, run = recorded
    recording = open_drive(run, trip=None)
    plans = list(recording.plans())
    assert len(plans) > 8
    assert any(len(plan.committed) for plan in plans)
    assert [plan.warm_start is None for plan in plans] == [True] + [False] * (len(plans) - 1)
    for plan in reversed(plans):
        explanation = explained(rig, plan, goal=recording.goal(plan.goal))
        assert explanation.same
        costs = {one.name: one.cost for one in explanation.candidates}
        assert costs["plan"] == pytest.approx(plan.cost, rel=1e-5)


def test_what_was_changed_is_noticed(recorded) -> None:
    rig, run = recorded
    recording = open_drive(run, trip=None)
    plan = list(recording.plans())[4]
    goal = recording.goal(plan.goal)
    state = torch.Generator().manual_seed(123).get_state().numpy()
    moved = plan.proprio + [0.01, 0, 0, 0, 0, 0, 0]
    other_image = rig.image_of(moved[0])[None]
    assert not explained(rig, replace(plan, generator_state=state), goal=goal).same
    assert not explained(rig, replace(plan, frames=other_image), goal=goal).same
    warm = plan.warm_start + np.float32(0.01)
    assert not explained(rig, replace(plan, warm_start=warm), goal=goal).same
    assert not explained(rig, plan, goal=rig.image_of(moved[0])).same
    turned = ModelFrame(about_z(0.2))
    assert not explained(rig, plan, goal=goal, frame=turned).same


def test_a_decision_from_cameras_of_two_sizes_is_made_again(
    make_world, rig_parts, tmp_path
) -> None:
    """From the pictures as the cameras delivered them, which the recording keeps."""
    world = make_world(num_views=2, merge=2)
    world.state_head = StateHead(latent_dim=96, num_tokens=8).eval()
    search = CEM(cost=LatentEnergy(), num_samples=8, num_elites=2, num_iterations=2)
    settings = PlannerSettings(
        search=search,
        axes=("x", "y", "z"),
        limits=None,
        warm_start=True,
        replan_every=1,
        num_context=1,
        deadline_ms=None,
    )
    limit = np.array([0.025] * 3 + [0.05] * 3 + [1.0], np.float32)
    body = Body(control_hz=4.0, action_low=-limit, action_high=limit, renderer="")
    fit = {"image_size": 32, "crop": "square"}
    controllers = [
        make_controller(world, settings, body, device=torch.device("cpu")) for _ in range(2)
    ]
    rng = np.random.default_rng(0)
    pictures = {
        "exterior": rng.integers(0, 256, (48, 64, 3), np.uint8),
        "wrist": rng.integers(0, 256, (40, 40, 3), np.uint8),
    }
    goals = [np.flip(picture, axis=1).copy() for picture in pictures.values()]
    replanner = Replanner(
        controllers[0],
        camera="exterior+wrist",
        frame=ModelFrame.same(),
        precision="float32",
        seed=3,
        **fit,
    )
    robot = rig_parts.PoseRobot()
    robot.connect(timeout_s=1.0)
    frames = {name: CameraFrame(image, robot.now()) for name, image in pictures.items()}
    seen = replace(robot.observe(max_age_s=1.0), frames=frames)
    schedule = Schedule(
        TwistLaw(lead_s=0.25, speed=0.1, turn_speed=0.4),
        step_s=0.25,
        first_latency_s=0.1,
        compensate=True,
    )
    recorder = FlightRecorder(tmp_path / "flight", settings={}, robot=robot.info, clock=robot.now)
    replanner.begin(
        fit_views(goals, 32, "square"), sha256="+".join(recorder.goal("g", g) for g in goals)
    )
    planned = replanner.plan(schedule.task(seen, "exterior+wrist", None, now=robot.now()))
    recorder.plan(planned.record)
    recorder.close()
    recording = open_drive(tmp_path, trip=None)
    (record,) = recording.plans()
    assert np.array_equal(record.frames[0], pictures["exterior"])
    (wrist,) = record.other_views
    assert np.array_equal(wrist[0], pictures["wrist"])
    stored = [recording.goal(digest) for digest in record.goal.split("+")]
    assert all(np.array_equal(*pair) for pair in zip(stored, goals, strict=True))
    again = {"goal": fit_views(stored, 32, "square"), "frame": ModelFrame.same()}
    arguments = {**again, "precision": "float32", **fit}
    explanation = explain(controllers[1], record, **arguments)
    assert explanation.same
    assert explanation.frame.shape == explanation.goal.shape == (2, 32, 32, 3)
    assert explanation.goal_read is not None  # by the head of the model of both cameras
    other = replace(record, other_views=(np.zeros_like(wrist),))
    assert not explain(controllers[1], other, **arguments).same
    shown = draw(explanation).axes[0].images[0].get_array()
    assert shown is not None and shown.shape == (32, 64, 3)  # side by side


class Head(torch.nn.Module):
    """Reads the toy world's latents exactly."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def forward(self, latents):
        return self.world.read(latents)


def test_it_says_why_and_draws_it(recorded, tmp_path) -> None:
    rig, run = recorded
    recording = open_drive(run, trip=None)
    plan = list(recording.plans())[1]
    rig.make()
    world = rig.controller.world
    world.state_head = Head(world)
    world.propose = lambda latents, proprio, goal: world.read(goal) - proprio
    explanation = explain(
        rig.controller,
        plan,
        recording.goal(plan.goal),
        frame=rig.frame,
        image_size=4,
        crop="none",
        precision="float32",
    )
    by_name = {one.name: one for one in explanation.candidates}
    assert set(by_name) == {"plan", "stay", "proposal"}
    assert by_name["proposal"].cost < by_name["stay"].cost > by_name["plan"].cost
    assert np.allclose(by_name["stay"].end[:3], explanation.here[:3], atol=1e-4)
    ways = rig.target - explanation.here[:3]
    assert np.allclose(by_name["proposal"].move[:3], ways, atol=1e-3)
    assert explanation.goal_read is not None
    assert np.allclose(explanation.goal_read[:3], rig.target, atol=1e-4)
    table = explanation.table()
    first = table.splitlines()[2]
    assert first.split("|")[1].strip() in ("plan", "proposal")
    assert re.search(r"stay +\| [\d.]+ +\| \+0.0 %", table)
    draw(explanation).savefig(tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 10_000


def test_a_trip_shows_what_tripped_and_the_two_seconds_before(recorded) -> None:
    _, run = recorded
    text = what_happened(open_drive(run, trip=None))
    assert text is not None
    first, _, *table = text.splitlines()
    assert first.startswith("tripped: stop: stopped: key at 103.0")
    times = [float(line.split("|")[1]) for line in table[2:]]
    assert times == sorted(times) and -2.0 <= times[0] < -1.9 and times[-1] <= 0
    assert len(times) == pytest.approx(40, abs=2)  # observations, 20 a second
    assert sum("twist" in line and "taken" in line for line in table) > 35
    assert any("plan of observation" in line for line in table)


def test_a_recording_is_found_from_any_of_its_folders(recorded) -> None:
    _, run = recorded
    trip = next((run / "flight" / "trips").iterdir())
    for folder in (run, run / "flight", trip):
        assert open_drive(folder, trip=None).folder == trip
    assert open_drive(run, trip=1).folder == trip
    with pytest.raises(ValueError, match="no trip 7 in .*; there are 000001-"):
        open_drive(run, trip=7)
    with pytest.raises(FileNotFoundError, match="no recording in"):
        open_drive(run / "flight" / "goals", trip=None)
