"""Cameras, network streams and recorded videos as one thing: the newest frame and its age.

A thread of its own reads each camera as fast as it delivers, so that no frame waits in a queue;
when the camera is lost the thread opens it again, at growing intervals. Frames are RGB.

    camera = CameraSource("wrist", info, open_stream=usb_camera(0, info))
    camera.start()
    camera.newest(max_age_s=0.2).image
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from worldmodel.envs.robots.interface import CameraFrame, CameraInfo, StaleObservationError

OpenStream = Callable[[threading.Event], Iterator[np.ndarray]]
"""Opens a camera and yields its frames as they come, (height, width, 3) uint8 RGB; ends or raises
`OSError` when the camera is lost. The event is set when nobody wants more."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # before a lost camera is opened again
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 2.0  # of network streams

logger = logging.getLogger(__name__)


class CameraSource:
    """A camera's newest frame, kept by a thread that reads it from `start` to `close`.

    A frame's capture time is when it reached this program, which does not know the delay inside of
    a camera. Frames are shared between callers: read them only.
    """

    def __init__(
        self,
        name: str,
        info: CameraInfo,
        *,
        open_stream: OpenStream,
        clock: Callable[[], float] = time.monotonic,
        first_wait_s: float = FIRST_WAIT_S,
        longest_wait_s: float = LONGEST_WAIT_S,
    ):
        """Opens nothing yet.

        Args:
            name: for messages.
            info: size and rate of the frames; frames of another size are refused.
            open_stream: such as `usb_camera`, `network_camera` or `video_file` give.
            clock: monotonic, in seconds; the robot's own.
            first_wait_s: before a lost camera is opened again; doubled each time that fails.
            longest_wait_s: at most.
        """
        self.name, self.info = name, info
        self._open_stream, self._clock = open_stream, clock
        self._first_wait_s, self._longest_wait_s = first_wait_s, longest_wait_s
        self._newest: CameraFrame | None = None
        self._trouble = "nothing has come yet"
        self._opened = 0
        self._started_at = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def opened(self) -> int:
        """How many times it was opened since `start` and delivered a frame."""
        return self._opened

    @property
    def trouble(self) -> str:
        """Why no frame comes, in words; empty while they come."""
        return self._trouble

    def start(self) -> None:
        """Begins to read; more than once does no harm."""
        if self._thread is not None:
            return
        self._ended.clear()
        self._newest, self._opened, self._started_at = None, 0, self._clock()
        self._thread = threading.Thread(target=self._run, name=f"camera-{self.name}", daemon=True)
        self._thread.start()

    def newest(self, *, max_age_s: float) -> CameraFrame:
        """Returns the newest frame.

        Raises:
            StaleObservationError: it is older, or none came since `start`.
        """
        frame = self._newest
        since = self._started_at if frame is None else frame.captured_at
        age = self._clock() - since
        if frame is None or age > max_age_s:
            error = StaleObservationError(self.name, age_s=age, max_age_s=max_age_s)
            error.add_note(self._trouble)
            raise error
        return frame

    def close(self) -> None:
        """Stops reading and gives the camera back; more than once does no harm."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=OPEN_TIMEOUT_S + READ_TIMEOUT_S)
            self._thread = None

    def _run(self) -> None:
        wait_s = self._first_wait_s
        while not self._ended.is_set():
            try:
                for i, image in enumerate(self._open_stream(self._ended)):
                    self._take(image)
                    if i == 0:
                        wait_s, self._opened = self._first_wait_s, self._opened + 1
                self._trouble = "the stream has ended"
            except (OSError, FFmpegError, cv2.error) as error:
                self._trouble = f"{type(error).__name__}: {error}"
            if not self._ended.wait(wait_s):
                logger.warning("camera %s: %s; opening it again", self.name, self._trouble)
            wait_s = min(2 * wait_s, self._longest_wait_s)

    def _take(self, image: UInt8[np.ndarray, "height width 3"]) -> None:
        captured_at = self._clock()
        size = (self.info.height, self.info.width)
        if image.shape[:2] != size:
            raise OSError(f"expected frames of {size} pixels (height, width), got {image.shape}")
        self._newest = CameraFrame(image, captured_at)
        self._trouble = ""


def newest_frames(
    cameras: Mapping[str, CameraSource], *, max_age_s: float
) -> dict[str, CameraFrame]:
    """Returns the newest frame of each camera; optional ones that are stale are left out.

    Raises:
        StaleObservationError: a camera that is not optional has none that is new enough.
    """
    frames = {}
    for name, camera in cameras.items():
        try:
            frames[name] = camera.newest(max_age_s=max_age_s)
        except StaleObservationError:
            if not camera.info.optional:
                raise
    return frames


def usb_camera(device: int, info: CameraInfo) -> OpenStream:
    """Returns how to open a USB camera (UVC) by its number, at the size and rate of `info`."""

    def frames(ended: threading.Event) -> Iterator[np.ndarray]:
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        try:
            if not capture.isOpened():
                raise OSError(f"no camera answers as /dev/video{device}")
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, info.width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, info.height)
            capture.set(cv2.CAP_PROP_FPS, info.fps)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            while not ended.is_set():
                delivered, image = capture.read()
                if not delivered:
                    raise OSError(f"/dev/video{device} delivers no frames")
                yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()

    return frames


def network_camera(url: str) -> OpenStream:
    """Returns how to open a stream such as rtsp://host/path or http://host/stream.mjpg.

    Frames are shown as they come, whatever rate the stream says it has. RTSP goes over TCP.
    """
    options = {"fflags": "nobuffer", "flags": "low_delay"}
    if url.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"

    def frames(ended: threading.Event) -> Iterator[np.ndarray]:
        timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        with av.open(url, options=options, timeout=timeout) as container:
            for frame in container.decode(video=0):
                if ended.is_set():
                    return
                yield frame.to_ndarray(format="rgb24")

    return frames


def video_file(path: Path, info: CameraInfo, *, loop: bool) -> OpenStream:
    """Returns how to replay a recorded video at the rate of `info`, for tests and rehearsals.

    Args:
        path: of anything that PyAV reads.
        info: with the rate; the file's own is not looked at.
        loop: whether to begin again at the end; if not, the last frame grows stale.
    """

    def frames(ended: threading.Event) -> Iterator[np.ndarray]:
        due = time.monotonic()
        while True:
            with av.open(str(path)) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
                    due = max(due + 1 / info.fps, time.monotonic())
                    if ended.wait(due - time.monotonic()):
                        return
            if not loop:
                ended.wait()
                return

    return frames
