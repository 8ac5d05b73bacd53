"""The loop, with a kinematic arm on a clock that the tests move."""

import numpy as np
import pytest

from worldmodel.driving.calibration import ModelFrame, about_z
from worldmodel.envs.robots.interface import RobotState
from worldmodel.envs.robots.recorded import RecordedRobot
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.envs.robots.recording import find_recordings, read_recording
from worldmodel.planners.gate import GateState

TICK_S, SPEED = 0.01, 0.1


def speeds(rig) -> np.ndarray:
    """Of the tool, tick by tick [m/s]."""
    return np.linalg.norm(np.diff(rig.positions, axis=0), axis=1) / TICK_S


def test_the_arm_comes_to_the_goal_is_at_rest_and_disarmed(make_rig) -> None:
    rig = make_rig()
    outcome = rig.run()
    assert outcome.end == "reached"
    assert rig.distance < 0.003
    assert rig.safe.state is RobotState.IDLE
    assert speeds(rig)[-1] < 2e-3
    assert outcome.last is not None and np.allclose(outcome.last.position, rig.fake.position)
    assert outcome.counters["plans"] == len(outcome.energies) == len(rig.plans)
    assert outcome.energies[-1] < 0.1 * outcome.energies[0]
    assert not [name for name in outcome.counters if name.startswith(("refused", "late_plans"))]


def test_motion_is_smooth_and_never_faster_than_asked(make_rig) -> None:
    rig = make_rig(move=(0.15, 0.12, -0.08))
    rig.run()
    speed = speeds(rig)
    assert speed.max() < SPEED * 1.01
    # From start to goal it speeds up once and slows down once: nothing stops between two plans.
    moving = np.flatnonzero(speed > 0.5 * SPEED)
    assert (speed[moving[0] : moving[-1]] > 0.5 * SPEED).all()
    acceleration = np.diff(np.diff(rig.positions, axis=0), axis=0) / TICK_S**2
    assert np.linalg.norm(acceleration, axis=1).max() < 1.05  # [m/s^2], the envelope's
    jerk = np.linalg.norm(np.diff(acceleration, axis=0), axis=1) / TICK_S
    assert jerk.max() < 105  # [m/s^3]


def test_every_command_is_a_short_lived_twist_from_the_plan_that_it_names(make_rig) -> None:
    rig = make_rig()
    outcome = rig.run()
    *twists, hold = [command for _, command in outcome.commands]
    assert hold.kind == "hold" and {command.kind for command in twists} == {"twist"}
    assert max(command.valid_for_s for command in twists) <= 1.5 * 0.25 + 1e-9
    assert np.all(np.diff([command.seq for command in (*twists, hold)]) > 0)
    planned_from = {planned.task.observation.seq for _, planned in rig.plans}
    assert {command.obs_seq for command in twists} <= planned_from
    gaps = np.diff([time for time, _ in outcome.commands])
    assert gaps[:-1].max() < 0.06  # 20 Hz


@pytest.mark.parametrize("latency_s, camera_delay_s", [(0.2, 0.2), (0.4, 0.1)])
def test_with_a_delay_compensation_loses_less(
    make_rig, latency_s: float, camera_delay_s: float
) -> None:
    """Time to come within a centimetre, delayed, less what it takes without any delay."""

    def time_to_goal(**settings) -> float:
        rig = make_rig(move=(0.16, 0.10, -0.06), settle_plans=1000, **settings)
        rig.run(seconds=8.0)
        away = np.linalg.norm(np.array(rig.positions) - rig.target, axis=1)
        far = np.flatnonzero(away > 0.01)
        assert far[-1] < len(away) - 1, "never came there to stay"
        return float(far[-1]) * TICK_S

    fastest = time_to_goal(latency_s=0.0, compensate=False)
    delayed = {"latency_s": latency_s, "camera_delay_s": camera_delay_s}
    without = time_to_goal(compensate=False, **delayed) - fastest
    with_it = time_to_goal(compensate=True, **delayed) - fastest
    assert with_it < 0.6 * without


@pytest.mark.parametrize("latency_s, camera_delay_s", [(0.2, 0.2), (0.4, 0.1)])
def test_a_plan_begins_where_and_when_it_was_expected_to(
    make_rig, latency_s: float, camera_delay_s: float
) -> None:
    overshoots = {}
    for compensate in (True, False):
        rig = make_rig(
            move=(0.16, 0.10, -0.06),
            latency_s=latency_s,
            camera_delay_s=camera_delay_s,
            compensate=compensate,
            settle_plans=1000,
        )
        rig.run(seconds=5.0)
        assert rig.schedule.latency_s == pytest.approx(latency_s, abs=0.06)
        way = rig.target - rig.positions[0]
        beyond = (np.array(rig.positions) - rig.target) @ way / np.linalg.norm(way)
        overshoots[compensate] = beyond.max()
        for _, planned in rig.plans[2:-2] if compensate else []:  # the first speeds up meanwhile
            at = rig.positions[round((planned.task.begins_at - 100.0) / TICK_S) - 1]
            assert np.linalg.norm(planned.task.start.position - at) < 0.004
    assert overshoots[True] < 0.004
    # Late, but steady: an arm that began where it is by now would go 35 and 47 mm too far.
    assert overshoots[False] < 0.02


def test_a_dry_run_makes_the_same_plans_byte_for_byte_and_sends_nothing(make_rig) -> None:
    """On an arm that does not move, for whatever else the two see is not the same."""
    streams = []
    for dry_run in (False, True):
        rig = make_rig(dry_run=dry_run, envelope={"identical_frames": 10_000})
        rig.fake._resolve = lambda twist: np.zeros(7)
        if dry_run:  # nothing is even tried
            for name in ("arm", "command", "stop", "recover"):
                setattr(rig.safe, name, lambda *_, **__: pytest.fail("something was sent"))
        outcome = rig.run(seconds=3.0)
        streams.append(
            (
                [planned.record.actions.tobytes() for _, planned in rig.plans],
                [planned.record.generator_state.tobytes() for _, planned in rig.plans],
                [planned.record.committed.tobytes() for _, planned in rig.plans],
                [(time, c.seq, c.values.tobytes()) for time, c in outcome.commands[:-1]],
            )
        )
        if dry_run:
            assert outcome.end == "time" and len(outcome.commands) > 20
        else:
            assert rig.fake.commands
    assert streams[0] == streams[1]


def test_a_planner_that_slows_down_is_bridged_by_the_tail_and_then_the_arm_holds(make_rig) -> None:
    rig = make_rig(move=(0.2, 0.1, 0.0))
    slow_at, states = 1.0, []

    def during() -> None:
        if rig.fake.now() - 100.0 >= slow_at:
            rig.worker.latency_s = 2.5
        states.append((rig.fake.now() - 100.0, rig.safe.state, rig.safe.reason))

    rig.during = during
    outcome = rig.run(seconds=8.0)
    assert outcome.counters["late_plans"] >= 2  # each too old when it was ready
    assert outcome.counters["without_plan"] > 20
    running = [t for t, state, _ in states if state is RobotState.RUNNING and t < 7]
    assert 1.5 < max(running) < 2.03  # the tail, until its picture is a second old
    assert (RobotState.HOLD, "expired") in {(state, reason) for _, state, reason in states}
    after = speeds(rig)[round((max(running) + 0.3) / TICK_S) :]
    assert after.max() < 1e-3


def test_a_planner_that_is_twice_too_slow_still_gets_there(make_rig) -> None:
    rig = make_rig(latency_s=0.5)
    outcome = rig.run()
    assert outcome.end == "reached" and rig.distance < 0.006
    assert outcome.counters["late_plans"] == 0


def test_an_operators_stop_ends_it_at_once(make_rig) -> None:
    rig = make_rig()

    def during() -> None:
        if rig.fake.now() > 101.0 and rig.stop_reason is None:
            rig.stop_reason = "key"
            rig.safe.stop(reason="operator: key")  # as `OperatorStop` does, from its thread

    rig.during = during
    outcome = rig.run()
    assert (outcome.end, outcome.reason) == ("stopped", "key")
    assert rig.safe.state is RobotState.IDLE
    assert "operator: key" in rig.fake.stops
    late = [c for time, c in outcome.commands if time > 101.06]
    assert late == []


def test_a_fault_ends_it_and_says_why(make_rig) -> None:
    rig = make_rig()

    def during() -> None:
        if rig.fake.now() > 101.0:
            rig.fake.errors = ("reflex",)

    rig.during = during
    outcome = rig.run()
    assert outcome.end == "fault" and "reflex" in outcome.reason
    assert rig.safe.state is RobotState.FAULT


def test_a_camera_that_stops_makes_the_arm_hold_and_goes_on_when_it_is_back(make_rig) -> None:
    rig = make_rig(envelope={"camera_max_age_s": 0.2})

    def during() -> None:
        rig.fake.frozen = {"exterior"} if 101.0 < rig.fake.now() < 102.5 else set()

    rig.during = during
    outcome = rig.run()
    frozen = speeds(rig)[150:240]
    assert frozen.max() < 1e-3
    assert outcome.end == "reached" and rig.distance < 0.003


def test_a_drive_waits_for_every_camera_also_an_optional_one(make_rig) -> None:
    """The safety layer goes on without an optional camera; the model cannot."""
    rig = make_rig(camera="exterior+wrist", optional=("wrist",))
    asked = []
    plan = rig.replanner.plan
    rig.worker._function = lambda task: asked.append((rig.fake.now(), task)) or plan(task)

    def during() -> None:
        rig.fake.lost = {"wrist"} if 101.0 < rig.fake.now() < 103.0 else set()

    rig.during = during
    outcome = rig.run()
    assert outcome.end == "reached" and rig.distance < 0.003
    assert outcome.counters["stale:wrist"] > 10 and "stale:exterior" not in outcome.counters
    for _, task in asked:
        taken = [frame.captured_at for frame in task.observation.frames.values()]
        assert len(taken) == 2 and task.taken_at == min(*taken, task.observation.state_at)
    held = [at for at, _ in asked if 101.1 < at < 102.9]
    assert not held


def test_a_plan_that_cannot_be_made_stops_the_arm_and_is_raised(make_rig) -> None:
    rig = make_rig()
    plan = rig.replanner.plan

    def fails_later(task):
        if rig.fake.now() > 101.0:
            raise ValueError("imagined futures have a NaN cost")
        return plan(task)

    rig.worker._function = fails_later
    with pytest.raises(ValueError, match="NaN cost"):
        rig.run()
    assert rig.safe.state is RobotState.IDLE and rig.fake.stops


def test_an_arm_that_was_not_armed_is_said_so(make_rig) -> None:
    rig = make_rig(armed=False)
    outcome = rig.run()
    assert (outcome.end, outcome.reason) == ("stopped", "the robot is idle")
    assert rig.fake.commands == []


def test_a_turned_robot_gets_there_with_its_calibration_only(make_rig) -> None:
    """The model's axes are turned by a quarter: what it sees is what a turned robot would see."""
    turned = ModelFrame(about_z(np.pi / 2))

    class TurnedCamera(type(make_rig().fake)):
        @property
        def proprio(self):
            return turned.to_model(super().proprio)

    ends = {}
    for frame in (turned, ModelFrame.same()):
        rig = make_rig(frame=turned)
        rig.fake.__class__ = TurnedCamera
        rig.replanner._frame = frame
        rig.run(seconds=8.0)
        ends[frame is turned] = rig.distance
    assert ends[True] < 0.003
    assert ends[False] > 0.05


def test_the_recorder_tells_the_story(make_rig, tmp_path) -> None:
    rig = make_rig()
    recorder = FlightRecorder(
        tmp_path / "flight", settings={}, robot=rig.safe.info, clock=rig.fake.now
    )
    rig.recorder, rig.robot = recorder, RecordedRobot(rig.safe, recorder)
    outcome = rig.run()
    recorder.close()
    recording = read_recording(find_recordings(tmp_path / "flight")[-1])
    sent = list(recording.commands())
    assert [c.seq for c in sent] == [c.seq for _, c in outcome.commands]
    assert len(list(recording.of("ack"))) == len(sent)
    plans = list(recording.plans())
    assert len(plans) == outcome.counters["plans"]
    for plan, (_, planned) in zip(plans, rig.plans, strict=True):
        assert np.array_equal(plan.actions, planned.record.actions)
        assert np.array_equal(plan.frames, planned.record.frames)
        assert np.array_equal(plan.generator_state, planned.record.generator_state)
    stops = [trip["reason"] for trip in recording.of("trip")]
    assert stops == ["stop: reached: 3 plans in a row say that the arm is there"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"command_hz": 2.0}, "command_hz must be at least 4"),
        ({"settle_plans": 0}, "settle_plans must be above 0"),
        ({"plan_max_age_s": float("nan")}, "plan_max_age_s must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make_rig, changes: dict, message: str) -> None:
    from worldmodel.drive import Driver

    rig = make_rig()
    settings = {
        "law": rig.law,
        "step_s": 0.25,
        "command_hz": 20.0,
        "max_age_s": 1.0,
        "plan_max_age_s": 1.0,
        "settle_plans": 3,
        "dry_run": False,
        "sleep": rig.sleep,
        "stopped": lambda: None,
    }
    with pytest.raises(ValueError, match=message):
        Driver(rig.safe, rig.replanner, rig.worker, rig.schedule, **settings | changes)


def test_a_gate_that_sees_nothing_odd_changes_nothing(make_rig) -> None:
    plain, gated = make_rig(), make_rig(gated=True)
    outcomes = [rig.run() for rig in (plain, gated)]
    assert outcomes[1].end == "reached"
    np.testing.assert_array_equal(*(np.array(rig.positions) for rig in (plain, gated)))
    assert gated.replanner.watch.judged >= 3
    assert not [name for name in outcomes[1].counters if name.startswith("gate:")]
    assert {planned.record.verdict for _, planned in gated.plans} == {"ok"}
    assert {planned.record.verdict for _, planned in plain.plans} == {None}


def test_an_arm_whose_camera_froze_is_held_and_goes_on_when_it_sees_again(make_rig) -> None:
    """The pictures are new, and not the same, so nothing but the gate can know."""
    ways, held_at = {}, {}
    for gated in (False, True):
        rig = make_rig(move=(0.2, 0.16, -0.1), gated=gated)
        began = rig.fake.now()

        def during(rig=rig, began=began) -> None:
            if not 0.6 <= rig.fake.now() - began < 3.0:
                rig.fake.shown = None
            elif rig.fake.shown is None:
                rig.fake.shown = rig.fake.proprio

        rig.during = during
        rig.run()
        blind = np.array(rig.positions)[round(0.6 / TICK_S) : round(3.0 / TICK_S)]
        ways[gated] = np.linalg.norm(np.diff(blind, axis=0), axis=1).sum()
        assert rig.outcome.end == "reached" and rig.distance < 0.01
        held_at[gated] = [at - began for at, c in rig.outcome.commands[:-1] if c.kind == "hold"]
    assert ways[True] < 0.6 * ways[False]
    assert not held_at[False] and 0.6 < min(held_at[True]) < 2.1
    counters = rig.outcome.counters
    assert counters["gate:slow"] and counters["gate:replan"] and counters["gate:hold"]
    told = [(p.record.verdict, p.record.surprise) for _, p in rig.plans]
    assert any(verdict == "hold" and surprise > 0.5 for verdict, surprise in told if surprise)


def test_an_arm_that_is_held_at_its_goal_has_not_reached_it(make_rig) -> None:
    rig = make_rig(gated=True, move=(0.0, 0.0, 0.0))
    rig.replanner.watch._gate.slow_above = rig.replanner.watch._gate.calm_below = -2.0
    rig.replanner.watch._gate.hold_above = -1.0  # everything is too much
    outcome = rig.run(seconds=4.0)
    assert outcome.end == "time" and outcome.counters["gate:hold"] >= 10
    kinds = [command.kind for _, command in outcome.commands]
    assert kinds.count("hold") > 20 and len(kinds) - kinds.count("hold") < 20  # before it judged


class Told:
    """A watch whose verdicts are written down; the last goes on."""

    def __init__(self, *verdicts: str) -> None:
        self.verdicts = list(verdicts)

    def look(self, frames, proprio) -> GateState:
        verdict = self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        return GateState(verdict, {"ok": 1.0, "slow": 0.5, "hold": 0.0}[verdict], 1.0)

    def pass_over(self) -> GateState:
        return self.look([], [])


def test_plans_before_a_hold_do_not_count_towards_being_there(make_rig) -> None:
    for verdicts, plans in ((["ok"], 3), (["ok", "ok", "hold", "ok"], 6)):
        rig = make_rig(move=(0.0, 0.0, 0.0), settle_plans=3)
        rig.replanner.watch = Told(*verdicts)
        outcome = rig.run()
        assert (outcome.end, outcome.counters["plans"]) == ("reached", plans)


def test_a_slowed_arm_goes_at_half_its_speed_and_arrives(make_rig) -> None:
    rig = make_rig()
    rig.replanner.watch = Told("slow")
    outcome = rig.run()
    assert speeds(rig).max() < 0.7 * SPEED  # each axis by half; the way is not along one
    assert outcome.end == "reached" and rig.distance < 0.005
    assert outcome.counters["gate:slow"] == outcome.counters["plans"]
