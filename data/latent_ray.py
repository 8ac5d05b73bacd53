"""Units of encoding on a Ray cluster, through Ray Data.

A unit is a block of its own, and a worker is an actor that gets the encoder once. A worker that
dies is started again, here or on another machine, and its unit is encoded anew: `encode_unit`
leaves nothing half and nothing twice, so what comes out is the same, byte for byte.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worldmodel.data.latent_shards import Receipt
from worldmodel.extras import require

DEATHS = 3  # of workers that one unit may cost; more is the unit's own fault, such as its memory


@dataclass(frozen=True)
class RayCluster:
    """Where Ray encodes, and what it sets aside for each worker.

    Attributes:
        address: Cluster; None is the one of RAY_ADDRESS, or else this machine alone. All its
            machines must see the same files at the same paths.
        cpus: Cores of a worker.
        gpus: Its GPUs; may be a fraction.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class _Worker:
    """Encodes units, in the folder that the program was started in."""

    def __init__(self, run: Callable[[int], Receipt], folder: str):
        os.chdir(folder)
        self.run = run

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the unit's receipt, or the error that whoever started this must see."""
        try:
            return {"outcome": self.run(int(row["unit"]))}
        except (ValueError, OSError) as error:
            return {"outcome": error}


def run_on_ray(
    run: Callable[[int], Receipt], units: Sequence[int], *, workers: int, cluster: RayCluster
) -> Iterator[Receipt]:
    """Yields the receipts of units as they are finished, in any order.

    Args:
        run: Encodes a unit; picklable.
        units: Their numbers.
        workers: Workers at once.
        cluster: Where.

    Raises:
        ImportError: Ray is not installed; the message is the command that installs it.
        ValueError: A unit cannot be encoded, see `encode_unit`.
        OSError: It cannot be written.
        RuntimeError: Workers keep dying of one unit.
    """
    ray = require("ray", extra="ray")
    data = require("ray.data", extra="ray")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(address=cluster.address, log_to_driver=False)
    data.DataContext.get_current().enable_progress_bars = False  # whoever called shows one
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        todo = data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args. is deprecated")
            done = todo.map(
                _Worker,
                fn_constructor_args=(run, os.getcwd()),
                concurrency=min(workers, len(units)),
                num_cpus=cluster.cpus,
                num_gpus=cluster.gpus,
                max_task_retries=DEATHS,
            )
        for row in done.iter_rows():
            if isinstance(row["outcome"], Exception):
                raise row["outcome"]
            yield row["outcome"]
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"workers of Ray died {DEATHS + 1} times of the same shard; memory may have run out: "
            "set more cpus= aside for a worker, so that fewer share a machine. The same command "
            "goes on from the finished shards"
        ) from error
    finally:
        if started_here:
            ray.shutdown()
