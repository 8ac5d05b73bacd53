"""`worldmodel drive` and `worldmodel replay`, with the simulated arm on a clock moved by hand."""

import csv
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
