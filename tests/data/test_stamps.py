import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.frames import LazyFrames
from worldmodel.data.source import open_source
from worldmodel.data.stamps import content_of, stamp_of
from worldmodel.data.store import EpisodeStore


class _InFile(LazyFrames):
    """Frames in a file that is named by a path, or by text."""

    def __init__(self, file: Path | str, first: int) -> None:
        super().__init__((3, 8, 8, 3))
        self.file, self.first, self.key = file, first, "/"

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        raise AssertionError("a stamp reads no frame")


@pytest.fixture
def episode(make_episode):
    return make_episode(0, steps=2)


def _with(episode, frames):
    return replace(episode, frames={"exterior": frames})


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_is_stamped_by_name_size_and_time(episode, tmp_path, as_text):
    file = tmp_path / "video.mp4"
    file.write_bytes(b"frames")
    os.utime(file, ns=(1, 1))

    def stamp(path: Path, first: int = 0) -> str:
        frames = _InFile(str(path) if as_text else path, first)
        return stamp_of(_with(episode, frames), "exterior")

    before = stamp(file)
    moved = shutil.copytree(tmp_path, tmp_path / "elsewhere") / "video.mp4"
    assert stamp(moved) == before, "a copy that keeps times is the same recording"
    assert stamp(file, first=1) != before
    os.utime(file, ns=(1, 2))
    assert stamp(file) != before
    os.utime(file, ns=(1, 1))
    assert stamp(file) == before
    file.write_bytes(b"frame")
    os.utime(file, ns=(1, 1))
    assert stamp(file) != before
    file.unlink()
    assert stamp(file) != before


def test_numbers_and_pixels_in_memory_are_stamped_themselves(episode):
    before = stamp_of(episode, "exterior")
    assert stamp_of(pickle.loads(pickle.dumps(episode)), "exterior") == before
    for name in ("proprio", "timestamps"):
        values = getattr(episode, name).copy()
        values[1] += 1e-5
        assert stamp_of(replace(episode, **{name: values}), "exterior") != before
    assert stamp_of(replace(episode, usable=np.array([True, True, False])), "exterior") != before
    pixels = np.array(episode.frames["exterior"])
    pixels[1, 0, 0, 0] ^= 1
    assert stamp_of(_with(episode, pixels), "exterior") != before


def test_a_stored_episode_has_one_stamp_in_every_process(tmp_path, episode):
    EpisodeStore(tmp_path / "store", mode="a").write(0, episode)
    script = (
        "import sys; from worldmodel.data.source import open_source\n"
        "from worldmodel.data.stamps import stamp_of\n"
        "print(stamp_of(open_source(sys.argv[1]).read(0), 'exterior'))"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "store")]
    there = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert stamp_of(open_source(tmp_path / "store").read(0), "exterior") == there
    chunk = next(f for f in (tmp_path / "store").rglob("exterior/c/*/*/*/*") if f.is_file())
    os.utime(chunk, ns=(1, 1))
    assert stamp_of(open_source(tmp_path / "store").read(0), "exterior") != there


def test_content_is_every_pixel_pose_and_time(episode):
    frames = np.asarray(episode.frames["exterior"])
    parts = [frames, episode.proprio, episode.timestamps]
    before = content_of(*parts)
    for k in range(3):
        changed = [part.copy() for part in parts]
        changed[k].reshape(-1).view(np.uint8)[-1] ^= 1
        assert content_of(*changed) != before
