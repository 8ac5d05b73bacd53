import json

import cv2
import numpy as np
import pytest

from worldmodel.data.inspect import contact_sheet, path_figure, summarise
from worldmodel.data.store import EpisodeStore


@pytest.fixture
def store(tmp_path, make_episode) -> EpisodeStore:
    store = EpisodeStore(tmp_path / "store", mode="a")
    for i in range(4):
        store.write(i, make_episode(i, steps=10 + i, size=16))
    return store


def test_the_summary_counts_what_is_there(store):
    summary = summarise(store, progress=False)
    assert (summary.episodes, summary.steps) == (4, 46)
    assert summary.cameras == {"exterior 16 x 16": 4}
    assert summary.behaviours == {"noisy": 4}
    assert summary.hours == pytest.approx(46 * 0.25 / 3600, rel=0.01)
    assert summary.measured_hz[0] == pytest.approx(4, rel=0.05)
    assert summary.problems == ()
    actions = np.concatenate([store.read_actions(i) for i in store.ids()])
    np.testing.assert_allclose(summary.action_percentiles[2], np.median(actions, axis=0))
    positions = np.concatenate([store.read_proprio(i)[:, :3] for i in store.ids()])
    np.testing.assert_array_equal(summary.workspace, [positions.min(axis=0), positions.max(axis=0)])
    table = str(summary)
    for text in ("46  (0.00 h)", "noisy (4)", "d gripper", "0 problems"):
        assert text in table


def test_a_declared_rate_that_timestamps_contradict_is_a_problem(store):
    file = store.path / "episodes/00000002/zarr.json"
    group = json.loads(file.read_text())
    group["attributes"]["control_hz"] = 60.0
    file.write_text(json.dumps(group))
    (problem,) = summarise(store, progress=False).problems
    assert problem.startswith("episode 2: timestamps run at") and "declares 60 Hz" in problem


def test_the_contact_sheet_grows_with_rows_and_columns(tmp_path, store):
    path = contact_sheet(store, tmp_path / "out" / "sheet.png", rows=2, columns=3)
    few = cv2.imread(str(path))
    assert few is not None and few.shape[2] == 3
    many = cv2.imread(str(contact_sheet(store, tmp_path / "more.png", rows=9, columns=5)))
    assert many is not None
    assert many.shape[0] > 1.5 * few.shape[0] and many.shape[1] > few.shape[1]
    with pytest.raises(KeyError, match="episode 0 has no 'frames/wrist'"):
        contact_sheet(store, tmp_path / "sheet.png", camera="wrist")
    with pytest.raises(ValueError, match="rows and columns must be at least 1"):
        contact_sheet(store, tmp_path / "sheet.png", rows=0)


def test_paths_are_drawn(tmp_path, store):
    image = cv2.imread(str(path_figure(store, tmp_path / "paths.png")))
    assert image is not None
    assert image.std() > 5, "the figure is not blank"


def test_an_empty_store_is_an_error_everywhere(tmp_path):
    empty = EpisodeStore(tmp_path / "empty", mode="a")
    for look in (
        lambda: summarise(empty, progress=False),
        lambda: contact_sheet(empty, tmp_path / "sheet.png"),
        lambda: path_figure(empty, tmp_path / "paths.png"),
    ):
        with pytest.raises(ValueError, match="has no episodes"):
            look()
