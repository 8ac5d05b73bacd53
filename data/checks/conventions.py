"""In which convention are the rotations? Joints know, through the robot's kinematics.

The turn from the hand that the joints give to the hand that is logged is that of the tool, and
constant, if the rotation is read right; read wrongly, it wanders. No label is needed, and no tool
offset. `actions.py` has the weaker test for logs without joints.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.mapping import (
    ANGLE_UNITS,
    LENGTH_UNITS,
    ColumnMapping,
    RawEpisode,
    RotationColumns,
    column,
)
from worldmodel.data.rotations import SIZES, angle_between, mean_rotation, to_matrix
from worldmodel.franka_arm import hand_pose

# A hand that turned less than this cannot tell one convention from another.
MIN_TURN = np.radians(5)  # median angle to the mean rotation
# Sensor noise gives 0.2 degrees and clocks that differ by 10 ms no more than 1; a wrong Euler order
# several, in proportion to how much the hand turned. Another reading must fit far better.
GOOD_RESIDUAL = np.radians(0.5)
BAD_RESIDUAL, BAD_SHARE = np.radians(1.5), 0.1  # a floor, and a share of the turn
CLEARLY = 5  # times better than as declared; right against next best is a factor of 40
BAD_POSITION = 0.02  # m; calibration and tool models differ by millimetres
MIN_SPREAD = 0.03  # m the hand must move, for its position to be compared
MIN_ROWS = 12  # fewer could be fitted by the tool's and the base's offsets alone

_THREE = ("euler_xyz", "euler_XYZ", "euler_zyx", "euler_ZYX", "rotvec")
_OTHERS = {4: ("quat_xyzw", "quat_wxyz"), 6: ("rot6d", "rot6d_rows"), 9: ("matrix",)}


@dataclass(frozen=True)
class Reading:
    """One way to read the rotation columns."""

    form: str
    unit: str
    inverse: bool = False

    def matrices(self, values: np.ndarray) -> np.ndarray:
        """Returns rotations (rows, 3, 3) of columns (rows, size)."""
        if SIZES[self.form] == 3:
            values = values * ANGLE_UNITS[self.unit]
        matrices = to_matrix(values, self.form)
        return np.swapaxes(matrices, -1, -2) if self.inverse else matrices

    def __str__(self) -> str:
        unit = f" in {self.unit}" if SIZES[self.form] == 3 else ""
        return f"{self.form}{unit}" + (", inverted" if self.inverse else "")


def readings(declared: RotationColumns) -> list[Reading]:
    """Returns the ways in which such columns are written, the declared one first."""
    size = SIZES[declared.form]
    forms = dict.fromkeys((declared.form, *(_THREE if size == 3 else _OTHERS[size])))
    units = dict.fromkeys((declared.unit, *ANGLE_UNITS)) if size == 3 else (declared.unit,)
    return [Reading(f, unit, inverse) for inverse in (False, True) for unit in units for f in forms]


def find_rotation(raw: RawEpisode, mapping: ColumnMapping) -> tuple[list[Finding], bool]:
    """Compares the hand's rotation with the joints.

    Returns:
        What was found, and whether the joints could tell right from wrong.
    """
    if mapping.pose_from_joints:
        return [], True
    hand = _hand_of_joints(raw, mapping)
    if hand is None:
        return [], False
    turned = hand[1]
    turn = _spread(turned)
    if turn < MIN_TURN:
        return [], False
    assert mapping.rotation is not None
    values = column(raw, mapping.rotation.key).astype(np.float64)
    ways = readings(mapping.rotation)
    from_joints = np.swapaxes(turned, -1, -2)
    if _spread(from_joints @ ways[0].matrices(values)) < GOOD_RESIDUAL:
        return [], True
    residuals = [_spread(from_joints @ way.matrices(values)) for way in ways]
    best = int(np.argmin(residuals))
    differs = f"the hand's rotation differs from the joints by {_degrees(residuals[0])}"
    differs += f" read as {ways[0]}, by {_degrees(residuals[best])} read as {ways[best]}"
    if residuals[best] > max(BAD_RESIDUAL, BAD_SHARE * turn):
        return [finding("kinematics_mismatch", f"{differs}, which fits best")], True
    if residuals[0] < CLEARLY * residuals[best]:
        return [], True
    ratio = residuals[0] / max(residuals[best], np.radians(0.01))
    times = "over 100" if ratio > 100 else f"{ratio:.0f}"
    code, line = _code(ways[0], ways[best]), fix(mapping.rotation, ways[best])
    return [finding(code, f"{differs} ({times} times less)", fix=line)], True


def find_position(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    """Compares the hand's position with the joints, whatever the tool and wherever the base."""
    hand = _hand_of_joints(raw, mapping)
    if hand is None or mapping.pose_from_joints:
        return []
    at, turned = hand
    if np.median(np.linalg.norm(at - at.mean(axis=0), axis=1)) < MIN_SPREAD:
        return []
    assert mapping.position is not None
    position = column(raw, mapping.position.key) * LENGTH_UNITS[mapping.position.unit]
    rows = min(len(position), len(at))
    # Least squares for base b and tool t: position - at = b + turned t; then again without the
    # worse half of the rows, which single wild values would otherwise pull along.
    system = np.concatenate([np.broadcast_to(np.eye(3), turned.shape), turned], axis=-1)[:rows]
    target = position[:rows] - at[:rows]
    used, distance = np.ones(rows, bool), np.zeros(rows)
    for _ in range(3):
        offsets = np.linalg.lstsq(system[used].reshape(-1, 6), target[used].ravel(), rcond=None)[0]
        distance = np.linalg.norm(target - system @ offsets, axis=1)
        used = distance <= np.median(distance)
    median = float(np.median(distance))
    if median <= BAD_POSITION:
        return []
    return [
        finding(
            "kinematics_mismatch",
            f"the hand's position is {100 * median:.1f} cm from where the joints say, whatever the "
            "tool's length and wherever the base",
        )
    ]


def fix(declared: RotationColumns, right: Reading) -> str:
    """Returns what to write into the mapping."""
    unit = f", unit: {right.unit}" if SIZES[right.form] == 3 else ""
    line = f"`rotation: {{key: [{', '.join(declared.key)}], form: {right.form}{unit}}}`"
    if not right.inverse:
        return line
    return (
        "The log has base-in-hand rotations: invert them (transpose the matrices) before writing "
        f"the log, then use {line}"
    )


def _code(
    declared: Reading, right: Reading
) -> Literal["angles_in_degrees", "angles_in_radians", "rotation_convention"]:
    if right.form == declared.form and right.unit != declared.unit and not right.inverse:
        return "angles_in_degrees" if right.unit == "deg" else "angles_in_radians"
    return "rotation_convention"


def _spread(matrices: np.ndarray) -> float:
    """Median angle [rad] to the mean rotation."""
    return float(np.median(angle_between(mean_rotation(matrices)[None], matrices)))


def _hand_of_joints(
    raw: RawEpisode, mapping: ColumnMapping
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns positions (rows, 3) and rotations (rows, 3, 3); None without a Franka's joints."""
    if not mapping.joints or mapping.robot != "franka":
        return None
    joints = column(raw, mapping.joints) * ANGLE_UNITS[mapping.joints_unit]
    if joints.shape[1] != 7 or len(joints) < MIN_ROWS:
        return None
    return hand_pose(joints)


def _degrees(angle: float) -> str:
    return f"{max(np.degrees(angle), 0.01):.2g} degrees"
