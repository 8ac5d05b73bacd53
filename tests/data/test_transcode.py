"""A transcoded tree has every frame of the old one, or says which video it could not take."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from worldmodel.data.source import open_source
from worldmodel.data.transcode import transcode
from worldmodel.data.video_frames import VideoFrames, decode_count, video_info


def _load(name: str) -> ModuleType:
    file = Path(__file__).parent / f"formats/{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_of_transcoding", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


truth = _load("truth")
droid = _load("write_droid_raw")


def shown(file: Path) -> list[int]:
    return truth.labels(VideoFrames(file)[:])[:, 0].tolist()


def listing(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


@pytest.fixture
def tree(tmp_path) -> Path:
    """Four videos of MPEG-4 at "60 fps", in folders, and files that are none."""
    folder = tmp_path / "tree"
    (folder / "a/b").mkdir(parents=True)
    for k, name in enumerate(("one.mp4", "a/two.mp4", "a/three.mp4", "a/b/four.mp4")):
        pictures = truth.make_truth(k, rows=40 + k, cameras=("wrist",)).frames["wrist"]
        droid.encode(folder / name, pictures)
    (folder / "a/rows.csv").write_text("x,y\n1,2\n")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_every_video_anew_and_the_rest_as_it_was(tree, tmp_path, workers):
    out = tmp_path / "out"
    result = transcode(tree, out, hz=15, gop=8, workers=workers, progress=False)
    assert len(result.done) == 4 and not result.skipped and not result.failed
    assert [f for f in listing(out) if f != ".transcode"] == listing(tree)
    assert (out / "a/rows.csv").read_text() == "x,y\n1,2\n"
    for k, name in enumerate(("one.mp4", "a/two.mp4", "a/three.mp4", "a/b/four.mp4")):
        info = video_info(out / name)
        assert (info.codec, info.declared_hz, info.gop) == ("h264", 15, 8)
        assert info.frames == decode_count(out / name) == decode_count(tree / name) == 40 + k
        assert shown(out / name) == list(range(40 + k))
        difference = VideoFrames(out / name)[:].astype(int) - VideoFrames(tree / name)[:]
        assert np.abs(difference).mean() < 4
    again = transcode(tree, out, hz=15, gop=8, progress=False)
    assert not again.done and again.skipped == result.done


def test_size_and_rate(tree, tmp_path):
    half = transcode(tree, tmp_path / "half", height=32, progress=False)
    assert half.header_rates == (60.0,)
    for file in half.done:
        assert VideoFrames(file).shape[1:] == (32, 42, 3)  # 48x64, even
        assert video_info(file).declared_hz == 60
        assert shown(file) == list(range(len(VideoFrames(file))))
    both = transcode(tree, tmp_path / "both", height=40, width=40, hz=14.7, progress=False)
    assert both.header_rates == ()
    assert {VideoFrames(file).shape[1:] for file in both.done} == {(40, 40, 3)}
    assert video_info(both.done[0]).declared_hz == pytest.approx(14.7)


def test_one_video(tree, tmp_path):
    result = transcode(tree / "one.mp4", tmp_path / "new/one.mp4", hz=15, progress=False)
    assert result.done == (tmp_path / "new/one.mp4",)
    assert shown(result.done[0]) == list(range(40))
    assert listing(tmp_path / "new") == ["one.mp4"]


def test_a_video_that_ends_early_is_named_and_left_out(tree, tmp_path):
    whole = tree / "a/three.mp4"
    with (
        av.open(str(whole)) as old,
        av.open(str(tree / "cut.mp4"), "w", container_options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    content = (tree / "cut.mp4").read_bytes()
    (tree / "cut.mp4").write_bytes(content[: len(content) * 6 // 10])
    (tree / "a/none.mp4").write_bytes(b"not a video")
    droid.encode(tree / "odd.mp4", truth.make_truth(7, rows=10).frames["wrist"][:, :47, :61])
    result = transcode(tree, tmp_path / "out", hz=15, progress=False)
    assert len(result.done) == 4
    failed = {file.name: reason for file, reason in result.failed}
    assert set(failed) == {"cut.mp4", "none.mp4", "odd.mp4"}
    assert "declares 42 frames, but the file ends early" in failed["cut.mp4"]
    assert "is no video" in failed["none.mp4"]
    assert "must be even" in failed["odd.mp4"]
    videos = {file for file in listing(tmp_path / "out") if ".mp4" in file}
    assert videos == {"one.mp4", "a/two.mp4", "a/three.mp4", "a/b/four.mp4"}
    # A second run tries them again, and takes what was mended.
    (tree / "cut.mp4").write_bytes(content)
    mended = transcode(tree, tmp_path / "out", hz=15, progress=False)
    assert mended.done == (tmp_path / "out/cut.mp4",) and len(mended.failed) == 2


_KILLED = """
import os, signal, sys
from worldmodel.data.transcode import transcode
from worldmodel.data.video_frames import VideoFrames

left = int(sys.argv[3])
read = VideoFrames.__iter__

def read_until_killed(frames):
    global left
    for image in read(frames):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield image

VideoFrames.__iter__ = read_until_killed
transcode(sys.argv[1], sys.argv[2], hz=15, progress=False)
"""


def test_killed_at_any_frame_it_goes_on(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    pictures = truth.make_truth(0, rows=20).frames["wrist"]
    for k in range(10):
        droid.encode(tree / f"{k}.mp4", pictures)
    expected = 0
    for frames_until_killed in (31, 20, 1, 77):
        command = [sys.executable, "-c", _KILLED, str(tree), str(out), str(frames_until_killed)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        expected += (frames_until_killed - 1) // 20
        there = list(out.glob("[0-9]*"))
        assert len(there) == expected
        assert all(decode_count(file) == video_info(file).frames == 20 for file in there)
        assert len(list(out.glob(".*.part"))) <= 1
    before = {file: file.stat().st_mtime_ns for file in there}
    result = transcode(tree, out, hz=15, progress=False)
    assert set(result.skipped) == set(there) and len(result.done) == 10 - len(there) > 0
    assert {file: file.stat().st_mtime_ns for file in there} == before
    assert listing(out) == [".transcode", *(f"{k}.mp4" for k in range(10))]
    assert all(shown(file) == list(range(20)) for file in result.done)


def test_a_droid_tree_is_read_as_before(tmp_path):
    raw = tmp_path / "raw"
    for k in range(2):
        droid.write_episode(
            raw, truth.make_truth(k, rows=20, jitter=0.2), stereo=("18026681",) if k else ()
        )
    result = transcode(raw, tmp_path / "small", height=36, width=48, hz=15, progress=False)
    assert len(result.done) == 4 and result.copied == 4
    before, after = open_source(raw), open_source(tmp_path / "small")
    assert after.format == "droid_raw" and after.ids() == before.ids()
    for k in before.ids():
        old, new = before.read(k), after.read(k)
        assert old.metadata == new.metadata
        np.testing.assert_array_equal(old.proprio, new.proprio)
        np.testing.assert_array_equal(old.timestamps, new.timestamps)
        assert list(old.frames) == list(new.frames)
        for camera, frames in new.frames.items():
            assert frames.shape == (20, 36, 48, 3)
            np.testing.assert_array_equal(
                truth.labels(frames[:]), truth.labels(old.frames[camera][:])
            )


def test_files_are_copied_where_they_cannot_be_linked(tree, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    transcode(tree, tmp_path / "out", hz=15, progress=False)
    assert (tmp_path / "out/a/rows.csv").read_text() == "x,y\n1,2\n"
    assert not list((tmp_path / "out").rglob("*.part"))


def test_linked_files_outlive_the_links_of_a_download_cache(tree, tmp_path):
    (tmp_path / "blob").write_text("kept elsewhere")
    (tree / "a/link.json").symlink_to("../../blob")
    transcode(tree, tmp_path / "deeper/out", hz=15, progress=False)
    assert (tmp_path / "deeper/out/a/link.json").read_text() == "kept elsewhere"


def test_what_makes_no_sense_is_refused(tree, tmp_path):
    out = tmp_path / "out"
    for wrong, message in (
        ({"height": 33}, "height must be even and positive, got 33"),
        ({"width": 0}, "width must be even"),
        ({"hz": 0}, "hz must be positive"),
        ({"workers": 0}, "workers must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            transcode(tree, out, progress=False, **wrong)
    for inside in (tree, tree / "new", tmp_path):
        with pytest.raises(ValueError, match="must not lie in one another"):
            transcode(tree, inside, progress=False)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        transcode(tmp_path / "none", out, progress=False)
    (tree / "one.avi").touch()
    with pytest.raises(ValueError, match=r"one\.avi.*would both become|one\.mp4.*would both"):
        transcode(tree, out, progress=False)
    assert not out.exists()
    (tree / "one.avi").unlink()
    transcode(tree, out, hz=15, progress=False)
    with pytest.raises(ValueError, match=r"was begun with .*hz=15.*now it would be .*hz=14"):
        transcode(tree, out, hz=14, progress=False)
