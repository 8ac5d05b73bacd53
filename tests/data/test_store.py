import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldmodel.data.episode import Episode
from worldmodel.data.store import EpisodeStore, _alive


def assert_equal(a: Episode, b: Episode) -> None:
    assert a.metadata == b.metadata
    assert list(a.frames) == list(b.frames)
    arrays = [(a.frames[c], b.frames[c]) for c in a.frames]
    arrays += [(a.proprio, b.proprio), (a.actions, b.actions), (a.timestamps, b.timestamps)]
    for left, right in arrays:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 12),
    size=st.sampled_from([1, 7, 32, 300]),
    cameras=st.sampled_from([("exterior",), ("wrist", "exterior")]),
)
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path_factory, make_episode, seed, steps, size, cameras
):
    store = EpisodeStore(tmp_path_factory.mktemp("store") / "episodes", mode="a")
    episode = make_episode(seed, steps=steps, size=size, cameras=cameras)
    store.write(7, episode)
    assert_equal(EpisodeStore(store.path).read(7), episode)


def test_parts_are_read_without_the_frames(tmp_path, make_episode):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(steps=6)
    store.write(0, episode)
    for file in (tmp_path / "episodes/00000000/frames").rglob("*"):
        if file.is_file():
            file.unlink()
    np.testing.assert_array_equal(store.read_proprio(0), episode.proprio)
    np.testing.assert_array_equal(store.read_actions(0), episode.actions)
    np.testing.assert_array_equal(store.read_timestamps(0), episode.timestamps)
    assert store.read_metadata(0) == episode.metadata
    assert store.summary().steps == 6


def test_other_programs_can_read_the_store_as_plain_zarr(tmp_path, make_episode):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(3)
    store.write(12, episode)
    group = zarr.open_group(tmp_path / "episodes", mode="r")
    assert list(group.group_keys()) == ["00000012"]
    frames = group["00000012/frames/exterior"]
    assert isinstance(frames, zarr.Array)
    np.testing.assert_array_equal(frames[...], episode.frames["exterior"])
    assert group["00000012"].attrs["seed"] == 3


def test_a_taken_id_is_refused_and_the_first_episode_stays(tmp_path, make_episode):
    store = EpisodeStore(tmp_path, mode="a")
    store.write(1, make_episode(1))
    with pytest.raises(FileExistsError, match="episode 1 is already in"):
        store.write(1, make_episode(2))
    assert_equal(store.read(1), make_episode(1))
    assert list((tmp_path / "writing").iterdir()) == []


def test_an_invalid_episode_leaves_no_trace(tmp_path, make_episode):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode()
    with pytest.raises(ValueError, match="episode 4: actions have 4 steps"):
        store.write(4, replace(episode, actions=episode.actions[1:]))
    assert len(store) == 0
    assert list((tmp_path / "writing").iterdir()) == []


def test_errors_say_what_is_there(tmp_path, make_episode):
    with pytest.raises(FileNotFoundError, match="no episode store at"):
        EpisodeStore(tmp_path / "nowhere")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    for mode in ("r", "a"):
        with pytest.raises(ValueError, match="not an episode store"):
            EpisodeStore(tmp_path / "thesis", mode=mode)
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]

    store = EpisodeStore(tmp_path / "store", mode="a")
    with pytest.raises(KeyError, match="no episode 3 in .*; it has no episodes"):
        store.read(3)
    store.write(5, make_episode())
    with pytest.raises(KeyError, match="it has 1 episodes, ids 5 to 5"):
        store.read_proprio(3)
    with pytest.raises(KeyError, match=r"episode 5 has no 'frames/left'; there are \['exterior'\]"):
        store.read_frames(5, "left")
    with pytest.raises(PermissionError, match="open for reading; open it with mode='a'"):
        EpisodeStore(store.path).write(6, make_episode())
    with pytest.raises(ValueError, match="mode must be 'r'"):
        EpisodeStore(store.path, mode="w")  # pyright: ignore[reportArgumentType]


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    EpisodeStore(tmp_path, mode="a")
    (tmp_path / "store.json").write_text(json.dumps({"worldmodel_episode_store": 2}))
    for mode in ("r", "a"):
        with pytest.raises(ValueError, match="schema version 2, this program reads up to 1"):
            EpisodeStore(tmp_path, mode=mode)


# Writes episodes 10, 11, ...; with "stop" it announces itself halfway through 11 and hangs there.
_WRITER = """
import sys, time
from pathlib import Path
import worldmodel.data.store as store_module
from worldmodel.data.store import EpisodeStore, _alive

path, first, count, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
template = EpisodeStore(path).read(0)
store = EpisodeStore(path, mode="a")
for episode_id in range(first, first + count):
    if mode == "stop" and episode_id == first + 1:
        def hang(folder):
            print("halfway", flush=True)
            time.sleep(600)
        store_module._flush_tree = hang
    store.write(episode_id, template)
"""


def _start_writer(path, first: int, count: int, mode: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), str(first), str(count), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def test_a_kill_during_a_write_loses_only_that_episode(tmp_path, make_episode):
    EpisodeStore(tmp_path, mode="a").write(0, make_episode(0))
    with _start_writer(tmp_path, 10, 5, "stop") as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"halfway\n"
            drafts = list((tmp_path / "writing").iterdir())
            assert len(drafts) == 1 and (drafts[0] / "frames").is_dir()

            # The writer lives: its draft is invisible to readers and safe from other appenders.
            store = EpisodeStore(tmp_path, mode="a")
            assert store.ids() == [0, 10]
            assert drafts[0].is_dir()
        finally:
            os.kill(writer.pid, signal.SIGKILL)

    assert EpisodeStore(tmp_path).ids() == [0, 10]
    assert drafts[0].is_dir(), "opening for reading must change nothing"
    store = EpisodeStore(tmp_path, mode="a")
    assert not drafts[0].exists()
    store.write(11, make_episode(11))
    assert_equal(store.read(10), make_episode(0))
    assert_equal(store.read(11), make_episode(11))


def test_a_draft_from_another_machine_is_left_alone(tmp_path):
    EpisodeStore(tmp_path, mode="a")
    draft = tmp_path / "writing" / f"{2**22 + 1}@another-machine@00000003-{'0' * 32}"
    draft.mkdir()
    assert EpisodeStore(tmp_path, mode="a").ids() == []
    assert draft.is_dir()


def test_two_processes_append_at_once(tmp_path, make_episode):
    EpisodeStore(tmp_path, mode="a").write(0, make_episode(0))
    writers = [_start_writer(tmp_path, first, 10, "run") for first in (100, 200)]
    while any(writer.poll() is None for writer in writers):
        store = EpisodeStore(tmp_path)
        for episode_id in store.ids():  # A reader meets whole episodes only.
            assert len(store.read_proprio(episode_id)) == 6
        time.sleep(0.01)
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    store = EpisodeStore(tmp_path)
    assert store.ids() == [0, *range(100, 110), *range(200, 210)]
    assert_equal(store.read(205), make_episode(0))


def test_two_processes_writing_the_same_id_leave_one_episode(tmp_path, make_episode):
    EpisodeStore(tmp_path, mode="a").write(0, make_episode(0))
    writers = [_start_writer(tmp_path, 100, 8, "run") for _ in range(2)]
    codes = []
    for writer in writers:
        with writer:
            codes.append(writer.wait())
    assert sorted(codes) == [0, 1]
    store = EpisodeStore(tmp_path)
    for episode_id in store.ids():
        assert_equal(store.read(episode_id), make_episode(0))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="zombies are told by /proc")
def test_a_zombie_writer_counts_as_dead_and_a_running_one_as_alive():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert _alive(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
        os.kill(process.pid, 0)  # the system still knows it
        assert not _alive(process.pid)
    assert not _alive(process.pid)
