"""A network camera over RTSP, as most of them speak it, from a small server on loopback."""

import socket
import socketserver
import threading
import time

import av
import numpy as np
import pytest

from worldmodel.envs.robots.camera_sources import CameraSource, network_camera
from worldmodel.envs.robots.interface import CameraInfo, StaleObservationError

HEIGHT, WIDTH = 48, 64
INFO = CameraInfo(height=HEIGHT, width=WIDTH, fps=50.0)
PATIENCE_S = 60.0
DESCRIPTION = "\r\n".join(
    [
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=test",
        "t=0 0",
        "m=video 0 RTP/AVP 26",
        "a=control:0",
        "",
    ]
)


def picture(number: int) -> np.ndarray:
    """Red left, blue right; green says which it is."""
    left, right = np.array([255, number, 0], np.uint8), np.array([0, number, 255], np.uint8)
    return np.where(np.arange(WIDTH)[None, :, None] < WIDTH // 2, left, right).repeat(HEIGHT, 0)


class RtspServer(socketserver.ThreadingTCPServer):
    """Serves pictures 1, 2, ... 250 as JPEG in RTP, interleaved with RTSP, until it is closed."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Conversation)
        self.port = self.server_address[1]
        self.ending, self.number = threading.Event(), 0
        self.asked: list[str] = []
        self.transport = ""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.ending.set()
        self.shutdown()
        self.server_close()


class Conversation(socketserver.StreamRequestHandler):
    server: RtspServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        while lines := self.request_lines():
            method = lines[0].split()[0]
            self.server.asked.append(method)
            sequence = next(line for line in lines if line.lower().startswith("cseq"))
            head, body = ["RTSP/1.0 200 OK", sequence], ""
            if method == "OPTIONS":
                head.append("Public: DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == "DESCRIBE":
                body = DESCRIPTION
                head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            else:
                head.append("Session: 1;timeout=60")
            if method == "SETUP":
                self.server.transport = next(line for line in lines if "Transport" in line)
                head.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
            self.wfile.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())
            if method == "PLAY":
                self.play()
                return

    def request_lines(self) -> list[str]:
        lines = []
        while line := self.rfile.readline().decode().strip():
            lines.append(line)
        return lines

    def play(self) -> None:
        """Lets a muxer make RTP packets, and passes each on within the connection."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.bind(("127.0.0.1", 0))
            packets.settimeout(0.05)
            url = f"rtp://127.0.0.1:{packets.getsockname()[1]}"
            with av.open(url, "w", format="rtp") as container:
                stream = container.add_stream("mjpeg", rate=50)
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
                stream.options = {"huffman": "default"}
                stream.codec_context.thread_count = 1  # more would cut the picture by markers
                while not self.server.ending.wait(0.02):
                    self.server.number = min(self.server.number + 1, 250)
                    frame = av.VideoFrame.from_ndarray(picture(self.server.number), format="rgb24")
                    container.mux(stream.encode(frame.reformat(format="yuvj420p")))
                    if not self.pass_on(packets):
                        return

    def pass_on(self, packets: socket.socket) -> bool:
        """Passes the packets of one picture on; returns whether anybody still listens."""
        while True:
            try:
                packet = packets.recv(65536)
            except TimeoutError:
                return True
            try:
                self.wfile.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            except OSError:
                return False
            if packet[1] & 0x80:  # the last of the picture
                return True


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@pytest.fixture
def camera():
    """A server, and a camera source that reads it."""
    server = RtspServer()
    url = f"rtsp://127.0.0.1:{server.port}/live"
    source = CameraSource(
        "wrist", INFO, open_stream=network_camera(url), first_wait_s=0.01, longest_wait_s=0.05
    )
    source.start()
    yield server, source
    source.close()
    server.close()


def test_an_rtsp_stream_is_rgb_and_goes_on(camera) -> None:
    server, source = camera
    until(lambda: source.opened == 1)
    assert server.asked[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    assert "RTP/AVP/TCP" in server.transport  # no packet is lost on the way
    image = source.newest(max_age_s=PATIENCE_S).image
    left, right = image[:, 8 : WIDTH // 2 - 8], image[:, WIDTH // 2 + 8 : -8]
    assert left[..., 0].min() > 200 > 60 > left[..., 2].max()  # red
    assert right[..., 2].min() > 200 > 60 > right[..., 0].max()  # blue
    first = np.median(image[..., 1])
    until(lambda: np.median(source.newest(max_age_s=PATIENCE_S).image[..., 1]) > first + 10)


def test_an_rtsp_stream_that_is_cut_grows_stale_and_comes_back(camera) -> None:
    server, source = camera
    until(lambda: source.opened == 1)
    server.close()
    until(lambda: source.trouble != "")
    with pytest.raises(StaleObservationError, match="wrist"):
        source.newest(max_age_s=0.0)
    again = RtspServer(server.port)
    until(lambda: source.opened == 2)
    assert source.newest(max_age_s=PATIENCE_S).image.shape == (HEIGHT, WIDTH, 3)
    again.close()
