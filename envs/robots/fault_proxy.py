"""A bad network to order: a TCP proxy that delays, throttles, cuts and half-closes connections.

    with FaultProxy(host="127.0.0.1", port=8001) as proxy:
        robot = find_robot(f"ws://127.0.0.1:{proxy.port}", ...)
        proxy.cut(10.0)

As a program, `python -m worldmodel.envs.robots.fault_proxy HOST PORT`, it prints its own port and
then obeys lines on its standard input, such as "delay 0.2", "cut 10", "half_open" and "clear".
"""

import asyncio
import math
import sys
import threading
from collections.abc import Callable

CHUNK_BYTES = 16 * 2**10
QUEUED_CHUNKS = 64
ACCEPT_S = 0.02  # in which asyncio hands over the connections that it is taking


class FaultProxy:
    """Passes connections on to one address, with faults that can change at any time.

    It knows nothing of what it carries, so it works with TLS too. Faults hold for both directions.

    Attributes:
        port: at 127.0.0.1, where clients connect.
    """

    def __init__(self, *, host: str, port: int):
        """Passes everything on to `host` and `port`."""
        self._target = (host, port)
        self._delay_s, self._bytes_per_s, self._cut_until = 0.0, math.inf, 0.0
        self._links: set[_Link] = set()
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self.port = 0

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    # Faults.

    def delay(self, seconds: float) -> None:
        """Lets all bytes take so much longer, each way."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Lets no more than so many bytes a second through each connection, each way."""
        self._bytes_per_s = bytes_per_s

    def cut(self, seconds: float) -> None:
        """Lets nothing through for a while, as when the cable is pulled; TCP sends it later."""
        self._do(lambda: setattr(self, "_cut_until", self._loop.time() + seconds))

    def drop(self) -> None:
        """Resets all connections; new ones are let through."""
        self._do(lambda: [link.reset() for link in list(self._links)])

    def truncate(self, num_bytes: int) -> None:
        """Resets each connection that there is after so many more bytes in one direction."""
        self._do(lambda: [link.limit(num_bytes) for link in self._links])

    def half_open(self) -> None:
        """Swallows all that the present connections carry from now on, and tells neither side."""
        self._do(lambda: [setattr(link, "swallows", True) for link in self._links])

    def clear(self) -> None:
        """Ends all faults; what was swallowed stays lost."""
        self._delay_s, self._bytes_per_s = 0.0, math.inf
        self._do(lambda: setattr(self, "_cut_until", 0.0))

    @property
    def num_links(self) -> int:
        """How many connections there are."""
        return len(self._links)

    # What happens in the thread.

    def _do(self, act: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._ended.wait()
        server.close()
        await asyncio.sleep(ACCEPT_S)
        for link in list(self._links):
            link.reset()
        for task, writer in self._tasks.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a connection in a task of ours: one of asyncio's own complains when cancelled."""
        task = self._loop.create_task(self._connect(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._wait_for_cable()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(link, reader, far_writer))
                group.create_task(self._carry(link, far_reader, writer))
        except* OSError:
            link.reset()
        finally:
            self._links.discard(link)
            link.close()

    async def _carry(
        self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carries one direction of a connection, in order."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)

        async def deliver() -> None:
            while True:
                came_at, chunk = await chunks.get()
                await asyncio.sleep(came_at + self._delay_s - self._loop.time())
                await asyncio.sleep(len(chunk) / self._bytes_per_s)
                await self._wait_for_cable()
                if link.swallows:
                    continue
                if not chunk:
                    writer.write_eof()
                    return
                allowed = link.allowed(len(chunk))
                writer.write(chunk[:allowed])
                await writer.drain()
                if allowed < len(chunk):
                    raise ConnectionResetError

        async def read() -> None:
            chunk = b"first"
            while chunk:
                chunk = await reader.read(CHUNK_BYTES)
                await chunks.put((self._loop.time(), chunk))

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(deliver())

    async def _wait_for_cable(self) -> None:
        while (wait_s := self._cut_until - self._loop.time()) > 0:
            await asyncio.sleep(min(wait_s, 0.02))


class _Link:
    """One connection: both its ends, and what is wrong with it."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter):
        self._ends = (near, far)
        self.swallows = False
        self._left = math.inf  # bytes until it breaks

    def limit(self, num_bytes: int) -> None:
        self._left = num_bytes

    def allowed(self, size: int) -> int:
        allowed = int(min(size, self._left))
        self._left -= allowed
        return allowed

    def reset(self) -> None:
        for end in self._ends:
            end.transport.abort()

    def close(self) -> None:
        for end in self._ends:
            end.close()


def main(arguments: list[str]) -> int:
    """Runs a proxy that obeys standard input, until its end."""
    host, port = arguments
    with FaultProxy(host=host, port=int(port)) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            name, *values = line.split()
            getattr(proxy, name)(*map(float, values))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
