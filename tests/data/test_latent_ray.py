"""Encoding on a Ray cluster of two workers, one of which is killed in the middle of a shard."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.latent_jobs import build
from worldmodel.data.latent_ray import DEATHS, RayCluster, run_on_ray
from worldmodel.data.latent_shards import Recipe
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import open_source
from worldmodel.data.store import EpisodeStore

ray = pytest.importorskip("ray", reason="the extra ray is not installed: nothing of it is tested")
pytest.importorskip("ray.data")

pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets that it leaves open, what pandas and asyncio tell it.
    pytest.mark.filterwarnings("default"),
]
EPISODES = 12
RECIPE = Recipe("e1", "exterior")


def encode(frames: np.ndarray) -> np.ndarray:
    """A stand-in for an encoder: every row of pixels is a token."""
    return np.asarray(frames.mean(axis=-1, dtype=np.float32))


class Recorded:
    """An encoder that notes every episode it has encoded, by which process, and may be killed.

    Args:
        notes: Folder of the notes.
        dies_at: Frames of the episode in which the first process that encodes it is killed.
        times: How many processes are.
    """

    def __init__(self, notes: Path, *, dies_at: int | None = None, times: int = 1):
        self.notes, self.dies_at, self.times = notes, dies_at, times

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        if len(frames) == self.dies_at:
            dead = len(list(self.notes.glob("dead-*")))
            if dead < self.times:
                (self.notes / f"dead-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        with (self.notes / f"{len(frames):03d}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return encode(frames)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two cores, for a worker each."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield RayCluster()
    ray.shutdown()


@pytest.fixture
def store(tmp_path: Path, make_episode) -> EpisodeStore:
    """Episodes of 4, 5, ... steps, each told by its number of frames."""
    store = EpisodeStore(tmp_path / "data" / "reach", mode="a")
    for i in range(EPISODES):
        store.write(i, make_episode(i, steps=4 + i))
    return store


def built(store: EpisodeStore, folder: Path, encoder, **changes) -> LatentCache:
    cache = build(
        folder,
        open_source(store.path),
        encoder,
        recipe=RECIPE,
        progress=False,
        shard_bytes=4500,  # two or three episodes
        **changes,
    )
    assert cache is not None
    return cache


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_killed_worker_loses_nothing_and_doubles_nothing(
    cluster: RayCluster, store: EpisodeStore, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    killed_at = 4 + 7 + 1  # frames of episode 7, which is the second of its shard
    cache = built(
        store, tmp_path / "ray", Recorded(notes, dies_at=killed_at), workers=2, cluster=cluster
    )
    workers = {pid for file in notes.glob("0*") for pid in file.read_text().split()}
    (dead,) = (file.name.removeprefix("dead-") for file in notes.glob("dead-*"))
    assert dead in workers  # it had encoded something of that shard, or of one before
    assert len(workers - {str(os.getpid()), dead}) >= 1

    assert cache.ids.tolist() == list(range(EPISODES))
    built(store, tmp_path / "here", encode)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "here")


def test_a_second_build_encodes_nothing(
    cluster: RayCluster, store: EpisodeStore, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for _ in range(2):
        built(store, tmp_path / "ray", Recorded(notes), workers=2, cluster=cluster)
    encoded = {file.name: file.read_text() for file in notes.iterdir()}
    assert len(encoded) == EPISODES + 1  # and one frame, to see what comes out
    assert all(len(text.split()) == 1 for name, text in encoded.items() if int(name) > 8)


def test_a_shard_that_kills_every_worker_is_said(
    cluster: RayCluster, store: EpisodeStore, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with pytest.raises(RuntimeError, match=f"workers of Ray died {DEATHS + 1} times of the same"):
        built(
            store,
            tmp_path / "ray",
            Recorded(notes, dies_at=12, times=1000),
            workers=2,
            cluster=cluster,
        )
    assert len(list(notes.glob("dead-*"))) == DEATHS + 1
    cache = built(store, tmp_path / "ray", encode)  # the same command goes on
    assert len(cache) == EPISODES


def test_an_error_of_a_worker_reaches_the_caller(cluster: RayCluster) -> None:
    def fails(unit: int):
        raise ValueError(f"unit {unit} is refused")

    with pytest.raises(ValueError, match="unit 3 is refused"):
        list(run_on_ray(fails, [3], workers=1, cluster=cluster))
