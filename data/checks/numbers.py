"""Numbers that cannot be what the mapping says: not finite, or of another unit."""

import numpy as np

from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.mapping import (
    ANGLE_UNITS,
    LENGTH_UNITS,
    ColumnMapping,
    Keys,
    RawEpisode,
    column,
)
from worldmodel.franka_arm import PANDA_JOINT_HIGH, PANDA_JOINT_LOW

# Hands of table-top arms work 0.2 to 1.2 m from their base. Units are a factor of 10 apart, which
# leaves room for poses whose origin is not quite the base.
REACH_M = (0.2, 1.2)
PLAUSIBLE_REACH_M = (0.1, 2.0)
# Radians beyond a full turn only come from counting turns, which no pose does; a bit for rounding.
MAX_RADIANS = 2 * np.pi * 1.05
# Degrees of a Franka's joint 4 are never above -4, so joints that all look this small are radians.
MAX_JOINT_RADIANS = 3.8
JOINT_SLACK = 0.03  # rad; encoders and rounding may pass a limit by so much


def find_not_finite(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    """Finds NaN and infinity; those of commands are only a warning."""
    groups: dict[str, Keys] = {"gripper": mapping.gripper.key, "joints": mapping.joints}
    for name, part in (
        ("position", mapping.position),
        ("rotation", mapping.rotation),
        ("time", mapping.time),
    ):
        groups[name] = () if part is None else part.key
    found = []
    for name, keys in (groups | {f"action {n}": k for n, k in mapping.actions.items()}).items():
        if not keys:
            continue
        bad = np.logical_not(np.isfinite(column(raw, keys).astype(np.float64))).any(axis=1)
        if bad.any():
            step = int(np.flatnonzero(bad)[0])
            found.append(
                finding(
                    "not_finite",
                    f"{name} ({', '.join(keys)}) is not finite in {_rows(bad.sum())}, first row "
                    f"{step}",
                    step=step,
                    severity="warning" if name.startswith("action ") else None,
                )
            )
    return found


def find_units(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    """Finds positions and angles whose size does not fit the unit that is declared."""
    found = []
    if mapping.position is not None and not mapping.pose_from_joints:
        found += _position_unit(raw, mapping)
    rotation = mapping.rotation
    if rotation is not None and not mapping.pose_from_joints:
        largest = np.abs(column(raw, rotation.key)).max()
        angles = rotation.form.startswith("euler_") or rotation.form == "rotvec"
        if angles and rotation.unit == "rad" and largest > MAX_RADIANS:
            found.append(
                finding(
                    "angles_in_degrees",
                    f"rotation angles reach {largest:.4g}, declared as radians",
                    fix=f"`rotation: {{key: [{', '.join(rotation.key)}], form: {rotation.form}, "
                    "unit: deg}`",
                )
            )
    if mapping.joints:
        largest = np.abs(column(raw, mapping.joints)).max()
        if mapping.joints_unit == "rad" and largest > MAX_RADIANS:
            found.append(
                finding(
                    "angles_in_degrees",
                    f"joint angles reach {largest:.4g}, declared as radians",
                    fix="`joints_unit: deg`",
                )
            )
        if mapping.joints_unit == "deg" and largest < MAX_JOINT_RADIANS and _is_franka(mapping):
            found.append(
                finding(
                    "angles_in_radians",
                    f"no joint angle is beyond {largest:.3g}, declared as degrees",
                    fix="`joints_unit: rad`",
                )
            )
    return found


def find_joint_limits(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    """Finds joint angles that a Franka cannot have."""
    if not mapping.joints or not _is_franka(mapping):
        return []
    joints = column(raw, mapping.joints) * ANGLE_UNITS[mapping.joints_unit]
    if joints.shape[1] != len(PANDA_JOINT_LOW):
        return []
    beyond = np.maximum(PANDA_JOINT_LOW - joints, joints - PANDA_JOINT_HIGH)
    bad = beyond > JOINT_SLACK
    if not bad.any():
        return []
    step = int(np.flatnonzero(bad.any(axis=1))[0])
    worst = int(beyond.max(axis=0).argmax())
    return [
        finding(
            "joint_limits",
            f"joint {worst + 1} is {beyond.max():.2f} rad beyond the limits of a Franka "
            f"({PANDA_JOINT_LOW[worst]:.2f} to {PANDA_JOINT_HIGH[worst]:.2f}); "
            f"{_rows(bad.any(axis=1).sum())}, first row {step}",
            step=step,
        )
    ]


def _position_unit(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    assert mapping.position is not None
    values = column(raw, mapping.position.key).astype(np.float64)
    median = float(np.median(np.linalg.norm(values, axis=1)))
    reach = median * LENGTH_UNITS[mapping.position.unit]
    if median == 0 or PLAUSIBLE_REACH_M[0] <= reach <= PLAUSIBLE_REACH_M[1]:
        return []
    message = f"the hand is {reach:.3g} m from the base, as `unit: {mapping.position.unit}` says"
    for unit, metres in LENGTH_UNITS.items():
        if REACH_M[0] <= median * metres <= REACH_M[1]:
            return [
                finding(
                    "position_unit",
                    f"{message}; in {unit} it would be {median * metres:.2f} m",
                    fix=f"`position: {{key: [{', '.join(mapping.position.key)}], unit: {unit}}}`",
                )
            ]
    return [
        finding(
            "position_unit",
            f"{message}; no unit makes that an arm's reach",
            severity="warning",
            fix="See that the position is that of the hand in the robot's base frame.",
        )
    ]


def _is_franka(mapping: ColumnMapping) -> bool:
    return mapping.robot == "franka"


def _rows(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"
