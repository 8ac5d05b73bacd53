"""A robot on another machine: the planner's side of `server.RobotServer`.

    robot = find_robot("wss://robot:8001", token=token, tls=pinned_tls("robot.pem"), timeout_s=5)
    robot.connect(timeout_s=5.0)
    robot.arm(operator="name")
    ack = robot.command(command)

A thread says every half second that the controller is there, and connects again when the network
was away, at growing intervals. Meanwhile `observe` and `command` raise `NotConnectedError`; nothing
is kept to be sent later. The robot comes to rest by itself when its last command expires, and after
a long absence it has to be armed again.
"""

import logging
import math
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.envs.robots.channel import FINAL, Channel, RefusedError
from worldmodel.envs.robots.clock_offset import ClockOffset
from worldmodel.envs.robots.gate import what_is_wrong
from worldmodel.envs.robots.interface import (
    Ack,
    Command,
    NotConnectedError,
    RobotError,
    RobotInfo,
    RobotObservation,
    RobotState,
    StaleObservationError,
    require_operator,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.messages import (
    read_ack,
    read_command,
    read_observation,
    write_command,
    write_envelope,
    write_info,
)
from worldmodel.envs.robots.protocol import CONTROL, OBSERVE, STOP, Reply, answer_of
from worldmodel.envs.robots.wire import WireError, pack, unpack

HEARTBEAT_S = 0.5
REPLY_TIMEOUT_S = 1.0  # of a question that the robot answers at once
OPERATOR_TIMEOUT_S = 10.0  # of arming and recovering, which an arm may take its time for
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0  # before a lost connection is opened again
logger = logging.getLogger(__name__)


def find_robot(
    url: str, *, token: str | None, tls: ssl.SSLContext | None, timeout_s: float
) -> "RemoteRobot":
    """Asks a robot server what its robot is, and returns it, not connected yet.

    Args:
        url: such as "wss://robot:8001".
        token: that the server wants; None where it wants none.
        tls: for a wss:// address, such as `access.pinned_tls` gives.
        timeout_s: for the answer.

    Raises:
        ValueError: the address is none, or TLS is given for ws:// or missing for wss://.
        NotConnectedError: nothing answered in time, or the server does not let us in.
    """
    scheme, _, host = url.partition("://")
    if scheme not in ("ws", "wss") or not host or "/" in host.rstrip("/"):
        raise ValueError(f"expected ws://host:port or wss://host:port, got {url}")
    if (scheme == "wss") != (tls is not None):
        raise ValueError(
            f"{url} "
            + ("is not encrypted: use wss://" if tls else "needs the server's certificate")
        )
    channel = Channel(url.rstrip("/") + OBSERVE, token=token, tls=tls, offset=ClockOffset())
    try:
        greeting = channel.open(timeout_s=timeout_s)
    finally:
        channel.close()
    return RemoteRobot(url, info=greeting.info, envelope=greeting.envelope, token=token, tls=tls)


class RemoteRobot:
    """A `Robot` behind a `server.RobotServer`, which keeps it safe; no `SafeRobot` is needed here.

    Attributes:
        info: what the robot is; a server that says otherwise later is not connected to.
        envelope: within which the server keeps it; the same holds.
        reconnects: how often a lost connection was opened again.
    """

    def __init__(
        self,
        url: str,
        *,
        info: RobotInfo,
        envelope: Envelope,
        token: str | None,
        tls: ssl.SSLContext | None,
        heartbeat_s: float = HEARTBEAT_S,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Describes a robot that is not connected yet. `find_robot` asks the server for `info`.

        Args:
            url: such as "wss://robot:8001".
            info: what the robot is.
            envelope: within which the server keeps it.
            token: that the server wants; None where it wants none.
            tls: for a wss:// address, such as `access.pinned_tls` gives.
            heartbeat_s: how often the controller says that it is there.
            reply_timeout_s: an answer that takes longer ends the connection.
            clock: seconds, monotonic; replaced in tests.
        """
        self.info, self.envelope, self.reconnects = info, envelope, 0
        self._description = _described(info, envelope)
        self._heartbeat_s, self._reply_timeout_s, self._clock = heartbeat_s, reply_timeout_s, clock
        self._offset = ClockOffset()

        def channel(path: str) -> Channel:
            address = url.rstrip("/") + path
            return Channel(address, token=token, tls=tls, offset=self._offset, clock=clock)

        self._channel = channel
        self._channels = {path: channel(path) for path in (STOP, OBSERVE, CONTROL)}
        self._session: str | None = None  # while there is a connection
        self._shown: str | None = None  # the last session, to have the robot again
        self._last_seq = -1  # of the server's, when we came
        self._first_seq = 0  # what our numbers are added to, for a server counts on
        self._stopped = False  # by us; nothing is sent until an operator arms again
        self._unsent_stop: str | None = None  # reason of one that did not arrive yet
        self._state, self._trouble = RobotState.DISCONNECTED, "connect first"
        self._robot_now = (0.0, 0.0)  # the robot's clock, and when that was, on the server's
        self._latest_now = 0.0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # What every robot does.

    def now(self) -> float:
        """Returns the robot's monotonic clock [s], as far as known; it goes on while connected."""
        robot_now, server_now = self._robot_now
        if self._offset.is_known:
            here = server_now - self._offset.offset_s
            robot_now += max(0.0, self._clock() - here)
        self._latest_now = max(self._latest_now, robot_now)
        return self._latest_now

    def connect(self, *, timeout_s: float) -> None:
        """Becomes the robot's controller, without moving; more than once does no harm.

        Raises:
            NotConnectedError: nothing answered in time, or the server does not let us in; another
                may be controlling the robot.
            RobotError: it is another robot than before.
        """
        if self._thread is not None:
            return
        deadline, wait_s = self._clock() + timeout_s, FIRST_WAIT_S
        self._closing.clear()
        try:
            while True:
                try:
                    self._open(timeout_s=max(0.1, deadline - self._clock()))
                    break
                except NotConnectedError as error:
                    final = isinstance(error, RefusedError) and error.status in FINAL
                    if final or self._clock() + wait_s >= deadline:
                        raise
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        except RobotError:
            self._leave()
            raise
        self._first_seq, self._stopped, self._unsent_stop = self._last_seq + 1, False, None
        self._thread = threading.Thread(target=self._keep, name="remote-robot", daemon=True)
        self._thread.start()

    def observe(self, *, max_age_s: float) -> RobotObservation:
        """Returns the newest pictures and states; the time on the way counts as age.

        Raises:
            NotConnectedError: there is no connection.
            StaleObservationError: a camera that is not optional, or the arm's state, is older.
        """
        asked_at = self._clock()
        reply = self._ask(OBSERVE, "observe", {"max_age_s": float(max_age_s)})
        try:
            observation = read_observation(answer_of(reply, max_age_s=max_age_s))
        except WireError as error:
            raise NotConnectedError(f"the robot server says what is none: {error}") from error
        here = self._clock()
        on_the_way = here - (reply.sent_at - self._offset.offset_s)
        robot_now = reply.robot_now + float(np.clip(on_the_way, 0.0, here - asked_at))
        frames = {}
        for name, frame in observation.frames.items():
            age_s, camera = robot_now - frame.captured_at, self.info.cameras.get(name)
            if age_s <= max_age_s:
                frames[name] = frame
            elif camera is None or not camera.optional:
                raise StaleObservationError(name, age_s=age_s, max_age_s=max_age_s)
        if robot_now - observation.state_at > max_age_s:
            age_s = robot_now - observation.state_at
            raise StaleObservationError("state", age_s=age_s, max_age_s=max_age_s)
        return replace(
            observation,
            frames=frames,
            applied_seq=max(-1, observation.applied_seq - self._first_seq),
        )

    def arm(self, *, operator: str) -> RobotState:
        """Allows motion. See `Robot.arm`."""
        require_operator(operator)
        reply = self._ask(CONTROL, "arm", {"operator": operator}, timeout_s=OPERATOR_TIMEOUT_S)
        answer_of(reply)
        self._stopped, self._unsent_stop = False, None
        return reply.state

    def command(self, command: Command) -> Ack:
        """Sends a command and waits for the answer, `reply_timeout_s` at most.

        Raises:
            NotConnectedError: there is no connection, or it was lost; the command may have arrived.
        """
        wrong = what_is_wrong(command, last_seq=-(2**63), max_valid_for_s=math.inf)
        if wrong is not None and wrong.startswith("type:"):
            return Ack(-1, False, None, (), wrong, self._state)
        if self._stopped:
            return Ack(int(command.seq), False, None, (), "not_armed", self._state)
        sent = Command(
            seq=int(command.seq) + self._first_seq,
            obs_seq=int(command.obs_seq),
            valid_for_s=float(command.valid_for_s),
            kind=command.kind,
            values=command.values,
            gripper=None if command.gripper is None else float(command.gripper),
        )
        try:
            read_command(unpack(pack(write_command(sent))))
        except WireError:  # no message can carry it
            return Ack(int(command.seq), False, None, (), wrong or "shape:values", self._state)
        now_there = self._clock() + self._offset.offset_s
        given = {"command": write_command(sent), "sent_at": now_there}
        try:
            ack = read_ack(answer_of(self._ask(CONTROL, "command", given)))
        except WireError as error:
            raise NotConnectedError(f"the robot server says what is none: {error}") from error
        applied = ack.applied and replace(ack.applied, seq=int(command.seq))
        return replace(ack, seq=int(command.seq), applied=applied)

    def stop(self, *, reason: str) -> None:
        """Brings the arm to rest, by a connection of its own; nothing is sent to it afterwards.

        Raises:
            NotConnectedError: it did not arrive; it is sent again as soon as there is a connection.
                Meanwhile the arm comes to rest when its last command expires.
        """
        self._stopped, self._unsent_stop = True, reason
        kept, given = self._channels[STOP], {"reason": reason[:256]}
        if kept.is_open and not kept.is_busy:
            try:
                answer_of(kept.ask("stop", given, timeout_s=self._reply_timeout_s))
                self._unsent_stop = None
                return
            except NotConnectedError as error:
                logger.warning("the stop is sent again: %s", error)
        channel = self._channel(STOP)
        try:
            channel.open(timeout_s=self._reply_timeout_s)
            answer_of(channel.ask("stop", given, timeout_s=self._reply_timeout_s))
            self._unsent_stop = None
        finally:
            channel.close()

    def recover(self, *, operator: str) -> RobotState:
        """Leaves FAULT for IDLE when the cause is gone. See `Robot.recover`."""
        require_operator(operator)
        reply = self._ask(CONTROL, "recover", {"operator": operator}, timeout_s=OPERATOR_TIMEOUT_S)
        answer_of(reply)
        return reply.state

    def close(self) -> None:
        """Stops the arm and lets another control it. More than once does no harm."""
        if self._thread is None:
            return
        try:
            self.stop(reason="closed")
        except RobotError as error:
            logger.warning("while closing: %s", error)
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self._thread = None
        self._leave()

    # The connection.

    def _ask(
        self, path: str, ask: str, given: dict[str, Any], *, timeout_s: float | None = None
    ) -> Reply:
        if self._session is None:
            raise NotConnectedError(f"no connection to the robot: {self._trouble}")
        timeout_s = self._reply_timeout_s if timeout_s is None else timeout_s
        try:
            reply = self._channels[path].ask(ask, given, timeout_s=timeout_s)
        except NotConnectedError:
            self._wake.set()
            raise
        self._state, self._robot_now = reply.state, (reply.robot_now, reply.sent_at)
        return reply

    def _open(self, *, timeout_s: float) -> None:
        """Opens what is not open."""
        if not self._channels[CONTROL].is_open:
            self._session = None
        for path, channel in self._channels.items():
            if channel.is_open:
                continue
            shown = self._shown if path == CONTROL else None
            greeting = channel.open(timeout_s=timeout_s, session=shown)
            if _described(greeting.info, greeting.envelope) != self._description:
                raise RobotError(f"{channel.url} is another robot than before, or its limits are")
            if path == CONTROL:
                self._shown = greeting.session
                self._offset.forget()
                self._latest_now = 0.0
                # The offset and the robot's clock must be known before anybody asks `now`.
                reply = channel.ask("sync", {}, timeout_s=timeout_s)
                self._robot_now = (reply.robot_now, reply.sent_at)
                self._last_seq = greeting.last_seq
                self._session = greeting.session
                self.reconnects += shown is not None

    def _keep(self) -> None:
        """Says that we are there, and opens again what was lost, until `close`."""
        back_off_s = FIRST_WAIT_S
        while True:
            self._wake.wait(self._heartbeat_s)
            self._wake.clear()
            if self._closing.is_set():
                return
            try:
                self._open(timeout_s=self._reply_timeout_s)
                if self._unsent_stop is not None:
                    self.stop(reason=self._unsent_stop)
                if not self._channels[CONTROL].is_busy:
                    self._ask(CONTROL, "sync", {})
            except RobotError as error:
                logger.warning("%s; trying again in %g s", error, back_off_s)
                self._trouble = str(error)
                self._closing.wait(back_off_s)
                self._wake.set()
                back_off_s = min(2 * back_off_s, LONGEST_WAIT_S)
            else:
                back_off_s = FIRST_WAIT_S

    def _leave(self) -> None:
        self._session = self._shown = None
        self._state, self._trouble = RobotState.DISCONNECTED, "closed"
        for channel in self._channels.values():
            channel.close()


def _described(info: RobotInfo, envelope: Envelope) -> bytes:
    return pack([write_info(info), write_envelope(envelope)])
