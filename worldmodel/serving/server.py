"""A websocket server that robot-side scripts ask for actions.

Planning runs in one thread of its own: one plan at a time, while the health check, pings and other
clients are answered. Whoever connects is told the metadata, then asks and is answered in turn. A
request that cannot be served is answered with a text frame that begins with its code, and the
connection is closed with 1011, as openpi's clients expect.

Without a token the server can only be reached from its own machine. It never moves a robot itself,
and is no safety device.
"""

import asyncio
import http
import logging
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as Upgrade
from websockets.http11 import Response

from worldmodel.envs.robots.access import ConnectRate, Door, check_exposure, listening
from worldmodel.envs.robots.wire import MAX_MESSAGE_BYTES, WireError, pack, unpack
from worldmodel.serving.chunks import HOLDS
from worldmodel.serving.dialects import (
    RESET_REPLY,
    ReplyStyle,
    RequestError,
    Reset,
    read_request,
    write_reply,
)
from worldmodel.serving.policy import Policy, Session

logger = logging.getLogger(__name__)
PING_S = 20.0
CLOSE_TIMEOUT_S = 2.0


class PlannerServer:
    """Serves one policy to a few clients.

    Attributes:
        num_plans: requests answered with a plan so far.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        token: str | None,
        reply_style: ReplyStyle,
        max_connections: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Builds the server.

        Args:
            policy: answers requests.
            token: that clients must send; None lets everyone in who can connect.
            reply_style: of RoboArena's answers, see `worldmodel.serving.dialects`.
            max_connections: clients at once; further ones are refused with 503.
            clock: seconds, monotonic; replaced in tests.
        """
        if max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, got {max_connections}")
        self.num_plans = 0
        self._policy = policy
        self._token = token
        self._door = Door(token=token, rate=ConnectRate(at_once=32, per_s=8.0))
        self._reply_style: ReplyStyle = reply_style
        self._max_connections = max_connections
        self._clock = clock
        self._open = 0
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")

    async def run(
        self,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        stop: asyncio.Event,
        ready: Callable[[int], None],
    ) -> None:
        """Serves until `stop` is set.

        Args:
            host: address to listen at; one that others can reach needs a token.
            port: 0 takes any that is free.
            tls: encrypts the connections; None does not.
            stop: ends it.
            ready: called with the port once clients can connect.

        Raises:
            ValueError: others can reach the host, and there is no token.
            OSError: the port is taken.
        """
        check_exposure(host, token=self._token)
        try:
            async with listening(
                self._converse,
                admit=self._admit,
                host=host,
                port=port,
                tls=tls,
                max_message_bytes=MAX_MESSAGE_BYTES,
                ping_s=PING_S,
                lost_after_s=PING_S,
                close_timeout_s=CLOSE_TIMEOUT_S,
                name=__name__,
            ) as taken_port:
                ready(taken_port)
                await stop.wait()
        finally:
            self._worker.shutdown(wait=True, cancel_futures=True)

    def _admit(self, connection: ServerConnection, upgrade: Upgrade) -> Response | None:
        """Answers the health check and refuses strangers, before any upgrade."""
        answer = self._door.answer(connection, upgrade)
        if answer is not None:
            return answer
        if self._open >= self._max_connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too_many_clients\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        """Serves one client until it leaves or is refused."""
        if self._open >= self._max_connections:  # several were admitted in the same moment
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too_many_clients")
            return
        self._open += 1
        session, total_ms = Session(), None
        try:
            await connection.send(pack(dict(self._policy.metadata)))
            async for frame in connection:
                start = self._clock()
                await connection.send(await self._answer(frame, session, total_ms))
                total_ms = 1000 * (self._clock() - start)
        except (RequestError, WireError) as error:
            logger.warning("refused a request: %s", error)
            await self._refuse(connection, str(error))
        except ConnectionClosed:
            pass
        except Exception:  # whatever it is, the server goes on and the peer is told nothing of it
            logger.exception("a request failed")
            await self._refuse(connection, "internal_error: see the server's log")
        finally:
            self._open -= 1

    async def _answer(
        self, frame: bytes | str, session: Session, previous_ms: float | None
    ) -> bytes | str:
        if isinstance(frame, str):
            raise RequestError("bad_request", "expected a binary frame, got text")
        wrist = self._policy.metadata["needs_wrist_camera"]
        request = read_request(unpack(frame), wrist=wrist)
        if isinstance(request, Reset):
            session.gripper = None
            return RESET_REPLY
        loop, start = asyncio.get_running_loop(), self._clock()
        chunk = await loop.run_in_executor(self._worker, self._policy.infer, request, session)
        timing = {"infer_ms": 1000 * (self._clock() - start)}
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        holds = [note for note in chunk.notes if note in HOLDS]
        if holds:
            logger.warning("the arm is to hold still: %s", ", ".join(holds))
        self.num_plans += 1
        return write_reply(chunk, dialect=request.dialect, timing=timing, style=self._reply_style)

    async def _refuse(self, connection: ServerConnection, text: str) -> None:
        try:
            await connection.send(text)
            await connection.close(CloseCode.INTERNAL_ERROR, text.partition(":")[0])
        except ConnectionClosed:
            pass
