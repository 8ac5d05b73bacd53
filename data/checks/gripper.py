"""Is the gripper 0 when open and 1 when closed, and not the other way round or in metres?"""

from collections.abc import Sequence

import numpy as np

from worldmodel.data.checks.actions import FOLLOWS, SUSPICIOUS_LAG, correlation
from worldmodel.data.checks.facts import EpisodeFacts
from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.mapping import GRIPPER_SLACK, ColumnMapping, RawEpisode, column

# Scales on which grippers are logged, with what people call them.
SCALES = {100: "percent", 255: "bytes", 1000: "thousandths"}
WIDTHS = ("width", "opening")  # columns named so are larger when the gripper is open
WIDTH_FOLLOWS = 0.8  # correlation; a measured width and a measured gripper are the same thing
SOME = 3  # episodes from which on a habit can be told from chance
CLOSED_START, OPENS = 0.8, 0.3  # starts beyond the one, and opens by the other
METRES = (0.01, 0.12)  # how far a gripper in metres opens; fractions open to about 1


def find_gripper(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    """Finds a gripper beyond open and closed, or one that closes as its width grows."""
    gripper = mapping.gripper
    if not gripper.key:
        return []
    value = column(raw, gripper.key)[:, 0].astype(np.float64)
    closed = (value - gripper.open) / (gripper.closed - gripper.open)
    bad = (closed < -GRIPPER_SLACK) | (closed > 1 + GRIPPER_SLACK)
    if bad.any():
        return [_beyond(value, bad, mapping)]
    for name, width in raw.columns.items():
        if not any(word in name.lower() for word in WIDTHS) or width.size != len(closed):
            continue
        width = np.asarray(width, np.float64).ravel()
        if min(width.std(), closed.std()) < 1e-4 or not np.isfinite(width).all():
            continue
        match = float(np.corrcoef(width, closed)[0, 1])
        if match > WIDTH_FOLLOWS:
            return [
                finding(
                    "gripper_inverted",
                    f"the gripper closes as the column '{name}' grows (correlation {match:.2f})",
                    fix=exchanged(mapping),
                )
            ]
    return []


def find_gripper_set(facts: Sequence[EpisodeFacts], mapping: ColumnMapping) -> list[Finding]:
    """Finds grippers that start closed, obey the other way round, or stay within centimetres."""
    low = np.min([fact.low[6] for fact in facts])
    high = np.max([fact.high[6] for fact in facts])
    gripper = mapping.gripper
    if not gripper.key or len(facts) < SOME:
        return []
    if low >= 0 and METRES[0] < high - low and high < METRES[1]:
        return [
            finding(
                "gripper_range",
                f"the gripper goes from {low:.3g} to {high:.3g} in all {len(facts)} episodes: that "
                "looks like its width in metres",
                fix=f"`gripper: {{key: {', '.join(gripper.key)}, open: {high:.2g}, closed: 0}}`",
            )
        ]
    start = float(np.median([fact.first_gripper for fact in facts]))
    if start < CLOSED_START or high - low < OPENS:
        return []
    message = f"the gripper is {start:.2f} (closed) at the start of most of {len(facts)} episodes"
    contrary = _contrary_command(facts)
    if contrary:
        message += f", and command '{contrary}' goes up where the gripper goes down"
    return [
        finding(
            "gripper_inverted",
            message,
            severity="error" if contrary else "warning",
            fix=f"{exchanged(mapping)}, unless the pictures show that it starts closed",
        )
    ]


def exchanged(mapping: ColumnMapping) -> str:
    """Returns the line of a mapping with open and closed exchanged."""
    gripper = mapping.gripper
    key = ", ".join(gripper.key)
    return f"`gripper: {{key: {key}, open: {gripper.closed:g}, closed: {gripper.open:g}}}`"


def _beyond(value: np.ndarray, bad: np.ndarray, mapping: ColumnMapping) -> Finding:
    gripper, step = mapping.gripper, int(np.flatnonzero(bad)[0])
    low, high = float(value.min()), float(value.max())
    likely = [scale for scale in SCALES if low >= 0 and 0.5 * scale < high <= scale]
    hint = f"; it looks like {SCALES[likely[0]]}, 0 to {likely[0]}" if likely else ""
    return finding(
        "gripper_range",
        f"the gripper goes from {low:.4g} to {high:.4g}, but the mapping says it is "
        f"{gripper.open:g} when open and {gripper.closed:g} when closed{hint}",
        step=step,
        fix=f"`gripper: {{key: {', '.join(gripper.key)}, open: ..., closed: ...}}` with the values "
        f"of an open and of a closed gripper; they go from {low:.4g} to {high:.4g}",
    )


def _contrary_command(facts: Sequence[EpisodeFacts]) -> str:
    """Returns the gripper command that the gripper moves against; "" if there is none."""
    names = {n for f in facts for n, a in f.actions.items() if a.measures == "gripper"}
    for name in sorted(names):
        lags = np.sum([f.actions[name].lags for f in facts if name in f.actions], axis=0)
        matches = correlation(lags[: SUSPICIOUS_LAG + 1, 0])
        if matches[np.abs(matches).argmax()] < -FOLLOWS:
            return name
    return ""
