"""Serves the simulated arm, and tells what it did: the robot PC of a test, in its own process.

    python robot_process.py PORT CERTIFICATE KEY

It prints its port, and then for each line on its standard input one JSON object: what the arm did
since its last accepted command. The token comes from the environment.
"""

import asyncio
import json
import sys
import threading

import numpy as np

from worldmodel.envs.control import Arm
from worldmodel.envs.franka import build_model
from worldmodel.envs.robots.access import read_token, tls_context
from worldmodel.envs.robots.interface import CameraInfo
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.motion import Kinematics
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


def main():
    model = build_model()
    cameras = {"exterior": CameraInfo(24, 32, 10.0)}
    arm = MujocoRobot(Arm(model), cameras=cameras, realtime=True, backend="ray")
    robot = NotedRobot(arm, ENVELOPE, clock=arm.now, tick_hz=50)
    port, certificate, key = int(sys.argv[1]), *sys.argv[2:]
    server = RobotServer(robot, token=read_token(None), recorder=None)
    kinematics = Kinematics(model)

    def report():
        times, joints = arm.log
        path = np.array([kinematics.pose(q)[0] for q in joints[:: max(1, len(joints) // 2000)]])
        since = times[:: max(1, len(joints) // 2000)]
        after = path[since >= robot.taken_at]
        speed = np.linalg.norm(np.diff(path[-30:], axis=0), axis=1).sum() / (since[-1] - since[-30])
        return {
            "state": str(robot.state),
            "reason": robot.reason,
            "now": arm.now(),
            "taken_at": robot.taken_at,
            "life_s": robot.life_s,
            "travel_m": float(np.linalg.norm(after - after[0], axis=1).max()),
            "speed": float(speed),
            "from_home_m": float(np.linalg.norm(path - path[0], axis=1).max()),
            "sessions": server.counters["sessions"],
            "accepted": robot.counters["accepted"],
            "lost_s": arm.lost_s,
        }

    def obey(stop, loop):
        for _ in sys.stdin:
            print(json.dumps(report()), flush=True)
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
