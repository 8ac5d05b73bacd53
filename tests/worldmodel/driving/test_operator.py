import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from worldmodel.driving.operator import (
    OperatorStop,
    confirm_first_motion,
    first_motion_text,
    send_stop,
)
from worldmodel.envs.robots.interface import NotConnectedError, OperatorRefusedError
from worldmodel.envs.robots.limits import Envelope

TIMEOUT_S = 60.0  # only ever reached by a test that fails
BOX = Envelope(workspace_low=(0.3, -0.3, 0.05), workspace_high=(0.65, 0.3, 0.6))


class Arm:
    """Notes who stopped it."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.threads: list[threading.Thread] = []
        self.stopped = threading.Event()

    def stop(self, *, reason: str) -> None:
        self.reasons.append(reason)
        self.threads.append(threading.current_thread())
        self.stopped.set()


@pytest.fixture
def arm() -> Arm:
    return Arm()


@pytest.fixture
def terminal():
    """The keyboard's end, and what a program reads it from."""
    fingers, keyboard = os.openpty()
    with open(keyboard, closefd=True) as reader:
        yield fingers, reader
    os.close(fingers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_from_another_thread_and_the_program_goes_on(arm, number) -> None:
    before = signal.getsignal(number)
    with OperatorStop(arm.stop, keyboard=None, port=None) as operator:
        assert operator.reason is None and operator.port is None
        os.kill(os.getpid(), number)
        assert arm.stopped.wait(TIMEOUT_S)
        assert arm.threads[0] is not threading.main_thread()
        assert operator.reason == number.name
        assert arm.reasons == [f"operator: {number.name}"]
        assert signal.getsignal(number) is before  # so a second one ends the program
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_key_stops_without_enter_and_the_terminal_is_given_back(arm, terminal) -> None:
    import termios

    fingers, keyboard = terminal
    before = termios.tcgetattr(keyboard.fileno())
    with OperatorStop(arm.stop, keyboard=keyboard, port=None) as operator:
        os.write(fingers, b"x")
        assert arm.stopped.wait(TIMEOUT_S)
        assert operator.reason == "key"
    assert termios.tcgetattr(keyboard.fileno()) == before


def test_whatever_comes_through_the_second_socket_stops(arm) -> None:
    with OperatorStop(arm.stop, keyboard=None, port=0) as operator:
        assert operator.port
        send_stop(operator.port, reason="smoke")
        assert operator.reason == "socket: smoke" and arm.reasons == ["operator: socket: smoke"]
        for said in (b"\xff\x00\x1b[2J", b"x" * 10_000):  # and nothing odd breaks it
            with socket.create_connection(("127.0.0.1", operator.port)) as caller:
                caller.sendall(said)
        send_stop(operator.port, reason="again")
    assert len(arm.reasons) == 1  # the first counts


def test_a_caller_who_says_nothing_stops_nothing(arm) -> None:
    with OperatorStop(arm.stop, keyboard=None, port=0) as operator:
        assert operator.port
        silent = socket.create_connection(("127.0.0.1", operator.port))
        socket.create_connection(("127.0.0.1", operator.port)).close()
        assert operator.reason is None
        send_stop(operator.port, reason="")  # and does not keep others from it
        assert operator.reason == "socket: stop"
        silent.close()


def test_a_stop_that_nobody_takes_is_said(arm) -> None:
    with OperatorStop(arm.stop, keyboard=None, port=0) as operator:
        port = operator.port
    assert port
    with pytest.raises(ConnectionError, match="use the emergency stop"):
        send_stop(port, reason="x", timeout_s=1.0)


def test_a_stop_that_does_not_reach_the_arm_is_said_loudly(caplog) -> None:
    failures = [NotConnectedError("nothing answers")]

    def stop(*, reason: str) -> None:
        if failures:
            raise failures.pop()

    with OperatorStop(stop, keyboard=None, port=0) as operator:
        assert operator.port
        with pytest.raises(ConnectionError, match="did not confirm; use the emergency stop"):
            send_stop(operator.port, reason="x")
        assert operator.reason == "socket: x"  # the loop sees it and stops, too
        assert "USE THE EMERGENCY STOP" in caplog.text
        send_stop(operator.port, reason="y")  # tried again


def test_a_pipe_is_no_keyboard(arm) -> None:
    with OperatorStop(arm.stop, keyboard=io.StringIO("go"), port=None) as operator:
        assert operator.reason is None
    assert arm.reasons == []


_PROGRAM = """
import signal, time
from worldmodel.driving.operator import OperatorStop
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
def stop(*, reason):
    print(reason, flush=True)
with OperatorStop(stop, keyboard=None, port=None):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_second_ctrl_c_ends_a_program_that_does_not_end_by_itself() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "operator: SIGINT\n"
        try:
            for _ in range(round(TIMEOUT_S / 0.5)):  # two in one moment count as one
                program.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.communicate(timeout=0.5)
                    break
        finally:
            program.kill()
        assert program.returncode not in (None, 0, -signal.SIGKILL)


@pytest.fixture
def info(rig_parts):
    return rig_parts.PoseRobot().info


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_limits_distance_and_speed_are_shown(info) -> None:
    text = first_motion_text(info, BOX, distance_m=0.123, speed=0.1)
    for shown in ("fake (panda), SIMULATED", "[0.3, -0.3, 0.05] to [0.65, 0.3, 0.6] m", "0.123 m"):
        assert shown in text
    assert "0.1 m/s planned; at most 0.25 m/s" in text and "20 N" in text
    real = first_motion_text(replace(info, simulated=False), BOX, distance_m=None, speed=0.1)
    assert "REAL: stay out of its reach" in real and "not known: the goal has no pose" in real


def test_motion_begins_when_it_is_allowed_and_not_otherwise(info) -> None:
    screen = io.StringIO()
    confirm_first_motion(info, "TEXT", yes=False, keyboard=Keyboard("move\n"), screen=screen)
    assert screen.getvalue() == "TEXT\ntype 'move' to let the arm move: "
    for typed in ("", "\n", "y\n", "no\n"):
        with pytest.raises(OperatorRefusedError, match="'move' was not typed"):
            confirm_first_motion(info, "", yes=False, keyboard=Keyboard(typed), screen=screen)


def test_yes_is_for_simulations_and_someone_must_be_there_else(info) -> None:
    screen, real = io.StringIO(), replace(info, simulated=False)
    confirm_first_motion(info, "", yes=True, keyboard=io.StringIO(), screen=screen)
    with pytest.raises(OperatorRefusedError, match="yes=true is for simulated robots; fake is re"):
        confirm_first_motion(real, "", yes=True, keyboard=Keyboard("move\n"), screen=screen)
    for one, hint in ((info, "with yes=true"), (real, "no terminal$")):
        with pytest.raises(OperatorRefusedError, match=f"someone at the keyboard.*{hint}"):
            confirm_first_motion(one, "", yes=False, keyboard=io.StringIO("move\n"), screen=screen)
