import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.data import EpisodeStore, LatentCache
from worldmodel.data.latent_verify import verify
from worldmodel.data.source import open_source
from worldmodel.encode import FrameEncoder, LatentJob, errors_of, latent_job
from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import encode_frames


def an_encoder(seed: int = 0) -> VideoEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VideoEncoder(patch_size=8, embed_dim=24, depth=1, num_heads=2)


def encoded(data: Path, folder: Path, *, merge: int = 2, seed: int = 0, **changes) -> LatentCache:
    limit = changes.pop("max_quarantined", 0.1)
    arguments = {
        "encoder": an_encoder(seed),
        "image_size": 32,
        "source": open_source(data),
        "cache": folder,
        "camera": "exterior",
        "merge": merge,
        "device": "cpu",
        "batch_size": 5,
    }
    cache = latent_job(**arguments | changes).build(max_quarantined=limit)
    assert cache is not None
    return cache


@pytest.fixture(scope="module")
def few_spots(spot_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of the episodes of the moving spot."""
    path = tmp_path_factory.mktemp("few") / "spots"
    store, few = EpisodeStore(spot_store), EpisodeStore(path, mode="a")
    for i in range(6):
        few.write(i, store.read(i))
    return path


def test_the_cache_holds_what_the_encoder_sees(few_spots: Path, tmp_path: Path) -> None:
    cache = encoded(few_spots, tmp_path)
    frames = torch.from_numpy(EpisodeStore(few_spots).read_frames(4, "exterior"))
    with torch.inference_mode():
        expected = encode_frames(an_encoder(), frames, 2)
    np.testing.assert_allclose(cache.latents(4), expected, atol=2e-3)
    assert cache.path.parent == tmp_path / "spots"
    assert cache.path.name.endswith("-merge2-exterior-allrows-float16")


def test_whatever_changes_latents_changes_the_cache(few_spots: Path, tmp_path: Path) -> None:
    changes = [{}, {"merge": 1}, {"seed": 1}, {"crop": "square"}, {"model_hz": 2.0}]
    changes += [{"dtype": "int8"}, {"pool": 2}, {"image_size": 16, "crop": "square"}]
    changes += [{"precision": "bfloat16"}]
    paths = [encoded(few_spots, tmp_path, **change).path for change in changes]
    assert len(set(paths)) == len(changes)
    assert encoded(few_spots, tmp_path).path == paths[0]


def test_latents_in_bfloat16_are_close_but_not_the_same(few_spots: Path, tmp_path: Path) -> None:
    exact = encoded(few_spots, tmp_path).latents(2)
    rounded = encoded(few_spots, tmp_path, precision="bfloat16").latents(2)
    assert 1e-3 < np.abs(rounded - exact).max() < 0.1
    with pytest.raises(ValueError, match="precision must be one of .*, got 'half'"):
        encoded(few_spots, tmp_path, precision="half")


def test_an_encoder_pickles_with_its_weights(few_spots: Path) -> None:
    settings = {"image_size": 32, "crop": "none", "merge": 2, "device": "cpu"}
    run = FrameEncoder(an_encoder(), **settings, precision="bfloat16")
    copy = pickle.loads(pickle.dumps(run))
    frames = EpisodeStore(few_spots).read_frames(0, "exterior")
    np.testing.assert_array_equal(copy(frames), run(frames))
    assert copy.fingerprint == run.fingerprint


def test_frames_of_another_size_are_fitted_or_refused(few_spots: Path, tmp_path: Path) -> None:
    assert encoded(few_spots, tmp_path, image_size=16, crop="square").latents(0).shape[1:] == (
        1,
        96,
    )
    with pytest.raises(ValueError, match="frames are 32 x 32 pixels but the encoder takes 16 x 16"):
        encoded(few_spots, tmp_path, image_size=16)


def test_a_cache_is_verified_by_encoding_a_sample_again(few_spots: Path, tmp_path: Path) -> None:
    cache = encoded(few_spots, tmp_path)
    source = open_source(few_spots)
    run = FrameEncoder(
        an_encoder(), image_size=32, crop="none", merge=2, device="cpu", batch_size=64
    )
    assert verify(cache.path, source, run).max_difference < 2e-3
    other = FrameEncoder(an_encoder(1), image_size=32, crop="none", merge=2, device="cpu")
    with pytest.raises(ValueError, match="numbers differ"):
        verify(cache.path, source, other)


def test_what_the_validator_calls_an_error_is_quarantined(few_spots: Path, tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "spots", mode="a")
    good = EpisodeStore(few_spots)
    for i in range(5):
        store.write(i, good.read(i))
    bad = good.read(5)
    black = np.zeros_like(np.asarray(bad.frames["exterior"]))
    store.write(5, replace(bad, frames={"exterior": black}))
    reasons = errors_of(open_source(store.path), 5)
    assert reasons and not errors_of(open_source(store.path), 0)
    cache = encoded(store.path, tmp_path / "cache", max_quarantined=0.2)
    assert cache.ids.tolist() == [0, 1, 2, 3, 4]
    assert list(cache.quarantined[0].reasons) == list(reasons)


def test_a_set_that_is_wrong_as_a_whole_is_refused(few_spots: Path, tmp_path: Path) -> None:
    """A gripper that never leaves 0 to 8 hundredths is in metres: no single episode proves it."""
    store, good = EpisodeStore(tmp_path / "spots", mode="a"), EpisodeStore(few_spots)
    for i in range(6):
        episode = good.read(i)
        proprio = episode.proprio.copy()
        proprio[:, 6] = np.linspace(0, 0.08, len(proprio))
        store.write(i, replace(episode, proprio=proprio))
    with pytest.raises(ValueError, match=r"is wrong as a whole:\n  gripper_range: .*open"):
        encoded(store.path, tmp_path / "cache")


def test_verifying_says_that_recordings_have_changed_since(few_spots: Path, tmp_path: Path) -> None:
    store, good = EpisodeStore(tmp_path / "spots", mode="a"), EpisodeStore(few_spots)
    for i in range(3):
        store.write(i, good.read(i))

    def job() -> LatentJob:
        return latent_job(
            encoder=an_encoder(),
            image_size=32,
            source=open_source(store.path),
            cache=tmp_path / "cache",
            camera="exterior",
            merge=2,
            device="cpu",
        )

    job().build()
    assert job().verify(sample=2).episodes == 2
    store.write(3, good.read(3))
    with pytest.raises(ValueError, match="episodes 3 in .* are missing, or their shard was made"):
        job().verify(sample=1)
