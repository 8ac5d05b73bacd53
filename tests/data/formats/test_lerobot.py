import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldmodel.data.formats import reader_of
from worldmodel.data.formats._lerobot_meaning import meaning, names_of
from worldmodel.data.formats.lerobot import Reader
from worldmodel.data.frames import FrameReadError
from worldmodel.data.source import open_source
from worldmodel.data.video_frames import write_video

GOLDEN = Path(__file__).parent.parent / "golden" / "lerobot"
OURS = {"exterior_1_left": "exterior", "wrist_left": "wrist", "exterior": "exterior"}
EXTERIOR = "observation.images.exterior"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, truth: ModuleType, writers: dict[str, ModuleType]
) -> dict[str, Path]:
    truths = [truth.make_truth(n, rows=20 + n) for n in range(3)]
    folder = tmp_path_factory.mktemp("lerobot")
    writer = writers["lerobot"]
    return {
        "v3.0": writer.write(folder / "v30", truths),
        "v2.1": writer.write_v21(folder / "v21", truths),
    }


@pytest.fixture
def copy(tmp_path: Path, written: dict[str, Path]) -> Path:
    """A set of v3.0 to break."""
    return Path(shutil.copytree(written["v3.0"], tmp_path / "copy"))


def edit_info(folder: Path, **changes: object) -> None:
    file = folder / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_table(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file, partitioning=None)), file)


def put(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    """The table with another value in one place."""
    values = table[name].to_pylist()
    values[row] = value
    column = pa.array(values, table.schema.field(name).type)
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize("name", ["v30", "v21", "v30_images"])
def test_what_lerobot_itself_wrote_is_read_exactly(name: str, truth: ModuleType) -> None:
    source = open_source(GOLDEN / name)
    assert source.format == "lerobot" and len(source) == (2 if name == "v30_images" else 3)
    for number in source.ids():
        made = truth.make_truth(number, rows=20, height=64, width=96)
        episode = source.read(number)
        np.testing.assert_allclose(episode.proprio, made.proprio, atol=3e-7)
        np.testing.assert_array_equal(episode.joints, made.joints.astype(np.float32))
        np.testing.assert_allclose(episode.timestamps, np.arange(20) / 15)
        assert episode.metadata.task == made.task
        assert episode.metadata.clock == "declared" and episode.metadata.control_hz == 15
        if name != "v30_images":
            assert episode.metadata.success == made.success
            commanded = episode.logged_actions["action"]
            np.testing.assert_array_equal(commanded[:-1, :7], episode.joints[1:])
        for camera, frames in episode.frames.items():
            expected = truth.labels(made.frames[OURS[camera]])
            np.testing.assert_array_equal(truth.labels(frames[:]), expected)
            np.testing.assert_array_equal(truth.labels(frames[[7, 3, 3]]), expected[[7, 3, 3]])
            assert np.abs(frames[:].astype(int) - made.frames[OURS[camera]]).mean() < 8


def test_golden_videos_are_av1() -> None:
    info = json.loads((GOLDEN / "v30" / "meta" / "info.json").read_text())
    feature = info["features"]["observation.images.wrist_left"]
    assert feature["info"]["video.codec"] == "av1"


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_written_set_is_read(version: str, written: dict[str, Path], truth: ModuleType) -> None:
    source = pickle.loads(pickle.dumps(open_source(written[version])))
    for number in source.ids():
        made, episode = truth.make_truth(number, rows=20 + number), source.read(number)
        np.testing.assert_allclose(episode.proprio, made.proprio, atol=3e-7)
        for camera, frames in made.frames.items():
            np.testing.assert_array_equal(
                truth.labels(episode.frames[camera][:]), truth.labels(frames)
            )


def test_raw_columns_have_the_names_and_types_of_the_set() -> None:
    raw = Reader(GOLDEN / "v30").read(1)
    assert raw.columns["observation.state"].shape == (20, 8)
    assert raw.columns["observation.state"].dtype == np.float32
    assert raw.columns["observation.state.gripper_position"].shape == (20,)
    assert raw.columns["building"].tolist() == ["building 1"] * 20
    assert raw.columns["is_episode_successful"].dtype == bool
    assert raw.columns["episode_index"].tolist() == [1] * 20
    assert list(raw.cameras) == [
        "observation.images.exterior_1_left",
        "observation.images.wrist_left",
    ]
    with pytest.raises(KeyError, match="no episode 3"):
        Reader(GOLDEN / "v30").read(3)


def test_statistics_are_not_read(written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = pq.ParquetFile.read

    def spy(self: pq.ParquetFile, columns: list[str] | None = None) -> pa.Table:
        read.extend(columns or self.schema_arrow.names)
        return original(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", spy)
    Reader(written["v3.0"])
    assert "length" in read and not [name for name in read if name.startswith("stats/")]


@pytest.mark.parametrize(
    ("version", "advice"),
    [("v1.6", "convert it"), ("v2.0", "convert it"), ("v4.0", "update worldmodel")],
)
def test_other_versions(copy: Path, version: str, advice: str) -> None:
    edit_info(copy, codebase_version=version)
    with pytest.raises(ValueError, match=f"codebase_version is {version}.*{advice}"):
        Reader(copy)


def test_broken_info(copy: Path) -> None:
    file = copy / "meta" / "info.json"
    assert reader_of(copy).format == "lerobot"
    content = json.loads(file.read_text())
    del content["fps"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"info\.json lacks 'fps'"):
        Reader(copy)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"info\.json cannot be read as JSON"):
        Reader(copy)


def test_video_at_another_rate_than_the_rows(copy: Path) -> None:
    features = json.loads((copy / "meta" / "info.json").read_text())["features"]
    features[EXTERIOR]["info"]["video.fps"] = 30
    edit_info(copy, features=features)
    with pytest.raises(ValueError, match="at 15 fps, but the videos of .*exterior at 30"):
        Reader(copy)


def test_missing_video(copy: Path) -> None:
    (copy / "videos" / EXTERIOR / "chunk-000" / "file-001.mp4").unlink()
    reader = Reader(copy)
    reader.read(1)
    with pytest.raises(ValueError, match=r"file-001\.mp4 is missing.*exterior of episode 2"):
        reader.read(2)


def test_camera_that_was_not_downloaded_is_left_out_and_said(copy: Path) -> None:
    shutil.rmtree(copy / "videos" / EXTERIOR)
    source = open_source(copy)
    assert list(source.read(0).frames) == ["wrist"]
    assert any(EXTERIOR in note for note in source.reader.notes)


def test_video_shorter_than_described(copy: Path, truth: ModuleType) -> None:
    file = copy / "videos" / EXTERIOR / "chunk-000" / "file-001.mp4"
    write_video(file, truth.make_truth(2, rows=15).frames["exterior"], hz=15, gop=2)
    with pytest.raises(FrameReadError, match=r"file-001\.mp4 has 15 frames"):
        Reader(copy).read(2)


def test_rows_that_do_not_match_the_length(copy: Path) -> None:
    edit_table(copy / EPISODES, lambda t: put(t, "length", 1, 25))
    with pytest.raises(ValueError, match=r"file-000\.parquet has 21 rows of episode 1.*says 25"):
        Reader(copy).read(1)


def test_rows_out_of_order(copy: Path) -> None:
    edit_table(copy / DATA, lambda t: put(t, "frame_index", 25, 3))
    reader = Reader(copy)
    reader.read(0)
    with pytest.raises(ValueError, match=r"frame_index of episode 1 is not 0 to 20"):
        reader.read(1)


def test_missing_and_broken_parquet(copy: Path) -> None:
    reader = Reader(copy)
    whole = (copy / DATA).read_bytes()
    (copy / DATA).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"file-000\.parquet cannot be read"):
        reader.read(0)
    (copy / DATA).unlink()
    with pytest.raises(ValueError, match=r"file-000\.parquet is missing"):
        reader.read(0)
    shutil.rmtree(copy / "meta" / "episodes")
    with pytest.raises(ValueError, match="no Parquet files"):
        Reader(copy)


def test_column_that_is_declared_but_not_there(copy: Path) -> None:
    edit_table(copy / DATA, lambda t: t.drop_columns(["action"]))
    with pytest.raises(ValueError, match=r"lacks the columns \['action'\]"):
        Reader(copy).read(0)


def test_column_of_another_shape(copy: Path) -> None:
    features = json.loads((copy / "meta" / "info.json").read_text())["features"]
    features["action"]["shape"] = [9]
    edit_info(copy, features=features)
    with pytest.raises(ValueError, match=r"column action: 160 numbers in 20 rows.*\(20, 9\)"):
        Reader(copy).read(0)


def test_episode_that_begins_between_frames(copy: Path) -> None:
    name = f"videos/{EXTERIOR}/from_timestamp"
    edit_table(copy / EPISODES, lambda t: put(t, name, 1, 20.5 / 15))
    with pytest.raises(ValueError, match="frame 20.50 at 15 fps"):
        Reader(copy).read(1)


def test_begin_that_is_a_sum_of_many_floats(copy: Path, truth: ModuleType) -> None:
    name = f"videos/{EXTERIOR}/from_timestamp"
    edit_table(copy / EPISODES, lambda t: put(t, name, 1, 20 / 15 - 1e-7))
    frames = Reader(copy).read(1).cameras[EXTERIOR]
    assert truth.labels(frames[:])[:, :2].tolist() == [[k, 1] for k in range(21)]


def test_episodes_that_claim_the_same_frames(copy: Path) -> None:
    name = f"videos/{EXTERIOR}/from_timestamp"
    edit_table(copy / EPISODES, lambda t: put(t, name, 1, 18 / 15))
    with pytest.raises(ValueError, match="episodes 1 and 0 both claim frames"):
        Reader(copy).read(1)


def test_fewer_episodes_described_than_counted(copy: Path) -> None:
    edit_info(copy, total_episodes=4)
    with pytest.raises(ValueError, match="says 4 episodes, but 3 are described"):
        Reader(copy)


def test_episodes_beyond_those_counted_do_not_exist(copy: Path) -> None:
    edit_info(copy, total_episodes=2)
    assert list(Reader(copy).ids()) == [0, 1]


def test_tasks_in_lines_in_v30(copy: Path) -> None:
    (copy / "meta" / "tasks.parquet").unlink()
    with pytest.raises(ValueError, match=r"tasks\.jsonl is missing"):
        Reader(copy)
    lines = [json.dumps({"task_index": n, "task": f"task {n}"}) for n in range(2)]
    (copy / "meta" / "tasks.jsonl").write_text("\n".join(lines))
    reader = Reader(copy)
    assert reader.read(1).attributes["task"] == "task 1"
    with pytest.raises(ValueError, match="no task_index 2"):
        reader.read(2)
    (copy / "meta" / "tasks.jsonl").write_text('{"task_index": 0}')
    with pytest.raises(ValueError, match=r"tasks\.jsonl, line 1: expected .* task, got"):
        Reader(copy)


def test_several_tasks_in_one_episode(copy: Path) -> None:
    edit_table(copy / DATA, lambda t: put(t, "task_index", 5, 2))
    assert Reader(copy).read(0).attributes["task"] == "put the cup on the plate; wipe the table"


@pytest.mark.parametrize(("shift", "clock"), [(0.0, "declared"), (4e-3, "measured")])
def test_clock(copy: Path, shift: float, clock: str) -> None:
    edit_table(copy / DATA, lambda t: put(t, "timestamp", 3, 3 / 15 + shift))
    episode = open_source(copy).read(0)
    assert episode.metadata.clock == clock
    assert episode.timestamps[3] == pytest.approx(3 / 15 + shift, abs=1e-6)


def described(names: list[str] | None, robot: str | None = "so100") -> dict:
    state = {"dtype": "float32", "shape": [len(names or [])], "names": names}
    return {"robot_type": robot, "features": {"observation.state": state, "action": state}}


JOINTS = [f"joint_{k}" for k in range(7)]


def test_meaning_by_names() -> None:
    names = ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper_open"]
    mapping, why = meaning(described(names), cameras=["observation.image"], measured=False)
    assert mapping is not None and mapping.rotation is not None
    assert mapping.rotation.form == "quat_xyzw"
    assert mapping.rotation.key == ("observation.state[3:7]",)
    assert mapping.gripper.key == ("observation.state[7]",)
    assert (mapping.gripper.open, mapping.gripper.closed) == (1.0, 0.0)
    assert list(mapping.cameras) == ["image"] and mapping.robot == "so100"
    assert mapping.actions == {"action": ("action",)}
    assert "qw, gripper_open" in why


def test_joints_of_a_franka_give_its_pose_and_of_another_arm_do_not() -> None:
    names = [*JOINTS, "gripper"]
    franka, why = meaning(described(names, "Franka"), cameras=["a"], measured=True)
    assert franka is not None and franka.pose_from_joints == "franka"
    assert franka.time is not None and "does not say" in why
    assert meaning(described(names, "ur5e"), cameras=["a"], measured=False)[0] is None
    assert meaning(described(names, None), cameras=["a"], measured=False)[0] is None


@pytest.mark.parametrize(
    "names",
    [
        ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],  # open at 0 or at 1?
        ["x", "y", "z", "rx", "ry", "rz", "gripper_closed"],  # angles, or axis times angle?
        [*JOINTS[:6], "gripper"],
        None,
    ],
)
def test_names_that_leave_something_open_have_no_meaning(names: list[str] | None) -> None:
    found, why = meaning(described(names, "Franka"), cameras=["a"], measured=False)
    assert found is None and "mapping" in why


def test_names_however_nested() -> None:
    assert names_of({"names": {"motors": ["A", "b"]}}) == ("a", "b")
    assert names_of({"names": ["x"]}) == ("x",)
    assert names_of({"names": None}) == () == names_of({"names": "x"}) == names_of({})


def test_set_without_a_meaning_asks_for_a_mapping(copy: Path, tmp_path: Path) -> None:
    edit_info(copy, robot_type="ur5e")
    with pytest.raises(ValueError, match="observation.state: float32 \\(20, 8\\)"):
        open_source(copy)
    file = tmp_path / "mapping.yaml"
    file.write_text(
        "position: {key: 'observation.state.cartesian_position[0:3]'}\n"
        "rotation: {key: 'observation.state.cartesian_position[3:6]'}\n"
        "gripper: {key: observation.state.gripper_position}\n"
        f"cameras: {{front: {EXTERIOR}}}\n"
    )
    episode = open_source(copy, mapping=file).read(0)
    np.testing.assert_array_equal(episode.actions, open_source(GOLDEN / "v30").read(0).actions)
    assert episode.metadata.control_hz == 15
