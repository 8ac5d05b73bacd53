"""A cache of what a frozen encoder sees: packed, uncompressed, memory-mapped.

Training draws short windows at random rows, which a flat memory map serves 40 to 100 times cheaper
than a chunked or compressed store. A row is one frame with its pose and time, so training needs
nothing else. `worldmodel.data.latent_jobs` makes caches, `worldmodel.data.latent_shards` has the
layout of their files.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.data.latent_shards import (
    MOMENTS,
    QuarantinedEpisode,
    Recipe,
    map_shard,
    moments_of,
    restore,
)
from worldmodel.data.moments import Moments

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Statistics:
    """What is known of the latents of a cache as a whole.

    Attributes:
        episodes: Number of episodes.
        rows: Number of rows.
        standard_error: Median and largest standard error of the mean of a number, in units of its
            standard deviation. Rows of an episode are alike, so it comes from the spread of the
            episodes' means: it is as if there were 1 / error^2 independent rows. NaN for less than
            two episodes.
        pooling_loss: Share of the variance of the tokens that pooling has averaged away; 0 without.
        rounding: Root mean square error of storing, over the root mean square of the latents.
    """

    episodes: int
    rows: int
    standard_error: tuple[float, float]
    pooling_loss: float
    rounding: float

    def __str__(self) -> str:
        median, largest = self.standard_error
        pooled = f"; pooling loses {self.pooling_loss:.1%} of the variance"
        return (
            f"{self.episodes} episodes, {self.rows} rows; whitening: the means are known to "
            f"{median:.1%} of a standard deviation (median; worst {largest:.1%})"
            f"{pooled if self.pooling_loss else ''}; storing adds an error of {self.rounding:.2%}"
        )


class LatentCache:
    """Latents, proprio and timestamps of many episodes, addressed by episode id.

    Attributes:
        path: Its folder.
        key: Key of its recipe.
        recipe: How its latents came about.
        hz: Rate of its rows [Hz]; the declared rate where every row was kept.
        ids: Ids of its episodes, int64, ascending.
        quarantined: Episodes of the source that it does not have, and why.

    Example:
        cache = LatentCache(path, recipe.key)
        index = WindowIndex([cache.timestamps(i) for i in cache.ids], dt=0.25, length=8)
        positions, frames = index.sample(rng, 48)
        latents = cache.gather(cache.ids[positions], frames)  # (48, 8, tokens, size)
    """

    def __init__(self, path: str | Path, expected_key: str) -> None:
        """Opens a finished cache.

        Args:
            path: Folder of the cache.
            expected_key: Key of the recipe that the latents must come from.

        Raises:
            FileNotFoundError: There is no finished cache at `path`.
            ValueError: It was made by another recipe, or by another version of this program.
        """
        self.path = Path(path)
        file = self.path / "index.json"
        if not file.exists():
            raise FileNotFoundError(
                f"no finished latent cache at {self.path}; run worldmodel encode, again if it was "
                "stopped: it goes on where it was"
            )
        index = json.loads(file.read_text())
        if index["worldmodel_latent_cache"] != FORMAT_VERSION:
            raise ValueError(
                f"{self.path} has format version {index['worldmodel_latent_cache']}, this program "
                f"reads {FORMAT_VERSION}; encode again in another folder, or update worldmodel"
            )
        if index["key"] != expected_key:
            raise ValueError(
                f"the latents in {self.path} were made with key '{index['key']}', but "
                f"'{expected_key}' is wanted: the encoder or its preprocessing has changed; delete "
                "the folder and encode again, or encode into another folder"
            )
        self.key: str = index["key"]
        self.recipe = Recipe(**index["recipe"])
        self.hz: float = index["hz"]
        self.quarantined = [
            QuarantinedEpisode(q["episode"], q["stamp"], tuple(q["reasons"]))
            for q in index["quarantined"]
        ]
        order = np.argsort(index["episode"])
        self.ids = np.array(index["episode"], np.int64)[order]
        self._shard = np.array(index["shard"], np.int64)[order]
        self._row = np.array(index["row"], np.int64)[order]
        self._rows = np.array(index["rows"], np.int64)[order]
        self._made = index["shards"]
        self._shards = [map_shard(self.path / shard["file"]) for shard in self._made]

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.ids)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The camera it is of, as `LatentViews` has several."""
        return (self.recipe.camera,)

    def __reduce__(self) -> tuple[type["LatentCache"], tuple[Path, str]]:
        """Pickles as its path, so that a worker process maps the files instead of copying them."""
        return LatentCache, (self.path, self.key)

    def latents(self, episode: int) -> np.ndarray:
        """Returns latents (rows, tokens, size) of an episode id.

        They are memory-mapped, read-only float16; or float32, restored from int8.
        """
        values = self._episode(episode, "latents")
        if self.recipe.dtype == "float16":
            return values
        return restore(values, self._episode(episode, "scale"))

    def proprio(self, episode: int) -> np.ndarray:
        """Returns float32 proprio (rows, 7) of an episode id."""
        return self._episode(episode, "proprio")

    def timestamps(self, episode: int) -> np.ndarray:
        """Returns float64 capture times (rows,) [s] of an episode id."""
        return self._episode(episode, "timestamps")

    def gather(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns latents (n, length, tokens, size) of episode ids (n,) at frames (n, length).

        Frames are counted in rows of the cache. The latents are float16; float32 if stored as int8.
        """
        values = self._gather(episodes, frames, "latents")
        if self.recipe.dtype == "float16":
            return values
        return restore(values, self._gather(episodes, frames, "scale"))

    def gather_proprio(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns float32 proprio (n, length, 7) of episode ids (n,) at frames (n, length)."""
        return self._gather(episodes, frames, "proprio")

    def moments(self, episodes: Iterable[int]) -> Moments:
        """Returns mean and variance of each number of a token over the rows of some episodes.

        Nothing of any other episode enters. The moments of each shard are known, so only the
        smaller part is read: the episodes named, or those not named, whose share is taken off.
        """
        named = np.zeros(len(self), bool)
        named[self._positions(np.asarray(list(episodes), np.int64))] = True
        if 2 * self._rows[named].sum() <= self._rows.sum():
            return self._read_moments(self.ids[named])
        return self._known_moments("row") - self._read_moments(self.ids[~named])

    @property
    def statistics(self) -> Statistics:
        """What is known of all latents together, from the sums in the shards."""
        rows, episodes = self._known_moments("row"), self._known_moments("episode")
        n = len(self)
        # Sum over episodes of (rows of it)^2 * (its mean - mean of all)^2.
        spread = episodes.squares + episodes.weight * np.square(episodes.mean - rows.mean)
        varies = rows.squares > 0
        error = np.full(1, np.nan)
        if n > 1 and varies.any():
            variance = spread * n / (n - 1) / rows.weight**2  # of the mean
            error = np.sqrt(variance[varies]) / rows.std[varies]
        loss = 0.0
        if self.recipe.pool > 1:
            before = float(self._known_moments("unpooled").squares.sum())
            loss = 1 - self.recipe.pool**2 * float(rows.squares.sum()) / before if before else 0.0
        values = sum(shard["value_squares"] for shard in self._made)
        errors = sum(shard["error_squares"] for shard in self._made)
        return Statistics(
            episodes=n,
            rows=int(self._rows.sum()),
            standard_error=(float(np.median(error)), float(error.max())),
            pooling_loss=loss,
            rounding=float(np.sqrt(errors / values)) if values else 0.0,
        )

    def _known_moments(self, which: str) -> Moments:
        assert which in MOMENTS
        total = Moments()
        for shard, made in zip(self._shards, self._made, strict=True):
            total = total + moments_of(shard, made["weights"], which)
        return total

    def _read_moments(self, ids: np.ndarray) -> Moments:
        total = Moments()
        for i in ids:
            total = total + Moments.of(self.latents(i))
        return total

    def _positions(self, episodes: np.ndarray) -> np.ndarray:
        positions = np.searchsorted(self.ids, episodes)
        found = self.ids[np.minimum(positions, len(self.ids) - 1)] == episodes
        if not found.all():
            missing = int(episodes[~found][0])
            why = [" and ".join(q.reasons) for q in self.quarantined if q.episode == missing]
            raise KeyError(
                f"no latents of episode {missing} in {self.path}; "
                + (
                    f"it was quarantined: {why[0]}"
                    if why
                    else f"it has {len(self)} episodes, ids {self.ids[0]} to {self.ids[-1]}"
                )
            )
        return positions

    def _episode(self, episode: int, name: str) -> np.ndarray:
        i = self._positions(np.array([episode]))[0]
        return self._shards[self._shard[i]][name][self._row[i] : self._row[i] + self._rows[i]]

    def _gather(self, episodes: np.ndarray, frames: np.ndarray, name: str) -> np.ndarray:
        if frames.ndim != 2 or episodes.shape != frames.shape[:1]:
            raise ValueError(
                f"expected episodes (n,) and frames (n, length), got {episodes.shape} and "
                f"{frames.shape}"
            )
        i = self._positions(episodes)
        beyond = (frames < 0) | (frames >= self._rows[i][:, None])
        if beyond.any():
            n, k = np.argwhere(beyond)[0]
            raise IndexError(
                f"frame {frames[n, k]} of episode {episodes[n]}, which has {self._rows[i[n]]}"
            )
        rows, shards = self._row[i][:, None] + frames, self._shard[i]
        first = self._shards[0][name]
        result = np.empty((*frames.shape, *first.shape[1:]), first.dtype)
        # Straight into the result, one copy in all. "clip" because rows are checked already and
        # "raise" would go through a buffer.
        for n in range(len(rows)):
            self._shards[shards[n]][name].take(rows[n], axis=0, out=result[n], mode="clip")
        return result
