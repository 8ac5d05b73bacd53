"""Robots by their settings, and the verb that serves them."""

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import compose, main, name_options
from worldmodel.envs.robots.access import make_certificate, pinned_tls
from worldmodel.envs.robots.client import RemoteRobot, find_robot
from worldmodel.envs.robots.interface import Command, Robot, RobotState
from worldmodel.envs.robots.limits import Envelope, first_run
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.robots import make_envelope, open_robot

_path = Path(__file__).parents[1] / "envs" / "robots" / "network.py"
_spec = importlib.util.spec_from_file_location("network", _path)
assert _spec is not None and _spec.loader is not None
network = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(network)

BOX = [[0.3, -0.3, 0.05], [0.65, 0.3, 0.6]]
LOW, HIGH = (tuple(corner) for corner in BOX)
CORNERS = {"workspace_low": LOW, "workspace_high": HIGH}
FRANKY = ["robot=franky", "robot.host=127.0.0.1", "robot.arm=fr3", f"robot.workspace={BOX}"]


def settings(*words):
    return compose("serve", words).robot


def test_the_simulated_arm_is_open_in_its_envelope():
    robot = open_robot(settings("robot=mujoco", "robot.realtime=false"))
    assert isinstance(robot, SafeRobot) and isinstance(robot, Robot)
    assert robot.info.simulated and robot.info.cameras["exterior"].height == 128
    assert robot.envelope.workspace_low == (0.25, -0.4, 0.02)
    assert robot.envelope.velocity == Envelope(**CORNERS).velocity
    robot.connect(timeout_s=1.0)
    assert robot.state is RobotState.IDLE
    robot.close()


def test_the_simulated_gripper_grasps_with_the_force_of_the_envelope():
    words = ["robot=mujoco", "robot.realtime=false", "robot.cameras=[]"]
    robot = open_robot(settings(*words, "robot.envelope={gripper_force: 7.0}"))
    assert isinstance(robot, SafeRobot)
    assert robot.inner._arm._jaw_force == 7.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_box_a_profile_and_single_limits_make_an_envelope():
    assert vars(make_envelope(BOX, limits="default", changes={})) == vars(Envelope(**CORNERS))
    assert vars(make_envelope(BOX, limits="first_run", changes={})) == vars(first_run(LOW, HIGH))
    slow = make_envelope(BOX, limits="default", changes={"velocity": 0.05})
    assert vars(slow) == vars(Envelope(**CORNERS, velocity=0.05))


@pytest.mark.parametrize(
    "box, limits, changes, message",
    [
        (BOX, "defualt", {}, "unknown limits 'defualt'; did you mean 'default'?"),
        (BOX, "default", {"velocty": 1}, "unknown limit 'velocty'; did you mean 'velocity'?"),
        (BOX, "default", {"velocity": -1.0}, "velocity must be positive"),
        (BOX[:1], "default", {}, "workspace must be two corners"),
        ([[0, 0], [1, 1]], "default", {}, "three finite numbers"),
        (BOX[::-1], "default", {}, "workspace_low must be below"),
    ],
)
def test_an_envelope_that_is_none_is_refused(box, limits, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_envelope(box, limits=limits, changes=changes)


def test_a_franka_is_slow_at_first_and_takes_its_cameras_from_the_settings():
    pytest.importorskip("franky")
    camera = "{exterior: {from: 0, height: 48, width: 64, fps: 30}}"
    robot = open_robot(settings(*FRANKY, f"robot.cameras={camera}"))
    assert robot.info.arm == "fr3" and not robot.info.simulated
    assert vars(robot.envelope) == vars(first_run(LOW, HIGH))
    assert robot.info.cameras["exterior"].width == 64
    with pytest.raises(ValueError, match="camera exterior must come from"):
        open_robot(settings(*FRANKY, f"robot.cameras={camera.replace('0', 'none.mp4', 1)}"))
    with pytest.raises(ValueError, match="velocity must be at most"):
        open_robot(settings(*FRANKY, "robot.envelope={velocity: 50.0}"))


def test_the_simulated_franka_is_on_this_machine_and_its_pictures_are_rendered():
    pytest.importorskip("franky")
    robot = open_robot(settings("robot=franky_sim"))
    assert robot.info.name == "franky_sim" and robot.info.simulated
    assert robot.info.cameras["exterior"].rendered
    assert robot.info.tcp == "0.149 m from the flange"
    with pytest.raises(ValueError, match="an arm that may be physical is robot=franky"):
        open_robot(settings("robot=franky_sim", "robot.host=172.16.0.2"))
    with pytest.raises(Exception, match="simulated"):  # it cannot be said of a physical arm
        settings(*FRANKY, "robot.simulated=true")


@pytest.mark.parametrize(
    "camera, message",
    [
        ("{form: 0}", "unknown setting of camera exterior 'form'; did you mean 'from'?"),
        ("{from: 0, height: 48, width: 64}", "camera exterior has no 'fps'"),
        ("{from: 0, height: 48, width: 64, fps: 30, rendered: true}", "unknown setting of camera"),
    ],
)
def test_a_camera_that_is_none_is_refused(camera, message):
    pytest.importorskip("franky")
    with pytest.raises(ValueError, match=re.escape(message)):
        open_robot(settings(*FRANKY, f"robot.cameras={{exterior: {camera}}}"))


def test_a_remote_robot_is_asked_what_it_is():
    rig = network.Rig()
    with network.serving(rig.safe) as (_, port):
        robot = open_robot(settings("robot=remote", f"robot.url=ws://127.0.0.1:{port}"))
        assert isinstance(robot, RemoteRobot)
        assert robot.info.name == "fake" and vars(robot.envelope) == vars(rig.safe.envelope)


def test_what_is_missing_and_what_is_unknown_is_named():
    with pytest.raises(ValueError, match=r"robot=franky needs robot.arm=..., robot.host=..., rob"):
        open_robot(settings("robot=franky"))
    with pytest.raises(ValueError, match="unknown robot 'frankie'; did you mean 'franky'?"):
        open_robot({"name": "frankie"})


def test_an_option_is_another_word_for_a_setting():
    assert name_options("serve", ["--robot", "franky", "x=1"]) == ["robot=franky", "x=1"]
    assert name_options("serve", ["--robot=franky"]) == ["robot=franky"]
    assert name_options("evaluate", ["--robot", "franky"]) == ["--robot", "franky"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--robot"], "--robot needs a name: one of droid, franky, franky_sim, mujoco, remote"),
        (["--robot", "frankie"], "unknown robot 'frankie'; did you mean 'franky'?"),
        (["robot=franky"], "serve needs robot.arm=..., robot.host=..., robot.workspace=..."),
        (["robot=mujoco", "robot.speed=1"], "robot.speed"),
        (["robot=mujoco", "host=0.0.0.0"], "host=0.0.0.0 can be reached from other machines"),
        (["robot=mujoco", "make_certificate=true"], "make_certificate needs tls_certificate=..."),
        (["robot=remote", "robot.url=ws://127.0.0.1:9"], "no robot at ws://127.0.0.1:9"),
        ([], "serve needs workspace=..."),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys, monkeypatch):
    monkeypatch.delenv("WORLDMODEL_TOKEN", raising=False)
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_physical_arm_is_not_shown_to_others_without_tls(capsys, monkeypatch):
    pytest.importorskip("franky")
    monkeypatch.setenv("WORLDMODEL_TOKEN", network.TOKEN)
    assert main(["serve", *FRANKY, "host=0.0.0.0"]) == 2
    assert "the arm is a physical one" in capsys.readouterr().err


def test_the_program_serves_the_simulated_arm_until_it_is_stopped(tmp_path):
    certificate, key = tmp_path / "robot.pem", tmp_path / "robot.key"
    (tmp_path / "token").write_text(network.TOKEN)
    words = ["--robot", "mujoco", "port=0", "robot.image_size=24", "robot.backend=ray"]
    words += [f"token_file={tmp_path / 'token'}", f"record={tmp_path / 'flight'}"]
    words += [f"tls_certificate={certificate}", f"tls_key={key}", "make_certificate=true"]
    server = subprocess.Popen(
        [sys.executable, "-m", "worldmodel.cli", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        found = re.fullmatch(r"serving mujoco at (wss://127\.0\.0\.1:\d+)\n", first)
        assert found, first
        robot = find_robot(
            found[1], token=network.TOKEN, tls=pinned_tls(str(certificate)), timeout_s=60.0
        )
        robot.connect(timeout_s=60.0)
        robot.arm(operator="Ada")
        seen = robot.observe(max_age_s=60.0)
        assert seen.frames["exterior"].image.shape == (24, 24, 3)
        ack = robot.command(Command(0, seen.seq, 0.4, "twist", np.array([0.1, 0, 0, 0, 0, 0])))
        assert ack.accepted or ack.reason in ("late", "obs_old"), ack
        robot.close()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        rest = server.stdout.read()
        assert "simulated, nothing physical moves" in rest and "SHA-256" in rest
        assert rest.splitlines()[-1] == "served 1 sessions"
        assert list((tmp_path / "flight" / "trips").iterdir())
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]


def test_a_certificate_is_not_made_twice(tmp_path, capsys):
    paths = str(tmp_path / "robot.pem"), str(tmp_path / "robot.key")
    make_certificate(*paths)
    words = [f"tls_certificate={paths[0]}", f"tls_key={paths[1]}", "make_certificate=true"]
    assert main(["serve", "robot=mujoco", *words]) == 2
    assert "exists; delete it, or use it as it is" in capsys.readouterr().err
