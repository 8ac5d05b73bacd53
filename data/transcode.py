"""Videos encoded anew, once, so that reading windows from them is cheap from then on.

Decoding costs by resolution and by the distance of keyframes. Recordings are often HD, with a
keyframe every few seconds; a model sees 256 px and asks for a few frames at a time. So a tree of
recordings is mirrored: its videos at the size and keyframe distance of training, and with the true
rate in their headers, everything else as it is. A reader of the one tree reads the other.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from worldmodel.data.video_frames import VideoFrames, video_info, write_video

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v")
STEREO = "-stereo"  # end of the name of a video that has two views side by side


@dataclass(frozen=True)
class Transcoded:
    """What became of the videos of a tree.

    Attributes:
        done: Videos written now.
        skipped: Videos that an earlier run has written.
        failed: Videos of the source that could not be read or written whole, and why. They are not
            in the new tree.
        copied: Number of other files, linked or copied now or earlier.
        header_rates: Rates [Hz] that were taken over from headers, because none was given.
    """

    done: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    copied: int
    header_rates: tuple[float, ...]


def transcode(
    source: str | Path,
    out: str | Path,
    *,
    height: int | None = None,
    width: int | None = None,
    hz: float | None = None,
    gop: int = 15,
    crf: int = 18,
    workers: int = 1,
    progress: bool = True,
) -> Transcoded:
    """Mirrors a tree with its videos as H.264; may be killed and run again, and goes on.

    A video appears when all its frames are in it, counted by decoding. Other files are hard links
    where the file system allows it, so do not change them in one tree only. What they say about
    the videos, such as their size, is not rewritten.

    Args:
        source: Folder, or one video.
        out: Folder that mirrors it, or the new video.
        height: New height [px]; from the width and the proportions if not given.
        width: New width [px] of one view; a stereo pair becomes twice as wide.
        hz: True rate [Hz], for the headers; the declared one is kept if not given, true or not.
        gop: Frames from keyframe to keyframe.
        crf: Quality, smaller is better; 18 is hard to tell from the original.
        workers: Videos at a time.
        progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        ValueError: `out` lies in `source` or the other way round, was made with other settings, or
            two videos would get the same name; or a size or the number of workers makes no sense.
    """
    source, out = Path(source), Path(out)
    _check_settings(source, out, height=height, width=width, hz=hz, workers=workers)
    if source.is_file():
        videos, others = {out: source}, {}
        out.parent.mkdir(parents=True, exist_ok=True)
    else:
        videos, others = _plan(source, out)
        out.mkdir(parents=True, exist_ok=True)
        _check_same(out, f"height={height} width={width} hz={hz} gop={gop} crf={crf}\n")
    for target in {target.parent for target in (*videos, *others)}:
        target.mkdir(parents=True, exist_ok=True)
    for target, origin in others.items():
        _link(origin, target)
    skipped = [target for target in videos if target.exists()]
    waiting = {target: origin for target, origin in videos.items() if target not in set(skipped)}

    def encode(target: Path, origin: Path) -> None:
        frames = VideoFrames(origin)
        write_video(
            target,
            _resized(frames, *_size(origin, frames, height=height, width=width)),
            hz=hz or video_info(origin).declared_hz,
            gop=gop,
            crf=crf,
        )

    done: list[Path] = []
    failed: list[tuple[Path, str]] = []
    # Threads, as nearly all the time is spent in FFmpeg, which lets go of the interpreter.
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(encode, t, o): (t, o) for t, o in waiting.items()}
        bar = tqdm(
            as_completed(running),
            total=len(videos),
            initial=len(skipped),
            unit="video",
            disable=not progress,
        )
        try:
            for future in bar:
                target, origin = running[future]
                try:
                    future.result()
                except ValueError as error:  # This video is broken; the others need not be.
                    failed.append((origin, str(error)))
                else:
                    done.append(target)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rates = () if hz else {video_info(videos[target]).declared_hz for target in (*done, *skipped)}
    return Transcoded(
        done=tuple(sorted(done)),
        skipped=tuple(sorted(skipped)),
        failed=tuple(sorted(failed)),
        copied=len(others),
        header_rates=tuple(sorted(rates)),
    )


def _check_settings(
    source: Path,
    out: Path,
    *,
    height: int | None,
    width: int | None,
    hz: float | None,
    workers: int,
) -> None:
    if not source.exists():
        raise FileNotFoundError(f"nothing at {source}")
    here, there = source.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"{out} and {source} must not lie in one another; choose another folder")
    for name, size in (("height", height), ("width", width)):
        if size is not None and (size < 2 or size % 2):
            raise ValueError(f"{name} must be even and positive, got {size}")
    if hz is not None and not hz > 0:
        raise ValueError(f"hz must be positive, got {hz}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")


def _plan(source: Path, out: Path) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Returns where each video and each other file comes from, by where it goes to."""
    videos: dict[Path, Path] = {}
    others: dict[Path, Path] = {}
    for folder, _, names in sorted(os.walk(source, followlinks=True)):
        for name in sorted(names):
            origin = Path(folder, name)
            target = out / origin.relative_to(source)
            if origin.suffix.lower() not in SUFFIXES:
                others[target] = origin
                continue
            if target.suffix.lower() != ".mp4":
                target = target.with_suffix(".mp4")
            if target in videos:
                raise ValueError(f"{videos[target]} and {origin} would both become {target}")
            videos[target] = origin
    return videos, others


def _check_same(out: Path, settings: str) -> None:
    """Raises ValueError if an earlier run had other settings; else notes those of this one."""
    file = out / ".transcode"
    if not file.exists():
        draft = out / ".transcode.part"
        draft.write_text(settings)
        draft.replace(file)
    elif file.read_text() != settings:
        raise ValueError(
            f"{out} was begun with {file.read_text().strip()}, now it would be "
            f"{settings.strip()}; use the same or choose another folder"
        )


def _link(origin: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(origin.resolve(), target)  # a link to a link may point nowhere from there
    except OSError:  # Another file system, or one without links.
        draft = target.with_name(f".{target.name}.part")
        shutil.copy2(origin, draft)
        draft.replace(target)


def _size(
    origin: Path, frames: VideoFrames, *, height: int | None, width: int | None
) -> tuple[int, int]:
    """Returns the new height and width, even, of a video."""
    _, old_height, old_width, _ = frames.shape
    if width is not None and origin.stem.endswith(STEREO):
        width *= 2
    if height is None and width is None:
        return old_height, old_width
    if height is None:
        assert width is not None
        height = 2 * round(old_height * width / old_width / 2)
    if width is None:
        width = 2 * round(old_width * height / old_height / 2)
    return height, width


def _resized(frames: VideoFrames, height: int, width: int) -> Iterator[np.ndarray]:
    for image in frames:
        same = image.shape[:2] == (height, width)
        yield image if same else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
