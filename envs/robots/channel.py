"""One websocket of a client, on which one question at a time is asked and answered.

An answer that is late or strange ends the connection, so it can never be taken for the answer to
the next question. Opening it again is for the owner to decide. Only `close` says goodbye: whoever
leaves in good order leaves the robot disarmed, and one whose network was cut does not want that.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from worldmodel.envs.robots.clock_offset import ClockOffset
from worldmodel.envs.robots.interface import NotConnectedError
from worldmodel.envs.robots.protocol import (
    SESSION_HEADER,
    Greeting,
    Reply,
    Request,
    read_greeting,
    read_reply,
    write_request,
)
from worldmodel.envs.robots.wire import MAX_MESSAGE_BYTES, WireError, pack, unpack

CLOSE_TIMEOUT_S = 0.1
PING_S, LOST_AFTER_S = 0.5, 1.5  # a server that answers no ping for so long is lost
MEANINGS = {
    401: "the token is wrong, or there is none; give the robot server's",
    404: "this is no robot server",
    409: "another controller has it; only one may command a robot",
    429: "too many connections from this address; wait a little",
    503: "it has as many clients as it takes, or it is ending",
}
_quiet = logging.getLogger(f"{__name__}.websockets")
_quiet.setLevel(logging.CRITICAL)  # else a cut is told with a traceback; the owner tells it
FINAL = (401, 404, 409)  # waiting does not help


class RefusedError(NotConnectedError):
    """The server answers, and does not let us in. `status` is that of HTTP."""

    def __init__(self, url: str, status: int):
        super().__init__(f"{url} refuses ({status}): {MEANINGS.get(status, 'no reason known')}")
        self.status = status


class Channel:
    """One place of a robot server. Any thread may call it."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        tls: ssl.SSLContext | None,
        offset: ClockOffset,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Describes a channel that is not open yet.

        Args:
            url: such as "wss://robot:8001/observe".
            token: that the server wants; None where it wants none.
            tls: for a wss:// address, such as `access.pinned_tls` gives.
            offset: that each exchange is told.
            clock: seconds, monotonic; replaced in tests.
        """
        self.url = url
        self._token, self._tls, self._offset, self._clock = token, tls, offset, clock
        self._lock = threading.Lock()
        self._connection: ClientConnection | None = None
        self._leaving = ExitStack()  # of the connection, which must be a context manager's
        self._asked = 0

    @property
    def is_open(self) -> bool:
        """Whether the server is still there, as far as we know."""
        connection = self._connection
        return connection is not None and connection.state is State.OPEN

    @property
    def is_busy(self) -> bool:
        """Whether a question waits for its answer."""
        return self._lock.locked()

    def open(self, *, timeout_s: float, session: str | None = None) -> Greeting:
        """Connects, in place of a connection that was there.

        Args:
            timeout_s: for all of it.
            session: that we had before, to have it again.

        Raises:
            RefusedError: the server does not let us in.
            NotConnectedError: nothing answered in time, or nobody whom we know.
        """
        headers = {} if self._token is None else {"Authorization": f"Api-Key {self._token}"}
        if session is not None:
            headers[SESSION_HEADER] = session
        with self._lock:
            self._drop()
            try:
                opening = connect(
                    self.url,
                    ssl=self._tls,
                    additional_headers=headers,
                    compression=None,
                    proxy=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=timeout_s,
                    ping_interval=PING_S,
                    ping_timeout=LOST_AFTER_S,
                    close_timeout=CLOSE_TIMEOUT_S,
                    logger=_quiet,
                )
                self._connection = self._leaving.enter_context(opening)
                return read_greeting(unpack(_binary(self._connection.recv(timeout_s))))
            except InvalidStatus as error:
                raise RefusedError(self.url, error.response.status_code) from error
            except (OSError, WebSocketException, WireError) as error:
                self._drop()
                raise NotConnectedError(f"no robot at {self.url}: {_text(error)}") from error

    def ask(self, ask: str, given: dict[str, Any], *, timeout_s: float) -> Reply:
        """Asks and waits for the answer.

        Raises:
            NotConnectedError: it is not open, or was closed now because no answer came in time.
        """
        if not self._lock.acquire(timeout=timeout_s):
            raise NotConnectedError(f"{self.url} is still busy after {timeout_s:g} s")
        try:
            if self._connection is None:
                raise NotConnectedError(f"the connection to {self.url} is lost")
            self._asked += 1
            frame = pack(write_request(Request(self._asked, ask, given)))
            sent_at = self._clock()
            try:
                self._connection.send(frame)
                reply = read_reply(unpack(_binary(self._connection.recv(timeout_s))))
                if reply.id != self._asked:
                    raise WireError("bad_reply", f"expected {self._asked}, got {reply.id}")
            except (OSError, WebSocketException, WireError) as error:
                self._drop()
                raise NotConnectedError(f"lost {self.url}: {_text(error)}") from error
            self._offset.add(
                sent_at=sent_at,
                came_at=reply.received_at,
                answered_at=reply.sent_at,
                received_at=self._clock(),
            )
            return reply
        finally:
            self._lock.release()

    def close(self) -> None:
        """Leaves in good order. More than once does no harm."""
        with self._lock:
            self._drop(CloseCode.NORMAL_CLOSURE)

    def _drop(self, code: CloseCode = CloseCode.GOING_AWAY) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(code)
        self._leaving.close()


def _binary(frame: bytes | str) -> bytes:
    if isinstance(frame, str):
        raise WireError("bad_reply", "expected a binary frame, got text")
    return frame


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
