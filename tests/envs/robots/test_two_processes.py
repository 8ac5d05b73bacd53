"""Planner and simulated arm in two processes, over TLS: whoever dies, the arm comes to rest.

Times are the simulation's own, so a busy machine makes these tests slow and not wrong.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldmodel.envs.robots.access import make_certificate, pinned_tls
from worldmodel.envs.robots.client import RemoteRobot, find_robot
from worldmodel.envs.robots.fault_proxy import FaultProxy
from worldmodel.envs.robots.interface import Command, NotConnectedError, RobotState

HERE = Path(__file__).parent


def _load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


robot_process, planner_process = _load("robot_process"), _load("planner_process")
ENVELOPE, SPEED = robot_process.ENVELOPE, planner_process.SPEED
TIMEOUT_S = 120.0
TOKEN = "correct-horse-battery"
pytestmark = pytest.mark.slow


class RobotPC:
    """The process that serves the arm."""

    def __init__(self, certificate, key):
        self.files, self.port = (certificate, key), 0
        self.start()

    def start(self):
        words = [sys.executable, str(HERE / "robot_process.py"), str(self.port), *self.files]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"WORLDMODEL_TOKEN": TOKEN},
        )
        self.port = int(self.process.stdout.readline())

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the robot PC is gone"
        return json.loads(line)

    def until(self, true, *, what):
        deadline = time.monotonic() + TIMEOUT_S
        while not true(report := self.ask()):
            assert time.monotonic() < deadline, (what, report)
            time.sleep(0.05)
        return report

    def end(self):
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = str(folder / "robot.pem"), str(folder / "robot.key")
    make_certificate(*made)
    return made


@pytest.fixture(scope="module")
def pc(files):
    pc = RobotPC(*files)
    yield pc
    pc.end()


@contextlib.contextmanager
def planner(port, certificate):
    words = [sys.executable, str(HERE / "planner_process.py"), f"wss://127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*words, certificate],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"WORLDMODEL_TOKEN": TOKEN},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def moves(report):
    return report["speed"] > 0.6 * SPEED


def came_to_rest(report):
    return report["speed"] < 1e-3 and report["now"] - report["taken_at"] > 1.5


def check_stop(report):
    """The arm went on for the life of its last command at most, and then braked."""
    assert report["life_s"] <= planner_process.LIFE_S
    brake_m = SPEED**2 / (2 * ENVELOPE.axis_deceleration) + SPEED * ENVELOPE.reaction_s
    assert report["travel_m"] <= SPEED * report["life_s"] + brake_m
    assert report["state"] in ("hold", "idle")


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_planner_that_stands_still_or_dies_stops_the_arm(pc, files, number, record_property):
    with planner(pc.port, files[0]) as process:
        pc.until(moves, what="motion")
        process.send_signal(number)
        report = pc.until(came_to_rest, what="rest")
    record_property("extra_travel_mm", 1000 * report["travel_m"])
    assert report["travel_m"] > 0
    check_stop(report)
    pc.until(lambda report: report["state"] == "idle", what="disarming")


def test_a_planner_that_goes_on_after_a_long_stand_still_has_to_be_armed(pc, files):
    with planner(pc.port, files[0]) as process:
        pc.until(moves, what="motion")
        process.send_signal(signal.SIGSTOP)
        before = pc.until(lambda r: r["state"] == "idle", what="disarming")
        process.send_signal(signal.SIGCONT)
        lines = []
        while "not_armed\n" not in lines:
            lines.append(process.stdout.readline())
            assert lines[-1]
        assert pc.ask()["accepted"] == before["accepted"]
        assert pc.ask()["state"] == "idle"


def command(robot, number):
    seen = robot.observe(max_age_s=TIMEOUT_S)
    values = planner_process.np.array([0.0, -SPEED, 0.0, 0.0, 0.0, 0.0])
    return robot.command(Command(number, seen.seq, 0.4, "twist", values))


def test_a_network_that_is_cut_stops_the_arm(pc, files):
    tls = pinned_tls(files[0])
    with FaultProxy(host="127.0.0.1", port=pc.port) as proxy:
        here = find_robot(f"wss://127.0.0.1:{proxy.port}", token=TOKEN, tls=tls, timeout_s=30.0)
        robot = RemoteRobot(
            f"wss://127.0.0.1:{proxy.port}",
            info=here.info,
            envelope=here.envelope,
            token=TOKEN,
            tls=tls,
            reply_timeout_s=0.5,
        )
        robot.connect(timeout_s=30.0)
        try:
            robot.arm(operator="test")
            number = 0
            while not moves(pc.ask()):
                with contextlib.suppress(NotConnectedError):
                    command(robot, number)
                number += 1
                time.sleep(0.05)
            proxy.cut(2.0)
            with pytest.raises(NotConnectedError):
                for extra in range(1000):
                    command(robot, number + extra)
            taken = pc.ask()["accepted"]
            report = pc.until(came_to_rest, what="rest")
            check_stop(report)
            assert report["accepted"] == taken  # what was sent meanwhile came, and was too late
        finally:
            robot.close()


def test_a_robot_server_that_is_killed_comes_back_at_rest(files):
    pc = RobotPC(*files)
    try:
        url = f"wss://127.0.0.1:{pc.port}"
        robot = find_robot(url, token=TOKEN, tls=pinned_tls(files[0]), timeout_s=30.0)
        robot.connect(timeout_s=30.0)
        robot.arm(operator="test")
        assert command(robot, 0).accepted
        pc.end()
        with pytest.raises(NotConnectedError):
            for number in range(1, 1000):
                command(robot, number)
        pc.start()
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(NotConnectedError):
                ack = command(robot, 2000)
                break
            time.sleep(0.05)
        assert (ack.accepted, ack.reason, ack.state) == (False, "not_armed", RobotState.IDLE)
        report = pc.ask()
        assert report["accepted"] == 0 and report["from_home_m"] < 1e-3
        robot.close()
    finally:
        pc.end()
