import cv2
import numpy as np
import pytest

from worldmodel.data.inspect import contact_sheet, describe, path_figure, summarise
from worldmodel.data.mapping import mapping_from
from worldmodel.data.source import Source, open_source
from worldmodel.data.store import EpisodeStore


@pytest.fixture
def source(tmp_path, make_episode) -> Source:
    store = EpisodeStore(tmp_path / "store", mode="a")
    for i in range(4):
        store.write(i, make_episode(i, steps=10 + i, size=16))
    return open_source(tmp_path / "store")


def test_the_summary_counts_what_is_there(source):
    summary = summarise(source, progress=False)
    assert (summary.episodes, summary.sampled, summary.steps) == (4, 4, 46)
    assert summary.cameras == {"exterior 16 x 16": 4}
    assert summary.behaviours == {"noisy": 4}
    assert summary.successes == {"unknown": 4}
    assert summary.clock == {"measured": 4}
    assert summary.hours == pytest.approx(46 * 0.25 / 3600, rel=0.01)
    assert summary.measured_hz[0] == pytest.approx(4, rel=0.05)
    assert summary.declared_hz == (4, 4)
    assert summary.unreadable == ()
    episodes = [source.read(i) for i in source.ids()]
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_allclose(summary.action_percentiles[2], np.median(actions, axis=0))
    positions = np.concatenate([episode.proprio[:, :3] for episode in episodes])
    np.testing.assert_array_equal(summary.workspace, [positions.min(axis=0), positions.max(axis=0)])
    table = str(summary)
    for text in ("46  (0.00 h)", "noisy (4)", "d gripper", "(zarr_store)", "timestamps in s"):
        assert text in table


def test_a_large_set_is_sampled_and_says_so(source):
    summary = summarise(source, max_episodes=2, progress=False)
    assert (summary.episodes, summary.sampled, summary.steps) == (4, 2, 10 + 13)
    assert "4; below: 2, evenly spread" in str(summary)


def test_an_episode_that_cannot_be_read_is_named(source):
    (source.path / "episodes/00000002/proprio/c/0/0").write_bytes(b"short")
    summary = summarise(source, progress=False)
    assert summary.steps == 46 - 12
    (reason,) = summary.unreadable
    assert reason.startswith("episode 2: ")
    assert "1 of 4 episodes cannot be read" in str(summary)


def test_conventions_are_described_in_words():
    mapping = mapping_from(
        {
            "hz": 15,
            "position": {"key": ["x", "y", "z"], "unit": "mm"},
            "rotation": {"key": "pose[3:6]", "form": "euler_XYZ", "unit": "deg"},
            "gripper": {"key": "width", "open": 0.08, "closed": 0},
            "cameras": {"front": "front"},
            "usable": {"key": "skip", "inverted": True},
            "actions": {"joint_velocity": "cmd"},
        }
    )
    assert describe(mapping) == {
        "position": "x, y, z in mm",
        "rotation": "pose[3:6] as euler_XYZ in deg",
        "gripper": "width, 0.08 open to 0 closed",
        "time": "counted from the declared rate",
        "usable": "not skip",
        "action": "change of the measured pose from one row to the next, rotation on the left",
        "kept as is": "joint_velocity",
    }


def test_the_contact_sheet_grows_with_rows_and_columns(tmp_path, source):
    path = contact_sheet(source, tmp_path / "out" / "sheet.png", rows=2, columns=3)
    few = cv2.imread(str(path))
    assert few is not None and few.shape[2] == 3
    many = cv2.imread(str(contact_sheet(source, tmp_path / "more.png", rows=9, columns=5)))
    assert many is not None
    assert many.shape[0] > 1.5 * few.shape[0] and many.shape[1] > few.shape[1]
    with pytest.raises(ValueError, match="rows and columns must be at least 1"):
        contact_sheet(source, tmp_path / "sheet.png", rows=0)


def test_paths_are_drawn(tmp_path, source):
    image = cv2.imread(str(path_figure(source, tmp_path / "paths.png")))
    assert image is not None
    assert image.std() > 5, "the figure is not blank"


def test_an_empty_set_is_an_error(tmp_path):
    EpisodeStore(tmp_path / "empty", mode="a")
    with pytest.raises(ValueError, match="it has no episodes"):
        open_source(tmp_path / "empty")
