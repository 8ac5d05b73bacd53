import pickle
import shutil

import cv2
import h5py
import numpy as np
import pytest

from worldmodel.data.formats.hdf5 import Hdf5Frames, Reader, camera_of
from worldmodel.data.frames import FrameReadError
from worldmodel.data.mapping import mapping_from
from worldmodel.data.source import open_source


@pytest.fixture
def writer(writers):
    return writers["hdf5"]


@pytest.fixture
def written(tmp_path, truth, writer):
    truths = [truth.make_truth(k, rows=12 + k) for k in range(3)]
    return writer.write(tmp_path, truths), truths


def test_episodes_come_back_from_millimetres_intrinsic_degrees_and_milliseconds(written, writer):
    path, truths = written
    source = open_source(path, mapping=mapping_from(writer.MAPPING))
    assert source.format == "hdf5" and list(source.ids()) == [0, 1, 2]
    for known in truths:
        episode = source.read(known.number)
        np.testing.assert_allclose(episode.proprio, known.proprio, atol=1e-6)
        np.testing.assert_allclose(episode.joints, known.joints, atol=1e-6)
        np.testing.assert_allclose(episode.timestamps, known.times, atol=6e-4)
        assert episode.metadata.task == known.task
        assert episode.metadata.success is known.success
        for camera, frames in known.frames.items():
            np.testing.assert_array_equal(episode.frames[camera][:], frames)


def test_frames_come_in_any_order_and_after_pickling(written):
    path, truths = written
    reader = pickle.loads(pickle.dumps(Reader(path)))
    cameras = pickle.loads(pickle.dumps(reader.read(1).cameras))
    for key, camera in (("images.front", "exterior"), ("images.hand", "wrist")):
        for index in ([5, 2, 2, 9], [8, 6, 4], [3], slice(2, 11, 4), slice(None, None, -1)):
            index = index if isinstance(index, slice) else np.array(index)
            np.testing.assert_array_equal(cameras[key][index], truths[1].frames[camera][index])


def test_files_are_in_natural_order(written):
    path, truths = written
    shutil.copy(path / "episode_0.hdf5", path / "episode_10.hdf5")
    names = [Reader(path).read(k).name for k in range(4)]
    assert names == [f"episode_{k}.hdf5" for k in (0, 1, 2, 10)]


@pytest.mark.parametrize("prefix", ["traj_", "data/traj_"])
def test_a_file_may_have_a_group_for_each_episode(tmp_path, prefix, truth, writer):
    truths = [truth.make_truth(k, rows=5) for k in range(11)]
    with h5py.File(tmp_path / "all.h5", "w") as content:
        for known in truths:
            writer.write_into(content.create_group(f"{prefix}{known.number}"), known)
    reader = Reader(tmp_path / "all.h5")
    assert len(reader.ids()) == 11
    for known in truths:
        raw = reader.read(known.number)
        assert raw.name == f"all.h5/{prefix}{known.number}"
        np.testing.assert_array_equal(raw.cameras["images.front"][:], known.frames["exterior"])
        np.testing.assert_array_equal(raw.cameras["images.hand"][:], known.frames["wrist"])


def test_a_file_whose_groups_are_not_numbered_is_one_episode(written):
    path, _ = written
    reader = Reader(path / "episode_1.hdf5")
    assert list(reader.ids()) == [0]
    assert reader.read(0).columns["arm.position"].shape == (13, 3)


def test_channels_may_come_first_and_jpegs_may_be_padded(tmp_path, truth):
    known = truth.make_truth(0, rows=6)
    pictures = known.frames["wrist"]
    encoded = [cv2.imencode(".jpg", p[..., ::-1])[1] for p in pictures]
    padded = np.zeros((6, max(map(len, encoded)) + 5), np.uint8)
    for row, data in zip(padded, encoded, strict=True):
        row[: len(data)] = data
    with h5py.File(tmp_path / "one.h5", "w") as content:
        content["first"] = np.moveaxis(pictures, -1, 1)
        content["padded"] = padded
        content["depth"] = np.zeros((6, 48, 64), np.float32)  # no column: too many numbers a row
        content["bytes"] = np.arange(18, dtype=np.uint8).reshape(6, 3)
        content["name"] = "monday"
    raw = Reader(tmp_path / "one.h5").read(0)
    np.testing.assert_array_equal(raw.cameras["first"][2:4], pictures[2:4])
    np.testing.assert_array_equal(truth.labels(raw.cameras["padded"][:]), truth.labels(pictures))
    assert set(raw.cameras) == {"first", "padded"}
    assert set(raw.columns) == {"bytes"}
    assert raw.attributes == {"name": "monday"}


def test_a_misspelt_column_is_told_the_nearest_and_the_file(written, writer):
    mapping = {**writer.MAPPING, "position": {"key": "arm.positon", "unit": "mm"}}
    with pytest.raises(ValueError, match=r"episode_.\.hdf5 .*did you mean 'arm.position'\?"):
        open_source(written[0], mapping=mapping_from(mapping)).read(1)


def test_without_a_mapping_one_to_fill_in_is_shown(written):
    path, _ = written
    with pytest.raises(ValueError, match=r"(?s)no particular schema.*arm.position: float64 \(12"):
        open_source(path)


def test_a_file_cut_off_or_no_hdf5_is_named(written):
    path, _ = written
    file = path / "episode_1.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"episode_1.hdf5 is not HDF5, or was cut off"):
        Reader(path).read(1)


def test_rows_that_cannot_be_decompressed_are_an_error(tmp_path):
    file = tmp_path / "ep.h5"
    with h5py.File(file, "w") as content:
        noise = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
        made = content.create_dataset(
            "image", data=noise, chunks=(1, 32, 32, 3), compression="gzip", fletcher32=True
        )
        offset = made.id.get_chunk_info(2).byte_offset
    content = bytearray(file.read_bytes())
    content[offset + 100] ^= 0xFF
    file.write_bytes(content)
    frames = Reader(file).read(0).cameras["image"]
    np.testing.assert_array_equal(frames[:2], noise[:2])
    with pytest.raises(FrameReadError, match=r"ep.h5: cannot read rows 1 to 3 of 'image'"):
        frames[1:]


def test_a_file_that_is_gone_is_an_error_when_its_frames_are_read(written):
    path, _ = written
    cameras = Reader(path).read(0).cameras
    (path / "episode_0.hdf5").unlink()
    for frames in cameras.values():
        with pytest.raises(FrameReadError, match="episode_0.hdf5: cannot read row"):
            frames[0]


def test_frames_with_an_alpha_channel_are_refused(tmp_path):
    with h5py.File(tmp_path / "ep.h5", "w") as content:
        content["image"] = np.zeros((3, 8, 8, 4), np.uint8)
    with pytest.raises(FrameReadError, match=r"'image' has frames of shape \(8, 8, 4\); expected"):
        Reader(tmp_path / "ep.h5").read(0).cameras["image"][0]


def test_a_compression_that_is_not_there_names_the_package(tmp_path):
    file = tmp_path / "ep.h5"
    with h5py.File(file, "w") as content:
        # Filter 32001 is blosc; "optional" lets HDF5 write chunks without it.
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, 4))
        settings.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))
        space = h5py.h5s.create_simple((3, 4))
        h5py.h5d.create(content.id, b"state", h5py.h5t.NATIVE_DOUBLE, space, settings)
        settings.set_chunk((1, 8, 8, 3))
        space = h5py.h5s.create_simple((3, 8, 8, 3))
        h5py.h5d.create(content.id, b"image", h5py.h5t.NATIVE_UINT8, space, settings)
    with pytest.raises(ImportError, match=r"ep.h5: '/state' is compressed by .*hdf5plugin"):
        Reader(file).read(0)
    with pytest.raises(ImportError, match=r"ep.h5: '/image' is compressed by .*hdf5plugin"):
        Hdf5Frames(file, "image", (3, 8, 8, 3))[0]


def test_converted_droid_is_warned_of(tmp_path):
    with h5py.File(tmp_path / "trajectory_im128.h5", "w") as content:
        content["observation/camera/image/hand_camera_left_image"] = np.zeros(
            (3, 8, 8, 3), np.uint8
        )
        content["observation/robot_state/cartesian_position"] = np.zeros((3, 6))
    reader = Reader(tmp_path / "trajectory_im128.h5")
    assert "intrinsic XYZ" in reader.notes[0] and "black" in reader.notes[1]


def test_an_unknown_episode_is_a_key_error(written):
    with pytest.raises(KeyError, match="no episode 3 in .*; it has 3"):
        Reader(written[0]).read(3)


def test_encoded_images_of_part_of_a_dataset(tmp_path, truth):
    pictures = truth.make_truth(0, rows=6).frames["wrist"]
    with h5py.File(tmp_path / "ep.h5", "w") as content:
        made = content.create_dataset("image", (6,), h5py.vlen_dtype(np.uint8))
        for k, image in enumerate(pictures):
            made[k] = cv2.imencode(".png", image[..., ::-1])[1]
        frames = camera_of(made, tmp_path / "ep.h5", first=2, count=3)
    np.testing.assert_array_equal(frames[:], pictures[2:5])


def test_frames_of_part_of_a_dataset(tmp_path):
    pictures = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((4, 5, 3), np.uint8)
    with h5py.File(tmp_path / "ep.h5", "w") as content:
        content["image"] = pictures
    frames = Hdf5Frames(tmp_path / "ep.h5", "image", (10, 4, 5, 3), first=3, count=4)
    assert frames.shape == (4, 4, 5, 3)
    np.testing.assert_array_equal(frames[[3, 0]], pictures[[6, 3]])
