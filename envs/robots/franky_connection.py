"""A connection to a Franka arm by the library franky: opened in time, checked, and with our limits.

The library's own limits are not trusted: version 2.0 gives an FR3 those of the older Panda.
"""

import threading
import time
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from worldmodel.envs.robots.interface import NUM_JOINTS, NotConnectedError, RobotError
from worldmodel.envs.robots.limits import Envelope, hardware_limits
from worldmodel.extras import require

franky = require("franky", extra="franka")

STOPPED_MODES = {"Reflex": "reflex", "UserStopped": "user_stopped", "Other": "not_ready"}
TOLERANCE_FRAME = 1e-6  # of a frame's numbers
TAKEN_WITHIN_S = 1.0  # what was set is told by the arm
TOLERANCE_RAD = 1e-3  # of joint limits, which descriptions round


def open_connection(
    host: str, *, envelope: Envelope, has_hand: bool, require_realtime: bool, timeout_s: float
) -> tuple[Any, Any]:
    """Returns a `franky.Robot`, and its `franky.Gripper` or None.

    In a thread of its own: the library waits without end for an arm that another program has.

    Args:
        host: address of the arm's controller.
        envelope: what counts as a collision.
        has_hand: whether to connect to a Franka Hand too.
        require_realtime: whether the kernel must have real-time scheduling.
        timeout_s: to wait at most.

    Raises:
        NotConnectedError: nothing answered, or not in time.
    """
    opened: list[tuple[Any, Any]] = []
    failed: list[Exception] = []
    mode = franky.RealtimeConfig.Enforce if require_realtime else franky.RealtimeConfig.Ignore

    def open_both() -> None:
        try:
            robot = franky.Robot(
                host,
                default_torque_threshold=envelope.collision_torque,
                default_force_threshold=envelope.collision_force,
                realtime_config=mode,
            )
            hand = franky.Gripper(host) if has_hand else None
        except (franky.Exception, RuntimeError) as error:
            failed.append(error)
        else:
            opened.append((robot, hand))  # after the timeout nobody keeps it, so that it closes

    opener = threading.Thread(target=open_both, name="franky-connect", daemon=True)
    opener.start()
    opener.join(timeout_s)
    if failed:
        raise NotConnectedError(f"no connection to the arm at {host}: {failed[0]}")
    if not opened:
        raise NotConnectedError(
            f"the arm at {host} did not answer within {timeout_s:g} s; look whether another "
            "program is connected to it"
        )
    return opened[0]


def check_arm(urdf: str, arm: str) -> None:
    """Checks that an arm is the one that it is said to be.

    Args:
        urdf: the arm's description of itself; empty where its controller gives none.
        arm: what it is said to be, a key of `limits.HARDWARE`. An "unknown" arm may be any.

    Raises:
        RobotError: it is another, does not say, or goes less far than our limits for it.
    """
    if not urdf:
        if arm != "unknown":
            raise RobotError(f"the arm does not say what it is: expected {arm!r}; use 'unknown'")
        return
    root = ElementTree.fromstring(urdf)
    name = root.get("name", "")
    if arm != "unknown" and arm.partition("_")[0] not in name:
        raise RobotError(f"expected the arm {arm!r}, but it calls itself {name!r}")
    turning = [joint for joint in root.iter("joint") if joint.get("type") == "revolute"]
    told = [limit for joint in turning[:NUM_JOINTS] for limit in joint.iter("limit")]
    if len(told) != NUM_JOINTS:
        raise RobotError(f"expected limits of {NUM_JOINTS} joints of the arm, got {len(told)}")
    ours = hardware_limits(arm).joints
    for i, limit in enumerate(told):
        low, high = float(limit.attrib["lower"]), float(limit.attrib["upper"])
        if ours.low[i] < low - TOLERANCE_RAD or ours.high[i] > high + TOLERANCE_RAD:
            raise RobotError(
                f"joint {i + 1} of the arm {name!r} goes from {low} to {high} rad only; the limits "
                f"for {arm!r} are {ours.low[i]} to {ours.high[i]}"
            )


def set_limits(robot: Any, envelope: Envelope) -> None:
    """Sets the speed, acceleration and jerk of a `franky.Robot` at rest, and reads them back.

    Raises:
        RobotError: the library refused one, or did not take it.
    """
    for derivative in ("velocity", "acceleration", "jerk"):
        joint = getattr(envelope, f"joint_{derivative}")
        wanted = {
            "translation": getattr(envelope, derivative),
            "rotation": getattr(envelope, f"angular_{derivative}"),
            "elbow": joint,
            "joint": np.full(NUM_JOINTS, joint),
        }
        for part, value in wanted.items():
            limit = getattr(robot, f"{part}_{derivative}_limit")
            try:
                limit.set(value)
            except RuntimeError as error:
                raise RobotError(f"{part} {derivative} limit refused: {error}") from error
            if not np.array_equal(limit.get(), value):
                raise RobotError(
                    f"{part} {derivative} limit: set {value}, but the library has {limit.get()}"
                )


def set_tool(robot: Any, tool: np.ndarray) -> None:
    """Sets where the end effector frame of a `franky.Robot` at rest is, and reads it back.

    The arm knows a frame on the flange, set in Desk, and ours on that one.

    Args:
        robot: a connected arm.
        tool: pose (4, 4) of the frame on the flange.

    Raises:
        RobotError: the arm refused it, or did not take it.
    """
    on_nominal = np.linalg.inv(robot.state.F_T_NE.matrix) @ tool
    try:
        robot.set_ee(on_nominal.ravel(order="F"))
    except franky.CommandException as error:
        raise RobotError(f"end effector frame refused: {error}") from error
    deadline = time.monotonic() + TAKEN_WITHIN_S  # states that were under way tell the old one
    while np.abs((taken := robot.state.F_T_EE.matrix) - tool).max() > TOLERANCE_FRAME:
        if time.monotonic() > deadline:
            raise RobotError(f"end effector frame: set {tool.tolist()}, but it is {taken.tolist()}")
        time.sleep(0.01)


def error_names(state: Any, *, aborted: bool) -> tuple[str, ...]:
    """Returns what is wrong with an arm, in the arm's own words; empty when nothing is.

    Args:
        state: a `franky.RobotState`.
        aborted: whether the last motion broke off.
    """
    mode = state.robot_mode.name
    names = [STOPPED_MODES[mode]] if mode in STOPPED_MODES else []
    sources = (
        [state.current_errors, state.last_motion_errors] if aborted else [state.current_errors]
    )
    for errors in sources:
        names += [name for name in dir(errors) if getattr(errors, name) is True]
    if aborted and not names:
        names = ["motion_aborted"]
    return tuple(dict.fromkeys(names))
