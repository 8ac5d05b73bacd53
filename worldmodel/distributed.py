"""Which of several training processes this is, and the few things they tell one another.

Alone, every function here does what one process would do: nothing, or return what it was given.
"""

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Shared = TypeVar("Shared")
FIRST_PORT = 20_000  # of a Slurm step without MASTER_PORT; the job's number is added
PORTS = 20_000


class ProcessLostError(ConnectionError):
    """Another process of the run is gone, so this one cannot go on either."""


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
        local_rank: Its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0


def launched(environ: Mapping[str, str]) -> Place | None:
    """Returns the place that torchrun or srun gave this process, or None if neither started it."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        local = int(environ.get("LOCAL_RANK", environ["RANK"]))
        return Place(int(environ["RANK"]), int(environ["WORLD_SIZE"]), local)
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", 1))  # of srun; a batch script has none
    if tasks > 1:
        return Place(int(environ["SLURM_PROCID"]), tasks, int(environ["SLURM_LOCALID"]))
    return None


@contextmanager
def joined(
    *,
    environ: MutableMapping[str, str] | None = None,
    timeout_minutes: float = 60.0,
) -> Iterator[Place]:
    """Joins the processes that torchrun or srun started, and leaves them at the end.

    Args:
        environ: Variables that say so, and where the first process listens; those of this process
            if not given.
        timeout_minutes: How long a process waits for the others before it gives up.
    """
    variables = os.environ if environ is None else environ
    place = launched(variables)
    if place is None or dist.is_initialized():
        yield here()
        return
    if "RANK" not in variables:
        _name_first_machine(variables)
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    where = f"tcp://{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
    dist.init_process_group(
        backend,
        # Under torchrun its own store is used; the address is only for srun.
        init_method="env://" if "RANK" in variables else where,
        rank=place.rank,
        world_size=place.world,
        timeout=timedelta(minutes=timeout_minutes),
    )
    try:
        yield place
    finally:
        dist.destroy_process_group()


def _name_first_machine(environ: MutableMapping[str, str]) -> None:
    """Sets where the first process of a Slurm step listens, unless it is set."""
    if "SLURM_LAUNCH_NODE_IPADDR" not in environ and "MASTER_ADDR" not in environ:
        raise ValueError(
            "srun started several processes, but nothing says where the first one runs; "
            "set MASTER_ADDR to the first machine of the job"
        )
    environ.setdefault("MASTER_ADDR", environ.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    port = FIRST_PORT + int(environ.get("SLURM_JOB_ID", 0)) % PORTS
    environ.setdefault("MASTER_PORT", str(port))


def here() -> Place:
    """Returns which process this is; alone unless inside `joined`."""
    if not dist.is_initialized():
        return Place()
    place = launched(os.environ) or Place()
    return Place(dist.get_rank(), dist.get_world_size(), place.local_rank)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def of_first(value: Shared) -> Shared:
    """Returns the value that the first process has."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: Shared) -> list[Shared]:
    """Returns the values of all processes, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean_of_all(values: Tensor) -> Tensor:
    """Returns the mean over the processes; NaN if any has NaN."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def is_lost_peer(error: RuntimeError) -> bool:
    """Says whether an error of torch means that another process is gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))
