"""Serves the simulated arm, and tells what it did: the robot PC of a test, in its own process.

    python robot_process.py PORT CERTIFICATE KEY

It prints its port, and then for each line on its standard input one JSON object: what the arm did
since its last accepted command. The token comes from the environment.
"""

import asyncio
import contextlib
import json
import math
import sys
import threading
import time

import numpy as np

from worldmodel.envs.control import Arm
from worldmodel.envs.franka import build_model
from worldmodel.envs.robots.access import read_token, tls_context
from worldmodel.envs.robots.interface import CameraInfo, NotConnectedError
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.server import RobotServer

ENVELOPE = Envelope(
    workspace_low=(0.25, -0.4, 0.02),
    workspace_high=(0.75, 0.4, 0.6),
    tick_timeout_s=0.2,  # a test may run on a machine that has other things to do
    state_max_age_s=0.2,
    camera_max_age_s=2.0,
)


class NotedRobot(SafeRobot):
    """Remembers when it took its last command."""

    taken_at = 0.0
    life_s = 0.0

    def command(self, command):
        ack = super().command(command)
        if ack.accepted:
            self.taken_at, self.life_s = self.now(), ack.applied.valid_for_s
        return ack


class Path:
    """Where the tool was, looked at by a thread."""

    def __init__(self, arm):
        self._arm, self._samples = arm, []
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self):
        while True:
            time.sleep(0.01)
            with contextlib.suppress(NotConnectedError):
                seen = self._arm.observe(max_age_s=math.inf)
                self._samples.append((seen.state_at, *seen.tcp_pos_base))

    def since(self, start):
        """How far it went, and how fast it is."""
        samples = np.array(self._samples[:] or [(0.0,) * 4])
        times, places = samples[:, 0], samples[:, 1:]
        first = max(0, np.searchsorted(times, start, side="right") - 1)
        before = max(0, np.searchsorted(times, times[-1] - 0.1) - 1)
        moved = np.linalg.norm(places[-1] - places[before])
        return {
            "now": times[-1],
            "travel_m": np.linalg.norm(places[first:] - places[first], axis=1).max(),
            "speed": moved / max(times[-1] - times[before], 1e-3),
            "from_home_m": np.linalg.norm(places - places[0], axis=1).max(),
        }


def main():
    cameras = {"exterior": CameraInfo(24, 32, 10.0)}
    arm = MujocoRobot(Arm(build_model()), cameras=cameras, realtime=True, backend="ray")
    robot = NotedRobot(arm, ENVELOPE, clock=arm.now, tick_hz=50)
    port, certificate, key = int(sys.argv[1]), *sys.argv[2:]
    server = RobotServer(robot, token=read_token(None), recorder=None)
    path = Path(arm)

    def report():
        return path.since(robot.taken_at) | {
            "state": str(robot.state),
            "reason": robot.reason,
            "taken_at": robot.taken_at,
            "life_s": robot.life_s,
            "accepted": robot.counters["accepted"],
        }

    def obey(stop, loop):
        try:
            for _ in sys.stdin:
                print(json.dumps(report()), flush=True)
        finally:
            loop.call_soon_threadsafe(stop.set)

    async def run():
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=obey, args=(stop, loop), daemon=True).start()
        await server.run(
            host="127.0.0.1",
            port=port,
            tls=tls_context(certificate, key),
            stop=stop,
            ready=lambda port: print(port, flush=True),
        )

    asyncio.run(run())


if __name__ == "__main__":
    main()
