import json
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.envs import franka
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.interface import (
    Ack,
    CameraFrame,
    CameraInfo,
    Command,
    JointLimits,
    Robot,
    RobotInfo,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.recorded import RecordedRobot
from worldmodel.envs.robots.recorder import AFTERMATH_S, MAX_PENDING, SEGMENT_S, FlightRecorder
from worldmodel.envs.robots.recording import find_recordings, read_recording
from worldmodel.envs.robots.recording_format import LATER, PlanRecord, encoded, plain

INFO = RobotInfo(
    name="fake",
    arm="unknown",
    cameras={"exterior": CameraInfo(48, 64, 20.0)},
    control_hz=4.0,
    joint_limits=JointLimits(-np.ones(7), np.ones(7), np.ones(7)),
    gripper_width_m=0.08,
    tcp="nowhere",
    simulated=True,
)
SETTINGS = {"checkpoint": "reach", "planner": {"horizon": 3, "deadline_ms": None}}


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(tmp_path, clock):
    """Starts a recorder in the same folder, again and again."""
    started = []

    def starting(**settings) -> FlightRecorder:
        arguments = {"settings": SETTINGS, "robot": INFO, "clock": clock, "min_free_bytes": 0}
        started.append(FlightRecorder(tmp_path / "flight", **arguments | settings))
        return started[-1]

    yield starting
    for recorder in started:
        recorder.close()


def observation(seq, *, at=100.0, state=RobotState.RUNNING, errors=(), reason=None, size=(48, 64)):
    rng = np.random.default_rng(seq)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return RobotObservation(
        seq=seq,
        frames={"exterior": CameraFrame(image, at - 0.02)},
        tcp_pos_base=rng.normal(size=3),
        tcp_rotation_base=np.eye(3),
        joint_positions=rng.normal(size=7),
        joint_velocities=rng.normal(size=7),
        gripper=0.25,
        gripper_width_m=0.06,
        grasped=None,
        wrench_base=None,
        state_at=at - 0.001,
        applied_seq=seq - 1,
        state=state,
        errors=errors,
        reason=reason,
    )


def command(number, **changes):
    values = np.array([0.1, -0.2, 1 / 3, 0, 0, 0])
    sent = Command(number, number, 0.375, "twist", values, 0.5)
    for name, value in changes.items():  # unchecked, as from a stranger
        object.__setattr__(sent, name, value)
    return sent


def ack(seq, *, state=RobotState.RUNNING, reason=None, kind="twist"):
    accepted = reason is None
    return Ack(
        seq, accepted, command(seq, kind=kind) if accepted else None, ("velocity",), reason, state
    )


def plan_record(seed, *, goal="0" * 64, context=2, warm_start=True):
    rng = np.random.default_rng(seed)
    return PlanRecord(
        obs_seq=7,
        goal=goal,
        stage=1,
        seed=seed,
        generator_state=rng.integers(0, 256, 5056, dtype=np.uint8),
        frames=rng.integers(0, 256, (context, 37, 53, 3), dtype=np.uint8),
        proprio=rng.normal(size=(context, 7)).astype(np.float32),
        committed=rng.normal(size=(1, 7)),
        warm_start=rng.normal(size=(3, 7)) if warm_start else None,
        actions=rng.normal(size=(3, 7)).astype(np.float32),
        action=rng.normal(size=7).astype(np.float32),
        cost=rng.normal(),
        energy_now=float("nan"),
        iterations=4,
        evaluations=1000,
        deadline_hit=True,
        plan_ms=12.5,
        verdict="slow",
        surprise=1.75,
    )


def assert_same(one, other):
    for field in fields(PlanRecord):
        mine, yours = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_equal(yours, mine, err_msg=field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == yours.dtype, field.name


def trips(folder):
    return sorted(path.name for path in (folder / "trips").iterdir())


def test_what_was_recorded_is_read_again(start, tmp_path, clock):
    recorder = start()
    seen = observation(3)
    recorder.observation(seen)
    recorder.command(command(4))
    clock.time += 0.25
    recorder.ack(ack(4))
    recorder.flush()
    recording = read_recording(tmp_path / "flight")
    assert recording.header["settings"] == SETTINGS
    assert recording.header["robot"]["cameras"]["exterior"]["fps"] == 20.0
    assert recording.torn == 0
    assert [event["event"] for event in recording.events] == ["observation", "command", "ack"]
    first, _, last = recording.events
    assert (first["at"], last["at"]) == (100.0, 100.25)
    assert first["frames"]["exterior"]["captured_at"] == 99.98
    assert (first["state_at"], first["state"], first["seq"]) == (99.999, "running", 3)
    np.testing.assert_array_equal(first["joint_positions"], seen.joint_positions)
    np.testing.assert_array_equal(np.float32(first["proprio"]), seen.proprio)
    (sent,) = recording.commands()
    for field in fields(Command):
        np.testing.assert_equal(getattr(sent, field.name), getattr(command(4), field.name))
    assert (last["clamped"], last["accepted"], last["reason"]) == (["velocity"], True, None)
    assert last["applied"]["values"] == command(4).values.tolist()


def test_thumbnails_are_small_look_like_the_picture_and_are_not_too_many(start, tmp_path):
    recorder = start(thumbnail_height=24)
    smooth = np.full((48, 64, 3), (200, 100, 30), np.uint8)
    for seq in range(10):
        seen = observation(seq)
        frame = CameraFrame(smooth, 100.0 + seq / 20)
        recorder.observation(replace(seen, frames={"exterior": frame}))
    recorder.flush()
    recording = read_recording(tmp_path / "flight")
    names = [event["frames"]["exterior"]["picture"] for event in recording.of("observation")]
    assert [i for i, name in enumerate(names) if name] == [0, 4, 8]
    picture = recording.picture(names[0])
    assert picture is not None and picture.shape == (24, 32, 3)
    assert abs(picture.astype(int) - (200, 100, 30)).max() < 8


@pytest.mark.parametrize("warm_start", [True, False])
def test_a_plan_is_read_again_bit_for_bit(start, tmp_path, warm_start):
    recorder = start()
    goal = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    digest = recorder.goal("red cube", goal)
    assert recorder.goal("red cube", goal.copy()) == digest
    assert recorder.goal("other", goal[:-1]) != digest
    written = plan_record(5, goal=digest, warm_start=warm_start)
    recorder.plan(written)
    written.frames[:0] = 0
    recorder.plan(plan_record(6, goal=digest, context=1))
    recorder.close()
    (folder,) = find_recordings(tmp_path / "flight")
    recording = read_recording(folder)
    first, second = recording.plans()
    assert_same(written, first)
    assert_same(plan_record(6, goal=digest, context=1), second)
    np.testing.assert_array_equal(recording.goal(first.goal), goal)
    assert [event["name"] for event in recording.of("goal")] == ["red cube", "red cube", "other"]
    with pytest.raises(FileNotFoundError, match="goal image"):
        recording.goal("f" * 64)


def test_pictures_of_further_cameras_are_kept_at_their_own_size(start, tmp_path):
    recorder = start()
    wrist = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    seen = replace(plan_record(1, goal="+".join(["0" * 64, "1" * 64])), other_views=(wrist,))
    recorder.plan(seen)
    recorder.plan(plan_record(2))
    recorder.close()
    (folder,) = find_recordings(tmp_path / "flight")
    one, two = read_recording(folder).plans()
    assert_same(seen, one)
    assert_same(plan_record(2), two)
    next(folder.glob("*/plan-1-view-1-0.png")).unlink()
    assert [plan.seed for plan in read_recording(folder).plans()] == [2]  # the other is not whole


def test_a_recording_of_before_there_were_several_cameras_and_a_gate_is_read(start, tmp_path):
    recorder = start()
    recorder.plan(plan_record(1))
    recorder.close()
    (folder,) = find_recordings(tmp_path / "flight")
    (events,) = folder.glob("*/events.jsonl")
    entries = [json.loads(line) for line in events.read_text().splitlines()]
    (plan,) = (entry for entry in entries if entry["event"] == "plan")
    assert [plan.pop(name) for name in LATER] == [[], "slow", 1.75]
    events.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (read,) = read_recording(folder).plans()
    assert_same(replace(plan_record(1), verdict=None, surprise=None), read)


def test_what_the_caller_changes_afterwards_is_not_recorded(start, tmp_path):
    recorder = start()
    written, kept = plan_record(5), plan_record(5)
    image = np.full((9, 9, 3), 7, np.uint8)
    digest = recorder.goal("a", image)
    recorder.plan(written)
    for array in (written.frames, written.actions, written.proprio, image):
        array[:] = 0
    recorder.flush()
    recording = read_recording(tmp_path / "flight")
    (read,) = recording.plans()
    assert_same(kept, read)
    assert (recording.goal(digest) == 7).all()


class LinearWorld:
    """Latents are a few pixels; an action moves them."""

    def encode(self, frames):
        return frames.float().mean(dim=(2, 3))[:, :, None] / 255

    def predict(self, latents, proprio, actions):
        return latents + actions[..., None, :3]

    def rollout(self, latents, proprio, actions):
        steps = actions[..., None, :3].cumsum(dim=-3)
        return latents[:, -1].reshape(len(latents), *[1] * (actions.ndim - 2), 1, 3) + steps


def test_a_recorded_decision_is_made_again_bit_for_bit(start, tmp_path):
    import torch  # here, so that the processes below, which import this file, start fast

    from worldmodel.planners.cem import CEM
    from worldmodel.planners.energy import LatentEnergy
    from worldmodel.planners.interfaces import ActionBounds, Observation

    world, bounds = LinearWorld(), ActionBounds.symmetric([0.1] * 7)
    planner = CEM(cost=LatentEnergy(), num_samples=30, num_elites=5, num_iterations=3, horizon=3)

    def decide(frames, proprio, goal, warm_start, generator):
        latents = world.encode(torch.from_numpy(frames)[None])
        states = torch.from_numpy(proprio)[None]
        before = Observation(latents, states, torch.zeros(1, len(frames) - 1, 7))
        target = world.encode(torch.from_numpy(goal)[None, None])[:, 0]
        plan = planner.plan(
            world, before, target, bounds=bounds, warm_start=warm_start, generator=generator
        )
        return plan.actions

    recorder = start()
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(3)
    goal = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    digest = recorder.goal("there", goal)
    warm = None
    for i in range(3):
        made = replace(
            plan_record(i, goal=digest, context=1),
            frames=rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8),
            generator_state=generator.get_state().numpy().copy(),
            warm_start=None if warm is None else warm[0].numpy().copy(),
        )
        warm = decide(made.frames, made.proprio, goal, warm, generator)
        recorder.plan(replace(made, actions=warm[0].numpy().copy()))
    recorder.trip("test")
    recorder.close()

    (folder,) = find_recordings(tmp_path / "flight")
    recording = read_recording(folder)
    plans = list(recording.plans())
    assert len(plans) == 3
    for plan in reversed(plans):  # each by itself
        again = torch.Generator()
        again.set_state(torch.from_numpy(plan.generator_state))
        warm = None if plan.warm_start is None else torch.from_numpy(plan.warm_start)[None]
        actions = decide(plan.frames, plan.proprio, recording.goal(plan.goal), warm, again)
        np.testing.assert_array_equal(actions[0].numpy(), plan.actions)


def test_old_segments_are_deleted_and_the_last_seconds_stay(start, tmp_path, clock):
    recorder = start(seconds=30.0)
    for seq in range(4 * 60):
        recorder.observation(observation(seq, at=clock.time))
        clock.time += 0.25
        if seq % 40 == 0:
            recorder.flush()  # so that no picture is left out on a slow disk
    recorder.flush()
    recording = read_recording(tmp_path / "flight")
    times = [event["at"] for event in recording.events]
    assert times[-1] == clock.time - 0.25
    assert 30.0 <= clock.time - times[0] <= 30.0 + 2 * SEGMENT_S
    assert times == sorted(times)
    assert trips(tmp_path / "flight") == []
    pictures = [event["frames"]["exterior"]["picture"] for event in recording.of("observation")]
    assert all(recording.picture(name) is not None for name in pictures)


def test_a_trip_keeps_what_was_before_and_a_little_after(start, tmp_path, clock):
    recorder = start(seconds=30.0)
    for seq in range(4 * 60):
        recorder.observation(observation(seq, at=clock.time))
        clock.time += 0.25
    tripped_at = clock.time
    recorder.trip("operator: stop / please")
    for seq in range(1000, 1000 + 4 * 60):
        recorder.observation(observation(seq, at=clock.time))
        clock.time += 0.25
    recorder.flush()
    assert trips(tmp_path / "flight") == ["000001-operator-stop-please"]
    folder, present = find_recordings(tmp_path / "flight")
    assert present == tmp_path / "flight"
    recording = read_recording(folder)
    times = [event["at"] for event in recording.events]
    assert tripped_at - times[0] >= 30.0
    assert AFTERMATH_S <= times[-1] - tripped_at <= AFTERMATH_S + 1
    assert [event["reason"] for event in recording.of("trip")] == ["operator: stop / please"]
    assert json.loads((folder / "trip.json").read_text())["trips"][0]["at"] == tripped_at
    assert recording.header["settings"] == SETTINGS
    # What follows goes on where the trip ends: nothing is lost and nothing is there twice.
    following = [event["at"] for event in read_recording(present).events]
    assert not set(following) & set(times)


def test_trips_that_follow_each_other_are_kept_as_one(start, tmp_path, clock):
    recorder = start()
    for i in range(20):
        recorder.trip(f"flapping {i}")
        clock.time += 0.05
    clock.time += 60
    recorder.ack(ack(1))
    recorder.flush()
    assert trips(tmp_path / "flight") == ["000001-flapping-0"]
    kept = json.loads((tmp_path / "flight/trips/000001-flapping-0/trip.json").read_text())
    assert [trip["reason"] for trip in kept["trips"]] == [f"flapping {i}" for i in range(20)]


@pytest.mark.parametrize(
    ("happening", "expected"),
    [
        (lambda r: r.observation(observation(2, state=RobotState.HOLD)), ["hold"]),
        (
            lambda r: r.observation(observation(2, state=RobotState.HOLD, reason="expired")),
            ["hold: expired"],
        ),
        (lambda r: r.ack(ack(2, state=RobotState.HOLD, reason="seq_old")), []),
        (
            lambda r: r.observation(observation(2, state=RobotState.FAULT, errors=("reflex",))),
            ["fault: reflex"],
        ),
        (
            lambda r: r.ack(ack(2, state=RobotState.FAULT, reason="too_many_rejects")),
            ["fault: too_many_rejects"],
        ),
        (
            lambda r: r.ack(ack(2, state=RobotState.HOLD, kind="hold")),
            [],
        ),
        (lambda r: r.observation(observation(2, state=RobotState.IDLE)), []),
        (lambda r: r.trip("stop: operator"), ["stop: operator"]),
    ],
)
def test_a_change_to_hold_or_fault_trips_once(start, tmp_path, happening, expected):
    recorder = start()
    recorder.observation(observation(1))
    happening(recorder)
    happening(recorder) if len(expected) == 0 else None
    recording = read_recording(tmp_path / "flight")
    assert [event["reason"] for event in recording.of("trip")] == expected


def test_why_it_holds_is_said_by_the_observation_not_by_a_refusal_before_it(start, tmp_path):
    recorder = start()
    recorder.observation(observation(1))
    recorder.ack(ack(2, state=RobotState.HOLD, reason="seq_old"))
    recorder.observation(observation(2, state=RobotState.HOLD, reason="camera_stale:wrist"))
    recorder.ack(ack(3))  # it goes on
    recorder.observation(observation(3, reason="camera_stale:wrist"))
    recorder.observation(observation(4, state=RobotState.HOLD, reason="expired"))
    recording = read_recording(tmp_path / "flight")
    reasons = [event["reason"] for event in recording.of("trip")]
    assert reasons == ["hold: camera_stale:wrist", "hold: expired"]
    assert [e["reason"] for e in recording.of("observation")][0] is None


def test_closing_keeps_the_end_and_a_second_session_begins_anew(start, tmp_path):
    recorder = start()
    recorder.ack(ack(1))
    recorder.close()
    recorder.close()
    recorder.ack(ack(2))  # nobody minds
    recorder.trip("late")
    second = start()
    second.ack(ack(3))
    first, present = find_recordings(tmp_path / "flight")
    assert first.name == "000001-closed"
    assert [event["event"] for event in read_recording(first).events] == ["ack", "close"]
    assert [event["seq"] for event in read_recording(present).of("ack")] == [3]


def test_a_folder_has_one_recorder_at_a_time(start):
    start()
    with pytest.raises(BlockingIOError, match="choose another"):
        start()


@pytest.mark.parametrize("settings", [{"rate": float("nan")}, {"planner": object()}])
def test_settings_that_are_no_json_are_refused_at_once(start, tmp_path, settings):
    with pytest.raises((TypeError, ValueError)):
        start(settings=settings)
    assert not (tmp_path / "flight").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"values": np.array([np.nan, np.inf, -np.inf, 0, 0, 0])},
        {"values": np.array([object(), None])},
        {"values": np.zeros((300, 300))},
        {"values": "rm -rf", "kind": b"\xff"},
        {"valid_for_s": float("nan"), "gripper": np.float32("inf")},
        {"seq": 10**30, "obs_seq": None},
        {"gripper": 1j},
    ],
)
def test_a_command_that_is_wrong_is_recorded_all_the_same(start, tmp_path, changes):
    recorder = start()
    recorder.command(command(1, **changes))
    recorder.command(command(2))
    recording = read_recording(tmp_path / "flight")
    assert [event["event"] for event in recording.events] == ["command", "command"]
    assert recorder.problem is None


def test_numbers_that_are_not_finite_come_back(start, tmp_path):
    recorder = start()
    recorder.command(command(1, values=np.array([np.nan, np.inf, -np.inf, 1.0, 0, 0])))
    (read,) = read_recording(tmp_path / "flight").commands()
    np.testing.assert_array_equal(read.values, [np.nan, np.inf, -np.inf, 1.0, 0, 0])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_everything_plain_is_strict_json(value):
    text = json.dumps(plain(value), allow_nan=False)
    json.loads(text)


# Kills and full disks.

CHILD = """
import itertools, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_recorder import INFO, SETTINGS, FlightRecorder, ack, command, observation, plan_record
recorder = FlightRecorder(Path({folder!r}), settings=SETTINGS, robot=INFO, clock=time.monotonic,
                          min_free_bytes=0)
{before}
for seq in itertools.count():
    recorder.observation(observation(seq, at=time.monotonic()))
    recorder.command(command(seq))
    if seq % 5 == 0:
        recorder.plan(plan_record(seq))
    print(seq, flush=True)
    {loop}
"""


def child(folder, *, before="", loop="") -> subprocess.Popen:
    here = str(Path(__file__).parent)
    code = CHILD.format(here=here, folder=str(folder), before=before, loop=loop)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_process_leaves_all_that_it_recorded(tmp_path, start):
    folder = tmp_path / "flight"
    with child(folder) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(60)]
        while not any(read_recording(folder).plans()):  # they are written in the background
            said.append(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    assert process.returncode == -signal.SIGKILL
    recording = read_recording(folder)
    recorded = [event["seq"] for event in recording.of("command")]
    assert recorded[: len(said)] == said and len(recorded) <= len(said) + 1
    for event in recording.of("observation"):
        name = event["frames"]["exterior"]["picture"]
        if name and (folder / name).exists():
            assert recording.picture(name) is not None
    plans = list(recording.plans())
    assert len(plans) >= 1
    for plan in plans:
        assert_same(plan_record(plan.seed), plan)

    start().ack(ack(1))  # the next process puts it away and goes on
    kept, present = find_recordings(folder)
    assert kept.name == "000001-unfinished"
    assert read_recording(kept).events == recording.events
    assert len(list(read_recording(kept).plans())) == len(plans)
    assert len(read_recording(present).events) == 1


def test_a_line_torn_anywhere_is_left_out(start, tmp_path):
    recorder = start()
    for seq in range(3):
        recorder.command(command(seq))
    (path,) = (tmp_path / "flight").glob("*/events.jsonl")
    content = path.read_bytes()
    whole = content[: content.rstrip(b"\n").rfind(b"\n") + 1]
    for end in range(len(whole), len(content)):
        path.write_bytes(content[:end])
        recording = read_recording(tmp_path / "flight")
        assert [event["seq"] for event in recording.events] == [0, 1]
        assert recording.torn == (end > len(whole))
    path.write_bytes(content.replace(b'"event"', b'"evint"', 1))
    with pytest.raises(ValueError, match=r"line 1 of .* is no event"):
        read_recording(tmp_path / "flight")


def test_a_file_that_cannot_grow_stops_the_recording_and_nothing_else(tmp_path):
    folder = tmp_path / "flight"
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    loop = "if seq == 200: print(recorder.problem, flush=True); recorder.close(); break"
    with child(folder, before=before, loop=loop) as process:
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert said.split("\n")[:201] == [str(seq) for seq in range(201)]  # it went on to the end
    assert said.split("\n")[201] != "None"
    recording = read_recording(folder)
    assert 10 < len(recording.events) < 400 and recording.torn <= 1


def test_a_disk_with_too_little_left_is_not_filled(start, tmp_path, caplog):
    recorder = start(min_free_bytes=2**62)
    assert recorder.problem is not None and "bytes left" in recorder.problem
    assert "the robot goes on" in caplog.text
    recorder.observation(observation(1))
    recorder.plan(plan_record(1))
    recorder.ack(ack(1, state=RobotState.FAULT))
    assert len(recorder.goal("a", np.zeros((4, 4, 3), np.uint8))) == 64
    recorder.flush()
    recorder.close()
    files = {path.name for path in (tmp_path / "flight").rglob("*") if path.is_file()}
    assert files == {"header.json", "lock"}


def test_a_folder_that_vanishes_stops_the_recording_only(start, tmp_path, clock, caplog):
    recorder = start()
    recorder.ack(ack(1))
    (tmp_path / "flight").rename(tmp_path / "elsewhere")
    for seq in range(5):
        clock.time += SEGMENT_S
        recorder.observation(observation(seq))
    recorder.flush()
    assert recorder.problem is not None and "stops" in caplog.text


def test_a_slow_disk_costs_pictures_not_time(start, tmp_path):
    recorder = start()
    disk = threading.Event()
    recorder._jobs.put(lambda: disk.wait(60) and None)
    for seq in range(2 * MAX_PENDING):
        recorder.observation(observation(seq, at=100.0 + seq))
    disk.set()
    recorder.flush()
    recording = read_recording(tmp_path / "flight")
    assert len(list(recording.of("observation"))) == 2 * MAX_PENDING
    assert recorder.left_out >= MAX_PENDING - 1
    names = [event["frames"]["exterior"]["picture"] for event in recording.of("observation")]
    assert recording.picture(names[0]) is not None and recording.picture(names[-1]) is None


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 2}])
def test_another_format_is_refused(start, tmp_path, change):
    start()
    path = tmp_path / "flight" / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="version 1, got"):
        read_recording(tmp_path / "flight")
    with pytest.raises(FileNotFoundError, match=r"no header\.json"):
        read_recording(tmp_path)


def test_pictures_keep_their_colours():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 255
    content = np.frombuffer(encoded(".png", image), np.uint8)
    decoded = np.array(cv2.imdecode(content, cv2.IMREAD_COLOR))
    assert decoded[0, 0].tolist() == [0, 0, 255]  # BGR of OpenCV


def test_a_recorded_robot_is_a_robot_and_tells_its_story(start, tmp_path):
    cameras = {"exterior": CameraInfo(24, 32, 20.0)}
    inner = MujocoRobot(Arm(franka.build_model()), cameras=cameras, realtime=False, backend="ray")
    recorder = start(robot=inner.info, clock=inner.now)
    robot = RecordedRobot(inner, recorder)
    assert isinstance(robot, Robot) and robot.info is inner.info
    robot.connect(timeout_s=1.0)
    robot.arm(operator="test")
    for seq in range(1, 5):
        observed = robot.observe(max_age_s=0.2)
        robot.command(Command(seq, observed.seq, 0.4, "twist", np.array([0.1, 0, 0, 0, 0, 0])))
        inner.advance(0.25)
    inner.inject_error("reflex")
    robot.observe(max_age_s=0.2)
    robot.stop(reason="operator")
    assert robot.recover(operator="test") is RobotState.IDLE
    robot.close()
    recorder.close()
    (folder,) = find_recordings(tmp_path / "flight")
    assert folder.name == "000001-fault-reflex"
    recording = read_recording(folder)
    reasons = [event["reason"] for event in recording.of("trip")]
    assert reasons == ["fault: reflex", "stop: operator"]
    story = [event["event"] for event in recording.events]
    assert story == ["observation", "command", "ack"] * 4 + ["observation"] + ["trip"] * 2 + [
        "close"
    ]
    assert [event["at"] for event in recording.of("command")] == [0.0, 0.25, 0.5, 0.75]
    shown = list(recording.of("observation"))[-1]
    assert shown["errors"] == ["reflex"] and shown["frames"]["exterior"]["captured_at"] == 1.0
