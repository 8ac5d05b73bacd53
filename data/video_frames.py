"""Frames of a video file, and only the right ones.

A video is opened by its packets: their presentation times say which frame is which, and which
packets can be decoded on their own. To fetch a frame, decoding starts at the keyframe before it and
goes on until a frame comes that has exactly the time asked for. If none comes, that is an error.
(OpenCV returns another frame instead, and says that all is well.)

Frames have numbers here, not times: cameras and converters write any rate they like into the
header, so no frame is ever looked up by it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from worldmodel.data.durable import flush
from worldmodel.data.frames import FrameReadError, LazyFrames

MOST_REORDERED = 16  # frames between decoding and showing one, by the H.264 standard


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself, and what its packets say.

    Attributes:
        frames: Number of frames that it declares; fewer can be decoded if the file ends early.
        height: Height [px].
        width: Width [px].
        declared_hz: Frame rate in the header [Hz]; often wrong. 0 if it says none.
        codec: Such as "h264", "mpeg4" or "av1".
        gop: Most frames that depend on one keyframe, in decoding order.
        duration_s: From first to last frame [s] by the clock of the file; as wrong as its rate.
    """

    frames: int
    height: int
    width: int
    declared_hz: float
    codec: str
    gop: int
    duration_s: float


class VideoFrames(LazyFrames):
    """Frames of a video file in the order of presentation.

    Example:
        frames = VideoFrames("recordings/MP4/22008760.mp4")
        window = frames[np.array([40, 44, 48])]
    """

    def __init__(
        self,
        file: str | Path,
        *,
        first: int = 0,
        count: int | None = None,
        half: Literal["left", "right"] | None = None,
    ) -> None:
        """Reads the header of `file`.

        Args:
            file: Any video that FFmpeg decodes.
            first: Frame of the file that is frame 0 here, where one file has several episodes.
            count: Number of frames from there; all the rest if not given.
            half: Which half to return of a stereo pair side by side.

        Raises:
            FileNotFoundError: There is no such file.
            FrameReadError: It is no video, its index is cut off, or it has fewer frames.
        """
        self.file, self.first, self.half = Path(file), first, half
        header = _header(*_identity(self.file))
        count = header.frames - first if count is None else count
        if first < 0 or count < 0 or first + count > header.frames:
            raise FrameReadError(
                f"{file} has {header.frames} frames; frames {first} to {first + count - 1} were "
                "asked for: is it the file that the recording means?"
            )
        width = header.width if half is None else header.width // 2
        super().__init__((count, header.height, width, 3))

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`; one pass through the file for many frames."""
        wanted, rows = np.unique(indices, return_inverse=True)
        found = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for row, image in enumerate(self._read(wanted)):
            found[row] = image
        return found if np.array_equal(wanted, indices) else found[rows]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields all frames (height, width, 3) in one pass, one at a time in memory."""
        return self._read(np.arange(len(self)))

    def _read(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        index = _index(*_identity(self.file))
        _, height, width, _ = self.shape
        columns = slice(width, 2 * width) if self.half == "right" else slice(0, width)
        convert = VideoReformatter()
        for number, frame in _decode(self.file, index, self.first + wanted):
            image = convert.reformat(frame, format="rgb24").to_ndarray()
            if image.shape[0] != height or image.shape[1] < columns.stop:
                raise FrameReadError(
                    f"{self.file}: frame {number} is {image.shape[1]}x{image.shape[0]}, but the "
                    f"header says {width if self.half is None else 2 * width}x{height}"
                )
            yield image[:, columns]


def video_info(file: str | Path) -> VideoInfo:
    """Returns what a video file is, without decoding it.

    Raises:
        FileNotFoundError: There is no such file.
        FrameReadError: It is no video, or its index is cut off.
    """
    identity = _identity(Path(file))
    header, index = _header(*identity), _index(*identity)
    return VideoInfo(
        frames=header.frames,
        height=header.height,
        width=header.width,
        declared_hz=header.hz,
        codec=header.codec,
        gop=index.gop,
        duration_s=index.duration_s,
    )


def decode_count(file: str | Path) -> int:
    """Returns how many frames can be decoded from the first on, by decoding them.

    Raises:
        FileNotFoundError: There is no such file.
        FrameReadError: It is no video, or its index is cut off.
    """
    file = Path(file)
    index = _index(*_identity(file))
    count = 0
    try:
        for _ in _decode(file, index, np.arange(len(index.times))):
            count += 1
    except FrameReadError:
        pass  # What could not be decoded is not counted; that is the answer.
    return count


def write_video(
    file: str | Path,
    frames: Iterable[np.ndarray],
    *,
    hz: float,
    codec: str = "libx264",
    gop: int = 15,
    crf: int = 18,
) -> None:
    """Writes frames as MP4, which appears whole or not at all, and whose every frame was decoded.

    Args:
        file: Where to.
        frames: uint8 RGB (height, width, 3) each; only one is in memory at a time.
        hz: True rate [Hz], for the header.
        codec: Encoder of FFmpeg: "libx264", or "libsvtav1" for AV1.
        gop: Frames from keyframe to keyframe: how many to decode at most to get at one.
        crf: Quality, smaller is better; 18 is hard to tell from the original.

    Raises:
        ValueError: No frames, frames of several sizes or of an odd size, or a rate that is none.
    """
    file = Path(file)
    if not hz > 0:
        raise ValueError(f"{file}: the rate must be positive, got {hz} Hz")
    # Always the same name, so that a writer that was killed leaves at most one, and the next run
    # writes over it.
    draft = file.with_name(f".{file.name}.part")
    try:
        written = _encode(draft, frames, name=str(file), hz=hz, codec=codec, gop=gop, crf=crf)
        decoded = decode_count(draft)
        if decoded != written:
            raise ValueError(
                f"{file}: {written} frames were encoded, but {decoded} can be decoded; "
                f"try another codec than {codec}"
            )
        flush(draft)
        draft.replace(file)
        flush(file.parent)
    finally:
        draft.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Header:
    frames: int
    height: int
    width: int
    hz: float
    codec: str


@dataclass(frozen=True)
class _Index:
    """Which packet is which frame.

    Attributes:
        declared: Number of frames that the file says it has.
        times: Presentation times (frames,) of those whose packets are there, ascending; their
            numbers if the file has no such times.
        timed: Whether it has.
        keys: Presentation times of keyframes, ascending.
        key_packets: Decoding times of keyframes, by which they are sought.
        gop: Largest distance of keyframes, in packets.
        duration_s: From first to last frame [s].
    """

    declared: int
    times: np.ndarray
    timed: bool
    keys: np.ndarray
    key_packets: np.ndarray
    gop: int
    duration_s: float


def _identity(file: Path) -> tuple[str, int, int]:
    """Returns what changes when the file does."""
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _header(file: str, size: int, modified: int) -> _Header:
    with _opened(Path(file)) as (_, stream):
        entries = stream.index_entries
        # Complete in an MP4 of one piece; elsewhere only reading the packets tells.
        complete = 0 < stream.frames == len(entries)
        frames = sum(not entry.is_discard for entry in entries) if complete else None
        height, width = stream.codec_context.height, stream.codec_context.width
        hz = float(stream.average_rate or 0)
        codec = stream.codec_context.codec.canonical_name
    if frames is None:
        frames = _index(file, size, modified).declared
    return _Header(frames=frames, height=height, width=width, hz=hz, codec=codec)


@lru_cache(maxsize=512)
def _index(file: str, size: int, modified: int) -> _Index:
    with _opened(Path(file)) as (container, stream):
        # The last packet of a demuxer is empty and only ends the stream.
        packets = [_Packet(p) for p in container.demux(stream) if p.size]
        declared = sum(not packet.discarded for packet in packets)
        declared += sum(not entry.is_discard for entry in stream.index_entries[len(packets) :])
        if container.format.name == "avi":  # has its index at the end, but the number in front
            declared = max(declared, stream.frames)
        unit = float(stream.time_base or 1)
        reorders = stream.codec_context.has_b_frames
    while packets and packets[-1].cut:
        packets.pop()
    shown = [packet.pts for packet in packets if not packet.discarded]
    ends_early = len(shown) < declared
    gop = _largest_gap([k for k, packet in enumerate(packets) if packet.key], len(packets))

    # AVI and bare streams have no presentation times; what stands there then is the order of
    # decoding, or nothing.
    times = np.array(sorted({pts for pts in shown if pts is not None}), np.int64)
    if len(times) < len(shown) or (reorders and times.tolist() == shown):
        # Where the file ends early, neighbours of the last frames may be missing.
        whole = len(shown) - (MOST_REORDERED if reorders and ends_early else 0)
        return _Index(
            declared=declared,
            times=np.arange(max(whole, 0)),
            timed=False,
            keys=np.zeros(1, np.int64),
            key_packets=np.zeros(1, np.int64),
            gop=gop,
            duration_s=0.0,
        )
    if ends_early:
        # A frame is never shown before it is decoded. So after the time at which the last packet
        # is decoded, missing frames may stand between those that are there.
        times = times[times <= max((p.dts for p in packets if p.dts is not None), default=0)]
    keys = sorted(
        (packet.pts, packet.pts if packet.dts is None else packet.dts)
        for packet in packets
        if packet.key and packet.pts is not None
    )
    return _Index(
        declared=declared,
        times=times,
        timed=True,
        keys=np.array([pts for pts, _ in keys], np.int64),
        key_packets=np.array([dts for _, dts in keys], np.int64),
        gop=gop,
        duration_s=float(times[-1] - times[0]) * unit if len(times) else 0.0,
    )


class _Packet:
    """What is kept of a packet; its bytes are not."""

    __slots__ = ("cut", "discarded", "dts", "key", "pts")

    def __init__(self, packet: av.Packet) -> None:
        self.pts, self.dts, self.key = packet.pts, packet.dts, packet.is_keyframe
        self.discarded, self.cut = packet.is_discard, packet.is_corrupt


def _largest_gap(keys: list[int], end: int) -> int:
    return max((b - a for a, b in pairwise([*keys, end])), default=end)


def _decode(file: Path, index: _Index, numbers: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
    """Yields the number and the frame for each of ascending `numbers`.

    Raises:
        FrameReadError: A frame did not come out, or came out damaged; those before it were yielded.
    """
    with _opened(file) as (container, stream):
        stream.codec_context.thread_count = 1  # Loaders run many of these side by side.
        coming: Iterator[tuple[int, VideoFrame]] = iter(())
        last = None
        for number in numbers.tolist():
            if number >= len(index.times):
                raise FrameReadError(
                    f"{file}: no frame {number}; it declares {index.declared} frames, but the file "
                    f"ends early and has the first {len(index.times)} only. Copy it again, or "
                    "leave it out"
                )
            time = int(index.times[number])
            key = int(np.searchsorted(index.keys, time, side="right")) - 1
            begin = int(np.searchsorted(index.times, index.keys[key])) if key >= 0 else 0
            # A seek costs less than decoding a frame that nobody wants, but forgets where it was.
            if last is None or begin > last + 1:
                if begin > 0:
                    container.seek(int(index.key_packets[key]), stream=stream)
                coming = _frames(container, stream, index)
            try:
                decoded, frame = next((t, f) for t, f in coming if t >= time)
            except StopIteration:
                decoded, frame = None, None
            except av.error.FFmpegError as error:
                raise FrameReadError(_message(file, number, last, str(error))) from error
            if frame is None or decoded != time:
                raise FrameReadError(_message(file, number, last, "it did not come out"))
            if frame.is_corrupt:
                raise FrameReadError(_message(file, number, last, "it came out damaged"))
            last = number
            yield number, frame


def _frames(
    container: InputContainer, stream: VideoStream, index: _Index
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields frames from here on with their times, or numbers where there are no times."""
    count = 0
    latest = None
    for packet in container.demux(stream):
        if packet.is_corrupt:
            # A packet cut off by the end of the file. What the decoder still holds is whole.
            frames = stream.codec_context.decode(None)
        else:
            frames = packet.decode()
        for frame in frames:
            time = frame.pts if index.timed else count
            count += 1
            if time is None:
                continue
            if latest is not None and time <= latest:
                raise FrameReadError(
                    f"{container.name}: frames come out in another order than that of their times "
                    f"({time} after {latest}); remux or transcode the file"
                )
            latest = time
            yield time, frame
        if packet.is_corrupt:
            return


def _message(file: Path, number: int, last: int | None, why: str) -> str:
    before = "no frame before it was decoded" if last is None else f"frame {last} was the last"
    return (
        f"{file}: cannot decode frame {number}: {why} ({before}); the file is damaged or ends "
        "early. Copy it again, or leave it out"
    )


@contextmanager
def _opened(file: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        container = av.open(str(file))
    except av.error.FFmpegError as error:
        raise FrameReadError(
            f"{file} is no video, or is cut off before its index ({file.stat().st_size} bytes): "
            f"{error.strerror}"
        ) from error
    with container:
        if not container.streams.video:
            raise FrameReadError(f"{file} has no video stream")
        yield container, container.streams.video[0]


def _encode(
    draft: Path,
    frames: Iterable[np.ndarray],
    *,
    name: str,
    hz: float,
    codec: str,
    gop: int,
    crf: int,
) -> int:
    """Returns how many frames were written."""
    options = {"movflags": "+faststart"}
    with av.open(str(draft), "w", format="mp4", container_options=options) as container:
        stream = None
        size, number = (0, 0), -1
        for number, image in enumerate(frames):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"{name}: frame {number} is {image.dtype} {image.shape}; "
                    "expected uint8 RGB (height, width, 3)"
                )
            if stream is None:
                size = image.shape[:2]
                if size[0] % 2 or size[1] % 2:
                    raise ValueError(
                        f"{name}: frames are {size[1]}x{size[0]}; the colours of a video have half "
                        "the resolution, so both must be even: crop or resize by a pixel"
                    )
                rate = Fraction(hz).limit_denominator(1001)
                stream = container.add_stream(codec, rate=rate, options={"crf": str(crf)})
                if not isinstance(stream, VideoStream):
                    raise ValueError(f"{name}: '{codec}' encodes no video; try libx264")
                stream.height, stream.width = size
                stream.pix_fmt = "yuv420p"
                stream.gop_size = gop
                # Frames that depend on later ones make random access slower, and save little.
                stream.codec_context.max_b_frames = 0
            if image.shape[:2] != size:
                raise ValueError(
                    f"{name}: frame {number} is {image.shape[1]}x{image.shape[0]}, "
                    f"the first is {size[1]}x{size[0]}"
                )
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError(f"{name}: there are no frames to write")
        container.mux(stream.encode())
    return number + 1
