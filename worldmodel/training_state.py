"""The state of a training run on disk: what a stopped run goes on from.

    run/state/step-00000300/   weights, optimiser and companions in shards, and meta.json
    run/state/best-00000200/   the weights with the best validation so far

A folder gets its name when all of it is written; until then it ends in `.part` and is never read.
The shards are torch's own (torch.distributed.checkpoint), so a state saved by n processes is loaded
by any other number. They are read back by this program only; a model is passed on as the
safetensors folder of `worldmodel.checkpoint`.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from worldmodel.distributed import here, of_first, wait_for_all

FOLDER = "state"
META_FILE = "meta.json"
OLD_FILE = "state.pt"  # where versions before this one kept all of it
Kind = Literal["step", "best"]
_NAME = re.compile(r"(step|best)-(\d{8})")


@dataclass(frozen=True)
class Saved:
    """A state on disk.

    Attributes:
        folder: Where it is.
        step: Steps made.
        meta: What `save` was given beside the tensors.
    """

    folder: Path
    step: int
    meta: dict[str, Any]


def save(
    run: Path,
    state: dict[str, Any],
    *,
    step: int,
    meta: Mapping[str, Any],
    keep: int,
    kind: Kind = "step",
) -> Saved:
    """Writes a state, whole or not at all, and deletes all but the last `keep` of its kind.

    Every process must call this with its share of the state.

    Args:
        run: Folder of the run.
        state: Nested dictionaries of tensors and plain values.
        step: Steps made.
        meta: JSON-able facts, the same in every process.
        keep: How many to keep, 1 or more.
        kind: "step", or "best" for weights only.

    Raises:
        OSError: It cannot be written, because the disk is full, say.
    """
    if keep < 1:
        raise ValueError(f"keep_last must be 1 or more, got {keep}")
    final = run / FOLDER / f"{kind}-{step:08d}"
    part = final.with_name(final.name + ".part")
    if here().first:
        part.parent.mkdir(parents=True, exist_ok=True)
        for draft in part.parent.glob(f"{kind}-*.part"):  # of a run that was killed
            shutil.rmtree(draft)
        part.mkdir()
    wait_for_all()
    try:
        with _one_process_is_fine():
            save_shards(state, storage_writer=FileSystemWriter(part))
    except CheckpointException as error:  # torch wraps whatever happens within
        causes = [cause for cause, _ in error.failures.values()]
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
            raise KeyboardInterrupt from error
        raise OSError(
            f"the state of step {step} cannot be written to {part}: {causes[0]}"
        ) from error
    if here().first:
        with (part / META_FILE).open("w") as file:
            json.dump({"step": step, **meta}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # a best one that a run which goes on from before it makes again
            shutil.rmtree(final)
        part.rename(final)
        _sync(final.parent)
        for old in states(run, kind)[:-keep]:
            shutil.rmtree(old.folder)
    wait_for_all()
    return Saved(final, step, dict(meta))


def states(run: Path, kind: Kind = "step") -> list[Saved]:
    """Returns the whole states of a run, oldest first."""
    found = []
    for folder in sorted((run / FOLDER).glob(f"{kind}-*")):
        if _NAME.fullmatch(folder.name):
            meta = json.loads((folder / META_FILE).read_text())
            found.append(Saved(folder, meta.pop("step"), meta))
    return found


def last(run: Path, kind: Kind = "step") -> Saved | None:
    """Returns the last whole state, the same in every process, or None in a fresh run folder.

    Raises:
        ValueError: The folder holds the state of an earlier version and none of this one.
    """
    if (run / OLD_FILE).exists() and not (run / FOLDER).exists():
        raise ValueError(
            f"{run} holds a run of an earlier version, whose state ({OLD_FILE}) this one cannot go "
            f"on from. To train anew choose another run=..., or delete {run / OLD_FILE}; to go on, "
            "use the version that began it"
        )
    found = states(run, kind) if here().first else []
    return of_first(found[-1] if found else None)


def load(saved: Saved, state: dict[str, Any]) -> None:
    """Fills a state made like the one that was saved; every process must call this.

    Raises:
        ValueError: The state on disk is damaged, or of another model.
    """
    _load(saved, state, no_dist=False)


def read_weights(saved: Saved, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a state, whole and on the CPU; one process alone may call this.

    Args:
        saved: The state.
        like: Weights of the same names and shapes, whole or in shards.
    """
    weights = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in like.items()}
    _load(saved, {"model": weights}, no_dist=True)
    return weights


def _load(saved: Saved, state: dict[str, Any], *, no_dist: bool) -> None:
    reader = FileSystemReader(saved.folder)
    try:
        with _one_process_is_fine():
            load_shards(state, storage_reader=reader, no_dist=no_dist)
    except (CheckpointException, OSError, EOFError) as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        raise ValueError(
            f"the state in {saved.folder} cannot be read: it is damaged, or of another model "
            f"({cause}); delete that folder and the run goes on from the state before it, if any"
        ) from error


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Silences torch's remark that a single process saves or loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sync(folder: Path) -> None:
    """Makes renames within a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
