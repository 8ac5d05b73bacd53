"""A planner server in a thread, with a policy that does what a test tells it."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from worldmodel.envs.robots.wire import pack, unpack
from worldmodel.serving.chunks import Chunk
from worldmodel.serving.dialects import Request, metadata
from worldmodel.serving.policy import Policy, Session
from worldmodel.serving.server import PlannerServer

TIMEOUT_S = 60.0  # only ever reached by a test that fails


@dataclass
class FakePolicy:
    """Answers with rows that count up; can be held, and can fail."""

    fails_with: Exception | None = None
    cameras: tuple[str, ...] = ("exterior",)
    go: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    requests: list[Request] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    def __post_init__(self) -> None:
        self.go.set()
        self.metadata = metadata(
            image_size=32, action_space="cartesian_velocity", cameras=self.cameras
        )

    def infer(self, request: Request, session: Session) -> Chunk:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.requests.append(request)
        self.sessions.append(session)
        self.entered.release()
        assert self.go.wait(TIMEOUT_S)
        self.running -= 1
        if self.fails_with is not None:
            raise self.fails_with
        session.gripper = 1.0
        width = 8 if request.dialect == "openpi" else 7
        rows = np.full((8, width), len(self.requests) / 10)
        return Chunk(rows=rows, gripper=float(rows[-1, -1]), notes=())


@dataclass
class Running:
    """A server that runs: where it is and what it is."""

    port: int
    server: PlannerServer

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[ClientConnection]:
        """A client that has read the metadata."""
        with connect(self.url, compression=None, max_size=None, proxy=None, **options) as client:
            assert isinstance(unpack(client.recv(TIMEOUT_S)), dict)
            yield client

    def ask(self, message: Any, **options: Any) -> Any:
        """The decoded answer to one message of a new client; text as it is."""
        with self.client(**options) as client:
            client.send(pack(message))
            answer = client.recv(TIMEOUT_S)
        return answer if isinstance(answer, str) else unpack(answer)


@contextlib.contextmanager
def _run(
    policy: Policy,
    *,
    token: str | None = None,
    reply_style: Any = "map",
    max_connections: int = 4,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Running]:
    server = PlannerServer(
        policy, token=token, reply_style=reply_style, max_connections=max_connections
    )
    found: dict[str, Any] = {}
    listening = threading.Event()

    async def serve() -> None:
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()

        def ready(port: int) -> None:
            found["port"] = port
            listening.set()

        await server.run(host="127.0.0.1", port=0, tls=tls, stop=found["stop"], ready=ready)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    assert listening.wait(TIMEOUT_S)
    try:
        yield Running(port=found["port"], server=server)
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@pytest.fixture
def run_server() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    return _run


@pytest.fixture
def policy() -> Iterator[FakePolicy]:
    policy = FakePolicy()
    yield policy
    policy.go.set()


@pytest.fixture
def make_policy() -> type[FakePolicy]:
    return FakePolicy


@pytest.fixture
def droid_request() -> dict[str, Any]:
    """What openpi's DROID script sends."""
    return {
        "observation/exterior_image_1_left": np.full((32, 32, 3), 7, np.uint8),
        "observation/wrist_image_left": np.zeros((32, 32, 3), np.uint8),
        "observation/joint_position": np.array([0.0, -0.45, 0.0, -2.35, 0.0, 1.9, 0.78]),
        "observation/gripper_position": np.array([0.1]),
        "prompt": "red cube",
    }
