"""The scripted planner in a process of its own, until it is stopped from outside.

python -m benchmarks.faults.planner_pc URL
"""

import sys
import time

from worldmodel.envs.robots.access import read_token
from worldmodel.envs.robots.client import find_robot

from .planner import ScriptedPlanner


def main() -> None:
    """Connects, arms and drives."""
    robot = find_robot(sys.argv[1], token=read_token(None), tls=None, timeout_s=60.0)
    robot.connect(timeout_s=60.0)
    robot.arm(operator="planner process")
    planner = ScriptedPlanner(robot)
    while True:
        planner.step()
        time.sleep(0.005)


if __name__ == "__main__":
    main()
