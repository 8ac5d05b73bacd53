"""Record episodes, keep them, look at them, and cut them into windows for training.

    from worldmodel.data import EpisodeStore, WindowIndex, split_episodes
    from worldmodel.data.collect import collect

    collect("runs/reach/episodes", episodes=100, seed=0)
    store = EpisodeStore("runs/reach/episodes")
    train, validation = split_episodes(store.ids(), 0.1, seed=0)
    windows = WindowIndex([store.read_timestamps(i) for i in train], dt=0.25, length=8)

    episode     the schema of one recorded run, and what makes it valid
    collect     records the simulated arm on all cores, resumable
    store       a folder of episodes in zarr v3, safe against crashes and concurrent writers
    inspect     what a store holds: tables, contact sheets, paths
    windows     windows by timestamps, and the split into training and validation
    latents     encoded frames, memory-mapped for training

The names below are imported when first used, so importing this package is free.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.data.episode import Episode, EpisodeMetadata
    from worldmodel.data.latents import LatentCache
    from worldmodel.data.store import EpisodeStore
    from worldmodel.data.windows import Window, WindowIndex, split_episodes

__all__ = [
    "Episode",
    "EpisodeMetadata",
    "EpisodeStore",
    "LatentCache",
    "Window",
    "WindowIndex",
    "split_episodes",
]

_MODULE_OF = {
    "Episode": "episode",
    "EpisodeMetadata": "episode",
    "EpisodeStore": "store",
    "LatentCache": "latents",
    "Window": "windows",
    "WindowIndex": "windows",
    "split_episodes": "windows",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
