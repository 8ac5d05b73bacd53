"""Drives a robot sideways until it is stopped from outside: a planner of a test, in its process.

python planner_process.py URL CERTIFICATE
"""

import itertools
import sys
import time

import numpy as np

from worldmodel.envs.robots.access import pinned_tls, read_token
from worldmodel.envs.robots.client import find_robot
from worldmodel.envs.robots.interface import Command, NotConnectedError, RobotError

SPEED, LIFE_S, PERIOD_S = 0.1, 0.4, 0.1


def main():
    url, certificate = sys.argv[1:]
    robot = None
    while robot is None:  # a robot PC that is busy lets a handshake go
        try:
            robot = find_robot(
                url, token=read_token(None), tls=pinned_tls(certificate), timeout_s=30
            )
        except NotConnectedError as error:
            print(f"not yet: {error}", flush=True)
            time.sleep(PERIOD_S)
    robot.connect(timeout_s=30.0)
    robot.arm(operator="planner")
    twist = np.array([0.0, SPEED, 0.0, 0.0, 0.0, 0.0])
    for number in itertools.count():
        try:
            seen = robot.observe(max_age_s=30.0)
            if abs(seen.tcp_pos_base[1]) > 0.15:
                twist[1] = -np.sign(seen.tcp_pos_base[1]) * SPEED
            ack = robot.command(Command(number, seen.seq, LIFE_S, "twist", twist))
            print("moving" if ack.accepted else ack.reason, flush=True)
        except RobotError as error:
            print(f"lost: {error}", flush=True)
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main()
