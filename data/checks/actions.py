"""Logged commands against the motion that followed: how late, which way, and how far.

Training takes its actions from measured poses, so none of this stops anybody; but commands and
motion that contradict each other show that one of the two is not what it is taken for. Sums are
kept for each episode, and the set is judged by their total.
"""

from collections.abc import Sequence

import numpy as np

from worldmodel.data.checks.conventions import MIN_TURN, Reading, fix, readings
from worldmodel.data.checks.facts import ActionFacts, EpisodeFacts
from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.episode import Episode
from worldmodel.data.mapping import (
    ANGLE_UNITS,
    LENGTH_UNITS,
    ColumnMapping,
    RawEpisode,
    column,
)
from worldmodel.data.rotations import angle_between, mean_rotation, to_rotvec
from worldmodel.pose import GRIPPER, POSITION

MAX_LAG = 10  # steps; a second at 10 Hz
SUSPICIOUS_LAG = 3  # steps; controllers take one or two
MIN_STEPS = 20  # of an episode, for its commands to count
FOLLOWS = 0.5  # correlation from which on motion clearly follows, or contradicts, its command
LAG_GAIN = 0.02  # in correlation, of a late match over an early one
ABSOLUTE = 0.95  # correlation with the measured state of commands that say where to be
SCALE = (0.5, 2.0)  # of an absolute command against what is measured
# Turns are noisier than rotations, so the test without joints asks for more.
TURN_FOLLOWS, TURN_FITS = 0.9, 0.95  # correlation of the best reading, and of one good enough
TURN_CLEARLY = 5  # times the share of the turns that stays unexplained
TURN_LAGS = 4


def action_facts(episode: Episode, mapping: ColumnMapping) -> dict[str, ActionFacts]:
    """Returns for each logged command that can be compared with something how it goes with it."""
    facts = {}
    # Commands are kept in the log's own units, so they are compared with the log's own poses.
    metre = LENGTH_UNITS[mapping.position.unit] if mapping.position is not None else 1.0
    radian = ANGLE_UNITS[mapping.joints_unit]
    for name, command in episode.logged_actions.items():
        measures = _measures(name, command.shape[1], episode)
        if measures is None or episode.steps < MIN_STEPS or not np.isfinite(command).all():
            continue
        measured = {
            "position": episode.proprio[:, POSITION] / metre,
            "gripper": episode.proprio[:, GRIPPER],
            "joints": None if episode.joints is None else episode.joints / radian,
        }[measures]
        assert measured is not None
        measured = measured.astype(np.float64)
        command = command[:, : measured.shape[1]].astype(np.float64)
        absolute = _is_absolute(name, command, measured)
        # A change of an absolute command and the motion after it; both (T - 1, axes).
        asked = np.diff(command, axis=0)[:-1] if absolute else command[1:-1]
        motion = np.diff(measured, axis=0)[1:]
        centred, state = command - command.mean(axis=0), measured - measured.mean(axis=0)
        facts[name] = ActionFacts(
            measures=measures,
            absolute=absolute,
            lags=lag_sums(asked - asked.mean(axis=0), motion - motion.mean(axis=0), MAX_LAG + 1),
            scale=np.stack([(centred * state).sum(axis=0), (state * state).sum(axis=0)], axis=-1),
        )
    return facts


def turn_sums(raw: RawEpisode, mapping: ColumnMapping, episode: Episode) -> np.ndarray | None:
    """Returns sums of commanded and measured turns for each way to read the rotation.

    A commanded turn is in the base's frame or in the hand's: both are tried.

    Returns:
        (readings, 2, TURN_LAGS, 3) as `EpisodeFacts.turns`; None without commands that turn.
    """
    rotation = mapping.rotation
    if mapping.pose_from_joints or rotation is None or episode.steps < MIN_STEPS:
        return None
    values = column(raw, rotation.key).astype(np.float64)
    if len(values) != episode.steps + 1:
        return None  # resampled to the clock of a camera
    for name, command in episode.logged_actions.items():
        if _measures(name, command.shape[1], episode) != "position" or command.shape[1] < 6:
            continue
        measured = episode.proprio[:, POSITION].astype(np.float64)
        absolute = _is_absolute(name, command[:, :3].astype(np.float64), measured)
        asked = command[:-1, 3:6].astype(np.float64)
        # An absolute command is read in the same convention as the pose, and cannot tell.
        if absolute or not np.isfinite(asked).all() or not np.any(asked):
            continue
        sums = []
        for way in readings(rotation):
            matrices = way.matrices(values)
            if angle_between(mean_rotation(matrices)[None], matrices).max() < MIN_TURN:
                sums.append(np.zeros((2, TURN_LAGS, 3)))
                continue
            before, after = matrices[:-1], matrices[1:]
            in_base = to_rotvec(after @ np.swapaxes(before, -1, -2))
            in_hand = to_rotvec(np.swapaxes(before, -1, -2) @ after)
            sums.append(
                np.stack(
                    [lag_sums(asked, turn, TURN_LAGS).sum(axis=1) for turn in (in_base, in_hand)]
                )
            )
        return np.stack(sums)
    return None


def lag_sums(asked: np.ndarray, motion: np.ndarray, lags: int) -> np.ndarray:
    """Returns sums (lags, axes, 3) of asked squared, motion squared and their product."""
    rows = len(asked)
    return np.stack(
        [
            np.stack([(a * a).sum(axis=0), (m * m).sum(axis=0), (a * m).sum(axis=0)], axis=-1)
            for a, m in ((asked[: rows - k], motion[k:]) for k in range(lags))
        ]
    )


def find_actions(facts: Sequence[EpisodeFacts]) -> list[Finding]:
    """Finds commands that take effect late, against their direction or at another scale."""
    found = []
    for name in sorted({name for fact in facts for name in fact.actions}):
        of_name = [fact.actions[name] for fact in facts if name in fact.actions]
        kinds = [(f.measures, f.absolute) for f in of_name]
        measures, absolute = max(set(kinds), key=kinds.count)
        of_name = [f for f in of_name if (f.measures, f.absolute) == (measures, absolute)]
        if measures == "gripper":
            continue  # which way a gripper command goes, `sets.py` asks
        lags = np.sum([f.lags for f in of_name], axis=0)
        found += _lag(name, measures, lags)
        found += _sign(name, measures, lags)
        if absolute:
            found += _scale(name, measures, np.sum([f.scale for f in of_name], axis=0))
    return found


def find_turns(facts: Sequence[EpisodeFacts], mapping: ColumnMapping) -> tuple[list[Finding], bool]:
    """Finds rotations that commanded turns contradict.

    Returns:
        What was found, and whether the commands could tell.
    """
    sums = [fact.turns for fact in facts if fact.turns is not None]
    if not sums or mapping.rotation is None:
        return [], False
    total = np.sum(sums, axis=0)  # (readings, sides, lags, 3)
    ways = readings(mapping.rotation)
    # Inverted and composed on the other side are the same but for the sign: one must be positive.
    matches = correlation(total).max(axis=(1, 2))
    best = int(np.argmax(matches))
    if matches[best] < TURN_FOLLOWS:
        return [], False
    unexplained = 1 - matches**2
    if matches[0] > TURN_FITS or unexplained[0] <= TURN_CLEARLY * unexplained[best]:
        return [], True
    message = (
        f"measured turns match the commanded ones with correlation {matches[0]:.2f} read as "
        f"{ways[0]}, {matches[best]:.2f} read as {ways[best]}"
    )
    return [
        finding("rotation_composition", message, fix=fix(mapping.rotation, _plain(ways, matches)))
    ], True


def correlation(sums: np.ndarray) -> np.ndarray:
    """Returns correlations (...) of sums (..., 3); 0 where one side never changes."""
    norm = np.sqrt(sums[..., 0] * sums[..., 1])
    return np.where(norm > 1e-12, sums[..., 2] / np.maximum(norm, 1e-12), 0.0)


def _plain(ways: Sequence[Reading], matches: np.ndarray) -> Reading:
    """The best reading; of equally good ones that which needs the least said."""
    best = matches.max()
    return next(way for way, match in zip(ways, matches, strict=True) if match > best - 1e-3)


def _measures(name: str, size: int, episode: Episode) -> str | None:
    """What a command can be compared with, by its name and size."""
    name = name.lower()
    if "joint" in name:
        return "joints" if episode.joints is not None and size >= episode.joints.shape[1] else None
    if "gripper" in name:
        return "gripper" if size == 1 else None
    return "position" if size in (3, 6, 7) else None


def _is_absolute(name: str, command: np.ndarray, measured: np.ndarray) -> bool:
    if "velocity" in name.lower() or "delta" in name.lower():
        return False
    command, measured = command - command.mean(axis=0), measured - measured.mean(axis=0)
    norms = np.linalg.norm(command, axis=0) * np.linalg.norm(measured, axis=0)
    products = np.abs((command * measured).sum(axis=0))
    return bool(np.median(products / np.maximum(norms, 1e-12)) > ABSOLUTE)


def _lag(name: str, measures: str, lags: np.ndarray) -> list[Finding]:
    matches = correlation(lags.sum(axis=1))
    best = int(np.argmax(matches))
    early = float(matches[: SUSPICIOUS_LAG + 1].max())
    if best <= SUSPICIOUS_LAG or matches[best] < max(FOLLOWS, early + LAG_GAIN):
        return []
    return [
        finding(
            "action_lag",
            f"command '{name}' matches the motion of the {_thing(measures)} {best} steps later "
            f"best (correlation {matches[best]:.2f}, {matches[0]:.2f} at once)",
            fix=f"Shift '{name}' by {best} steps before use; training takes measured motion, "
            "which has no lag.",
        )
    ]


def _sign(name: str, measures: str, lags: np.ndarray) -> list[Finding]:
    matches = correlation(lags)[: SUSPICIOUS_LAG + 1]  # (lags, axes)
    strongest = np.take_along_axis(matches, np.abs(matches).argmax(axis=0)[None], axis=0)[0]
    against = strongest < -FOLLOWS
    # A command whose other axes do not follow either may be something else altogether.
    named = any(word in name.lower() for word in ("cartesian", "pose", "ee", "joint", "tcp"))
    if not against.any() or not (named or (strongest > FOLLOWS).any()):
        return []
    axes = "xyz" if measures == "position" else "1234567"
    listed = ", ".join(f"{axes[k]} ({strongest[k]:.2f})" for k in np.flatnonzero(against))
    return [
        finding(
            "action_mismatch",
            f"command '{name}' and the motion of the {_thing(measures)} go against each other "
            f"along {listed} (correlation)",
        )
    ]


def _scale(name: str, measures: str, sums: np.ndarray) -> list[Finding]:
    slopes = sums[:, 0] / np.maximum(sums[:, 1], 1e-12)
    median = float(np.median(np.abs(slopes)))
    if SCALE[0] <= median <= SCALE[1]:
        return []
    return [
        finding(
            "action_mismatch",
            f"command '{name}' changes {median:.3g} times as much as the {_thing(measures)}: is it "
            "in another unit?",
        )
    ]


def _thing(measures: str) -> str:
    return {"position": "hand", "joints": "joints", "gripper": "gripper"}[measures]
