"""Clocks: do they run, in which unit, at the rate that is declared, and without gaps."""

import numpy as np

from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.mapping import TIME_UNITS, TimeColumns

# Control loops of arms run at 1 to 200 Hz, some logs at 1000; the next unit is a factor 1000 away.
PLAUSIBLE_DT = (1e-3, 2.0)  # s
RATE_TOLERANCE = 0.05  # of the declared rate; clocks agree much better, wrong headers much worse
GAP = 1.5  # times the median interval: from there on a step is nearer to being missed than late


def measured_hz(times: np.ndarray) -> float:
    """Returns the rate [Hz] of increasing times (n,) [s], n >= 2."""
    return 1 / float(np.median(np.diff(times)))


def find_clock(
    times: np.ndarray, declared_hz: float | None, time: TimeColumns, *, name: str = ""
) -> list[Finding]:
    """Finds what is wrong with a clock.

    Args:
        times: (n,) [s] as the mapping reads them, n >= 2.
        declared_hz: Rate that the log or the user declares.
        time: What the mapping says of it.
        name: Whose clock, if not that of the rows.
    """
    whose = f"of camera {name} " if name else ""
    steps = np.diff(times)
    bad = steps <= 0
    if bad.any():
        step = int(np.flatnonzero(bad)[0]) + 1
        kind = "repeated" if steps[step - 1] == 0 else "earlier than the one before"
        return [
            finding(
                "time_not_increasing",
                f"the time {whose}at row {step} is {kind} ({times[step - 1]:.6f} s, then "
                f"{times[step]:.6f} s); {bad.sum()} of {len(steps)} steps",
                step=step,
            )
        ]
    median = float(np.median(steps))
    unit = _likely_unit(median / TIME_UNITS[time.unit], time.unit)
    if unit != time.unit:
        factor = TIME_UNITS[unit] / TIME_UNITS[time.unit] if unit else 1.0
        better = f"; in {unit} it would be {1 / (median * factor):.4g} Hz" if unit else ""
        return [
            finding(
                "time_unit",
                f"rows {whose}are {median:.4g} s apart ({1 / median:.4g} Hz), as `unit: "
                f"{time.unit}` says{better}",
                fix=f"`time: {{key: {', '.join(time.key)}, unit: {unit}}}`" if unit else "",
            )
        ]
    found = []
    # Gaps mislead the mean and jitter the median; a wrong rate shows in both.
    mean = float(steps.mean())
    errors = [abs(1 / interval / declared_hz - 1) for interval in (mean, median) if declared_hz]
    if declared_hz and min(errors) > RATE_TOLERANCE:
        found.append(
            finding(
                "rate_mismatch",
                f"timestamps {whose}run at {1 / median:.4g} Hz, but {declared_hz:.4g} Hz is "
                "declared",
                fix=f"`hz: {1 / median:.3g}` in the mapping, or `hz={1 / median:.3g}` on the "
                "command line",
            )
        )
    gap = steps > GAP * median
    if gap.any():
        step = int(np.flatnonzero(gap)[0]) + 1
        found.append(
            finding(
                "gaps",
                f"{gap.sum()} of {len(steps)} steps {whose}are longer than {GAP} times the median; "
                f"the longest is {steps.max():.3g} s instead of {median:.3g} s",
                step=step,
            )
        )
    return found


def _likely_unit(median: float, declared: str) -> str:
    """Returns the unit in which a median interval makes sense; "" if none does."""
    units = dict.fromkeys((declared, *TIME_UNITS))
    low, high = PLAUSIBLE_DT
    return next((unit for unit in units if low <= median * TIME_UNITS[unit] <= high), "")
