"""Videos give the frame asked for, or an error: never another frame."""

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import av.codec
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldmodel.data import video_frames
from worldmodel.data.frames import FrameReadError
from worldmodel.data.video_frames import VideoFrames, decode_count, video_info, write_video

ROWS = 90


def _truth():
    file = Path(__file__).parent / "formats/truth.py"
    spec = importlib.util.spec_from_file_location("truth_of_videos", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


truth = _truth()
PICTURES: np.ndarray = truth.make_truth(5, rows=ROWS, cameras=("wrist",)).frames["wrist"]

needs_av1 = pytest.mark.skipif(
    "libsvtav1" not in av.codec.codecs_available, reason="this PyAV has no encoder for AV1"
)


def encode(
    file: Path,
    codec: str,
    *,
    pictures: np.ndarray = PICTURES,
    gop: int = 12,
    b_frames: int = 0,
    x264: str = "",
    movflags: str = "faststart",
) -> Path:
    """What a recorder writes, with PyAV alone and none of our code."""
    flags = {"movflags": movflags} if file.suffix == ".mp4" else {}
    with av.open(str(file), "w", container_options=flags) as container:
        options = {"x264-params": x264} if x264 else {}
        stream = container.add_stream(codec, rate=60, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if codec == "mpeg4":  # it has no other measure of quality
            stream.bit_rate = 1_500_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


KINDS: dict[str, Callable[[Path], Path]] = {
    "h264": lambda f: encode(f / "v.mp4", "libx264"),
    "h264, every frame a key": lambda f: encode(f / "v.mp4", "libx264", gop=1),
    "h264, one key, b-frames": lambda f: encode(f / "v.mp4", "libx264", gop=250, b_frames=3),
    "h264, open gop": lambda f: encode(
        f / "v.mp4", "libx264", b_frames=3, x264="open-gop=1:keyint=12:bframes=3:scenecut=0"
    ),
    "h264, in fragments": lambda f: encode(
        f / "v.mp4", "libx264", b_frames=2, movflags="frag_keyframe+empty_moov"
    ),
    "h264, avi: no times": lambda f: encode(f / "v.avi", "libx264", b_frames=2),
    "h264, mkv": lambda f: encode(f / "v.mkv", "libx264", b_frames=2),
    "mpeg4": lambda f: encode(f / "v.mp4", "mpeg4"),
    "mpeg4, b-frames": lambda f: encode(f / "v.mp4", "mpeg4", b_frames=2),
    "mpeg4, avi": lambda f: encode(f / "v.avi", "mpeg4", b_frames=2),
    "av1": lambda f: encode(f / "v.mp4", "libsvtav1", gop=2),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """Videos by kind, each encoded once."""
    done: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in done:
            done[kind] = KINDS[kind](tmp_path_factory.mktemp("videos"))
        return done[kind]

    return make


@pytest.fixture(params=[pytest.param(k, marks=needs_av1 if k == "av1" else ()) for k in KINDS])
def video(request, made) -> Path:
    return made(request.param)


def shown(frames: np.ndarray) -> list[int]:
    return truth.labels(frames)[:, 0].tolist()


def cut(file: Path, folder: Path, share: float = 0.6) -> Path:
    content = file.read_bytes()
    shortened = folder / f"cut{file.suffix}"
    shortened.write_bytes(content[: int(share * len(content))])
    return shortened


def test_frame_k_is_frame_k(video):
    frames = VideoFrames(video)
    assert frames.shape == PICTURES.shape
    everything = frames[:]
    assert shown(everything) == list(range(ROWS))
    assert np.abs(everything.astype(int) - PICTURES).mean() < 6
    np.testing.assert_array_equal(np.stack(list(frames)), everything)
    assert decode_count(video) == ROWS


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(indices=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=8))
def test_any_frames_are_those_of_one_pass(video, indices):
    frames = VideoFrames(video)
    got = frames[np.array(indices)]
    assert shown(got) == indices
    np.testing.assert_array_equal(got, frames[:][indices])


def test_a_part_of_a_file_is_numbered_from_its_own_start(made):
    part = VideoFrames(made("h264"), first=40, count=20)
    assert len(part) == 20 and shown(part[:]) == list(range(40, 60))
    assert shown(part[np.array([19, 0])]) == [59, 40] and truth.label(part[-1])[0] == 59
    assert shown(VideoFrames(made("h264"), first=85)[:]) == [85, 86, 87, 88, 89]
    with pytest.raises(FrameReadError, match=r"has 90 frames; frames 80 to 99 were asked for"):
        VideoFrames(made("h264"), first=80, count=20)
    with pytest.raises(IndexError):
        part[20]


def test_the_halves_of_a_stereo_pair(tmp_path):
    left = truth.make_truth(1, rows=12, cameras=("exterior",)).frames["exterior"]
    right = truth.make_truth(2, rows=12, cameras=("exterior",)).frames["exterior"]
    file = encode(tmp_path / "s.mp4", "libx264", pictures=np.concatenate([left, right], axis=2))
    for half, number in (("left", 1), ("right", 2)):
        frames = VideoFrames(file, half=half)
        assert frames.shape == left.shape
        assert truth.labels(frames[:])[:, 1].tolist() == [number] * 12


def test_odd_sizes_are_read(tmp_path):
    pictures = PICTURES[:20, :47, :61]
    frames = VideoFrames(encode(tmp_path / "odd.mp4", "mpeg4", pictures=pictures))
    assert frames.shape == pictures.shape
    last_columns = np.abs(frames[:].astype(int) - pictures)[:, :, -3:]
    assert last_columns.mean() < 6


def test_frames_travel_between_processes_without_handles(made):
    frames = VideoFrames(made("h264"), first=10, count=5)
    copied = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(copied[:], frames[:])
    open_files = [
        os.readlink(f"/proc/self/fd/{n}")
        for n in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{n}")
    ]
    assert str(made("h264")) not in open_files


def test_a_file_that_changed_is_indexed_again(tmp_path):
    file = encode(tmp_path / "v.mp4", "libx264", pictures=PICTURES[:20])
    assert shown(VideoFrames(file)[:]) == list(range(20))
    encode(file, "libx264", pictures=PICTURES[50:80])
    assert shown(VideoFrames(file)[:]) == list(range(50, 80))


@pytest.mark.parametrize(
    "kind",
    [
        "h264",
        "h264, one key, b-frames",
        "h264, open gop",
        "mpeg4",
        "mpeg4, b-frames",
        "mpeg4, avi",
        "h264, avi: no times",
        pytest.param("av1", marks=needs_av1),
    ],
)
@pytest.mark.parametrize("share", [0.7, 0.8])
def test_a_file_that_ends_early_gives_right_frames_or_none(made, tmp_path, kind, share):
    file = cut(made(kind), tmp_path, share)
    frames = VideoFrames(file)
    there = decode_count(file)
    assert len(frames) == ROWS and 5 < there < ROWS
    # In order and out of order: what comes is what was asked for, and exactly the first `there`.
    assert shown(frames[:there]) == list(range(there))
    for index in np.random.default_rng(0).permutation(ROWS)[:30]:
        if index < there:
            assert truth.label(frames[index])[0] == index
        else:
            with pytest.raises(FrameReadError, match=rf"no frame {index}; .* ends early"):
                frames[index]
    with pytest.raises(FrameReadError, match=f"declares {ROWS} frames.* first {there} only"):
        frames[:]
    assert video_info(file).frames == ROWS


def test_a_cut_file_where_opencv_shows_a_wrong_frame(made, tmp_path):
    file = cut(made("h264, one key, b-frames"), tmp_path)
    wrong = []
    for index in range(decode_count(file), ROWS):
        with pytest.raises(FrameReadError):
            VideoFrames(file)[index]
        capture = cv2.VideoCapture(str(file))
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        ok, image = capture.read()
        capture.release()
        if ok and truth.label(image[..., ::-1])[0] != index:
            wrong.append(index)
    if not wrong:
        pytest.skip(f"OpenCV {cv2.__version__} does not return wrong frames here")


def test_a_file_cut_before_its_index_is_no_video(made, tmp_path):
    file = cut(encode(tmp_path / "v.mp4", "libx264", movflags="0"), tmp_path)
    with pytest.raises(FrameReadError, match=r"cut\.mp4 is no video, or is cut off"):
        VideoFrames(file)
    with pytest.raises(FileNotFoundError):
        VideoFrames(tmp_path / "none.mp4")
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with pytest.raises(FrameReadError, match="no video stream"):
        VideoFrames(sound)


def damage(file: Path, folder: Path, packet: int, change: Callable[[bytearray], bytes]) -> Path:
    """Copies a video with other bytes in one packet."""
    with av.open(str(file)) as container:
        where = [(p.pos, p.size) for p in container.demux(video=0) if p.size][packet]
    content = bytearray(file.read_bytes())
    begin, size = where
    assert begin is not None
    content[begin : begin + size] = change(content[begin : begin + size])
    assert len(content) == file.stat().st_size
    (folder / "damaged.mp4").write_bytes(content)
    return folder / "damaged.mp4"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mpeg4", lambda b: bytes(len(b)), "Invalid data"),
        # The bit that says "not coded": decoders show nothing then, and do not complain.
        (
            "mpeg4",
            lambda b: b[:5] + bytes([b[5] & 0b11100000 | 0b111]) + bytes(len(b) - 6),
            "did not come out",
        ),
        ("mpeg4", lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2), "came out damaged"),
    ],
)
def test_damaged_packets_raise(made, tmp_path, kind, change, message):
    file = damage(made(kind), tmp_path, 30, change)
    frames = VideoFrames(file)
    assert shown(frames[:30]) == list(range(30))
    assert shown(frames[36:]) == list(range(36, ROWS))  # from the next keyframe on all is well
    with pytest.raises(FrameReadError, match=rf"decode frame 30: .*{message}.*frame 29 was the la"):
        frames[20:40]
    with pytest.raises(FrameReadError, match=message):
        frames[30]
    assert decode_count(file) == 30


def test_info_is_of_the_file_and_not_of_its_header(made):
    info = video_info(made("h264, one key, b-frames"))
    assert (info.frames, info.height, info.width) == PICTURES.shape[:3]
    assert info.codec == "h264" and info.declared_hz == 60 and info.gop == ROWS
    assert info.duration_s == pytest.approx((ROWS - 1) / 60, abs=1e-4)
    assert video_info(made("mpeg4")).codec == "mpeg4" and video_info(made("mpeg4")).gop == 12


@pytest.mark.parametrize("codec", ["libx264", pytest.param("libsvtav1", marks=needs_av1)])
def test_what_is_written_is_read(tmp_path, codec):
    file = tmp_path / "v.mp4"
    write_video(file, iter(PICTURES), hz=30000 / 1001, codec=codec, gop=10)
    frames = VideoFrames(file)
    assert shown(frames[:]) == list(range(ROWS))
    info = video_info(file)
    assert info.declared_hz == pytest.approx(30000 / 1001) and info.gop <= 10
    assert file.read_bytes().index(b"moov") < file.read_bytes().index(b"mdat")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (PICTURES[:0], "no frames to write"),
        (PICTURES[:2, :47], "64x47; .* must be even: crop or resize"),
        ([PICTURES[0], PICTURES[1][:40]], "frame 1 is 64x40, the first is 64x48"),
        (PICTURES[:2].astype(np.float32), r"frame 0 is float32 \(48, 64, 3\); expected uint8"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, pictures, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "v.mp4", pictures, hz=15)
    with pytest.raises(ValueError, match="rate must be positive"):
        write_video(tmp_path / "v.mp4", PICTURES, hz=0)
    assert not list(tmp_path.iterdir())


def test_a_video_that_does_not_decode_to_what_went_in_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(video_frames, "decode_count", lambda file: ROWS - 1)
    with pytest.raises(ValueError, match="90 frames were encoded, but 89 can be decoded"):
        write_video(tmp_path / "v.mp4", PICTURES, hz=15)
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_no_video(tmp_path):
    code = (
        "import os, signal, sys, numpy as np\n"
        "from worldmodel.data.video_frames import write_video\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)\n"
        "def pictures():\n"
        "    for k in range(200):\n"
        "        yield noise\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_video(sys.argv[1] + '/v.mp4', pictures(), hz=15)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == [".v.mp4.part"]
    # The next writer takes its place.
    write_video(tmp_path / "v.mp4", PICTURES, hz=15)
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]
