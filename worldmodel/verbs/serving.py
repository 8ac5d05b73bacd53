"""serve: the planner as a server for robot-side scripts."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.verbs.planning import planner_settings
from worldmodel.verbs.shared import Call, UserError, load_world

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.serving.policy import GoalPolicy
    from worldmodel.serving.server import PlannerServer


def serve(config: "DictConfig", *, call: Call) -> int:
    """Answers requests until it is stopped."""
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

    asyncio.run(_until_stopped(server, config, tls, announce))
    print(f"answered {server.num_plans} requests")
    return 0


async def _until_stopped(server: "PlannerServer", config: "DictConfig", tls, announce) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.run(host=config.host, port=config.port, tls=tls, stop=stop, ready=announce)


def goal_policy(config: "DictConfig") -> "GoalPolicy":
    """Returns the policy that the settings describe."""
    import numpy as np
    from omegaconf import OmegaConf

    from worldmodel.serving.chunks import Limits
    from worldmodel.serving.goals import Goals
    from worldmodel.serving.kinematics import Tool
    from worldmodel.serving.model_planner import ModelPlanner
    from worldmodel.serving.policy import GoalPolicy
    from worldmodel.training import select_device

    settings: Any = OmegaConf.to_container(config, resolve=True)
    corners = settings["workspace"]
    if np.shape(corners) != (2, 3):
        raise UserError("workspace must be two corners in metres: [[x, y, z], [x, y, z]]")
    low, high = np.array(corners, dtype=float)
    limits = Limits(
        low=low,
        high=high,
        speed=config.speed,
        turn_speed=config.turn_speed,
        joint_speed=config.joint_speed,
    )
    world = load_world(config)
    crop = world.crop if config.crop is None else config.crop
    goals = Goals(Path(config.goals), image_size=world.image_size, crop=crop)
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
        resize_to=world.image_size,
    )
