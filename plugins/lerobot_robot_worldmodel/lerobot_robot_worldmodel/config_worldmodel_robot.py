"""What LeRobot's command line may set of the robot."""

from dataclasses import dataclass, field

from lerobot.robots import RobotConfig

from .mapping import Control


@dataclass
class CameraSize:
    """Size and rate of the pictures of one camera, which LeRobot wants to know before connecting.

    Attributes:
        height: [pixels].
        width: [pixels].
        fps: frames a second.
    """

    height: int
    width: int
    fps: int


@RobotConfig.register_subclass("worldmodel")
@dataclass(kw_only=True)
class WorldmodelRobotConfig(RobotConfig):
    """A robot served by worldmodel.

    Attributes:
        url: of the robot server.
        operator: name of the person who allows motion by giving it; without one nothing moves.
        cameras: pictures that are wanted, by the robot's names.
        control: what actions are: "joint_velocity" [rad/s], or "twist" of the tool centre point in
            the base frame [m/s, rad/s].
        valid_for_s: how long the robot follows one action when no other comes.
        max_age_s: oldest picture or state that is taken.
        token_file: with the server's token; the variable WORLDMODEL_TOKEN does as well.
        certificate: of the server, for wss; only that one is trusted.
        timeout_s: for connecting.
    """

    url: str = "ws://127.0.0.1:8001"
    operator: str = ""
    cameras: dict[str, CameraSize] = field(default_factory=dict)
    control: Control = "joint_velocity"
    valid_for_s: float = 0.2
    max_age_s: float = 0.3
    token_file: str | None = None
    certificate: str | None = None
    timeout_s: float = 5.0
