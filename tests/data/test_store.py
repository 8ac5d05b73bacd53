import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs.zstd
import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import worldmodel.data.store as store_module
from worldmodel.data import stored_arrays
from worldmodel.data.durable import alive
from worldmodel.data.episode import Episode
from worldmodel.data.frames import FrameReadError, LazyFrames
from worldmodel.data.source import open_source
from worldmodel.data.store import EpisodeStore


def assert_equal(a: Episode, b: Episode) -> None:
    assert a.metadata == b.metadata
    assert list(a.frames) == list(b.frames)
    assert set(a.logged_actions) == set(b.logged_actions)
    arrays = [(a.frames[c][:], b.frames[c][:]) for c in a.frames]
    arrays += [(a.logged_actions[name], b.logged_actions[name]) for name in a.logged_actions]
    arrays += [(a.proprio, b.proprio), (a.actions, b.actions), (a.timestamps, b.timestamps)]
    for left, right in ((a.joints, b.joints), (a.usable, b.usable)):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            arrays.append((left, right))
    for left, right in arrays:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def plain(episode: Episode, *, value: int | None = None) -> Episode:
    """The same episode with frames of one colour each, which zstd makes much smaller."""
    frames = {}
    for camera, pixels in episode.frames.items():
        colours = np.asarray(pixels)[:, :1, :1] if value is None else np.uint8(value)
        frames[camera] = np.zeros(pixels.shape, np.uint8) + colours
    return replace(episode, frames=frames)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(store_module, "RAW_CHUNK_BYTES", 4 * 16 * 16 * 3)
    monkeypatch.setattr(store_module, "ZSTD_CHUNK_BYTES", 4 * 16 * 16 * 3)
    monkeypatch.setattr(stored_arrays, "_MAPPED_BYTES", 1000)


def codecs(store: EpisodeStore, episode_id: int) -> list[str]:
    file = store.path / f"episodes/{episode_id:08d}/frames/exterior/zarr.json"
    return [codec["name"] for codec in json.loads(file.read_text())["codecs"]]


def chunk_files(store: EpisodeStore, episode_id: int) -> list[Path]:
    folder = store.path / f"episodes/{episode_id:08d}/frames/exterior/c"
    return sorted(file for file in folder.rglob("*") if file.is_file())


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 12),
    size=st.sampled_from([1, 7, 32, 300]),
    cameras=st.sampled_from([("exterior",), ("wrist", "exterior")]),
    noisy=st.booleans(),
    columns=st.booleans(),
)
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path_factory, small_chunks, make_episode, seed, steps, size, cameras, noisy, columns
):
    store = EpisodeStore(tmp_path_factory.mktemp("store") / "episodes", mode="a")
    episode = make_episode(seed, steps=steps, size=size, cameras=cameras)
    if not noisy:
        episode = plain(episode)
    if columns:
        rng = np.random.default_rng(seed)
        episode = replace(
            episode,
            joints=rng.normal(size=(steps + 1, 7)).astype(np.float32),
            usable=rng.random(steps + 1) < 0.5,
            logged_actions={
                "target": rng.normal(size=(steps + 1, 6)).astype(np.float32),
                "open": np.zeros((steps + 1, 1), np.float32),
            },
        )
    store.write(7, episode)
    assert_equal(EpisodeStore(store.path).read(7), episode)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    noisy=st.booleans(),
    index=st.one_of(
        st.integers(-14, 13),
        st.slices(14),
        st.lists(st.integers(-14, 13), max_size=20).map(lambda rows: np.array(rows, np.int64)),
    ),
)
def test_any_frames_are_those_that_numpy_would_choose(
    tmp_path_factory, small_chunks, make_episode, noisy, index
):
    store = EpisodeStore(tmp_path_factory.mktemp("store"), mode="a")
    episode = make_episode(steps=13, size=16)
    store.write(0, episode if noisy else plain(episode))
    assert len(chunk_files(store, 0)) > 2
    frames = pickle.loads(pickle.dumps(store.frames(0, "exterior")))
    expected = np.asarray((episode if noisy else plain(episode)).frames["exterior"])[index]
    np.testing.assert_array_equal(frames[index], expected)


def test_only_frames_that_shrink_are_compressed(tmp_path, make_episode):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(size=64)
    store.write(0, episode)
    store.write(1, plain(episode))
    assert codecs(store, 0) == ["bytes"]
    assert codecs(store, 1) == ["bytes", "zstd"]
    assert sum(file.stat().st_size for file in chunk_files(store, 0)) == 6 * 64 * 64 * 3
    for noisy_rows, expected in ((33, ["bytes"]), (31, ["bytes", "zstd"])):  # of 64: half decides
        pixels = np.array(episode.frames["exterior"])
        pixels[:, noisy_rows:] = 7
        store.write(noisy_rows, replace(episode, frames={"exterior": pixels}))
        assert codecs(store, noisy_rows) == expected


def test_a_covered_lens_at_the_start_does_not_make_the_episode_compressed(
    tmp_path, small_chunks, make_episode
):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(steps=13, size=16)
    pixels = np.array(episode.frames["exterior"])
    pixels[:5] = 0
    store.write(0, replace(episode, frames={"exterior": pixels}))
    assert codecs(store, 0) == ["bytes"]


def test_black_frames_are_stored_and_a_lost_chunk_is_no_black_frame(
    tmp_path, small_chunks, make_episode
):
    store = EpisodeStore(tmp_path, mode="a")
    for episode_id, noisy in enumerate((True, False)):
        episode = make_episode(steps=13, size=16)
        episode = replace(episode, usable=np.zeros(14, bool))
        store.write(episode_id, episode if noisy else plain(episode, value=0))
        np.testing.assert_array_equal(store.read(episode_id).usable, np.zeros(14, bool))
        lost = chunk_files(store, episode_id)[1]
        lost.unlink()
        frames = store.frames(episode_id, "exterior")
        frames[:3]
        for look in (lambda f=frames: f[5], lambda i=episode_id: store.read_frames(i, "exterior")):
            with pytest.raises(FrameReadError, match=f"{lost} is missing"):
                look()


def test_damaged_chunks_are_errors_that_name_the_file(tmp_path, small_chunks, make_episode):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(steps=13, size=16)
    store.write(0, episode)
    store.write(1, plain(episode))
    for episode_id in (0, 1):
        file = chunk_files(store, episode_id)[1]
        whole = file.read_bytes()
        frames = store.frames(episode_id, "exterior")
        np.testing.assert_array_equal(frames[5], store.read_frames(episode_id, "exterior")[5])
        for part in (whole[: len(whole) - 10], b""):
            file.write_bytes(part)
            assert frames[0].shape == (16, 16, 3)
            with pytest.raises(FrameReadError, match=str(file)):
                frames[7]
    with pytest.raises(ValueError, match=r"proprio/c/0/0 has 0 bytes of .*, not 392"):
        (tmp_path / "episodes/00000000/proprio/c/0/0").write_bytes(b"")
        store.read_proprio(0)
    file.write_bytes(numcodecs.zstd.compress(bytes(100)))
    with pytest.raises(FrameReadError, match=f"{file} has 100 bytes of .*, not 3072"):
        frames[7]
    (file.parents[4] / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match="not the description of a zarr v3 array .*'shape'"):
        store.frames(1, "exterior")


def test_frames_looked_at_one_by_one_are_decompressed_chunk_by_chunk(
    tmp_path, small_chunks, make_episode, monkeypatch
):
    store = EpisodeStore(tmp_path, mode="a")
    store.write(0, plain(make_episode(steps=13, size=16)))
    decompressed, decompress = [], stored_arrays._decompressed
    monkeypatch.setattr(
        stored_arrays, "_decompressed", lambda file: decompressed.append(file) or decompress(file)
    )
    for frame in range(14):
        store.frames(0, "exterior")[frame]
    assert decompressed == [str(file) for file in chunk_files(store, 0)]


def test_a_chunk_that_was_replaced_is_read_anew(tmp_path, make_episode):
    for seed in range(2):
        store, episode = EpisodeStore(tmp_path, mode="a"), plain(make_episode(seed))
        store.write(0, episode)
        np.testing.assert_array_equal(store.frames(0, "exterior")[:], episode.frames["exterior"])
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"chunks": (2, 8, 8, 3)},  # zeros left out, as in stores of version 1
        {"chunks": (2, 4, 8, 3)},
        {"chunks": (2, 8, 8, 3), "shards": (4, 8, 8, 3)},
        {"chunks": (2, 8, 8, 3), "compressors": zarr.codecs.BloscCodec()},
        {"chunks": (2, 8, 8, 3), "compressors": None, "filters": zarr.codecs.TransposeCodec(
            order=(3, 2, 1, 0))},
    ],
)  # fmt: skip
def test_arrays_of_any_other_kind_are_read_by_zarr(tmp_path, make_episode, settings):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode()
    store.write(0, episode)
    pixels = np.array(episode.frames["exterior"])
    pixels[2:4] = 0
    group = zarr.open_group(tmp_path / "episodes/00000000/frames", mode="a")
    group.create_array("exterior", data=pixels, overwrite=True, **settings)
    frames = pickle.loads(pickle.dumps(EpisodeStore(tmp_path).frames(0, "exterior")))
    np.testing.assert_array_equal(frames[:], pixels)
    np.testing.assert_array_equal(frames[np.array([4, 1, 1])], pixels[[4, 1, 1]])


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


@pytest.mark.parametrize("noisy", [True, False])
def test_other_programs_can_read_the_store_as_plain_zarr(
    tmp_path, small_chunks, make_episode, noisy
):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(3, steps=13, size=16)
    store.write(12, episode if noisy else plain(episode))
    group = zarr.open_group(tmp_path / "episodes", mode="r")
    assert list(group.group_keys()) == ["00000012"]
    frames = group["00000012/frames/exterior"]
    assert isinstance(frames, zarr.Array)
    assert frames.chunks[0] < 14
    np.testing.assert_array_equal(frames[...], store.read(12).frames["exterior"][:])
    assert group["00000012"].attrs["seed"] == 3


def test_a_taken_id_is_refused_and_the_first_episode_stays(tmp_path, make_episode):
    store = EpisodeStore(tmp_path, mode="a")
    store.write(1, make_episode(1))
    with pytest.raises(FileExistsError, match="episode 1 is already in"):
        store.write(1, make_episode(2))
    assert_equal(store.read(1), make_episode(1))
    assert list((tmp_path / "writing").iterdir()) == []


class _EndsEarly(LazyFrames):
    def fetch(self, indices: np.ndarray) -> np.ndarray:
        if indices.max() > 9:
            raise FrameReadError("the video has 10 of 14 frames")
        return np.zeros((len(indices), *self.shape[1:]), np.uint8)


def test_an_invalid_episode_leaves_no_trace(tmp_path, small_chunks, make_episode):
    store, episode = EpisodeStore(tmp_path, mode="a"), make_episode(steps=13, size=16)
    with pytest.raises(ValueError, match="episode 4: timestamps have 13 entries"):
        store.write(4, replace(episode, timestamps=episode.timestamps[1:]))
    with pytest.raises(FrameReadError, match="10 of 14 frames"):
        store.write(4, replace(episode, frames={"exterior": _EndsEarly((14, 16, 16, 3))}))
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
    (tmp_path / "store.json").write_text(json.dumps({"worldmodel_episode_store": 3}))
    for mode in ("r", "a"):
        with pytest.raises(ValueError, match="schema version 3, this program reads up to 2"):
            EpisodeStore(tmp_path, mode=mode)


def _make_version_1(path: Path, episode: Episode) -> None:
    """An episode 0 as the first version of the store wrote it."""
    added = ("name", "success", "robot", "clock")
    metadata = {k: v for k, v in episode.metadata.to_json().items() if k not in added}
    group = zarr.create_group(path / "episodes/00000000", zarr_format=3, attributes=metadata)
    group.create_array(
        "frames/exterior",
        data=np.asarray(episode.frames["exterior"]),
        chunks=(2, *episode.frames["exterior"].shape[1:]),
        compressors=zarr.codecs.ZstdCodec(level=5),
    )
    for name in ("proprio", "actions", "timestamps"):
        array = getattr(episode, name)
        group.create_array(name, data=array, chunks=array.shape, compressors=None)
    (path / "writing").mkdir()
    (path / "store.json").write_text(json.dumps({"worldmodel_episode_store": 1}))


def test_a_store_of_version_1_is_read_and_becomes_version_2_when_written(tmp_path, make_episode):
    first = plain(make_episode(1), value=0)  # as a whole left out by zarr
    _make_version_1(tmp_path, first)
    version = tmp_path / "store.json"
    for mode in ("r", "a"):
        store = EpisodeStore(tmp_path, mode=mode)
        assert_equal(store.read(0), first)
        assert json.loads(version.read_text()) == {"worldmodel_episode_store": 1}
    new = replace(make_episode(2), usable=np.ones(6, bool))
    with pytest.raises(FileExistsError):
        store.write(0, new)
    assert json.loads(version.read_text()) == {"worldmodel_episode_store": 1}
    store.write(1, new)
    assert json.loads(version.read_text()) == {"worldmodel_episode_store": 2}
    assert_equal(EpisodeStore(tmp_path).read(0), first)
    assert_equal(EpisodeStore(tmp_path).read(1), new)


# Prints how many files and folders of a store are opened by looking how many episodes it has.
_OPENED = """
import sys
from pathlib import Path
from worldmodel.data.source import open_source
from worldmodel.data.store import EpisodeStore

path, opened = sys.argv[1], []
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(path):
        opened.append(arguments[0])
sys.addaudithook(watch)
store, source = EpisodeStore(path), open_source(path)
episodes = len(store.ids()) + len(source)
print(len(opened), episodes)
"""


def test_opening_a_store_costs_the_same_however_many_episodes_it_has(tmp_path, make_episode):
    EpisodeStore(tmp_path, mode="a").write(0, make_episode())
    assert open_source(tmp_path).format == "zarr_store"
    counts = []
    for episodes in (1, 500):
        for episode_id in range(1, episodes):
            (tmp_path / f"episodes/{episode_id:08d}").mkdir()
        command = [sys.executable, "-c", _OPENED, str(tmp_path)]
        counts.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (few, one), (many, all_) = (map(int, count.split()) for count in counts)
    assert (one, all_) == (2, 1000)
    assert 0 < few == many < 10


# Writes episodes 10, 11, ...; with "stop" it announces itself halfway through 11 and hangs there.
_WRITER = """
import sys, time
from pathlib import Path
import worldmodel.data.store as store_module
from worldmodel.data import stored_arrays
from worldmodel.data.store import EpisodeStore

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


# For every line on standard input, "<first id> <seconds>", starts a process that writes episodes
# with this and the following ids without end, kills it after so long, and prints the ids that it
# had reported. Without seconds the process ends by itself after two episodes.
_KILLED_WRITERS = """
import json, os, signal, sys, time
import numpy as np
import worldmodel.data.store
from worldmodel.data.episode import Episode, EpisodeMetadata

def episode(seed):
    rng = np.random.default_rng(seed)
    rows = 12
    proprio = rng.uniform(0, 1, (rows, 7)).astype(np.float32)
    frames = rng.integers(0, 256, (rows, 24, 24, 3), np.uint8)
    metadata = EpisodeMetadata("killed", "", "", seed, 4.0, "", "", ("noisy", "plain"))
    pictures = {"noisy": frames, "plain": frames // 255}
    return Episode(pictures, proprio, np.arange(rows) / 4, metadata)

if __name__ == "__main__":
    worldmodel.data.store.RAW_CHUNK_BYTES = worldmodel.data.store.ZSTD_CHUNK_BYTES = 10_000
    for line in sys.stdin:
        first, *seconds = line.split()
        reading, writing = os.pipe()
        writer = os.fork()
        if writer == 0:
            store = worldmodel.data.store.EpisodeStore(sys.argv[1], mode="a")
            for offset in range(200 if seconds else 2):
                store.write(int(first) + offset, episode(int(first) + offset))
                os.write(writing, bytes([offset]))
            os._exit(0)
        os.close(writing)
        if seconds:
            time.sleep(float(seconds[0]))
            os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        reported = [int(first) + offset for offset in os.read(reading, 200)]
        os.close(reading)
        print(json.dumps(reported), flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_at_most_the_episode_in_flight(tmp_path):
    scope: dict[str, Any] = {"__name__": "killed_writers"}
    exec(_KILLED_WRITERS, scope)
    EpisodeStore(tmp_path, mode="a")
    rng, committed, drafts = np.random.default_rng(), set[int](), 0
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED_WRITERS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(order: str) -> list[int]:
            assert process.stdin is not None and process.stdout is not None
            print(order, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        committed |= set(run("0"))
        began = time.monotonic()
        committed |= set(run("1000"))
        two_episodes = max(time.monotonic() - began, 0.25)
        assert len(committed) == 4
        for kill in range(2, 52):
            first = 1000 * kill
            reported = run(f"{first} {rng.uniform(0, two_episodes)}")
            store = EpisodeStore(tmp_path)
            here = [i for i in store.ids() if i >= first]
            # All that was reported is there, and nothing beyond it but the one in flight.
            assert here in (reported, [*reported, first + len(reported)])
            for episode_id in here:
                assert_equal(store.read(episode_id), scope["episode"](episode_id))
            committed |= set(here)
            assert store.ids() == sorted(committed)
            drafts += len(os.listdir(tmp_path / "writing"))
            EpisodeStore(tmp_path, mode="a")
            assert os.listdir(tmp_path / "writing") == []
    assert drafts > 0 and len(committed) > 4, "some moments are within a write, some after one"
    store = EpisodeStore(tmp_path)
    for episode_id in store.ids():
        assert_equal(store.read(episode_id), scope["episode"](episode_id))


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
        assert alive(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
        os.kill(process.pid, 0)  # the system still knows it
        assert not alive(process.pid)
    assert not alive(process.pid)
