"""Between LeRobot's flat dictionaries and our observations and commands.

Names end in `.pos` or `.vel`: `lerobot-rollout` leaves all others out, without a word (0.6.1).
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from worldmodel.envs.robots.interface import Command, RobotObservation
from worldmodel.envs.robots.kinematics import rotation_vector

Control = Literal["joint_velocity", "twist"]

JOINTS = tuple(f"joint_{i}" for i in range(1, 8))
TOOL = ("ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz")
MOVED: Mapping[Control, tuple[str, ...]] = {"joint_velocity": JOINTS, "twist": TOOL}
GRIPPER = "gripper.pos"


def state_names() -> tuple[str, ...]:
    """Returns the names of the numbers of an observation, in LeRobot's order.

    Joints [rad], gripper (0 open, 1 closed), tool centre point in the base frame: position [m] and
    rotation vector [rad].
    """
    return (*(f"{name}.pos" for name in JOINTS), GRIPPER, *(f"{name}.pos" for name in TOOL))


def state_of(observation: RobotObservation) -> dict[str, float]:
    """Returns the numbers of an observation by name."""
    turn = rotation_vector(observation.tcp_rotation_base)
    tool = np.concatenate([observation.tcp_pos_base, turn])
    values = [*observation.joint_positions, observation.gripper, *tool]
    return dict(zip(state_names(), map(float, values), strict=True))


def action_names(control: Control) -> tuple[str, ...]:
    """Returns the names of the numbers of an action: speeds, and where the gripper is to be.

    Raises:
        ValueError: there is no such control.
    """
    if control not in MOVED:
        raise ValueError(f"control must be {' or '.join(MOVED)}, got {control!r}")
    return (*(f"{name}.vel" for name in MOVED[control]), GRIPPER)


def command_of(
    action: Mapping[str, Any], *, control: Control, seq: int, obs_seq: int, valid_for_s: float
) -> Command:
    """Returns the command that an action stands for; numbers may be tensors of one element.

    Raises:
        ValueError: it has other names.
    """
    names = action_names(control)
    if set(action) != set(names):
        raise ValueError(
            f"expected an action with {', '.join(names)}; got {', '.join(action)}. The robot is "
            f"driven by control={control}. lerobot-rollout sends positions when it ends, unless "
            "it is given --return_to_initial_position=false"
        )
    *speeds, gripper = (float(action[name]) for name in names)
    return Command(
        seq=seq,
        obs_seq=obs_seq,
        valid_for_s=valid_for_s,
        kind=control,
        values=np.array(speeds),
        gripper=min(max(gripper, 0.0), 1.0),
    )


def action_of(command: Command | None, *, control: Control, gripper: float) -> dict[str, float]:
    """Returns the action that is really carried out.

    Args:
        command: what the robot says that it does; None when it refused and stands still.
        control: what actions are.
        gripper: where the gripper is, when nothing else was commanded.
    """
    names = action_names(control)
    speeds = np.zeros(len(names) - 1) if command is None else command.values
    if command is not None and command.gripper is not None:
        gripper = command.gripper
    return dict(zip(names, [*map(float, speeds), float(gripper)], strict=True))
