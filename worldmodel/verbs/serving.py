"""serve: the planner as a server for robot-side scripts, or a robot as a server for planners."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.names import unknown
from worldmodel.verbs.planning import planner_settings
from worldmodel.verbs.shared import Call, UserError, load_world

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.envs.robots.recorder import FlightRecorder
    from worldmodel.envs.robots.safety import SafeRobot
    from worldmodel.envs.robots.server import RobotServer
    from worldmodel.serving.policy import GoalPolicy
    from worldmodel.serving.server import PlannerServer

PLANNER_PORT, ROBOT_PORT = 8000, 8001


def serve(config: "DictConfig", *, call: Call) -> int:
    """Serves plans, or the robot that is named, until it is stopped."""
    if config.robot is not None:
        return _serve_robot(config, call=call)
    return _serve_planner(config)


def _serve_planner(config: "DictConfig") -> int:
    from worldmodel.envs.robots.access import (
        check_exposure,
        is_loopback,
        read_token,
        tls_context,
    )
    from worldmodel.serving.server import PlannerServer

    if config.roboarena_reply not in ("map", "array"):
        raise UserError(f"roboarena_reply must be map or array, got {config.roboarena_reply!r}")
    token = read_token(config.token_file)
    check_exposure(config.host, token=token)  # before a model is loaded
    tls = tls_context(config.tls_certificate, config.tls_key)
    policy = goal_policy(config)
    server = PlannerServer(
        policy,
        token=token,
        reply_style=config.roboarena_reply,
        max_connections=config.max_connections,
    )
    secure = "ws" if tls is None else "wss"

    def announce(port: int) -> None:
        print(f"serving at {secure}://{config.host}:{port}", flush=True)
        print(f"goals: {', '.join(policy.goals.names)}")
        if tls is None and not is_loopback(config.host):
            print("WARNING: no TLS: whoever can see the network sees token and pictures")
        print("stop with Ctrl-C", flush=True)

    port = PLANNER_PORT if config.port is None else config.port
    asyncio.run(_until_stopped(server, config.host, port, tls, announce))
    print(f"answered {server.num_plans} requests")
    return 0


def _serve_robot(config: "DictConfig", *, call: Call) -> int:
    from worldmodel.envs.robots.access import (
        check_robot_exposure,
        fingerprint,
        is_loopback,
        make_certificate,
        read_token,
        tls_context,
    )
    from worldmodel.envs.robots.interface import RobotError
    from worldmodel.envs.robots.safety import SafeRobot
    from worldmodel.envs.robots.server import RobotServer
    from worldmodel.robots import open_robot

    token = read_token(config.token_file)
    if config.make_certificate:
        if config.tls_certificate is None or config.tls_key is None:
            raise UserError("make_certificate needs tls_certificate=... and tls_key=... to write")
        make_certificate(config.tls_certificate, config.tls_key)
    tls = tls_context(config.tls_certificate, config.tls_key)
    try:
        robot = open_robot(config.robot)
    except RobotError as error:
        raise UserError(str(error)) from error
    if not isinstance(robot, SafeRobot):
        raise UserError(f"robot={config.robot.name} is a server already; drive it from here")
    check_robot_exposure(
        config.host,
        token=token,
        encrypted=tls is not None,
        simulated=robot.info.simulated,
        insecure_lan=config.insecure_lan,
    )
    recorder = _recorder(config, robot, call=call)
    server = RobotServer(robot, token=token, recorder=recorder, insecure_lan=config.insecure_lan)
    scheme = "ws" if tls is None else "wss"

    def announce(port: int) -> None:
        print(f"serving {robot.info.name} at {scheme}://{config.host}:{port}", flush=True)
        for line in _limits(robot):
            print(line)
        if tls is not None:
            print(f"certificate {config.tls_certificate}, copy it to the planner's machine")
            print(f"  SHA-256 {fingerprint(config.tls_certificate)}")
        elif not is_loopback(config.host):
            print(
                "WARNING: no TLS: WHOEVER CAN SEE THE NETWORK SEES THE TOKEN AND CAN MOVE THE ARM"
            )
        if recorder is not None:
            print(f"recording to {recorder.folder}")
        print("Ctrl-C stops the arm and ends; it is no emergency stop", flush=True)

    port = ROBOT_PORT if config.port is None else config.port
    try:
        asyncio.run(_until_stopped(server, config.host, port, tls, announce))
    except RobotError as error:
        raise UserError(str(error)) from error
    finally:
        if recorder is not None:
            recorder.close()
    print(f"served {server.counters['sessions']} sessions")
    return 0


def _recorder(config: "DictConfig", robot: "SafeRobot", *, call: Call) -> "FlightRecorder | None":
    from worldmodel.envs.robots.recorder import FlightRecorder

    if config.record is None:
        return None
    return FlightRecorder(
        Path(config.record),
        settings={"command": call.command},
        robot=robot.info,
        clock=robot.now,
    )


def _limits(robot: "SafeRobot") -> list[str]:
    """Returns what an operator should know of a robot before anybody drives it."""
    info, allowed = robot.info, robot.envelope
    kind = "simulated, nothing physical moves" if info.simulated else "PHYSICAL, it will move"
    cameras = [f"{n} (rendered)" if c.rendered else n for n, c in info.cameras.items()]
    return [
        f"arm {info.arm} ({kind}); cameras: {', '.join(cameras) or 'none'}",
        f"box {list(allowed.workspace_low)} to {list(allowed.workspace_high)} m",
        f"at most {allowed.velocity:g} m/s, {allowed.angular_velocity:g} rad/s; to rest within "
        f"{100 * allowed.stopping_distance:.0f} cm",
    ]


async def _until_stopped(
    server: "PlannerServer | RobotServer", host: str, port: int, tls: Any, announce: Any
) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.run(host=host, port=port, tls=tls, stop=stop, ready=announce)


def goal_policy(config: "DictConfig") -> "GoalPolicy":
    """Returns the policy that the settings describe."""
    import numpy as np
    from omegaconf import OmegaConf

    from worldmodel.joined_views import check_cameras
    from worldmodel.serving.chunks import Limits
    from worldmodel.serving.dialects import CAMERAS
    from worldmodel.serving.goals import Goals
    from worldmodel.serving.kinematics import Tool
    from worldmodel.serving.model_planner import ModelPlanner
    from worldmodel.serving.policy import GoalPolicy
    from worldmodel.training import select_device
    from worldmodel.views import camera_names

    settings: Any = OmegaConf.to_container(config, resolve=True)
    corners = settings["workspace"]
    if corners is None:
        raise UserError("serve needs workspace=...")
    if np.shape(corners) != (2, 3):
        raise UserError("workspace must be two corners in metres: [[x, y, z], [x, y, z]]")
    posture = settings["posture"]
    if posture is not None and np.shape(posture) != (7,):
        raise UserError(f"posture must be seven joint angles in rad, or null; got {posture}")
    low, high = np.array(corners, dtype=float)
    limits = Limits(
        low=low,
        high=high,
        speed=config.speed,
        turn_speed=config.turn_speed,
        joint_speed=config.joint_speed,
    )
    cameras = camera_names(config.camera)
    for camera in cameras:
        if camera not in CAMERAS:
            raise UserError(
                f"{unknown('camera', camera, CAMERAS)}, as requests have them; say in these words "
                "what the model sees, in its order"
            )
    world = load_world(config, several_views=True)
    check_cameras(world, config.camera)
    crop = world.crop if config.crop is None else config.crop
    goals = Goals(
        Path(config.goals),
        image_size=world.image_size,
        crop=crop,
        cameras=cameras,
    )
    planner = ModelPlanner(
        world,
        replace(planner_settings(config, world), subgoals=False),
        speed=config.speed,
        turn_speed=config.turn_speed,
        device=select_device(config.device),
    )
    return GoalPolicy(
        planner,
        goals,
        tool=Tool(length=config.tool_length, yaw=config.tool_yaw),
        limits=limits,
        num_rows=config.rows,
        action_space=config.action_space,
        posture=None if posture is None else np.array(posture, dtype=float),
        resize_to=world.image_size,
    )
