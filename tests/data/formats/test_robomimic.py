import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from worldmodel.data.formats.robomimic import Reader
from worldmodel.data.mapping import mapping_from
from worldmodel.data.source import open_source


@pytest.fixture
def writer(writers):
    return writers["robomimic"]


@pytest.fixture
def written(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=12 + k) for k in range(3)]
    return writer.write(tmp_path, truths, env_name="Lift"), truths


def change(file: Path, **entries: object) -> None:
    """Sets entries of env_args."""
    with h5py.File(file, "a") as content:
        content["data"].attrs["env_args"] = json.dumps(entries)


def test_episodes_come_back_by_the_schema_of_robosuite(written, writer):
    path, truths = written
    source = open_source(path)
    assert source.format == "robomimic" and list(source.ids()) == [0, 1, 2]
    assert source.mapping.hz == writer.HZ
    for known in truths:
        episode = source.read(known.number)
        np.testing.assert_allclose(episode.proprio, known.proprio, atol=1e-6)
        np.testing.assert_allclose(episode.joints, known.joints, atol=1e-6)
        np.testing.assert_allclose(np.diff(episode.timestamps), 1 / writer.HZ)
        assert episode.metadata.task == "Lift"
        assert episode.metadata.clock == "declared"
        assert tuple(episode.frames) == ("exterior", "wrist")
        for camera, frames in known.frames.items():
            np.testing.assert_array_equal(episode.frames[camera][:], frames)


def test_demonstrations_are_numbered_as_they_are_called(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=5) for k in (10, 2, 0)]
    reader = Reader(writer.write(tmp_path, truths))
    assert list(reader.ids()) == [0, 2, 10]
    assert [reader.read(k).name for k in reader.ids()] == ["demo_0", "demo_2", "demo_10"]
    frames = reader.read(10).cameras["wrist_image"]
    np.testing.assert_array_equal(frames[:], truths[0].frames["wrist"])
    with pytest.raises(KeyError, match="no episode 1 in .*; it has 3, 0 to 10"):
        reader.read(1)


def test_masks_say_which_split_a_demonstration_is_of(written):
    reader = pickle.loads(pickle.dumps(Reader(written[0])))
    splits = [reader.read(k).attributes["split"] for k in reader.ids()]
    assert splits == ["valid", "train", "train"]


def test_the_last_next_observation_is_left_out(written):
    raw = Reader(written[0]).read(1)
    assert not any("next_obs" in key for key in [*raw.columns, *raw.cameras])
    assert {len(values) for values in raw.columns.values()} == {13}


def test_other_arms_and_environments_need_a_mapping(written):
    path, truths = written
    change(path, env_name="Lift", env_kwargs={"robots": ["UR5e"], "control_freq": 20})
    assert Reader(path).mapping is None and Reader(path).declared_hz == 20
    change(path, env_name="real")
    reader = Reader(path)
    assert reader.mapping is None and reader.declared_hz is None and reader.notes == ()
    mapping = {
        "position": "obs.robot0_eef_pos",
        "rotation": {"key": "obs.robot0_eef_quat", "form": "quat_xyzw"},
        "gripper": {"key": "obs.robot0_gripper_qpos[0]", "open": 0.04, "closed": 0},
        "cameras": {"front": "exterior_image"},
    }
    with pytest.raises(ValueError, match="says its rate; say it with hz"):
        open_source(path, mapping=mapping_from(mapping)).read(0)
    episode = open_source(path, mapping=mapping_from(mapping), hz=10).read(0)
    np.testing.assert_allclose(episode.proprio, truths[0].proprio, atol=1e-6)
    assert episode.timestamps[-1] == pytest.approx(1.1)


def test_the_frame_of_reference_is_noted(written):
    assert "world frame" in Reader(written[0]).notes[0]


def test_a_missing_observation_leaves_the_mapping_to_the_user(written):
    path, _ = written
    with h5py.File(path, "a") as content:
        del content["data/demo_0/obs/robot0_gripper_qpos"]
    with pytest.raises(ValueError, match="does not say what its columns mean"):
        open_source(path)


def test_a_misspelt_camera_is_told_the_nearest(written):
    mapping = {
        "position": "obs.robot0_eef_pos",
        "rotation": {"key": "obs.robot0_eef_quat", "form": "quat_xyzw"},
        "gripper": {"key": []},
        "cameras": {"wrist": "wrist_imag"},
    }
    with pytest.raises(ValueError, match="demo_. has no camera.*did you mean 'wrist_image'"):
        open_source(written[0], mapping=mapping_from(mapping))


def test_rows_that_are_not_num_samples_are_named(written):
    path, _ = written
    with h5py.File(path, "a") as content:
        del content["data/demo_1/obs/wrist_image"]
        content["data/demo_1/obs/wrist_image"] = np.zeros((12, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'wrist_image' of demo_1 has 12 rows; num_samples says"):
        Reader(path).read(1)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[1]", "must be an object, got")]
)
def test_broken_env_args_are_named(written, text, message):
    with h5py.File(written[0], "a") as content:
        content["data"].attrs["env_args"] = text
    with pytest.raises(ValueError, match=f"image.hdf5: attribute env_args .*{message}"):
        Reader(written[0])


def test_a_file_cut_off_is_named(written):
    path, _ = written
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="image.hdf5 is not HDF5, or was cut off"):
        open_source(path)


def test_other_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.hdf5", "w") as content:
        content["data/state"] = np.zeros((3, 2))
    assert not Reader.recognises(tmp_path / "other.hdf5")
    with pytest.raises(ValueError, match="expected a .h5 or .hdf5 file with groups data/demo_0"):
        Reader(tmp_path / "other.hdf5")


def test_a_folder_of_robomimic_files_is_not_read_as_one_episode_each(written):
    with pytest.raises(ValueError, match="is a robomimic file: open it, not its folder"):
        open_source(written[0].parent)
