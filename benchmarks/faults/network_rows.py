"""Faults of the network and of whole processes: planner and arm are in two."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from worldmodel.envs.robots.client import find_robot
from worldmodel.envs.robots.interface import NotConnectedError, RobotError, RobotState
from worldmodel.envs.robots.wire import pack

from .planner import LIFE_S, SPEED, ScriptedPlanner
from .rigs import PATIENCE_S, ROOT, TOKEN, TWO_PROCESSES, RobotPC, TwoProcesses, cruise
from .rows import EXPIRY_S, REARM, SETTLE_S, goes_on_after, says
from .verdict import Row, Verdict, stopped, went_on

REARM_AFTER_S = 5.0
HERE = (TWO_PROCESSES,)


def comes_back(rig: TwoProcesses) -> bool:
    """Waits until the robot can be observed again; returns whether it can."""
    deadline = time.monotonic() + PATIENCE_S
    while not answers(rig):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def answers(rig: TwoProcesses) -> bool:
    """Returns whether the robot can be observed."""
    try:
        rig.robot.observe(max_age_s=PATIENCE_S)
    except RobotError:
        return False
    return True


def cut_short(rig: TwoProcesses, *, seconds: float) -> Verdict:
    """A network that is away for less than a command lives."""
    since = cruise(rig)
    rig.proxy.cut(PATIENCE_S)
    rig.run(seconds, drive=False)
    rig.proxy.clear()
    rig.run(3.0)
    found = rig.side("report", since=since)
    return Verdict(says(found), went_on(found), found["reaction_s"], None)


def lost(rig: TwoProcesses, *, fault: Callable[[TwoProcesses], object], away_s: float) -> Verdict:
    """A connection that is lost, and nothing that was sent meanwhile is done later.

    It is away for so long on both clocks: the arm's may be slow, and the server counts wall time.
    """
    since, before = cruise(rig), rig.robot.reconnects
    ends = time.monotonic() + away_s
    fault(rig)
    with suppress(NotConnectedError):
        rig.planner.send()  # is on its way until the network is back, or is lost
    rig.run(EXPIRY_S + SETTLE_S, drive=False)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=EXPIRY_S)
    held_at = rig.side("now")
    while time.monotonic() < ends or rig.side("now") < since + away_s:
        rig.planner.step()
        time.sleep(0.02)
    rig.proxy.clear()
    rig.run(0.5, drive=False)
    waiting = rig.side("report", since=held_at)
    checks["nothing queued was done"] = waiting["travel_m"] < 0.002
    checks["connected again"] = comes_back(rig)
    while rig.robot.now() > rig.side("now") + 0.05:  # a slow simulation is behind our guess
        time.sleep(0.05)
    if away_s > REARM_AFTER_S:
        rig.run(1.0)
        still = rig.side("report", since=held_at)
        checks[REARM] = still["state"] == "idle" and still["travel_m"] < 0.002
        rig.robot.arm(operator="fault table")
    checks["moves again"] = goes_on_after(rig)
    late = rig.side("server").get("late", 0)
    text = f"{says(found)}, then {waiting['state']} ({waiting['reason']}); connected again "
    text += f"{rig.robot.reconnects - before} times; {late} late commands refused"
    return Verdict(text, checks, found["reaction_s"], found["travel_m"])


def late_replies(rig: TwoProcesses) -> Verdict:
    """Replies that come after the client gave up waiting."""
    since = cruise(rig)
    rig.proxy.delay(1.5)  # each way; a client waits for 1 s
    ends = time.monotonic() + 4.0
    while time.monotonic() < ends or rig.side("now") < since + EXPIRY_S + SETTLE_S:
        rig.planner.step()
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=EXPIRY_S + 0.2)
    rig.proxy.clear()
    numbers, ages, deadline = [], [], time.monotonic() + PATIENCE_S
    while len(numbers) < 20 and time.monotonic() < deadline:
        try:
            seen = rig.robot.observe(max_age_s=PATIENCE_S)
        except NotConnectedError:
            time.sleep(0.05)
            continue
        numbers.append(seen.seq)
        ages.append(rig.robot.now() - seen.state_at)
    checks["20 answers, each newer than the last"] = len(set(numbers)) == 20
    checks["in order"] = numbers == sorted(numbers) and max(ages) < 1.0
    given_up = rig.planner.counters["lost"]
    checks["given up in between"] = given_up > 0
    text = f"{says(found)}; {given_up} questions given up; then 20 answers, each newer"
    return Verdict(text, checks, found["reaction_s"], found["travel_m"])


@contextmanager
def planner_process(rig: TwoProcesses):
    """A planner in a process of its own; that of the rig gives the arm back to it."""
    rig.robot.close()
    words = [sys.executable, "-m", "benchmarks.faults.planner_pc", rig.url]
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"WORLDMODEL_TOKEN": TOKEN})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def moving(rig: TwoProcesses) -> float:
    """Waits until the other process moves the arm through the middle; returns the time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        now = rig.side("now")
        if now > 1.0:
            found = rig.side("report", since=now - 0.1)
            if found["speed"] > 0.9 * SPEED and abs(found["position"][1]) < 0.05:
                return now
        time.sleep(0.02)
    raise RuntimeError("the other process never moved the arm")


def planner_signalled(rig: TwoProcesses, *, number: signal.Signals) -> Verdict:
    """The planner's process dies, or stands still with its connection open."""
    with planner_process(rig) as process:
        since = moving(rig)
        process.send_signal(number)
        rig.run(EXPIRY_S + SETTLE_S, drive=False)
        found = rig.side("report", since=since)
        checks = stopped(found, within_s=EXPIRY_S)
        deadline = time.monotonic() + PATIENCE_S
        while (state := rig.side("report", since=since)["state"]) != "idle":
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        checks["disarmed in the end"] = state == "idle"
    return Verdict(says(found), checks, found["reaction_s"], found["travel_m"])


def server_killed(rig: TwoProcesses) -> Verdict:
    """The robot's process dies, and the simulated arm with it; another one starts."""
    cruise(rig)
    rig.pc.process.kill()
    rig.pc.process.wait()
    rig.planner.step()
    lost_after, began = None, time.monotonic()
    while lost_after is None and time.monotonic() - began < PATIENCE_S:
        try:
            rig.robot.observe(max_age_s=1.0)
        except NotConnectedError:
            lost_after = time.monotonic() - began
    port, old = rig.pc.port, rig.pc
    rig.pc = RobotPC({}, port=port)
    for pipe in (old.process.stdin, old.process.stdout):
        assert pipe is not None
        pipe.close()
    deadline = time.monotonic() + PATIENCE_S
    while not answers(rig) and time.monotonic() < deadline:
        time.sleep(0.05)
    rig.planner = ScriptedPlanner(rig.robot)
    rig.planner.seen = rig.robot.observe(max_age_s=PATIENCE_S)
    refused = [rig.planner.send(values=np.zeros(6)).reason for _ in range(3)]
    rig.run(1.0, drive=False)
    found = rig.side("report", since=0.0)
    checks = {
        "planner told": lost_after is not None,
        "the new one does not move": found["travel_m"] < 0.002 and found["state"] == "idle",
        "commands refused": refused == ["not_armed"] * 3,
    }
    rig.robot.close()
    rig.robot = find_robot(rig.url, token=TOKEN, tls=None, timeout_s=PATIENCE_S)
    rig.robot.connect(timeout_s=PATIENCE_S)
    rig.planner = ScriptedPlanner(rig.robot)
    rig.robot.arm(operator="fault table")
    checks["moves once armed"] = goes_on_after(rig)
    text = f"planner told; the new one is idle; commands refused: {', '.join(map(str, refused))}"
    return Verdict(text, checks)


def server_stopped(rig: TwoProcesses) -> Verdict:
    """The robot's process stands still; a physical arm would stop after 20 ms of silence."""
    since = cruise(rig)
    rig.pc.process.send_signal(signal.SIGSTOP)
    ends, counters = time.monotonic() + 2.0, rig.planner.counters
    while time.monotonic() < ends:
        rig.planner.step()
    told = counters["lost"] > 0
    rig.pc.process.send_signal(signal.SIGCONT)
    rig.run(LIFE_S + SETTLE_S, drive=False)
    found = rig.side("report", since=since)
    checks = stopped(found, within_s=EXPIRY_S + 0.1) | {"planner told": told}
    text = f"the simulated arm stands still with its process; afterwards {says(found)}"
    return Verdict(text, checks, None, None, shown=False)


def malformed() -> list[bytes | str]:
    """Returns frames that are no requests."""
    array = {b"__ndarray__": True, b"data": bytes(16), b"dtype": "<f4", b"shape": [4]}
    request = {"id": 1, "ask": "observe", "given": {"max_age_s": 1.0}}
    good = pack(request)
    arrays = [{b"dtype": "|O"}, {b"dtype": "<c8"}, {b"shape": [-1]}, {b"data": "text"}]
    return [
        good[:-3],
        good + b"\x00",
        b"",
        b"\xc1",
        "text",
        bytes(15_000),
        bytes(200_000),
        b"\x91" * 3000 + b"\x80",
        b"\xdd\xff\xff\xff\xff",
        *(
            bytes(msgpack.packb(request | {"given": {"max_age_s": array | bad}}) or b"")
            for bad in arrays
        ),
        pack(request | {"id": "one"}),
        pack(request | {"ask": "command"}),
        pack(request | {"given": []}),
        pack(request | {"given": {"max_age_s": float("nan")}}),
        pack(request | {"more": 1}),
        pack([1, 2, 3]),
    ]


def malformed_messages(rig: TwoProcesses) -> Verdict:
    """Frames that are no requests, from someone with the token, while the arm moves."""
    since = cruise(rig)
    memory = rig.side("report", since=since)["rss_mib"]
    frames, refused = malformed() * 5, 0
    for i, frame in enumerate(frames):
        path = ("/observe", "/stop")[i % 2]
        with connect(
            f"ws://127.0.0.1:{rig.pc.port}{path}",
            additional_headers={"Authorization": f"Api-Key {TOKEN}"},
            proxy=None,
            close_timeout=1,
        ) as socket:
            socket.recv(PATIENCE_S)
            try:
                socket.send(frame)
                socket.recv(PATIENCE_S)
                socket.recv(PATIENCE_S)
            except ConnectionClosed:
                refused += 1
        rig.planner.step()
    found = rig.side("report", since=since)
    checks = {
        "all refused, connections closed": refused == len(frames),
        "memory bounded": found["rss_mib"] - memory < 50,
        "server alive": answers(rig),
    } | went_on(found, share=0.6)
    text = (
        f"{refused} of {len(frames)} refused and closed; {says(found)}; memory "
        f"{found['rss_mib'] - memory:+.0f} MiB"
    )
    return Verdict(text, checks)


def unauthorised(rig: TwoProcesses) -> Verdict:
    """Strangers, and a second controller, while the arm moves."""
    since = cruise(rig)
    statuses = []
    for path, token in (
        ("/control", None),
        ("/control", "wrong-horse-battery-staple"),
        ("/stop", None),
        ("/control", TOKEN),
    ):
        headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
        try:
            with connect(
                f"ws://127.0.0.1:{rig.pc.port}{path}", additional_headers=headers, proxy=None
            ):
                statuses.append(101)
        except InvalidStatus as error:
            statuses.append(error.response.status_code)
        rig.planner.step()
    try:
        second = find_robot(
            f"ws://127.0.0.1:{rig.pc.port}", token=TOKEN, tls=None, timeout_s=PATIENCE_S
        )
        second.connect(timeout_s=5.0)
        said = "a second controller was let in"
    except NotConnectedError as error:
        said = str(error).partition(": ")[2]
    rig.run(1.0)
    found = rig.side("report", since=since)
    checks = {"401, 401, 401, 409": statuses == [401, 401, 401, 409]} | went_on(found)
    text = f"{', '.join(map(str, statuses))} ({said}); {says(found)}"
    return Verdict(text, checks)


def starved(rig: TwoProcesses) -> Verdict:
    """Other programs take the processor that the robot's process runs on."""
    since, core = cruise(rig), min(os.sched_getaffinity(0))
    os.sched_setaffinity(rig.pc.process.pid, {core})
    loop = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(6)]
    try:
        ends = time.monotonic() + 5.0
        while time.monotonic() < ends:
            rig.planner.step()
            time.sleep(0.005)
        rig.run(EXPIRY_S + SETTLE_S, drive=False)
        found = rig.side("report", since=since)
    finally:
        for other in others:
            other.kill()
            other.wait()
    late = found["counters"].get("late_ticks", 0)
    checks = {
        "at rest when the planner is silent": found["speed"] < 2e-3,
        "inside the box": found["outside_m"] <= 0.003,
        "not too fast": found["top_speed"] <= 1.5 * SPEED,
        "no fault": found["state"] in ("hold", RobotState.IDLE),
    }
    text = f"{late} overruns counted; {says(found)} (the simulated arm's clock starves too)"
    return Verdict(text, checks)


def _cut(rig: TwoProcesses) -> None:
    rig.proxy.cut(PATIENCE_S)


def _half_open(rig: TwoProcesses) -> None:
    rig.proxy.half_open()


ROWS = [
    Row("network away for 0.1 s", "goes on", partial(cut_short, seconds=0.1), HERE),
    Row(
        "network away for 1 s",
        "HOLD at expiry; connects again; nothing queued is done; goes on",
        partial(lost, fault=_cut, away_s=1.0),
        HERE,
    ),
    Row(
        "network away for 10 s",
        f"HOLD at expiry; disarmed; connects again; nothing queued is done; {REARM}",
        partial(lost, fault=_cut, away_s=10.0),
        HERE,
        recorded=True,
    ),
    Row(
        "half-open TCP",
        "HOLD at expiry; noticed within 1.5 s; connects again; nothing queued is done",
        partial(lost, fault=_half_open, away_s=0.0),
        HERE,
    ),
    Row(
        "client times out, reply comes late",
        "HOLD at expiry; a late reply never answers the next question",
        late_replies,
        HERE,
    ),
    Row(
        "planner SIGKILL",
        "stops within expiry and braking distance; disarmed",
        partial(planner_signalled, number=signal.SIGKILL),
        HERE,
        recorded=True,
    ),
    Row(
        "planner SIGSTOP",
        "stops within expiry and braking distance; disarmed",
        partial(planner_signalled, number=signal.SIGSTOP),
        HERE,
        recorded=True,
    ),
    Row(
        "robot server SIGKILL",
        "planner told; after a restart no motion before an operator's act",
        server_killed,
        HERE,
    ),
    Row(
        "robot server SIGSTOP",
        "a physical arm stops after 20 ms of silence",
        server_stopped,
        HERE,
    ),
    Row(
        "six busy programs on the robot's core",
        "overruns counted; HOLD; inside of the envelope",
        starved,
        HERE,
    ),
    Row(
        "malformed messages",
        "refused and closed; server alive, memory bounded; the arm goes on",
        malformed_messages,
        HERE,
    ),
    Row(
        "no token, wrong token, second controller",
        "401 before the upgrade, 409; the arm goes on",
        unauthorised,
        HERE,
    ),
]
