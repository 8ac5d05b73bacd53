import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldmodel.data import lerobot_writer
from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.data.formats import _lerobot_layout
from worldmodel.data.formats._lerobot_stats import pixel_stats
from worldmodel.data.frames import FrameReadError, LazyFrames
from worldmodel.data.lerobot_writer import LeRobotWriter, write_lerobot
from worldmodel.data.source import open_source

HZ = 15.0


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


truth = _load(Path(__file__).parent / "formats" / "truth.py")


def recorded(number: int, *, rows: int | None = None, hz: float = HZ) -> Episode:
    """A full episode of a known recording, 20 + number rows unless told otherwise."""
    rows = 20 + number if rows is None else rows
    made = truth.make_truth(number, rows=rows, height=64, width=96, hz=hz, jitter=0.05)
    rng = np.random.default_rng(number)
    return Episode(
        frames=made.frames,
        proprio=made.proprio.astype(np.float32),
        timestamps=made.times,
        joints=made.joints.astype(np.float32),
        logged_actions={
            "velocity": rng.normal(size=(rows, 7)).astype(np.float32),
            "grip": rng.normal(size=(rows, 1)).astype(np.float32),
        },
        usable=rng.random(rows) < 0.8,
        metadata=EpisodeMetadata(
            source="simulation",
            task=made.task,
            behaviour="scripted",
            seed=number,
            control_hz=hz,
            renderer="ray",
            mujoco_version="3.5.0",
            cameras=tuple(made.frames),
            name=f"monday/{number}",
            success=made.success,
        ),
    )


def assert_same(read: Episode, written: Episode) -> None:
    """To the last bit, but for the frames, whose labels must be the same."""
    for name in ("proprio", "timestamps", "joints", "usable", "actions"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name)
        assert getattr(read, name).dtype == getattr(written, name).dtype
    assert read.metadata == written.metadata
    assert set(read.logged_actions) == set(written.logged_actions)
    for name, values in written.logged_actions.items():
        np.testing.assert_array_equal(read.logged_actions[name], values)
    for camera, frames in written.frames.items():
        np.testing.assert_array_equal(
            truth.labels(read.frames[camera][:]), truth.labels(np.asarray(frames))
        )


def assert_holds(path: Path, numbers: range | list[int]) -> None:
    source = open_source(path)
    assert list(source.ids()) == list(range(len(numbers)))
    for episode_id, number in enumerate(numbers):
        assert_same(source.read(episode_id), recorded(number))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three episodes fill a Parquet file."""
    monkeypatch.setattr(lerobot_writer, "PART_ROWS", 50)


@pytest.mark.usefixtures("small_parts")
def test_round_trip_over_several_files_and_writers(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "set", map(recorded, range(4)))
    with LeRobotWriter(path) as writer:
        assert len(writer) == 4
        assert [writer.add(recorded(n)) for n in (4, 5)] == [4, 5]
    assert_holds(path, range(6))
    assert len(list((path / "data").rglob("*.parquet"))) == 2
    assert not (path / "writing").exists()
    # A writer that did it in one go gives the same tables and statistics.
    again = write_lerobot(tmp_path / "again", map(recorded, range(6)))
    for file in sorted((again / "meta").rglob("*.json")):
        ours = json.loads((path / file.relative_to(again)).read_text())
        np.testing.assert_equal(ours, json.loads(file.read_text()))
    for file in sorted(again.rglob("*.parquet")):
        assert pq.read_table(file).equals(pq.read_table(path / file.relative_to(again)))


def test_one_folder_has_no_more_files_than_lerobot_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lerobot_layout, "CHUNK_FILES", 2)
    monkeypatch.setattr(lerobot_writer, "PART_ROWS", 20)
    path = write_lerobot(tmp_path / "set", map(recorded, range(3)))
    assert (path / "videos/observation.images.wrist/chunk-001/file-000.mp4").is_file()
    assert (path / "data/chunk-001/file-000.parquet").is_file()
    assert_holds(path, range(3))


def test_angles_come_back_in_the_form_they_had(tmp_path: Path) -> None:
    episode = recorded(0)
    proprio = episode.proprio.copy()
    proprio[:, 3:6] = 0.5, 2.5, -3.0  # the same rotation as other angles with less pitch
    episode = replace(episode, proprio=proprio)
    assert_same(open_source(write_lerobot(tmp_path / "set", [episode])).read(0), episode)


def test_columns_of_a_set(tmp_path: Path) -> None:
    episode = recorded(0)
    path = write_lerobot(tmp_path / "set", [episode])
    raw = open_source(path).raw(0)
    action = raw.columns["action"]
    np.testing.assert_array_equal(action[:-1], episode.actions)
    assert (action[-1] == 0).all()
    np.testing.assert_allclose(raw.columns["timestamp"], np.arange(20) / HZ, atol=1e-6)
    assert raw.columns["timestamp"].dtype == np.float32
    info = json.loads((path / "meta" / "info.json").read_text())
    state = info["features"]["observation.state"]
    assert state["names"] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper_closed"]
    assert info["fps"] == 15 and isinstance(info["fps"], int)


def test_set_that_lost_our_key_is_still_understood_by_its_names(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "set", [recorded(0)])
    file = path / "meta" / "info.json"
    info = json.loads(file.read_text())
    del info["worldmodel"]  # LeRobot's tools that edit sets drop what they do not know
    file.write_text(json.dumps(info))
    source = open_source(path)
    np.testing.assert_allclose(source.read(0).proprio, recorded(0).proprio, atol=1e-6)
    assert any("gripper_closed" in note for note in source.reader.notes)
    with pytest.raises(ValueError, match="was not written here"):
        LeRobotWriter(path)


def test_statistics_are_those_of_all_rows_and_frames(tmp_path: Path) -> None:
    episodes = [recorded(n) for n in range(3)]
    path = write_lerobot(tmp_path / "set", episodes)
    stats = json.loads((path / "meta" / "stats.json").read_text())
    rows = np.concatenate([e.proprio for e in episodes]).astype(np.float64)
    ours = stats["observation.state"]
    np.testing.assert_allclose(ours["mean"], rows.mean(axis=0))
    np.testing.assert_allclose(ours["std"], rows.std(axis=0))
    np.testing.assert_allclose(ours["min"], rows.min(axis=0))
    np.testing.assert_allclose(ours["max"], rows.max(axis=0))
    assert ours["count"] == [len(rows)]
    assert stats["index"]["max"] == [len(rows) - 1]
    pixels = np.concatenate([e.frames["wrist"] for e in episodes]).reshape(-1, 3) / 255
    ours = stats["observation.images.wrist"]
    assert np.shape(ours["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(ours["mean"]), pixels.mean(axis=0))
    np.testing.assert_allclose(np.ravel(ours["std"]), pixels.std(axis=0))
    np.testing.assert_allclose(np.ravel(ours["max"]), pixels.max(axis=0))
    np.testing.assert_allclose(np.ravel(ours["min"]), pixels.min(axis=0))


def test_quantiles_of_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 40, 30, 3), np.uint8)
    ours = pixel_stats(frames)
    for name, q in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        expected = np.quantile(frames.reshape(-1, 3), q, axis=0, method="inverted_cdf") / 255
        np.testing.assert_allclose(ours[name].ravel(), expected)
    assert pixel_stats(np.zeros((500, 4, 400, 3), np.uint8))["count"] == [100]


class _Killed(BaseException):
    pass


@pytest.mark.usefixtures("small_parts")
def test_writer_that_dies_before_any_rename_loses_one_episode_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.replace
    path = tmp_path / "set"
    present = 0
    stopped = 0
    for countdown in range(0, 60, 3):
        left = countdown

        def replace_or_die(self: Path, target: Path) -> Path:
            nonlocal left
            if path in target.parents and target.parent.name != "writing":
                if left == 0:
                    raise _Killed
                left -= 1
            return original(self, target)

        monkeypatch.setattr(Path, "replace", replace_or_die)
        writer = LeRobotWriter(path)
        assert len(writer) == present
        try:
            for number in range(present, present + 2):
                writer.add(recorded(number))
                present += 1
        except _Killed:
            stopped += 1
            os.close(writer._lock)  # the system lets go of what a dead one held
        else:
            writer.close()
        monkeypatch.setattr(Path, "replace", original)
        if present:
            source = open_source(path)
            assert list(source.ids()) == list(range(present))
            last = present - 1
            assert_same(source.read(last), recorded(last))
        if present > 5:
            break
    assert stopped >= 5
    assert_holds(path, range(present))


def test_writer_that_dies_in_the_middle_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lerobot(tmp_path / "set", [recorded(0), recorded(1)])
    original = pq.ParquetWriter.write_table
    for die_at in range(4):  # three row groups of rows, one of meta/episodes
        left = die_at

        def write_or_die(self: pq.ParquetWriter, table: pa.Table) -> None:
            nonlocal left
            if left == 0:
                raise _Killed
            left -= 1
            original(self, table)

        with LeRobotWriter(path) as writer:
            monkeypatch.setattr(pq.ParquetWriter, "write_table", write_or_die)
            with pytest.raises(_Killed):
                writer.add(recorded(2))
            monkeypatch.setattr(pq.ParquetWriter, "write_table", original)
        assert_holds(path, range(2))


WRITE_FOREVER = """
import importlib.util, sys
from worldmodel.data import lerobot_writer
spec = importlib.util.spec_from_file_location("t", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
sys.modules["t"] = tests
spec.loader.exec_module(tests)
lerobot_writer.PART_ROWS = 50
with lerobot_writer.LeRobotWriter(sys.argv[2]) as writer:
    print("ready", flush=True)
    while True:
        number = len(writer)
        writer.add(tests.recorded(number, rows=20))
        print(number, flush=True)
"""


def test_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "set"
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, __file__, str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.stdout.readline()  # the first episode is there
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.communicate()[0].split()]
        source = open_source(path)
        assert len(source) > max(told, default=0)  # what was told to be there is there
        for episode_id in source.ids():
            assert_same(source.read(episode_id), recorded(episode_id, rows=20))
    with LeRobotWriter(path) as writer:
        assert writer.add(recorded(0)) == len(source)
    assert not (path / "writing").exists()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set") as writer:
        with pytest.raises(BlockingIOError, match="another process is writing"):
            LeRobotWriter(tmp_path / "set")
        writer.add(recorded(0))
    LeRobotWriter(tmp_path / "set").close()


class _Broken(LazyFrames):
    def fetch(self, indices: np.ndarray) -> np.ndarray:
        raise FrameReadError("frame 3 is not there")


def test_episode_whose_frames_cannot_be_read_leaves_the_set_as_it_was(tmp_path: Path) -> None:
    episode = recorded(1)
    broken = replace(episode, frames={**episode.frames, "wrist": _Broken((21, 64, 96, 3))})
    with LeRobotWriter(tmp_path / "set") as writer:
        writer.add(recorded(0))
        with pytest.raises(FrameReadError, match="frame 3"):
            writer.add(broken)
        assert writer.add(episode) == 1
    assert_holds(tmp_path / "set", range(2))


def _cropped(episode: Episode, height: int, width: int) -> Episode:
    frames = {c: np.asarray(f)[:, :height, :width] for c, f in episode.frames.items()}
    return replace(episode, frames=frames)


def _renamed(episode: Episode, names: dict[str, str]) -> Episode:
    frames = {names.get(c, c): f for c, f in episode.frames.items()}
    return replace(
        episode, frames=frames, metadata=replace(episode.metadata, cameras=tuple(frames))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: _cropped(e, 63, 95), "63 x 95; video needs even sizes.*62 x 94"),
        (lambda e: _cropped(e, 48, 64), "as h264 video \\(48, 64, 3\\), the set as"),
        (lambda e: replace(e, joints=None), "joint_positions' as absent, the set as float32"),
        (lambda e: replace(e, usable=None), "'usable' as absent"),
        (lambda e: _renamed(e, {"wrist": "hand"}), "hand' as h264 video .*, the set as absent"),
        (lambda e: replace(e, timestamps=e.timestamps[0] + np.arange(20)), "runs at 1 Hz"),
        (
            lambda e: replace(
                e,
                timestamps=np.arange(20) / 10.0,
                metadata=replace(e.metadata, control_hz=10.0),
            ),
            "episode 1 is at 10 Hz, the set at 15",
        ),
        (lambda e: replace(e, proprio=e.proprio * np.float32(np.nan)), "not finite"),
    ],
)
def test_episode_that_does_not_fit(
    tmp_path: Path, change: Callable[[Episode], Episode], message: str
) -> None:
    with LeRobotWriter(tmp_path / "set") as writer:
        writer.add(recorded(0))
        with pytest.raises(ValueError, match=message):
            writer.add(change(recorded(0)))
    assert_holds(tmp_path / "set", [0])


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="holds something else"):
        LeRobotWriter(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        LeRobotWriter(tmp_path / "holiday.jpg")
    with pytest.raises(ValueError, match="libx264, libsvtav1"):
        LeRobotWriter(tmp_path / "set", codec="h264")
    with pytest.raises(ValueError, match="no episodes to write"):
        write_lerobot(tmp_path / "set", [])


def test_av1(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "set", [recorded(0)], codec="libsvtav1")
    assert_holds(path, [0])
    info = json.loads((path / "meta" / "info.json").read_text())
    feature = info["features"]["observation.images.wrist"]
    assert feature["info"]["video.codec"] == "av1"
    with LeRobotWriter(path) as writer, pytest.raises(ValueError, match="h264 .* the set as av1"):
        writer.add(recorded(1))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("hz", [15.0, 7.5])
def test_lerobot_itself_reads_what_we_wrote(tmp_path: Path, hz: float) -> None:
    """In an environment with lerobot 0.4, as `tests/data/golden/make_lerobot.py` says."""
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    written = [recorded(n, hz=hz) for n in range(4)]
    path = write_lerobot(tmp_path / "set", written)
    camera = "observation.images.exterior"
    dataset = module.LeRobotDataset(
        "ours/set",
        root=path,
        delta_timestamps={camera: [0, 1 / hz], "observation.state": [0, 1 / hz]},
    )
    assert dataset.num_episodes == 4 and dataset.meta.fps == hz
    index = 0
    for number, episode in enumerate(written):
        for row in range(len(episode.proprio)):
            item, last = dataset[index], len(episode.proprio) - 1
            index += 1
            frames = (item[camera].numpy().transpose(0, 2, 3, 1) * 255).astype(np.uint8)
            after = min(row + 1, last)
            assert truth.labels(frames)[:, :2].tolist() == [[row, number], [after, number]]
            np.testing.assert_array_equal(item["observation.state"], episode.proprio[[row, after]])
            expected = episode.actions[row] if row < last else np.zeros(7)
            np.testing.assert_array_equal(item["action"], expected)
            assert item["task"] == episode.metadata.task
            assert (item["episode_index"], item["frame_index"]) == (number, row)
    assert index == len(dataset)


@pytest.mark.usefixtures("small_parts")
def test_lerobot_itself_opens_what_a_dying_writer_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    original = Path.replace
    for die_at in range(1, 7):  # two videos, rows, episodes, statistics, information
        path = write_lerobot(tmp_path / f"set{die_at}", [recorded(0), recorded(1)])
        left = die_at

        def replace_or_die(self: Path, target: Path, path: Path = path) -> Path:
            nonlocal left
            if path in target.parents and target.parent.name != "writing":
                left -= 1
                if left == 0:
                    raise _Killed
            return original(self, target)

        writer = LeRobotWriter(path)
        monkeypatch.setattr(Path, "replace", replace_or_die)
        with pytest.raises(_Killed):
            writer.add(recorded(3))
        monkeypatch.setattr(Path, "replace", original)
        dataset = module.LeRobotDataset("ours/set", root=path)
        assert len(dataset) == 41 and dataset.num_episodes == 2
        assert dataset[40]["frame_index"] == 20 and dataset[40]["episode_index"] == 1
