"""The walk of docs/driving.md: franky-sim, `serve` and `drive` in processes of their own.

The arm is commanded through Franka's own library and network protocol, the pictures are rendered at
the joints that it reports, and the shipped model drives it. Distances are those of the measured
joint angles. On a busy machine the simulator is several times slower than an arm, so that what is
asked for is that the arm comes much nearer, and the time is generous.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worldmodel.envs.robots.client import find_robot
from worldmodel.envs.robots.kinematics import tool_on_flange
from worldmodel.franka_arm import HAND_YAW, joint_frames

for package in ("franky", "franky_sim"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow
HOST = f"127.78.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"  # loopback, ours alone
SIMULATOR = Path(__file__).parents[2] / "envs" / "robots" / "franky_simulator.py"
PATIENCE_S = 120.0
MOVE = np.array([-0.06, 0.10, -0.14])  # [m]
TOOL = tool_on_flange(length=0.149, yaw=HAND_YAW)
DRIVE = ["seconds=120", "plan_max_age_s=5", "max_age_s=1", "threads=1", "stop_port=null", "--yes"]


@pytest.fixture
def simulator() -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-u", str(SIMULATOR), HOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.communicate()


@pytest.fixture
def server(simulator) -> Iterator[str]:
    """The address of `worldmodel serve --robot franky_sim`."""
    del simulator
    words = ["--robot", "franky_sim", f"robot.host={HOST}", "port=0"]
    words += ["robot.envelope.camera_max_age_s=5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "worldmodel.cli", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.fullmatch(r"serving franky_sim at (ws://\S+)\n", first)
        assert found, first
        assert process.stdout.readline() == (
            "arm fr3 (simulated, nothing physical moves); cameras: exterior (rendered)\n"
        )
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.communicate()


def drive(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "worldmodel.cli", "drive", *words, *DRIVE],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool_at(joints) -> np.ndarray:
    """Where joint angles put the tool [m], by kinematics alone."""
    return (joint_frames(np.array(joints))[-1] @ TOOL)[:3, 3]


def test_the_shipped_model_drives_the_real_library_to_a_captured_goal(server, tmp_path) -> None:
    def measured() -> np.ndarray:
        robot = find_robot(server, token=None, tls=None, timeout_s=PATIENCE_S)
        robot.connect(timeout_s=PATIENCE_S)
        seen = robot.observe(max_age_s=PATIENCE_S)
        robot.close()
        here = tool_at(seen.joint_positions)
        np.testing.assert_allclose(seen.tcp_pos_base, here, atol=1e-3)  # the arm took our tool
        return here

    remote = ["robot=remote", f"robot.url={server}"]
    for goal, move in (("there", MOVE), ("start", -MOVE)):
        words = [f"move=[{','.join(map(str, move))}]", *remote]
        drive("goal", "capture", f"goal={goal}", *words, folder=tmp_path)
    side = json.loads((tmp_path / "goals" / "there.json").read_text())
    assert (side["robot"], side["rendered"]) == ("franky_sim", True)
    there = tool_at(side["joint_positions"])
    before = float(np.linalg.norm(measured() - there))
    assert before > 0.15
    said = drive("goal=there", "run=out", *remote, folder=tmp_path)
    after = float(np.linalg.norm(measured() - there))
    assert after < before / 3, said
    assert re.search(r"^(reached|time): ", said, re.MULTILINE)
