"""Intervals by a bootstrap over recordings."""

import numpy as np

from worldmodel.validation.intervals import bootstrap_interval


def test_windows_of_one_recording_count_as_one_observation():
    rng = np.random.default_rng(0)
    alone = rng.normal(size=400)
    grouped = np.repeat(rng.normal(size=20), 20)  # 400 windows, but only 20 recordings

    def width(values, episodes):
        low, high = bootstrap_interval(lambda rows: values[rows].mean(), episodes, seed=0)
        return high - low

    assert 0.15 < width(alone, np.arange(400)) < 0.25  # 2 * 1.96 / sqrt(400) = 0.196
    assert 0.55 < width(grouped, np.repeat(np.arange(20), 20)) < 1.2  # / sqrt(20): 0.88


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(50):
        values = rng.normal(size=60)
        low, high = bootstrap_interval(
            lambda rows, v=values: v[rows].mean(), np.arange(60), seed=trial
        )
        held += low < 0 < high
    assert 42 <= held <= 50
