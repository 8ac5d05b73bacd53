"""What is wrong with a command, whoever sent it: nothing in it is trusted, not even its types."""

import math
import numbers

import numpy as np

from worldmodel.envs.robots.interface import VALUE_SIZES, Command

QUATERNION_TOLERANCE = 1e-3


def what_is_wrong(command: Command, *, last_seq: int, max_valid_for_s: float) -> str | None:
    """Returns a short name of the first thing wrong with a command, None when there is nothing.

    Names are "<what>:<field>" or a name of their own: type, dtype, shape, not_finite, out_of_range,
    not_unit; unknown_kind, seq_old, expired, valid_too_long.

    Args:
        command: As it came.
        last_seq: Number of the last command that was accepted; -1 before the first.
        max_valid_for_s: Longest life of a command.
    """
    return (
        _wrong_numbers(command, last_seq=last_seq, max_valid_for_s=max_valid_for_s)
        or _wrong_values(command.kind, command.values)
        or _wrong_gripper(command.gripper)
    )


def _wrong_numbers(command: Command, *, last_seq: int, max_valid_for_s: float) -> str | None:
    for name in ("seq", "obs_seq"):
        if not _is_integer(getattr(command, name)):
            return f"type:{name}"
    if not _is_real(command.valid_for_s):
        return "type:valid_for_s"
    if not math.isfinite(command.valid_for_s):
        return "not_finite:valid_for_s"
    if command.seq <= last_seq:
        return "seq_old"
    if command.valid_for_s <= 0:
        return "expired"
    if command.valid_for_s > max_valid_for_s:
        return "valid_too_long"
    return None


def _wrong_values(kind: object, values: object) -> str | None:
    if not isinstance(kind, str) or kind not in VALUE_SIZES:
        return "unknown_kind"
    if not isinstance(values, np.ndarray):
        return "type:values"
    if values.dtype not in (np.float32, np.float64):
        return "dtype:values"
    if values.shape != (VALUE_SIZES[kind],):
        return "shape:values"
    if not np.isfinite(values).all():
        return "not_finite:values"
    if np.abs(values).max(initial=0.0) > 1e6:
        return "out_of_range:values"  # squares of them must not overflow
    if kind == "pose":
        length = float(np.linalg.norm(values[3:].astype(float)))
        if abs(length - 1) > QUATERNION_TOLERANCE:
            return "not_unit:values"
    return None


def _wrong_gripper(gripper: object) -> str | None:
    if gripper is None:
        return None
    if not isinstance(gripper, int | float | np.floating | np.integer) or not _is_real(gripper):
        return "type:gripper"
    if not math.isfinite(gripper):
        return "not_finite:gripper"
    return None if 0 <= gripper <= 1 else "out_of_range:gripper"


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
