import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from worldmodel.data.formats import FORMATS, reader_class, reader_of, titles
from worldmodel.data.mapping import RawEpisode, mapping_from
from worldmodel.data.source import MAX_EXAMPLES, Reader, Source, open_source
from worldmodel.data.store import EpisodeStore

MAPPING = {
    "position": "pose[0:3]",
    "rotation": "pose[3:6]",
    "gripper": "grip",
    "cameras": {"exterior": "front", "wrist": "hand"},
}


class Logs(Reader):
    """Six recordings, some broken: what a path says, so that tests need no files."""

    format = "logs"
    title = "logs of tests"
    looked_for = "nothing"
    lacking = {0: "hand"}
    broken: Sequence[int] = ()
    rate: float | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return True

    def ids(self) -> Sequence[int]:
        return range(6)

    @property
    def declared_hz(self) -> float | None:
        return self.rate

    def read(self, episode_id: int) -> RawEpisode:
        if episode_id in self.broken:
            raise ValueError(f"log {episode_id} is broken")
        cameras = {name: np.zeros((4, 2, 2, 3), np.uint8) for name in ("front", "hand")}
        cameras.pop(self.lacking.get(episode_id, ""), None)
        columns = {"pose": np.zeros((4, 6)), "grip": np.zeros(4)}
        return RawEpisode(f"log {episode_id}", columns, cameras)


@pytest.fixture
def logs(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr("worldmodel.data.formats.reader_of", lambda path, name: Logs(path))
    return tmp_path


def test_a_source_is_a_reader_and_what_its_columns_mean(logs):
    source = open_source(logs, mapping=mapping_from(MAPPING), hz=10)
    assert isinstance(source, Source) and isinstance(source.reader, Logs)
    assert (source.format, source.path, len(source)) == ("logs", logs, 6)
    assert list(source.ids()) == [0, 1, 2, 3, 4, 5]
    assert source.raw(2).name == source.read(2).metadata.name == "log 2"
    assert source.read(2).metadata.source == "logs"
    # The first lacks a camera that others have.
    assert source.read(0).metadata.cameras == ("exterior",)
    assert source.read(1).metadata.cameras == ("exterior", "wrist")


def test_a_mapping_may_be_a_file(logs):
    file = logs / "mapping.yaml"
    file.write_text(yaml.safe_dump({**MAPPING, "hz": 20}))
    for given in (file, str(file)):
        assert open_source(str(logs), mapping=given).read(1).metadata.control_hz == 20


@pytest.mark.parametrize(
    ("said", "mapped", "declared", "expected"),
    [(5, 10, 15, 5), (None, 10, 15, 10), (None, None, 15, 15), (0.5, None, None, 0.5)],
)
def test_the_rate_is_what_was_said_last(logs, monkeypatch, said, mapped, declared, expected):
    monkeypatch.setattr(Logs, "rate", declared)
    content = MAPPING if mapped is None else {**MAPPING, "hz": mapped}
    source = open_source(logs, mapping=mapping_from(content), hz=said)
    episode = source.read(1)
    assert source.mapping.hz == episode.metadata.control_hz == expected
    np.testing.assert_allclose(np.diff(episode.timestamps), 1 / expected)


@pytest.mark.parametrize("hz", [0, -3])
def test_a_rate_that_is_none_is_refused(logs, hz):
    with pytest.raises(ValueError, match=f"hz must be positive, got {hz}"):
        open_source(logs, mapping=mapping_from({**MAPPING, "hz": 10}), hz=hz)


def test_without_times_and_rate_an_episode_cannot_be_read(logs):
    source = open_source(logs, mapping=mapping_from(MAPPING))
    with pytest.raises(ValueError, match="log 1 has no times and nothing says its rate"):
        source.read(1)


def test_misspelt_columns_and_cameras_are_found_when_it_is_opened(logs):
    cameras = {"exterior": "front", "wrist": "hnad"}
    with pytest.raises(ValueError, match="no camera 'hnad'; did you mean 'hand'"):
        open_source(logs, mapping=mapping_from({**MAPPING, "cameras": cameras}))
    with pytest.raises(ValueError, match="no column 'girp'; did you mean 'grip'"):
        open_source(logs, mapping=mapping_from({**MAPPING, "gripper": "girp"}))


def test_some_broken_recordings_do_not_keep_the_others_shut(logs, monkeypatch):
    monkeypatch.setattr(Logs, "broken", (0, 1))
    source = open_source(logs, mapping=mapping_from(MAPPING), hz=10)
    assert source.read(2).metadata.name == "log 2"
    with pytest.raises(ValueError, match="log 1 is broken"):
        source.read(1)
    with pytest.raises(ValueError, match="# columns of log 2:"):
        open_source(logs)
    monkeypatch.setattr(Logs, "broken", range(6))
    for mapping in (mapping_from(MAPPING), None):
        with pytest.raises(ValueError, match="log 0 is broken"):
            open_source(logs, mapping=mapping)


def test_only_a_few_recordings_are_read_when_it_is_opened(logs, monkeypatch):
    read, asked = Logs.read, []
    monkeypatch.setattr(Logs, "ids", lambda self: range(1000))
    monkeypatch.setattr(Logs, "read", lambda self, k: asked.append(k) or read(self, k))
    open_source(logs, mapping=mapping_from(MAPPING), hz=10)
    assert asked == [0, 1]
    monkeypatch.setattr(Logs, "lacking", dict.fromkeys(range(1000), "hand"))
    with pytest.raises(ValueError, match="no camera 'hand'"):
        open_source(logs, mapping=mapping_from(MAPPING), hz=10)
    assert len(asked) == 2 + MAX_EXAMPLES


def test_without_a_mapping_there_is_one_to_fill_in(logs):
    with pytest.raises(ValueError) as caught:
        open_source(logs)
    message = str(caught.value)
    assert "logs of tests, which does not say what its columns mean" in message
    assert "#   pose: float64 (4, 6)" in message
    text = message.partition("\n\n")[2]
    # What a user does with it: names of columns in place of the examples.
    for example, ours in (
        ("[x, y, z]", "pose[0:3]"),
        ("[rx, ry, rz]", "pose[3:6]"),
        ("key: gripper", "key: grip"),
    ):
        assert example in text
        text = text.replace(example, f'"{ours}"' if "[" in ours else ours)
    (logs / "mapping.yaml").write_text(text)
    assert open_source(logs, mapping=logs / "mapping.yaml").read(3).steps == 3


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at .*nowhere"):
        open_source(tmp_path / "nowhere")


def test_a_set_without_episodes(tmp_path):
    EpisodeStore(tmp_path / "store", mode="a")
    with pytest.raises(ValueError, match="a worldmodel episode store .*but it has no episodes"):
        open_source(tmp_path / "store")


def test_an_unknown_format_lists_what_was_looked_for(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "aunt.txt").write_text("Dear aunt")
    for path in (tmp_path / "letters", tmp_path / "letters" / "aunt.txt"):
        with pytest.raises(ValueError, match=f"{path} is of no format known here") as caught:
            open_source(path)
        for name, title in titles().items():
            assert re.search(rf"^  {name} +{re.escape(title)}$", str(caught.value), re.MULTILINE)


def test_a_misspelt_format_names_the_nearest(tmp_path):
    message = "unknown format 'lerobt'; did you mean 'lerobot'.* known: zarr_store, lerobot"
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, format="lerobt")


def test_a_format_that_is_named_is_the_one_tried(tmp_path, make_episode):
    store = EpisodeStore(tmp_path, mode="a")
    store.write(0, make_episode())
    assert reader_of(tmp_path, "zarr_store").format == "zarr_store"
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(tmp_path))):
        open_source(tmp_path, format="lerobot")


def test_a_store_is_opened_without_the_libraries_of_other_formats(tmp_path, make_episode):
    EpisodeStore(tmp_path, mode="a").write(0, make_episode())
    code = (
        "import sys; from worldmodel.data.source import open_source; "
        f"open_source({str(tmp_path)!r}).read(0); "
        "print(sorted({'h5py', 'av', 'pyarrow', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_format_says_what_it_is_called_and_looks_for():
    names = set()
    for name in FORMATS:
        reader = reader_class(name)
        assert issubclass(reader, Reader) and reader.format == name
        names.add(reader.title)
    assert len(names) == len(FORMATS)


def test_a_store_is_read_with_another_rate_or_mapping_if_one_is_given(tmp_path, make_episode):
    EpisodeStore(tmp_path, mode="a").write(0, make_episode())
    assert open_source(tmp_path).read(0).metadata == make_episode().metadata
    faster = open_source(tmp_path, hz=8).read(0)
    assert faster.metadata.control_hz == 8 and faster.metadata.seed == 0
    inverted = mapping_from(
        {
            "position": "proprio[0:3]",
            "rotation": "proprio[3:6]",
            "gripper": {"key": "proprio[6]", "open": 1, "closed": 0},
            "time": "timestamps",
            "cameras": {"front": "exterior"},
        }
    )
    episode = open_source(tmp_path, mapping=inverted).read(0)
    np.testing.assert_allclose(episode.proprio[:, 6], 1 - make_episode().proprio[:, 6], atol=1e-6)
    assert episode.metadata.cameras == ("front",)
