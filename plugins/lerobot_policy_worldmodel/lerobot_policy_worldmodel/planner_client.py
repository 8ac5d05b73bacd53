"""Asks a planner server. A connection that failed is closed, and the next request opens another."""

from contextlib import ExitStack
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from worldmodel.envs.robots.access import read_token
from worldmodel.envs.robots.wire import MAX_MESSAGE_BYTES, pack, unpack

from .mapping import check_metadata

CONNECT_TIMEOUT_S = 5.0


class PlannerClient:
    """One connection to a planner server, opened when it is needed."""

    def __init__(self, url: str, *, token_file: str | None, timeout_s: float):
        """Opens nothing yet.

        Args:
            url: such as ws://127.0.0.1:8000.
            token_file: with the server's token; None takes that of WORLDMODEL_TOKEN, or none.
            timeout_s: for one answer.
        """
        self._url, self._timeout_s = url, timeout_s
        token = read_token(token_file)
        self._headers = {"Authorization": f"Api-Key {token}"} if token else {}
        self._connection: ClientConnection | None = None
        self._open_one = ExitStack()

    def ask(self, request: dict[str, Any]) -> Any:
        """Returns the server's answer.

        Raises:
            ConnectionError: it cannot be reached, did not answer in time, or refused.
            ValueError: it plans in another action space.
        """
        try:
            if self._connection is None:
                self._connection = self._open()
            self._connection.send(pack(request))
            answer = self._connection.recv(self._timeout_s)
        except (OSError, WebSocketException) as error:  # a late answer must never meet a request
            self.close()
            raise ConnectionError(f"planner server at {self._url}: {error}") from error
        if isinstance(answer, str):
            self.close()
            raise ConnectionError(f"planner server at {self._url} refused: {answer}")
        return unpack(answer)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        self._connection = None
        self._open_one.close()

    def _open(self) -> ClientConnection:
        connection = self._open_one.enter_context(
            connect(
                self._url,
                additional_headers=self._headers,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                open_timeout=CONNECT_TIMEOUT_S,
            )
        )
        try:
            metadata = connection.recv(CONNECT_TIMEOUT_S)
            check_metadata(unpack(metadata) if isinstance(metadata, bytes) else metadata)
        except ValueError:
            self.close()
            raise
        return connection
