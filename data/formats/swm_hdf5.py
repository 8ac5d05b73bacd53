"""HDF5 of stable-worldmodel: one dataset per column over all steps of all episodes.

    <column>     (steps, ...)      images (steps, height, width, 3) uint8
    ep_len       int32 (episodes,)
    ep_offset    int64 (episodes,) first step of each episode

It has no times, units or conventions, so it always needs a mapping. What it calls `action` in a row
is what was done after that row's observation; the last of an episode had no effect that was seen.

Source: `HDF5Writer` of stable-worldmodel 0.1.1.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldmodel.data import source
from worldmodel.data.formats.hdf5 import (
    camera_of,
    dataset_at,
    datasets_of,
    is_column,
    opened,
    read_rows,
    root_names,
)
from worldmodel.data.frames import Frames
from worldmodel.data.mapping import RawEpisode

LENGTHS, OFFSETS = "ep_len", "ep_offset"


class Reader(source.Reader):
    """Reads a file of stable-worldmodel; always needs a mapping."""

    format = "swm_hdf5"
    title = "stable-worldmodel HDF5"
    looked_for = f"a .h5 or .hdf5 file with {LENGTHS} and {OFFSETS}"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with opened(path) as content:
            self._lengths = read_rows(dataset_at(content, LENGTHS, path), path)
            self._offsets = read_rows(dataset_at(content, OFFSETS, path), path)
        if len(self._lengths) != len(self._offsets):
            raise ValueError(
                f"{path}: {LENGTHS} has {len(self._lengths)} episodes, {OFFSETS} "
                f"{len(self._offsets)}; expected as many"
            )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        return {LENGTHS, OFFSETS} <= root_names(path)

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return range(len(self._lengths))

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`."""
        if episode_id not in self.ids():
            raise KeyError(f"no episode {episode_id} in {self.path}; it has {len(self.ids())}")
        first, count = int(self._offsets[episode_id]), int(self._lengths[episode_id])
        columns: dict[str, np.ndarray] = {}
        cameras: dict[str, Frames] = {}
        with opened(self.path) as content:
            for key, dataset in datasets_of(content):
                if key in (LENGTHS, OFFSETS) or dataset.ndim == 0:
                    continue
                if len(dataset) < first + count:
                    raise ValueError(
                        f"{self.path}: '{key}' has {len(dataset)} rows, but episode {episode_id} "
                        f"goes up to row {first + count}; was the file still being written?"
                    )
                camera = camera_of(dataset, self.path, first=first, count=count)
                if camera is not None:
                    cameras[key] = camera
                elif is_column(dataset):
                    columns[key] = read_rows(dataset, self.path, first=first, count=count)
        return RawEpisode(f"episode {episode_id}", columns=columns, cameras=cameras)
