"""HDF5 of no particular schema: what is in the file becomes columns and cameras, by its path.

A file is one episode (a folder of them is a set), or has one group per episode, numbered, such as
`episode_0`, `episode_1`, ... at the root or under `data`. Within an episode

    uint8 (rows, height, width, 3), (rows, 3, height, width)    a camera, raw RGB
    uint8 of varying length, or uint8 (rows, bytes) of JPEG/PNG a camera, encoded
    other numbers (rows, ...), at most 1024 a row               a column
    single numbers and texts, and attributes                    attributes

A dataset at `observations/qpos` is called "observations.qpos". Nothing here says what it means:
that needs a mapping. What reads HDF5 elsewhere among the formats builds on the functions below.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data import source
from worldmodel.data.formats.folder import natural, trailing_number
from worldmodel.data.frames import EncodedFrames, FrameReadError, Frames, LazyFrames
from worldmodel.data.mapping import RawEpisode
from worldmodel.extras import require

SUFFIXES = (".h5", ".hdf5")
MAX_NUMBERS = 1024  # a row of a column has at most so many: what has more is a picture or a cloud
MAX_TEXT = 1000  # an attribute is at most so long: what is longer is a model file or a program
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG")  # of JPEG and PNG
FIRST_REGISTERED_FILTER = 256  # HDF5 reserves lower numbers for the filters it brings along

Attributes = dict[str, str | float | bool | None]


class Reader(source.Reader):
    """Reads HDF5 files of no particular schema; always needs a mapping.

    Episodes are numbered 0, 1, ... in the natural order of their names.
    """

    format = "hdf5"
    title = "HDF5 of no particular schema"
    looked_for = "a .h5 or .hdf5 file, or a folder of them"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = _files_of(path)
        if not self._files:
            raise ValueError(f"{path}: no {' or '.join(SUFFIXES)} files")
        with opened(self._files[0]) as file:
            if path.is_dir() and looks_like_demos(file):
                raise ValueError(f"{self._files[0]} is a robomimic file: open it, not its folder")
            self._groups = [""] if path.is_dir() else _episode_groups(file)
            self._is_converted_droid = "observation/camera/image" in file

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        return bool(_files_of(path))

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return range(len(self._files) * len(self._groups))

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`."""
        if episode_id not in self.ids():
            raise KeyError(f"no episode {episode_id} in {self.path}; it has {len(self.ids())}")
        file = self._files[episode_id // len(self._groups)]
        group = self._groups[episode_id % len(self._groups)]
        columns: dict[str, np.ndarray] = {}
        cameras: dict[str, Frames] = {}
        with opened(file) as content:
            root = group_at(content, group, file) if group else content
            attributes = attributes_of(root)
            for key, dataset in datasets_of(root):
                camera = camera_of(dataset, file)
                if camera is not None:
                    cameras[key] = camera
                elif is_column(dataset):
                    columns[key] = read_rows(dataset, file)
                elif dataset.size == 1 and dataset.ndim <= 1:
                    attributes |= _attribute(key, dataset[()])
        name = file.name if self.path.is_dir() else f"{file.name}/{group}".rstrip("/")
        return RawEpisode(name, columns=columns, cameras=cameras, attributes=attributes)

    @property
    def notes(self) -> tuple[str, ...]:
        """See `source.Reader.notes`."""
        if not self._is_converted_droid:
            return ()
        return (
            "looks like DROID converted to HDF5 for policy learning: rotations there that were "
            "computed (6-D actions, 4 x 4 extrinsics) took DROID's extrinsic xyz angles for "
            "intrinsic XYZ and are wrong; use the measured cartesian_position with euler_xyz",
            "such files lack the steps at which the operator had let go, so rows are not evenly "
            "spaced in time, and have black images where a frame was missing",
        )


class Hdf5Frames(LazyFrames):
    """Raw frames in an HDF5 dataset (rows, height, width, 3) or (rows, 3, height, width).

    Args:
        file: The file; opened for every read, so that nothing is shared between processes.
        key: Path of the dataset in it.
        shape: Of the dataset, all rows of the file.
        first: Row of the file that is frame 0.
        count: Number of frames; to the end if not given.
    """

    def __init__(
        self,
        file: Path,
        key: str,
        shape: tuple[int, ...],
        *,
        first: int = 0,
        count: int | None = None,
    ) -> None:
        self.file, self.key, self.first = file, key, first
        self.channels_first = shape[-1] != 3 and shape[1] == 3
        size = (*shape[2:], 3) if self.channels_first else shape[1:]
        super().__init__((shape[0] - first if count is None else count, *size))  # type: ignore[arg-type]

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `LazyFrames.fetch`."""
        if self.shape[-1] != 3:
            raise FrameReadError(
                f"{self.file}: '{self.key}' has frames of shape {self.shape[1:]}; expected "
                "(height, width, 3) or (3, height, width), RGB"
            )
        rows, back = np.unique(indices + self.first, return_inverse=True)
        try:
            with opened(self.file) as content:
                dataset = dataset_at(content, self.key, self.file)
                check_filters(dataset, self.file)  # This may be another process than opened it.
                frames = dataset[_selection(rows)]
        except (OSError, IndexError, TypeError, ValueError) as error:
            raise FrameReadError(
                f"{self.file}: cannot read rows {rows[0]} to {rows[-1]} of '{self.key}': {error}"
            ) from error
        if self.channels_first:
            frames = np.moveaxis(frames, 1, -1)
        return np.ascontiguousarray(frames[back])


class Hdf5Images(Sequence[bytes]):
    """Encoded images, one per row of an HDF5 dataset."""

    def __init__(self, file: Path, key: str, *, first: int, count: int) -> None:
        """Takes the file, the path of the dataset, and which rows of it."""
        self.file, self.key, self.first, self.length = file, key, first, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        """Returns the bytes of the image at an integer."""
        try:
            with opened(self.file) as content:
                dataset = dataset_at(content, self.key, self.file)
                check_filters(dataset, self.file)
                image = dataset[self.first + index]
        except (OSError, IndexError, ValueError) as error:
            raise FrameReadError(
                f"{self.file}: cannot read row {self.first + index} of '{self.key}': {error}"
            ) from error
        return np.asarray(image).tobytes()


@contextmanager
def opened(file: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not HDF5, or cut off.
    """
    try:
        content = h5py.File(file, "r")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{file} is not HDF5, or was cut off while copying: {error}") from error
    with content:
        yield content


def root_names(path: Path) -> set[str]:
    """Returns the names at the root of an HDF5 file; none if it is not one that opens."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return set()
    try:
        with opened(path) as content:
            return set(content)
    except ValueError:  # Opening it as plain HDF5 will say what is wrong.
        return set()


def looks_like_demos(content: h5py.Group) -> bool:
    """Whether this is robomimic's layout: groups `data/demo_<i>`."""
    data = content.get("data")
    return isinstance(data, h5py.Group) and str(next(iter(data), "")).startswith("demo_")


def dataset_at(group: h5py.Group, name: str, file: Path) -> h5py.Dataset:
    """Returns a dataset of a group; raises ValueError naming the file if there is none."""
    item = group.get(name)
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{file}: expected a dataset '{name}', there is {_listed(group)}")
    return item


def group_at(group: h5py.Group, name: str, file: Path) -> h5py.Group:
    """Returns a group of a group; raises ValueError naming the file if there is none."""
    item = group.get(name)
    if not isinstance(item, h5py.Group):
        raise ValueError(f"{file}: expected a group '{name}', there is {_listed(group)}")
    return item


def datasets_of(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Yields the datasets below a group with their path, dots between its names."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from datasets_of(item, f"{prefix}{name}.")
        elif isinstance(item, h5py.Dataset):
            yield f"{prefix}{name}", item


def is_column(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is rows of not too many numbers."""
    size = int(np.prod(dataset.shape[1:], dtype=np.int64)) if dataset.ndim else 0
    return dataset.ndim > 0 and dataset.dtype.kind in "biuf" and size <= MAX_NUMBERS


def camera_of(
    dataset: h5py.Dataset, file: Path, *, first: int = 0, count: int | None = None
) -> Frames | None:
    """Returns the frames that a dataset of `file` holds, raw or encoded; None if it holds none.

    Args:
        dataset: The dataset.
        file: Its file.
        first: Row that is frame 0.
        count: Number of frames; to the end if not given.
    """
    key = str(dataset.name).lstrip("/")
    count = (len(dataset) - first if count is None else count) if dataset.ndim else 0
    if dataset.ndim == 4 and dataset.dtype == np.uint8:
        return Hdf5Frames(file, key, dataset.shape, first=first, count=count)
    if count > 0 and _is_encoded(dataset, first):
        images = Hdf5Images(file, key, first=first, count=count)
        return EncodedFrames(images, name=f"{file}: '{key}'")
    return None


def read_rows(
    dataset: h5py.Dataset, file: Path, *, first: int = 0, count: int | None = None
) -> np.ndarray:
    """Returns rows `first` to `first + count` of a dataset.

    Raises:
        ValueError: They are not there or cannot be read; names file and key.
        ImportError: They are compressed by a filter that the package hdf5plugin has.
    """
    last = len(dataset) if count is None else first + count
    if not 0 <= first <= last <= len(dataset):
        raise ValueError(
            f"{file}: '{dataset.name}' has {len(dataset)} rows; expected at least {last}"
        )
    check_filters(dataset, file)
    try:
        return dataset[first:last]
    except OSError as error:
        raise ValueError(f"{file}: cannot read '{dataset.name}': {error}") from error


def check_filters(dataset: h5py.Dataset, file: Path) -> None:
    """Raises ImportError if a dataset needs a compression filter that is not installed."""
    settings = dataset.id.get_create_plist()
    for index in range(settings.get_nfilters()):
        number, _, _, name = settings.get_filter(index)
        if number < FIRST_REGISTERED_FILTER or h5py.h5z.filter_avail(number):
            continue
        try:
            require("hdf5plugin", extra="hdf5plugin")  # Registers its filters.
        except ImportError as error:
            raise ImportError(
                f"{file}: '{dataset.name}' is compressed by {name.decode()}; {error}"
            ) from error
        if not h5py.h5z.filter_avail(number):
            raise ImportError(
                f"{file}: '{dataset.name}' is compressed by {name.decode()} (HDF5 filter {number}),"
                " which hdf5plugin does not have; write it again with gzip"
            )


def attributes_of(group: h5py.Group) -> Attributes:
    """Returns the attributes of a group that are single numbers or short texts."""
    attributes: Attributes = {}
    for key, value in group.attrs.items():
        attributes |= _attribute(key, value)
    return attributes


def _attribute(key: str, value: Any) -> Attributes:
    """Returns the attribute as a dictionary of one, or of none if it is no single value."""
    value = np.asarray(value)
    if value.size != 1:
        return {}
    value = value.reshape(-1)[0]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool | int | float) or isinstance(value, str) and len(value) <= MAX_TEXT:
        return {key: value}
    return {}


def _listed(group: h5py.Group) -> str:
    return ", ".join(group) or "nothing"


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    files = (file for file in path.iterdir() if file.suffix in SUFFIXES)
    return sorted(files, key=lambda file: natural(file.name))


def _episode_groups(content: h5py.File) -> list[str]:
    """Returns the paths of the groups that are one episode each; "" if the file is one episode."""
    data = content.get("data") if list(content) == ["data"] else None
    prefix, parent = ("data/", data) if isinstance(data, h5py.Group) else ("", content)
    names = sorted(parent, key=natural)
    stems = {trailing_number(name)[0] for name in names}
    numbered = all(trailing_number(name)[1] is not None for name in names)
    if len(stems) != 1 or not numbered or not isinstance(parent[names[0]], h5py.Group):
        return [""]
    return [prefix + name for name in names]


def _is_encoded(dataset: h5py.Dataset, first: int) -> bool:
    if dataset.ndim == 1 and h5py.check_vlen_dtype(dataset.dtype) == np.uint8:
        return True
    if dataset.ndim == 2 and dataset.dtype == np.uint8:
        return bytes(dataset[first, :4]).startswith(IMAGE_STARTS)
    return False


def _selection(rows: np.ndarray) -> slice | np.ndarray:
    """Returns ascending rows as a slice where they are evenly spaced: HDF5 reads that faster."""
    steps = np.unique(np.diff(rows))
    if len(steps) > 1:
        return rows
    return slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]) if len(steps) else 1)
