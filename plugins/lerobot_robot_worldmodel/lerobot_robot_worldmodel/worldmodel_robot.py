"""A robot behind a worldmodel robot server, which keeps it within its envelope."""

import logging
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.robots import Robot

from worldmodel.envs.robots.access import pinned_tls, read_token
from worldmodel.envs.robots.client import RemoteRobot, find_robot
from worldmodel.envs.robots.interface import RobotState

from .config_worldmodel_robot import WorldmodelRobotConfig
from .mapping import action_names, action_of, command_of, state_names, state_of

logger = logging.getLogger(__name__)
IN_THE_WAY = ("not_armed", "fault")  # refusals that only an operator can end


class WorldmodelRobot(Robot):
    """Speeds in, joints and pictures out. What is sent ends by itself after `valid_for_s`."""

    config_class = WorldmodelRobotConfig
    name = "worldmodel"

    def __init__(self, config: WorldmodelRobotConfig):
        """Connects to nothing yet.

        Raises:
            ValueError: there is no such control.
        """
        super().__init__(config)
        self.config, self.cameras = config, config.cameras
        self._names = action_names(config.control)
        self._robot: RemoteRobot | None = None
        self._seq = self._seen_seq = 0
        self._gripper = 0.0

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        """Names of the numbers, and sizes of the pictures."""
        sizes = {name: (size.height, size.width, 3) for name, size in self.cameras.items()}
        return dict.fromkeys(state_names(), float) | sizes

    @cached_property
    def action_features(self) -> dict[str, type]:
        """Names of the speeds and of the gripper."""
        return dict.fromkeys(self._names, float)

    @property
    def is_connected(self) -> bool:
        """Whether `connect` was called, and `disconnect` was not."""
        return self._robot is not None

    @property
    def is_calibrated(self) -> bool:
        """Always: the robot server sees to it."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Connects; with an operator's name in the configuration, allows motion too.

        Raises:
            NotConnectedError: nothing answered in time.
            RobotError: it cannot be armed.
            ValueError: the robot has other cameras than the configuration says.
        """
        del calibrate
        config = self.config
        tls = None if config.certificate is None else pinned_tls(config.certificate)
        token, timeout_s = read_token(config.token_file), config.timeout_s
        robot = find_robot(config.url, token=token, tls=tls, timeout_s=timeout_s)
        for name, size in self.cameras.items():
            camera = robot.info.cameras.get(name)
            if camera is None or (camera.height, camera.width) != (size.height, size.width):
                raise ValueError(
                    f"expected a camera {name!r} of {size.height} x {size.width} pixels (height x "
                    f"width); the robot has: {dict(robot.info.cameras)}"
                )
        robot.connect(timeout_s=timeout_s)
        try:
            if config.operator:
                robot.arm(operator=config.operator)
        except Exception:
            robot.close()
            raise
        self._robot, self._seq = robot, 0

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """Returns joints, gripper, tool and pictures, see `mapping.state_names`.

        Raises:
            StaleObservationError: a camera or the arm's state is older than `max_age_s`.
        """
        seen = self._connected().observe(max_age_s=self.config.max_age_s)
        self._seen_seq, self._gripper = seen.seq, seen.gripper
        pictures = {name: np.array(seen.frames[name].image) for name in self.cameras}
        return state_of(seen) | pictures

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Lets the robot move for `valid_for_s`; returns the speeds that it really goes at.

        A robot that refuses because it is unsure stands still, and takes the next action.

        Raises:
            RuntimeError: an operator has to arm or recover it first.
            ValueError: the action has other names.
        """
        command = command_of(
            action,
            control=self.config.control,
            seq=self._seq,
            obs_seq=self._seen_seq,
            valid_for_s=self.config.valid_for_s,
        )
        ack = self._connected().command(command)
        self._seq += 1
        if ack.reason in IN_THE_WAY or ack.state is RobotState.FAULT:
            raise RuntimeError(
                f"the robot does not move ({ack.reason or ack.state}): name an operator with "
                "--robot.operator=NAME, or recover it first"
            )
        if not ack.accepted:
            logger.warning("the robot stands still: %s", ack.reason)
        return action_of(ack.applied, control=self.config.control, gripper=self._gripper)

    def disconnect(self) -> None:
        """Stops the arm and gives the robot back."""
        robot, self._robot = self._robot, None
        if robot is not None:
            robot.close()

    def _connected(self) -> RemoteRobot:
        if self._robot is None:
            raise RuntimeError("the robot is not connected; call connect first")
        return self._robot
