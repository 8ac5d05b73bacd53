"""What is said of a drive, while it goes on and afterwards."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from worldmodel.drive import Outcome
from worldmodel.driving.goals import CapturedGoal
from worldmodel.driving.reference import Pose
from worldmodel.driving.replanning import Planned
from worldmodel.runs import describe_machine, write_json
from worldmodel.tables import write_csv


def distance_to(goal: CapturedGoal, position: Float[np.ndarray, "3"]) -> float | None:
    """Returns how far a place is from where a goal was taken [m]; None when that is not known."""
    if goal.side is None:
        return None
    return float(np.linalg.norm(position - np.array(goal.side.proprio[:3])))


def print_plan(planned: Planned, pose: Pose, goal: CapturedGoal) -> None:
    """Prints one line about a plan."""
    away = distance_to(goal, pose.position)
    far = "" if away is None else f"  distance {100 * away:5.1f} cm"
    decision, gate = planned.decision, planned.gate
    judged = "" if math.isnan(gate.score) else f"  surprise {gate.score:.2f}: {gate.verdict}"
    print(
        f"energy {decision.energy_now:.4f}{far}  plan {decision.plan_ms:4.0f} ms{judged}",
        flush=True,
    )


def write_outcome(run: Path, outcome: Outcome, goal: CapturedGoal) -> None:
    """Writes `drive.json` and `commands.csv`."""
    last = outcome.last
    write_json(
        run / "drive.json",
        {
            "end": outcome.end,
            "reason": outcome.reason,
            "seconds": outcome.seconds,
            "distance_m": None if last is None else distance_to(goal, last.position),
            "last_proprio": None if last is None else last.proprio.tolist(),
            "counters": dict(outcome.counters),
            "latencies_s": list(outcome.latencies_s),
            "energies": list(outcome.energies),
            "machine": describe_machine(),
        },
    )
    rows = [
        (f"{time:.4f}", command.seq, command.obs_seq, f"{command.valid_for_s:.3f}", command.kind)
        + tuple(f"{value:.6f}" for value in command.values)
        + (("",) * (6 - len(command.values)))
        + ("" if command.gripper is None else f"{command.gripper:.3f}",)
        for time, command in outcome.commands
    ]
    axes = ("vx", "vy", "vz", "wx", "wy", "wz")
    write_csv(
        run / "commands.csv",
        ("at", "seq", "obs_seq", "valid_for_s", "kind", *axes, "gripper"),
        rows,
    )


def print_dry_run(outcome: Outcome) -> None:
    """Prints what would have been sent."""
    twists = np.array([c.values for _, c in outcome.commands if c.kind == "twist"]).reshape(-1, 6)
    fastest = 100 * np.linalg.norm(twists[:, :3], axis=1).max(initial=0.0)
    print(
        f"dry run: nothing was sent; it would have been {len(outcome.commands)} commands, at most "
        f"{fastest:.1f} cm/s"
    )


def print_outcome(run: Path, outcome: Outcome, goal: CapturedGoal) -> None:
    """Prints how it ended; last, how far from the goal."""
    counters = outcome.counters
    late = f", {counters['late_plans']} too late" if counters["late_plans"] else ""
    print(f"{outcome.end}: {outcome.reason}")
    if outcome.latencies_s:
        p50, p95 = np.percentile(1000 * np.array(outcome.latencies_s), [50, 95])
        print(
            f"{counters['plans']} plans{late} in {outcome.seconds:.1f} s; from asking to having "
            f"one {p50:.0f} ms median, {p95:.0f} ms p95"
        )
    if counters["gate:judged"] or counters["gate:unjudged"]:
        print(
            f"the gate judged {counters['gate:judged']} plans (without a picture one step before: "
            f"{counters['gate:unjudged']}); slowed: "
            f"{counters['gate:slow'] + counters['gate:replan']}, held: {counters['gate:hold']}"
        )
    for name in sorted(counters):
        if name.startswith(("refused:", "stale:")):
            print(f"{name}: {counters[name]} times")
    print(f"look at {run / 'drive.json'}, or: worldmodel replay {run}")
    if outcome.last is not None and goal.side is not None:
        away = distance_to(goal, outcome.last.position)
        assert away is not None
        print(f"{100 * away:.1f} cm from where the goal was taken")
    elif outcome.energies:
        print(f"energy to the goal {outcome.energies[0]:.4f} -> {outcome.energies[-1]:.4f}")
