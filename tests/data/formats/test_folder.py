import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.episode import find_problems
from worldmodel.data.formats.folder import Reader, natural, read_table
from worldmodel.data.frames import FrameReadError
from worldmodel.data.mapping import mapping_from
from worldmodel.data.rotations import angle_between
from worldmodel.data.source import open_source
from worldmodel.franka_arm import hand_pose
from worldmodel.pose import euler_to_matrix

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_logs"


@pytest.fixture
def writer(writers):
    return writers["folder"]


@pytest.fixture
def written(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=12 + k) for k in range(3)]
    return writer.write(tmp_path, truths), truths


def test_episodes_come_back_from_csv_video_and_images(written, truth, writer):
    path, truths = written
    source = open_source(path, mapping=mapping_from(writer.MAPPING))
    assert source.format == "folder" and list(source.ids()) == [0, 1, 2]
    for known in truths:
        episode = source.read(known.number)
        np.testing.assert_allclose(episode.proprio, known.proprio, atol=1e-6)
        np.testing.assert_allclose(episode.joints, known.joints, atol=1e-6)
        np.testing.assert_allclose(episode.timestamps, known.times, atol=1e-5)
        assert episode.usable.all()
        for camera, frames in known.frames.items():
            np.testing.assert_array_equal(
                truth.labels(episode.frames[camera][:]), truth.labels(frames)
            )
        np.testing.assert_array_equal(episode.frames["wrist"][:], known.frames["wrist"])


def test_frames_come_in_any_order_and_after_pickling(written, truth):
    path, truths = written
    reader = pickle.loads(pickle.dumps(Reader(path)))
    cameras = pickle.loads(pickle.dumps(reader.read(1).cameras))
    for key, camera in (("front", "exterior"), ("hand", "wrist")):
        index = np.array([11, 2, 2, 7])
        expected = truth.labels(truths[1].frames[camera][index])
        np.testing.assert_array_equal(truth.labels(cameras[key][index]), expected)


def test_files_may_lie_side_by_side(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=5) for k in range(11)]
    for known in truths:
        start = f"run{known.number}"
        writer.write_csv(tmp_path / f"{start}.csv", known)
        (tmp_path / f"{start}_cam-times.csv").write_text("t\n1\n2\n3\n")
        writer.write_mp4(tmp_path / f"{start}.mp4", known.frames["exterior"])
        writer.write_images(tmp_path / f"{start}_hand_left", known.frames["wrist"])
    reader = Reader(tmp_path)
    assert Reader.recognises(tmp_path) and len(reader.ids()) == 11 and reader.notes == ()
    for known in truths:
        raw = reader.read(known.number)
        assert raw.name == f"run{known.number}"
        assert set(raw.cameras) == {"camera", "hand_left"}
        assert len(raw.columns["t_ms"]) == 5 and len(raw.columns["cam-times.t"]) == 3
        np.testing.assert_array_equal(raw.cameras["hand_left"][:], known.frames["wrist"])
        np.testing.assert_array_equal(truth.labels(raw.cameras["camera"][:])[:, 1], known.number)


def test_a_numbered_table_is_an_episode_of_its_own(tmp_path, truth, writer):
    for name in ("run", "run_2", "run_10"):
        (tmp_path / f"{name}.csv").write_text(f"t\n{len(name)}\n")
        pictures = truth.make_truth(0, rows=2).frames["wrist"]
        writer.write_images(tmp_path / f"{name}_23404442", pictures)  # a camera's serial number
    (tmp_path / "stray_front.mp4").write_bytes(b"")
    reader = Reader(tmp_path)
    assert reader.notes == ("1 belong to no table and were left out: stray_front.mp4",)
    for episode_id, name in enumerate(("run", "run_2", "run_10")):
        raw = reader.read(episode_id)
        assert (raw.name, list(raw.cameras)) == (name, ["23404442"])
        assert raw.columns["t"] == [len(name)]


def test_a_folder_that_is_one_episode_opens(written, writer):
    path, truths = written
    source = open_source(path / "reach_2", mapping=mapping_from(writer.MAPPING))
    np.testing.assert_allclose(source.read(0).proprio, truths[2].proprio, atol=1e-6)


def test_several_tables_come_before_the_names_of_their_columns(tmp_path, truth, writer):
    folder = tmp_path / "ep"
    folder.mkdir()
    np.savez(folder / "state.npz", x=np.arange(3), name=np.array(["a", "b", "c"]))
    np.save(folder / "hand.npy", np.array([(1.0, 2)], [("width", "f4"), ("force", "i4")]))
    (folder / "front_times.csv").write_text("\ufefft, ok\n0.5,true\n1.5,False\n\n")
    writer.write_images(folder / "front", truth.make_truth(0, rows=2).frames["wrist"])
    columns = Reader(tmp_path).read(0).columns
    assert {key: values.tolist() for key, values in columns.items()} == {
        "state.x": [0, 1, 2],
        "hand.width": [1.0],
        "hand.force": [2],
        "front_times.t": [0.5, 1.5],
        "front_times.ok": [1.0, 0.0],
    }


def test_parquet_tables_may_have_lists(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [[1.0, 2.0], [3.0, 4.0]]
    parquet.write_table(
        arrow.table({"t": [0.5, 1.5], "q": rows, "who": ["a", "b"]}), tmp_path / "log.parquet"
    )
    columns = read_table(tmp_path / "log.parquet")
    assert {key: values.tolist() for key, values in columns.items()} == {"t": [0.5, 1.5], "q": rows}
    parquet.write_table(arrow.table({"q": [[1.0], [2.0, 3.0]]}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="log.parquet: rows of 'q' have different sizes"):
        read_table(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,x\n1,2\n3,oops\n", "line 3, column 'x': 'oops' is not a number"),
        ("t,x\n1,2\n3,\n", "line 3, column 'x': '' is not a number"),
        ("t,x\n1,2\n3\n", "line 3: expected 2 cells, got 1"),
        ('t,x\n1,"two\nlines"\n3,4\n', "line 3, column 'x': 'two"),
        ("t,x,t\n1,2,3\n", "line 1: two columns are called 't'"),
        ("1,2\n3,4\n", "line 1: expected the names of the columns"),
        ("", "line 1: expected the names of the columns"),
        ("t;x\n1;2\n", "line 1: expected names separated by ','"),
        ('t,x\n1,"2\n', "cannot be read as CSV"),
    ],
)
def test_broken_csv_says_where(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=f"log.csv,? ?.*{message}"):
        read_table(tmp_path / "log.csv")


@pytest.mark.parametrize("name", ["log.npz", "log.npy", "log.parquet"])
def test_other_broken_tables_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        read_table(tmp_path / name)


def test_an_array_without_names_is_refused(tmp_path):
    np.save(tmp_path / "log.npy", np.zeros((3, 7)))
    with pytest.raises(ValueError, match="log.npy is an array without named fields"):
        read_table(tmp_path / "log.npy")


def test_a_missing_image_is_an_error_and_shifts_no_frames(written):
    path, _ = written
    frames = Reader(path).read(0).cameras["hand"]
    (path / "reach_0" / "hand" / "7.png").unlink()
    with pytest.raises(FrameReadError, match="7.png: cannot read the image"):
        frames[7]
    with pytest.raises(ValueError, match="hand: 6.png is followed by 8.png; expected every number"):
        Reader(path).read(0)


@pytest.mark.parametrize("numbers", [(0, 5, 10, 15), (1712000123, 1712000190, 1712000259)])
def test_images_may_be_numbered_by_steps_or_times(tmp_path, numbers, truth, writer):
    pictures = truth.make_truth(0, rows=len(numbers)).frames["wrist"]
    folder = tmp_path / "ep"
    folder.mkdir()
    (folder / "log.csv").write_text("t\n1\n")
    writer.write_images(folder / "cam", pictures)
    for k, number in reversed(list(enumerate(numbers))):
        (folder / "cam" / f"{k}.png").rename(folder / "cam" / f"frame_{number}.png")
    np.testing.assert_array_equal(Reader(tmp_path).read(0).cameras["cam"][:], pictures)


def test_an_image_of_another_size_is_an_error(written, truth, writer):
    path, _ = written
    other = truth.make_truth(0, rows=2, height=32).frames["wrist"]
    writer.write_images(path / "other", other)
    (path / "other" / "0.png").replace(path / "reach_0" / "hand" / "3.png")
    frames = Reader(path).read(0).cameras["hand"]
    with pytest.raises(FrameReadError, match=r"frame 3: image is \(32, 64, 3\), the first is"):
        frames[:]


def test_a_table_without_video_is_an_error_and_a_video_without_table_is_noted(written):
    path, _ = written
    (path / "reach_1" / "front.mp4").unlink()
    for image in (path / "reach_1" / "hand").iterdir():
        image.unlink()
    (path / "reach_2" / "log.csv").unlink()
    reader = Reader(path)
    assert list(reader.ids()) == [0, 1]
    assert reader.notes == ("1 belong to no table and were left out: reach_2",)
    with pytest.raises(ValueError, match="reach_1: a table but no video"):
        reader.read(1)


def test_two_cameras_of_one_name_are_refused(written):
    path, _ = written
    (path / "reach_0" / "front.avi").write_bytes(b"")
    with pytest.raises(ValueError, match="would both be called 'front'"):
        Reader(path).read(0)


def test_a_misspelt_column_is_told_the_nearest(written, writer):
    mapping = {**writer.MAPPING, "gripper": {"key": "widht_mm", "open": 80, "closed": 0}}
    with pytest.raises(ValueError, match=r"no column 'widht_mm'; did you mean 'width_mm'\?"):
        open_source(written[0], mapping=mapping_from(mapping)).read(0)


def test_a_table_of_another_length_than_the_video_is_named(written, writer):
    path, _ = written
    lines = (path / "reach_0" / "log.csv").read_text().splitlines(keepends=True)
    (path / "reach_0" / "log.csv").write_text("".join(lines[:-4]))
    source = open_source(path, mapping=mapping_from(writer.MAPPING))
    with pytest.raises(ValueError, match="reach_0: rows do not match: pose 8, .*exterior 12"):
        source.read(0)


def test_what_is_no_such_folder_is_not_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "table.csv").write_text("t\n1\n")
    assert not Reader.recognises(tmp_path)
    assert not Reader.recognises(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no episodes; expected folders, each with a table"):
        Reader(tmp_path / "empty")


def test_names_are_sorted_as_people_do():
    names = ["ep10", "ep2", "2ep", "ep2b", "ep"]
    assert sorted(names, key=natural) == ["2ep", "ep", "ep2", "ep2b", "ep10"]


def test_the_example_reads_to_the_end(tmp_path):
    """Poses at the camera's times, checked against the joints of the same logs."""
    made = [sys.executable, EXAMPLE / "make_example.py", tmp_path / "logs"]
    subprocess.run(made, check=True, capture_output=True)
    source = open_source(tmp_path / "logs", mapping=EXAMPLE / "mapping.yaml")
    assert source.format == "folder" and len(source) == 8
    for episode_id in source.ids():
        episode = source.read(episode_id)
        assert find_problems(episode) == []
        assert episode.frames["exterior"][:].shape == (episode.steps + 1, 120, 160, 3)
        assert 1 / np.median(np.diff(episode.timestamps)) == pytest.approx(15, abs=0.5)
        position, rotation = hand_pose(episode.joints.astype(np.float64))
        np.testing.assert_allclose(episode.proprio[:, :3], position, atol=1e-3)
        euler = episode.proprio[:, 3:6].astype(np.float64)
        assert angle_between(euler_to_matrix(euler), rotation).max() < 1e-3
        assert episode.proprio[0, 6] < 0.1 and episode.proprio[:, 6].max() > 0.98
