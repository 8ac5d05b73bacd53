"""DROID's `RobotEnv` as its robot-side scripts know it, with the simulated arm for a robot.

Pictures are BGRA, stamps are wall-clock milliseconds, and a velocity step is a joint position a
fifteenth of a second away. The simulation moves on by one step in every `step`.
"""

import itertools

import numpy as np

from worldmodel.envs.robots.interface import Command
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.franka_arm import joint_frames
from worldmodel.pose import matrix_to_euler

STEP_S = 1 / 15
LATENCY_S = 0.04  # of a camera
SPACES = ("cartesian_position", "joint_position", "cartesian_velocity", "joint_velocity")
SERIALS = {"exterior": "24259877", "exterior_right": "24514023", "wrist": "13062452"}


class SimulatedDroidEnv:
    """`RobotEnv` over a `MujocoRobot` whose clock is moved by hand.

    Attributes:
        actions: all that `step` was given.
        wall_offset_s: of the wall clock from the simulation's; a test may change it.
        fails_with: raised by the next calls of the methods it names, if any.
    """

    def __init__(
        self,
        robot: MujocoRobot,
        *,
        action_space: str,
        gripper_action_space: str | None = None,
        wall_offset_s: float = 1.7e9,
    ):
        assert action_space in SPACES
        self.action_space, self.gripper_action_space = action_space, gripper_action_space
        self.robot, self.wall_offset_s = robot, wall_offset_s
        self.actions: list[np.ndarray] = []
        self.fails_with: dict[str, Exception] = {}
        self.missing: set[str] = set()
        self.closed = False
        self._numbers = itertools.count(1)
        robot.connect(timeout_s=1.0)
        robot.arm(operator="droid")
        self._start = self._seen().joint_positions

    def wall(self) -> float:
        return self.robot.now() + self.wall_offset_s

    def get_observation(self):
        self._maybe_fail("get_observation")
        seen, now_ms = self._seen(), 1000 * self.wall()
        flange = joint_frames(seen.joint_positions)[-1]
        images, stamps = {}, {}
        for name, frame in seen.frames.items():
            serial = SERIALS[name]
            if serial in self.missing:
                continue
            bgr = frame.image[..., ::-1]
            picture = np.concatenate([bgr, np.full((*bgr.shape[:2], 1), 255, np.uint8)], axis=2)
            images[f"{serial}_left"], images[f"{serial}_right"] = picture, picture.copy()
            stamps[f"{serial}_read_start"] = stamps[f"{serial}_read_end"] = now_ms
            stamps[f"{serial}_frame_received"] = now_ms
            stamps[f"{serial}_estimated_capture"] = now_ms - 1000 * LATENCY_S
        return {
            "timestamp": {
                "robot_state": {"read_start": now_ms, "read_end": now_ms},
                "cameras": stamps,
            },
            "robot_state": {
                "cartesian_position": [*flange[:3, 3], *matrix_to_euler(flange[:3, :3])],
                "gripper_position": seen.gripper,
                "joint_positions": list(seen.joint_positions),
                "joint_velocities": list(seen.joint_velocities),
                "prev_command_successful": True,
            },
            "image": images,
        }

    def step(self, action):
        assert len(action) == (7 if "cartesian" in self.action_space else 8)
        if "velocity" in self.action_space:
            assert action.max() <= 1 and action.min() >= -1
        self._maybe_fail("step")
        self.actions.append(np.array(action, float))
        gripper = float(np.clip(action[-1], 0, 1))
        assert self.gripper_action_space == "position"
        if self.action_space == "joint_velocity":
            self._move("joint_velocity", 0.2 * action[:-1] / STEP_S, gripper)
        elif self.action_space == "cartesian_velocity":
            seen = self._seen()
            lever = seen.tcp_pos_base - joint_frames(seen.joint_positions)[-1, :3, 3]
            angular = 0.15 * action[3:6] / STEP_S
            linear = 0.075 * action[:3] / STEP_S + np.cross(angular, lever)
            self._move("twist", np.concatenate([linear, angular]), gripper)
        else:
            raise NotImplementedError(self.action_space)
        return {}

    def reset(self, randomize=False):
        """Drives back to where the arm was at first."""
        for _ in range(400):
            way = self._start - self._seen().joint_positions
            if np.abs(way).max() < 1e-3:
                break
            self._move("joint_velocity", np.clip(4 * way, -0.5, 0.5), 0.0)

    def close(self):
        self._maybe_fail("close")
        self.closed = True

    def _seen(self):
        return self.robot.observe(max_age_s=1.0)

    def _move(self, kind, values, gripper):
        number = next(self._numbers)
        ack = self.robot.command(Command(number, 0, 1.5 * STEP_S, kind, np.array(values), gripper))
        assert ack.accepted, ack.reason
        self.robot.advance(STEP_S)

    def _maybe_fail(self, name):
        if name in self.fails_with:
            raise self.fails_with[name]
