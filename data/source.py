"""Anyone's recordings, opened: a reader of one format, and what its columns mean.

    source = open_source("downloads/droid/1.0.1")          # format found from what lies there
    source = open_source("logs/monday", mapping="logs/mapping.yaml")
    episode = source.read(source.ids()[0])                 # numbers now, frames when asked for

`worldmodel.data.formats` has the readers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from worldmodel.data.episode import Episode
from worldmodel.data.mapping import (
    ColumnMapping,
    RawEpisode,
    check_fits,
    read_mapping,
    template,
    to_episode,
)

MAX_EXAMPLES = 20  # recordings in which a column or a camera that a mapping names is looked for


class Reader(ABC):
    """Reads one format. A reader pickles by its path and opens files in the process that reads.

    Opening must stay cheap for many thousands of episodes: list and index, read nothing whole.

    Attributes:
        format: Name of the format, as in `format=...` on the command line.
        title: What people call it.
        looked_for: What makes a path this format, for the error when no format fits.
    """

    format: ClassVar[str]
    title: ClassVar[str]
    looked_for: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Opens what `recognises` has found to be of this format.

        Raises:
            ValueError: It is not of this format after all, or broken.
            ImportError: An extra is missing; the message is the command that installs it.
        """
        self.path = path

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is of this format, from names and at most one small file."""

    @abstractmethod
    def ids(self) -> Sequence[int]:
        """Returns the ids of all episodes, ascending."""

    @abstractmethod
    def read(self, episode_id: int) -> RawEpisode:
        """Returns one recording: its columns read, its frames not.

        Raises:
            KeyError: There is no such episode.
            ValueError: Its files are broken, missing or contradict each other; names the file.
        """

    def read_episode(self, episode_id: int, mapping: ColumnMapping) -> Episode:
        """Returns one recording in our schema; a format that stores our schema overrides this."""
        return to_episode(self.read(episode_id), mapping, source=self.format)

    @property
    def mapping(self) -> ColumnMapping | None:
        """What the columns mean by the format's own schema; None if it does not say."""
        return None

    @property
    def declared_hz(self) -> float | None:
        """The control rate [Hz] that the set as a whole declares, if it does."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of this set: versions, what was assumed, what a container claims."""
        return ()


class Source:
    """Episodes of one path in our schema, whatever format they are in.

    Attributes:
        path: Where they are.
        format: Name of the format.
        reader: Reads the files.
        mapping: What their columns mean.
    """

    def __init__(self, reader: Reader, mapping: ColumnMapping) -> None:
        """Takes a reader and what the columns it reads mean."""
        self.reader, self.mapping = reader, mapping
        self.path, self.format = reader.path, reader.format

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.reader.ids())

    def ids(self) -> Sequence[int]:
        """Returns the ids of all episodes, ascending."""
        return self.reader.ids()

    def raw(self, episode_id: int) -> RawEpisode:
        """Returns one recording as its file has it, frames unread; see `Reader.read`."""
        return self.reader.read(episode_id)

    def read(self, episode_id: int) -> Episode:
        """Returns one recording in our schema, frames unread.

        What it holds may still be wrong: `worldmodel.data.validate` says so.

        Raises:
            KeyError: There is no such episode.
            ValueError: It cannot be read, or the mapping does not fit it.
        """
        return self.reader.read_episode(episode_id, self.mapping)


def open_source(
    path: str | Path,
    *,
    format: str | None = None,
    mapping: str | Path | ColumnMapping | None = None,
    hz: float | None = None,
) -> Source:
    """Opens recordings of any format.

    Args:
        path: Folder or file.
        format: Name of the format; found from the path if not given.
        mapping: What the columns mean, or the YAML file that says so; the format's own if not
            given.
        hz: Control rate [Hz], over what the format or the mapping declares.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: No format fits; or nothing says what the columns mean, and the message has a
            mapping to fill in.
        ImportError: The format needs an extra that is not installed.
    """
    from worldmodel.data.formats import reader_of

    path = Path(path)
    reader = reader_of(path, format)
    if isinstance(mapping, str | Path):
        mapping = read_mapping(mapping)
    ids = reader.ids()
    if not ids:
        raise ValueError(f"{path} is {reader.title}, but it has no episodes")
    if mapping is not None:
        check_fits(_examples(reader), mapping)
    else:
        mapping = reader.mapping
    if mapping is None:
        raise ValueError(
            f"{path} is {reader.title}, which does not say what its columns mean. Save this as "
            f"mapping.yaml, fill it in, and add mapping=mapping.yaml:\n\n"
            f"{template(next(_examples(reader)))}"
        )
    declared = [rate for rate in (hz, mapping.hz, reader.declared_hz) if rate is not None]
    return Source(reader, replace(mapping, hz=declared[0] if declared else None))


def _examples(reader: Reader) -> Iterator[RawEpisode]:
    """Yields the first recordings that can be read; raises ValueError if none can."""
    first = reader.ids()[:MAX_EXAMPLES]
    errors = []
    for episode_id in first:
        try:
            example = reader.read(episode_id)
        except ValueError as error:  # Whoever reads this episode will meet it again.
            errors.append(error)
        else:
            yield example
    if len(errors) == len(first):
        raise errors[0]
