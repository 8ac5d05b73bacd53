"""Windows are drawn by time, each frame is encoded once, and broken recordings are refused."""

import dataclasses

import numpy as np
import pytest
import torch

from worldmodel.data import EpisodeStore, open_source
from worldmodel.validation.held_out import HeldOut, read_held_out

DRAW = {"camera": "exterior", "hz": 4.0, "frames": 4, "seed": 0, "progress": False}


@pytest.fixture(scope="module")
def world(make_world):
    return make_world(merge=2, standardise=True)


def test_a_window_holds_the_latents_and_poses_of_its_frames(world, spot_store):
    source = open_source(spot_store)
    held_out = read_held_out(world, source, windows=20, episodes=5, **DRAW)
    assert held_out.latents.shape[:2] == (20, 4) and held_out.steps == 3
    assert len(set(held_out.episodes.tolist())) <= 5
    for latents, proprio, number in zip(
        held_out.latents, held_out.proprio, held_out.episodes, strict=True
    ):
        episode = source.read(int(number))
        first = int(np.flatnonzero((episode.proprio == proprio[0]).all(axis=1))[0])
        np.testing.assert_array_equal(episode.proprio[first : first + 4], proprio)
        with torch.inference_mode():
            frames = torch.from_numpy(episode.frames["exterior"][first : first + 4])
            torch.testing.assert_close(world.encode(frames[None])[0], latents)
    np.testing.assert_allclose(
        held_out.actions[:, 0, :3], held_out.proprio[:, 1, :3] - held_out.proprio[:, 0, :3],
        atol=1e-6,
    )  # fmt: skip


def test_the_draw_is_the_seeds_and_no_window_is_drawn_twice(world, spot_store):
    source = open_source(spot_store)

    def draw(seed: int, windows: int) -> HeldOut:
        return read_held_out(world, source, windows=windows, episodes=3, **(DRAW | {"seed": seed}))

    first, again, other = draw(1, 12), draw(1, 12), draw(2, 12)
    np.testing.assert_array_equal(first.proprio, again.proprio)
    torch.testing.assert_close(first.latents, again.latents, rtol=0, atol=0)
    assert not np.array_equal(first.episodes, other.episodes)
    every = draw(1, 10_000)
    assert len(every) == 3 * 10  # 13 frames: 10 windows of 4 in each recording
    assert len(np.unique(every.proprio[:, 0], axis=0)) == len(every)
    assert (np.diff(every.episodes) >= 0).all()


def test_frames_of_a_faster_recording_are_taken_at_the_models_rate(world, spot_store, tmp_path):
    fast = EpisodeStore(tmp_path / "fast", mode="a")
    for i in range(3):
        episode = open_source(spot_store).read(i)
        fast.write(
            i,
            dataclasses.replace(
                episode,
                frames={"exterior": np.asarray(episode.frames["exterior"][:])},
                timestamps=np.arange(13) * 0.125,
                metadata=dataclasses.replace(episode.metadata, control_hz=8.0),
            ),
        )
    held_out = read_held_out(world, open_source(tmp_path / "fast"), windows=50, episodes=3, **DRAW)
    episode = open_source(spot_store).read(int(held_out.episodes[0]))
    first = int(np.flatnonzero((episode.proprio == held_out.proprio[0, 0]).all(axis=1))[0])
    np.testing.assert_array_equal(held_out.proprio[0], episode.proprio[first : first + 8 : 2])
    with pytest.raises(ValueError, match="runs at 8 Hz by its timestamps, which gives no windows"):
        read_held_out(
            world,
            open_source(tmp_path / "fast"),
            windows=50,
            episodes=3,
            **(DRAW | {"hz": 20.0}),
        )


def test_what_cannot_be_measured_on_is_refused(world, spot_store, toy, without_shape_checks):
    source = open_source(spot_store)
    with pytest.raises(KeyError, match="episode .*unknown camera 'wrst'.*known: exterior"):
        read_held_out(world, source, windows=9, episodes=3, **(DRAW | {"camera": "wrst"}))
    with pytest.raises(ValueError, match="no episode is long enough"):
        read_held_out(world, source, windows=9, episodes=3, **(DRAW | {"frames": 30}))
    with pytest.raises(ValueError, match="expected at least 2 windows of at least 2 frames, got 1"):
        toy.held_out().take(1)
    good = toy.held_out()
    with pytest.raises(ValueError, match="latents are of .24, 5. windows and frames, proprio of"):
        HeldOut(good.latents, good.proprio[:, 1:], good.episodes)


def test_some_windows_are_taken_evenly_and_others_are_of_other_recordings(toy):
    held_out = toy.held_out(windows=24, episodes=6)
    some = held_out.take(6)
    np.testing.assert_array_equal(some.episodes, np.arange(6))
    assert len(held_out.take(1000)) == 24
    others = held_out.others()
    assert sorted(others) == list(range(24))
    assert (held_out.episodes[others] != held_out.episodes).all()
