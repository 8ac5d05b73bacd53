"""Units of encoding: killed, repeated, shared out, compared with a source that changes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.latent_jobs import build, finalise, make_plan, rank_and_world, read_plan
from worldmodel.data.latent_shards import Recipe, read_receipt, write_receipt
from worldmodel.data.latent_units import Encode, encode_unit
from worldmodel.data.latent_verify import check_source, verify
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import Source, open_source
from worldmodel.data.store import EpisodeStore

RECIPE = Recipe("e1", "exterior")

# A stand-in for an encoder that any process can import: every row of pixels is a token.
encode: Encode = partial(np.mean, axis=-1, dtype=np.float32)


class Counting:
    """The same, and how many frames each episode had."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.lengths.append(len(frames))
        return encode(frames)


@pytest.fixture
def store(tmp_path, make_episode) -> EpisodeStore:
    """Seven episodes; five units of one or two."""
    store = EpisodeStore(tmp_path / "data" / "reach", mode="a")
    for i in range(7):
        store.write(i, make_episode(i, steps=4 + i))
    return store


def source_of(store: EpisodeStore) -> Source:
    return open_source(store.path)


def built(
    folder: Path, store: EpisodeStore, encode: Encode = encode, **changes
) -> LatentCache | None:
    arguments = {"recipe": RECIPE, "progress": False, "shard_bytes": 2100} | changes
    return build(folder, source_of(store), encode, **arguments)


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def encoded_episodes(folder: Path, store: EpisodeStore, **changes) -> list[int]:
    """Returns the lengths of the episodes that a build encodes, without those it only times."""
    counting = Counting()
    built(folder, store, counting, **changes)
    return counting.lengths[-sum(n > 1 for n in counting.lengths) + 1 :] if counting.lengths else []


def rewrite(store: EpisodeStore, i: int, episode) -> None:
    shutil.rmtree(store.path / "episodes" / f"{i:08d}")
    store.write(i, episode)


# Builds a cache once to count what it does to the file system, then again for each kill point, to
# die there.
_KILLED_BUILDS = """
import os, random, signal, sys
from functools import partial
from pathlib import Path
import numpy as np
from worldmodel.data.latent_jobs import build
from worldmodel.data.latent_shards import Recipe
from worldmodel.data.source import open_source
import zarr, worldmodel.data.formats.zarr_store

data, where, points = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
encode = partial(np.mean, axis=-1, dtype=np.float32)

def run(folder, die_at):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in ("open", "os.rename", "os.link", "os.remove") and str(folder) in str(arguments):
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    build(folder, open_source(data), encode, recipe=Recipe("e1", "exterior"), shard_bytes=2100,
          progress=False)
    return count

def in_child(folder, die_at):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(run(folder, die_at)).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    return status, os.read(reading, 100)

status, count = in_child(where / "whole", -1)
assert status == 0
for point in random.Random(int(sys.argv[4])).sample(range(1, int(count) + 1), points):
    status, _ = in_child(where / f"killed-{point}", point)
    assert os.WTERMSIG(status) == signal.SIGKILL, (point, status)
"""


def test_kill_9_at_any_point_and_a_second_run_give_the_same_bytes(tmp_path, store):
    where = tmp_path / "caches"
    words = [sys.executable, "-c", _KILLED_BUILDS, str(store.path), str(where), "16", "0"]
    subprocess.run(words, check=True)
    whole = files(where / "whole")
    killed = sorted(where.glob("killed-*"))
    assert len([name for name in whole if name.startswith("shard-")]) == 4
    unfinished = 0
    for folder in killed:
        unfinished += not (folder / "index.json").exists()
        assert built(folder, store) is not None
        assert files(folder) == whole, folder
    assert unfinished > 8


def test_what_is_finished_is_not_encoded_again(tmp_path, store):
    folder = tmp_path / "cache"
    assert encoded_episodes(folder, store) == [5, 6, 7, 8, 9, 10, 11]
    assert encoded_episodes(folder, store) == []
    (folder / "receipt-00001.json").unlink()
    before = files(folder)
    assert encoded_episodes(folder, store) == [7, 8]
    assert {**before, **files(folder)} == files(folder)


def test_new_episodes_are_added_without_encoding_the_old_ones(tmp_path, store, make_episode):
    built(tmp_path / "cache", store)
    store.write(70, make_episode(70, steps=2))
    assert encoded_episodes(tmp_path / "cache", store) == [3]
    cache = LatentCache(tmp_path / "cache", RECIPE.key)
    assert cache.ids.tolist() == [*range(7), 70]
    assert len(cache.latents(70)) == 3


def test_a_changed_episode_is_encoded_again_with_its_unit_and_nothing_else(
    tmp_path, store, make_episode
):
    folder = tmp_path / "cache"
    old = built(folder, store)
    assert old is not None
    before = np.array(old.latents(3))
    rewrite(store, 3, make_episode(99, steps=7))
    assert encoded_episodes(folder, store) == [7, 8]
    new = LatentCache(folder, RECIPE.key)
    frames = np.asarray(store.frames(3, "exterior"))
    np.testing.assert_array_equal(new.latents(3), encode(frames).astype(np.float16))
    np.testing.assert_array_equal(old.latents(3), before)  # whoever reads is not disturbed
    assert len(list(folder.glob("shard-*"))) == 4, "the old shard is gone"


def test_a_cache_whose_source_changed_says_so_and_opens_when_it_is_encoded_again(
    tmp_path, store, make_episode, capsys
):
    folder = tmp_path / "cache"
    built(folder, store)
    check_source(folder, source_of(store))
    rewrite(store, 3, make_episode(99, steps=7))
    with pytest.raises(ValueError, match="episodes 2, 3 .*older state of .*encode"):
        check_source(folder, source_of(store))

    def stops(frames: np.ndarray) -> np.ndarray:
        if len(frames) == 8:
            raise KeyboardInterrupt
        return encode(frames)

    with pytest.raises(KeyboardInterrupt):
        built(folder, store, stops, progress=True)
    assert "1 shard was made from an older state of" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no finished latent cache"):
        LatentCache(folder, RECIPE.key)
    built(folder, store)
    check_source(folder, source_of(store))
    store.write(8, make_episode(8))
    with pytest.raises(ValueError, match="episodes 8 .*encode"):
        check_source(folder, source_of(store))


def test_files_that_only_look_new_are_compared_and_not_encoded(tmp_path, store):
    folder = tmp_path / "cache"
    built(folder, store)
    for file in (store.path / "episodes").rglob("*"):
        os.utime(file)
    before = read_receipt(folder, 0)
    assert encoded_episodes(folder, store) == []
    after = read_receipt(folder, 0)
    assert before is not None and after is not None
    assert [e.content for e in before.episodes] == [e.content for e in after.episodes]
    assert [e.stamp for e in before.episodes] != [e.stamp for e in after.episodes]


def test_an_episode_that_is_gone_leaves_the_cache(tmp_path, store):
    folder = tmp_path / "cache"
    built(folder, store)
    shutil.rmtree(store.path / "episodes" / f"{4:08d}")
    assert encoded_episodes(folder, store) == [10]
    assert LatentCache(folder, RECIPE.key).ids.tolist() == [0, 1, 2, 3, 5, 6]
    shutil.rmtree(store.path / "episodes" / f"{5:08d}")
    assert encoded_episodes(folder, store) == []
    assert LatentCache(folder, RECIPE.key).ids.tolist() == [0, 1, 2, 3, 6]


def test_a_moved_data_set_keeps_its_cache_and_another_one_does_not_get_it(
    tmp_path, store, make_episode
):
    folder = tmp_path / "cache"
    built(folder, store)
    moved = EpisodeStore(shutil.move(store.path, tmp_path / "elsewhere"))
    assert encoded_episodes(folder, moved) == []
    other = EpisodeStore(tmp_path / "other", mode="a")
    other.write(0, make_episode(50))
    with pytest.raises(ValueError, match="holds latents of .*elsewhere, and .*other is another"):
        built(folder, other)
    assert encoded_episodes(folder, moved) == []


def test_another_recipe_is_refused_in_the_same_folder(tmp_path, store):
    built(tmp_path / "cache", store)
    with pytest.raises(ValueError, match="holds latents with key 'e1-.*', not 'e2-"):
        built(tmp_path / "cache", store, recipe=Recipe("e2", "exterior"))


@pytest.mark.parametrize("world", [2, 3, 9])
def test_ranks_share_the_units_out_and_the_last_one_finishes(tmp_path, store, world):
    built(tmp_path / "whole", store)
    finished = set()
    for rank in np.random.default_rng(world).permutation(world).tolist():
        cache = built(tmp_path / "cache", store, rank=rank, world=world)
        now = {int(f.stem[-5:]) for f in (tmp_path / "cache").glob("receipt-*")}
        assert now - finished == set(range(4)[rank::world]) and not (
            finished & set(range(4)[rank::world])
        )
        finished = now
        assert (cache is not None) == (finished == {0, 1, 2, 3})
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_units_run_wherever_functions_run(tmp_path, store):
    """The engine is somebody else's: plan, run each unit in any order, finalise."""
    source, folder = source_of(store), tmp_path / "cache"
    plan = make_plan(folder, source, encode, recipe=RECIPE, shard_bytes=2100)
    assert read_plan(folder) == plan
    for unit in (3, 0, 2, 1):
        assert finalise(folder, plan) is None
        encode_unit(
            unit, plan.units[unit], folder=folder, source=source, encode=encode, recipe=RECIPE
        )
    assert finalise(folder, plan) is not None
    built(tmp_path / "whole", store)
    assert files(folder) == files(tmp_path / "whole")


def test_local_workers_give_the_same_bytes(tmp_path, store):
    built(tmp_path / "one", store)
    built(tmp_path / "two", store, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


_SLOW_BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from worldmodel.data.latent_jobs import build
from worldmodel.data.latent_shards import Recipe
from worldmodel.data.source import open_source

def encode(frames):
    time.sleep(0.02)
    return np.mean(frames, axis=-1, dtype=np.float32)

cache = build(Path(sys.argv[2]), open_source(sys.argv[1]), encode, progress=False,
              recipe=Recipe("e1", "exterior"), shard_bytes=2100)
assert len(cache) == 7
"""


def test_processes_that_do_the_same_work_do_each_other_no_harm(tmp_path, store):
    built(tmp_path / "whole", store)
    words = [sys.executable, "-c", _SLOW_BUILD, str(store.path), str(tmp_path / "cache")]
    processes = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_of_two_receipts_for_one_unit_the_first_counts(tmp_path, store):
    """Two machines may round differently: the shard of the later one must not be mixed in."""
    built(tmp_path / "cache", store)
    first = read_receipt(tmp_path / "cache", 2)
    assert first is not None
    (tmp_path / "cache" / "late.safetensors").write_bytes(b"")
    late = replace(first, shard="late.safetensors", sha256="other")
    assert write_receipt(tmp_path / "cache", late) == first
    assert read_receipt(tmp_path / "cache", 2) == first
    assert not (tmp_path / "cache" / "late.safetensors").exists()
    assert (tmp_path / "cache" / first.shard).exists()


def refuses(bad: set[int], source: Source, i: int) -> list[str]:
    return [f"episode {i} is upside down"] if i in bad else []


def test_bad_episodes_are_quarantined_and_said(tmp_path, store, capsys):
    cache = built(
        tmp_path / "cache",
        store,
        check=partial(refuses, {2, 3, 6}),
        max_quarantined=0.5,
        progress=True,
    )
    assert cache is not None
    assert cache.ids.tolist() == [0, 1, 4, 5]
    assert [q.episode for q in cache.quarantined] == [2, 3, 6]
    assert cache.quarantined[0].reasons == ("episode 2 is upside down",)
    assert "quarantined: episode 3: episode 3 is upside down" in capsys.readouterr().out
    with pytest.raises(KeyError, match="no latents of episode 6 in .* was quarantined: .*upside"):
        cache.latents(6)
    # Episodes 2 and 3 are a unit: it has a receipt, but no shard.
    receipt = read_receipt(tmp_path / "cache", 1)
    assert receipt is not None and receipt.shard == "" and len(receipt.quarantined) == 2
    assert encoded_episodes(tmp_path / "cache", store, max_quarantined=0.5) == []


def test_what_cannot_be_read_is_quarantined_until_it_is_repaired(tmp_path, store, make_episode):
    frames = store.path / "episodes" / f"{1:08d}" / "frames"
    chunk = next(file for file in frames.rglob("c/*/*/*/*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:50])
    (store.path / "episodes" / f"{5:08d}" / "zarr.json").write_text("{")
    cache = built(tmp_path / "cache", store, max_quarantined=0.3)
    assert cache is not None
    assert [q.episode for q in cache.quarantined] == [1, 5]
    assert encoded_episodes(tmp_path / "cache", store, max_quarantined=0.3) == []
    rewrite(store, 1, make_episode(1, steps=5))
    rewrite(store, 5, make_episode(5, steps=9))
    cache = built(tmp_path / "cache", store)
    assert cache is not None and cache.ids.tolist() == list(range(7))


def test_a_missing_camera_is_a_reason(tmp_path, store):
    with pytest.raises(ValueError, match="(?s)none of 7 .*no camera 'wrist'; it has exterior"):
        built(tmp_path / "cache", store, recipe=Recipe("e1", "wrist"))


def test_too_many_bad_episodes_stop_the_job_naming_the_first(tmp_path, store):
    message = (
        "(?s)2 episodes must be left out, more than max_quarantined allows; the first:\n"
        "  episode 0: episode 0 is upside down\n.*worldmodel inspect .*reach --check"
    )
    for _ in range(2):  # a second run finds it in the receipts
        with pytest.raises(ValueError, match=message):
            built(tmp_path / "cache", store, check=partial(refuses, {0, 1}))
    assert built(tmp_path / "cache", store, max_quarantined=0.3) is not None


def test_a_large_job_waits_for_a_yes(tmp_path, store, capsys):
    message = (
        "(?s)this job is large: 7 episodes, about 56 frames: .* GiB, .* only with confirmed=true"
    )
    with pytest.raises(ValueError, match=message):
        built(tmp_path / "cache", store, confirm_above_gib=1e-6)
    assert not list((tmp_path / "cache").glob("shard-*"))
    built(tmp_path / "cache", store, confirm_above_gib=1e-6, confirmed=True, progress=True)
    assert "to encode: 7 episodes, about 56 frames: 6.68e-06 GiB" in capsys.readouterr().out


def test_verify_finds_what_differs(tmp_path, store):
    folder = tmp_path / "cache"
    cache = built(folder, store)
    assert cache is not None
    source = source_of(store)
    result = verify(folder, source, encode, sample=5)
    assert result.episodes == 5 and 0 < result.rms_difference < result.max_difference < 0.1
    with pytest.raises(ValueError, match="(?s)numbers differ, the first in frame 0.*encode again"):
        verify(folder, source, lambda frames: encode(frames)[:, ::-1], sample=5)
    shard = folder / json.loads((folder / "index.json").read_text())["shards"][2]["file"]
    content = bytearray(shard.read_bytes())
    content[-40] ^= 1  # the last bit of some number: too small a difference for any tolerance
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="shard-00002-.* is damaged: its bytes are not those"):
        verify(folder, source, encode, sample=7)


def test_verify_finds_another_source(tmp_path, store, make_episode):
    built(tmp_path / "cache", store)
    rewrite(store, 3, make_episode(99, steps=7))
    with pytest.raises(ValueError, match="episode 3 has other rows, poses or times now"):
        verify(tmp_path / "cache", source_of(store), encode, sample=7)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_verify_allows_for_rounding_and_no_more(tmp_path, store, dtype):
    recipe = Recipe("e1", "exterior", dtype=dtype)
    built(tmp_path / "cache", store, recipe=recipe)
    source = source_of(store)
    verify(tmp_path / "cache", source, encode)
    with pytest.raises(ValueError, match="numbers differ"):
        verify(tmp_path / "cache", source, lambda frames: encode(frames) * 1.01)


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "6"}, (5, 6)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 4),
        ),
    ],
)
def test_rank_and_world_come_from_whatever_started_the_process(environ, expected):
    assert rank_and_world(environ) == expected


def test_a_rank_beyond_the_world_is_refused(tmp_path, store):
    with pytest.raises(ValueError, match=r"rank must be within 0\.\.1, got 2"):
        built(tmp_path / "cache", store, rank=2, world=2)


def test_another_mapping_asks_again_whether_an_episode_is_fit(tmp_path, store):
    """A set refused for its declared rate is taken once the rate is put right, and back."""

    def refuses_60_hz(source: Source, episode: int) -> list[str]:
        return ["wrong rate"] if source.mapping.hz == 60 else []

    def try_at(hz: float) -> LatentCache | None:
        source = open_source(store.path, hz=hz)
        return build(
            tmp_path / "c", source, encode, recipe=RECIPE, check=refuses_60_hz, progress=False
        )

    with pytest.raises(ValueError, match="episodes must be left out"):
        try_at(60)
    cache = try_at(4)
    assert cache is not None and len(cache) == 7 and cache.quarantined == []
    with pytest.raises(ValueError, match="episodes must be left out"):
        try_at(60)
