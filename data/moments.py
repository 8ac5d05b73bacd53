"""Means and variances of many arrays, summed up piece by piece without losing digits.

Sums of squares cancel when a value hardly varies around a large mean, as the tokens of a still
background do. Counts, means and squared deviations do not, and merge exactly.
Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm".
"""

from dataclasses import dataclass, field

import numpy as np

CHUNK = 128  # rows whose deviations are held at once


@dataclass(frozen=True)
class Moments:
    """Weight, mean and summed squared deviation from that mean, per element, in float64."""

    weight: float = 0.0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(()))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(()))

    @classmethod
    def of(cls, rows: np.ndarray) -> "Moments":
        """Returns the moments over the first axis of floats (n, ...)."""
        total = cls()
        for begin in range(0, len(rows), CHUNK):
            part = np.asarray(rows[begin : begin + CHUNK], np.float32)
            mean = part.mean(axis=0, dtype=np.float64)
            squares = np.square(part - mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
            total = total + cls(float(len(part)), mean, squares)
        return total

    def __add__(self, other: "Moments") -> "Moments":
        """Returns the moments of both together."""
        weight = self.weight + other.weight
        if weight == 0:
            return self
        delta = other.mean - self.mean
        return Moments(
            weight,
            self.mean + delta * (other.weight / weight),
            self.squares + other.squares + np.square(delta) * (self.weight * other.weight / weight),
        )

    def __sub__(self, part: "Moments") -> "Moments":
        """Returns the moments of what remains without a part that was added before."""
        weight = self.weight - part.weight
        if part.weight == 0:
            return self
        if weight <= 0:
            return Moments()
        mean = self.mean + (self.mean - part.mean) * (part.weight / weight)
        squares = self.squares - part.squares
        squares = squares - np.square(part.mean - mean) * (part.weight * weight / self.weight)
        return Moments(weight, mean, np.maximum(squares, 0))

    @property
    def std(self) -> np.ndarray:
        """Standard deviation per element (of the population, not its estimate)."""
        return np.sqrt(self.squares / self.weight)
