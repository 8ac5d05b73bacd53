"""Read anyone's recordings, record one's own, check them, and cut them into windows for training.

    from worldmodel.data import WindowIndex, open_source, split_episodes

    source = open_source("downloads/droid/1.0.1")  # any format, found from what lies there
    train, validation = split_episodes(source.ids(), 0.1, seed=0)
    episodes = [source.read(i) for i in train]  # numbers now, frames when asked for
    windows = WindowIndex([episode.timestamps for episode in episodes], dt=0.25, length=8)

    episode     the schema of one recorded run, and what makes it valid
    source      anyone's recordings, opened: a reader, and what its columns mean
    formats/    the readers, one file each
    mapping     from anyone's keys, units and conventions to the schema
    frames      pictures that are read when asked for; video_frames reads them from videos
    validate    what is wrong with recordings; checks/ finds it, check_page shows it
    inspect     what recordings hold: tables, contact sheets, paths
    convert     writes them as another format; lerobot_writer and rlds_writer do so
    transcode   re-encodes videos for random access
    store       a folder of episodes in zarr v3, safe against crashes and concurrent writers
    collect     records the simulated arm on all cores, resumable
    windows     windows by timestamps, and the split into training and validation
    latents     encoded frames, memory-mapped for training; latent_jobs makes them

The names below are imported when first used, so importing this package is free.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.data.episode import Episode, EpisodeMetadata
    from worldmodel.data.latents import LatentCache
    from worldmodel.data.source import Source, open_source
    from worldmodel.data.store import EpisodeStore
    from worldmodel.data.windows import Window, WindowIndex, split_episodes

__all__ = [
    "Episode",
    "EpisodeMetadata",
    "EpisodeStore",
    "LatentCache",
    "Source",
    "Window",
    "WindowIndex",
    "open_source",
    "split_episodes",
]

_MODULE_OF = {
    "Episode": "episode",
    "EpisodeMetadata": "episode",
    "EpisodeStore": "store",
    "LatentCache": "latents",
    "Source": "source",
    "Window": "windows",
    "WindowIndex": "windows",
    "open_source": "source",
    "split_episodes": "windows",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
