"""What can a stranger do to a running robot server? Malformed messages, at all of its places.

    python -m benchmarks.server_fuzz --messages 100000

The server and a simulated arm are in a process of their own. First a controller that is nobody's
friend sends to /control, then strangers to /observe and /stop while an operator's controller holds
the armed robot at rest. It writes benchmarks/results/server_fuzz.json, and ends with 1 if the arm
moved, an answer is wrong, the server fell silent, or its memory grew by more than `GROWTH_MIB`.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from worldmodel.envs.robots.access import ConnectRate
from worldmodel.envs.robots.protocol import (
    CONTROL,
    OBSERVE,
    SESSION_HEADER,
    STOP,
    read_greeting,
    read_reply,
)
from worldmodel.envs.robots.server import RobotServer
from worldmodel.envs.robots.wire import pack, unpack
from worldmodel.runs import describe_machine, write_json

from .faults.robot_side import RobotSide
from .wire_fuzz import damaged, made_to_hurt

RESULTS = Path(__file__).with_name("results") / "server_fuzz.json"
GROWTH_MIB = 64.0
SETTLED = 0.1  # part of the messages after which memory is first looked at
STILL_RAD = 1e-3  # by which an arm at rest sags and settles
ANSWER_S = 60.0  # a server that takes longer fell silent
WRONG: list[Any] = [None, True, -1, 2**63, 1e308, np.nan, np.inf, "x", b"x", [], {}, [[]]]
WRONG += [np.array([np.nan] * 6), np.zeros((0, 6)), np.zeros(6, "<i2"), np.full(6, 1e300)]
SHARES = {CONTROL: 0.5, OBSERVE: 0.25, STOP: 0.25}


def serve(pipe: Connection) -> None:
    """Runs the server until told to stop; then tells what became of the arm."""
    with tempfile.TemporaryDirectory() as folder:
        side = RobotSide(Path(folder), realtime=True)
        server = RobotServer(
            side.safe, token=None, recorder=None, rate=ConnectRate(at_once=10**9, per_s=1e9)
        )

        async def run() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, lambda: (pipe.recv(), loop.call_soon_threadsafe(stop.set)))
            await server.run(host="127.0.0.1", port=0, tls=None, stop=stop, ready=pipe.send)

        start = side.arm.log[1][0]
        asyncio.run(run())
        pipe.send(
            {
                "moved_rad": float(np.abs(side.arm.log[1] - start).max()),
                "accepted": side.safe.counters["accepted"],
                "counters": dict(server.counters),
            }
        )
        side.recorder.close()


def request(place: str, number: int) -> dict[str, Any]:
    """Returns a good request for a place."""
    command = {
        "seq": number,
        "obs_seq": 0,
        "valid_for_s": 0.3,
        "kind": "twist",
        "values": np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0]),
        "gripper": 0.0,
    }
    given: dict[str, dict[str, Any]] = {
        CONTROL: {"command": command, "sent_at": time.monotonic()},
        OBSERVE: {"max_age_s": 1.0},
        STOP: {"reason": "fuzz"},
    }
    ask = {CONTROL: "command", OBSERVE: "observe", STOP: "sync"}[place]
    return {"id": number, "ask": ask, "given": given[place] if ask != "sync" else {}}


def misfilled(message: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Returns a request with one of its fields, at any depth, filled wrongly, missing or double."""
    maps = [message]
    while isinstance(inner := maps[-1].get("given", maps[-1].get("command")), dict) and inner:
        maps.append(inner)
    chosen = maps[rng.integers(len(maps))]
    name = list(chosen)[rng.integers(len(chosen))]
    if rng.random() < 0.1:
        del chosen[name]
    elif rng.random() < 0.1:
        chosen["more"] = 1
    else:
        chosen[name] = WRONG[rng.integers(len(WRONG))]
    return message


def messages(place: str, count: int, seed: int) -> Iterator[bytes | str]:
    """Yields malformed messages of all kinds for a place."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        good = request(place, k)
        if k % 5 == 0:
            yield made_to_hurt(rng)
        elif k % 5 == 1:
            noise = rng.bytes(int(rng.integers(0, 200)))
            yield noise if k % 2 else noise.decode("latin-1")
        elif k % 5 == 2:
            yield damaged(pack(good), rng)
        else:
            yield pack(misfilled(good, rng))


async def greeted(
    port: int, place: str, *, session: str | None = None
) -> tuple[ClientConnection, str | None]:
    """Returns a connection whose greeting was read, and its session."""
    socket = await connect(
        f"ws://127.0.0.1:{port}{place}",
        additional_headers={} if session is None else {SESSION_HEADER: session},
        compression=None,
        proxy=None,
        close_timeout=1.0,
    )
    greeting = read_greeting(unpack(bytes(await asyncio.wait_for(socket.recv(), ANSWER_S))))
    return socket, greeting.session


async def attack(
    port: int, place: str, count: int, *, seed: int, sent: Callable[[], None]
) -> Counter[str]:
    """Sends malformed messages to a place; returns how often each answer came."""
    answers: Counter[str] = Counter()
    socket, session = await greeted(port, place)
    for message in messages(place, count, seed):
        try:
            await socket.send(message)
            frame = await asyncio.wait_for(socket.recv(), ANSWER_S)
            reply = read_reply(unpack(bytes(frame)))  # type: ignore[arg-type]
            answers[reply.error or "answered"] += 1
            lost = reply.id == -1 or reply.error not in (None, "refused", "stale")
        except ConnectionClosed as closed:
            answers[f"closed {closed.rcvd.code if closed.rcvd else 'without a word'}"] += 1
            lost = True
        if lost:
            await socket.close()
            socket, session = await greeted(port, place, session=session)
        sent()
    await socket.close()
    return answers


async def hold(port: int, done: asyncio.Event) -> dict[str, float]:
    """Holds the armed robot, and asks how it is, until `done`; returns how long answers took."""
    (socket, _), took, number = await greeted(port, CONTROL), [], 0

    async def ask(what: str, given: dict[str, Any]) -> str:
        nonlocal number
        number += 1
        start = time.perf_counter()
        await socket.send(pack({"id": number, "ask": what, "given": given}))
        frame = await asyncio.wait_for(socket.recv(), ANSWER_S)
        took.append(1000 * (time.perf_counter() - start))
        reply = read_reply(unpack(bytes(frame)))  # type: ignore[arg-type]
        if reply.id != number or reply.error is not None:
            raise RuntimeError(f"the operator's controller got {reply}")
        return str(reply.state)

    state = await ask("arm", {"operator": "fuzz"})
    while not done.is_set():
        await asyncio.sleep(0.2)
        state = await ask("sync", {})
    await socket.close()
    if state != "armed":
        raise RuntimeError(f"the robot was armed, and is {state}")
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "asked": len(took)}


def resident_mib(pid: int) -> float:
    """Returns the memory of a process [MiB]."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


async def storm(port: int, pid: int, count: int) -> dict[str, Any]:
    """Sends all messages; returns what came back, and the server's memory meanwhile."""
    bar = tqdm(total=count, unit="message")
    memory: list[float] = []
    each = max(1, int(count * SETTLED))

    def sent() -> None:
        bar.update()
        if bar.n % each == 0:
            memory.append(resident_mib(pid))

    parts = {place: round(share * count) for place, share in SHARES.items()}
    answers = {CONTROL: await attack(port, CONTROL, parts[CONTROL], seed=0, sent=sent)}
    await asyncio.sleep(1.0)  # until the server has noticed that the controller left
    done = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.callback(done.set)
        holding = asyncio.create_task(hold(port, done))
        found = await asyncio.gather(
            *(attack(port, place, parts[place], seed=1, sent=sent) for place in (OBSERVE, STOP))
        )
        answers |= dict(zip((OBSERVE, STOP), found, strict=True))
    bar.close()
    return {
        "answers": {place: dict(counts) for place, counts in answers.items()},
        "operator": await holding,
        "memory_mib": memory,
        "growth_mib": memory[-1] - memory[0],
    }


def main() -> None:
    """Runs so many messages as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    start, port = time.perf_counter(), ours.recv()
    assert process.pid is not None
    found = asyncio.run(storm(port, process.pid, options.messages))
    found["seconds"] = time.perf_counter() - start
    ours.send("stop")
    found |= ours.recv()
    process.join()
    wrong = [
        name
        for name, is_wrong in {
            "the arm moved": found["moved_rad"] > STILL_RAD,
            "a command was accepted": found["accepted"] > 0,
            "memory grew": found["growth_mib"] > GROWTH_MIB,
            "an error of our own": found["counters"].get("refused:internal_error", 0) > 0,
        }.items()
        if is_wrong
    ]
    report = {"messages": options.messages, **found, "failed": wrong}
    write_json(options.out, report | {"machine": describe_machine()})
    for name, value in report.items():
        print(f"{name}: {value}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
