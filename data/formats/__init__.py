"""The formats that recordings come in, one module each, all with a class named `Reader`.

A module is imported only when its format is tried, and imports its own libraries when it reads.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path

from worldmodel.data.source import Reader
from worldmodel.names import unknown

# In the order in which they are tried: the most particular first.
FORMATS: tuple[str, ...] = (
    "zarr_store",
    "lerobot",
    "rlds",
    "droid_raw",
    "replay_buffer",
    "robomimic",
    "swm_hdf5",
    "hdf5",
    "folder",
)


def reader_class(name: str) -> type[Reader]:
    """Returns the reader of a format. Raises ValueError naming the nearest if there is none."""
    if name not in FORMATS:
        raise ValueError(unknown("format", name, FORMATS))
    return importlib.import_module(f"{__name__}.{name}").Reader


def reader_of(path: Path, name: str | None = None) -> Reader:
    """Opens a path with the reader of the format named, or of the first that recognises it.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: No format recognises it; lists what each looked for.
    """
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}")
    if name is not None:
        return reader_class(name)(path)
    for candidate in FORMATS:
        reader = reader_class(candidate)
        if reader.recognises(path):
            return reader(path)
    raise ValueError(f"{path} is of no format known here; looked for:\n{_listing(titles())}")


def titles() -> Mapping[str, str]:
    """Returns what each format is called and recognised by."""
    readers = {name: reader_class(name) for name in FORMATS}
    return {name: f"{r.title}: {r.looked_for}" for name, r in readers.items()}


def _listing(entries: Mapping[str, str]) -> str:
    width = max(map(len, entries))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in entries.items())
