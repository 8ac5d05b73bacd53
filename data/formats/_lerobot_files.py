"""The files under meta/ of a LeRobot set, read and checked; and rows of its Parquet files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

METADATA = "worldmodel/metadata"  # column of meta/episodes: EpisodeMetadata as JSON

_FORMER = "convert it with LeRobot's own scripts (v2.0 to v2.1, then v2.1 to v3.0)"


def read_info(file: Path) -> dict[str, Any]:
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if version not in ("v2.1", "v3.0"):
            former = version.lstrip("v").split(".")[0] in ("1", "2")
            raise ValueError(
                f"{file}: codebase_version is {version}; v2.1 and v3.0 can be read; "
                f"{_FORMER if former else 'update worldmodel to read a newer one'}"
            )
        for key in ("fps", "features", "data_path", "video_path", "chunks_size", "total_episodes"):
            info[key]
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}; is it of a LeRobot set?") from error
    for key, feature in info["features"].items():
        video = feature.get("info") or feature.get("video_info") or {}
        rate = video.get("video.fps", info["fps"])
        if abs(rate - info["fps"]) >= 1:  # LeRobot cuts the rate of a video down to a whole number
            raise ValueError(
                f"{file}: the set is at {info['fps']} fps, but the videos of {key} at {rate}; rows "
                "and frames cannot be matched by number"
            )
    return info


def episodes_v21(path: Path) -> dict[str, np.ndarray]:
    """Returns episode_index and length (episodes,), in order."""
    records = _read_lines(path / "meta" / "episodes.jsonl", ("episode_index", "length"))
    return _in_order({name: np.array(values) for name, values in records.items()})


def episodes_v30(path: Path, videos: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns what meta/episodes says of where episodes are: columns (episodes,), in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        places = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        wanted += [f"videos/{key}/{name}" for name in places]
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError(f"{path / 'meta' / 'episodes'} has no Parquet files; expected v3.0's")
    tables = []
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            own = [METADATA] if METADATA in opened.schema_arrow.names else []
            # The statistics, ten columns for each feature, are most of the file and not needed.
            tables.append(opened.read(columns=[*wanted, *own]))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}; copy it again") from error
        missing = [name for name in wanted if name not in tables[-1].column_names]
        if missing:
            raise ValueError(f"{file} lacks the columns {missing}")
    table = pa.concat_tables(tables, promote_options="default")
    return _in_order({name: table[name].to_numpy() for name in table.column_names})


def _in_order(episodes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = np.argsort(episodes["episode_index"], kind="stable")
    numbers = episodes["episode_index"][order]
    if (np.diff(numbers) == 0).any():
        twice = numbers[:-1][np.diff(numbers) == 0][0]
        raise ValueError(f"meta/episodes describes episode {twice} twice")
    return {name: values[order] for name, values in episodes.items()}


def read_tasks(meta: Path) -> dict[int, str]:
    """Returns the text of every task; v3.0 keeps them in Parquet, v2.1 and some others in lines."""
    if not (meta / "tasks.parquet").is_file():
        records = _read_lines(meta / "tasks.jsonl", ("task_index", "task"))
        return dict(zip(records["task_index"], records["task"], strict=True))
    table = read_parquet(meta / "tasks.parquet")
    # The text is the index of a pandas table, whose name has changed over the years.
    texts = [name for name in table.column_names if name != "task_index"]
    if len(texts) != 1 or "task_index" not in table.column_names:
        raise ValueError(
            f"{meta / 'tasks.parquet'} has the columns {table.column_names}; expected task_index "
            "and one more, the text"
        )
    return dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))


def _read_lines(file: Path, keys: Sequence[str]) -> dict[str, list[Any]]:
    """Returns values of a file that has one JSON object on each line."""
    if not file.is_file():
        raise ValueError(f"{file} is missing; copy or download meta/ again")
    values: dict[str, list[Any]] = {key: [] for key in keys}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            for key in keys:
                values[key].append(record[key])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{file}, line {number}: expected an object with {', '.join(keys)}, got "
                f"{line!r:.80}"
            ) from error
    return values


def read_parquet(
    file: Path, *, columns: Sequence[str] = (), episode: int | None = None
) -> "pyarrow.Table":
    """Returns a whole file, or some columns of one episode's rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise ValueError(f"{file} is missing; copy or download it again")
    try:
        opened = pq.ParquetFile(file)
        if episode is None:
            return opened.read()
        missing = set(columns) - set(opened.schema_arrow.names)
        if missing:
            raise ValueError(f"{file} lacks the columns {sorted(missing)} that info.json declares")
        return pq.read_table(file, columns=columns, filters=[("episode_index", "=", episode)])
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}; copy or download it again") from error
