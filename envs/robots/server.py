"""A robot on the network: the robot's side of `client.RemoteRobot`.

    server = RobotServer(SafeRobot(inner, envelope, tick_hz=100), token=token, recorder=None)
    asyncio.run(server.run(host="127.0.0.1", port=8001, tls=None, stop=stop, ready=print))

What is said is in `protocol`. The arm does not depend on any of this: `SafeRobot` ticks in a thread
of its own, so a command ends when it expires, whether the network, this server's loop or the
controller stand still. On top of that a controller that is not heard for `silence_s` loses the
robot, and after `rearm_after_s` an operator has to arm it again.

A stop has a connection, and threads, of its own. No command outlives the connection it came by.
"""

import asyncio
import http
import logging
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as Upgrade
from websockets.http11 import Response

from worldmodel.envs.robots.access import ConnectRate, Door, check_robot_exposure, listening
from worldmodel.envs.robots.lease import Lease
from worldmodel.envs.robots.protocol import (
    CONTROL,
    MAX_REQUEST_BYTES,
    OBSERVE,
    SESSION_HEADER,
    STOP,
)
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.service import Ask, RobotService

SILENCE_S = 1.5  # three heartbeats of half a second
REARM_AFTER_S = 5.0
MAX_STOPPERS = 16
MAX_OBSERVATIONS_HZ = 60.0  # of one client: `SafeRobot` remembers a limited number
CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S = 1.0, 10.0
WATCH_S = 0.1
logger = logging.getLogger(__name__)


class RobotServer:
    """Serves one robot to one controller, some observers, and whoever wants it to stop.

    Attributes:
        counters: how often what happened, such as "sessions", "lost", "late", "refused:malformed".
    """

    def __init__(
        self,
        robot: SafeRobot,
        *,
        token: str | None,
        recorder: FlightRecorder | None,
        insecure_lan: bool = False,
        max_observers: int = 4,
        silence_s: float = SILENCE_S,
        rearm_after_s: float = REARM_AFTER_S,
        rate: ConnectRate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Builds the server; the robot is not connected yet.

        Args:
            robot: with a tick thread of its own (`tick_hz`).
            token: that clients must send; None lets everyone in who can connect.
            recorder: records all that is asked and answered; its owner closes it.
            insecure_lan: whether others may reach a physical arm without TLS.
            max_observers: clients on /observe at once; further ones are refused with 503.
            silence_s: a controller that is not heard for longer is lost.
            rearm_after_s: after so long an operator has to arm again.
            rate: how often an address may connect; None is 32 at once and 8 a second.
            clock: seconds, monotonic; replaced in tests.

        Raises:
            ValueError: the robot's pictures do not fit a message.
        """
        self._service = RobotService(robot, recorder=recorder, clock=clock)
        self.counters = self._service.counters
        self._simulated = robot.info.simulated
        self._token, self._insecure_lan = token, insecure_lan
        self._door = Door(token=token, rate=rate or ConnectRate(at_once=32, per_s=8.0))
        self._clock = clock
        self._silence_s = silence_s
        self._lease = Lease(silence_s=silence_s, rearm_after_s=rearm_after_s, clock=clock)
        self._controller: ServerConnection | None = None
        self._at_work: str | None = None  # session whose controller waits for an answer
        self._open: Counter[str] = Counter()
        self._most = {CONTROL: math.inf, OBSERVE: max_observers, STOP: MAX_STOPPERS}
        self._workers = {
            CONTROL: ThreadPoolExecutor(1, "control"),  # commands in the order in which they came
            OBSERVE: ThreadPoolExecutor(max_observers, "observe"),
            STOP: ThreadPoolExecutor(MAX_STOPPERS, "stop"),
        }

    async def run(
        self,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        stop: asyncio.Event,
        ready: Callable[[int], None],
    ) -> None:
        """Connects the robot, serves it until `stop` is set, and closes it.

        Args:
            host: address to listen at; one that others can reach needs a token, and TLS where the
                arm is a physical one.
            port: 0 takes any that is free.
            tls: encrypts the connections; None does not.
            stop: ends it.
            ready: called with the port once clients can connect.

        Raises:
            ValueError: others can reach the host, and there is no token or no TLS.
            NotConnectedError: the robot does not answer.
            OSError: the port is taken.
        """
        check_robot_exposure(
            host,
            token=self._token,
            encrypted=tls is not None,
            simulated=self._simulated,
            insecure_lan=self._insecure_lan,
        )
        robot = self._service.robot
        await asyncio.to_thread(robot.connect, timeout_s=CONNECT_TIMEOUT_S)
        try:
            async with listening(
                self._converse,
                admit=self._admit,
                host=host,
                port=port,
                tls=tls,
                max_message_bytes=MAX_REQUEST_BYTES,
                ping_s=self._silence_s / 3,
                lost_after_s=self._silence_s,
                close_timeout_s=CLOSE_TIMEOUT_S,
                name=__name__,
            ) as taken_port:
                watching = asyncio.create_task(self._watch())
                try:
                    ready(taken_port)
                    await stop.wait()
                finally:
                    watching.cancel()
        finally:
            await asyncio.to_thread(robot.close)
            for worker in self._workers.values():
                worker.shutdown(wait=False, cancel_futures=True)

    # Who may come in, and who is lost.

    def _admit(self, connection: ServerConnection, upgrade: Upgrade) -> Response | None:
        """Refuses strangers, unknown places, and a second controller, before any upgrade."""
        answer = self._door.answer(connection, upgrade, hurried=upgrade.path == STOP)
        if answer is not None:
            return answer
        if upgrade.path not in self._most:
            return connection.respond(http.HTTPStatus.NOT_FOUND, "not_found\n")
        if upgrade.path == CONTROL and not self._lease.is_free(shown=_shown(upgrade)):
            return connection.respond(http.HTTPStatus.CONFLICT, "lease_held\n")
        if self._open[upgrade.path] >= self._most[upgrade.path]:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too_many_clients\n")
        return None

    async def _watch(self) -> None:
        """Drops a controller that is not heard, and disarms the robot that nobody controls."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._at_work is not None:
                continue
            if self._controller is not None and self._lease.is_silent:
                self.counters["lost"] += 1
                logger.warning("nothing heard from the controller for %g s", self._silence_s)
                self._controller.transport.abort()
                self._controller = None
            if self._lease.is_overdue:
                await self._disarm("controller_lost")

    async def _disarm(self, reason: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._workers[STOP], self._service.disarm, reason)

    # Conversations.

    async def _converse(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path
        if self._open[path] >= self._most[path]:  # several were admitted in the same moment
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too_many_clients")
            return
        self._open[path] += 1
        try:
            if path == CONTROL:
                await self._control(connection, shown=_shown(connection.request))
            elif path == OBSERVE:
                await self._talk(connection, path, self._service.observing)
            else:
                await self._talk(connection, path, self._service.stopping)
        except ConnectionClosed:
            pass
        finally:
            self._open[path] -= 1

    async def _control(self, connection: ServerConnection, *, shown: str | None) -> None:
        if not self._lease.is_free(shown=shown):
            await connection.close(CloseCode.POLICY_VIOLATION, "lease_held")
            return
        session, goes_on = self._lease.take(shown=shown)
        before, self._controller = self._controller, connection
        self.counters["sessions"] += 1
        if before is not None:
            before.transport.abort()
        try:
            if not goes_on:
                await self._disarm("controller_changed")
            asks = self._service.controlling(lambda: self._lease.session == session)
            await self._talk(connection, CONTROL, asks, session=session)
            left = connection.close_code == CloseCode.NORMAL_CLOSURE
            if left and self._lease.session == session:  # and did not come back meanwhile
                await self._disarm("controller_left")
        finally:
            self._lease.give_back(session)
            if self._controller is connection:
                self._controller = None

    async def _talk(
        self,
        connection: ServerConnection,
        path: str,
        asks: Mapping[str, Ask],
        *,
        session: str | None = None,
    ) -> None:
        """Answers one request after the other, until one is none."""
        await connection.send(self._service.greeting(session))
        loop, due = asyncio.get_running_loop(), self._clock()
        async for frame in connection:
            received_at = self._clock()
            if session is not None:
                if session != self._lease.session:
                    return
                if self._lease.is_overdue:
                    await self._disarm("controller_lost")
                self._lease.hear(session)
                self._at_work = session
            try:
                reply, fits = await loop.run_in_executor(
                    self._workers[path], self._service.reply, frame, asks, received_at
                )
            finally:
                if session is not None:
                    self._at_work = None if self._at_work == session else self._at_work
                    self._lease.hear(session)
            await connection.send(reply)
            if not fits:
                await connection.close(CloseCode.POLICY_VIOLATION, "refused")
                return
            if path == OBSERVE:
                due = max(due, received_at) + 1 / MAX_OBSERVATIONS_HZ
                await asyncio.sleep(due - self._clock())


def _shown(upgrade: Upgrade) -> str | None:
    """Returns the session that a client says it had."""
    shown = upgrade.headers.get_all(SESSION_HEADER)
    return shown[0] if len(shown) == 1 else None
