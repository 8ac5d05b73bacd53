"""The flight recorder: the last half minute of a robot, and all that a plan was made from.

    recorder = FlightRecorder(folder, settings={"checkpoint": "reach", "planner": {...}},
                              robot=robot.info, clock=robot.now)
    goal = recorder.goal("red cube", image)
    recorder.observation(observation); recorder.plan(record); recorder.command(command)
    recorder.ack(ack)  # a change to HOLD or FAULT keeps what is there
    recorder.trip("operator: stop"); recorder.close()

The format is that of `worldmodel.envs.robots.recording_format`. A line is with the operating system
when the method returns, so it survives a kill of the process (not a loss of power). Pictures are
written by a thread, each under another name first, so one that is there is whole; they are left out
when the disk is too slow. Segments older than `seconds` are deleted, unless something happened:
then they are moved to `trips`, with `AFTERMATH_S` of what followed. What a killed process left
behind is moved there by the next one. When a file cannot be written the recorder says so in the log
and in `problem`, and does nothing any more: no method raises for the sake of a disk.
"""

import errno
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from worldmodel.envs.robots.interface import (
    Ack,
    Command,
    RobotInfo,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.recording_format import (
    FORMAT,
    PLAN_ARRAYS,
    VERSION,
    PlanRecord,
    described,
    encoded,
    packed,
    plain,
    segments_of,
)

SEGMENT_S = 5.0
AFTERMATH_S = 2.0  # recorded after a trip before it is put away
THUMBNAIL_HZ = 5.0  # most thumbnails a second of each camera
MAX_PENDING = 64  # pictures that wait to be written; more are left out
logger = logging.getLogger(__name__)


class FlightRecorder:
    """Writes a recording. Any thread may call it; one process at a time may have a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        robot: RobotInfo,
        clock: Callable[[], float],
        seconds: float = 30.0,
        thumbnail_height: int = 96,
        min_free_bytes: int = 256 * 2**20,
    ):
        """Opens or begins a folder, and puts away what a killed process left in it.

        Args:
            folder: of the recording.
            settings: what planning depends on and does not change; plain JSON values.
            robot: that is recorded.
            clock: seconds; the robot's own, so that all times compare.
            seconds: that are kept at least.
            thumbnail_height: of the pictures of observations [pixels].
            min_free_bytes: stop recording before the disk has less than this left.

        Raises:
            TypeError, ValueError: the settings are no plain JSON.
            BlockingIOError: another process records there.
            OSError: the folder cannot be written.
        """
        self.folder, self._clock = folder, clock
        self._seconds, self._height, self._min_free = seconds, thumbnail_height, min_free_bytes
        header = {
            "format": FORMAT,
            "version": VERSION,
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "at": clock(),
            "settings": dict(settings),
            "robot": plain(asdict(robot)),
        }
        text = json.dumps(header, indent=1, allow_nan=False)  # refuses before anything is touched
        (folder / "trips").mkdir(parents=True, exist_ok=True)
        self._mutex = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._mutex, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._mutex)
            raise BlockingIOError(f"another process records to {folder}; choose another") from None
        self.problem: str | None = None
        """Why nothing is recorded any more; None while it is."""
        self.left_out = 0
        """Pictures that were not written because the disk is slow."""
        self._trips = max((int(p.name[:6]) for p in (folder / "trips").iterdir()), default=0)
        left = sorted(segments_of(folder))
        if left:
            self._put_away([p.name for p in left], [{"reason": "unfinished", "at": None}])
        (folder / "goals").mkdir(exist_ok=True)
        _write(folder / "header.json", text.encode())
        self._lock = threading.RLock()
        self._segments: list[tuple[str, float]] = []  # name and end of those before the present
        self._number = int(left[-1].name) if left else 0
        self._events = -1
        self._closed = False
        self._state: RobotState | None = None
        self._holding = False  # the last command was to hold
        self._reasons: list[dict[str, Any]] = []  # trips that are not yet put away
        self._put_away_at = math.inf
        self._drawn_at: dict[str, float] = {}
        self._plans = 0
        self._open_segment()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="flight-recorder", daemon=True)
        self._thread.start()

    # What happens.

    def goal(self, name: str, image: UInt8[np.ndarray, "height width 3"]) -> str:
        """Keeps a goal image (once) and returns its hash, which `PlanRecord.goal` refers to."""
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        path = self.folder / "goals" / f"{digest}.png"
        if not path.exists():
            self._picture(path, image.copy())
        self._record("goal", {"name": name, "sha256": digest})
        return digest

    def observation(self, observation: RobotObservation) -> None:
        """Records what was measured and when, and now and then small pictures."""
        with self._lock:
            frames = {}
            for name, frame in observation.frames.items():
                frames[name] = {"captured_at": frame.captured_at, "picture": None}
                if frame.captured_at - self._drawn_at.get(name, -math.inf) >= 1 / THUMBNAIL_HZ:
                    self._drawn_at[name] = frame.captured_at
                    path = self._path(f"observation-{observation.seq}-{name}.jpg")
                    self._picture(path, _thumbnail(frame.image, self._height))
                    frames[name]["picture"] = self._relative(path)
            values = {
                "seq": observation.seq,
                "frames": frames,
                "proprio": observation.proprio,
                "joint_positions": observation.joint_positions,
                "joint_velocities": observation.joint_velocities,
                "gripper_width_m": observation.gripper_width_m,
                "grasped": observation.grasped,
                "wrench_base": observation.wrench_base,
                "state_at": observation.state_at,
                "applied_seq": observation.applied_seq,
                "state": observation.state,
                "errors": observation.errors,
                "reason": observation.reason,
            }
            self._record("observation", values)
            self._watch(observation.state, ", ".join(observation.errors) or observation.reason)

    def plan(self, record: PlanRecord) -> None:
        """Records a plan with all that it was made from."""
        with self._lock:
            self._plans += 1
            values: dict[str, Any] = {k: getattr(record, k) for k in record.__dataclass_fields__}
            arrays = {name: values.pop(name) for name in PLAN_ARRAYS}
            arrays = {name: np.array(a) for name, a in arrays.items() if a is not None}
            values["frames"] = self._pictures(f"plan-{self._plans}", record.frames)
            values["other_views"] = [
                self._pictures(f"plan-{self._plans}-view-{number}", view)
                for number, view in enumerate(record.other_views, start=1)
            ]
            path = self._path(f"plan-{self._plans}.npz")
            self._later(lambda: _write(path, packed(arrays)))
            self._record("plan", values | {"arrays": self._relative(path)})

    def command(self, command: Command) -> None:
        """Records a command as it was sent, whatever it holds."""
        self._record("command", _command(command))

    def ack(self, ack: Ack) -> None:
        """Records what the robot made of a command. Why it holds, the next observation says."""
        with self._lock:
            applied = None if ack.applied is None else _command(ack.applied)
            values = {name: getattr(ack, name) for name in ("seq", "accepted", "clamped", "reason")}
            self._record("ack", values | {"applied": applied, "state": ack.state})
            if ack.applied is not None:
                self._holding = ack.applied.kind == "hold"
            if ack.state is not RobotState.HOLD:
                self._watch(ack.state, ack.reason)

    def trip(self, reason: str) -> None:
        """Keeps the last seconds, and the next two: something happened, such as a stop."""
        with self._lock:
            self._record("trip", {"reason": reason})
            now = self._clock()
            self._reasons.append({"reason": reason, "at": now})
            self._put_away_at = min(self._put_away_at, now + AFTERMATH_S)

    def flush(self) -> None:
        """Waits until all pictures so far are written."""
        if self._thread.is_alive():
            done = threading.Event()
            self._jobs.put(done.set)
            done.wait()

    def close(self) -> None:
        """Keeps the last seconds and ends. More than once does no harm."""
        with self._lock:
            if self._closed:
                return
            self._record("close", {})
            self._closed = True
            self._close_events()
            if self.problem is None:
                reasons = self._reasons or [{"reason": "closed", "at": self._clock()}]
                names = [name for name, _ in self._segments] + [f"{self._number:06d}"]
                self._jobs.put(lambda: self._put_away(names, reasons))
        self._jobs.put(None)
        self._thread.join()
        os.close(self._mutex)

    # How it is written.

    def _watch(self, state: RobotState, why: str | None) -> None:
        """Trips when the robot came to a state in which it does not do what it is told."""
        before, self._state = self._state, state
        if state is before or (state is RobotState.HOLD and self._holding):
            return
        if state in (RobotState.FAULT, RobotState.HOLD):
            self.trip(f"{state}: {why}" if why else str(state))

    def _record(self, event: str, values: Mapping[str, Any]) -> None:
        with self._lock:
            if self.problem is not None or self._closed:
                return
            now = self._clock()
            entry = {"event": event, "at": now} | plain(dict(values))
            line = json.dumps(entry, allow_nan=False, default=described)
            try:
                self._write_line(line.encode() + b"\n")
                if now >= min(self._segment_ends, self._put_away_at):
                    self._turn(now)
            except OSError as error:
                self._give_up(error)

    def _write_line(self, line: bytes) -> None:
        if os.write(self._events, line) != len(line):
            raise OSError(errno.ENOSPC, "a line was written in part")

    def _turn(self, now: float) -> None:
        """Begins a new segment, and puts away or deletes old ones."""
        self._close_events()
        self._segments.append((f"{self._number:06d}", now))
        if now >= self._put_away_at:
            names, reasons = [name for name, _ in self._segments], self._reasons
            self._segments, self._reasons, self._put_away_at = [], [], math.inf
            self._jobs.put(lambda: self._put_away(names, reasons))
        while not self._reasons and self._segments and self._segments[0][1] < now - self._seconds:
            oldest, _ = self._segments.pop(0)
            self._jobs.put(functools.partial(shutil.rmtree, self.folder / oldest))
        self._open_segment()

    def _open_segment(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < self._min_free:
            self._give_up(OSError(errno.ENOSPC, f"{free} bytes left, {self._min_free} are kept"))
            return
        self._number += 1
        self._segment_ends = self._clock() + SEGMENT_S
        segment = self.folder / f"{self._number:06d}"
        segment.mkdir()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._events = os.open(segment / "events.jsonl", flags, 0o644)

    def _picture(self, path: Path, image: np.ndarray) -> None:
        self._later(lambda: _write(path, encoded(path.suffix, image)))

    def _pictures(self, name: str, images: np.ndarray) -> list[str]:
        """Keeps pictures (C, height, width, 3) and returns the names of their files."""
        paths = [self._path(f"{name}-{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            self._picture(path, image.copy())
        return [self._relative(path) for path in paths]

    def _later(self, job: Callable[[], None]) -> None:
        if self.problem is None and not self._closed:
            if self._jobs.qsize() < MAX_PENDING:
                self._jobs.put(job)
            else:
                self.left_out += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except OSError as error:
                self._give_up(error)

    def _put_away(self, names: list[str], reasons: list[dict[str, Any]]) -> None:
        self._trips += 1
        label = re.sub(r"[^A-Za-z0-9]+", "-", reasons[0]["reason"]).strip("-")[:60]
        trip = self.folder / "trips" / f"{self._trips:06d}-{label}"
        shutil.copytree(self.folder / "goals", trip / "goals")
        shutil.copy(self.folder / "header.json", trip)
        for name in names:
            os.rename(self.folder / name, trip / name)
        _write(trip / "trip.json", json.dumps({"trips": reasons}, indent=1).encode())

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            if self.problem is None:
                self.problem = str(error)
                logger.warning("the flight recorder stops, the robot goes on: %s", error)
            self._close_events()

    def _close_events(self) -> None:
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._number:06d}" / name

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _command(command: Command) -> dict[str, Any]:
    return {name: getattr(command, name) for name in Command.__dataclass_fields__}


def _thumbnail(image: np.ndarray, height: int) -> np.ndarray:
    if image.shape[0] <= height:
        return image.copy()
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _write(path: Path, content: bytes) -> None:
    """Writes a file that is whole or not there."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
