"""Statistics of an episode's columns and pixels, in the shapes that LeRobot normalises with."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmodel.data.frames import Frames

SAMPLED_FRAMES = 100  # of an episode, for the statistics of its pixels
SAMPLED_SIDE = 160  # pixels

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Stats = dict[str, dict[str, np.ndarray]]  # feature -> statistic -> values


def number_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns statistics over the rows of (rows, ...): (size,) each, and their count (1,)."""
    numbers = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(numbers)]),
        **{name: np.quantile(numbers, q, axis=0) for name, q in _QUANTILES.items()},
    }


def pixel_stats(frames: Frames) -> dict[str, np.ndarray]:
    """Returns statistics of each colour in [0, 1], (3, 1, 1), and the count of frames (1,).

    Up to `SAMPLED_FRAMES` frames are looked at, thinned to about `SAMPLED_SIDE` pixels.
    """
    sampled = min(len(frames), SAMPLED_FRAMES)
    pixels = frames[np.linspace(0, len(frames) - 1, sampled).round().astype(np.int64)]
    step = max(1, max(pixels.shape[1:3]) // SAMPLED_SIDE)
    pixels = pixels[:, ::step, ::step].reshape(-1, 3)
    # A byte has 256 values: how often each occurs says everything.
    counts = np.stack([np.bincount(pixels[:, colour], minlength=256) for colour in range(3)])
    share, levels = counts / len(pixels), np.arange(256) / 255
    below, mean = np.cumsum(counts, axis=1), share @ levels
    stats = {
        "min": levels[(counts > 0).argmax(axis=1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1)),
        **{
            name: levels[(below >= q * len(pixels)).argmax(axis=1)]
            for name, q in _QUANTILES.items()
        },
    }
    return {name: values.reshape(3, 1, 1) for name, values in stats.items()} | {
        "count": np.array([sampled])
    }


def combined(a: Stats, b: Stats) -> Stats:
    """Returns the statistics of two sets together; quantiles are averaged, as LeRobot does."""
    result: Stats = {}
    for key, one in a.items():
        other = b[key]
        count = one["count"] + other["count"]
        share = float(other["count"][0] / count[0])
        mixed = {name: (1 - share) * one[name] + share * other[name] for name in one}
        within = (1 - share) * one["std"] ** 2 + share * other["std"] ** 2
        between = share * (1 - share) * (other["mean"] - one["mean"]) ** 2
        result[key] = mixed | {
            "min": np.minimum(one["min"], other["min"]),
            "max": np.maximum(one["max"], other["max"]),
            "std": np.sqrt(within + between),
            "count": count,
        }
    return result


def as_lists(stats: Stats) -> dict[str, dict[str, Any]]:
    """Returns statistics as JSON and Parquet take them."""
    return {
        key: {name: value.tolist() for name, value in values.items()}
        for key, values in stats.items()
    }


def stats_in(row: Mapping[str, Any]) -> Stats:
    """Returns the statistics in a row of meta/episodes, as `stats/<feature>/<statistic>`."""
    stats: Stats = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            key, statistic = name.removeprefix("stats/").rsplit("/", 1)
            stats.setdefault(key, {})[statistic] = np.array(value)
    return stats
