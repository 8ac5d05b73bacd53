"""What the arm does from step to step: jumps that no arm can make, and stretches without motion."""

import numpy as np

from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.rotations import angle_between, slerp
from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix

MIN_OBSERVATIONS = 8  # one training window of V-JEPA 2-AC

# A step beyond both the floor and what the arm can do in that time is a jump. The floors are for
# 15 Hz; the speeds and accelerations are the Cartesian limits of the Franka Control Interface.
JUMP_M, JUMP_RAD = 0.15, 0.5
MAX_SPEED, MAX_TURN_RATE = 1.7, 2.5  # m/s, rad/s
SPIKE_M, SPIKE_RAD = 0.06, 0.25
MAX_ACCELERATION, MAX_TURN_ACCELERATION = 13.0, 25.0  # m/s^2, rad/s^2
SPIKE_SIGMA = 15  # and so many robust standard deviations, so that noise is none

IDLE_S = 0.5  # shorter pauses are part of a motion
IDLE_M, IDLE_RAD, IDLE_GRIPPER = 2e-3, 5e-3, 1e-2  # how still is still
IDLE_SHARE, MOSTLY_IDLE = 0.3, 0.9  # of an episode's steps: said, and warned of


def find_jumps(proprio: np.ndarray, dt: np.ndarray) -> list[Finding]:
    """Finds teleports and single wild rows.

    Args:
        proprio: (T + 1, 7).
        dt: (T,) [s] of each step, positive.
    """
    position = proprio[:, POSITION].astype(np.float64)
    rotation = euler_to_matrix(proprio[:, ROTATION].astype(np.float64))
    moved = np.linalg.norm(np.diff(position, axis=0), axis=1)
    turned = angle_between(rotation[:-1], rotation[1:])
    jump = moved > np.maximum(JUMP_M, MAX_SPEED * dt)
    twist = turned > np.maximum(JUMP_RAD, MAX_TURN_RATE * dt)
    bad = jump | twist
    if bad.any():
        step = int(np.flatnonzero(bad)[0])
        what = f"moves {moved[step]:.2f} m" if jump[step] else f"turns {turned[step]:.2f} rad"
        return [
            finding(
                "outlier",
                f"the hand {what} in {dt[step]:.3g} s from row {step} to {step + 1}; "
                f"{bad.sum()} such steps",
                step=step + 1,
            )
        ]
    return _find_spikes(position, rotation, dt)


def find_idle(idle: np.ndarray, usable: np.ndarray | None) -> list[Finding]:
    """Finds an episode that mostly stands still.

    Args:
        idle: bool (T,), from `idle_steps`.
        usable: bool (T + 1,) as `Episode.usable`; stretches that the log leaves out do not count.
    """
    counted = np.ones(len(idle), bool) if usable is None else usable[:-1]
    if not counted.any():
        return []
    share = float(idle[counted].mean())
    if share <= IDLE_SHARE:
        return []
    return [
        finding(
            "idle",
            f"the arm stands still in {100 * share:.0f} % of {counted.sum()} usable steps",
            step=int(np.flatnonzero(idle & counted)[0]),
            severity="warning" if share > MOSTLY_IDLE else "info",
        )
    ]


def idle_steps(proprio: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Returns bool (T,): whether the arm stands still for `IDLE_S` around each step."""
    position = proprio[:, POSITION].astype(np.float64)
    rotation = euler_to_matrix(proprio[:, ROTATION].astype(np.float64))
    gripper = proprio[:, GRIPPER][:, 0]
    steps, window = len(dt), max(2, round(IDLE_S / float(np.median(dt))))
    idle = np.zeros(steps, bool)
    if steps < window:
        return idle
    starts = np.arange(steps - window + 1)
    still = np.ones(len(starts), bool)
    for ahead in range(1, window + 1):
        later = starts + ahead
        still &= np.linalg.norm(position[later] - position[starts], axis=1) < IDLE_M
        still &= angle_between(rotation[starts], rotation[later]) < IDLE_RAD
        still &= np.abs(gripper[later] - gripper[starts]) < IDLE_GRIPPER
    for start in np.flatnonzero(still):
        idle[start : start + window] = True
    return idle


def _find_spikes(position: np.ndarray, rotation: np.ndarray, dt: np.ndarray) -> list[Finding]:
    """Finds rows that lie far beside the way from the row before to the row after."""
    if len(position) < MIN_OBSERVATIONS:
        return []
    even = np.maximum(dt[1:], dt[:-1]) < 1.5 * np.median(dt)  # across a gap nothing is a spike
    bend = np.abs(position[2:] - 2 * position[1:-1] + position[:-2])  # (T - 1, 3)
    middle = slerp(rotation[:-2], rotation[2:], np.full(len(bend), 0.5))
    bend = np.concatenate([bend, 2 * angle_between(middle, rotation[1:-1])[:, None]], axis=1)
    square = float(np.median(dt)) ** 2
    limit = np.array(
        3 * [max(SPIKE_M, MAX_ACCELERATION * square)]
        + [max(SPIKE_RAD, MAX_TURN_ACCELERATION * square)]
    )
    limit = np.maximum(limit, SPIKE_SIGMA * 1.4826 * np.median(bend, axis=0))
    bad = (bend > limit) & even[:, None]
    if not bad.any():
        return []
    # A wild row bends the path before and after it as well, but half as much.
    row, axis = np.unravel_index(int((bend / limit * bad).argmax()), bend.shape)
    axis_name = ("x", "y", "z", "rotation")[int(axis)]
    unit = "rad" if axis_name == "rotation" else "m"
    return [
        finding(
            "outlier",
            f"{axis_name} of row {row + 1} lies {bend[row, axis] / 2:.2f} {unit} beside its "
            "neighbours, which needs more acceleration than the arm has",
            step=int(row) + 1,
        )
    ]
