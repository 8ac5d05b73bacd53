"""The driver of a Franka against franky-sim, which speaks the arm's own network protocol."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.robots.interface import RobotError, RobotState
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.recorded import RecordedRobot
from worldmodel.envs.robots.recorder import FlightRecorder

from .planner import SPEED, ScriptedPlanner
from .rigs import FCI, PATIENCE_S, ROOT, cruise, kept
from .robot_side import WatchedRobot, report
from .rows import REARM, SETTLE_S, error_at_connect, goes_on_after, says
from .verdict import BRAKE_M, Row, Verdict, stopped

HOST = f"127.78.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"  # loopback, ours alone
SIMULATOR = ROOT / "tests" / "envs" / "robots" / "franky_simulator.py"
BOX = Envelope(
    workspace_low=(0.2, -0.4, 0.1),
    workspace_high=(0.8, 0.4, 0.8),
    state_max_age_s=0.5,  # the simulator runs slower than an arm
    tick_timeout_s=0.2,
)
HERE = (FCI,)


def why_no_simulator() -> str | None:
    """Returns why franky-sim cannot be run here; None when it can."""
    for name, package in (("franky", "franky-control"), ("franky_sim", "franky-sim")):
        if importlib.util.find_spec(name) is None:
            return f"{package} is not installed (pip install 'worldmodel[franka-sim]')"
    return None


class Simulator:
    """franky-sim in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(SIMULATOR), HOST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("franky-sim did not start")

    def ask(self, order: str) -> None:
        """Makes it say that something is wrong: "reflex"."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.communicate()


class FciSide:
    """The driver in its envelope, and what the simulator says that the arm did."""

    def __init__(self, folder: Path, *, host: str):
        from worldmodel.envs.robots.franky import FrankyRobot

        self.inner = FrankyRobot(
            host=host, arm="fr3", simulated=True, cameras={}, envelope=BOX, require_realtime=False
        )
        self.safe = WatchedRobot(self.inner, BOX, arm_now=self.now, tick_hz=100)
        self.recorder = FlightRecorder(
            folder, settings={}, robot=self.safe.info, clock=self.safe.now, min_free_bytes=1
        )
        self.robot = RecordedRobot(self.safe, self.recorder)
        self.path: list[tuple[float, np.ndarray]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def begin(self) -> None:
        """Begins to look where the arm is."""
        self._thread.start()

    def close(self) -> None:
        """Ends all."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self.robot.close()
        self.recorder.close()

    def now(self) -> float:
        """Returns the arm's own clock [s], which is slow where the simulator is."""
        return self.inner._robot_ms / 1000

    def report(self, *, since: float) -> dict[str, Any]:
        """Returns what the arm did since a time."""
        known = list(self.path)[-20_000:]
        times = np.array([at for at, _ in known])
        path = np.array([position for _, position in known])
        return report(self.safe, times, path, since=since)

    def _look(self) -> None:
        while not self._ending.wait(0.01):
            try:
                seen = self.inner.observe(max_age_s=60.0)
            except RobotError:
                continue
            if not self.path or self.now() > self.path[-1][0]:
                self.path.append((self.now(), seen.tcp_pos_base))


class FciRig:
    """Planner, envelope and driver in one process, the arm in another."""

    def __init__(self, options: Mapping[str, Any]):
        self.simulator = Simulator()
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self._side = FciSide(self.folder, host=HOST)
        self.robot = self._side.robot
        self.planner = ScriptedPlanner(self.robot)
        if "order" in options:
            self.simulator.ask(options["order"])
            time.sleep(1.0)

    def side(self, call: str, **given: Any) -> Any:
        """See `Rig`."""
        return getattr(self._side, call)(**given)

    def run(self, seconds: float, *, drive: bool = True) -> None:
        """See `Rig`. On both clocks: commands expire on ours, the arm moves on its own."""
        if not self._side._thread.is_alive():
            self._side.begin()
            time.sleep(0.1)
        ends, until = time.monotonic() + seconds, self._side.now() + seconds
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends or self._side.now() < until:
            if time.monotonic() > deadline:
                raise RuntimeError("franky-sim stands still")
            if drive:
                self.planner.step()
            time.sleep(0.005)

    def close(self) -> list[str]:
        """Ends it and returns why the flight recorder kept something."""
        try:
            self._side.close()
        finally:
            self.simulator.end()
        return kept(self.folder)


def reflex(rig: FciRig) -> Verdict:
    """The arm breaks the motion off with an error of its own."""
    since = cruise(rig)
    rig.simulator.ask("reflex")
    rig.run(1.0 + SETTLE_S)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=0.3, state="fault")
    checks["commands refused"] = rig.planner.counters["refused:fault"] > 0
    rig.robot.recover(operator="fault table")
    rig.robot.arm(operator="fault table")
    since = rig.side("now")
    checks["moves after an operator's recovery"] = goes_on_after(rig)
    text = f"{says(found)}; after recovery {says(rig.side('report', since=since))}"
    return Verdict(text, checks, found["reaction_s"], found["travel_m"])


def driver_signalled(rig: FciRig, *, number: signal.Signals) -> Verdict:
    """The driver's process dies, or stands still, in full motion."""
    rig.robot.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.faults.fci_rows", HOST],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        position = np.zeros(3)
        for line in process.stdout:
            *place, speed = map(float, line.split())
            position = np.array(place)
            if speed > 0.9 * SPEED and abs(position[1]) < 0.03:
                break
        process.send_signal(number)
        time.sleep(2.0)
    finally:
        process.kill()
        process.communicate()
    rig.robot.connect(timeout_s=PATIENCE_S)
    first = rig.robot.observe(max_age_s=60.0)
    time.sleep(1.0)
    later = rig.robot.observe(max_age_s=60.0)
    travel = float(np.linalg.norm(first.tcp_pos_base - position))
    checks = {
        f"travel within {1000 * (0.02 * SPEED + BRAKE_M):.0f} mm": travel <= 0.02 * SPEED + BRAKE_M,
        "at rest": float(np.linalg.norm(later.tcp_pos_base - first.tcp_pos_base)) < 1e-3,
        REARM: later.state is RobotState.IDLE,
    }
    if number == signal.SIGSTOP:
        text = (
            f"{1000 * travel:.0f} mm in the 2 s until the process was killed: the simulator goes "
            "on with the last velocity; a physical arm stops after 20 lost packets, 20 ms"
        )
        return Verdict(text, {}, None, travel, shown=False)
    return Verdict("at rest; idle after connecting again", checks, None, travel)


def _killed(rig: FciRig) -> Verdict:
    return driver_signalled(rig, number=signal.SIGKILL)


def _stopped(rig: FciRig) -> Verdict:
    return driver_signalled(rig, number=signal.SIGSTOP)


def drive() -> None:
    """Drives the simulated Franka until stopped from outside, and prints where it is."""
    side = FciSide(Path(tempfile.mkdtemp(prefix="faults-")), host=sys.argv[1])
    side.robot.connect(timeout_s=PATIENCE_S)
    side.robot.arm(operator="driver process")
    planner, seen = ScriptedPlanner(side.robot), side.inner.observe(max_age_s=60.0)
    at, position = side.now(), seen.tcp_pos_base
    while os.getppid() != 1:
        planner.step()
        seen = side.inner.observe(max_age_s=60.0)
        if side.now() - at > 0.05:
            speed = np.linalg.norm(seen.tcp_pos_base - position) / (side.now() - at)
            at, position = side.now(), seen.tcp_pos_base
            print(*position, speed, flush=True)
        time.sleep(0.005)


ROWS = [
    Row("reflex mid-motion", f"FAULT; commands refused; {REARM}", reflex, HERE, recorded=True),
    Row(
        "robot in reflex at connect",
        "connects, FAULT, the error named; cannot be armed or commanded",
        error_at_connect,
        HERE,
        {"order": "reflex"},
        armed=False,
    ),
    Row("driver SIGKILL", f"the arm stops by itself; {REARM}", _killed, HERE),
    Row("driver SIGSTOP", "a physical arm stops after 20 ms of silence", _stopped, HERE),
]

if __name__ == "__main__":
    drive()
