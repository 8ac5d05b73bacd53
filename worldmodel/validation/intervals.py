"""How far a number would move with other recordings: a bootstrap over recordings, not windows.

Windows of one recording resemble each other, so they are drawn together (a cluster bootstrap; Efron
and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8).
"""

from collections.abc import Callable

import numpy as np

DRAWS = 500


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], episodes: np.ndarray, *, seed: int
) -> tuple[float, float]:
    """Returns the 95 % interval of a statistic of windows.

    Args:
        statistic: Its value on the windows of the given numbers (n,), which may repeat.
        episodes: Recording (W,) of each window.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(episodes == episode) for episode in np.unique(episodes)]
    drawn = rng.integers(len(rows), size=(DRAWS, len(rows)))
    values = [statistic(np.concatenate([rows[i] for i in draw])) for draw in drawn]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
