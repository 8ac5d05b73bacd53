"""What holds for every format: recordings written by that format's rules are read right."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from worldmodel.data.convert import convert
from worldmodel.data.episode import Episode, find_problems
from worldmodel.data.formats import FORMATS, reader_class, reader_of
from worldmodel.data.frames import LazyFrames
from worldmodel.data.rotations import angle_between
from worldmodel.data.source import Source, open_source
from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix

HZ = 15.0
ROWS = (17, 24, 12)

# What a format says of a recording beyond poses, joints and frames.
SAYS = {
    "zarr_store": {"times", "task", "success"},
    "lerobot": {"task", "success"},
    "rlds": {"task", "success"},
    "droid_raw": {"times", "task", "success"},
    "replay_buffer": {"times"},
    "robomimic": set(),
    "swm_hdf5": set(),
    "hdf5": {"times", "task", "success"},
    "folder": {"times"},
}


@dataclass(frozen=True)
class Written:
    """Recordings in one format, and what is known of them."""

    format: str
    path: Path
    mapping: Path | None
    truths: list[Any]

    def open(self) -> Source:
        return open_source(self.path, mapping=self.mapping)


@pytest.fixture(scope="session")
def write(tmp_path_factory, truth, writers) -> Callable[[str], Written]:
    """Writes the recordings in a format; once in a session, so tests must not change them."""
    truths = [truth.make_truth(k, rows=rows, hz=HZ, jitter=0.2) for k, rows in enumerate(ROWS)]
    done: dict[str, Written] = {}

    def write(name: str) -> Written:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            (folder / "data").mkdir()
            path = writers[name].write(folder / "data", truths)
            mapping = None
            if hasattr(writers[name], "MAPPING"):
                mapping = folder / "mapping.yaml"
                mapping.write_text(yaml.safe_dump(writers[name].MAPPING))
            done[name] = Written(name, path, mapping, truths)
        return done[name]

    return write


@pytest.fixture(params=FORMATS)
def written(request, write) -> Written:
    return write(request.param)


@pytest.fixture
def source(written) -> Source:
    return written.open()


def number_of(truth: ModuleType, episode: Episode) -> int:
    """Which recording an episode is, by what its first frame shows."""
    return truth.label(next(iter(episode.frames.values()))[0])[1]


def pairs(truth: ModuleType, written: Written, source: Source) -> Iterator[tuple[Episode, Any]]:
    """Each episode with the recording it must be."""
    for episode_id in source.ids():
        episode = source.read(episode_id)
        yield episode, written.truths[number_of(truth, episode)]


def assert_frames_are(truth: ModuleType, episode: Episode, number: int) -> None:
    """Every frame of every camera, one by one, is the one that belongs there."""
    for camera, frames in episode.frames.items():
        rows = len(frames)
        kind = "wrist" if "wrist" in camera else "exterior"
        expected = np.stack(
            [np.arange(rows), np.full(rows, number), np.full(rows, truth.CAMERA_CODE[kind])], axis=1
        )
        np.testing.assert_array_equal(truth.labels(frames[:]), expected, err_msg=camera)


def test_every_format_has_a_writer_and_says_what_it_can(writers):
    assert set(writers) == set(FORMATS) == set(SAYS)


def test_a_format_is_found_from_the_path(written):
    assert reader_of(written.path).format == written.format
    others = [name for name in FORMATS if name != written.format]
    earlier = others[: FORMATS.index(written.format)]
    assert not [name for name in earlier if reader_class(name).recognises(written.path)]
    reader = reader_class(written.format)
    assert reader.format == written.format and reader.title and reader.looked_for


def test_all_recordings_are_there_under_ascending_ids(truth, written, source):
    ids = list(source.ids())
    assert ids == sorted(set(ids)) and len(source) == len(ids) == len(ROWS)
    assert ids == list(written.open().ids())
    numbers = [number_of(truth, source.read(episode_id)) for episode_id in ids]
    assert sorted(numbers) == [0, 1, 2]
    assert numbers == [number_of(truth, written.open().read(episode_id)) for episode_id in ids]


def test_poses_and_joints_are_right(truth, written, source):
    for episode, known in pairs(truth, written, source):
        assert len(episode.proprio) == len(known.times)
        proprio = episode.proprio.astype(np.float64)
        np.testing.assert_allclose(proprio[:, POSITION], known.position, atol=2e-6)
        np.testing.assert_allclose(proprio[:, GRIPPER][:, 0], known.gripper, atol=2e-6)
        turned = angle_between(euler_to_matrix(proprio[:, ROTATION]), known.rotation)
        assert turned.max() < 5e-6
        assert episode.joints is not None
        np.testing.assert_allclose(episode.joints, known.joints, atol=2e-6)
        for values in episode.logged_actions.values():
            assert values.dtype == np.float32 and len(values) == len(known.times)


def test_episodes_are_valid(source):
    for episode_id in source.ids():
        assert find_problems(source.read(episode_id)) == []


def test_times_are_measured_or_declared_and_say_which(truth, written, source):
    for episode, known in pairs(truth, written, source):
        seconds = episode.timestamps - episode.timestamps[0]
        if "times" in SAYS[written.format]:
            assert episode.metadata.clock == "measured"
            # Milliseconds are the coarsest clock among the formats.
            np.testing.assert_allclose(seconds, known.times - known.times[0], atol=1.01e-3)
        else:
            assert episode.metadata.clock == "declared"
            assert episode.metadata.control_hz == HZ
            np.testing.assert_allclose(seconds, np.arange(len(seconds)) / HZ, atol=1e-6)


def test_task_and_success_are_kept_where_the_format_has_them(truth, written, source):
    says = SAYS[written.format]
    for episode, known in pairs(truth, written, source):
        assert episode.metadata.task == (known.task if "task" in says else "")
        assert episode.metadata.success is (known.success if "success" in says else None)
        assert episode.metadata.name


def test_every_frame_is_the_one_asked_for(truth, written, source):
    for episode, known in pairs(truth, written, source):
        assert len(episode.frames) == 2
        assert_frames_are(truth, episode, known.number)


def test_frames_come_in_any_order_and_more_than_once(truth, source):
    rng = np.random.default_rng(0)
    for episode_id in source.ids():
        for frames in source.read(episode_id).frames.values():
            n = len(frames)
            chosen = rng.integers(0, n, 25)
            assert truth.labels(frames[chosen])[:, 0].tolist() == chosen.tolist()
            assert truth.labels(frames[chosen - n])[:, 0].tolist() == chosen.tolist()
            assert truth.labels(frames[::-3])[:, 0].tolist() == list(range(n))[::-3]
            assert truth.label(frames[n - 1])[0] == truth.label(frames[-1])[0] == n - 1
            assert frames[n:].shape == (0, *frames.shape[1:])
            for outside in (n, -n - 1, np.array([0, n])):
                with pytest.raises(IndexError):
                    frames[outside]


def test_pixels_are_close_to_those_recorded(truth, written, source):
    """A swap of red and blue would be 40 levels; compression takes a few."""
    for episode, known in pairs(truth, written, source):
        for camera, frames in episode.frames.items():
            recorded = known.frames["wrist" if "wrist" in camera else "exterior"]
            assert frames.shape == recorded.shape
            assert np.abs(frames[:].astype(float) - recorded).mean() < 6


def test_reading_an_episode_decodes_no_more_than_one_image_a_camera(written, monkeypatch):
    decoded = []
    imdecode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *a: decoded.append(a) or imdecode(*a))

    def fetch(self: LazyFrames, indices: np.ndarray) -> np.ndarray:
        raise AssertionError(f"{self} was asked for frames {indices}")

    kinds = [LazyFrames]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if "fetch" in vars(kind):
            monkeypatch.setattr(kind, "fetch", fetch)
    source = written.open()
    for episode_id in source.ids():
        decoded.clear()
        episode = source.read(episode_id)
        assert all(isinstance(frames, LazyFrames) for frames in episode.frames.values())
        assert len(decoded) <= len(episode.frames)


def test_reading_twice_gives_the_same(source):
    for episode_id in source.ids():
        first, second = source.read(episode_id), source.read(episode_id)
        assert first.metadata == second.metadata
        np.testing.assert_array_equal(first.proprio, second.proprio)
        np.testing.assert_array_equal(first.timestamps, second.timestamps)
        for camera in first.frames:
            np.testing.assert_array_equal(first.frames[camera][:], second.frames[camera][:])


@pytest.mark.parametrize("absent", [-1, 3, 10**6])
def test_an_episode_that_is_not_there_is_a_key_error(source, absent):
    with pytest.raises(KeyError, match=str(absent)):
        source.read(absent)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed by /proc")
def test_no_file_stays_open(written):
    source = written.open()
    for episode_id in source.ids():
        episode = source.read(episode_id)
        for frames in episode.frames.values():
            frames[np.array([len(frames) - 1, 0])]
    assert not [file for file in open_files() if file.startswith(str(written.path.parent))]


def open_files() -> list[str]:
    files = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            files.append(os.readlink(entry))
        except FileNotFoundError:  # that of this very listing
            continue
    return files


@pytest.fixture(scope="session")
def elsewhere(write, tmp_path_factory) -> Mapping[str, object]:
    """Format -> what a fresh interpreter reads with unpickled readers and frames, or its error."""
    file = tmp_path_factory.mktemp("pickles") / "sources.pickle"
    sources = {name: write(name).open() for name in FORMATS}
    frames = {name: source.read(source.ids()[1]).frames for name, source in sources.items()}
    file.write_bytes(pickle.dumps({n: pickle.dumps((sources[n], frames[n])) for n in FORMATS}))
    result = file.with_name("result.pickle")
    subprocess.run([sys.executable, "-c", _READ_ELSEWHERE, str(file), str(result)], check=True)
    return pickle.loads(result.read_bytes())


_READ_ELSEWHERE = """
import pickle, sys
import numpy as np
contents = pickle.load(open(sys.argv[1], "rb"))
result = {}
for name, content in contents.items():
    try:
        source, frames = pickle.loads(content)
        episode = source.read(source.ids()[1])
        again = {c: np.asarray(f) for c, f in episode.frames.items()}
        result[name] = (episode.proprio, {c: f[:] for c, f in frames.items()}, again)
    except Exception as error:
        result[name] = repr(error)
with open(sys.argv[2], "wb") as file:
    pickle.dump(result, file)
"""


def test_readers_and_frames_work_in_another_process(written, source, elsewhere):
    found = elsewhere[written.format]
    assert isinstance(found, tuple), found
    proprio, frames, again = found
    episode = source.read(source.ids()[1])
    np.testing.assert_array_equal(proprio, episode.proprio)
    for camera, here in episode.frames.items():
        np.testing.assert_array_equal(frames[camera], here[:])
        np.testing.assert_array_equal(again[camera], here[:])


def test_forked_processes_read_at_once_what_their_parent_has_open(truth, source):
    """As the workers of a data loader do."""
    episodes = [source.read(episode_id) for episode_id in source.ids()]
    for episode in episodes:
        for frames in episode.frames.values():
            frames[[0, -1]]  # whatever is kept between reads, the children inherit

    def read(seed: int, connection: Any) -> None:
        rng = np.random.default_rng(seed)
        wrong = []
        for _ in range(4):
            for episode in episodes:
                for camera, frames in episode.frames.items():
                    chosen = rng.integers(0, len(frames), 3)
                    found = truth.labels(frames[chosen])[:, 0]
                    wrong += [] if (found == chosen).all() else [(camera, chosen, found)]
        connection.send(wrong)

    context = multiprocessing.get_context("fork")
    readers = []
    for seed in range(2):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=read, args=(seed, there))
        process.start()
        there.close()
        readers.append((process, here))
    for process, here in readers:
        assert here.poll(60), "a child did not answer"
        assert here.recv() == []
        here.close()
        process.join()


def test_recordings_survive_conversion_to_a_store_to_lerobot_and_back(
    tmp_path, truth, written, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing crashes here
    sources = [written.open()]
    for name in ("zarr_store", "lerobot", "zarr_store"):
        out = tmp_path / str(len(sources))
        result = convert(sources[-1], out, format=name, progress=False)
        assert (result.converted, result.quarantined) == (len(ROWS), {})
        sources.append(open_source(out))
    for ids in zip(*(source.ids() for source in sources), strict=True):
        first, *copies = (source.read(k) for source, k in zip(sources, ids, strict=True))
        for copy in copies:
            # To the last bit: only pixels are lossy anywhere on the way.
            np.testing.assert_array_equal(copy.proprio, first.proprio)
            np.testing.assert_array_equal(copy.timestamps, first.timestamps)
            np.testing.assert_array_equal(copy.joints, first.joints)
            # LeRobot has one rate for a set, where each of these has its own measured one.
            assert copy.metadata.control_hz == pytest.approx(first.metadata.control_hz, rel=0.05)
            assert replace(copy.metadata, control_hz=HZ) == replace(first.metadata, control_hz=HZ)
            assert list(copy.logged_actions) == sorted(first.logged_actions)
            for name, values in first.logged_actions.items():
                np.testing.assert_array_equal(copy.logged_actions[name], values)
        assert_frames_are(truth, copies[-1], number_of(truth, first))
