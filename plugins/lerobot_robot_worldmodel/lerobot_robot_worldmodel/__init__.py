"""A worldmodel robot server as a LeRobot robot: `--robot.type=worldmodel`."""

from .config_worldmodel_robot import CameraSize, WorldmodelRobotConfig
from .worldmodel_robot import WorldmodelRobot

__all__ = ["CameraSize", "WorldmodelRobot", "WorldmodelRobotConfig"]
