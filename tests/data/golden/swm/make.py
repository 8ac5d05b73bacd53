"""Makes tiny.h5 with the writer of stable-worldmodel 0.1.1: python make.py.

Needs an environment with stable-worldmodel[format]. Row r of episode e has 100 e + r in it.
"""

from pathlib import Path

import numpy as np
from stable_worldmodel.data.formats.hdf5 import HDF5Writer


def episode(number: int, rows: int) -> dict[str, list[np.ndarray]]:
    values = [100 * number + row for row in range(rows)]
    return {
        "pixels": [np.full((8, 8, 3), [v, v + 10, v + 20], np.uint8) for v in values],
        "state": [np.float32([v, v + 0.25]) for v in values],
        "action": [np.float32([-v]) for v in values],
        "step_idx": [np.int64(row) for row in range(rows)],
    }


with HDF5Writer(Path(__file__).with_name("tiny.h5"), mode="overwrite") as writer:
    writer.write_episode(episode(0, rows=3))
    writer.write_episode(episode(1, rows=5))
