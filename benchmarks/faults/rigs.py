"""Planner and arm together: in one process on a virtual clock, or in two over a bad network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from worldmodel.envs.robots.client import RemoteRobot, find_robot
from worldmodel.envs.robots.fault_proxy import FaultProxy
from worldmodel.envs.robots.interface import Robot, RobotError

from .planner import SPEED, ScriptedPlanner
from .robot_side import TICK_S, RobotSide

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0  # of wall time, only ever reached by what fails
TOKEN = "correct-horse-battery-staple"
IN_PROCESS, TWO_PROCESSES, FCI = "in process", "two processes", "FCI simulator"


class Rig(Protocol):
    """A planner and an arm."""

    @property
    def robot(self) -> Robot:
        """What the planner has."""
        ...

    @property
    def planner(self) -> ScriptedPlanner:
        """Not running by itself: `run` lets it."""
        ...

    def side(self, call: str, **given: Any) -> Any:
        """Calls a method of the robot's side."""
        ...

    def run(self, seconds: float, *, drive: bool = True) -> None:
        """Lets time pass on the robot's clock; the planner drives, or is silent."""
        ...


def begin(rig: Rig) -> None:
    """Connects and arms."""
    rig.robot.connect(timeout_s=PATIENCE_S)
    rig.robot.arm(operator="fault table")


def cruise(rig: Rig) -> float:
    """Drives until the arm moves at full speed through the middle; returns the time.

    Raises:
        RuntimeError: It never does.
    """
    deadline, since = time.monotonic() + PATIENCE_S, rig.side("now")
    rig.run(1.0)
    while True:
        rig.run(0.05)
        now = rig.side("now")
        found = rig.side("report", since=now - 0.1)
        middle = abs(found["position"][1]) < 0.05
        if found["state"] == "running" and found["speed"] > 0.9 * SPEED and middle:
            return now
        if time.monotonic() > deadline or now - since > 60.0:
            raise RuntimeError(f"the arm never got going: {found}, {rig.planner.counters}")


class InProcess:
    """All in one process, in ticks: the same every time."""

    def __init__(self, options: Mapping[str, Any]):
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self._side = RobotSide(self.folder, realtime=False, **options)
        self.robot = self._side.robot
        self.planner = ScriptedPlanner(self.robot)

    def side(self, call: str, **given: Any) -> Any:
        """See `Rig`."""
        return getattr(self._side, call)(**given)

    def run(self, seconds: float, *, drive: bool = True) -> None:
        """See `Rig`."""
        for _ in range(round(seconds / TICK_S)):
            if drive:
                self.planner.step()
            self._side.safe.tick()
            self._side.arm.advance(TICK_S)

    def close(self) -> list[str]:
        """Ends it and returns why the flight recorder kept something."""
        self.run(0.1, drive=False)
        self._side.close()
        return kept(self.folder)


class RobotPC:
    """The process that serves the arm; it obeys lines."""

    def __init__(self, options: Mapping[str, Any], *, port: int = 0):
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        words = [sys.executable, "-m", "benchmarks.faults.robot_pc", str(self.folder), str(port)]
        self.process = subprocess.Popen(
            [*words, json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"WORLDMODEL_TOKEN": TOKEN},
        )
        self.port = self._read()

    def side(self, call: str, **given: Any) -> Any:
        """Calls a method of the robot's side, there."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([call, given]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def end(self) -> list[str]:
        """Ends it in good order, or kills it; returns why the flight recorder kept something."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        return kept(self.folder)

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the robot's process ended: {self.process.wait()}")
        return json.loads(line)


class TwoProcesses:
    """The arm is served by another process; the planner reaches it through a fault proxy.

    Attributes:
        pc: The other process.
        proxy: The network.
        url: Through the proxy.
    """

    def __init__(self, options: Mapping[str, Any]):
        self.pc = RobotPC(options)
        self.proxy = FaultProxy(host="127.0.0.1", port=self.pc.port).__enter__()
        self.url = f"ws://127.0.0.1:{self.proxy.port}"
        self.robot: RemoteRobot = find_robot(self.url, token=TOKEN, tls=None, timeout_s=PATIENCE_S)
        self.planner = ScriptedPlanner(self.robot)

    def side(self, call: str, **given: Any) -> Any:
        """See `Rig`."""
        return self.pc.side(call, **given)

    def run(self, seconds: float, *, drive: bool = True) -> None:
        """See `Rig`. Where the machine is slow it takes longer than so many seconds."""
        until, deadline = self.side("now") + seconds, time.monotonic() + PATIENCE_S
        while self.side("now") < until and time.monotonic() < deadline:
            if drive:
                self.planner.step()
            time.sleep(0.005)

    def close(self) -> list[str]:
        """Ends it and returns why the flight recorder kept something."""
        try:
            self.proxy.clear()
            self.robot.close()
            deadline = time.monotonic() + 2.0
            while self.proxy.num_links and time.monotonic() < deadline:
                time.sleep(0.01)
        except RobotError:
            pass  # the robot's process may be dead: that was the fault
        finally:
            self.proxy.__exit__()
            reasons = self.pc.end()
        return reasons


def kept(folder: Path) -> list[str]:
    """Returns the reasons in a finished recording, and deletes it."""
    found = []
    for path in sorted(folder.glob("trips/*/trip.json")):
        found += [trip["reason"] for trip in json.loads(path.read_text())["trips"]]
    shutil.rmtree(folder, ignore_errors=True)
    ordinary = ("closed", "stop: closed", "stop: controller_left")
    return [reason for reason in dict.fromkeys(found) if reason not in ordinary]
