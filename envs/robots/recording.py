"""Reads what `worldmodel.envs.robots.recorder` wrote, also after a kill in the midst of a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from worldmodel.envs.robots.interface import Command
from worldmodel.envs.robots.recording_format import (
    FORMAT,
    LATER,
    PLAN_ARRAYS,
    VERSION,
    PlanRecord,
    segments_of,
)


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording, or what was kept of one at a trip.

    Attributes:
        folder: where it lies.
        header: settings and robot, see the recorder.
        events: in their order, as they were written.
        torn: lines that were not written to their end.
    """

    folder: Path
    header: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    torn: int

    def of(self, event: str) -> Iterator[dict[str, Any]]:
        """Yields the events of a name, such as "observation"."""
        return (entry for entry in self.events if entry["event"] == event)

    def commands(self) -> Iterator[Command]:
        """Yields the commands as they were sent, also those that were refused.

        Raises:
            ValueError: one holds what is no number; it was recorded as text, see `of`.
        """
        for entry in self.of("command"):
            yield Command(
                seq=entry["seq"],
                obs_seq=entry["obs_seq"],
                valid_for_s=float(entry["valid_for_s"]),
                kind=entry["kind"],
                values=np.array([float(value) for value in entry["values"]]),
                gripper=None if entry["gripper"] is None else float(entry["gripper"]),
            )

    def picture(self, name: str) -> UInt8[np.ndarray, "height width 3"] | None:
        """Returns a picture by the name that an event gives, RGB; None when it was not written."""
        path = self.folder / name
        image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
        return None if image is None else np.ascontiguousarray(image[..., ::-1])

    def goal(self, digest: str) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a goal image by its hash.

        Raises:
            FileNotFoundError: it was not written.
        """
        image = self.picture(f"goals/{digest}.png")
        if image is None:
            raise FileNotFoundError(f"the goal image {digest[:12]}... is not in {self.folder}")
        return image

    def plans(self) -> Iterator[PlanRecord]:
        """Yields the plans that were written whole, each as it was recorded."""
        for entry in self.of("plan"):
            entry = {**LATER, **entry}
            views = [self._context(n) for n in (entry["frames"], *entry["other_views"])]
            whole = [view for view in views if view is not None]
            path = self.folder / entry["arrays"]
            if not path.is_file() or len(whole) < len(views):
                continue
            values: dict[str, Any] = {
                field.name: entry[field.name]
                for field in fields(PlanRecord)
                if field.name not in (*PLAN_ARRAYS, "other_views")
            }
            with np.load(path, allow_pickle=False) as stored:
                for name in PLAN_ARRAYS:
                    values[name] = stored.get(name)
            for name in ("cost", "energy_now", "plan_ms"):
                values[name] = float(values[name])
            frames, *others = whole
            yield PlanRecord(**values | {"frames": frames, "other_views": tuple(others)})

    def _context(self, names: list[str]) -> UInt8[np.ndarray, "context height width 3"] | None:
        """Returns the pictures of one camera; None when one was not written."""
        pictures = [self.picture(name) for name in names]
        written = [picture for picture in pictures if picture is not None]
        return None if len(written) < len(pictures) else np.stack(written)


def read_recording(folder: Path) -> Recording:
    """Reads a recording, or a folder of its `trips`.

    The last line of a segment may be torn and is then left out; that is how a kill looks.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another format, or a line that was written to its end is no event.
    """
    path = folder / "header.json"
    if not path.is_file():
        raise FileNotFoundError(f"no recording at {folder}: it has no header.json")
    header = json.loads(path.read_text())
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{folder} must be a {FORMAT!r} of version {VERSION}, got {header.get('format')!r} of "
            f"version {header.get('version')!r}; read it with the release that wrote it"
        )
    events: list[dict[str, Any]] = []
    torn = 0
    for segment in segments_of(folder):
        if not (segment / "events.jsonl").is_file():
            continue
        *lines, last = (segment / "events.jsonl").read_bytes().split(b"\n")
        torn += bool(last)
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
                if not {"event", "at"} <= set(event):
                    raise ValueError('it has no "event" or no "at"')
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {segment / 'events.jsonl'} is no event ({error}); the file "
                    "was damaged after it was written"
                ) from error
            events.append(event)
    return Recording(folder=folder, header=header, events=tuple(events), torn=torn)


def find_recordings(folder: Path) -> list[Path]:
    """Returns what there is to read in a recorder's folder: what was kept, then the present."""
    kept = sorted(p for p in (folder / "trips").glob("*") if (p / "trip.json").is_file())
    return kept + ([folder] if segments_of(folder) else [])
