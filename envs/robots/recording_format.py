"""What a flight recording is made of, on disk and in memory.

Version 1. `FlightRecorder` writes it, `read_recording` reads it, and nothing is pickled.

    header.json               format, version, began (wall clock), at (the recorder's clock at that
                              time), settings, robot
    goals/<sha256>.png        goal images, named by the hash of their shape and pixels
    000012/                   a segment: some seconds
        events.jsonl          one event a line: {"event": name, "at": seconds, ...}
        *.jpg                 thumbnails of observations
        *.png, *.npz          pictures at full size and arrays that a plan was made from
    trips/000003-reflex/      what was kept: the same again, and trip.json with the reasons

Events are goal, observation, plan, command, ack, trip and close; see the methods. Files are named
relative to the folder of header.json. Numbers that are not finite are written as strings.
"""

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

FORMAT, VERSION = "worldmodel flight recording", 1
MAX_VALUES = 1000  # of an array in an event; longer ones are described
_SEGMENT = re.compile(r"\d{6,}")


@dataclass(frozen=True, eq=False)
class PlanRecord:
    """What a plan was made from and what came of it: enough to make it again.

    What stays the same (checkpoint, planner, bounds, preprocessing) is in the recorder's settings.

    Attributes:
        obs_seq: number of the newest observation it was made from.
        goal: what `FlightRecorder.goal` returned for the goal image; of a model of several cameras
            that of each camera's, joined by "+".
        stage: which sub-goal, from 0.
        seed: of the planner's noise at the start of the episode.
        generator_state: (n,) uint8, of the noise just before this plan; None when the seed alone
            gives it.
        frames: (C, height, width, 3) RGB, context as it came from the camera, the newest last.
        proprio: (C, 7) measured with the frames.
        committed: (n, 7) actions that were under way before the first one of the plan.
        warm_start: (H, 7) where the search began; None is nowhere.
        actions: (H, 7) the plan.
        action: (7,) what of it was to be done at once.
        cost: of the plan.
        energy_now: between the present picture and the goal.
        iterations: done.
        evaluations: imagined futures.
        deadline_hit: whether it was cut short; then `iterations` says where.
        plan_ms: time taken.
        verdict: of the surprise gate: "ok", "slow", "replan" or "hold"; None without a gate.
        surprise: that it judged by; None where it judged nothing.
        other_views: of the model's further cameras, in its order, each as `frames`; their pictures
            may have another size.
    """

    obs_seq: int
    goal: str
    stage: int
    seed: int
    generator_state: UInt8[np.ndarray, " byte"] | None
    frames: UInt8[np.ndarray, "context height width 3"]
    proprio: Float[np.ndarray, "context 7"]
    committed: Float[np.ndarray, "past 7"]
    warm_start: Float[np.ndarray, "horizon 7"] | None
    actions: Float[np.ndarray, "horizon 7"]
    action: Float[np.ndarray, "7"]
    cost: float
    energy_now: float
    iterations: int
    evaluations: int
    deadline_hit: bool
    plan_ms: float
    verdict: str | None = None
    surprise: float | None = None
    other_views: tuple[UInt8[np.ndarray, "context _ _ 3"], ...] = ()


PLAN_ARRAYS = ("generator_state", "proprio", "committed", "warm_start", "actions", "action")
"""What of a `PlanRecord` is in its npz file, where it is not None; pictures are in png files."""


LATER = {"other_views": [], "verdict": None, "surprise": None}
"""What plans of older recordings have not said: they are of one camera and no gate."""


def segments_of(folder: Path) -> list[Path]:
    """Returns the segments of a recording, the oldest first."""
    return sorted(p for p in folder.iterdir() if _SEGMENT.fullmatch(p.name) and p.is_dir())


def plain(value: Any) -> Any:
    """Returns JSON for it; numbers that are not finite become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        short = value.dtype.kind in "biufU" and value.size <= MAX_VALUES
        return plain(value.tolist()) if short else described(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def described(value: object) -> str:
    """What cannot be written otherwise, such as in a command that a stranger made."""
    return repr(value)[:200]


def encoded(suffix: str, image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Returns the content of a ".png" or ".jpg" file."""
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1] if suffix == ".png" else []
    return cv2.imencode(suffix, image[..., ::-1], settings)[1].tobytes()


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
