"""What a cache holds, and how it is read."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from worldmodel.data.latent_jobs import build
from worldmodel.data.latent_shards import Recipe
from worldmodel.data.latent_units import pool_tokens
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import Source, open_source
from worldmodel.data.store import EpisodeStore

STEPS = {2: 4, 3: 9, 11: 5, 40: 7}


def encode(frames: np.ndarray) -> np.ndarray:
    """Stands for an encoder: every row of pixels is a token."""
    return frames[..., 0].astype(np.float32) / 16 - 3


def square_tokens(frames: np.ndarray) -> np.ndarray:
    """An encoder with a grid of 4 x 4 tokens of size 4."""
    return frames[..., 0].astype(np.float32).reshape(len(frames), 16, 4) / 50 - 2


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_episode) -> Source:
    path = tmp_path_factory.mktemp("latents") / "store"
    store = EpisodeStore(path, mode="a")
    for i, steps in STEPS.items():
        store.write(i, make_episode(i, steps=steps))
    return open_source(path)


def made(
    path: Path, source: Source, *, encode: Callable[..., np.ndarray] = encode, **recipe
) -> LatentCache:
    cache = build(
        path,
        source,
        encode,
        recipe=Recipe("e1", "exterior", **recipe),
        shard_bytes=2000,
        progress=False,
    )
    assert cache is not None
    return cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory, source) -> LatentCache:
    return made(tmp_path_factory.mktemp("cache"), source)


def expected(source: Source, i: int, encode: Callable[..., np.ndarray] = encode) -> np.ndarray:
    return encode(np.asarray(source.read(i).frames["exterior"]))


def test_the_cache_equals_what_the_encoder_gives(cache, source):
    opened = LatentCache(cache.path, cache.key)
    copied = pickle.loads(pickle.dumps(opened))
    assert len(list(cache.path.glob("shard-*"))) == 2
    for one in (cache, opened, copied):
        assert one.ids.tolist() == [2, 3, 11, 40] and one.hz == 4.0
        for i in STEPS:
            episode = source.read(i)
            known = expected(source, i).astype(np.float16)
            np.testing.assert_array_equal(one.latents(i), known, strict=True)
            np.testing.assert_array_equal(one.proprio(i), episode.proprio, strict=True)
            np.testing.assert_array_equal(one.timestamps(i), episode.timestamps, strict=True)


def test_windows_are_gathered_across_shards(cache, source):
    episodes, frames = np.array([40, 2, 3, 40]), np.array([[0, 2], [4, 1], [9, 9], [7, 6]])
    latents, proprio = cache.gather(episodes, frames), cache.gather_proprio(episodes, frames)
    assert latents.shape == (4, 2, 8, 8) and proprio.shape == (4, 2, 7)
    for n, episode in enumerate(episodes):
        np.testing.assert_array_equal(latents[n], cache.latents(episode)[frames[n]])
        np.testing.assert_array_equal(proprio[n], source.read(episode).proprio[frames[n]])
    # Row 5 exists in the shard, but belongs to the next episode.
    with pytest.raises(IndexError, match="frame 5 of episode 2, which has 5"):
        cache.gather(np.array([2]), np.array([[5]]))
    with pytest.raises(IndexError, match="frame -1 of episode 3"):
        cache.gather(np.array([3]), np.array([[-1]]))
    with pytest.raises(KeyError, match="no latents of episode 7 in"):
        cache.gather(np.array([7]), np.array([[0]]))
    with pytest.raises(ValueError, match=r"expected episodes \(n,\) and frames \(n, length\)"):
        cache.gather(np.array([2]), np.array([0, 1]))


def test_shards_are_ordinary_safetensors_files(cache):
    shard = load_file(next(cache.path.glob("shard-00000-*")))
    moments = {f"{which}_{part}" for which in ("row", "episode") for part in ("mean", "squares")}
    assert set(shard) == {"latents", "proprio", "timestamps", *moments}
    np.testing.assert_array_equal(shard["latents"][:5], cache.latents(2))
    np.testing.assert_array_equal(shard["proprio"][:5], cache.proprio(2))


def test_int8_is_restored_within_half_a_step_of_each_tokens_scale(tmp_path, source):
    cache = made(tmp_path, source, dtype="int8")
    episodes, frames = np.array([11, 3]), np.array([[0, 5, 2], [9, 1, 1]])
    gathered = cache.gather(episodes, frames)
    assert gathered.dtype == np.float32
    shard = load_file(next(tmp_path.glob("shard-00000-*")))
    assert shard["latents"].dtype == np.int8 and shard["scale"].shape[1:] == (8, 1)
    first = shard["latents"][:5].astype(np.float32) * shard["scale"][:5]
    np.testing.assert_array_equal(cache.latents(2), first)
    for n, episode in enumerate(episodes):
        np.testing.assert_array_equal(gathered[n], cache.latents(episode)[frames[n]])
        known = expected(source, episode)[frames[n]]
        step = np.abs(known).max(-1, keepdims=True) / 127
        assert (np.abs(gathered[n] - known) <= 0.501 * step).all()
    error = np.concatenate([cache.latents(i) - expected(source, i) for i in STEPS])
    whole = np.concatenate([expected(source, i) for i in STEPS])
    relative = np.sqrt(np.square(error).mean() / np.square(whole).mean())
    assert cache.statistics.rounding == pytest.approx(relative, rel=1e-4)
    assert 1e-4 < relative < 0.01


def test_a_token_of_zeros_survives_int8(tmp_path, source):
    cache = made(tmp_path, source, encode=lambda f: encode(f) * 0, dtype="int8")
    assert (cache.latents(3) == 0).all() and cache.statistics.rounding == 0


def test_a_stale_key_is_refused_saying_what_to_do(cache):
    message = "made with key 'e1-exterior-allrows-float16', but 'e2' is wanted: .*encode again"
    with pytest.raises(ValueError, match=message):
        LatentCache(cache.path, "e2")
    with pytest.raises(FileNotFoundError, match="no finished latent cache at .*goes on where"):
        LatentCache(cache.path / "elsewhere", "e1")


def test_a_cache_of_another_version_is_refused(tmp_path):
    (tmp_path / "index.json").write_text('{"worldmodel_latent_cache": 1}')
    with pytest.raises(ValueError, match="has format version 1, this program reads 2"):
        LatentCache(tmp_path, "k")


@pytest.mark.parametrize(
    "changes, end",
    [
        ({}, "allrows-float16"),
        ({"hz": 5.0}, "5hz-float16"),
        ({"dtype": "int8"}, "allrows-int8"),
        ({"pool": 2}, "allrows-pool2-float16"),
    ],
)
def test_every_part_of_a_recipe_is_in_its_key(changes, end):
    assert Recipe("e1", "wrist", **changes).key == f"e1-wrist-{end}"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dtype": "float32"}, "must be float16 or int8, got 'float32'"),
        ({"pool": 0}, "pool must be at least 1, got 0"),
        ({"hz": -1.0}, "rate of the rows must be positive"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe("e1", "wrist", **changes)


@pytest.mark.parametrize("ids", [[2], [3, 11, 40], [2, 3, 11, 40], [2, 11], [3, 40]])
def test_moments_are_of_the_episodes_named_and_of_no_other(cache, ids):
    rows = np.concatenate([cache.latents(i) for i in ids]).astype(np.float64)
    moments = cache.moments(ids)
    assert moments.weight == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-5)


def test_the_standard_error_is_that_of_clustered_rows(tmp_path, make_episode):
    """Rows of an episode are alike: the mean is as uncertain as the episodes, not the rows, say."""
    store = EpisodeStore(tmp_path / "store", mode="a")
    for i in range(30):
        store.write(i, make_episode(i, steps=9))
    values = np.random.default_rng(0).normal(0, 1, 31)

    def one_value_an_episode(frames: np.ndarray) -> np.ndarray:
        which = int(frames[0].astype(int).sum()) % 31
        return np.full((len(frames), 1, 1), values[which], np.float32)

    cache = made(tmp_path / "cache", open_source(tmp_path / "store"), encode=one_value_an_episode)
    per_episode = np.array([cache.latents(i)[0, 0, 0] for i in range(30)], np.float64)
    median, largest = cache.statistics.standard_error
    known = per_episode.std(ddof=1) / np.sqrt(30) / per_episode.std()
    assert median == largest == pytest.approx(known, rel=1e-3)
    assert "300 rows" in str(cache.statistics)


def test_pooling_averages_squares_and_says_what_it_loses(tmp_path, source):
    cache = made(tmp_path, source, encode=square_tokens, pool=2)
    whole = np.concatenate([expected(source, i, square_tokens) for i in STEPS]).astype(np.float64)
    grid = whole.reshape(-1, 2, 2, 2, 2, 4)  # row, row in square, column, column in square
    pooled = grid.mean((2, 4)).reshape(-1, 4, 4)
    rows = np.concatenate([cache.latents(i) for i in STEPS])
    np.testing.assert_allclose(rows, pooled, atol=2e-3)
    kept = pooled.repeat(4, axis=1).var(0).sum() / whole.var(0).sum()
    assert cache.statistics.pooling_loss == pytest.approx(1 - kept, abs=2e-3)
    assert 0.5 < cache.statistics.pooling_loss < 0.9  # of noise, three quarters
    assert "pooling loses" in str(cache.statistics)


@pytest.mark.parametrize("tokens, pool", [(8, 2), (9, 2)])
def test_tokens_that_are_no_grid_are_not_pooled(tokens, pool):
    with pytest.raises(ValueError, match=f"{tokens} tokens cannot be pooled {pool}x{pool}"):
        pool_tokens(np.zeros((2, tokens, 3), np.float32), pool)


def test_rows_at_the_models_rate_belong_to_one_instant(tmp_path, make_episode):
    store = EpisodeStore(tmp_path / "store", mode="a")
    store.write(0, make_episode(0, steps=20))
    source = open_source(tmp_path / "store")
    cache = made(tmp_path / "cache", source, hz=2.0)
    episode = source.read(0)
    rows = np.arange(0, 21, 2)
    assert cache.hz == 2.0
    np.testing.assert_array_equal(cache.timestamps(0), episode.timestamps[rows])
    np.testing.assert_array_equal(cache.proprio(0), episode.proprio[rows])
    frames = np.asarray(episode.frames["exterior"])[rows]
    np.testing.assert_array_equal(cache.latents(0), encode(frames).astype(np.float16))


@pytest.mark.parametrize(
    "encode, message",
    [
        (lambda frames: encode(frames)[1:], r"encode gave float32 \(0, 8, 8\) for 1 frames"),
        (lambda frames: frames[..., 0], "encode gave uint8"),
        (lambda frames: encode(frames) * np.nan, "episode 2: latents are not finite"),
        (lambda frames: encode(frames) + 1e6, r"beyond float16 \(largest 6.55e\+04\)"),
    ],
)
def test_bad_latents_are_refused(tmp_path, source, encode, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, source, encode=encode)


def test_an_encoder_of_any_library_will_do(tmp_path, source):
    cache = made(tmp_path, source, encode=partial(np.mean, axis=-1, dtype=np.float32))
    assert cache.latents(2).shape == (5, 8, 8)
