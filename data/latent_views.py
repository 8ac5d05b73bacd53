"""The latents of several cameras, one cache each, as if they were one cache of wider pictures."""

from collections.abc import Iterable, Sequence

import numpy as np

from worldmodel.data.latents import LatentCache
from worldmodel.data.moments import Moments


class LatentViews:
    """Caches of the same recordings, each of one camera; a row has the tokens of all of them.

    Only episodes that every cache has are in it. Otherwise as `LatentCache`.

    Attributes:
        cameras: Whose tokens come after whose.
        hz: Rate of the rows [Hz].
        ids: Ids of its episodes, int64, ascending.
        quarantined: Episodes that some cache does not have.

    Args:
        caches: At least one.

    Raises:
        ValueError: They are at different rates, have no episode in common, or the rows of one are
            not those of the others.
    """

    def __init__(self, caches: Sequence[LatentCache]):
        self._caches = tuple(caches)
        first = self._caches[0]
        self.cameras = tuple(cache.recipe.camera for cache in caches)
        self.hz = first.hz
        self.ids = first.ids
        for cache in self._caches[1:]:
            self.ids = np.intersect1d(self.ids, cache.ids)
            if cache.hz != first.hz:
                raise ValueError(
                    f"the latents of {cache.recipe.camera} are at {cache.hz:g} Hz, those of "
                    f"{first.recipe.camera} at {first.hz:g} Hz; encode both at one model_hz"
                )
        if not len(self.ids):
            raise ValueError(f"no episode has latents of all of {', '.join(self.cameras)}")
        for i in self.ids:
            for cache in self._caches[1:]:
                if not np.array_equal(cache.timestamps(i), first.timestamps(i)):
                    raise ValueError(
                        f"the rows of episode {i} are not the same in {first.path} and "
                        f"{cache.path}; delete both folders and encode again"
                    )
        self.quarantined = sorted(
            {one.episode for cache in self._caches for one in cache.quarantined}
            | {int(i) for cache in self._caches for i in cache.ids} - set(self.ids.tolist())
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.ids)

    def timestamps(self, episode: int) -> np.ndarray:
        """Returns float64 capture times (rows,) [s] of an episode id."""
        return self._caches[0].timestamps(episode)

    def gather(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns latents (n, length, V * tokens, size) of episode ids (n,) at frames."""
        return np.concatenate([cache.gather(episodes, frames) for cache in self._caches], axis=2)

    def gather_proprio(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Returns float32 proprio (n, length, 7) of episode ids (n,) at frames (n, length)."""
        return self._caches[0].gather_proprio(episodes, frames)

    def moments(self, episodes: Iterable[int]) -> Moments:
        """Returns mean and variance of each number of a token over the rows of some episodes."""
        ids = list(episodes)
        found = [cache.moments(ids) for cache in self._caches]
        return Moments(
            found[0].weight,
            np.concatenate([one.mean for one in found]),
            np.concatenate([one.squares for one in found]),
        )
