"""Is a recording what it claims to be? Checked before anything is learned from it.

    report = check(open_source("logs/monday", mapping="mapping.yaml"))
    report.quarantined                   # episodes with an error: left out, and said so

Every frame is decoded once, and every number looked at, as the file has it and as our schema reads
it. `worldmodel.data.checks.findings.KINDS` lists all that can be found. Recordings of any size are
checked in one pass: of an episode only `EpisodeFacts` stay, from which the set is judged.
"""

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from worldmodel.data.checks.actions import action_facts, find_actions, find_turns, turn_sums
from worldmodel.data.checks.cameras import find_cameras
from worldmodel.data.checks.clock import find_clock, measured_hz
from worldmodel.data.checks.conventions import find_position, find_rotation
from worldmodel.data.checks.facts import EpisodeFacts
from worldmodel.data.checks.findings import Finding, Severity, finding
from worldmodel.data.checks.gripper import find_gripper, find_gripper_set
from worldmodel.data.checks.motion import MIN_OBSERVATIONS, find_idle, find_jumps, idle_steps
from worldmodel.data.checks.numbers import find_joint_limits, find_not_finite, find_units
from worldmodel.data.checks.sets import (
    find_colours,
    find_constant,
    find_duplicates,
    find_idle_set,
    find_missing_cameras,
)
from worldmodel.data.episode import Episode
from worldmodel.data.frames import ChosenFrames, FrameReadError, Frames
from worldmodel.data.mapping import (
    MAX_ROWS_TRIMMED,
    TIME_UNITS,
    ColumnMapping,
    RawEpisode,
    TimeColumns,
    column,
    to_episode,
)
from worldmodel.data.source import Source

__all__ = [
    "CheckReport",
    "EpisodeFacts",
    "Finding",
    "check",
    "check_by_id",
    "check_episode",
    "check_set",
]

_ASSUMED_HZ = 15.0  # of a log whose clock is broken and that declares no rate


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        format: Name of the format.
        path: Where the recordings are.
        episodes: Number of episodes looked at.
        steps: Number of actions in those that could be read.
        cameras: Names of the cameras seen.
        clock_hz: Median of the measured rates; the declared rate if none was measured, or None.
        findings: Those on the set first, then by episode.
    """

    format: str
    path: str
    episodes: int
    steps: int
    cameras: tuple[str, ...]
    clock_hz: float | None
    findings: tuple[Finding, ...]

    @property
    def quarantined(self) -> list[int]:
        """Ids of episodes with an error, ascending."""
        errors = {f.episode for f in self.findings if f.severity == "error"}
        return sorted(episode for episode in errors if episode is not None)

    def to_json(self) -> dict[str, object]:
        """Returns what a program wants to know of this, as JSON values."""
        return {
            "format": self.format,
            "episodes": self.episodes,
            "steps": self.steps,
            "cameras": list(self.cameras),
            "clock_hz": self.clock_hz,
            "findings": [
                {
                    "episode": found.episode,
                    "step": found.step,
                    "code": found.code,
                    "severity": found.severity,
                    "message": found.message,
                }
                for found in self.findings
            ],
        }


def check(
    source: Source, *, ids: Sequence[int] | None = None, progress: bool = True, workers: int = 1
) -> CheckReport:
    """Reads and checks episodes, every row and every frame.

    Args:
        source: Where they are.
        ids: Which; all if not given.
        progress: Whether to show a progress bar.
        workers: Number of processes.

    Raises:
        ValueError: There are no episodes, or `workers` is not positive.
        ImportError: The format needs an extra that is not installed.
    """
    ids = list(source.ids() if ids is None else ids)
    if not ids:
        raise ValueError(f"{source.path} has no episodes to check")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    findings: list[Finding] = []
    facts: list[EpisodeFacts] = []
    with tqdm(total=len(ids), desc="check", unit="episode", disable=not progress) as bar:
        for found, fact in _each(source, ids, min(workers, len(ids))):
            findings += found
            facts += [] if fact is None else [fact]
            bar.update()
    findings += check_set(facts, source.mapping)
    rates = [fact.hz for fact in facts if fact.hz is not None]
    declared = source.mapping.hz
    return CheckReport(
        format=source.format,
        path=str(source.path),
        episodes=len(ids),
        steps=sum(fact.steps for fact in facts),
        cameras=tuple(dict.fromkeys(camera for fact in facts for camera in fact.cameras)),
        clock_hz=round(float(np.median(rates)), 3) if rates else declared,
        findings=tuple(sorted(findings, key=_place)),
    )


def check_episode(
    raw: RawEpisode, mapping: ColumnMapping, *, episode: int, format: str
) -> tuple[list[Finding], EpisodeFacts | None]:
    """Checks one recording, every row and every frame.

    Args:
        raw: The recording.
        mapping: What its columns mean.
        episode: Its id, for the findings.
        format: Name of the format.

    Returns:
        What was found, and what `check_set` needs to know of it; None if it cannot be read or its
        numbers are not numbers.
    """
    try:
        found, facts = _check_episode(raw, mapping, episode, format)
    except ValueError as error:  # The mapping does not fit, or the lengths contradict each other.
        found, facts = [finding("unreadable", str(error))], None
    return [replace(f, episode=episode) for f in found], facts


def check_set(facts: Sequence[EpisodeFacts], mapping: ColumnMapping) -> list[Finding]:
    """Finds what only the whole set shows; see `worldmodel.data.checks.sets`."""
    if not facts:
        return []
    found = find_constant(facts, mapping) + find_duplicates(facts)
    found += find_gripper_set(facts, mapping) + find_idle_set(facts) + find_colours(facts)
    found += find_missing_cameras(facts) + find_actions(facts)
    turns, turns_judged = find_turns(facts, mapping)
    found += turns
    if not turns_judged and not any(fact.rotation_judged for fact in facts):
        found.append(
            finding(
                "rotation_unverified",
                "no joints, and no commands that turn the hand, to compare the rotations with"
                if not mapping.joints
                else "the joints could not tell: another robot, or the hand hardly turns",
            )
        )
    return found


def _each(
    source: Source, ids: Sequence[int], workers: int
) -> Iterator[tuple[list[Finding], EpisodeFacts | None]]:
    if workers == 1:
        yield from (check_by_id(source, i) for i in ids)
        return
    # Spawned: video decoders and HDF5 have threads and locks that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # The source travels once per chunk, not once per episode: its index may be large.
        chunk = max(1, min(16, len(ids) // (4 * workers)))
        yield from pool.map(check_by_id, [source] * len(ids), ids, chunksize=chunk)


def check_by_id(source: Source, episode: int) -> tuple[list[Finding], EpisodeFacts | None]:
    """Reads and checks one episode; what keeps it from being read is a finding too."""
    try:
        raw = source.raw(episode)
    except (ValueError, KeyError, OSError) as error:
        code = "frames_unreadable" if isinstance(error, FrameReadError) else "unreadable"
        return [replace(finding(code, str(error).strip("'\"")), episode=episode)], None
    return check_episode(raw, source.mapping, episode=episode, format=source.format)


def _check_episode(
    raw: RawEpisode, mapping: ColumnMapping, episode: int, format: str
) -> tuple[list[Finding], EpisodeFacts | None]:
    found, raw = _fit_rows(raw, mapping)
    rows, cameras = _rows_of(raw, mapping), _cameras(raw, mapping)
    if not cameras:
        wanted = ", ".join(camera.key for camera in mapping.cameras.values())
        have = ", ".join(raw.cameras) or "none"
        message = f"there is no camera of {wanted}; the episode has {have}"
        return [*found, finding("camera_missing", message, severity="error")], None
    if rows < 2:
        return [*found, _too_short(rows, severity="error")], None
    not_finite = find_not_finite(raw, mapping)
    found += not_finite
    if any(f.severity == "error" for f in not_finite):
        found += find_cameras(cameras, None, None)[0]
        return found, None
    clock = _find_clocks(raw, mapping)
    found += clock
    clock_works = not any(f.code in ("time_not_increasing", "time_unit") for f in clock)
    own_clocks = any(camera.time is not None for camera in mapping.cameras.values())
    if own_clocks and (not clock_works or any(f.code == "frame_count" for f in found)):
        return found, None  # Which frame belongs to which row is found by these clocks.
    units = find_units(raw, mapping)
    found += [*units, *find_gripper(raw, mapping)]
    converted = to_episode(raw, mapping, source=format)
    if converted.steps + 1 < MIN_OBSERVATIONS:
        found.append(_too_short(converted.steps + 1))

    # What follows compares numbers in metres and radians: if they are not, all of it is noise.
    angles = any(f.code.startswith("angles_") for f in units)
    turned, judged = ([], True) if angles else find_rotation(raw, mapping)
    units += [f for f in turned if f.code != "kinematics_mismatch"]
    found += turned
    proprio, steps = converted.proprio, converted.steps
    dt = np.full(steps, 1 / (mapping.hz or _ASSUMED_HZ))
    if clock_works:
        dt = np.diff(converted.timestamps)
    idle, actions, turns = np.zeros(steps, bool), {}, None
    if not units:
        idle = idle_steps(proprio, dt)
        found += find_jumps(proprio, dt) + find_idle(idle, converted.usable)
        found += find_joint_limits(raw, mapping) + ([] if turned else find_position(raw, mapping))
        actions = action_facts(converted, mapping)
        turns = None if judged else turn_sums(raw, mapping, converted)
    seen, colours = find_cameras(converted.frames, None if units else proprio, dt)
    measured = clock_works and converted.metadata.clock == "measured"
    usable = np.ones(len(idle), bool) if converted.usable is None else converted.usable[:-1]
    facts = EpisodeFacts(
        episode=episode,
        steps=steps,
        hz=measured_hz(converted.timestamps) if measured else None,
        cameras=colours,
        low=proprio.min(axis=0),
        high=proprio.max(axis=0),
        first_gripper=float(proprio[0, 6]),
        idle_steps=int((idle & usable).sum()),
        usable_steps=int(usable.sum()),
        content=_content(converted),
        rotation_judged=judged,
        actions=actions,
        turns=turns,
    )
    return found + seen, facts


def _fit_rows(raw: RawEpisode, mapping: ColumnMapping) -> tuple[list[Finding], RawEpisode]:
    """Finds cameras with more or fewer frames than rows, and cuts all to the shortest.

    Cameras with a clock of their own need no cutting: their frames are found by time.
    """
    rows = shortest = _rows_of(raw, mapping)
    found = []
    for name, camera in mapping.cameras.items():
        if camera.key not in raw.cameras:
            continue  # Whether it is missing, or no episode has it, the set shows.
        frames = len(raw.cameras[camera.key])
        expected = rows if camera.time is None else len(column(raw, camera.time.key))
        if camera.time is None:
            shortest = min(shortest, frames)
        if frames != expected:
            slight = abs(frames - expected) <= MAX_ROWS_TRIMMED and camera.time is None
            whose = "the log" if camera.time is None else "its clock"
            found.append(
                finding(
                    "frame_count",
                    f"camera '{name}' has {frames} frames, but {whose} has {expected} rows",
                    severity="warning" if slight else "error",
                    fix="Nothing need be done: what is over is cut off." if slight else "",
                )
            )
    columns = {k: v[:shortest] if len(v) == rows else v for k, v in raw.columns.items()}
    cameras = {
        camera.key: ChosenFrames(raw.cameras[camera.key], range(shortest))
        if camera.time is None
        else raw.cameras[camera.key]
        for camera in mapping.cameras.values()
        if camera.key in raw.cameras
    }
    return found, replace(raw, columns=columns, cameras=cameras)


def _find_clocks(raw: RawEpisode, mapping: ColumnMapping) -> list[Finding]:
    """Checks every clock; the declared rate is that of the rows, so of the first camera's own."""
    found = []
    own = {n: c for n, c in mapping.cameras.items() if c.time is not None and c.key in raw.cameras}
    if mapping.time is not None:
        found += find_clock(_seconds(raw, mapping.time), None if own else mapping.hz, mapping.time)
    for name, camera in own.items():
        assert camera.time is not None
        declared = mapping.hz if name == next(iter(own)) else None
        found += find_clock(_seconds(raw, camera.time), declared, camera.time, name=name)
    return found


def _seconds(raw: RawEpisode, time: TimeColumns) -> np.ndarray:
    return column(raw, time.key)[:, 0] * TIME_UNITS[time.unit]


def _rows_of(raw: RawEpisode, mapping: ColumnMapping) -> int:
    return len(column(raw, mapping.joints if mapping.position is None else mapping.position.key))


def _cameras(raw: RawEpisode, mapping: ColumnMapping) -> dict[str, Frames]:
    cameras = mapping.cameras.items()
    return {name: raw.cameras[c.key] for name, c in cameras if c.key in raw.cameras}


def _too_short(rows: int, severity: Severity | None = None) -> Finding:
    message = f"there are {rows} rows; a training window has {MIN_OBSERVATIONS}"
    return finding("too_short", message, severity=severity)


def _content(episode: Episode) -> str:
    return hashlib.blake2b(
        np.ascontiguousarray(episode.proprio).tobytes(), digest_size=16
    ).hexdigest()


def _place(found: Finding) -> tuple[int, int, str]:
    first = -1 if found.episode is None else found.episode
    return first, -1 if found.step is None else found.step, found.code
