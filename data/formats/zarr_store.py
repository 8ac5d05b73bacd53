"""Our own episode store (`worldmodel.data.store`), as one format among the others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from worldmodel.data import source
from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.data.mapping import (
    CameraColumns,
    ColumnMapping,
    GripperColumns,
    PositionColumns,
    RawEpisode,
    RotationColumns,
    TimeColumns,
)
from worldmodel.data.store import EpisodeStore


class Reader(source.Reader):
    """Reads an episode store; nothing needs converting."""

    format = "zarr_store"
    title = "a worldmodel episode store (zarr v3)"
    looked_for = "a folder with store.json and episodes/"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.store = EpisodeStore(path)
        self._ids = self.store.ids()
        self._mapping = None
        if self._ids:
            self._mapping = _mapping_of(self.store.read_metadata(self._ids[0]))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        return (path / "store.json").is_file()

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return self._ids

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`."""
        episode = self.store.read(episode_id)
        columns = {"proprio": episode.proprio, "timestamps": episode.timestamps}
        if episode.joints is not None:
            columns["joints"] = episode.joints
        if episode.usable is not None:
            columns["usable"] = episode.usable
        columns |= {f"logged_actions.{name}": a for name, a in episode.logged_actions.items()}
        metadata = episode.metadata
        return RawEpisode(
            name=metadata.name or f"episode {episode_id}",
            columns=columns,
            cameras=episode.frames,
            attributes={
                "task": metadata.task,
                "success": metadata.success,
                "behaviour": metadata.behaviour,
                "control_hz": metadata.control_hz,
            },
        )

    def read_episode(self, episode_id: int, mapping: ColumnMapping) -> Episode:
        """Returns the episode as it was stored, to the last bit, unless the mapping is another."""
        ours = self.mapping
        if ours is None or mapping != replace(ours, hz=mapping.hz):
            return super().read_episode(episode_id, mapping)
        episode = self.store.read(episode_id)
        if mapping.hz is None or mapping.hz == ours.hz:
            return episode
        return replace(episode, metadata=replace(episode.metadata, control_hz=mapping.hz))

    @property
    def mapping(self) -> ColumnMapping | None:
        """See `source.Reader.mapping`; columns that only some episodes have are not in it."""
        return self._mapping


def _mapping_of(metadata: EpisodeMetadata) -> ColumnMapping:
    return ColumnMapping(
        position=PositionColumns(("proprio[0:3]",)),
        rotation=RotationColumns(("proprio[3:6]",)),
        gripper=GripperColumns(("proprio[6]",)),
        time=TimeColumns(("timestamps",)),
        hz=metadata.control_hz,
        cameras={name: CameraColumns(name) for name in metadata.cameras},
        robot=metadata.robot,
    )
