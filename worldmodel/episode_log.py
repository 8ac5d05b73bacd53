"""The finished episodes of an evaluation, one line each, so that a killed run goes on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from worldmodel.results import EpisodeResult, episode_from_json, episode_to_json

Key = tuple[str, int]
"""Name of the policy, and seed of the episode."""


class EpisodeLog:
    """`episodes.jsonl`: appended to, on disk when `append` returns, read again by a rerun.

    A kill in the midst of a write leaves half a line at the end; it is cut off when the file is
    opened again. Any other damage is refused.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file or begins it.

        Raises:
            ValueError: A line that was written completely cannot be read.
        """
        self.path = path
        self.episodes: dict[Key, EpisodeResult] = {}
        """The finished episodes."""
        if path.exists():
            self._read()

    def append(self, policy: str, episodes: Iterable[EpisodeResult]) -> None:
        """Adds finished episodes of a policy; those that are there already are left out."""
        new = [e for e in episodes if (policy, e.seed) not in self.episodes]
        lines = [json.dumps({"policy": policy, **episode_to_json(e)}) + "\n" for e in new]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.episodes.update({(policy, episode.seed): episode for episode in new})

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                self.episodes[entry["policy"], entry["seed"]] = episode_from_json(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {self.path} is not a finished episode ({error}); delete the "
                    "line to run that episode again, or choose another run=..."
                ) from error
