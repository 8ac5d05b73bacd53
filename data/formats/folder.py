"""A folder of one's own logs: tables of numbers beside videos or folders of images.

Either each episode is a folder, or the files of an episode share the beginning of their names:

    monday/                           monday/
      reach_00/                         reach_00.csv
        log.csv                         reach_00_front.mp4
        front.mp4                       reach_00_wrist/000.jpg ...
        wrist/000.jpg ...               reach_01.csv
      reach_01/                         ...
        ...

Cameras are called after their video or folder of images ("front", "wrist"; a video `reach_00.mp4`
is "camera"). Columns are called as in the first line of a .csv, or as the arrays of a .npz, the
fields of a .npy or the columns of a .parquet. If an episode has several tables, their names come
first ("log.x", "front_times.t"); `reach_00.csv` itself needs none. Tables may differ in length:
a camera with a clock of its own has its times in one. What it all means says a mapping.
"""

import csv
import re
import zipfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data import source
from worldmodel.data.frames import EncodedFrames, FrameReadError, Frames
from worldmodel.data.mapping import RawEpisode
from worldmodel.data.video_frames import VideoFrames
from worldmodel.extras import require

TABLES = (".csv", ".npz", ".npy", ".parquet")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov")
IMAGES = (".jpg", ".jpeg", ".png")


class Reader(source.Reader):
    """Reads tables beside videos; always needs a mapping.

    Episodes are numbered 0, 1, ... in the natural order of their names.
    """

    format = "folder"
    title = "a folder of one's own logs"
    looked_for = (
        f"folders, each with a table ({', '.join(TABLES)}) beside a video ({', '.join(VIDEOS)}) or "
        "a folder of images; or such files side by side, like ep0.csv and ep0_front.mp4"
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not path.is_dir():
            raise ValueError(f"{path} is a file; expected a folder with {self.looked_for}")
        entries = _entries(path)
        # Side by side, the files of each episode are known now; else they are listed when read.
        self._side_by_side = _side_by_side(entries)
        self._names = list(self._side_by_side)
        self._unused: list[str] = []
        if self._side_by_side:
            used = {p for files in self._side_by_side.values() for p in files}
            self._unused = [e.name for e in entries if e not in used and _may_be_camera(e)]
        elif _has(entries, TABLES):
            self._names = [""]
        else:
            for folder in filter(Path.is_dir, entries):
                (self._names if _has(_entries(folder), TABLES) else self._unused).append(
                    folder.name
                )
        if not self._names:
            raise ValueError(f"{path} has no episodes; expected {self.looked_for}")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        if not path.is_dir():
            return False
        entries = _entries(path)
        if _side_by_side(entries) or _is_episode(entries):
            return True
        return any(_is_episode(_entries(entry)) for entry in entries if _is_folder(entry))

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return range(len(self._names))

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`."""
        if episode_id not in self.ids():
            raise KeyError(f"no episode {episode_id} in {self.path}; it has {len(self._names)}")
        name = self._names[episode_id]
        here = self.path / name
        files = self._side_by_side.get(name) or _entries(here)
        start = name if self._side_by_side else ""
        tables = _called([f for f in files if f.suffix.lower() in TABLES], start, single="")
        videos = _called([f for f in files if _is_camera(f)], start)
        if not videos:
            raise ValueError(
                f"{here}: a table but no video ({', '.join(VIDEOS)}) and no folder of images"
            )
        return RawEpisode(
            name=name or self.path.name,
            columns={
                f"{table}.{key}" if table else key: values
                for table, file in tables.items()
                for key, values in read_table(file).items()
            },
            cameras={camera or "camera": _frames(file) for camera, file in videos.items()},
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """See `source.Reader.notes`."""
        if not self._unused:
            return ()
        listed = ", ".join(self._unused[:5]) + (", ..." if len(self._unused) > 5 else "")
        return (f"{len(self._unused)} belong to no table and were left out: {listed}",)


def read_table(file: Path) -> dict[str, np.ndarray]:
    """Returns the columns of numbers in a .csv, .npz, .npy or .parquet file by name.

    A column of a .csv in which no cell is a number is a text and left out; "true" and "false" are
    1 and 0.

    Raises:
        ValueError: The file is broken or has no such columns; for a .csv, names line and column.
        ImportError: A .parquet file, and pyarrow is not installed.
    """
    suffix = file.suffix.lower()
    if suffix == ".csv":
        return _read_csv(file)
    if suffix == ".parquet":
        return _read_parquet(file)
    try:
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            names = content.files if suffix == ".npz" else content.dtype.names or ()
            columns = {name: content[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not columns:
        raise ValueError(
            f"{file} is an array without named fields; save the arrays with numpy.savez by name"
        )
    return _numbers(columns)


def natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts names as people do: ep2 before ep10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if k % 2 else (0, part) for k, part in enumerate(parts)]


def trailing_number(name: str) -> tuple[str, int | None]:
    """Returns what a name starts with and the number that it ends with, None if with none."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :]) if len(stem) < len(name) else None


class _ImageFiles(Sequence[bytes]):
    """The bytes of images in a folder, read when asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        file = self.files[index]
        try:
            return file.read_bytes()
        except OSError as error:
            raise FrameReadError(f"{file}: cannot read the image: {error}") from error


def _frames(file: Path) -> Frames:
    return _image_frames(file) if file.is_dir() else VideoFrames(file)


def _image_frames(folder: Path) -> Frames:
    """Returns the images of a folder; raises ValueError if their numbers show that some lack."""
    files = [f for f in _entries(folder) if f.suffix.lower() in IMAGES]
    numbers = [trailing_number(f.stem)[1] for f in files]
    known = [n for n in numbers if n is not None]
    steps = np.diff(known)
    # Frames counted by ones. Counted by fives, or named by their times, there is nothing to check.
    if len(known) == len(files) > 1 and np.median(steps) == 1 and (steps != 1).any():
        before = int(np.flatnonzero(steps != 1)[0])
        raise ValueError(
            f"{folder}: {files[before].name} is followed by {files[before + 1].name}; expected "
            "every number between, or later frames would belong to the wrong rows"
        )
    return EncodedFrames(_ImageFiles(files), name=str(folder))


def _read_csv(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            names = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, row) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as CSV: {error}") from error
    if not names or all(_number(name) is not None for name in names):
        raise ValueError(f"{file}, line 1: expected the names of the columns, got {names}")
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise ValueError(f"{file}, line 1: expected names separated by ',', got {names[0]!r}")
    names = [name or f"column_{k + 1}" for k, name in enumerate(names)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{file}, line 1: two columns are called '{twice[0]}'")
    for line, row in lines:
        if len(row) != len(names):
            raise ValueError(f"{file}, line {line}: expected {len(names)} cells, got {len(row)}")
    columns = {}
    for k, name in enumerate(names):
        numbers = [_number(row[k]) for _, row in lines]
        bad = [i for i, number in enumerate(numbers) if number is None]
        if not bad:
            columns[name] = np.array(numbers, np.float64)
        elif len(bad) < len(numbers):
            line, row = lines[bad[0]]
            raise ValueError(f"{file}, line {line}, column '{name}': {row[k]!r} is not a number")
    return columns


def _number(text: str) -> float | None:
    """Returns the number that a cell says, None if it says none."""
    try:
        return float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower())


def _read_parquet(file: Path) -> dict[str, np.ndarray]:
    parquet = require("pyarrow.parquet", extra="lerobot")
    arrow = require("pyarrow", extra="lerobot")
    try:
        table = parquet.read_table(file)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
    columns = {}
    for name in table.column_names:
        values = table.column(name).to_numpy()
        if len(values) and all(isinstance(row, np.ndarray) for row in values):  # lists
            sizes = {len(row) for row in values}
            if len(sizes) > 1:
                raise ValueError(f"{file}: rows of '{name}' have different sizes: {sorted(sizes)}")
            values = np.stack(values)
        columns[name] = values
    return _numbers(columns)


def _numbers(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in columns.items() if v.ndim > 0 and v.dtype.kind in "biuf"}


def _entries(folder: Path) -> list[Path]:
    """Returns what is in a folder, in natural order, without hidden files."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: natural(entry.name))


def _has(entries: Iterable[Path], suffixes: tuple[str, ...]) -> bool:
    return any(entry.name.lower().endswith(suffixes) for entry in entries)


def _is_folder(entry: Path) -> bool:
    """Whether an entry is a folder; asks the disk only if its name leaves that open."""
    return not entry.name.lower().endswith(TABLES + VIDEOS) and entry.is_dir()


def _is_camera(entry: Path) -> bool:
    if _is_folder(entry):
        return _has(entry.iterdir(), IMAGES)
    return entry.name.lower().endswith(VIDEOS)


def _may_be_camera(entry: Path) -> bool:
    """Whether an entry is a video or a folder, without looking into it."""
    return entry.name.lower().endswith(VIDEOS) or _is_folder(entry)


def _is_episode(entries: Sequence[Path]) -> bool:
    return _has(entries, TABLES) and any(_is_camera(entry) for entry in entries)


def _side_by_side(entries: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files of each episode, if episodes are files with a common beginning.

    A table begins an episode unless its name continues that of another table: `ep0_times.csv`
    belongs to `ep0.csv`. A number is no such continuation: `run_2.csv` comes after `run.csv`.
    """
    stems = {e.stem for e in entries if e.name.lower().endswith(TABLES)}
    episodes: dict[str, list[Path]] = {}
    for stem in sorted(stems, key=natural):
        before = _beginnings(stem, stems)
        if not before or stem[len(before[-1]) + 1 :].isdigit():
            episodes[stem] = []
    for entry in entries:
        if stems and (entry.name.lower().endswith(TABLES) or _may_be_camera(entry)):
            stem = _stem(entry)
            owners = [stem] if stem in episodes else _beginnings(stem, episodes)
            if owners:
                episodes[owners[-1]].append(entry)
    found = any(_may_be_camera(file) for files in episodes.values() for file in files)
    return episodes if found else {}


def _beginnings(stem: str, known: Container[str]) -> list[str]:
    """Returns the known names that a name continues after "_" or "-", the shortest first."""
    ends = [k for k, letter in enumerate(stem) if letter in "_-"]
    return [stem[:end] for end in ends if stem[:end] in known]


def _called(files: Sequence[Path], start: str, *, single: str | None = None) -> dict[str, Path]:
    """Returns files by name: their stem after `start`; the only one by `single` if that is given.

    Raises:
        ValueError: Two have the same name.
    """
    if len(files) == 1 and single is not None:
        return {single: files[0]}
    called: dict[str, Path] = {}
    for file in files:
        name = _stem(file).removeprefix(start).lstrip("_-") if start else _stem(file)
        if name in called:
            raise ValueError(f"{file} and {called[name].name} would both be called '{name}'")
        called[name] = file
    return called


def _stem(file: Path) -> str:
    return file.name if _is_folder(file) else file.stem
