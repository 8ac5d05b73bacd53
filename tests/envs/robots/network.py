"""A robot server in a thread of its own, for tests."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.server import RobotServer

TIMEOUT_S = 60.0  # only ever reached by a test that fails
TOKEN = "correct-horse-battery"


@contextlib.contextmanager
def serving(
    robot: SafeRobot, *, tls: ssl.SSLContext | None = None, port: int = 0, **settings: Any
) -> Iterator[tuple[RobotServer, int]]:
    """Serves a robot at 127.0.0.1; yields the server and its port."""
    server = RobotServer(robot, **({"token": None, "recorder": None} | settings))
    found: dict[str, Any] = {}
    listening = threading.Event()

    async def serve() -> None:
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()

        def ready(port: int) -> None:
            found["port"] = port
            listening.set()

        await server.run(host="127.0.0.1", port=port, tls=tls, stop=found["stop"], ready=ready)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="robot-server")
    thread.start()
    assert listening.wait(TIMEOUT_S)
    try:
        yield server, found["port"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(TIMEOUT_S)
