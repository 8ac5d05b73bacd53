"""Serves the simulated arm, and obeys lines: the robot PC of a row, in a process of its own.

    python -m benchmarks.faults.robot_pc FOLDER PORT OPTIONS

It prints its port. Each line on its standard input is a JSON list, a method of `RobotSide` and its
arguments; the answer is one line too. The token comes from the environment. `clock_skew_s` among
the options puts the clocks of this machine off: the wall clock, and the one that the server counts
time on, which also runs 0.05 % too fast.
"""

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

from worldmodel.envs.robots.access import ConnectRate, read_token
from worldmodel.envs.robots.server import RobotServer

from .robot_side import RobotSide


def main() -> None:
    """Serves until the standard input ends."""
    folder, port, text = sys.argv[1:]
    options = json.loads(text)
    skew_s, wall = options.pop("clock_skew_s", 0.0), time.time
    time.time = lambda: wall() + skew_s
    began = time.monotonic()

    def clock() -> float:
        now = time.monotonic()
        return now if skew_s == 0 else now + skew_s + 5e-4 * (now - began)

    side = RobotSide(Path(folder), realtime=True, **options)
    server = RobotServer(
        side.safe,
        token=read_token(None),
        recorder=side.recorder,
        rate=ConnectRate(at_once=1000, per_s=1000.0),
        clock=clock,
    )

    def obey(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        for line in sys.stdin:
            call, given = json.loads(line)
            if call == "server":
                answer = dict(server.counters)
            else:
                answer = getattr(side, call)(**given)
            print(json.dumps(answer), flush=True)
        loop.call_soon_threadsafe(stop.set)

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        threading.Thread(target=obey, args=(stop, loop), daemon=True).start()
        await server.run(
            host="127.0.0.1",
            port=int(port),
            tls=None,
            stop=stop,
            ready=lambda found: print(found, flush=True),
        )

    asyncio.run(serve())
    side.recorder.close()


if __name__ == "__main__":
    main()
