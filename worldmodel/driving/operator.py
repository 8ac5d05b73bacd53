"""What an operator does: allows the first motion, and stops the arm.

    with OperatorStop(robot.stop, keyboard=sys.stdin, port=0) as operator:
        while operator.reason is None:
            ...

A key, Ctrl-C, SIGTERM and whatever comes through a second socket stop the arm from a thread of
their own, which waits for nothing else: no plan, no picture, no disk. None of it is an emergency
stop, which stays within reach.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import Callable, Sequence
from typing import IO, Self, TextIO

import numpy as np

from worldmodel.envs.robots.interface import OperatorRefusedError, RobotError, RobotInfo
from worldmodel.envs.robots.limits import Envelope

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ALLOWING = "move"  # what an operator types to allow the first motion
LOOPBACK = "127.0.0.1"
STOP_BYTES = 200  # of a reason that comes through the socket
ANSWER = b"stopped\n"
logger = logging.getLogger(__name__)


class OperatorStop:
    """Listens for a stop while it is entered, and passes the first one on at once.

    A second signal ends the process, as usual. Entered in the main thread, where Python takes
    signals.

    Attributes:
        reason: why the arm was stopped, such as "key"; None while it was not.
        port: of the socket, on this machine only; None without one.
    """

    def __init__(
        self,
        stop: Callable[..., None],
        *,
        keyboard: IO[str] | None,
        port: int | None,
        signals: Sequence[signal.Signals] = SIGNALS,
    ):
        """Prepares; nothing listens yet.

        Args:
            stop: called as `stop(reason=...)`, once, from another thread.
            keyboard: whose keys stop; None, or what is no terminal, has none.
            port: of a second socket: whoever connects and sends anything stops the arm. 0 takes a
                free one, None has none.
            signals: that stop.
        """
        self._stop, self._signals = stop, tuple(signals)
        self._keyboard = keyboard if keyboard is not None and keyboard.isatty() else None
        self._asked_port = port
        self.port: int | None = None
        self.reason: str | None = None
        self._told = False
        self._callers: set[socket.socket] = set()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Begins to listen.

        Raises:
            OSError: the port is taken.
        """
        with contextlib.ExitStack() as exit_:
            self._selector = exit_.enter_context(selectors.DefaultSelector())
            self._wake, wake_end = os.pipe()
            exit_.callback(os.close, self._wake)
            exit_.callback(os.close, wake_end)
            os.set_blocking(wake_end, False)
            self._selector.register(self._wake, selectors.EVENT_READ, self._on_signal)
            self._open_socket(exit_)
            if self._keyboard is not None:
                keys = self._keyboard.fileno()
                before = termios.tcgetattr(keys)
                tty.setcbreak(keys)  # a key counts at once, without Enter; Ctrl-C is a signal still
                exit_.callback(termios.tcsetattr, keys, termios.TCSADRAIN, before)
                self._selector.register(keys, selectors.EVENT_READ, self._on_key)
            self._closing = threading.Event()
            thread = threading.Thread(target=self._listen, name="operator-stop", daemon=True)
            thread.start()
            exit_.callback(thread.join)
            exit_.callback(os.write, wake_end, b"\0")
            exit_.callback(self._closing.set)
            self._catch_signals(exit_, wake_end)
            self._exit = exit_.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Listens no more; keyboard and signals are as before."""
        self._exit.close()

    def _open_socket(self, exit_: contextlib.ExitStack) -> None:
        if self._asked_port is None:
            return
        server = exit_.enter_context(socket.create_server((LOOPBACK, self._asked_port)))
        server.setblocking(False)
        self.port = server.getsockname()[1]
        self._selector.register(server, selectors.EVENT_READ, self._on_caller)
        exit_.callback(self._hang_up)

    def _hang_up(self) -> None:
        for caller in self._callers:
            caller.close()

    def _catch_signals(self, exit_: contextlib.ExitStack, wake_end: int) -> None:
        def quiet(number: int, _: object) -> None:
            signal.signal(number, self._before[number])  # the second one is not ours

        self._before = {}
        exit_.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(wake_end))
        for number in self._signals:
            self._before[number] = signal.signal(number, quiet)
            exit_.callback(signal.signal, number, self._before[number])

    def _listen(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _on_signal(self, wake: int) -> None:
        for number in os.read(wake, 64):
            if number:
                self._now(signal.Signals(number).name)

    def _on_key(self, keys: int) -> None:
        if os.read(keys, 64):
            self._now("key")
        else:
            self._selector.unregister(keys)  # the terminal is gone
            self._now("terminal closed")

    def _on_caller(self, server: socket.socket) -> None:
        try:
            caller, _ = server.accept()
        except OSError:  # gone again, or too many
            return
        self._callers.add(caller)
        caller.setblocking(False)
        self._selector.register(caller, selectors.EVENT_READ, self._on_message)

    def _on_message(self, caller: socket.socket) -> None:
        self._selector.unregister(caller)
        try:
            said = caller.recv(STOP_BYTES)
        except OSError:
            said = b""
        if said:
            text = "".join(c for c in said.decode("ascii", "replace") if c.isprintable())
            told = self._now(f"socket: {text.strip()}" if text.strip() else "socket")
            with contextlib.suppress(OSError):
                caller.sendall(ANSWER if told else b"not told")
        self._callers.discard(caller)
        caller.close()

    def _now(self, reason: str) -> bool:
        """Stops, unless that was done; returns whether the arm was told."""
        if not self._told:
            self.reason = self.reason or reason
            try:
                self._stop(reason=f"operator: {reason}")
                self._told = True
            except RobotError as error:
                logger.error("the stop did not reach the arm, USE THE EMERGENCY STOP: %s", error)
        return self._told


def send_stop(port: int, *, reason: str, timeout_s: float = 3.0) -> None:
    """Stops the arm of another process on this machine through its second socket.

    Raises:
        ConnectionError: nothing listens there, or it did not say that the arm was told to stop.
    """
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as caller:
            caller.sendall(reason.encode() or b"stop")
            answer = caller.recv(len(ANSWER))
    except OSError as error:
        raise ConnectionError(
            f"no stop was taken at {LOOPBACK}:{port} ({error}); use the emergency stop"
        ) from error
    if answer != ANSWER:
        raise ConnectionError(f"{LOOPBACK}:{port} did not confirm; use the emergency stop")


def first_motion_text(
    info: RobotInfo, envelope: Envelope, *, distance_m: float | None, speed: float
) -> str:
    """Returns what an operator should know before the arm moves."""
    low, high = (np.round(c, 3).tolist() for c in (envelope.workspace_low, envelope.workspace_high))
    distance = (
        "not known: the goal has no pose"
        if distance_m is None
        else f"{distance_m:.3f} m straight on"
    )
    kind = "SIMULATED, nothing physical moves" if info.simulated else "REAL: stay out of its reach"
    return "\n".join(
        [
            f"robot      {info.name} ({info.arm}), {kind}",
            f"workspace  {low} to {high} m, of the tool centre point",
            f"distance   {distance}",
            f"speed      {speed:g} m/s planned; at most {envelope.velocity:g} m/s, "
            f"{envelope.angular_velocity:g} rad/s, {envelope.acceleration:g} m/s^2",
            f"a command  moves at most {envelope.step_translation:g} m and "
            f"{envelope.step_rotation:g} rad, and ends after {envelope.max_valid_for_s:g} s",
            f"contact    faults above {envelope.collision_force:g} N, "
            f"{envelope.collision_torque:g} Nm",
            f"stopping   within {envelope.stopping_distance:.3f} m from full speed; a software "
            "stop is no emergency stop",
        ]
    )


def confirm_first_motion(
    info: RobotInfo,
    text: str,
    *,
    yes: bool,
    keyboard: TextIO = sys.stdin,
    screen: TextIO = sys.stdout,
) -> None:
    """Shows what is about to move and asks an operator to allow it.

    Args:
        info: of the robot.
        text: see `first_motion_text`.
        yes: allowed without asking, which only a simulation accepts.
        keyboard: where the answer comes from.
        screen: where the text goes.

    Raises:
        OperatorRefusedError: it was not allowed, `yes` is for a robot that is real, or there is
            nobody to ask.
    """
    print(text, file=screen, flush=True)
    if yes and not info.simulated:
        raise OperatorRefusedError(
            f"yes=true is for simulated robots; {info.name} is real, and someone must be there"
        )
    if yes:
        return
    if not keyboard.isatty():
        raise OperatorRefusedError(
            "the first motion needs someone at the keyboard, and standard input is no terminal"
            + ("; a simulated robot may be driven with yes=true" if info.simulated else "")
        )
    print(f"type '{ALLOWING}' to let the arm move: ", end="", file=screen, flush=True)
    if keyboard.readline().strip() != ALLOWING:
        raise OperatorRefusedError(f"nothing moved: '{ALLOWING}' was not typed")
