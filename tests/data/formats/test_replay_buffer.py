import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from worldmodel.data.formats.replay_buffer import Reader
from worldmodel.data.frames import FrameReadError
from worldmodel.data.mapping import mapping_from
from worldmodel.data.source import open_source


@pytest.fixture
def writer(writers):
    return writers["replay_buffer"]


@pytest.fixture
def written(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=12 + k) for k in range(3)]
    return writer.write(tmp_path, truths), truths


def zipped(buffer: Path) -> Path:
    return Path(shutil.make_archive(str(buffer), "zip", buffer))


@pytest.mark.parametrize("as_zip", [False, True])
def test_episodes_come_back_from_axis_angles_and_widths(written, as_zip, writer):
    path, truths = written
    path = zipped(path) if as_zip else path
    source = open_source(path, mapping=mapping_from(writer.MAPPING))
    assert source.format == "replay_buffer" and list(source.ids()) == [0, 1, 2]
    for known in truths:
        episode = source.read(known.number)
        np.testing.assert_allclose(episode.proprio, known.proprio, atol=1e-6)
        np.testing.assert_allclose(episode.joints, known.joints, atol=1e-6)
        np.testing.assert_array_equal(episode.timestamps, known.times)
        assert set(episode.logged_actions) == {"action"}
        for camera, frames in known.frames.items():
            np.testing.assert_array_equal(episode.frames[camera][:], frames)


@pytest.mark.parametrize("as_zip", [False, True])
def test_frames_stop_at_the_borders_of_an_episode_and_pickle(written, as_zip):
    path, truths = written
    reader = pickle.loads(pickle.dumps(Reader(zipped(path) if as_zip else path)))
    frames = pickle.loads(pickle.dumps(reader.read(1).cameras["camera_1"]))
    assert frames.shape == truths[1].frames["wrist"].shape
    for index in ([12, 0, 3, 3], [4, 5, 6], slice(None, None, -2)):
        index = index if isinstance(index, slice) else np.array(index)
        np.testing.assert_array_equal(frames[index], truths[1].frames["wrist"][index])
    with pytest.raises(IndexError):
        frames[13]


def test_a_zip_is_read_by_several_processes_after_a_fork(written):
    path, truths = written
    frames = Reader(zipped(path)).read(2).cameras["camera_0"]
    frames[0]  # opens the archive here, before the fork
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        parts = pool.map(frames.__getitem__, [np.arange(k, 14) for k in range(8)])
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(part, truths[2].frames["exterior"][k:])


def test_without_a_mapping_one_to_fill_in_is_shown(written):
    with pytest.raises(ValueError, match=r"(?s)replay buffer.*gripper_width: float64 \(12, 1\)"):
        open_source(written[0])


def test_a_misspelt_column_is_told_the_nearest(written, writer):
    mapping = {**writer.MAPPING, "joints": "robot_joints"}
    with pytest.raises(ValueError, match=r"'robot_joints'; did you mean 'robot_joint'\?"):
        open_source(written[0], mapping=mapping_from(mapping)).read(0)


def test_a_part_that_was_not_copied_is_an_error_and_no_black_frame(written):
    path, truths = written
    (path / "data" / "camera_0" / "14.0.0.0").unlink()
    frames = Reader(path).read(1).cameras["camera_0"]
    np.testing.assert_array_equal(frames[[1, 3]], truths[1].frames["exterior"][[1, 3]])
    with pytest.raises(FrameReadError, match="'data/camera_0' lacks its part 14.0.0.0"):
        frames[1:4]
    (path / "data" / "timestamp" / "0").unlink()
    with pytest.raises(ValueError, match="'data/timestamp' lacks its part 0"):
        Reader(path).read(0)


def test_a_broken_part_is_an_error(written):
    path, _ = written
    part = path / "data" / "camera_0" / "3.0.0.0"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(FrameReadError, match="cannot read rows 2 to 4 of 'data/camera_0'"):
        Reader(path).read(0).cameras["camera_0"][2:5]


def test_a_column_that_is_too_short_is_named(written):
    path, _ = written
    zarr.open_group(path, mode="a", zarr_format=2)["data/gripper_width"].resize((20, 1))
    with pytest.raises(ValueError, match=r"'data/gripper_width' has 20 rows; .* up to row 25"):
        Reader(path).read(1)


def test_frames_of_one_channel_are_refused(written):
    path, _ = written
    group = zarr.open_group(path, mode="a", zarr_format=2)
    group.create_array("data/depth", data=np.ones((39, 8, 8, 1), np.uint8), compressors=None)
    with pytest.raises(FrameReadError, match=r"'data/depth' has frames of shape \(8, 8, 1\)"):
        Reader(path).read(0).cameras["depth"][0]


def test_episodes_must_end_one_after_the_other(written):
    path, _ = written
    zarr.open_group(path, mode="a", zarr_format=2)["meta/episode_ends"][:] = [12, 12, 39]
    with pytest.raises(ValueError, match="meta/episode_ends must increase"):
        Reader(path)


def test_image_codecs_that_are_not_installed_are_named(written):
    path, _ = written
    file = path / "data" / "camera_0" / ".zarray"
    metadata = json.loads(file.read_text())
    metadata["compressor"] = {"id": "imagecodecs_jpegxl", "level": 99}
    file.write_text(json.dumps(metadata))
    with pytest.raises(ImportError, match="compressed by imagecodecs_jpegxl; imagecodecs is not"):
        Reader(path).read(0)
    metadata["compressor"] = {"id": "unheard_of"}
    file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="cannot open 'data/camera_0': .*unheard_of"):
        Reader(path).read(0)


def test_other_zarr_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "v3.zarr", mode="w", zarr_format=3)
    group.create_array("meta/episode_ends", data=np.array([3, 5]))
    group.create_array("data/state", data=np.zeros((5, 2)))
    assert not Reader.recognises(tmp_path / "v3.zarr")
    with pytest.raises(ValueError, match="v3.zarr is no replay buffer; expected a folder or .zip"):
        Reader(tmp_path / "v3.zarr")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    assert not Reader.recognises(tmp_path / "cut.zip")


def test_an_unknown_episode_is_a_key_error(written):
    with pytest.raises(KeyError, match="no episode -1 in .*; it has 3"):
        Reader(written[0]).read(-1)
