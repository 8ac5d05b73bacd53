"""How smooth are the motions of `worldmodel drive`? Jerk of what is commanded and of the arm.

A drive of the simulated arm on a clock moved by hand: the commands of the loop, through the safety
envelope, to the servos. Beside it the same way as sparse position targets, four a second, straight
to the arm: what a drive must not be. Both are differenced at the ticks of the simulation.

    python benchmarks/jerk.py [--out benchmarks/results/jerk.json]

The plan is a straight line at a fixed speed, renewed as often as the model would, and a little
wrong each time: smoothness is the loop's, whatever the model.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.driving.reference import Pose, Reference, TwistLaw, way_between
from worldmodel.envs.control import Arm
from worldmodel.envs.franka import build_model
from worldmodel.envs.robots.interface import Command
from worldmodel.envs.robots.kinematics import matrix_to_quat_xyzw
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.motion import Kinematics
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.runs import describe_machine, write_json

OUT = Path(__file__).with_name("results") / "jerk.json"
STEP_S, COMMAND_S, TICK_S = 0.25, 0.05, 0.01  # a plan, a command, a tick of the envelope
WAY = np.array([0.10, 0.12, -0.10])  # [m]
SPEED = 0.1  # [m/s]
ERROR_M = 0.01  # of each plan's end, at random
ENVELOPE = Envelope(workspace_low=(0.2, -0.4, 0.05), workspace_high=(0.8, 0.4, 0.8))


class Simulation:
    """The arm, and what it is told in each tick."""

    def __init__(self) -> None:
        self.model = build_model()
        self.robot = MujocoRobot(Arm(self.model), cameras={}, realtime=False)
        self.robot.connect(timeout_s=1.0)
        self.robot.arm(operator="benchmark")
        self.dt = float(self.model.opt.timestep)
        self.commanded: list[np.ndarray] = []
        self._kinematics = Kinematics(self.model)

    def advance(self, seconds: float) -> None:
        """Moves the clock, and notes where the servos are told to put the tool."""
        for _ in range(round(seconds / self.dt)):
            self.robot.advance(self.dt)
            self.commanded.append(self._kinematics.pose(self.robot._arm._motion.joints)[0])

    def measured(self) -> np.ndarray:
        """Positions (ticks, 3) of the tool [m]."""
        _, joints = self.robot.log
        return np.array([self._kinematics.pose(q)[0] for q in joints])


def drive(simulation: Simulation, rng: np.random.Generator) -> None:
    """Goes the way as `worldmodel drive` does."""
    robot = SafeRobot(simulation.robot, ENVELOPE, clock=simulation.robot.now)
    robot.connect(timeout_s=1.0)
    robot.arm(operator="benchmark")
    law = TwistLaw(lead_s=STEP_S, speed=SPEED, turn_speed=0.2)
    goal = robot.observe(max_age_s=1.0).tcp_pos_base + WAY
    for number in range(round(6.0 / COMMAND_S)):
        seen = robot.observe(max_age_s=1.0)
        here = Pose.of(seen.proprio)
        if number % round(STEP_S / COMMAND_S) == 0:
            away = goal - here.position
            step = away * min(1.0, SPEED * STEP_S / np.linalg.norm(away))
            end = here.position + step + rng.normal(scale=ERROR_M * STEP_S, size=3)
            target = Pose(end, here.rotation, here.gripper)
            plan = way_between([here, target])
            reference = Reference(here, plan, begins_at=robot.now(), step_s=STEP_S)
        twist = law.twist(reference, here, seen.state_at)
        robot.command(Command(number, seen.seq, 1.5 * STEP_S, "twist", twist))
        for _ in range(round(COMMAND_S / TICK_S)):
            robot.tick()
            simulation.advance(TICK_S)


def jump(simulation: Simulation, rng: np.random.Generator) -> None:
    """Goes the way in position targets, four a second, without envelope."""
    robot = simulation.robot
    seen = robot.observe(max_age_s=1.0)
    quat = matrix_to_quat_xyzw(seen.tcp_rotation_base)
    steps = int(np.ceil(np.linalg.norm(WAY) / (SPEED * STEP_S)))
    for number in range(round(6.0 / STEP_S)):
        part = min(1.0, (number + 1) / steps)
        target = seen.tcp_pos_base + part * WAY + rng.normal(scale=ERROR_M * STEP_S, size=3)
        robot.command(Command(number, 0, 1.5 * STEP_S, "pose", np.append(target, quat)))
        simulation.advance(STEP_S)


def smoothness(path: np.ndarray, dt: float) -> dict[str, float]:
    """Returns largest speed, acceleration and jerk of a path (ticks, 3), and the jerk's RMS."""
    result, derivative = {}, path
    for name in ("speed", "acceleration", "jerk"):
        derivative = np.diff(derivative, axis=0) / dt
        size = np.linalg.norm(derivative, axis=1)
        result[f"largest_{name}"] = float(size.max())
        result[f"p99_{name}"] = float(np.percentile(size, 99))
    result["rms_jerk"] = float(np.sqrt((size**2).mean()))
    return result


def measure(go: Callable[[Simulation, np.random.Generator], None]) -> dict[str, Any]:
    """Returns how smooth one way of going is."""
    simulation = Simulation()
    start = simulation.robot.observe(max_age_s=1.0).tcp_pos_base
    go(simulation, np.random.default_rng(0))
    end = simulation.robot.observe(max_age_s=1.0).tcp_pos_base
    left = float(np.linalg.norm(end - start - WAY))
    commanded = smoothness(np.array(simulation.commanded), simulation.dt)
    measured = smoothness(simulation.measured(), simulation.dt)
    simulation.robot.close()
    return {"left_m": left, "commanded": commanded, "measured": measured}


def main() -> None:
    """Measures both and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    rows = {"drive": measure(drive), "position_targets": measure(jump)}
    limits = {name: getattr(ENVELOPE, name) for name in ("velocity", "acceleration", "jerk")}
    write_json(out, {"machine": describe_machine(), "envelope": limits, "rows": rows})
    print(f"wrote {out}")
    for name, row in rows.items():
        commanded, measured = row["commanded"], row["measured"]
        print(
            f"{name}: commanded jerk at most {commanded['largest_jerk']:.1f} m/s^3, "
            f"measured at most {measured['largest_jerk']:.1f} (RMS {measured['rms_jerk']:.1f}), "
            f"acceleration at most {measured['largest_acceleration']:.2f} m/s^2, "
            f"{1000 * row['left_m']:.1f} mm from the goal"
        )


if __name__ == "__main__":
    main()
