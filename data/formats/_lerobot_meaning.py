"""What the columns of a LeRobot set mean, as far as the set says so.

The format fixes names and shapes, but neither units nor which way a gripper counts. So columns have
a meaning here only if
    the set states one: `worldmodel` in meta/info.json, as our own writer does, is a mapping;
    it has the columns of LeRobot's port of DROID, on a Franka: DROID's conventions;
    `observation.state` is the seven joints and the gripper of a Franka: pose by its kinematics, and
        the gripper as in DROID;
    the names of `observation.state` leave nothing open: x, y, z, then roll, pitch, yaw or qx, qy,
        qz, qw, then gripper_closed or gripper_open. Metres and radians, as everywhere in LeRobot.
A plain "gripper" is open at 1 in some sets and at 0 in others: that has to be said in a mapping.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from worldmodel.data.mapping import (
    CameraColumns,
    ColumnMapping,
    GripperColumns,
    PositionColumns,
    RotationColumns,
    TimeColumns,
    mapping_from,
)

STATED = "worldmodel"  # key of meta/info.json
STATE = "observation.state"

_DROID_POSE = "observation.state.cartesian_position"
_DROID_GRIPPER = "observation.state.gripper_position"
_DROID_JOINTS = ("observation.state.joint_position", "observation.state.joint_positions")
_ROTATIONS = {("roll", "pitch", "yaw"): "euler_xyz", ("qx", "qy", "qz", "qw"): "quat_xyzw"}
_GRIPPERS = {"gripper_closed": (0.0, 1.0), "gripper_open": (1.0, 0.0)}
_FRANKAS = ("franka", "panda")


def meaning(
    info: Mapping[str, Any], *, cameras: Sequence[str], measured: bool
) -> tuple[ColumnMapping | None, str]:
    """Returns the mapping of a set, if it is clear, and in words where it comes from.

    Args:
        info: Content of meta/info.json.
        cameras: Keys of the cameras that are there.
        measured: Whether the timestamps are measured rather than counted.

    Raises:
        ValueError: The mapping that the set states makes no sense.
    """
    if STATED in info:
        return mapping_from(info[STATED]["mapping"]), "columns mean what meta/info.json states"
    if not cameras:
        return None, "there is no camera"
    features = info["features"]
    robot = str(info.get("robot_type") or "unknown").lower()
    franka = any(name in robot for name in _FRANKAS)
    named = {camera_name(key): CameraColumns(key) for key in cameras}
    time = TimeColumns(("timestamp",)) if measured else None
    actions = {
        key.removeprefix("action.").replace(".", "_"): (key,)
        for key, feature in features.items()
        if re.fullmatch(r"action(\..+)?", key) and feature["dtype"] in ("float32", "float64")
    }
    if franka and _DROID_POSE in features and _DROID_GRIPPER in features:
        joints = tuple(key for key in _DROID_JOINTS if key in features)[:1]
        return (
            ColumnMapping(
                position=PositionColumns((f"{_DROID_POSE}[0:3]",)),
                rotation=RotationColumns((f"{_DROID_POSE}[3:6]",), form="euler_xyz"),
                gripper=GripperColumns((_DROID_GRIPPER,), open=0.0, closed=1.0),
                joints=joints,
                time=time,
                cameras=named,
                actions=actions,
                robot="franka",
            ),
            "columns are taken to be in DROID's conventions (m, rad about fixed x, y, z, gripper 0 "
            "open to 1 closed): the set has LeRobot's names of them and is of a Franka",
        )
    names = names_of(features[STATE]) if STATE in features else ()
    joints_and_gripper = re.fullmatch(r"([a-z]*joint\D*\d+\S*,){7}gripper\w*", ",".join(names))
    if franka and joints_and_gripper:
        return (
            ColumnMapping(
                joints=(f"{STATE}[0:7]",),
                pose_from_joints="franka",
                gripper=GripperColumns((f"{STATE}[7]",), open=0.0, closed=1.0),
                time=time,
                cameras=named,
                actions=actions,
                robot="franka",
            ),
            f"poses are computed from the joints in {STATE}; the gripper is taken to be 0 open to "
            "1 closed, as in DROID, which the set does not say",
        )
    *pose, gripper = names or ("",)
    form = _ROTATIONS.get(tuple(pose[3:]))
    if form is not None and pose[:3] == ["x", "y", "z"] and gripper in _GRIPPERS:
        opened, closed = _GRIPPERS[gripper]
        last = len(pose)
        return (
            ColumnMapping(
                position=PositionColumns((f"{STATE}[0:3]",)),
                rotation=RotationColumns((f"{STATE}[3:{last}]",), form=form),
                gripper=GripperColumns((f"{STATE}[{last}]",), open=opened, closed=closed),
                time=time,
                cameras=named,
                actions=actions,
                robot=robot,
            ),
            f"columns are taken as {STATE} names them: {', '.join(names)} (m, rad)",
        )
    return None, "units and the direction of the gripper are not stated: they need a mapping"


def camera_name(key: str) -> str:
    """Returns our name of a camera: "observation.images.wrist_left" is "wrist_left"."""
    name = key.removeprefix("observation.").removeprefix("images.")
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def names_of(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of a feature's entries, however they are nested; () if it has none."""
    names = feature.get("names")
    if isinstance(names, Mapping) and len(names) == 1:
        names = next(iter(names.values()))
    if not isinstance(names, Sequence) or isinstance(names, str):
        return ()
    return tuple(str(name).lower() for name in names)
