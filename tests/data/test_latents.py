import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from worldmodel.data.latents import LatentCache
from worldmodel.data.store import EpisodeStore


def _encode(frames: np.ndarray) -> np.ndarray:
    """Stands for an encoder: every row of pixels is a token."""
    return frames[..., 0].astype(np.float32) / 16 - 3


@pytest.fixture
def store(tmp_path, make_episode) -> EpisodeStore:
    store = EpisodeStore(tmp_path / "store", mode="a")
    for i, steps in {2: 4, 3: 9, 11: 5, 40: 7}.items():
        store.write(i, make_episode(i, steps=steps))
    return store


def _build(path: Path, store: EpisodeStore, **changes) -> LatentCache:
    arguments = {"key": "k1", "camera": "exterior", "progress": False, "shard_bytes": 2000}
    return LatentCache.build(path, store, changes.pop("encode", _encode), **arguments | changes)


def test_the_cache_equals_what_the_encoder_gives(tmp_path, store):
    built = _build(tmp_path / "cache", store)
    opened = LatentCache.open(tmp_path / "cache", "k1")
    copied = pickle.loads(pickle.dumps(opened))
    assert len(list((tmp_path / "cache").glob("shard-*"))) == 2
    for cache in (built, opened, copied):
        assert cache.ids.tolist() == [2, 3, 11, 40]
        for i in store.ids():
            expected = _encode(store.read_frames(i, "exterior")).astype(np.float16)
            np.testing.assert_array_equal(cache.latents(i), expected, strict=True)
            np.testing.assert_array_equal(cache.proprio(i), store.read_proprio(i), strict=True)
            np.testing.assert_array_equal(
                cache.timestamps(i), store.read_timestamps(i), strict=True
            )


def test_windows_are_gathered_across_shards(tmp_path, store):
    cache = _build(tmp_path / "cache", store)
    episodes, frames = np.array([40, 2, 3, 40]), np.array([[0, 2], [4, 1], [9, 9], [7, 6]])
    latents, proprio = cache.gather(episodes, frames), cache.gather_proprio(episodes, frames)
    assert latents.shape == (4, 2, 8, 8) and proprio.shape == (4, 2, 7)
    for n, episode in enumerate(episodes):
        np.testing.assert_array_equal(latents[n], cache.latents(episode)[frames[n]])
        np.testing.assert_array_equal(proprio[n], store.read_proprio(episode)[frames[n]])
    # Frame 5 exists in the shard, but belongs to the next episode.
    with pytest.raises(IndexError, match="frame 5 of episode 2, which has 5"):
        cache.gather(np.array([2]), np.array([[5]]))
    with pytest.raises(KeyError, match="no latents of episode 7 in"):
        cache.gather(np.array([7]), np.array([[0]]))
    with pytest.raises(ValueError, match=r"expected episodes \(n,\) and frames \(n, length\)"):
        cache.gather(np.array([2]), np.array([0, 1]))


def test_shards_are_ordinary_safetensors_files(tmp_path, store):
    cache = _build(tmp_path / "cache", store)
    shard = load_file(tmp_path / "cache" / "shard-00000.safetensors")
    assert set(shard) == {"latents", "proprio", "timestamps"}
    np.testing.assert_array_equal(shard["latents"][:5], cache.latents(2))


def test_a_stale_key_is_refused_saying_what_to_do(tmp_path, store):
    _build(tmp_path / "cache", store)
    message = "made with key 'k1', but 'k2' is wanted: .*delete the folder and build it again"
    with pytest.raises(ValueError, match=message):
        LatentCache.open(tmp_path / "cache", "k2")
    with pytest.raises(ValueError, match=message):
        _build(tmp_path / "cache", store, key="k2")


def test_other_settings_are_refused_in_the_same_folder(tmp_path, store):
    _build(tmp_path / "cache", store)
    with pytest.raises(ValueError, match="latents of camera 'exterior', not 'wrist'"):
        _build(tmp_path / "cache", store, camera="wrist")
    with pytest.raises(ValueError, match="holds float16 latents, not float32"):
        _build(tmp_path / "cache", store, dtype="float32")


def test_a_stopped_build_keeps_its_whole_shards_and_goes_on(tmp_path, store):
    encoded = []

    def stops(frames: np.ndarray) -> np.ndarray:
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(len(frames))
        return _encode(frames)

    path = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        _build(path, store, encode=stops)
    assert [file.name for file in path.iterdir()] == ["shard-00000.safetensors"]
    with pytest.raises(FileNotFoundError, match="no finished latent cache at .*building again"):
        LatentCache.open(path, "k1")

    encoded.clear()

    def counts(frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return _encode(frames)

    resumed = _build(path, store, encode=counts)
    assert encoded == [6, 8], "episodes 2 and 3 were in the finished shard"
    whole = _build(tmp_path / "whole", store)
    for i in store.ids():
        np.testing.assert_array_equal(resumed.latents(i), whole.latents(i))


def test_new_episodes_are_added_without_encoding_the_old_ones(tmp_path, store, make_episode):
    _build(tmp_path / "cache", store)
    store.write(5, make_episode(5, steps=3))
    encoded = []

    def counts(frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return _encode(frames)

    cache = _build(tmp_path / "cache", store, encode=counts)
    assert encoded == [4]
    assert cache.ids.tolist() == [2, 3, 5, 11, 40]
    np.testing.assert_array_equal(
        cache.latents(5), _encode(store.read_frames(5, "exterior")).astype(np.float16)
    )


@pytest.mark.parametrize(
    "encode, message",
    [
        (lambda frames: _encode(frames)[1:], r"episode 2: encode gave float32 \(4, 8, 8\) for 5"),
        (lambda frames: frames[..., 0], "encode gave uint8"),
        (lambda frames: _encode(frames) * np.nan, "episode 2: latents are not finite"),
        (lambda frames: _encode(frames) + 1e6, r"beyond float16 \(largest 6.55e\+04\)"),
    ],
)
def test_bad_latents_are_refused(tmp_path, store, encode, message):
    with pytest.raises(ValueError, match=message):
        _build(tmp_path / "cache", store, encode=encode)


def test_an_empty_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no episodes to encode"):
        _build(tmp_path / "cache", EpisodeStore(tmp_path / "empty", mode="a"))
