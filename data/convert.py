"""Recordings of any format, written as another: an episode at a time, and none silently lost.

    result = convert(open_source("downloads/droid/1.0.1"), "datasets/droid", image_size=(180, 320))
    result.quarantined                   # episodes that could not be converted, and why

A conversion that was stopped, even by force, goes on where it was when it is called again: an
episode store knows its episodes by their ids, a LeRobot set by what they hold. An RLDS set cannot
be added to; it appears whole, and an interrupted one starts over.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from tqdm import tqdm

from worldmodel.data.episode import Episode, validate
from worldmodel.data.frames import FRAMES_AT_ONCE, Frames, LazyFrames
from worldmodel.data.source import Source, open_source
from worldmodel.data.store import EpisodeStore
from worldmodel.names import unknown

FORMATS = ("zarr_store", "lerobot", "rlds")  # that can be written
SAME_RATE = 0.05  # two measured rates that differ by less are meant to be the same

Ids: TypeAlias = "tqdm[int]"  # with a progress bar
Read: TypeAlias = Callable[[int], Episode]


@dataclass(frozen=True)
class ConvertResult:
    """What a conversion did.

    Attributes:
        converted: Number of episodes written by this call.
        found: Number of episodes that were there already.
        quarantined: Id of each episode that was left out -> why. The next call tries it again.
    """

    converted: int
    found: int
    quarantined: Mapping[int, str]


class ResizedFrames(LazyFrames):
    """Frames of another size, each pixel the mean of those it covers (OpenCV's INTER_AREA)."""

    def __init__(self, frames: Frames, *, height: int, width: int) -> None:
        """Stretches `frames` to `height` x `width` pixels."""
        super().__init__((len(frames), height, width, 3))
        self.frames = frames

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        _, height, width, _ = self.shape
        result = np.empty((len(indices), height, width, 3), np.uint8)
        # Not one by one, which would be a seek for each frame of a video; nor all of an HD episode.
        for first in range(0, len(indices), FRAMES_AT_ONCE):
            images = self.frames[indices[first : first + FRAMES_AT_ONCE]]
            for row, image in enumerate(images, start=first):
                cv2.resize(image, (width, height), result[row], interpolation=cv2.INTER_AREA)
        return result


def convert(
    source: Source,
    out: str | Path,
    *,
    format: str = "zarr_store",
    ids: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    cameras: Sequence[str] | None = None,
    progress: bool = True,
) -> ConvertResult:
    """Writes episodes of any format as another format.

    Args:
        source: Where they are.
        out: Folder to write; new, or of a conversion to go on with.
        format: "zarr_store" (our own, lossless), "lerobot" (v3.0, video) or "rlds" (JPEG; `out` is
            the folder of the set, and its name that of the set).
        ids: Which episodes; all if not given.
        image_size: Height and width [px] that frames are stretched to; as they are if not given.
        cameras: Which cameras, in this order; all if not given. An episode that lacks one of them
            is quarantined.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The format is unknown, a camera is misspelt, or `out` holds something else.
        KeyError: There is no such episode.
        FileExistsError: The RLDS set is there already.
        ImportError: The format needs an extra that is not installed.
    """
    if format not in FORMATS:
        raise ValueError(unknown("format to write", format, FORMATS))
    for camera in cameras or ():
        if camera not in source.mapping.cameras:
            raise ValueError(unknown("camera", camera, list(source.mapping.cameras)))
    if image_size is not None and min(image_size) < 1:
        raise ValueError(f"image_size is height and width in pixels, got {image_size}")
    ids = source.ids() if ids is None else ids
    absent = sorted(set(ids) - set(source.ids()))
    if absent:
        raise KeyError(f"no episode {absent[0]} in {source.path}; it has {len(source)}")

    convert_to = {
        "zarr_store": _convert_to_store,
        "lerobot": _convert_to_lerobot,
        "rlds": _convert_to_rlds,
    }[format]
    bar = tqdm(ids, desc="converting", unit="episode", disable=not progress)
    read = partial(_read, source, cameras=cameras, image_size=image_size)
    return convert_to(bar, read, Path(out))


def _convert_to_store(ids: Ids, read: Read, out: Path) -> ConvertResult:
    store = EpisodeStore(out, mode="a")
    stored = set(store.ids())
    for episode_id in [i for i in ids.iterable if i in stored][:1]:
        if _content(read(episode_id)) != _content(store.read(episode_id)):
            raise ValueError(
                f"{out} has another episode {episode_id} than what is read now: choose another "
                "folder, or the same recordings, mapping, cameras and image size as before"
            )

    def write(episode_id: int) -> bool:
        if episode_id in stored:
            return False
        try:
            store.write(episode_id, read(episode_id))
        except FileExistsError:  # Another process, converting the same, was faster.
            return False
        return True

    return _convert_each(ids, write)


def _convert_to_lerobot(ids: Ids, read: Read, out: Path) -> ConvertResult:
    from worldmodel.data.lerobot_writer import LeRobotWriter

    with LeRobotWriter(out) as writer:
        there: Counter[str] = Counter()
        hz: float | None = None
        if len(writer):
            done = open_source(out)
            there.update(_content(done.read(k)) for k in done.ids())
            hz = done.reader.declared_hz

        def write(episode_id: int) -> bool:
            nonlocal hz
            episode = read(episode_id)
            content = _content(episode)
            if there[content]:
                there[content] -= 1
                return False
            episode = _at_rate(episode, hz)
            writer.add(episode)
            hz = episode.metadata.control_hz
            return True

        return _convert_each(ids, write)


def _convert_each(ids: Ids, write: Callable[[int], bool]) -> ConvertResult:
    """Calls `write` with each id; it returns False where the episode is there already."""
    written: list[bool] = []
    quarantined: dict[int, str] = {}
    for episode_id in ids:
        try:
            written.append(write(episode_id))
        except ValueError as error:
            quarantined[episode_id] = str(error)
    return ConvertResult(sum(written), len(written) - sum(written), quarantined)


def _convert_to_rlds(ids: Ids, read: Read, out: Path) -> ConvertResult:
    from worldmodel.data.rlds_writer import write_rlds

    quarantined: dict[int, str] = {}
    converted: list[int] = []

    def episodes() -> Iterator[Episode]:
        layout = None
        for episode_id in ids:
            # The writer cannot take back an episode that it has begun, so all is tried before.
            try:
                episode = read(episode_id)
                validate(episode, name=f"episode {episode_id}")
                layout = layout or _layout(episode)
                if _layout(episode) != layout:
                    raise ValueError(
                        f"episode {episode_id} has {_layout(episode)}, the first {layout}; an RLDS "
                        "set has one schema"
                    )
                for frames in episode.frames.values():
                    for _ in frames:
                        pass
            except ValueError as error:
                quarantined[episode_id] = str(error)
                continue
            converted.append(episode_id)
            yield episode

    write_rlds(out.parent, episodes(), name=out.name)
    return ConvertResult(len(converted), 0, quarantined)


def _read(
    source: Source,
    episode_id: int,
    *,
    cameras: Sequence[str] | None,
    image_size: tuple[int, int] | None,
) -> Episode:
    episode = source.read(episode_id)
    names = tuple(episode.frames) if cameras is None else tuple(cameras)
    lacking = [name for name in names if name not in episode.frames]
    if lacking:
        raise ValueError(
            f"episode {episode_id} has no camera '{lacking[0]}', only {', '.join(episode.frames)}"
        )
    frames = {name: episode.frames[name] for name in names}
    if image_size is not None:
        height, width = image_size
        frames = {
            name: f if f.shape[1:3] == image_size else ResizedFrames(f, height=height, width=width)
            for name, f in frames.items()
        }
    return replace(episode, frames=frames, metadata=replace(episode.metadata, cameras=names))


def _at_rate(episode: Episode, hz: float | None) -> Episode:
    """Returns the episode with the rate of the set as its own, where it was measured.

    Measured rates differ a little, but a set has one; when frames were taken is in its timestamps.
    """
    own = episode.metadata.control_hz
    if episode.metadata.clock == "declared" or not own > 0:
        return episode
    if hz is None:
        hz = round(own) if abs(round(own) / own - 1) < SAME_RATE else own
    if abs(own / hz - 1) > SAME_RATE:
        return episode
    return replace(episode, metadata=replace(episode.metadata, control_hz=float(hz)))


def _content(episode: Episode) -> str:
    """Returns what tells an episode from others, and from the same with other images."""
    digest = hashlib.sha256(repr(_layout(episode)).encode())
    for values in (episode.proprio, episode.timestamps):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _layout(episode: Episode) -> dict[str, tuple[int, ...]]:
    """Returns the shape of a row of everything that not all recordings have."""
    rows: dict[str, Frames | np.ndarray] = {f"camera {n}": f for n, f in episode.frames.items()}
    rows |= {f"action {n}": episode.logged_actions[n] for n in sorted(episode.logged_actions)}
    if episode.joints is not None:
        rows["joints"] = episode.joints
    return {name: values.shape[1:] for name, values in rows.items()}
