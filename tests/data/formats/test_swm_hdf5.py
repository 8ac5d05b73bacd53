import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from worldmodel.data.formats.swm_hdf5 import Reader
from worldmodel.data.mapping import mapping_from
from worldmodel.data.source import open_source

GOLDEN = Path(__file__).parent.parent / "golden" / "swm"


@pytest.fixture
def writer(writers):
    return writers["swm_hdf5"]


@pytest.fixture
def written(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=12 + k) for k in range(3)]
    return writer.write(tmp_path, truths), truths


def test_episodes_come_back_from_centimetres_matrices_and_per_cent(written, writer):
    path, truths = written
    source = open_source(path, mapping=mapping_from(writer.MAPPING))
    assert source.format == "swm_hdf5" and list(source.ids()) == [0, 1, 2]
    for known in truths:
        episode = source.read(known.number)
        np.testing.assert_allclose(episode.proprio, known.proprio, atol=1e-6)
        np.testing.assert_allclose(episode.joints, known.joints, atol=1e-6)
        np.testing.assert_allclose(np.diff(episode.timestamps), 1 / 15)
        for camera, frames in known.frames.items():
            np.testing.assert_array_equal(episode.frames[camera][:], frames)


def test_frames_stop_at_the_borders_of_an_episode_and_pickle(written, truth):
    path, truths = written
    reader = pickle.loads(pickle.dumps(Reader(path)))
    frames = pickle.loads(pickle.dumps(reader.read(1).cameras["pixels"]))
    assert frames.shape == truths[1].frames["exterior"].shape
    np.testing.assert_array_equal(truth.labels(frames[[12, 0]])[:, :2], [[12, 1], [0, 1]])
    with pytest.raises(IndexError):
        frames[13]


def test_a_golden_file_of_its_own_writer():
    """`make.py` there made it with stable-worldmodel's HDF5Writer."""
    reader = Reader(GOLDEN / "tiny.h5")
    assert list(reader.ids()) == [0, 1]
    for number, rows in enumerate((3, 5)):
        raw = reader.read(number)
        steps = np.arange(rows)
        np.testing.assert_array_equal(
            raw.columns["state"], (100 * number + steps)[:, None] + np.float32([0, 0.25])
        )
        assert raw.columns["state"].dtype == np.float32
        np.testing.assert_array_equal(raw.columns["step_idx"], steps)
        np.testing.assert_array_equal(
            raw.cameras["pixels"][:][:, 5, 7], (100 * number + steps)[:, None] + [0, 10, 20]
        )
        assert set(raw.columns) == {"state", "action", "step_idx"}


def test_without_a_mapping_one_to_fill_in_is_shown(written):
    with pytest.raises(ValueError, match=r"(?s)stable-worldmodel.*proprio: float64 \(12, 13\)"):
        open_source(written[0])


def test_a_misspelt_column_is_told_the_nearest(written, writer):
    mapping = {**writer.MAPPING, "joints": "joint"}
    with pytest.raises(ValueError, match=r"episode . has no column 'joint'; did you mean 'joints'"):
        open_source(written[0], mapping=mapping_from(mapping)).read(0)


def test_a_column_of_the_wrong_size_is_named(written, writer):
    mapping = {**writer.MAPPING, "position": "proprio[0:2]"}
    with pytest.raises(ValueError, match="position has 3 numbers, but .*episode . has 2"):
        open_source(written[0], mapping=mapping_from(mapping)).read(0)


def test_a_column_with_too_few_rows_is_named(written):
    path, _ = written
    with h5py.File(path, "a") as content:
        content["proprio"].resize(30, axis=0)
    reader = Reader(path)
    assert len(reader.read(1).columns["proprio"]) == 13
    with pytest.raises(ValueError, match=r"arm.h5: 'proprio' has 30 rows, but episode 2 .* row 39"):
        reader.read(2)


def test_files_that_are_not_of_this_layout_are_refused(written):
    path, _ = written
    with h5py.File(path, "a") as content:
        lengths = content["ep_len"][:2]
        del content["ep_len"]
        content["ep_len"] = lengths
    with pytest.raises(ValueError, match="ep_len has 2 episodes, ep_offset 3"):
        Reader(path)
    with h5py.File(path, "a") as content:
        del content["ep_len"]
    assert not Reader.recognises(path)
    with pytest.raises(
        ValueError, match="arm.h5: expected a dataset 'ep_len', there is action, ep"
    ):
        Reader(path)


def test_a_file_cut_off_is_named(written):
    path, _ = written
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="arm.h5 is not HDF5, or was cut off"):
        open_source(path)


def test_an_unknown_episode_is_a_key_error(written):
    with pytest.raises(KeyError, match="no episode 3 in .*; it has 3"):
        Reader(written[0]).read(3)
