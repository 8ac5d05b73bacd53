"""`worldmodel drive` and `worldmodel replay`, with the simulated arm on a clock moved by hand."""

import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldmodel import checkpoint
from worldmodel.cli import main
from worldmodel.driving import workers
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot

ARM = ["robot.image_size=32", "robot.realtime=false", "robot.backend=ray"]
TINY = [
    "planner.search.num_samples=8",
    "planner.search.num_samples_first=8",
    "planner.search.num_elites=2",
    "planner.search.num_iterations=1",
    "planner.search.num_proposals=0",
    "planner.search.hold=false",
    "seconds=1.5",
    "settle_plans=100",
    "latency_s=0.1",
    "stop_port=null",
]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path: Path, world_checkpoint: Path) -> Callable[..., str]:
    """Runs a command that must end with a status, and returns what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, status: int = 0) -> str:
        settings = [f"checkpoint={world_checkpoint}", *ARM] if words[0] == "drive" else []
        if words[0] == "drive" and {"goal", "stop", "calibrate"}.isdisjoint(words):
            settings += TINY
        assert main([*words[:1], *settings, *words[1:]]) == status
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return out.out if status == 0 else (out.err.strip().splitlines() or [out.out])[-1]

    return run


@pytest.fixture
def goal(run, tmp_path: Path) -> Path:
    run("drive", "goal", "capture", "goal=goals/there.png", "move=[0.04,0.02,-0.02]", "--yes")
    return tmp_path / "goals" / "there.png"


def test_from_a_goal_to_a_drive_to_why(run, goal: Path, tmp_path: Path) -> None:
    side = json.loads(goal.with_suffix(".json").read_text())
    assert (side["camera"], side["height"], side["robot"]) == ("exterior", 32, "mujoco")
    words = ["yes=true", "run=out", "operator=me", "planner.precision=bfloat16"]
    said = run("drive", f"goal={goal}", *words)
    assert "robot      mujoco (panda), SIMULATED" in said
    assert re.search(r"distance   0\.04\d m straight on", said)
    assert re.search(r"energy \d\.\d+  distance +\d\.\d cm  plan", said)
    assert "time: the time is over" in said
    assert re.search(r"^[\d.]+ cm from where the goal was taken$", said.splitlines()[-1])
    numbers = json.loads((tmp_path / "out" / "drive.json").read_text())
    assert numbers["end"] == "time" and numbers["counters"]["plans"] >= 5
    assert not [name for name in numbers["counters"] if name.startswith(("refused", "late_pl"))]
    assert numbers["distance_m"] > 0
    for step in ("0", "-1"):
        text = run("replay", "out", f"step={step}", "out=why.png")
        assert text.splitlines()[-1] == "the search finds the same plan, to the last bit"
        assert "tripped: stop: time: the time is over" in text and "| stay" in text
        assert (tmp_path / "why.png").stat().st_size > 10_000


def test_the_same_again_is_the_same_again(run, goal: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("drive", f"goal={goal}", "yes=true", f"run={name}")
    one, two = ((tmp_path / name / "commands.csv").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_dry_run_asks_nobody_and_sends_nothing(run, goal: Path, tmp_path, monkeypatch) -> None:
    def never(*_, **__):
        raise AssertionError("something was sent")

    for name in ("arm", "command"):
        monkeypatch.setattr(SafeRobot, name, never)
    said = run("drive", f"goal={goal}", "--dry-run", "run=dry")
    assert re.search(r"dry run: nothing was sent; it would have been (\d\d) commands, at", said)
    rows = list(csv.DictReader((tmp_path / "dry" / "commands.csv").read_text().splitlines()))
    assert len(rows) > 20 and {row["kind"] for row in rows} <= {"twist", "hold"}
    twists = np.array([[float(row[f"v{axis}"]) for axis in "xyz"] for row in rows[:-1]])
    assert 0 < np.linalg.norm(twists, axis=1).max() <= 0.1 + 1e-6


def test_ctrl_c_stops_the_arm_and_is_recorded(run, goal: Path, tmp_path, monkeypatch) -> None:
    advance, ticks = MujocoRobot.advance, []

    def advance_and_interrupt(self, seconds: float) -> None:
        ticks.append(seconds)
        if len(ticks) == 120:
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, seconds)

    monkeypatch.setattr(MujocoRobot, "advance", advance_and_interrupt)
    run("drive", f"goal={goal}", "yes=true", "run=out", "seconds=20", status=1)
    numbers = json.loads((tmp_path / "out" / "drive.json").read_text())
    assert (numbers["end"], numbers["reason"]) == ("stopped", "SIGINT")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert "operator: SIGINT" in run("replay", "out")


def test_a_calibration_is_made_and_used(run, goal: Path, tmp_path: Path) -> None:
    said = run("drive", "calibrate", "moves=5", "move_size=0.03", "run=cal", "yes=true")
    assert re.search(r"the model's axes are turned by [\d.]+ degrees$", said.strip())
    assert json.loads((tmp_path / "cal" / "calibration.json").read_text())["num_moves"] == 5
    run("drive", f"goal={goal}", "yes=true", "calibration=cal/calibration.json", "run=out")
    text = run("replay", "out")
    assert text.splitlines()[-1] == "the search finds the same plan, to the last bit"


def test_a_drive_with_a_gate_says_what_it_said_and_is_replayed_without_it(
    run, tmp_path: Path
) -> None:
    shipped = ["checkpoint=default", "robot.image_size=128"]
    run("drive", *shipped, "goal", "capture", "goal=there", "move=[0.04,0.02,-0.02]", "--yes")
    gate = tmp_path / "watcher"  # a model that is gone when the drive is looked at
    shutil.copytree(checkpoint.SHIPPED["watch"], gate)
    said = run("drive", *shipped, "goal=there", "yes=true", "run=out", f"planner.gate={gate}")
    assert re.search(r"plan +\d+ ms  surprise -?\d+\.\d+: \w+$", said, re.MULTILINE)
    judged = re.search(r"the gate judged (\d+) plans \(without .* before: (\d+)\)", said)
    counters = json.loads((tmp_path / "out" / "drive.json").read_text())["counters"]
    assert judged is not None and int(judged[1]) == counters["gate:judged"] >= 3
    shutil.rmtree(gate)
    text = run("replay", "out", "step=-1", "out=why.png")
    assert re.search(r"; surprise -?\d+\.\d+; the gate said (ok|slow|replan|hold)$", text, re.M)
    assert text.splitlines()[-1] == "the search finds the same plan, to the last bit"


@pytest.fixture
def two_cameras(tmp_path: Path, make_world) -> list[str]:
    """Settings of a model that sees through two cameras, and of the arm that has them."""
    world = make_world(num_views=2, merge=2, standardise=True)
    checkpoint.save(world, tmp_path / "two", provenance={"camera": "exterior+wrist"})
    return [
        f"checkpoint={tmp_path / 'two'}",
        "camera=exterior+wrist",
        "robot.cameras=[exterior,wrist]",
    ]


def test_two_cameras_from_a_goal_to_a_drive_to_why(run, two_cameras, tmp_path: Path) -> None:
    move = "move=[0.04,0.02,-0.02]"
    said = run("drive", *two_cameras, "goal", "capture", "goal=there", move, "--yes")
    files = [tmp_path / "goals" / f"there.{camera}.png" for camera in ("exterior", "wrist")]
    assert all(file.is_file() and f"wrote goals/{file.name} and" in said for file in files)
    assert not np.array_equal(*(cv2.imread(str(file)) for file in files))
    sides = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    assert [side["camera"] for side in sides] == ["exterior", "wrist"]
    assert sides[0]["proprio"] == sides[1]["proprio"]
    run("drive", *two_cameras, "goal=there", "yes=true", "run=out")
    numbers = json.loads((tmp_path / "out" / "drive.json").read_text())
    assert numbers["end"] == "time" and numbers["counters"]["plans"] >= 5
    assert numbers["distance_m"] > 0
    text = run("replay", "out", "step=2", "out=why.png")
    assert text.splitlines()[-1] == "the search finds the same plan, to the last bit"
    # As `plan` is given a goal of two cameras.
    named = "+".join(map(str, files))
    run("drive", *two_cameras, f"goal={named}", "--dry-run", "run=dry")
    assert (
        json.loads((tmp_path / "dry" / "drive.json").read_text())["energies"][0]
        == (numbers["energies"][0])
    )


def test_two_cameras_are_calibrated_together(run, two_cameras, tmp_path: Path) -> None:
    words = ["moves=4", "move_size=0.03", "run=cal", "yes=true"]
    run("drive", *two_cameras, "calibrate", *words)
    found = json.loads((tmp_path / "cal" / "calibration.json").read_text())
    assert found["camera"] == "exterior+wrist" and found["num_moves"] == 4


def test_mistakes_with_two_cameras_are_found_before_anything_moves(run, two_cameras) -> None:
    for words, message in [
        (["camera=exterior"], "camera=exterior names 1, but this model sees 2 at once; name them"),
        (["camera=wrist+exterior"], "was trained with camera=exterior+wrist, in this order"),
        (["robot.cameras=[exterior]"], "unknown camera 'wrist'; known: exterior; robot.cameras="),
        (["goal=there.exterior.png"], "goal=there.exterior.png names 1 picture(s), but the model"),
        (["goal=there"], "no goal at goals/there.exterior.png; take one with worldmodel drive"),
    ]:
        assert message in run("drive", *two_cameras, "goal=there", *words, status=2)


def test_a_camera_that_delivers_nothing_is_named(run, two_cameras, monkeypatch) -> None:
    """An optional one, which the robot itself can do without."""
    observe = SafeRobot.observe

    def observe_one(self, *, max_age_s: float):
        seen = observe(self, max_age_s=max_age_s)
        return replace(seen, frames={"exterior": seen.frames["exterior"]})

    monkeypatch.setattr(SafeRobot, "observe", observe_one)
    for words in (["goal", "capture", "goal=there"], ["calibrate", "yes=true", "run=cal"]):
        said = run("drive", *two_cameras, *words, status=2)
        assert "the camera 'wrist' delivered no picture; look whether it is plugged in" in said
    assert not Path("goals").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["drive"], "drive needs goal=NAME; worldmodel drive goal capture goal=NAME"),
        (["drive", "goal"], "drive goal knows one thing to do: worldmodel drive goal capture"),
        (
            ["drive", "goal", "capture"],
            "drive needs goal=NAME; worldmodel drive goal capture goal=NAME",
        ),
        (["drive", "calibrat"], "unknown action 'calibrat'; did you mean 'calibrate'?"),
        (["drive", "stop"], "drive stop needs stop_port=..."),
        (["drive", "stop", "stop_port=1"], "no stop was taken at 127.0.0.1:1"),
        (["drive", "goal=nowhere.png"], "no goal at nowhere.png; take one with worldmodel drive"),
        (["drive", "goal=red cube"], "no goal at goals/red cube.png; take one with worldmodel"),
        (["drive", "goal=x.png", "camera=wrst"], "unknown camera 'wrst'; "),
        (["drive", "goal=x.png", "calibration=none.json"], "no calibration at none.json"),
        (["drive", "goal", "capture", "goal=a.jpg"], "a goal is a .png file, got a.jpg"),
        (["drive", "goal", "capture", "goal=a.png", "move=[1,2]"], "move must be three numbers"),
        (["drive", "goal=x.png", "speed=0"], "speed must be above 0, got 0.0"),
        (["drive", "goal=x.png", "sped=0"], "drive has no setting 'sped'; did you mean 'speed'?"),
        (["replay", "nowhere"], "no recording in nowhere"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(run, words: list[str], message: str) -> None:
    assert run(*words, status=2).startswith(f"worldmodel: {message}")


def test_mistakes_with_a_goal_are_found_before_anything_moves(run, goal: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers.SimulatedWorker, "give", lambda *_: pytest.fail("it planned"))
    for words, message in [
        (["robot.image_size=48"], f"the goal {goal} is 32x32 pixels, but the camera 'exterior'"),
        (["yes=false"], "the first motion needs someone at the keyboard"),
        (["planner.replan_every=2"], "plans are made as fast as the machine can, at no fixed rate"),
    ]:
        said = run("drive", f"goal={goal}", "yes=true", *words, status=2)
        assert said.startswith(f"worldmodel: {message}")


def test_a_move_out_of_the_workspace_is_not_made(run) -> None:
    words = ["goal=goals/a.png", "move=[0.0,0.0,0.9]", "yes=true"]
    said = run("drive", "goal", "capture", *words, status=2)
    assert "m is outside of the workspace, (0.25, -0.4, 0.02) to (0.75, 0.4, 0.6) m" in said
    assert not Path("goals/a.png").exists()
