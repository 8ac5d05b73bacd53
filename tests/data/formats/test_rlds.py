import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.data.formats.rlds import Reader
from worldmodel.data.frames import FrameReadError
from worldmodel.data.rlds_writer import write_rlds
from worldmodel.data.source import open_source

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "rlds"
ROWS = (6, 7, 8)  # of the golden episodes


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"rlds_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


truth = load("truth")
write = load("write_rlds").write
golden_truths = [truth.make_truth(n, rows=r, height=32, width=48) for n, r in enumerate(ROWS)]


@pytest.fixture
def droid(tmp_path: Path) -> Path:
    """Five episodes in two shards."""
    truths = [truth.make_truth(n, rows=4 + n) for n in range(5)]
    return write(tmp_path, truths) / "1.0.1"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "other", tmp_path / "other"))


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def episode_of(t, *, jitter: bool = True, logged: bool = True) -> Episode:
    times = t.times if jitter else np.arange(len(t.times)) / 15
    return Episode(
        frames={"exterior_1": t.frames["exterior"], "wrist": t.frames["wrist"]},
        proprio=t.proprio.astype(np.float32),
        timestamps=times,
        joints=t.joints.astype(np.float32) if logged else None,
        logged_actions={"joint_position": t.joints.astype(np.float32) + 1} if logged else {},
        metadata=EpisodeMetadata(
            source="test",
            task=t.task,
            behaviour="scripted",
            seed=-1,
            control_hz=15.0,
            renderer="",
            mujoco_version="",
            cameras=("exterior_1", "wrist"),
            name=f"run {t.number}",
            success=t.success,
        ),
    )


# What TensorFlow Datasets wrote.


def by_number(source) -> Iterator[tuple]:
    """Episodes with their truths; tfds shuffles what it writes, the pictures say which is which."""
    for i in source.ids():
        episode = source.read(i)
        number = truth.label(episode.frames["wrist"][0])[1]
        yield golden_truths[number], source.raw(i), episode


def test_golden_droid_value_by_value() -> None:
    source = open_source(GOLDEN / "droid", format="rlds")
    assert source.format == "rlds"
    seen = []
    for t, raw, episode in by_number(source):
        seen.append(t.number)
        rows = len(t.times)
        pose = np.concatenate([t.position, t.euler], axis=1).astype(np.float32)
        gripper = t.gripper[:, None].astype(np.float32)
        np.testing.assert_array_equal(raw.columns["observation.cartesian_position"], pose)
        np.testing.assert_array_equal(raw.columns["observation.gripper_position"], gripper)
        assert raw.columns["discount"].tolist() == [1.0] * rows
        assert raw.columns["reward"].tolist() == [0.0] * (rows - 1) + [float(t.success)]
        assert raw.columns["is_first"].tolist() == [True] + [False] * (rows - 1)
        assert raw.columns["is_last"].dtype == np.bool_
        assert all(v.dtype != np.float64 for v in raw.columns.values())
        assert raw.attributes["language_instruction"] == ""
        assert raw.attributes["language_instruction_3"] == f"{t.task} please"

        np.testing.assert_allclose(episode.proprio, t.proprio, atol=3e-7)
        np.testing.assert_array_equal(episode.joints, t.joints.astype(np.float32))
        np.testing.assert_array_equal(episode.timestamps, np.arange(rows) / 15)
        joint_position = (t.joints + 0.01).astype(np.float32)
        np.testing.assert_array_equal(episode.logged_actions["joint_position"], joint_position)
        assert sorted(episode.logged_actions) == [
            "cartesian_position",
            "cartesian_velocity",
            "gripper_position",
            "gripper_velocity",
            "joint_position",
            "joint_velocity",
        ]
        assert len(episode.actions) == rows - 1
        outcome = "success" if t.success else "failure"
        assert episode.metadata.name.startswith(f"/raw/LAB/{outcome}/2023-07-0{t.number + 1}")
        assert episode.metadata.success is t.success
        assert episode.metadata.task == t.task
        assert episode.metadata.clock == "declared" and episode.metadata.control_hz == 15

        assert sorted(episode.frames) == ["exterior_1", "exterior_2", "wrist"]
        for camera, code in (("exterior_1", 0), ("wrist", 1)):
            labels = truth.labels(np.asarray(episode.frames[camera]))
            assert labels.tolist() == [[k, t.number, code] for k in range(rows)]
        mirrored = np.asarray(episode.frames["exterior_2"])[:, :, ::-1]
        assert truth.labels(mirrored)[:, 0].tolist() == list(range(rows))
        away = np.asarray(episode.frames["wrist"]).astype(int) - t.frames["wrist"]
        assert np.abs(away).mean() < 8  # JPEG; red and blue swapped would be 40 off
    assert sorted(seen) == [0, 1, 2]


def test_golden_of_another_schema() -> None:
    reader = Reader(GOLDEN / "other")
    assert reader.mapping is None
    assert list(reader.ids()) == [0, 1, 2, 3]
    numbers = []
    for i in reader.ids():
        raw = reader.read(i)
        note = str(raw.attributes["note"])
        number = int(note.removeprefix("episode "))
        numbers.append(number)
        rows = 3 + number % 2
        k = np.arange(rows)
        state = np.arange(6).reshape(2, 3) + 100 * number + k[:, None, None]
        np.testing.assert_array_equal(raw.columns["observation.state"], state)
        counts = -k if number % 2 else k * 10**12
        assert raw.columns["observation.count"].tolist() == counts.tolist()
        assert raw.columns["observation.small"].tolist() == np.stack([-k, k], 1).tolist()
        assert raw.columns["observation.small"].dtype == np.int8
        assert raw.columns["observation.huge"].tolist() == [2**64 - 1 - int(j) for j in k]
        assert raw.columns["observation.phase"].tolist() == (k % 3).tolist()
        box = np.array([[0.1, 0.2, 0.3, 0.4]] * rows, np.float32)
        np.testing.assert_array_equal(raw.columns["observation.box"], box)
        view = raw.cameras["observation.view"]
        assert view.shape == (rows, 8, 10 + number, 3)  # declared as of any size
        assert view[rows - 1][0, 0].tolist() == [10 * (rows - 1), number, 200]
        assert raw.attributes["success"] is (number % 2 == 0)
        assert raw.attributes["episode_metadata.weight"] == number / 2
    # train before val, as dataset_info.json has them.
    assert sorted(numbers[:2]) == [0, 1] and sorted(numbers[2:]) == [10, 11]
    assert [reader.read(i).name for i in (0, 3)] == ["train[0]", "val[1]"]
    note = next(note for note in reader.notes if note.startswith("not read"))
    for name in ("depth", "packed", "points", "extrinsics"):
        assert name in note


def test_a_set_of_another_schema_asks_for_a_mapping() -> None:
    with pytest.raises(ValueError, match="(?s)mapping.yaml.*observation.state"):
        open_source(GOLDEN / "other", format="rlds")


# What another writer wrote, and what can be wrong with it.


def test_another_writer_is_read_alike(tmp_path: Path) -> None:
    truths = [truth.make_truth(n) for n in range(3)]
    source = open_source(write(tmp_path, truths), format="rlds")
    assert list(source.ids()) == [0, 1, 2]
    for t, i in zip(truths, source.ids(), strict=True):
        episode = source.read(i)
        np.testing.assert_allclose(episode.proprio, t.proprio, atol=3e-7)
        assert episode.metadata.success is t.success and episode.metadata.task == t.task
        for camera, code in (("exterior_1", 0), ("wrist", 1)):
            chosen = episode.frames[camera][np.array([29, 3, 3])]
            assert truth.labels(chosen).tolist() == [[k, i, code] for k in (29, 3, 3)]


def test_notes_say_what_was_assumed(droid: Path) -> None:
    notes = " ".join(Reader(droid).notes)
    assert "15 Hz" in notes and "'action' is not used" in notes


def test_the_newest_version_is_read(other: Path) -> None:
    shutil.copytree(other / "0.10.0", other / "0.9.0")
    (other / "notes").mkdir()
    reader = Reader(other)
    assert reader.folder == other / "0.10.0"
    assert "older: 0.9.0" in reader.notes[0]
    assert Reader(other / "0.9.0").folder == other / "0.9.0"


def test_recognises(droid: Path, tmp_path: Path) -> None:
    assert Reader.recognises(droid) and Reader.recognises(droid.parent)
    assert not Reader.recognises(tmp_path / "droid" / "1.0.1" / "features.json")
    assert not Reader.recognises(HERE)
    with pytest.raises(ValueError, match="features.json and shards such as"):
        Reader(HERE)


def test_shards_that_were_not_fetched(droid: Path) -> None:
    (droid / "r2d2_faceblur-train.tfrecord-00000-of-00002").unlink()
    reader = Reader(droid)
    assert list(reader.ids()) == [3, 4]
    assert len(reader.read(4).columns["is_first"]) == 4 + 4
    assert "1 of 2 shards with 3 episodes are not there" in reader.notes[0]
    with pytest.raises(KeyError, match="episode 1 is in .*00000-of-00002, which is not there"):
        reader.read(1)
    with pytest.raises(KeyError, match="ids are 0 to 4"):
        reader.read(5)


def test_opening_touches_no_shard(droid: Path) -> None:
    info = json.loads((droid / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["5"] * 2000
    (droid / "dataset_info.json").write_text(json.dumps(info))
    for k in range(2000):
        name = f"r2d2_faceblur-train.tfrecord-{k:05}-of-02000"
        (droid / name).symlink_to("/nowhere")  # whoever opens it fails
    reader = Reader(droid)
    assert len(reader.ids()) == 10_000 and reader.mapping is not None
    with pytest.raises(FileNotFoundError):
        reader.read(7)


def test_without_dataset_info_records_are_counted(droid: Path) -> None:
    expected = [Reader(droid).read(i).name for i in range(5)]
    (droid / "dataset_info.json").unlink()
    reader = Reader(droid)
    assert [reader.read(i).name for i in reader.ids()] == expected


def test_without_features(droid: Path) -> None:
    (droid / "features.json").unlink()
    with pytest.raises(ValueError, match=f"fetch it to {droid / 'features.json'}"):
        open_source(droid, format="rlds")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "does not describe features"),
        ('{"type": "FeaturesDict", "content": {}}', "expected 'steps'"),
        ('{"featuresDict": {"features": {"image": {"text": {}}}}}', "'steps'.*it has image"),
        ('{"featuresDict": {"features": {"x": {"tensor": {}}}}}', "does not describe features"),
    ],
)
def test_features_that_describe_no_episodes(droid: Path, content: str, message: str) -> None:
    (droid / "features.json").write_text(content)
    with pytest.raises(ValueError, match=f"features.json.*{message}"):
        Reader(droid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": [{"name": "train"}]}, "does not list splits"),
        ({"fileFormat": "parquet"}, "files are parquet; can read tfrecord and array_record"),
    ],
)
def test_dataset_info_that_lists_no_shards(droid: Path, changes: dict, message: str) -> None:
    change(droid / "dataset_info.json", **changes)
    with pytest.raises(ValueError, match=f"dataset_info.json.*{message}"):
        Reader(droid)


def test_a_shard_with_more_or_fewer_records_than_declared(droid: Path) -> None:
    info = json.loads((droid / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["3", "1"]
    (droid / "dataset_info.json").write_text(json.dumps(info))
    reader = Reader(droid)
    reader.read(2)
    with pytest.raises(ValueError, match="00001-of-00002 has 2 records, .* says 1"):
        reader.read(3)


def test_a_shard_cut_short_loses_the_episodes_after_the_cut(droid: Path) -> None:
    file = droid / "r2d2_faceblur-train.tfrecord-00000-of-00002"
    file.write_bytes(file.read_bytes()[:-100])
    reader = Reader(droid)
    assert [len(reader.read(i).columns["is_first"]) for i in (0, 1, 3, 4)] == [4, 5, 7, 8]
    with pytest.raises(ValueError, match=f"{file.name}, record 2 at byte .*cut short"):
        reader.read(2)


def test_a_damaged_record_is_refused(droid: Path) -> None:
    file = droid / "r2d2_faceblur-train.tfrecord-00000-of-00002"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    reader = Reader(droid)
    with pytest.raises(ValueError, match=f"{file.name}, record 0 at byte 0: the checksum"):
        reader.read(0)
    reader.read(1)


def test_frames_are_read_where_they_are_unpickled(droid: Path) -> None:
    reader = Reader(droid)
    frames = reader.read(4).cameras["observation.wrist_image_left"]
    assert len(pickle.dumps(frames)) < 3000  # no pixels in it
    again = pickle.loads(pickle.dumps(frames))
    assert truth.labels(again[5:1:-2]).tolist() == [[5, 4, 1], [3, 4, 1]]
    assert pickle.loads(pickle.dumps(reader)).read(2).name == reader.read(2).name


def test_frames_that_went_away(droid: Path) -> None:
    file = droid / "r2d2_faceblur-train.tfrecord-00001-of-00002"
    frames = Reader(droid).read(4).cameras["observation.wrist_image_left"]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FrameReadError, match="wrist_image_left, frame 7: .*shorter"):
        frames[7]
    file.unlink()
    with pytest.raises(FrameReadError, match="wrist_image_left: .*No such file"):
        frames[0]


def rewrite(droid: Path, **entries: list) -> None:
    """Replaces entries of the record of episode 3, and leaves no other in its shard."""
    writer = load("write_rlds")
    record = writer.record(truth.make_truth(3, rows=4))
    record |= {"steps/" + name.replace("__", "/"): values for name, values in entries.items()}
    record = {name: values for name, values in record.items() if values}
    file = droid / "r2d2_faceblur-train.tfrecord-00001-of-00002"
    file.write_bytes(writer.framed(writer.example(record)) * 2)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"reward": [0.0] * 5}, "different numbers of steps: .*reward 5"),
        ({"observation__wrist_image_left": [b"x"] * 3}, "steps: .*wrist_image_left 3"),
        ({"observation__joint_position": [0.0] * 29}, "'steps/observation/joint_position': 29 num"),
        ({"is_first": [1, 0, 1, 0]}, "is_first is true at step 2"),
        ({"is_last": [0, 1, 0, 1]}, "is_last is true at step 1 of an episode of 4"),
        ({"discount": []}, "has no 'steps/discount', which features.json promises"),
        ({"discount": [1, 1, 1, 1]}, "'steps/discount': expected a list of float"),
        ({"language_instruction": [b"\xff"] * 4}, "'steps/language_instruction': .*utf-8"),
    ],
)
def test_records_that_contradict_the_schema(droid: Path, entries: dict, message: str) -> None:
    rewrite(droid, **entries)
    with pytest.raises(ValueError, match=f"00001-of-00002, record 0: .*{message}"):
        Reader(droid).read(3)


def test_an_episode_without_steps(droid: Path) -> None:
    writer = load("write_rlds")
    entries = b""
    for name in writer.record(truth.make_truth(3, rows=2)):
        values = writer.message(1, b"path") if name.startswith("episode_metadata") else b""
        feature = writer.message(1, values) if values else b""
        entry = writer.message(1, name.encode()) + writer.message(2, feature)
        entries += writer.message(1, entry)
    file = droid / "r2d2_faceblur-train.tfrecord-00001-of-00002"
    file.write_bytes(writer.framed(writer.message(1, entries)) * 2)
    with pytest.raises(ValueError, match="00001-of-00002, record 0: the episode has no steps"):
        Reader(droid).read(3)


def test_images_that_are_not_colour_photographs_are_left_out(droid: Path) -> None:
    features = (droid / "features.json").read_text()
    (droid / "features.json").write_text(features.replace('"dtype": "uint8"', '"dtype": "uint16"'))
    reader = Reader(droid)
    assert reader.read(0).cameras == {} and reader.mapping is None
    assert "wrist_image_left (Image uint16 (48, 64, 3))" in " ".join(reader.notes)


def test_an_image_of_another_size(droid: Path) -> None:
    small = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    rewrite(droid, observation__wrist_image_left=[small] * 4)
    frames = Reader(droid).read(3).cameras["observation.wrist_image_left"]
    with pytest.raises(FrameReadError, match=r"record 0, .*frame 2: image is \(8, 8, 3\), not"):
        frames[2]


# What we write.


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    truths = [truth.make_truth(n, rows=5 + n, hz=10.0, jitter=0.2) for n in range(3)]
    episodes = [episode_of(t) for t in truths]
    episodes[1] = replace(episodes[1], metadata=replace(episodes[1].metadata, success=None))
    folder = write_rlds(tmp_path, iter(episodes), name="reach")
    assert folder == tmp_path / "reach" / "1.0.0"
    source = open_source(tmp_path / "reach", format="rlds")
    for i, (t, written) in enumerate(zip(truths, episodes, strict=True)):
        episode = source.read(i)
        # Angles go through matrices once.
        np.testing.assert_allclose(episode.proprio, written.proprio, atol=3e-7)
        np.testing.assert_allclose(episode.timestamps, t.times, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(episode.joints, written.joints)
        commanded = written.logged_actions["joint_position"]
        np.testing.assert_array_equal(episode.logged_actions["joint_position"], commanded)
        assert list(episode.frames) == ["exterior_1", "wrist"]
        labels = truth.labels(np.asarray(episode.frames["wrist"]))
        assert labels.tolist() == [[k, i, 1] for k in range(5 + i)]
        away = np.asarray(episode.frames["wrist"]).astype(int) - t.frames["wrist"]
        assert np.abs(away).mean() < 3
        kept = episode.metadata
        assert (kept.task, kept.success, kept.name) == (
            t.task,
            written.metadata.success,
            f"run {i}",
        )
        assert source.raw(i).columns["is_last"].nonzero()[0].tolist() == [4 + i]


def test_what_has_neither_joints_nor_commands_is_read_back(tmp_path: Path) -> None:
    t = truth.make_truth(rows=4)
    write_rlds(tmp_path, [episode_of(t, logged=False)])
    episode = open_source(tmp_path / "worldmodel", format="rlds").read(0)
    assert episode.joints is None and not episode.logged_actions
    np.testing.assert_allclose(episode.proprio, t.proprio, atol=3e-7)


def test_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.data.rlds_writer.SHARD_BYTES", 1)
    episodes = [episode_of(truth.make_truth(n, rows=3)) for n in range(3)]
    folder = write_rlds(tmp_path, episodes)
    assert sorted(f.name for f in folder.glob("*tfrecord*")) == [
        f"worldmodel-train.tfrecord-0000{k}-of-00003" for k in range(3)
    ]
    source = open_source(folder, format="rlds")
    assert [source.read(i).metadata.name for i in source.ids()] == ["run 0", "run 1", "run 2"]


def test_a_set_that_fails_leaves_nothing(tmp_path: Path) -> None:
    good = episode_of(truth.make_truth(0, rows=4))
    with pytest.raises(ValueError, match=r"episode 1 \(run 0\) is unlike the first in .*joint_pos"):
        write_rlds(tmp_path, [good, replace(good, joints=None)])
    with pytest.raises(ValueError, match=r"episode 0 \(run 0\): .*proprio"):
        write_rlds(tmp_path, [replace(good, proprio=good.proprio[:2])])
    with pytest.raises(ValueError, match="no episodes"):
        write_rlds(tmp_path, [])
    with pytest.raises(ValueError, match="letters, digits"):
        write_rlds(tmp_path, [good], name="my set")

    def stopped() -> Iterator[Episode]:
        yield good
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rlds(tmp_path, stopped())
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
    write_rlds(tmp_path, [good])
    with pytest.raises(FileExistsError, match="another name or version"):
        write_rlds(tmp_path, [good])


# TensorFlow Datasets beside us, where it is installed.


def test_array_record_needs_an_extra(droid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(droid / "dataset_info.json", fileFormat="array_record")
    for k in range(2):
        (droid / f"r2d2_faceblur-train.array_record-0000{k}-of-00002").touch()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodel\[rlds\]'"):
        Reader(droid).read(0)


@pytest.mark.filterwarnings("ignore")  # of the library, as it is imported and as it writes
def test_what_a_killed_writer_left_is_cleared_away_and_a_running_one_is_let_be(tmp_path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    folder, host = tmp_path / "worldmodel", socket.gethostname()
    left = folder / f".1.0.0.{killed.pid}@{host}"
    others = [folder / f".1.0.0.{os.getppid()}@{host}", folder / f".1.0.0.{killed.pid}@elsewhere"]
    for draft in (left, *others):
        draft.mkdir(parents=True)
    write_rlds(tmp_path, [episode_of(truth.make_truth(0, rows=4))])
    assert sorted(folder.iterdir()) == sorted([*others, folder / "1.0.0"])


def test_array_record_as_tfds_writes_it(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra rlds")
    pytest.importorskip("importlib_resources", reason="tfds needs it to write, but does not say so")
    writer = load("write_rlds")
    features = tfds.features.FeaturesDict.from_json(
        json.loads((GOLDEN / "droid" / "1.0.0" / "features.json").read_text())
    )

    def steps(t) -> list[dict]:
        record = writer.record(t)
        record["steps/observation/exterior_image_2_left"] = record[
            "steps/observation/exterior_image_1_left"
        ]
        rows = len(t.times)
        found: list[dict] = [{"observation": {}, "action_dict": {}} for _ in range(rows)]
        for name, values in record.items():
            if not name.startswith("steps/"):
                continue
            *parents, last = name.split("/")[1:]
            cut = np.array(values).reshape(rows, -1) if isinstance(values[0], float) else values
            for k in range(rows):
                value = cut[k]
                if "image" in last:
                    # A file is taken as it is; pixels would need TensorFlow to encode them.
                    image = tmp_path / f"{t.number}-{last}-{k}.jpg"
                    image.write_bytes(value)
                    value = str(image)
                elif last in ("discount", "reward"):
                    value = float(value[0])
                (found[k][parents[0]] if parents else found[k])[last] = value
        return found

    class Made(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")
        pkg_dir_path = None

        def _info(self):  # noqa: ANN202
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):  # noqa: ANN001, ANN202
            return {"train": self._generate_examples()}

        def _generate_examples(self):  # noqa: ANN202
            for t in golden_truths:
                outcome = "success" if t.success else "failure"
                path = f"/raw/LAB/{outcome}/2023-07-0{t.number + 1}"
                metadata = {"file_path": path, "recording_folderpath": f"{path}/r"}
                yield t.number, {"steps": steps(t), "episode_metadata": metadata}

    Made(data_dir=str(tmp_path / "sets"), file_format="array_record").download_and_prepare()
    source = open_source(tmp_path / "sets" / "made", format="rlds")
    assert len(source) == 3
    for t, _, episode in by_number(source):
        np.testing.assert_allclose(episode.proprio, t.proprio, atol=3e-7)
        assert episode.metadata.success is t.success and episode.metadata.task == t.task
        frames = pickle.loads(pickle.dumps(episode.frames["exterior_1"]))
        assert truth.labels(frames[2:5]).tolist() == [[k, t.number, 0] for k in (2, 3, 4)]


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_array_equal(ours, theirs.astype(ours.dtype))


@pytest.mark.filterwarnings("ignore")  # of the library, as it is imported
@pytest.mark.parametrize("which", ["droid", "other", "written"])
def test_every_value_is_what_tensorflow_reads(which: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow", reason="needs the extra rlds-tf")
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra rlds")
    folder = {"droid": GOLDEN / "droid" / "1.0.0", "other": GOLDEN / "other" / "0.10.0"}.get(which)
    if folder is None:
        truths = [truth.make_truth(n, rows=5 + n) for n in range(3)]
        folder = write_rlds(tmp_path, [episode_of(t) for t in truths])
    reader = Reader(folder)
    builder = tfds.builder_from_directory(str(folder))
    encoded = {
        "steps": {
            "observation": {
                leaf.key.removeprefix("observation."): tfds.decode.SkipDecoding()
                for leaf in reader.leaves
                if leaf.kind == "image"
            }
        }
    }
    theirs = [
        example
        for split in ("train", "val")
        if split in builder.info.splits
        for example in tfds.as_numpy(builder.as_dataset(split=split, decoders=encoded))
    ]
    assert len(theirs) == len(reader.ids())
    for i, example in enumerate(theirs):
        raw = reader.read(i)
        compared = set()
        for k, step in enumerate(example["steps"]):
            flat: dict[str, np.ndarray] = {}
            for key, value in step.items():
                below = value.items() if isinstance(value, dict) else ()
                flat |= {f"{key}.{name}": v for name, v in below} if below else {key: value}
            for key, value in flat.items():
                if key in raw.columns:
                    same(raw.columns[key][k], np.asarray(value))
                    compared.add(key)
                elif key in raw.cameras:
                    # TensorFlow's default is a faster JPEG transform, up to 14 levels off.
                    pixels = (
                        tf.image.decode_jpeg(value, dct_method="INTEGER_ACCURATE")
                        if value.startswith(b"\xff\xd8")
                        else tf.image.decode_png(value)
                    )
                    np.testing.assert_array_equal(raw.cameras[key][k], pixels.numpy())
                    compared.add(key)
                elif isinstance(value, bytes) and value:
                    assert raw.attributes[key] == value.decode()
        assert compared == {*raw.columns, *raw.cameras}
        for key, value in example["episode_metadata"].items():
            expected = raw.attributes.get(f"episode_metadata.{key}")
            if expected is not None:
                assert (value.decode() if isinstance(value, bytes) else value) == expected
