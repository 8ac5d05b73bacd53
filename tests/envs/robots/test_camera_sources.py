"""Camera sources against real files and real streams, served on loopback."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from worldmodel.envs.robots import camera_sources
from worldmodel.envs.robots.camera_sources import (
    CameraSource,
    network_camera,
    newest_frames,
    usb_camera,
    video_file,
)
from worldmodel.envs.robots.interface import CameraInfo, StaleObservationError

HEIGHT, WIDTH = 48, 64
PATIENCE_S = 20.0
INFO = CameraInfo(height=HEIGHT, width=WIDTH, fps=200.0)
ANY_AGE = 1e6


def picture(number: int) -> np.ndarray:
    """Red left, blue right, and the brightness of green says which it is."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2, 0] = 255
    image[:, WIDTH // 2 :, 2] = 255
    image[..., 1] = number
    return image


def number_of(image: np.ndarray) -> int:
    return int(np.median(image[..., 1]))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class HandFed:
    """A camera whose frames, ends and losses the test chooses."""

    def __init__(self):
        self.opened = 0
        self.works = True
        self._feed: list[np.ndarray | None | Exception] = []
        self._fed = threading.Condition()

    def feed(self, item: np.ndarray | None | Exception) -> None:
        with self._fed:
            self._feed.append(item)
            self._fed.notify()

    def open(self, ended: threading.Event) -> Iterator[np.ndarray]:
        self.opened += 1
        if not self.works:
            raise OSError("unplugged")
        while not ended.is_set():
            with self._fed:
                if not self._feed:
                    self._fed.wait(0.01)
                    continue
                item = self._feed.pop(0)
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.fixture
def started() -> Iterator[Callable[..., CameraSource]]:
    sources: list[CameraSource] = []

    def start(open_stream, **settings) -> CameraSource:
        known: dict[str, Any] = dict(info=INFO, first_wait_s=0.01, longest_wait_s=0.05)
        source = CameraSource("wrist", open_stream=open_stream, **(known | settings))
        sources.append(source)
        source.start()
        return source

    yield start
    for source in sources:
        source.close()


def test_the_newest_frame_comes_with_the_time_at_which_it_came(started) -> None:
    clock, camera = Clock(), HandFed()
    source = started(camera.open, clock=clock)
    camera.feed(picture(1))
    until(lambda: source.opened == 1)
    assert number_of(newest(source).image) == 1
    assert newest(source).captured_at == 100.0
    clock.now += 10.0
    camera.feed(picture(2))
    until(lambda: number_of(newest(source).image) == 2)
    assert newest(source).captured_at == 110.0


def newest(source: CameraSource):
    return source.newest(max_age_s=ANY_AGE)


def test_age_is_counted_from_the_last_frame_and_before_it_from_the_start(started) -> None:
    clock, camera = Clock(), HandFed()
    source = started(camera.open, clock=clock)
    clock.now += 3.0
    with pytest.raises(StaleObservationError, match="wrist is 3000 ms old") as none_yet:
        source.newest(max_age_s=ANY_AGE)
    assert none_yet.value.__notes__ == ["nothing has come yet"]
    camera.feed(picture(1))
    until(lambda: source.opened == 1)
    clock.now += 0.2
    assert source.newest(max_age_s=0.21).captured_at == 103.0
    with pytest.raises(StaleObservationError) as stale:
        source.newest(max_age_s=0.19)
    assert stale.value.age_s == pytest.approx(0.2)
    assert stale.value.sensor == "wrist"


@pytest.mark.parametrize("loss", [None, OSError("gone"), cv2.error("gone")])
def test_a_lost_camera_is_opened_again(started, loss) -> None:
    camera = HandFed()
    source = started(camera.open)
    camera.feed(picture(1))
    until(lambda: source.opened == 1)
    camera.works = False
    camera.feed(loss)
    until(lambda: camera.opened >= 4)
    assert source.trouble == "OSError: unplugged"
    assert number_of(newest(source).image) == 1  # old, and its stamp says so
    camera.works = True
    camera.feed(picture(2))
    until(lambda: source.opened == 2)
    assert number_of(newest(source).image) == 2
    assert source.trouble == ""


def test_it_waits_longer_after_each_failure_and_not_for_ever(started) -> None:
    waits: list[float] = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return super().wait(0.0)

    camera = HandFed()
    camera.works = False
    source = CameraSource(
        "wrist", INFO, open_stream=camera.open, first_wait_s=1.0, longest_wait_s=5.0
    )
    source._ended = Watched()
    source.start()
    until(lambda: len(waits) > 1100)  # an hour and a half: no power of two overflows
    camera.works = True
    camera.feed(picture(1))
    until(lambda: source.opened == 1)
    told = len(waits)
    camera.feed(None)
    until(lambda: len(waits) > told)
    source.close()
    assert waits[:5] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert waits[told] == 1.0  # a success begins anew


def test_frames_of_another_size_are_trouble_and_not_delivered(started) -> None:
    camera = HandFed()
    source = started(camera.open)
    camera.feed(np.zeros((5, 6, 3), np.uint8))
    until(lambda: "expected frames of (48, 64)" in source.trouble)
    with pytest.raises(StaleObservationError):
        newest(source)


def test_only_optional_cameras_may_be_missing(started) -> None:
    camera = HandFed()
    there = started(camera.open)
    camera.feed(picture(1))
    until(lambda: there.opened == 1)
    optional = CameraInfo(height=HEIGHT, width=WIDTH, fps=30.0, optional=True)
    missing = started(HandFed().open, info=optional)
    cameras = {"there": there, "missing": missing}
    assert set(newest_frames(cameras, max_age_s=ANY_AGE)) == {"there"}
    needed = started(HandFed().open)
    with pytest.raises(StaleObservationError):
        newest_frames({"there": there, "needed": needed}, max_age_s=ANY_AGE)


def test_it_can_be_closed_started_and_closed_again(started) -> None:
    camera = HandFed()
    source = started(camera.open)
    source.start()
    camera.feed(picture(1))
    until(lambda: source.opened == 1)
    source.close()
    source.close()
    source.start()
    with pytest.raises(StaleObservationError):
        newest(source)  # what was seen before says nothing about now
    camera.feed(picture(2))
    until(lambda: source.opened == 1)
    assert number_of(newest(source).image) == 2


# Recorded videos.


@pytest.fixture
def video(tmp_path) -> Path:
    """Pictures 10, 20, ... 100, lossless, said to be of 1 frame a second."""
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for number in range(10, 101, 10):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_video_is_replayed_in_order_at_the_rate_asked_for_and_in_rgb(video) -> None:
    images = list(take(video_file(video, INFO, loop=False), 10))
    np.testing.assert_array_equal(np.stack(images), np.stack([picture(n) for n in numbers()]))
    begin = time.monotonic()
    slow = CameraInfo(height=HEIGHT, width=WIDTH, fps=20.0)
    list(take(video_file(video, slow, loop=False), 5))
    assert time.monotonic() - begin >= 4 / 20.0


def numbers() -> range:
    return range(10, 101, 10)


def take(open_stream, count: int) -> Iterator[np.ndarray]:
    stream = open_stream(threading.Event())
    for _ in range(count):
        yield next(stream)


def test_a_video_begins_again_or_grows_stale(video, started) -> None:
    looped = [number_of(image) for image in take(video_file(video, INFO, loop=True), 13)]
    assert looped == [*numbers(), 10, 20, 30]
    source = started(video_file(video, INFO, loop=False))
    until(lambda: source.opened == 1 and number_of(newest(source).image) == 100)
    first = newest(source).captured_at
    time.sleep(0.1)
    assert newest(source).captured_at == first
    assert source.opened == 1


def test_a_missing_video_is_said(started, tmp_path) -> None:
    source = started(video_file(tmp_path / "none.mkv", INFO, loop=False))
    until(lambda: "none.mkv" in source.trouble)


# Network streams.


class MjpegServer:
    """Serves pictures as motion JPEG on loopback, one after the other, until it is closed."""

    def __init__(self, port: int = 0):
        self.ending = threading.Event()
        self.frozen = threading.Event()
        self.number = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 (the base class's name)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while not outer.ending.wait(0.01):
                    if outer.frozen.is_set():
                        continue
                    outer.number = min(outer.number + 1, 250)
                    bgr = cv2.cvtColor(picture(outer.number), cv2.COLOR_RGB2BGR)
                    jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}"
                    try:
                        self.wfile.write(f"{head}\r\n\r\n".encode() + jpeg + b"\r\n")
                    except OSError:
                        return

            def log_message(self, format: str, *args: object) -> None:
                pass

        http.server.ThreadingHTTPServer.allow_reuse_address = True
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_a_motion_jpeg_stream_is_rgb_and_shows_its_newest_frame(started) -> None:
    server = MjpegServer()
    try:
        source = started(network_camera(f"http://127.0.0.1:{server.port}/stream.mjpg"))
        until(lambda: source.opened == 1)
        image = newest(source).image
        left, right = image[:, 4 : WIDTH // 2 - 4], image[:, WIDTH // 2 + 4 : -4]
        assert left[..., 0].min() > 200 > 60 > left[..., 2].max()  # red
        assert right[..., 2].min() > 200 > 60 > right[..., 0].max()  # blue
        until(lambda: number_of(newest(source).image) > 60)
        server.frozen.set()
        until(lambda: server.number - number_of(newest(source).image) < 8)  # nothing waits in line
    finally:
        server.close()


def test_a_stream_that_is_cut_grows_stale_and_comes_back(started) -> None:
    server = MjpegServer()
    source = started(network_camera(f"http://127.0.0.1:{server.port}/stream.mjpg"))
    until(lambda: source.opened == 1)
    server.close()
    until(lambda: source.trouble != "")
    with pytest.raises(StaleObservationError):
        source.newest(max_age_s=0.0)
    server = MjpegServer(server.port)
    try:
        until(lambda: source.opened == 2)
        assert source.newest(max_age_s=PATIENCE_S).image.shape == (HEIGHT, WIDTH, 3)
    finally:
        server.close()


def test_a_stream_that_falls_silent_is_opened_again(started, monkeypatch) -> None:
    monkeypatch.setattr(camera_sources, "READ_TIMEOUT_S", 0.2)
    server = MjpegServer()
    try:
        source = started(network_camera(f"http://127.0.0.1:{server.port}/stream.mjpg"))
        until(lambda: source.opened == 1)
        server.frozen.set()
        until(lambda: source.trouble != "")
        server.frozen.clear()
        until(lambda: source.opened >= 2)
    finally:
        server.close()


def test_what_is_not_there_is_said(started) -> None:
    nobody = started(network_camera("http://127.0.0.1:9/stream.mjpg"))
    until(lambda: "refused" in nobody.trouble)
    unplugged = started(usb_camera(63, INFO))
    until(lambda: "no camera answers as /dev/video63" in unplugged.trouble)
