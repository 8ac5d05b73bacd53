import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from worldmodel.data import windows
from worldmodel.data.windows import WindowIndex, split_episodes


def _brute_force(timestamps, dt, length, strides, tolerance, max_gap, usable):
    """Every window as (episode, stride, frames), by looking at every frame for every moment."""
    windows = set()
    for episode, (times, may_use) in enumerate(zip(timestamps, usable, strict=True)):
        for stride in strides:
            for start in times:
                frames = []
                for k in range(length):
                    distance = np.abs(times - (start + k * stride * dt))
                    two = np.sort(distance)[:2]
                    # Ties and distances equal to the tolerance are decided by rounding.
                    assume(len(two) < 2 or two[1] - two[0] > 1e-7)
                    assume(abs(two[0] - tolerance) > 1e-7)
                    if two[0] <= tolerance and may_use[distance.argmin()]:
                        frames.append(int(distance.argmin()))
                if len(frames) == length:
                    gaps = [times[i + 1] - times[i] for i in range(frames[0], frames[-1])]
                    assume(all(abs(gap - max_gap) > 1e-6 for gap in gaps))
                    if all(gap < max_gap for gap in gaps):
                        windows.add((episode, stride, tuple(frames)))
    return windows


@st.composite
def _recordings(draw):
    """Episodes near 4 Hz or 15 Hz with jitter and dropped frames, on clocks with any origin."""
    interval = draw(st.sampled_from([0.25, 0.0667]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    episodes = []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 40))
        times = draw(st.sampled_from([0.0, 1e3, 1.7e9])) + np.arange(n) * interval
        times += rng.uniform(-0.2, 0.2, n) * interval * draw(st.sampled_from([0.0, 1.0]))
        kept = rng.random(n) > draw(st.sampled_from([0.0, 0.1]))
        hole = draw(st.integers(0, 40))
        kept[hole : hole + draw(st.sampled_from([0, 3]))] = False
        may_use = rng.random(n) > draw(st.sampled_from([0.0, 0.1]))
        if kept.any():
            episodes.append((times[kept], may_use[kept]))
    return episodes


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(
    recordings=_recordings(),
    length=st.integers(1, 6),
    strides=st.sampled_from([(1,), (1, 2), (4, 1)]),
    tolerance=st.sampled_from([0.03, 0.0625, 0.11]),
    max_gap=st.sampled_from([None, 0.1, 0.3]),
    masked=st.booleans(),
    block=st.sampled_from([7, 1 << 20]),
)
def test_windows_are_those_that_brute_force_finds(
    recordings, length, strides, tolerance, max_gap, masked, block
):
    assume(recordings)
    timestamps = [times for times, _ in recordings]
    masks = [may_use if masked else np.ones(len(times), bool) for times, may_use in recordings]
    expected = _brute_force(timestamps, 0.25, length, strides, tolerance, max_gap or 1e9, masks)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(windows, "_BLOCK", block)
            index = WindowIndex(
                timestamps,
                0.25,
                length,
                strides=strides,
                tolerance=tolerance,
                max_gap=max_gap,
                usable=[None if mask.all() else mask for mask in masks] if masked else None,
            )
    except ValueError as error:
        wrong = re.match(r"episode (\d+) runs at .* stride (\d+)\)", str(error))
        if wrong:
            event("an episode of the wrong rate")
            assert not {w for w in expected if w[:2] == tuple(map(int, wrong.groups()))}
        else:
            event("no windows")
            assert "no episode is long enough" in str(error)
            assert not expected
        return
    event("windows")
    found = [index[i] for i in range(len(index))]
    assert len(found) == len(expected)
    assert {(w.episode, w.stride, tuple(w.frames.tolist())) for w in found} == expected


def test_a_long_stride_does_not_reach_across_a_gap():
    times = np.delete(np.arange(200) / 20, range(101, 119))  # 0.95 s unseen, between two seconds
    free = WindowIndex([times], dt=0.25, length=2, strides=(4,))
    kept = WindowIndex([times], dt=0.25, length=2, strides=(4,), max_gap=0.5)
    starts = [{int(i[k].frames[0]) for k in range(len(i))} for i in (free, kept)]
    assert starts[0] - starts[1] == {98, 99, 100} and starts[1] < starts[0]


def test_unusable_frames_are_in_no_window_but_may_lie_between_two():
    times, usable = np.arange(60) / 20, np.ones(60, bool)
    usable[22:24] = False
    index = WindowIndex([times, times], dt=0.25, length=3, usable=[usable, None])
    drawn = [index[i] for i in range(len(index))]
    first = {tuple(w.frames.tolist()) for w in drawn if w.episode == 0}
    assert not {frame for frames in first for frame in frames} & {22, 23}
    assert (20, 25, 30) in first and (12, 17, 22) not in first
    second = {tuple(w.frames.tolist()) for w in drawn if w.episode == 1}
    assert first == {frames for frames in second if not {22, 23} & set(frames)}
    with pytest.raises(ValueError, match="0.5 s, the longest of 1 .* or an unusable frame"):
        WindowIndex([times], dt=0.25, length=3, usable=[np.zeros(60, bool)])
    with pytest.raises(ValueError, match="without a gap of more than 0.04 s$"):
        WindowIndex([times], dt=0.25, length=3, max_gap=0.04)


def test_a_60_hz_recording_gives_4_hz_windows():
    index = WindowIndex([np.arange(600) / 60], dt=0.25, length=5, strides=(2,))
    np.testing.assert_array_equal(index[0].frames, [0, 30, 60, 90, 120])


def test_sampled_windows_are_windows_and_all_of_them_come_up():
    rng = np.random.default_rng(0)
    timestamps = [np.arange(n) * 0.25 + rng.uniform(0, 0.05, n) for n in (9, 2, 14)]
    index = WindowIndex(timestamps, dt=0.25, length=4, strides=(1, 2))
    episodes, frames = index.sample(rng, 2000)
    assert episodes.shape == (2000,) and frames.shape == (2000, 4)
    drawn = {(int(e), *f.tolist()) for e, f in zip(episodes, frames, strict=True)}
    windows = (index[i] for i in range(len(index)))
    assert drawn == {(w.episode, *w.frames.tolist()) for w in windows}


def test_the_same_seed_draws_the_same_windows():
    index = WindowIndex([np.arange(50) * 0.25], dt=0.25, length=4)
    draws = [index.sample(np.random.default_rng(3), 20) for _ in range(2)]
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    np.testing.assert_array_equal(draws[0][1], draws[1][1])


@pytest.mark.parametrize("declared, stride", [(1.0, 1), (3.0, 1), (3.9, 4)])
def test_a_wrong_rate_is_an_error_that_names_both_rates(declared, stride):
    good, wrong = np.arange(100) * 0.25, 5.0 + np.arange(100) / declared
    with pytest.raises(
        ValueError,
        match=f"episode 1 runs at {declared:.4g} Hz by its timestamps, which gives no windows of "
        f"16 frames at {4 / stride:.4g} Hz .*stride {stride}",
    ):
        WindowIndex([good, wrong], dt=0.25, length=16, strides=(stride,))


def test_short_and_broken_episodes_are_passed_over_while_others_give_windows():
    whole, short = np.arange(20) * 0.25, np.arange(3) * 0.25
    broken = np.concatenate([np.arange(3) * 0.25, 10.1 + np.arange(3) * 0.25])
    index = WindowIndex([short, whole, broken], dt=0.25, length=4)
    assert {index[i].episode for i in range(len(index))} == {1}
    with pytest.raises(ValueError, match="no episode is long enough: a window of 4 .* 0.75 s"):
        WindowIndex([short, broken], dt=0.25, length=4)


def test_a_stride_named_twice_is_drawn_twice_as_often():
    index = WindowIndex([np.arange(20) * 0.25], dt=0.25, length=4, strides=(1, 2, 2))
    drawn = [index[i] for i in range(len(index))]
    times = Counter((window.stride, *window.frames) for window in drawn)
    assert len(times) == 17 + 14
    assert all(count == window[0] for window, count in times.items())  # 1 once, 2 twice


def test_arguments_out_of_range_are_named():
    times = [np.arange(20) * 0.25]
    for arguments, message in (
        ({"dt": 0.0, "length": 2}, "dt must be a positive number"),
        ({"dt": 0.25, "length": 0}, "length must be at least 1"),
        ({"dt": 0.25, "length": 2, "tolerance": 0.2}, "tolerance must be .* below half of dt"),
        ({"dt": 0.25, "length": 2, "strides": (1, 0)}, r"from 1 up, got \(1, 0\)"),
        ({"dt": 0.25, "length": 2, "strides": ()}, r"from 1 up, got \(\)"),
        ({"dt": 0.25, "length": 2, "max_gap": 0.0}, "max_gap must be a positive number"),
        ({"dt": 0.25, "length": 2, "usable": []}, "usable is of 0 episodes, timestamps of 1"),
        ({"dt": 0.25, "length": 2, "usable": [np.ones(20)]}, r"is float64 \(20,\); expected bool"),
    ):
        with pytest.raises(ValueError, match=message):
            WindowIndex(times, **arguments)
    with pytest.raises(ValueError, match="timestamps of episode 0 must be .* strictly increases"):
        WindowIndex([np.zeros(5)], dt=0.25, length=2)
    with pytest.raises(ValueError, match="no episodes to take windows from"):
        WindowIndex([], dt=0.25, length=2)
    with pytest.raises(IndexError, match="window 16 of 16"):
        WindowIndex(times, dt=0.25, length=5)[16]


def test_adding_episodes_moves_no_episode_to_the_other_side():
    train, validation = split_episodes(range(1000), 0.2, seed=1)
    assert sorted(train + validation) == list(range(1000))
    assert 150 < len(validation) < 250
    more_train, more_validation = split_episodes(range(2000), 0.2, seed=1)
    assert set(train) <= set(more_train) and set(validation) <= set(more_validation)
    assert split_episodes(range(1000), 0.2, seed=2)[1] != validation
    assert split_episodes([3, 1], 0.0, seed=0) == ([3, 1], [])
    for seed in range(20):  # two episodes: one on each side, whatever chance says
        for fraction in (0.01, 0.5, 0.99):
            few, held_out = split_episodes([3, 1], fraction, seed=seed)
            assert sorted([*few, *held_out]) == [1, 3] and len(few) == 1
    assert split_episodes([5], 0.5, seed=0) in (([5], []), ([], [5]))
    with pytest.raises(ValueError, match="validation_fraction must be within 0..1"):
        split_episodes([1], 10, seed=0)
