"""Robots on the network, for tests: a server in a thread, and questions asked by hand."""

import asyncio
import contextlib
import importlib.util
import itertools
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from worldmodel.envs.robots.access import ConnectRate
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.protocol import Greeting, Reply, read_greeting, read_reply
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.server import RobotServer
from worldmodel.envs.robots.wire import MAX_MESSAGE_BYTES, pack, unpack

_spec = importlib.util.spec_from_file_location(
    "fake_robot", Path(__file__).with_name("fake_robot.py")
)
assert _spec is not None and _spec.loader is not None
fake_robot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_robot)

TIMEOUT_S = 120.0  # only ever reached by a test that fails
TOKEN = "correct-horse-battery"
ENVELOPE = Envelope(workspace_low=(0.3, -0.3, 0.05), workspace_high=(0.65, 0.3, 0.6))
X = np.array([0.1, 0, 0, 0, 0, 0])


class Rig:
    """A kinematic arm on a clock that tests move, in its envelope."""

    def __init__(self, fake: Any = None, **settings: Any):
        self.fake = fake_robot.FakeRobot(**settings) if fake is None else fake
        self.safe = SafeRobot(self.fake, ENVELOPE, clock=self.fake.clock)

    def run(self, seconds: float, *, dt: float = 0.01) -> None:
        for _ in range(round(seconds / dt)):
            self.safe.tick()
            self.fake.advance(dt)

    @property
    def moves(self) -> int:
        """How many velocities the arm was told so far."""
        return sum(command.kind != "hold" for command in self.fake.commands)


@contextlib.contextmanager
def serving(
    robot: SafeRobot, *, tls: ssl.SSLContext | None = None, port: int = 0, **settings: Any
) -> Iterator[tuple[RobotServer, int]]:
    """Serves a robot at 127.0.0.1; yields the server and its port."""
    often = ConnectRate(at_once=1000, per_s=1000.0)
    server = RobotServer(robot, **({"token": None, "recorder": None, "rate": often} | settings))
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
        assert not thread.is_alive()


class Caller:
    """One websocket to a robot server, and what is asked on it."""

    def __init__(self, socket: ClientConnection):
        self.socket, self.numbers = socket, itertools.count(1)
        self.greeting: Greeting = read_greeting(unpack(socket.recv(TIMEOUT_S, decode=False)))

    def send(self, ask: str, given: dict[str, Any]) -> int:
        number = next(self.numbers)
        self.socket.send(pack({"id": number, "ask": ask, "given": given}))
        return number

    def hear(self) -> Reply:
        return read_reply(unpack(self.socket.recv(TIMEOUT_S, decode=False)))

    def ask(self, ask: str, **given: Any) -> Reply:
        number = self.send(ask, given)
        reply = self.hear()
        assert reply.id == number
        return reply

    def observe(self) -> dict[str, Any]:
        answer = self.ask("observe", max_age_s=10.0).answer
        assert answer is not None
        return answer

    def command(
        self, seq: int, obs_seq: int, *, values: Any = X, delay_s: float = 0.0, **changes: Any
    ) -> Reply:
        fields = {"seq": seq, "obs_seq": obs_seq, "valid_for_s": 0.4, "kind": "twist"}
        message = fields | {"values": values, "gripper": None} | changes
        return self.ask("command", command=message, sent_at=time.monotonic() - delay_s)


@contextlib.contextmanager
def calling(
    port: int, path: str, *, token: str | None = None, session: str | None = None, **options: Any
) -> Iterator[Caller]:
    """Opens a websocket to a robot server and reads its greeting."""
    headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
    if session is not None:
        headers["Worldmodel-Session"] = session
    with connect(
        f"ws://127.0.0.1:{port}{path}",
        additional_headers=headers,
        compression=None,
        max_size=MAX_MESSAGE_BYTES,
        proxy=None,
        close_timeout=1,
        **options,
    ) as socket:
        yield Caller(socket)


def eventually(true: Callable[[], bool], *, what: str = "it") -> None:
    """Waits until something is true; fails when that takes too long."""
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)
