"""Runs franky-sim at an address, and makes it say what an arm says that the simulator never does.

    python franky_simulator.py 127.0.0.1

It prints "ready", then obeys lines on its standard input: "reflex" breaks off the motion with an
error that recovery clears, "user_stop" is the emergency stop pressed, "released" its end,
"hand_off" cuts the hand's connection. It ends with its input.
"""

import os
import sys
import threading

import franky_sim.simulation_server
from franky_sim import FrankaRobotServer, SimulationServer
from franky_sim.franka_robot_protocol import (
    AutomaticErrorRecoveryCommand,
    AutomaticErrorRecoveryStatus,
    BaseCommand,
    MoveStatus,
    RobotCommand,
    RobotMode,
)
from franky_sim.mujoco_simulator import MujocoSimulator

CARTESIAN_REFLEX = 7  # its place among libfranka's 41 errors
asked: list[str] = []


class FaultyServer(FrankaRobotServer):
    mode: RobotMode | None = None

    @property
    def robot_state(self):
        state = super().robot_state
        if FaultyServer.mode is None:
            return state
        wrong = [i == CARTESIAN_REFLEX for i in range(41)]
        errors = tuple(wrong) if FaultyServer.mode is RobotMode.kReflex else state.errors
        return state.replace(robot_mode=FaultyServer.mode, errors=errors, reflex_reason=errors)

    def process_commands(self):
        super().process_commands()
        while asked:
            order = asked.pop()
            if order == "hand_off":
                assert self.gripper_server is not None
                self.gripper_server.reset_state()
                continue
            modes = {"reflex": RobotMode.kReflex, "user_stop": RobotMode.kUserStopped}
            FaultyServer.mode = modes.get(order)
            motion = self.current_motion_id
            if FaultyServer.mode is not None and motion:
                assert self._tcp_socket is not None
                self.stop_motion(send_preemption_signal=False)
                BaseCommand.send_response(
                    self._tcp_socket, RobotCommand.kMove, motion, MoveStatus.kReflexAborted
                )
                self.reset_current_motion_id()


def recover(command, server):
    status = AutomaticErrorRecoveryStatus
    if FaultyServer.mode is RobotMode.kUserStopped:
        command.reply(status.kCommandRejectedDueToActivatedSafetyFunctions)
        return
    FaultyServer.mode = None
    command.reply(status.kSuccess)


def listen():
    for line in sys.stdin:
        asked.append(line.strip())
    os._exit(0)  # whoever started it is gone


def main():
    franky_sim.simulation_server.FrankaRobotServer = FaultyServer
    AutomaticErrorRecoveryCommand.handle = recover  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=listen, daemon=True).start()
    with MujocoSimulator(enable_visualization=False) as simulator:
        simulator.add_robot()
        with SimulationServer(simulator, hostname_candidates=[sys.argv[1]]) as server:
            print("ready", flush=True)
            server.run_forever()


if __name__ == "__main__":
    main()
