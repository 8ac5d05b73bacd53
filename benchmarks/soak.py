"""Does the arm stay in its envelope for hours? Closed-loop reaching over the network, with faults.

    python -m benchmarks.soak --minutes 30

It writes benchmarks/results/soak.json, and ends with 1 if the envelope was violated. The arm, its
envelope and its server are in one process, the planner in another, a bad network between them.
"""

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.robots.interface import RobotError, RobotState, StaleObservationError
from worldmodel.runs import describe_machine, write_json

from .faults.planner import ScriptedPlanner
from .faults.rigs import TwoProcesses, begin
from .faults.robot_side import ENVELOPE

RESULTS = Path(__file__).with_name("results") / "soak.json"
LOW, HIGH = (0.35, -0.2, 0.15), (0.62, 0.2, 0.42)  # of targets [m]
REACHED_M = 0.01
TARGET_S = 15.0  # before another target is chosen
CALM_S, FAULT_S = (3.0, 8.0), (0.2, 3.0)  # of wall time, between faults and during one
LOOK_S = 20.0  # from one look at the arm's path to the next; it remembers 60 s
GAIN = 1.5  # [1/s]


class ReachingPlanner(ScriptedPlanner):
    """Goes to one random target after the other, as fast as it likes.

    Attributes:
        reached: how many targets.
    """

    def __init__(self, robot: Any, rng: np.random.Generator):
        super().__init__(robot)
        self._rng, self.reached = rng, 0
        self._choose(0.0)

    def twist(self) -> np.ndarray:
        """Returns the velocity (6,) towards the target."""
        assert self.seen is not None
        away = self._target - self.seen.tcp_pos_base
        now = self.seen.state_at
        if np.linalg.norm(away) < REACHED_M:
            self.reached += 1
            self._choose(now)
        elif now > self._until:
            self._choose(now)
        return np.concatenate([GAIN * away, np.zeros(3)])

    def _choose(self, now: float) -> None:
        self._target, self._until = self._rng.uniform(LOW, HIGH), now + TARGET_S


def faults(rig: TwoProcesses) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Returns what can go wrong: how it begins and how it ends."""
    planner, proxy = rig.planner, rig.proxy

    def nothing() -> None:
        """Ends by itself."""

    def heal() -> None:
        rig.side("heal")

    def wild() -> None:
        if planner.seen is not None:
            planner.send(values=np.random.default_rng(planner.seq).normal(size=6) * 100)

    def broken() -> None:
        if planner.seen is not None:
            planner.send(values=np.full(6, np.nan))

    return {
        "camera frozen": (lambda: rig.side("freeze", camera="exterior"), heal),
        "camera repeats": (lambda: rig.side("repeat", camera="exterior"), heal),
        "frames lost": (lambda: rig.side("lose", camera="exterior", share=0.3), heal),
        "network slow": (lambda: proxy.delay(0.2), proxy.clear),
        "network away": (lambda: proxy.cut(2.0), proxy.clear),
        "connections reset": (proxy.drop, nothing),
        "half-open": (proxy.half_open, nothing),
        "planner slow": (
            lambda: setattr(planner, "latency_s", 1.5),
            lambda: setattr(planner, "latency_s", 0.1),
        ),
        "wild command": (wild, nothing),
        "broken command": (broken, nothing),
        "loop stalled": (lambda: rig.side("stall", seconds=0.4), nothing),
        "pushed": (
            lambda: rig.side("push", force=60.0),
            lambda: rig.side("push", force=0.0),
        ),
        "operator's stop": (lambda: rig.robot.stop(reason="soak"), nothing),
    }


class Soak:
    """One run. `content` is what it counted, JSON-able."""

    def __init__(self, rig: TwoProcesses, *, minutes: float, seed: int):
        self._rig, self._minutes = rig, minutes
        self._rng = np.random.default_rng(seed)
        self._planner = rig.planner = ReachingPlanner(rig.robot, self._rng)
        self._faults = faults(rig)
        self.content: dict[str, Any] = {
            "minutes": minutes,
            "seed": seed,
            "violations": 0,
            "outside_m": -np.inf,
            "top_speed": 0.0,
            "rearmed": 0,
            "memory": [],  # time [s], of the robot's process and of the planner's [MiB]
        }
        self._counted: Counter[str] = Counter()
        self._looked_at = rig.side("now")

    def run(self) -> None:
        """Reaches, breaks and mends, until the time is over."""
        began = time.monotonic()
        ends, looks_at = began + 60 * self._minutes, began + LOOK_S
        names = list(self._faults)
        while time.monotonic() < ends:
            self._drive(self._rng.uniform(*CALM_S))
            name = str(self._rng.choice(names))
            start, end = self._faults[name]
            self._counted[name] += 1
            try:
                start()
            except RobotError:
                pass  # the network is away already
            self._drive(self._rng.uniform(*FAULT_S))
            end()
            if time.monotonic() >= looks_at:
                self._look()
                looks_at = time.monotonic() + LOOK_S
        self._look()
        self.content |= {
            "faults": dict(self._counted.most_common()),
            "reached": self._planner.reached,
            "reconnects": self._rig.robot.reconnects,
            "simulated_s": self._rig.side("now"),
            "planner": dict(self._planner.counters),
            "robot": self._rig.side("report", since=self._looked_at)["counters"],
            "server": self._rig.side("server"),
        }

    def _drive(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._planner.step()
            seen = self._planner.seen
            if seen is not None and seen.state in (RobotState.FAULT, RobotState.IDLE):
                self._arm_again()
            time.sleep(0.005)

    def _arm_again(self) -> None:
        """What an operator would do."""
        try:
            if self._rig.robot.observe(max_age_s=10.0).state is RobotState.FAULT:
                self._rig.side("push", force=0.0)
                self._rig.robot.recover(operator="soak")
            self._rig.robot.arm(operator="soak")
            self.content["rearmed"] += 1
        except (RobotError, StaleObservationError):
            time.sleep(0.05)  # not well yet

    def _look(self) -> None:
        found = self._rig.side("report", since=self._looked_at)
        self._looked_at = found["now"]
        outside, fast = found["outside_m"], found["top_speed"]
        self.content["outside_m"] = max(self.content["outside_m"], outside)
        self.content["top_speed"] = max(self.content["top_speed"], fast)
        self.content["violations"] += outside > 0.003 or fast > 1.1 * ENVELOPE.velocity
        memory = (found["now"], found["rss_mib"], _memory_mib())
        self.content["memory"].append([round(value, 1) for value in memory])
        print(
            f"{found['now']:8.1f} s simulated, {self._planner.reached} reached, "
            f"{sum(self._counted.values())} faults, {self.content['violations']} violations, "
            f"{found['rss_mib']:.0f} MiB, {found['state']} ({found['reason']})",
            flush=True,
        )


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Runs for so many minutes as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    arguments = parser.parse_args()
    rig = TwoProcesses({})
    try:
        begin(rig)
        soak = Soak(rig, minutes=arguments.minutes, seed=arguments.seed)
        soak.run()
    finally:
        rig.close()
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "note": arguments.note,
        "machine": describe_machine(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, about | soak.content)
    print(f"{soak.content['violations']} envelope violations: {arguments.out}")
    return 1 if soak.content["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
