import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldmodel.data.convert import FORMATS, ConvertResult, ResizedFrames, convert
from worldmodel.data.episode import Episode
from worldmodel.data.frames import FRAMES_AT_ONCE, FrameReadError, LazyFrames
from worldmodel.data.source import Source, open_source
from worldmodel.data.store import EpisodeStore


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """What a process has written, others see without this; it is for power failures."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_store(path: Path, episodes: list[Episode]) -> Source:
    store = EpisodeStore(path, mode="a")
    for k, episode in enumerate(episodes):
        store.write(k, episode)
    return open_source(path)


@pytest.fixture
def source(tmp_path, make_episode) -> Source:
    """Five episodes of two cameras, ids 0 to 4, and of what not every format has."""
    episodes = []
    for k in range(5):
        episode = make_episode(k, steps=4 + k, size=32, cameras=("exterior", "wrist"))
        rows = len(episode.proprio)
        metadata = replace(episode.metadata, name=f"run {k}", success=k % 2 == 0, task="open it")
        episodes.append(
            replace(
                episode,
                metadata=metadata,
                joints=np.full((rows, 7), k, np.float32),
                logged_actions={"target": np.full((rows, 3), k, np.float32)},
                usable=np.arange(rows) > 1,
            )
        )
    return make_store(tmp_path / "source", episodes)


def quiet(source: Source, out: Path, **settings) -> ConvertResult:
    return convert(source, out, progress=False, **settings)


def assert_same(a: Episode, b: Episode) -> None:
    """To the last bit, frames too."""
    assert a.metadata == b.metadata and set(a.frames) == set(b.frames)
    assert set(a.logged_actions) == set(b.logged_actions)
    pairs = [(a.frames[c][:], b.frames[c][:]) for c in a.frames]
    pairs += [(a.logged_actions[n], b.logged_actions[n]) for n in a.logged_actions]
    pairs += [(a.proprio, b.proprio), (a.timestamps, b.timestamps)]
    pairs += [(a.joints, b.joints), (a.usable, b.usable)]
    for left, right in pairs:
        assert type(left) is type(right)
        if left is not None and right is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("format", ["zarr_store", "lerobot"])
def test_all_that_an_episode_has_is_converted(tmp_path, source, format):
    result = quiet(source, tmp_path / "out", format=format)
    assert result == ConvertResult(converted=5, found=0, quarantined={})
    out = open_source(tmp_path / "out")
    assert out.format == format and list(out.ids()) == [0, 1, 2, 3, 4]
    for k in range(5):
        before, after = source.read(k), out.read(k)
        if format == "zarr_store":
            assert_same(before, after)
        else:  # All but the pixels, which are video now.
            assert_same(before, replace(after, frames=before.frames))


def test_rlds_keeps_poses_joints_times_and_success(tmp_path, source):
    assert quiet(source, tmp_path / "reach", format="rlds").converted == 5
    out = open_source(tmp_path / "reach")
    assert out.format == "rlds" and len(out) == 5
    for k in range(5):
        before, after = source.read(k), out.read(k)
        np.testing.assert_allclose(after.timestamps, before.timestamps, atol=1e-6)
        np.testing.assert_allclose(after.proprio, before.proprio, atol=1e-6)
        assert after.joints is not None and before.joints is not None
        np.testing.assert_array_equal(after.joints, before.joints)
        assert after.metadata.success is before.metadata.success
    with pytest.raises(FileExistsError):
        quiet(source, tmp_path / "reach", format="rlds")


def test_chosen_episodes_and_cameras_are_converted(tmp_path, source):
    assert quiet(source, tmp_path / "out", ids=[3, 1], cameras=["wrist"]).converted == 2
    out = open_source(tmp_path / "out")
    assert list(out.ids()) == [1, 3]
    assert out.read(1).metadata.cameras == ("wrist",)
    expected = source.read(1).frames["wrist"][:]
    np.testing.assert_array_equal(out.read(1).frames["wrist"][:], expected)


@pytest.mark.parametrize("format", FORMATS)
def test_frames_are_resized_by_area(tmp_path, source, format):
    quiet(source, tmp_path / "out", format=format, image_size=(16, 8), ids=[0, 1])
    frames = open_source(tmp_path / "out").read(0).frames["wrist"]
    assert frames.shape == (5, 16, 8, 3)
    if format == "zarr_store":
        blocks = source.read(0).frames["wrist"][:].reshape(5, 16, 2, 8, 4, 3)
        mean = blocks.mean(axis=(2, 4))
        assert np.abs(frames[:] - mean).max() <= 0.5


def test_frames_of_the_right_size_are_left_alone(tmp_path, source):
    quiet(source, tmp_path / "out", image_size=(32, 32))
    assert_same(open_source(tmp_path / "out").read(2), source.read(2))


def test_resized_frames_are_read_a_few_at_a_time_when_asked_for():
    images = np.random.default_rng(0).integers(0, 256, (2 * FRAMES_AT_ONCE, 10, 14, 3), np.uint8)
    asked = []

    class Watched(LazyFrames):
        def fetch(self, indices: np.ndarray) -> np.ndarray:
            asked.append(len(indices))
            return images[indices]

    frames = ResizedFrames(Watched(images.shape), height=5, width=7)
    chosen = np.array([4, 1, *range(FRAMES_AT_ONCE), 4])
    expected = [cv2.resize(images[k], (7, 5), interpolation=cv2.INTER_AREA) for k in chosen]
    np.testing.assert_array_equal(frames[chosen], np.stack(expected))
    assert asked == [FRAMES_AT_ONCE, 3]


class BrokenFrames(LazyFrames):
    """Frames of which one cannot be read."""

    def __init__(self, broken: int) -> None:
        super().__init__((8, 32, 32, 3))
        self.broken = broken

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        if self.broken in indices:
            raise FrameReadError(f"wrist.mp4: frame {self.broken} cannot be decoded")
        return np.zeros((len(indices), *self.shape[1:]), np.uint8)


def breaking(source: Source, faults: dict[int, Callable[[Episode], Episode]]) -> Source:
    """The same episodes, some of them changed when they are read."""
    read = source.reader.read_episode

    class Broken(type(source.reader)):
        def read_episode(self, episode_id, mapping):
            return faults.get(episode_id, lambda e: e)(read(episode_id, mapping))

    reader = Broken(source.path)
    return Source(reader, source.mapping)


def unreadable(episode: Episode) -> Episode:
    raise ValueError("trajectory.h5 is truncated")


FAULTS: dict[int, Callable[[Episode], Episode]] = {
    0: unreadable,
    2: lambda e: replace(e, proprio=e.proprio * np.float32(np.nan)),
    3: lambda e: replace(e, frames={**e.frames, "wrist": BrokenFrames(5)}),
}


@pytest.mark.parametrize("format", FORMATS)
def test_what_cannot_be_converted_is_left_out_and_said_and_tried_again(tmp_path, source, format):
    broken = breaking(source, FAULTS)
    result = quiet(broken, tmp_path / "out", format=format)
    assert result.converted == 2 and result.found == 0
    assert list(result.quarantined) == [0, 2, 3]
    assert "trajectory.h5 is truncated" in result.quarantined[0]
    assert "proprio is not finite" in result.quarantined[2]
    assert "frame 5 cannot be decoded" in result.quarantined[3]
    out = open_source(tmp_path / "out")
    assert [out.read(i).metadata.name for i in out.ids()] == ["run 1", "run 4"]
    if format == "rlds":
        return
    # Mended and converted again, the rest follows.
    result = quiet(source, tmp_path / "out", format=format)
    assert result == ConvertResult(converted=3, found=2, quarantined={})
    out = open_source(tmp_path / "out")
    assert sorted(out.read(i).metadata.name for i in out.ids()) == [f"run {k}" for k in range(5)]


@pytest.mark.parametrize("format", ["lerobot", "rlds"])
def test_episodes_unlike_the_first_are_left_out_of_a_format_with_one_schema(
    tmp_path, source, format
):
    odd = breaking(source, {1: lambda e: replace(e, joints=None)})
    result = quiet(odd, tmp_path / "out", format=format)
    assert list(result.quarantined) == [1] and "joint" in result.quarantined[1]
    assert result.converted == 4


def test_an_episode_without_a_camera_asked_for_is_left_out(tmp_path, source):
    blind = breaking(source, {2: lambda e: replace(e, frames={"exterior": e.frames["exterior"]})})
    result = quiet(blind, tmp_path / "out", cameras=["exterior", "wrist"])
    assert result.quarantined == {2: "episode 2 has no camera 'wrist', only exterior"}


def test_converting_again_finds_everything(tmp_path, source):
    for format in ("zarr_store", "lerobot"):
        quiet(source, tmp_path / format, format=format, ids=[0, 1])
        result = quiet(source, tmp_path / format, format=format)
        assert result == ConvertResult(converted=3, found=2, quarantined={})
        assert quiet(source, tmp_path / format, format=format).found == 5


def test_episodes_of_slightly_different_measured_rates_make_one_lerobot_set(tmp_path, make_episode):
    episodes = [
        replace(e, metadata=replace(e.metadata, control_hz=hz))
        for hz in (3.97, 4.11, 4.5, 4.0)
        if (e := make_episode(int(100 * hz), size=16, steps=9))
    ]
    source = make_store(tmp_path / "source", episodes)
    result = quiet(source, tmp_path / "out", format="lerobot")
    assert list(result.quarantined) == [2] and "declares 4.5 Hz" in result.quarantined[2]
    out = open_source(tmp_path / "out")
    assert out.reader.declared_hz == 4
    for k, before in enumerate((0, 1, 3)):
        np.testing.assert_array_equal(out.read(k).timestamps, episodes[before].timestamps)
    assert quiet(source, tmp_path / "out", format="lerobot").found == 3


def test_the_same_episode_twice_is_two_episodes(tmp_path, make_episode):
    twice = make_store(tmp_path / "twice", [make_episode(size=32)] * 2)
    assert quiet(twice, tmp_path / "out", format="lerobot", ids=[0]).converted == 1
    result = quiet(twice, tmp_path / "out", format="lerobot")
    assert (result.converted, result.found) == (1, 1)
    assert quiet(twice, tmp_path / "out", format="lerobot").found == 2


def test_another_source_or_size_is_not_mixed_in(tmp_path, source, make_episode):
    other = make_store(tmp_path / "other", [make_episode(77, size=32)])
    quiet(source, tmp_path / "out")
    for wrong, settings in ((other, {}), (source, {"image_size": (8, 8)})):
        with pytest.raises(ValueError, match="has another episode 0 than .* choose another folder"):
            quiet(wrong, tmp_path / "out", **settings)
    quiet(source, tmp_path / "set", format="lerobot")
    result = quiet(source, tmp_path / "set", format="lerobot", image_size=(8, 8))
    assert len(result.quarantined) == 5 and "another folder" in result.quarantined[0]


def test_mistakes_are_named_before_anything_is_written(tmp_path, source):
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match="unknown format to write 'lerobt'; did you mean 'lerobot'"
    ):
        quiet(source, out, format="lerobt")
    with pytest.raises(ValueError, match="unknown camera 'wirst'; did you mean 'wrist'"):
        quiet(source, out, cameras=["wirst"])
    with pytest.raises(KeyError, match="no episode 9 in"):
        quiet(source, out, ids=[0, 9])
    with pytest.raises(ValueError, match="height and width in pixels"):
        quiet(source, out, image_size=(0, 8))
    assert not out.exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    for format in ("zarr_store", "lerobot"):
        with pytest.raises(ValueError, match="new or empty folder"):
            quiet(source, tmp_path / "thesis", format=format)


def test_two_processes_convert_the_same_together(tmp_path, source):
    children = [in_child(lambda: quiet(source, tmp_path / "out")) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    out = open_source(tmp_path / "out")
    for k in source.ids():
        assert_same(out.read(k), source.read(k))


def in_child(run: Callable[[], object]) -> int:
    """Starts a copy of this process that does only this; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def convert_until(source: Source, out: Path, format: str, *, events: int) -> int:
    """Converts in another process, which kills itself before that many-th access to files.

    Returns how many accesses there were.
    """
    log = out.with_name(f"{out.name}.log")

    def run() -> None:
        count = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in _FILE_EVENTS and str(arguments[0]).startswith(str(out)):
                count += 1
                if count == events:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        quiet(source, out, format=format)
        log.write_text(str(count))

    _, status = os.waitpid(in_child(run), 0)
    if not os.WIFSIGNALED(status):
        assert status == 0
        return int(log.read_text())
    return events


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("format", "points"), [("zarr_store", 30), ("lerobot", 20)])
def test_killed_at_any_point_and_called_again_it_ends_as_if_nothing_had_been(
    tmp_path, make_episode, format, points
):
    episodes = [make_episode(k, steps=3, size=16) for k in range(4)]
    source = make_store(tmp_path / "source", episodes)
    whole = tmp_path / "whole"
    total = convert_until(source, whole, format, events=-1)
    expected = [open_source(whole).read(k) for k in range(4)]
    assert total > 50

    rng = np.random.default_rng(0)
    for n, point in enumerate(rng.choice(np.arange(1, total + 1), points, replace=False)):
        out = tmp_path / f"out_{n}"
        assert convert_until(source, out, format, events=int(point)) == point
        found = quiet(source, out, format=format)
        assert found.converted + found.found == 4 and not found.quarantined
        after = open_source(out)
        assert list(after.ids()) == [0, 1, 2, 3]
        for k in range(4):
            assert_same(after.read(k), expected[k])
