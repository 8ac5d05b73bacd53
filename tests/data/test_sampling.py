import numpy as np
import pytest

from worldmodel.data.sampling import rows_at_rate
from worldmodel.data.windows import WindowIndex


@pytest.mark.parametrize("recorded", [8.0, 14.3, 15.0, 30.0, 60.0])
def test_rows_stand_on_the_grid_however_the_clock_jitters(recorded):
    rng = np.random.default_rng(0)
    jitter = rng.uniform(-0.02, 0.02, 200) / recorded
    times = 1.7e9 + np.arange(200) / recorded + jitter
    rows = rows_at_rate(times, 4.0)
    ideal = times[0] + np.arange(len(rows)) / 4
    assert np.abs(times[rows] - ideal).max() <= 0.0626
    assert times[-1] - ideal[-1] < 0.25, "the grid reaches to the end"
    # Each window of model steps is there.
    assert len(WindowIndex([times[rows]], dt=0.25, length=3)) == len(rows) - 2


def test_a_gap_stays_a_gap_and_no_window_crosses_it():
    times = np.delete(np.arange(300) / 15, np.arange(100, 137))
    rows = rows_at_rate(times, 5.0)
    assert np.diff(times[rows]).max() > 2.4
    index = WindowIndex([times[rows]], dt=0.2, length=4)
    spans = [np.ptp(times[rows][index[i].frames]) for i in range(len(index))]
    assert max(spans) < 0.7


def test_rows_that_must_not_be_used_are_not():
    times, usable = np.arange(60) / 15, np.ones(60, bool)
    usable[:2], usable[30:45] = False, False
    assert rows_at_rate(times, None, usable=usable).tolist() == np.flatnonzero(usable).tolist()
    rows = rows_at_rate(times, 5.0, usable=usable)
    assert usable[rows].all()
    assert rows.tolist() == [*range(2, 30, 3), *range(47, 60, 3)]


def test_the_last_row_is_a_row_like_any_other():
    assert rows_at_rate(np.arange(13) * 0.1, 2.5).tolist() == [0, 4, 8, 12]
    assert rows_at_rate(np.arange(13) * 0.1, None).tolist() == list(range(13))


@pytest.mark.parametrize("recorded", [3.3, 3.9, 4.2, 5.1])
def test_a_recording_at_about_the_rate_keeps_all_rows(recorded):
    times = np.arange(100) / recorded
    assert rows_at_rate(times, 4.0).tolist() == list(range(100))


@pytest.mark.parametrize("recorded", [1.0, 3.0, 6.0, 7.0])
def test_a_rate_that_the_recording_does_not_have_is_an_error(recorded):
    with pytest.raises(ValueError, match=f"its rows are {recorded:.4g} Hz, which gives no rows at"):
        rows_at_rate(np.arange(100) / recorded, 4.0)


def test_an_episode_without_usable_rows_has_none():
    assert len(rows_at_rate(np.arange(5.0), 2.0, usable=np.zeros(5, bool))) == 0
