"""Which rows of a recording a model sees: those at its own rate, where the recording has them."""

import numpy as np

from worldmodel.data.resample import nearest

TOLERANCE = 0.25  # of a model step: how far a row may lie from its ideal time, as in `windows`
MAX_MISSED = 0.1  # share of the grid's points that may fall between the rows of a slow recording


def rows_at_rate(
    times: np.ndarray, hz: float | None, *, usable: np.ndarray | None = None
) -> np.ndarray:
    """Returns the numbers (k,) of the rows that stand on a regular grid of `hz`.

    The grid starts at the first usable row. Each of its points takes the nearest usable row if that
    lies within a quarter of a step; a point without one is left out, so a gap in the recording
    stays a gap, and windows by timestamps do not find a frame there. Rows are whole: their frame,
    pose and time belong to the same instant, nothing is interpolated. The last row of a recording
    is a row like any other: it is what the last action led to, and no action starts from it.

    A recording whose rate is about `hz` already (within a quarter) keeps all usable rows.

    Args:
        times: Strictly increasing times (n,) [s].
        hz: Rate of the model [Hz]; None keeps every usable row.
        usable: bool (n,), False for rows to leave out; None if all may be used.

    Raises:
        ValueError: The recording is slower than `hz`, or its rows fall between the grid's points.
    """
    rows = np.arange(len(times)) if usable is None else np.flatnonzero(usable)
    if hz is None or len(rows) < 2:
        return rows
    times, step = times[rows], 1 / hz
    interval = float(np.median(np.diff(times)))
    if abs(interval - step) <= TOLERANCE * step:
        return rows
    if interval * (1 - MAX_MISSED) > 2 * TOLERANCE * step:
        raise ValueError(
            f"its rows are {1 / interval:.4g} Hz, which gives no rows at {hz:.4g} Hz; choose a "
            f"rate of about {1 / interval:.4g} Hz, or of at most half of it"
        )
    points = int((times[-1] - times[0]) / step + TOLERANCE) + 1
    grid = times[0] + step * np.arange(points)
    closest = nearest(times, grid)
    return rows[closest[np.abs(times[closest] - grid) <= TOLERANCE * step]]
