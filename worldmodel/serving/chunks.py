"""From planned actions to rows of commands: what robot-side scripts of DROID execute one by one.

A row is one 15 Hz step: seven numbers for the arm (six in a Cartesian space), then the gripper as a
position, 0 open, 1 closed. Velocities are in DROID's units: 1.0 is 0.2 rad of a joint, 0.075 m or
0.15 rad of the flange, a row. Source: droid and openpi repositories.

The scripts check little, so the rows are kept within limits here; what was limited has a name in
`Chunk.notes`. When a row cannot be done, it and all after it hold still.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from worldmodel.data.rotations import to_matrix, to_rotvec
from worldmodel.envs.robots.droid_format import ANGULAR_UNIT, JOINT_UNIT, LINEAR_UNIT, STEP_HZ
from worldmodel.envs.robots.limits import UNKNOWN
from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix, matrix_to_euler
from worldmodel.serving.kinematics import JOINT_HIGH, JOINT_LOW, Tool

ActionSpace = Literal[
    "joint_velocity", "joint_position", "cartesian_velocity", "cartesian_position"
]
ACTION_SPACES: tuple[str, ...] = get_args(ActionSpace)

ROW_HZ = STEP_HZ
FASTEST = {
    "speed": 1.0,  # m/s
    "turn_speed": 2.0,  # rad/s
    "joint_speed": float(UNKNOWN.joints.velocity.min()),  # rad/s
}
HOLDS = ("outside_workspace", "joint_limits", "unreachable")  # notes of rows that hold still
ELBOW_SPEED = 0.3  # rad/s, largest of a joint while the elbow turns
OUTSIDE_TOLERANCE = 0.02  # m; an arm stopped at the border is measured a little beyond it


@dataclass(frozen=True, eq=False)
class Limits:
    """What rows may ask of an arm.

    Attributes:
        low: (3,) smallest position of the tool centre point in the base frame [m].
        high: (3,) largest.
        speed: of the tool centre point [m/s].
        turn_speed: of the tool [rad/s].
        joint_speed: of every joint [rad/s].
    """

    low: np.ndarray
    high: np.ndarray
    speed: float
    turn_speed: float
    joint_speed: float

    def __post_init__(self) -> None:
        """Refuses a box without an inside, and speeds that are not above zero or too fast."""
        if self.low.shape != (3,) or self.high.shape != (3,) or not (self.low < self.high).all():
            raise ValueError(
                "workspace must be two corners [x, y, z] in metres, the first below the second on "
                f"every axis; got {self.low.tolist()} and {self.high.tolist()}"
            )
        for name, most in FASTEST.items():
            if not 0 < getattr(self, name) <= most:
                raise ValueError(
                    f"{name} must be above 0 and at most {most:g}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of commands for one stretch of time.

    Attributes:
        rows: (N, 8) in a joint space, (N, 7) in a Cartesian one.
        gripper: what the last row commands.
        notes: what was limited, each once: "workspace", "speed", "turn_speed", "joint_speed"; and
            why the rows end in holding still, one of `HOLDS`.
    """

    rows: Float[np.ndarray, "row command"]
    gripper: float
    notes: tuple[str, ...]


def make_chunk(
    actions: Float[np.ndarray, "step 7"],
    *,
    step_s: float,
    num_rows: int,
    joints: Float[np.ndarray, "7"],
    gripper: float,
    tool: Tool,
    limits: Limits,
    action_space: ActionSpace,
    posture: Float[np.ndarray, "7"] | None,
) -> Chunk:
    """Returns the rows that carry out some planned actions.

    Args:
        actions: planned changes of `proprio`, one after the other; after them the arm holds still.
        step_s: time of one action [s].
        num_rows: N, so many 15 Hz rows.
        joints: measured now [rad].
        gripper: commanded last, which a gripper that holds something never reaches.
        tool: where the tool centre point is.
        limits: see `Limits`.
        action_space: what the rows mean.
        posture: joints [rad] whose elbow the arm turns to on its way; None leaves it where it is.
    """
    notes: dict[str, None] = {}
    start = joints.astype(np.float64)
    position, rotation = tool.pose(start)
    moving = _may_move(start, position, limits, notes)
    wanted = _path(position, rotation, actions, step_s=step_s, num_rows=num_rows)
    grips = _grips(gripper, actions, step_s=step_s, num_rows=num_rows)
    turning_rows = round(len(actions) * step_s * ROW_HZ)
    path = [start]
    for k, (wanted_position, wanted_rotation) in enumerate(wanted):
        found, near = None, path[-1]
        if posture is not None and k < turning_rows:
            near = tool.turn_elbow(near, posture, most=ELBOW_SPEED / ROW_HZ)
        if moving:
            position = _limited_position(position, wanted_position, limits, notes)
            rotation = _limited_rotation(rotation, wanted_rotation, limits, notes)
            found = tool.solve(position, rotation, near)
            if found is None:
                notes["unreachable"] = None
        if found is None:
            moving = False
            found, grips[k] = path[-1], grips[k - 1] if k else gripper
        path.append(_limited_joints(path[-1], found, limits, notes))
    rows = _rows(np.stack(path), tool, action_space)
    return Chunk(
        rows=np.concatenate([rows, np.array(grips)[:, None]], axis=1),
        gripper=float(grips[-1]),
        notes=tuple(notes),
    )


def _may_move(
    joints: np.ndarray, position: np.ndarray, limits: Limits, notes: dict[str, None]
) -> bool:
    if (joints < JOINT_LOW).any() or (joints > JOINT_HIGH).any():
        notes["joint_limits"] = None
    outside = np.maximum(limits.low - position, position - limits.high).max()
    if outside > OUTSIDE_TOLERANCE:
        notes["outside_workspace"] = None
    return not notes


def _path(
    position: np.ndarray, rotation: np.ndarray, actions: np.ndarray, *, step_s: float, num_rows: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns where the tool is to be at the end of every row: even motion within an action."""
    positions, rotations = [position], [rotation]
    turns = to_rotvec(euler_to_matrix(actions[:, ROTATION].astype(np.float64)))  # (K, 3)
    for action, turn in zip(actions, turns, strict=True):
        positions.append(positions[-1] + action[POSITION])
        rotations.append(to_matrix(turn, "rotvec") @ rotations[-1])
    poses = []
    for row in range(num_rows):
        progress = min((row + 1) / ROW_HZ / step_s, float(len(actions)))
        n = min(int(progress), len(actions) - 1)
        part = progress - n
        turn = to_matrix(part * turns[n], "rotvec")
        poses.append((positions[n] + part * actions[n, POSITION], turn @ rotations[n]))
    return poses


def _grips(gripper: float, actions: np.ndarray, *, step_s: float, num_rows: int) -> list[float]:
    """Returns the gripper's command of every row: an action's whole change when it begins."""
    commanded = [gripper]
    for change in actions[:, GRIPPER][:, 0]:
        commanded.append(float(np.clip(commanded[-1] + change, 0.0, 1.0)))
    begun = [int(row / ROW_HZ / step_s + 1e-9) + 1 for row in range(num_rows)]
    return [commanded[min(n, len(actions))] for n in begun]


def _limited_position(
    last: np.ndarray, target: np.ndarray, limits: Limits, notes: dict[str, None]
) -> np.ndarray:
    inside = np.clip(target, limits.low, limits.high)
    if (inside != target).any():
        notes["workspace"] = None
    most, way = limits.speed / ROW_HZ, np.linalg.norm(inside - last)
    if way <= most * (1 + 1e-6):
        return inside
    notes["speed"] = None
    return last + (inside - last) * most / way


def _limited_rotation(
    last: np.ndarray, target: np.ndarray, limits: Limits, notes: dict[str, None]
) -> np.ndarray:
    turn = to_rotvec(target @ last.T)
    most, way = limits.turn_speed / ROW_HZ, np.linalg.norm(turn)
    if way <= most * (1 + 1e-6):
        return target
    notes["turn_speed"] = None
    return to_matrix(turn * most / way, "rotvec") @ last


def _limited_joints(
    last: np.ndarray, target: np.ndarray, limits: Limits, notes: dict[str, None]
) -> np.ndarray:
    most, way = limits.joint_speed / ROW_HZ, np.abs(target - last).max()
    if way <= most:
        return target
    notes["joint_speed"] = None
    return last + (target - last) * most / way


def _rows(path: np.ndarray, tool: Tool, action_space: ActionSpace) -> np.ndarray:
    """Returns the arm's part of the rows, of joints (N + 1, 7) that begin with the present ones."""
    if action_space == "joint_velocity":
        return np.diff(path, axis=0) / JOINT_UNIT
    if action_space == "joint_position":
        return path[1:]
    positions, rotations = tool.to_flange(*tool.pose(path))
    if action_space == "cartesian_position":
        return np.concatenate([positions[1:], matrix_to_euler(rotations[1:])], axis=1)
    turns = to_rotvec(rotations[1:] @ np.swapaxes(rotations[:-1], -1, -2))
    return np.concatenate([np.diff(positions, axis=0) / LINEAR_UNIT, turns / ANGULAR_UNIT], axis=1)
