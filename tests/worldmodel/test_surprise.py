"""Surprise in a world with a known answer: a frame's pixels are its latents, the arm moves them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from worldmodel import cli, error_model
from worldmodel.checkpoint import fingerprint
from worldmodel.data import open_source
from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.surprise import calibrate, episode_surprise, predict_episode
from worldmodel.surprise_calibration import (
    QUESTIONS,
    Prediction,
    Scale,
    fit_calibration,
    load_calibration,
)
from worldmodel.surprise_page import (
    frames_around,
    patch_map,
    score_recordings,
    surprise_table,
    write_pictures,
)

T, TOKENS, DIM = 12, 4, 8


def made_up(rng: np.random.Generator, *, steps: int = T, noise: float = 0.1):
    """Latents before, predicted and seen: large moves have large errors, as a fair model's do."""
    before = torch.from_numpy(rng.normal(size=(steps, TOKENS, DIM)))
    moves = torch.from_numpy(rng.normal(size=(steps, TOKENS, DIM))) * torch.from_numpy(
        rng.uniform(0.0, 1.0, size=(steps, 1, 1))
    )
    errors = noise * moves.abs().mean() * torch.from_numpy(rng.normal(size=moves.shape))
    grain = 0.02 * torch.from_numpy(rng.normal(size=moves.shape))
    return before, before + moves, before + moves + errors * moves.abs() + grain


@pytest.fixture(scope="module", autouse=True)
def short_lessons():
    """An error model of made-up latents has little to learn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_model, "UPDATES", 300)
        yield


@pytest.fixture(scope="module")
def calibration():
    rng = np.random.default_rng(0)
    return calibration_of([made_up(rng) for _ in range(600)])


def calibration_of(clean, *, model: str = "m"):
    about = {"model": model, "camera": "exterior", "recordings": "made up"}
    return fit_calibration(clean, merge=2, **about, progress=False)


def score(calibration, before, predicted, after) -> np.ndarray:
    return calibration.step_surprise(before, predicted, after).numpy()


def test_patches_are_the_picture_that_tokens_were_joined_from():
    side, merge, dim = 4, 2, 3  # patches; the picture of 4 x 4 patches is 2 x 2 tokens
    picture = torch.arange(1.0, 17.0).reshape(side, side, 1).expand(-1, -1, dim)
    tokens = picture.unflatten(0, (2, merge)).unflatten(2, (2, merge)).permute(0, 2, 1, 3, 4)
    after = tokens.flatten(2).flatten(0, 1)[None]  # (1, 4 tokens, 12), as `encode_frames` joins
    zeros = torch.zeros_like(after)
    found = Prediction.compare((zeros, zeros, after), merge=merge)
    np.testing.assert_array_equal(found.errors[0].reshape(side, side), picture[..., 0])
    np.testing.assert_array_equal(found.changes, found.errors)
    np.testing.assert_array_equal(found.expected, 0)


def test_unseen_is_the_part_of_the_expected_change_that_is_missing():
    before = torch.zeros(4, TOKENS, DIM)
    predicted = torch.ones_like(before)
    shares = torch.tensor([1.0, 0.0, 0.25, 2.0])[:, None, None]
    found = Prediction.compare((before, predicted, before + shares), merge=1)
    np.testing.assert_allclose(found.unseen, [0.0, 1.0, 0.75, -1.0])
    still = Prediction.compare((before, before, before), merge=1)
    np.testing.assert_array_equal(still.unseen, 0)  # nothing expected, nothing missing


def test_a_scale_follows_what_is_normal_at_each_size_of_motion():
    rng = np.random.default_rng(0)
    expected = rng.uniform(0, 1, 20_000)
    values = 2 * expected + rng.normal(size=expected.shape) * (0.1 + expected)
    scale = Scale.fit(values, expected)
    units = scale(values, expected)
    for low in (0.1, 0.5, 0.8):
        here = (expected > low) & (expected < low + 0.1)
        assert np.median(units[here]) == pytest.approx(0, abs=0.12)
        assert np.quantile(units[here], 0.95) == pytest.approx(1, abs=0.15)
    assert (np.diff(scale.middle) >= 0).all() and (np.diff(scale.width) >= 0).all()


def test_a_large_honest_move_is_less_surprising_than_a_small_thing_nobody_moved(calibration):
    rng = np.random.default_rng(5)
    before, predicted, after = made_up(rng)
    ahead = predicted - before
    big = ahead / ahead.abs().mean(dim=(1, 2), keepdim=True)
    honest = score(calibration, before, before + big, before + big * 1.02)
    small = before + 0.1 * big
    seen = small.clone()
    seen[:, 2, :2] += 1.5  # one patch of one token
    meddled = score(calibration, before, small, seen)
    assert (seen - small).abs().mean() < (0.2 * big).abs().mean()
    assert honest.max() < 1 < meddled.min()
    where = calibration.judge((before, small, seen)).patches
    assert (np.argmax(where, axis=1) == 8).all()  # token 2 is the lower left: row 2, column 0


def test_a_frozen_camera_surprises_while_the_arm_moves_and_not_while_it_rests(calibration):
    rng = np.random.default_rng(6)
    before, predicted, _ = made_up(rng)
    ahead = predicted - before
    moving = before + ahead / ahead.abs().mean(dim=(1, 2), keepdim=True)
    asked = calibration.judge((before, moving, before)).questions
    assert (asked[:, QUESTIONS.index("unseen")] > 1).all()
    rest = before + 0.01 * (moving - before)
    assert (score(calibration, before, rest, before) < 1).all()


def test_one_clean_episode_in_a_hundred_is_flagged(calibration):
    rng = np.random.default_rng(7)
    worst = []
    for _ in range(500):
        worst.append(score(calibration, *made_up(rng)).max())
    for level, low, high in ((0.01, 0.001, 0.03), (0.1, 0.06, 0.15)):
        flagged = np.mean(worst > np.array(calibration.threshold(steps=T, level=level)))
        assert low < flagged < high
    longer = [max(worst[i : i + 4]) for i in range(0, 500, 4)]
    assert np.mean(longer > np.array(calibration.threshold(steps=4 * T, level=0.1))) < 0.2


@given(st.floats(-2, 30), st.floats(0, 10), st.integers(1, 500), st.floats(0.001, 0.5))
@settings(max_examples=60)
def test_p_values_fall_with_the_score_and_agree_with_the_threshold(
    calibration, low, more, steps, level
):
    p = calibration.p_value(low, steps=steps)
    assert 0 <= calibration.p_value(low + more, steps=steps) <= p <= 1
    assert p <= calibration.p_value(low, steps=2 * steps)
    line = calibration.threshold(steps=steps, level=level)
    assert calibration.p_value(line, steps=steps) == pytest.approx(level, rel=0.1, abs=0.01)


def test_a_calibration_survives_being_written(calibration, make_world, tmp_path):
    world = make_world(merge=2, standardise=True)
    own = dataclasses.replace(calibration, model=fingerprint(world))
    path = own.save(tmp_path / "new" / "calibration.safetensors")
    again = load_calibration(path, world=world, camera="exterior")
    step = made_up(np.random.default_rng(1))
    np.testing.assert_allclose(score(again, *step), score(own, *step), rtol=1e-3, atol=1e-3)
    assert again.p_value(1.1, steps=T) == pytest.approx(own.p_value(1.1, steps=T), rel=1e-3)
    with pytest.raises(ValueError, match="another model.*calibrate=true"):
        load_calibration(path, world=make_world(seed=3, merge=2, standardise=True), camera="x")
    with pytest.raises(ValueError, match="of camera 'exterior', not of 'wrist'"):
        load_calibration(path, world=world, camera="wrist")
    with pytest.raises(ValueError, match="calibration=FILE"):  # not this one, which may be shipped
        load_calibration(path, world=world, camera="wrist")
    with pytest.raises(FileNotFoundError, match="no surprise calibration at .*calibrate=true"):
        load_calibration(tmp_path / "none", world=world, camera="exterior")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="or damaged .*calibrate=true"):
        load_calibration(path, world=world, camera="exterior")
    path.write_text("{}")  # as it was once written
    with pytest.raises(ValueError, match="is no worldmodel surprise calibration"):
        load_calibration(path, world=world, camera="exterior")
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a worldmodel surprise calibration of version 2"):
        load_calibration(path, world=world, camera="exterior")


def test_latents_of_another_model_are_refused(calibration):
    wide = torch.zeros(3, TOKENS, 2 * DIM)
    with pytest.raises(ValueError, match=r"4 x 4 patches with 2 numbers, .* \(4, 4\) with 4"):
        calibration.judge((wide, wide, wide))
    row = torch.zeros(3, 5, DIM)
    with pytest.raises(ValueError, match="a square grid of tokens, this has 5"):
        calibration.judge((row, row, row))
    with pytest.raises(ValueError, match="two clean episodes or more, got 1"):
        calibration_of([made_up(np.random.default_rng(0))])


def make_episode(seed: int, *, drop: int | None = None) -> Episode:
    rng = np.random.default_rng(seed)
    proprio = np.zeros((T + 1, 7), np.float32)
    proprio[:, :3] = np.cumsum(rng.uniform(-0.05, 0.05, (T + 1, 3)), axis=0) + [0.4, 0, 0.3]
    proprio[:, 3] = 3.0
    frames = rng.integers(0, 255, (T + 1, 32, 32, 3), dtype=np.uint8)
    times = np.arange(T + 1) / 4
    keep = np.array([i for i in range(T + 1) if i != drop])
    return Episode(
        frames={"exterior": frames[keep]},
        proprio=proprio[keep],
        timestamps=times[keep],
        metadata=EpisodeMetadata("test", "t", "b", 0, 4.0, "", "", ("exterior",)),
    )


def test_every_frame_is_predicted_from_the_one_before_with_the_measured_move(make_world):
    world, episode = make_world(merge=2, standardise=True), make_episode(0)
    rows, found = predict_episode(world, episode, camera="exterior")
    np.testing.assert_array_equal(rows, np.arange(1, T + 1))
    with torch.inference_mode():
        frames = torch.from_numpy(episode.frames["exterior"][3:5])[None]
        latents = world.encode(frames)[0]
        predicted = world.predict(
            latents[None, :1],
            torch.from_numpy(episode.proprio[3])[None, None],
            torch.from_numpy(episode.actions[3])[None, None],
        )[0]
    for one, other in zip(found, (latents[:1], predicted, latents[1:]), strict=True):
        torch.testing.assert_close(one[3:4], other, rtol=1e-4, atol=1e-5)


def test_no_step_reaches_across_a_gap(make_world):
    world = make_world(merge=2, standardise=True)
    rows, _ = predict_episode(world, make_episode(0, drop=5), camera="exterior")
    assert 5 not in rows and len(rows) == T - 2  # row 5 is now what was row 6, after the gap
    with pytest.raises(KeyError, match="unknown camera 'exteriour'; did you mean 'exterior'"):
        predict_episode(world, make_episode(0), camera="exteriour")


def test_an_episode_is_flagged_where_a_picture_was_tampered_with(make_world, tmp_path):
    world = make_world(merge=2, standardise=True)
    still = make_episode(0)
    flat = np.repeat(still.frames["exterior"][:1], T + 1, axis=0)
    noise = np.random.default_rng(3)
    clean = []
    for _ in range(50):
        frames = np.clip(flat + noise.integers(-6, 7, flat.shape), 0, 255).astype(np.uint8)
        episode = dataclasses.replace(still, frames={"exterior": frames})
        clean.append(predict_episode(world, episode, camera="exterior")[1])
    calibration = calibration_of(clean, model=fingerprint(world))
    good = episode_surprise(
        world, calibration, dataclasses.replace(still, frames={"exterior": flat})
    )
    assert not good.flagged and good.p_value > 0.01
    frames = flat.copy()
    frames[7:, 16:24, 8:16] = 255 - frames[7:, 16:24, 8:16]
    bad = episode_surprise(
        world, calibration, dataclasses.replace(still, frames={"exterior": frames})
    )
    assert bad.flagged and bad.p_value < 0.01
    assert bad.rows[bad.worst] == 7
    assert list(frames_around(bad)) == [5, 6, 7, 8]
    files = write_pictures(tmp_path / "new", bad, frames[frames_around(bad)], name="episode 0")
    assert all(file.stat().st_size > 5000 for file in files)


def test_patches_cover_the_picture_row_by_row():
    np.testing.assert_array_equal(patch_map(np.arange(4), height=8, width=8), [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="expected a square grid"):
        patch_map(np.arange(6), height=8, width=8)


def test_recordings_are_ranked_and_written(spot_store, calibration, make_world, tmp_path):
    world, source = make_world(merge=2, standardise=True), open_source(spot_store)
    with pytest.raises(ValueError, match="needs at least 200"):
        calibrate(world, source, camera="exterior", progress=False)
    clean = [predict_episode(world, source.read(i), camera="exterior")[1] for i in source.ids()]
    own = calibration_of(clean)
    ranked = score_recordings(world, own, source, tmp_path, pictures=1, progress=False)
    p_values = [surprise.p_value for surprise in ranked.values()]
    assert set(ranked) == set(source.ids()) and p_values == sorted(p_values)
    written = json.loads((tmp_path / "surprise.json").read_text())
    first, best = next(iter(ranked.items()))
    assert written["episodes"][str(first)]["worst_frame"] == best.rows[best.worst]
    assert written["flagged"] == [i for i in source.ids() if ranked[i].flagged]
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert surprise_table(ranked, lines=1).splitlines()[1].split()[0] == str(first)


@pytest.mark.parametrize("checkpoint", ["null", "watch", "default"])
def test_a_shipped_calibration_is_not_written_over(checkpoint: str, capsys, tmp_path) -> None:
    words = ["surprise", f"data={tmp_path}", "calibrate=true", f"checkpoint={checkpoint}"]
    assert cli.main(words) == 2
    assert "the shipped model's folder is not written to" in capsys.readouterr().err
