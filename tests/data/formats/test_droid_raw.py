"""Raw DROID: what its own conventions and its known gaps ask for, beyond the contract suite."""

import json
import shutil

import h5py
import numpy as np
import pytest

from worldmodel.data.episode import find_problems
from worldmodel.data.formats import droid_raw, reader_of
from worldmodel.data.frames import FrameReadError
from worldmodel.data.source import open_source
from worldmodel.data.video_frames import video_info

FOUR = ("exterior_1", "exterior_2", "exterior_left", "exterior_right")


@pytest.fixture(scope="session")
def droid(writers):
    return writers["droid_raw"]


@pytest.fixture
def recording(truth):
    return truth.make_truth(0, rows=20, jitter=0.3)


def seen_by_right(truth):
    """What the other camera sees: labelled as another recording."""
    return truth.make_truth(9, rows=20).frames["exterior"]


def shown(truth, frames) -> list[int]:
    return truth.labels(frames[:])[:, 0].tolist()


def test_found_from_every_folder_of_the_layout(truth, droid, tmp_path):
    recordings = [truth.make_truth(k, rows=12) for k in range(3)]
    folders = sorted(droid.write_episode(tmp_path / "all", r) for r in recordings)
    assert ":" in folders[0].name and "_2023" in folders[0].name
    expected = ["/".join(folder.parts[-4:]) for folder in folders]
    for path in (tmp_path, tmp_path / "all", tmp_path / "all/TRI"):
        source = open_source(path)
        assert source.format == "droid_raw" and list(source.ids()) == [0, 1, 2]
        assert [source.raw(k).name for k in source.ids()] == expected
    for folder, name in zip(folders, expected, strict=True):
        source = open_source(folder)
        assert list(source.ids()) == [0] and source.raw(0).name == name
        assert source.raw(0).attributes["success"] is ("/success/" in name)
    with pytest.raises(KeyError, match="no episode 3 .* it has 0 to 2"):
        open_source(tmp_path).raw(3)


def test_other_folders_are_not_droid(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    assert not droid_raw.Reader.recognises(tmp_path)
    (tmp_path / "a/b/trajectory.h5").touch()  # others call theirs so, too
    assert not droid_raw.Reader.recognises(tmp_path)
    assert not droid_raw.Reader.recognises(tmp_path / "a/b/trajectory.h5")
    (tmp_path / "a/b/recordings").mkdir()
    assert droid_raw.Reader.recognises(tmp_path)


def test_recognising_looks_into_few_folders(tmp_path, monkeypatch):
    for k in range(300):
        (tmp_path / f"{k}").mkdir()
    looked = []
    scandir = droid_raw.os.scandir
    monkeypatch.setattr(droid_raw.os, "scandir", lambda path: looked.append(path) or scandir(path))
    assert not droid_raw.Reader.recognises(tmp_path)
    assert len(looked) == droid_raw.MOST_LOOKED_INTO


def test_opening_reads_no_file_and_enters_no_episode(droid, recording, tmp_path, monkeypatch):
    folder = droid.write_episode(tmp_path, recording)
    (folder / "trajectory.h5").write_bytes(b"")
    for metadata in folder.glob("metadata_*"):
        metadata.write_text("")
    looked = []
    scandir = droid_raw.os.scandir
    monkeypatch.setattr(droid_raw.os, "scandir", lambda path: looked.append(path) or scandir(path))
    assert list(droid_raw.Reader(tmp_path).ids()) == [0]
    assert max(map(len, looked)) == len(str(folder))


def test_columns_are_those_of_the_file(droid, recording, tmp_path):
    folder = droid.write_episode(tmp_path, recording)
    raw = open_source(tmp_path).raw(0)
    with h5py.File(folder / "trajectory.h5") as content:
        names = []
        content.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        assert {name.replace("/", ".") for name in names} == set(raw.columns)
        for name in names:
            values = content[name][:]
            np.testing.assert_array_equal(raw.columns[name.replace("/", ".")], values)
            assert raw.columns[name.replace("/", ".")].dtype == values.dtype
    assert raw.attributes == {
        "task": recording.task,
        "success": True,
        "lab": "TRI",
        "version": "1.1",
        "uuid": raw.attributes["uuid"],
        "building": "Main",
        "scene_id": 4711,
    }


def test_time_is_logged_and_not_the_sixty_of_the_header(droid, recording, tmp_path):
    folder = droid.write_episode(tmp_path, recording)
    assert {video_info(file).declared_hz for file in folder.rglob("*.mp4")} == {60.0}
    source = open_source(tmp_path)
    episode = source.read(0)
    np.testing.assert_allclose(episode.timestamps, recording.times, atol=0.51e-3)
    assert episode.metadata.clock == "measured" and episode.metadata.control_hz == 15
    assert find_problems(episode) == []
    assert any("declare 60 frames per second" in note for note in source.reader.notes)


def test_the_golden_action_of_vjepa2_ac(droid, truth, tmp_path):
    """Two states published with V-JEPA 2-AC, and the action that its loader makes of them."""
    states = np.array(
        [
            [0.58043909, -0.00202123, 0.24755727, -3.06661558, 0.03052980, -1.91275120, 0.99697137],
            [0.67280847, 0.02896597, 0.33183685, -3.05143738, 0.01770951, -1.91249502, 0.99697137],
        ]
    )
    folder = droid.write_episode(tmp_path, truth.make_truth(0, rows=2))
    with h5py.File(folder / "trajectory.h5", "a") as content:
        content["observation/robot_state/cartesian_position"][:] = states[:, :6]
        content["observation/robot_state/gripper_position"][:] = states[:, 6]
    expected = [0.09236938, 0.03098720, 0.08427958, -0.01716477, -0.00999905, -0.00002407, 0]
    episode = open_source(tmp_path).read(0)
    np.testing.assert_allclose(episode.actions, [expected], atol=2e-7)
    np.testing.assert_allclose(episode.proprio, states, atol=1e-7)


def test_euler_angles_are_about_fixed_axes(droid, recording, tmp_path):
    """The inverse and the intrinsic reading of the same numbers are far from the right one."""
    droid.write_episode(tmp_path, recording)
    turned = open_source(tmp_path).read(0).proprio[:, 3:6].astype(np.float64)
    rotations = []
    for roll, pitch, yaw in turned:
        about = {
            "x": [[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]],
            "y": [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]],
            "z": [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]],
        }
        x, y, z = (np.array(about[axis]) for axis in "xyz")
        rotations.append((z @ y @ x, x @ y @ z))
    right, intrinsic = (np.stack(r) for r in zip(*rotations, strict=True))
    np.testing.assert_allclose(right, recording.rotation, atol=1e-6)
    assert np.abs(intrinsic - recording.rotation).max() > 0.3


@pytest.mark.parametrize("left", ["22008760", "24400334"])
@pytest.mark.parametrize("said_by", ["left_mp4_path", "extrinsics"])
def test_left_is_the_camera_on_the_robots_left(droid, truth, recording, tmp_path, left, said_by):
    folder = droid.write_episode(tmp_path, recording, left=left, right_frames=seen_by_right(truth))
    if said_by == "extrinsics":
        (file,) = folder.glob("metadata_*.json")
        metadata = json.loads(file.read_text())
        del metadata["left_mp4_path"]
        file.write_text(json.dumps(metadata))
    cameras = open_source(tmp_path).raw(0).cameras
    assert set(cameras) == {"wrist", *FOUR}
    seen = {name: truth.label(frames[3])[1] for name, frames in cameras.items()}
    assert seen["exterior_left"] == 0 and seen["exterior_right"] == 9
    first, second = (0, 9) if left == "22008760" else (9, 0)
    assert seen["exterior_1"] == first and seen["exterior_2"] == second
    episode = open_source(tmp_path).read(0)
    assert list(episode.frames) == ["exterior_left", "exterior_right", "wrist"]


def test_of_a_stereo_pair_the_left_eye_is_read(droid, truth, recording, tmp_path):
    droid.write_episode(tmp_path, recording, stereo=("22008760",))
    frames = open_source(tmp_path).read(0).frames["exterior_left"]
    assert frames.shape == recording.frames["exterior"].shape
    assert shown(truth, frames) == list(range(20))


def test_missing_videos_are_left_out_until_none_is_left(droid, truth, recording, tmp_path):
    folder = droid.write_episode(tmp_path, recording)
    assert list(open_source(tmp_path).read(0).frames) == ["exterior_left", "wrist"]
    (folder / "recordings/MP4/22008760.mp4").unlink()
    assert list(open_source(tmp_path).read(0).frames) == ["wrist"]
    shutil.rmtree(folder / "recordings")
    assert open_source(tmp_path).raw(0).cameras == {}
    with pytest.raises(ValueError, match=r"no camera of exterior_left.*it has none"):
        open_source(tmp_path).read(0)


@pytest.mark.parametrize("short", [1, 2, 3])
def test_a_video_may_be_a_frame_short_and_no_more(droid, truth, recording, tmp_path, short):
    folder = droid.write_episode(tmp_path, recording)
    droid.encode(folder / "recordings/MP4/18026681.mp4", recording.frames["wrist"][: 20 - short])
    if short > 2:
        with pytest.raises(ValueError, match=r"rows do not match: .* camera wrist 17"):
            open_source(tmp_path).read(0)
        return
    episode = open_source(tmp_path).read(0)
    assert len(episode.proprio) == len(episode.frames["exterior_left"]) == 20 - short
    for frames in episode.frames.values():
        assert shown(truth, frames) == list(range(20 - short))
    np.testing.assert_allclose(episode.proprio[:, :3], recording.position[: 20 - short], atol=1e-6)


def test_a_video_that_ends_early_is_an_error_when_read(droid, recording, tmp_path):
    folder = droid.write_episode(tmp_path, recording)
    file = folder / "recordings/MP4/18026681.mp4"
    file.write_bytes(file.read_bytes()[:-200])  # its index is at the end
    with pytest.raises(FrameReadError, match=r"18026681\.mp4 is no video, or is cut off"):
        open_source(tmp_path).read(0)


def test_versions_differ_in_what_they_log(droid, truth, tmp_path):
    for number, version in enumerate(("1.0", "1.1")):
        droid.write_episode(tmp_path, truth.make_truth(number, rows=14), version=version)
    source = open_source(tmp_path)
    raws = {source.raw(k).attributes["version"]: k for k in source.ids()}
    old, new = source.read(raws["1.0"]), source.read(raws["1.1"])
    # Nothing says of the old one where the operator had let go; the new one's first 3 rows do.
    assert old.usable is None
    assert new.usable is not None and new.usable.tolist() == [False] * 3 + [True] * 11
    assert len(source.raw(raws["1.1"]).columns["action.target_cartesian_position"]) == 12
    for episode in (old, new):
        assert set(episode.logged_actions) == set(droid_raw.ACTIONS)
        assert len(episode.proprio) == 14 and find_problems(episode) == []
    assert any("1.0 (1), 1.1 (1)" in note for note in source.reader.notes)


def test_without_metadata_the_log_says_which_camera_is_which(droid, truth, recording, tmp_path):
    droid.write_episode(
        tmp_path, recording, right_frames=seen_by_right(truth), left="24400334", with_metadata=False
    )
    raw = open_source(tmp_path).raw(0)
    seen = {name: truth.label(frames[3])[1:] for name, frames in raw.cameras.items()}
    assert seen["exterior_left"] == seen["exterior_2"] == (0, 0)
    assert seen["exterior_right"] == seen["exterior_1"] == (9, 0)
    assert seen["wrist"] == (0, 1)
    assert raw.attributes["task"] == recording.task and raw.attributes["version"] == "1.1"


def test_broken_files_are_named(droid, recording, tmp_path):
    folder = droid.write_episode(tmp_path, recording)
    (file,) = folder.glob("metadata_*.json")
    whole = file.read_text()
    file.write_text(whole[:100])
    with pytest.raises(ValueError, match=r"metadata_.*\.json is not JSON"):
        open_source(tmp_path).read(0)
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"metadata_.*\.json: expected names and values, got list"):
        open_source(tmp_path).read(0)
    file.write_text(whole)
    (folder / "metadata_another.json").write_text(whole)
    with pytest.raises(ValueError, match="several metadata files"):
        open_source(tmp_path).read(0)
    (folder / "metadata_another.json").unlink()
    log = folder / "trajectory.h5"
    log.write_bytes(log.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"trajectory\.h5 is not HDF5, or was cut off"):
        open_source(tmp_path).read(0)


def test_an_episode_without_its_log_is_noted(droid, truth, tmp_path):
    kept, lost = (droid.write_episode(tmp_path, truth.make_truth(k, rows=12)) for k in range(2))
    (lost / "trajectory.h5").unlink()
    reader = reader_of(tmp_path)
    assert list(reader.ids()) == [0] and reader.read(0).name == "/".join(kept.parts[-4:])
    assert any(
        f"left out, as they have no trajectory.h5: 1, such as {lost}" == note
        for note in reader.notes
    )
