"""Faults of sensors, planner, commands, gripper and arm: the same rows against every rig."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldmodel.driving.goals import read_goal
from worldmodel.envs.robots.interface import Robot, RobotError, RobotState
from worldmodel.envs.robots.limits import Envelope, hardware_limits
from worldmodel.envs.robots.safety import SafeRobot

from .planner import LIFE_S, PLAN_MAX_AGE_S, SPEED
from .rigs import FCI, IN_PROCESS, TWO_PROCESSES, Rig, cruise
from .robot_side import CAMERA, ENVELOPE
from .verdict import Row, Verdict, inside, stopped, went_on

SETTLE_S = 0.8  # after which an arm that brakes has come to rest
EXPIRY_S = LIFE_S + 0.125  # of the last command, and of one on its way
BOTH, ALL = (IN_PROCESS, TWO_PROCESSES), (IN_PROCESS, TWO_PROCESSES, FCI)


def says(found: Mapping[str, Any]) -> str:
    """Returns the states that an arm went through, in words."""
    steps = [f"{state} ({reason})" if reason else state for _, state, reason in found["states"]]
    return ", then ".join(dict.fromkeys(steps)) or f"stayed {found['state']}"


def goes_on_after(rig: Rig) -> bool:
    """Returns whether the arm moves by itself before long."""
    since = rig.side("now")
    for _ in range(6):
        rig.run(1.0)
        if rig.side("report", since=since)["way_m"] > SPEED:
            return True
    return False


def sensor(rig: Rig, *, break_it: Callable[[Rig], Any], within_s: float, reason: str) -> Verdict:
    """A fault of a camera that holds the arm until the camera is well again."""
    since = cruise(rig)
    break_it(rig)
    rig.run(within_s + SETTLE_S)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=within_s, reason=reason)
    rig.side("heal")
    checks["went on with a fresh picture"] = goes_on_after(rig)
    return Verdict(says(found), checks, found["reaction_s"], found["travel_m"])


def frames_lost(rig: Rig, *, share: float) -> Verdict:
    """Some frames never arrive."""
    since = cruise(rig)
    rig.side("lose", camera="exterior", share=share)
    rig.run(6.0)
    found = rig.side("report", since=since)
    holds = {k: v for k, v in found["counters"].items() if k.startswith("hold:")}
    reasons = set(holds) <= {"hold:camera_stale:exterior", "hold:expired", "hold:tick_late"}
    text = f"{100 * found['way_m'] / (SPEED * found['elapsed_s']):.0f} % of its way; " + (
        ", ".join(f"{v} {k}" for k, v in holds.items()) or "no hold"
    )
    return Verdict(text, went_on(found, share=0.6) | {"only held for that": reasons})


def optional_camera_lost(rig: Rig) -> Verdict:
    """A camera that may be missed."""
    since = cruise(rig)
    rig.side("freeze", camera="wrist")
    rig.run(2.0)
    found = rig.side("report", since=since)
    seen = rig.planner.seen
    told = seen is not None and "wrist" not in seen.frames
    return Verdict(says(found), went_on(found) | {"left out of observations": told})


def planner_slow(rig: Rig) -> Verdict:
    """Twice the latency: the tail of the plan before is followed."""
    since = cruise(rig)
    rig.planner.latency_s *= 2
    rig.run(3.0)
    found = rig.side("report", since=since)
    return Verdict(says(found), went_on(found) | {"state running": found["state"] == "running"})


def planner_far_too_slow(rig: Rig) -> Verdict:
    """Plans that are too old when they come; one planner follows them all the same."""
    since = cruise(rig)
    rig.planner.latency_s = 20 * rig.planner.latency_s
    rig.run(PLAN_MAX_AGE_S + 0.5 + SETTLE_S)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=PLAN_MAX_AGE_S + 0.25)
    before = rig.side("now")
    rig.run(2.5)
    late = rig.planner.counters["late_plans"]
    checks["late plans discarded"] = late > 0
    checks["stayed at rest"] = rig.side("report", since=before)["travel_m"] < 0.002
    rig.planner.sends_late = True
    rig.run(2.5)
    refused = rig.planner.counters["refused:obs_old"] + rig.planner.counters["refused:obs_unknown"]
    checks["sent all the same: refused"] = refused > 0
    checks["stayed at rest then"] = rig.side("report", since=before)["travel_m"] < 0.002
    text = f"{says(found)}; {late} plans discarded, {refused} late ones refused"
    return Verdict(text, checks, found["reaction_s"], found["travel_m"])


def planner_silent(rig: Rig) -> Verdict:
    """No more commands."""
    since = cruise(rig)
    rig.run(EXPIRY_S + SETTLE_S, drive=False)
    found = rig.side("report", since=since)
    return Verdict(
        says(found), stopped(found, within_s=EXPIRY_S), found["reaction_s"], found["travel_m"]
    )


def old_numbers(rig: Rig) -> Verdict:
    """Commands that come twice, or after later ones, with another direction."""
    since = cruise(rig)
    back = np.array([0.0, -rig.planner.direction * SPEED, 0.0, 0.0, 0.0, 0.0])
    seq = rig.planner.seq
    acks = [rig.planner.send(seq=old, values=back) for old in (seq - 1, seq - 3, 0)]
    rig.planner.seq = seq
    rig.run(0.3)
    found = rig.side("report", since=since)
    checks = {
        "refused": all(ack.reason == "seq_old" for ack in acks),
        "counted": found["counters"].get("rejected:seq_old", 0) >= len(acks),
    } | went_on(found, share=0.9)
    text = f"{', '.join(str(ack.reason) for ack in acks)}; {says(found)}"
    return Verdict(text, checks, None, None)


WRONG: Sequence[Mapping[str, Any]] = [
    {"values": np.array([math.nan, 0, 0, 0, 0, 0])},
    {"kind": "joint_torque"},
    {"valid_for_s": 60.0},
    {"values": np.array([0, 0, 0, 0, 0, math.inf])},
    {"values": np.zeros(5)},
    {"values": np.zeros(6, np.int64)},
    {"kind": "pose", "values": np.array([0.5, 0, 0.3, 0, 0, 0, 2.0])},
    {"valid_for_s": math.nan},
    {"gripper": math.nan},
    {"gripper": 7.0},
]


def wrong_commands(rig: Rig, *, wrong: Sequence[Mapping[str, Any]]) -> Verdict:
    """Numbers that are none, wrong sizes and kinds: one of each, each while the arm moves."""
    reasons, checks, slowest, farthest = [], {}, 0.0, 0.0
    for changes in wrong:
        since = cruise(rig)
        ack = rig.planner.send(**changes)
        rig.run(0.1 + SETTLE_S, drive=False)
        found = rig.side("report", since=since)
        reasons.append(str(ack.reason))
        for name, held in (stopped(found, within_s=0.1) | {"refused": not ack.accepted}).items():
            checks[name] = checks.get(name, True) and held
        slowest = max(slowest, found["reaction_s"] or 0.0)  # a check fails where there is none
        farthest = max(farthest, found["travel_m"])
    return Verdict(f"refused: {', '.join(reasons)}", checks, slowest, farthest)


def too_many_wrong_commands(rig: Rig) -> Verdict:
    """A planner that sends nothing else."""
    since = cruise(rig)
    for _ in range(10):
        rig.planner.send(values=np.full(6, math.nan))
    rig.run(SETTLE_S)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=0.1, state="fault", reason="too_many_rejects")
    return Verdict(says(found), checks, found["reaction_s"], found["travel_m"])


def far_too_fast(rig: Rig) -> Verdict:
    """Commands of 10 m/s towards a wall of the box, for as long as they are taken."""
    since = cruise(rig)
    fast = np.array([0.0, 10.0, 0.0, 0.0, 0.0, 0.0])
    clamped: set[str] = set()
    for _ in range(40):
        rig.run(0.1, drive=False)
        rig.planner.seen = rig.robot.observe(max_age_s=1.0)
        clamped |= set(rig.planner.send(values=fast).clamped)
    rig.run(LIFE_S + SETTLE_S, drive=False)
    found = rig.side("report", since=since)
    text = (
        f"clamped ({', '.join(sorted(clamped))}), {1000 * found['outside_m']:+.1f} mm from the wall"
    )
    return Verdict(text, inside(found) | {"clamped": "velocity" in clamped})


def error_at_connect(rig: Rig) -> Verdict:
    """The arm has an error before we come."""
    rig.robot.connect(timeout_s=60.0)
    seen = rig.robot.observe(max_age_s=60.0)
    try:
        rig.robot.arm(operator="fault table")
        text = "armed"
    except RobotError as error:
        text = str(error)
    rig.planner.seen = seen
    rig.planner._middle = seen.tcp_pos_base
    ack = rig.planner.send()
    checks = {
        "connected, state fault": seen.state is RobotState.FAULT,
        "error named": any(name in text for name in seen.errors) and bool(seen.errors),
        "command refused": not ack.accepted,
    }
    return Verdict(f"{text}; command: {ack.reason}", checks)


def pushed(rig: Rig) -> Verdict:
    """Something pushes the arm while it moves."""
    since = cruise(rig)
    rig.side("push", force=-rig.planner.direction * 60.0)
    rig.run(0.5 + SETTLE_S)
    rig.side("push", force=0.0)
    rig.run(2.5)  # the planner goes on sending
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=0.3, state="fault")
    checks["commands refused"] = rig.planner.counters["refused:fault"] > 0
    rig.robot.recover(operator="fault table")
    rig.run(0.5)
    rig.robot.arm(operator="fault table")
    checks["moves after an operator's recovery"] = goes_on_after(rig)
    return Verdict(says(found), checks, found["reaction_s"], found["travel_m"])


def operator_stops(rig: Rig) -> Verdict:
    """A stop in full motion, while the planner goes on sending."""
    since = cruise(rig)
    rig.robot.stop(reason="operator")
    rig.run(SETTLE_S)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=0.1, state="idle", reason="operator")
    checks["commands refused"] = rig.planner.counters["refused:not_armed"] > 0
    return Verdict(says(found), checks, found["reaction_s"], found["travel_m"])


def loop_stalled(rig: Rig) -> Verdict:
    """The loop that sends velocities stands still; the arm's own goes on."""
    since = cruise(rig)
    rig.side("stall", seconds=0.6)
    rig.run(0.05, drive=False)
    found = rig.side("report", since=since)
    late = found["counters"].get("late_ticks", 0)
    # The inner command lives for tick_timeout_s, so the arm brakes while nobody looks.
    limit = SPEED * ENVELOPE.tick_timeout_s + SPEED**2 / (2 * ENVELOPE.axis_deceleration) + 0.01
    checks = {
        "came to rest": found["travel_m"] <= limit,
        "overrun counted": late > 0,
        "held": any(state == "hold" for _, state, _ in found["states"]),
    } | inside(found)
    checks["went on"] = goes_on_after(rig)
    text = f"{says(found)}; {late} overruns counted"
    return Verdict(text, checks, None, found["travel_m"])


def grasp_nothing(rig: Rig) -> Verdict:
    """The gripper closes on nothing while the arm moves."""
    cruise(rig)
    rig.planner.gripper = 1.0
    rig.run(3.0)
    seen = rig.planner.seen
    assert seen is not None
    checks = {"not grasped": seen.grasped is False, "width told": seen.gripper_width_m < 0.003}
    return Verdict(f"grasped {seen.grasped}, width {1000 * seen.gripper_width_m:.1f} mm", checks)


def slips(rig: Rig) -> Verdict:
    """What is held is gone, while the arm moves."""
    cruise(rig)
    rig.run(0.5, drive=False)
    rig.side("give_cube")
    rig.planner.gripper = 1.0
    for _ in range(20):  # closes at rest, so that the floating cube stays between the fingers
        rig.planner.seen = rig.robot.observe(max_age_s=1.0)
        rig.planner.send(values=np.zeros(6))
        rig.run(0.1, drive=False)
    rig.side("release_cube")
    rig.run(0.5)
    cruise(rig)
    held, force = rig.planner.seen, rig.side("grip_force")
    since = rig.side("now")
    rig.side("take_cube")
    told_s, most = None, 0.0
    while rig.side("now") < since + 2.0:
        rig.run(0.02)
        most = max(most, rig.side("grip_force"))
        if told_s is None and rig.planner.seen is not None and rig.planner.seen.grasped is False:
            told_s = rig.planner.seen.state_at - since
    after = rig.planner.seen
    assert held is not None and after is not None
    checks = {
        "grasped before": held.grasped is True,
        "planner told within 500 ms": told_s is not None and told_s < 0.5,
        "force did not rise": most <= 1.2 * force + 1.0,
    }
    text = (
        f"grasped {held.grasped} at {1000 * held.gripper_width_m:.0f} mm and {force:.0f} N, then "
        f"{after.grasped} at {1000 * after.gripper_width_m:.0f} mm, at most {most:.0f} N"
    )
    return Verdict(text, checks, told_s, None)


def disk_full(rig: Rig) -> Verdict:
    """No file can grow any more."""
    since = cruise(rig)
    rig.side("fill_disk")
    try:
        rig.run(3.0)
        found = rig.side("report", since=since)
    finally:
        rig.side("empty_disk")
    text = f"recorder: {found['problem']}; {says(found)}"
    checks = went_on(found) | {"recorder says so": found["problem"] is not None}
    return Verdict(text, checks)


def skewed_clock(rig: Rig) -> Verdict:
    """The clocks of the two sides are an hour apart."""
    since = cruise(rig)
    rig.run(2.0)
    going = went_on(rig.side("report", since=since))
    since = cruise(rig)
    rig.run(EXPIRY_S + SETTLE_S, drive=False)
    found = rig.side("report", since=since)
    checks = going | stopped(found, within_s=EXPIRY_S)
    text = f"drove as ever, then silent: {says(found)}"
    return Verdict(text, checks, found["reaction_s"], found["travel_m"])


def wrong_goal(rig: Rig) -> Verdict:
    """A goal image of another size than the live pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "goal.png"
        cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
        try:
            read_goal(path, camera="exterior", live=CAMERA, model_size=64, crop="center")
            text, refused = "accepted", False
        except ValueError as error:
            text, refused = str(error).replace(folder + "/", ""), True
    checks = {"refused": refused, "sizes named": "64x48" in text and "32x24" in text}
    return Verdict(text, checks)


def limits_above_hardware(rig: Rig) -> Verdict:
    """An envelope that allows more than the arm can do."""
    too_fast = hardware_limits(rig.robot.info.arm).translation.velocity * 1.01
    envelope = Envelope(
        workspace_low=ENVELOPE.workspace_low,
        workspace_high=ENVELOPE.workspace_high,
        velocity=too_fast,
    )
    try:
        SafeRobot(inner_of(rig.robot), envelope)
        text, refused = "accepted", False
    except ValueError as error:
        text, refused = str(error), True
    return Verdict(text, {"refused at start": refused})


def inner_of(robot: Any) -> Robot:
    """Returns the robot that a recorded, safe robot is around."""
    return robot.inner.inner


def _freeze(rig: Rig, camera: str = "exterior") -> None:
    rig.side("freeze", camera=camera)


def _repeat(rig: Rig) -> None:
    rig.side("repeat", camera="exterior")


# The camera's own period comes on top of the oldest picture that is allowed.
STALE_S = ENVELOPE.camera_max_age_s + 1 / CAMERA.fps + 0.03
FROZEN_S = ENVELOPE.identical_frames / CAMERA.fps + 0.1
REARM = "no motion before an operator's act"

ROWS = [
    Row(
        "camera frozen: same frame",
        "HOLD within 300 ms, reason camera_stale; goes on with a fresh frame",
        partial(sensor, break_it=_freeze, within_s=STALE_S, reason="camera_stale:exterior"),
        BOTH,
        recorded=True,
    ),
    Row(
        "camera frozen: same bytes, new stamps",
        f"HOLD after {ENVELOPE.identical_frames} identical pictures, reason camera_frozen",
        partial(sensor, break_it=_repeat, within_s=FROZEN_S, reason="camera_frozen:exterior"),
        BOTH,
        recorded=True,
    ),
    *(
        Row(
            f"{percent} % of frames lost",
            "the task goes on; counted; nothing is done on a picture that is too old",
            partial(frames_lost, share=percent / 100),
            BOTH if percent == 30 else (IN_PROCESS,),
        )
        for percent in (1, 10, 30)
    ),
    Row(
        "one of two cameras lost",
        "HOLD, reason camera_stale",
        partial(
            sensor,
            break_it=partial(_freeze, camera="wrist"),
            within_s=STALE_S,
            reason="camera_stale:wrist",
        ),
        BOTH,
        {"cameras": ["exterior", "wrist"]},
        recorded=True,
    ),
    Row(
        "one of two cameras lost, marked optional",
        "goes on without it",
        optional_camera_lost,
        BOTH,
        {"optional": ["wrist"]},
    ),
    Row("planner twice as slow", "the plan's tail is followed", planner_slow, ALL),
    Row(
        "planner twenty times as slow",
        "HOLD when the plan is 1 s old; late plans are not followed, and refused if sent",
        planner_far_too_slow,
        ALL,
    ),
    Row("planner silent", "HOLD when its last command expires", planner_silent, ALL),
    Row(
        "commands out of order, or twice", "refused (seq_old), counted; no effect", old_numbers, ALL
    ),
    *(
        Row(
            f"wrong commands: {what}",
            "each refused with a reason; HOLD at once",
            partial(wrong_commands, wrong=wrong),
            on,
        )
        for what, wrong, on in (
            ("NaN, infinite, sizes, types, kinds", WRONG, (IN_PROCESS,)),
            ("NaN, an unknown kind, a long life", WRONG[:3], (TWO_PROCESSES, FCI)),
        )
    ),
    Row(
        "nothing but wrong commands",
        "FAULT after five in two seconds",
        too_many_wrong_commands,
        ALL,
        recorded=False,
    ),
    Row("commands of 10 m/s towards a wall", "clamped; inside of the box", far_too_fast, BOTH),
    Row(
        "robot in error at connect",
        "connects, FAULT, the error named; cannot be armed or commanded",
        error_at_connect,
        BOTH,
        {"error": "joint_limit"},
        armed=False,
    ),
    Row(
        "reflex mid-motion: pushed with 60 N",
        f"FAULT; commands refused; no retry; recorded; {REARM}",
        pushed,
        BOTH,
        recorded=True,
    ),
    Row("operator's stop", f"IDLE at once; {REARM}", operator_stops, ALL),
    Row("grasp of nothing", "said so, with the width", grasp_nothing, BOTH),
    Row("held object slips", "planner told, with the width; no more force", slips, (IN_PROCESS,)),
    Row(
        "safety loop starved for 0.6 s",
        "the arm brakes by itself after 0.1 s; overrun counted; HOLD",
        loop_stalled,
        BOTH,
    ),
    Row("disk full for the recorder", "keeps driving, says so, stops recording", disk_full, BOTH),
    Row(
        "clocks 1 h apart",
        "no effect: drives, and expires, as ever",
        skewed_clock,
        (IN_PROCESS,),
        {"skew_s": 3600.0},
    ),
    *(
        Row(
            f"clocks {hours:+d} h apart, drifting",
            "no effect: drives, and expires, as ever",
            skewed_clock,
            (TWO_PROCESSES,),
            {"clock_skew_s": 3600.0 * hours},
        )
        for hours in (1, -1)
    ),
    Row("goal image of another size", "refused when read, sizes named", wrong_goal, (IN_PROCESS,)),
    Row(
        "limits above the hardware's",
        "refused at start, the limit named",
        limits_above_hardware,
        (IN_PROCESS,),
    ),
]
