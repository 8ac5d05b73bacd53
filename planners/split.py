"""Split one long planned action into the part the arm may make now and the rest.

A predictor trained on several time scales understands a move of 30 cm as one model step. The arm
may move 7.5 cm per step, so it makes the first quarter, in the planned direction, and the other
three quarters become the next warm start.
"""

import numpy as np
import torch
from jaxtyping import Float

from worldmodel.planners.action_space import GRIPPER, POSES, ActionSpace
from worldmodel.planners.interfaces import ActionBounds

NOTHING_LEFT = 1e-6  # m, rad or gripper: rounding, not motion


def split_action(
    action: Float[np.ndarray, " action"],
    bounds: ActionBounds,
    gripper_snap: float | None = None,
    *,
    space: ActionSpace = POSES,
) -> tuple[Float[np.ndarray, " action"], Float[np.ndarray, " action"] | None]:
    """Returns the part of `action` that fits in `bounds`, and the remainder or None.

    Translation and rotation are each shortened by one factor for their three axes, which keeps
    their direction, as joints are by one for all; the gripper is clipped by itself. Executing the
    part and then the remainder is executing the action.

    Args:
        action: (A,) physical units.
        bounds: what the arm may do in one step. Each axis contains zero or is fixed to zero, and
            the action is zero on a fixed axis.
        gripper_snap: a gripper change above this becomes the whole bound, and a smaller one none;
            nothing of it is left over. None treats the gripper as above.
        space: how actions compose.

    Returns:
        float64 arrays; the remainder is None when less than 1e-6 of any unit is left.
    """
    low, high = (b.detach().cpu().double().numpy() for b in (bounds.low, bounds.high))
    action = np.asarray(action, dtype=np.float64)
    if gripper_snap is not None:
        action = snap_gripper(action, bounds, gripper_snap)
    part = np.empty_like(action)
    for group in space.groups:
        part[group] = _fitting_part(action[group], low[group], high[group])
    remainder = space.remainder(action, part)
    # Composing rotations about two axes leaks a little into a third; where the arm may not turn
    # that little is dropped, for it could never be executed.
    remainder[low == high] = 0.0
    if np.abs(remainder).max() < NOTHING_LEFT:
        return part, None
    return part, remainder


def split_plan(
    actions: Float[np.ndarray, "horizon action"],
    bounds: ActionBounds,
    gripper_snap: float | None = None,
    *,
    most: int,
) -> Float[np.ndarray, "step action"]:
    """Returns the first steps, at most `most`, in which an arm makes a plan; see `split_action`."""
    planned, steps = list(np.asarray(actions, dtype=np.float64)), []
    while planned and len(steps) < most:
        part, rest = split_action(planned.pop(0), bounds, gripper_snap)
        steps.append(part)
        if rest is not None:
            planned.insert(0, rest)
    return np.stack(steps)


def snap_gripper(
    actions: Float[np.ndarray, "*batch action"], bounds: ActionBounds, threshold: float
) -> Float[np.ndarray, "*batch action"]:
    """Returns the actions with each gripper change made full or none.

    Args:
        actions: (..., A) physical units.
        bounds: what the gripper may do in one step.
        threshold: a change above it becomes the upper bound, one below its negative the lower one,
            and any other zero.
    """
    snapped = np.array(actions)
    change = snapped[..., GRIPPER]
    closed = np.where(change > threshold, float(bounds.high[GRIPPER]), 0.0)
    snapped[..., GRIPPER] = np.where(change < -threshold, float(bounds.low[GRIPPER]), closed)
    return snapped


def slowed(bounds: ActionBounds, scale: float) -> ActionBounds:
    """Returns step bounds of which the arm moves a part `scale`, and the gripper all.

    Of 0, which is to stay and not to move within bounds, they are as they were.
    """
    scales = torch.full_like(bounds.high, scale if scale else 1.0)
    scales[GRIPPER] = 1.0
    return ActionBounds(low=bounds.low * scales, high=bounds.high * scales)


def _fitting_part(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    limit = np.where(values > 0, high, low)
    moves = np.abs(values) > NOTHING_LEFT
    factor = min(1.0, *(limit[moves] / values[moves])) if moves.any() else 1.0
    return np.clip(factor * values, low, high)  # the clip only removes rounding
