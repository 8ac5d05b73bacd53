"""Poses at times that nobody measured: positions straight, rotations by SLERP, the gripper held.

Sensors do not tick together, and a model has a rate of its own. A pose between two measurements is
interpolated only if the two are close: across a gap nobody knows what the arm did.
"""

import numpy as np

from worldmodel.data.rotations import slerp
from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix, matrix_to_euler


def interpolate_proprio(times: np.ndarray, proprio: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns proprio (k, 7) at times `at` (k,) [s].

    Args:
        times: Strictly increasing times (n,) [s] of the measurements.
        proprio: Measured (n, 7).
        at: Times wanted, none before the first measurement or after the last.

    Raises:
        ValueError: A time lies outside the measurements.
    """
    before, fraction = _bracket(times, at)
    after = np.minimum(before + 1, len(times) - 1)
    a, b = proprio[before].astype(np.float64), proprio[after].astype(np.float64)
    rotation = slerp(euler_to_matrix(a[:, ROTATION]), euler_to_matrix(b[:, ROTATION]), fraction)
    result = np.empty((len(at), proprio.shape[1]), proprio.dtype)
    result[:, POSITION] = a[:, POSITION] + fraction[:, None] * (b - a)[:, POSITION]
    result[:, ROTATION] = matrix_to_euler(rotation)
    result[:, GRIPPER] = a[:, GRIPPER]
    # At a measurement its own values, to the last bit.
    exact = fraction == 0
    result[exact] = proprio[before[exact]]
    return result


def interpolate_linear(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns values (k, ...) at times `at` (k,) on straight lines between `values` (n, ...)."""
    before, fraction = _bracket(times, at)
    after = np.minimum(before + 1, len(times) - 1)
    weight = fraction.reshape(-1, *[1] * (values.ndim - 1))
    return ((1 - weight) * values[before] + weight * values[after]).astype(values.dtype)


def hold(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns for each time of `at` (k,) the last of `values` (n, ...) measured until then."""
    return values[_bracket(times, at)[0]]


def gap_around(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the time [s] between the two measurements around each of `at`; 0 on a measurement."""
    before, fraction = _bracket(times, at)
    after = np.minimum(before + 1, len(times) - 1)
    return np.where(fraction > 0, times[after] - times[before], 0.0)


def nearest(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the index of the measurement nearest to each of `at`; of two, the earlier."""
    if len(times) == 1:
        return np.zeros(at.shape, np.int64)
    after = np.clip(np.searchsorted(times, at), 1, len(times) - 1)
    return after - (at - times[after - 1] <= times[after] - at)


def _bracket(times: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index of the last measurement until each time, and how far it is to the next."""
    if len(at) and (at.min() < times[0] or at.max() > times[-1]):
        raise ValueError(
            f"times {at.min():.6g} to {at.max():.6g} s reach beyond the measurements, "
            f"{times[0]:.6g} to {times[-1]:.6g} s"
        )
    before = np.searchsorted(times, at, side="right") - 1
    after = np.minimum(before + 1, len(times) - 1)
    span = np.where(after > before, times[after] - times[before], 1.0)
    return before, (at - times[before]) / span
