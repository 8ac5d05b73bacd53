"""`worldmodel serve robot=droid` in its own process, where a stand-in plays DROID's package."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import compose, main
from worldmodel.envs.robots.client import find_robot
from worldmodel.envs.robots.interface import Command, RobotState, StaleObservationError
from worldmodel.robots import open_robot

BOX = "robot.workspace=[[0.2,-0.4,0.05],[0.8,0.4,0.8]]"
CAMERA = "serial: '24259877', side: left, height: 48, width: 64, fps: 15"
WORDS = ["robot=droid", BOX, f"robot.cameras={{exterior: {{{CAMERA}}}}}"]
PATIENCE_S = 120.0
STAND_IN = """
import importlib.util
import time

from worldmodel.envs import franka
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.interface import CameraInfo
from worldmodel.envs.robots.mujoco import MujocoRobot

spec = importlib.util.spec_from_file_location("droid_env", {path!r})
droid_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(droid_env)


class RobotEnv(droid_env.SimulatedDroidEnv):
    def __init__(self, action_space, gripper_action_space, do_reset):
        assert not do_reset  # it would move before anyone has armed it
        robot = MujocoRobot(
            Arm(franka.build_model()),
            cameras={{"exterior": CameraInfo(48, 64, 15.0)}},
            realtime=False,
            backend="ray",
        )
        super().__init__(
            robot, action_space=action_space, gripper_action_space=gripper_action_space
        )
        robot.advance(0.2)

    def wall(self):
        return time.time()
"""


def settings(*words):
    return compose("serve", words).robot


@pytest.mark.slow
def test_a_droid_robot_is_served_and_moves(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "droid"
    package.mkdir()
    (package / "__init__.py").touch()
    path = Path(__file__).parents[1] / "envs" / "robots" / "droid_env.py"
    (package / "robot_env.py").write_text(STAND_IN.format(path=str(path)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ages = [f"++robot.envelope.{name}_max_age_s=60" for name in ("state", "camera", "plan")]
    server = subprocess.Popen(
        [sys.executable, "-m", "worldmodel.cli", "serve", *WORDS, *ages, "port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        found = re.fullmatch(r"serving droid at (ws://127\.0\.0\.1:\d+)\n", first)
        assert found, first
        assert "arm panda (PHYSICAL, it will move)" in server.stdout.readline()
        robot = find_robot(found[1], token=None, tls=None, timeout_s=PATIENCE_S)
        assert robot.info.tcp == "0.149 m from the flange, turned by -0.785398 rad"
        robot.connect(timeout_s=PATIENCE_S)
        begin = last = robot.observe(max_age_s=PATIENCE_S)
        assert begin.state is RobotState.IDLE
        assert begin.frames["exterior"].image.shape == (48, 64, 3)
        robot.arm(operator="tester")
        until, seq = time.monotonic() + PATIENCE_S, begin.applied_seq + 1
        while last.tcp_pos_base[1] < begin.tcp_pos_base[1] + 0.03:
            assert time.monotonic() < until, last
            robot.command(Command(seq, last.seq, 0.4, "twist", np.array([0, 0.05, 0, 0, 0, 0])))
            time.sleep(0.05)
            try:
                last, seq = robot.observe(max_age_s=PATIENCE_S), seq + 1
            except StaleObservationError:
                continue
        away = last.tcp_pos_base - begin.tcp_pos_base
        assert abs(away[[0, 2]]).max() < 0.01
        robot.close()
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE_S) == 0
    finally:
        server.kill()
        server.communicate()


def test_without_droids_package_it_says_where_to_run(capsys) -> None:
    assert main(["serve", *WORDS]) == 2
    assert "robot=droid needs DROID's own package (No module named 'droid')" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "camera, message",
    [
        ("serial: 1, side: up, height: 4, width: 4, fps: 1", "must be left or right, got 'up'"),
        ("serial: 1, side: left, height: 4, width: 4", "camera exterior has no 'fps'"),
        ("from: 0, side: left", "unknown setting of camera exterior 'from'"),
    ],
)
def test_a_camera_that_is_none_is_refused(camera, message, monkeypatch) -> None:
    module = type(sys)("droid.robot_env")
    module.RobotEnv = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "droid", type(sys)("droid"))
    monkeypatch.setitem(sys.modules, "droid.robot_env", module)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_robot(settings(*WORDS[:2], f"robot.cameras={{exterior: {{{camera}}}}}"))
