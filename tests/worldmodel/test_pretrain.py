import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel import checkpoint
from worldmodel.data import EpisodeStore
from worldmodel.data.source import open_source
from worldmodel.encoder import VideoEncoder
from worldmodel.pretrain import Clips, PretrainResult, View, pretrain, to_clip, update_ema
from worldmodel.training import Schedule


def run_pretrain(
    data: Path,
    run: Path,
    *,
    schedule: Schedule,
    seed: int = 0,
    masked_weight: float = 1.0,
    state_weight: float = 0.0,
    batch_size: int = 8,
    state_batch_size: int | None = None,
    frames_in_memory: int | None = None,
) -> PretrainResult:
    run.mkdir(exist_ok=True)
    return pretrain(
        build_encoder=partial(VideoEncoder, patch_size=4, embed_dim=24, depth=2, num_heads=2),
        source=open_source(data),
        run=run,
        camera="exterior",
        clip_frames=1,
        levels=[0, 1],
        predictor_dim=24,
        predictor_depth=1,
        predictor_heads=2,
        context_loss_weight=0.5,
        ema=(0.9, 0.99),
        schedule=schedule,
        batch_size=batch_size,
        weight_decay=0.04,
        validation_fraction=0.2,
        seed=seed,
        device="cpu",
        log_every=1,
        save_every=3,
        masked_weight=masked_weight,
        state_weight=state_weight,
        state_batch_size=state_batch_size,
        frames_in_memory=frames_in_memory,
        precision="float32",
    )


run_both = partial(run_pretrain, state_weight=0.5)


SIX_STEPS = Schedule(name="cosine", peak=1e-3, steps=6, warmup_steps=2)


@pytest.fixture(scope="module")
def finished(spot_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretrain")
    run_pretrain(spot_store, run, schedule=SIX_STEPS)
    return run


def test_a_run_leaves_an_encoder_curves_and_metrics(finished: Path, spot_store: Path) -> None:
    encoder, image_size = checkpoint.load_encoder(finished / "encoder")
    assert image_size == 32 and encoder.depth == 2
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["learning_rate"] == SIX_STEPS(line["step"])
        assert all(np.isfinite(list(line.values())))
    provenance = checkpoint.read_config(finished / "encoder", kind="encoder")["provenance"]
    assert provenance["steps"] == 6
    assert 0 < provenance["probe_error_cm"] < 100
    assert 0 <= provenance["probe_gripper_error"] < 0.01  # it never moves
    assert provenance["frames"] == 13 * provenance["episodes"] < 13 * len(EpisodeStore(spot_store))


def test_a_run_killed_and_resumed_has_the_same_curve_and_the_same_weights(
    finished: Path, spot_store: Path, killed_at_step_six, tmp_path: Path
) -> None:
    killed_at_step_six("test_pretrain", "run_pretrain", spot_store, tmp_path)
    # Five steps are in the log, three in the saved state.
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "encoder").exists()

    run_pretrain(spot_store, tmp_path, schedule=SIX_STEPS)
    for file in ("metrics.jsonl", "encoder/weights.safetensors", "encoder/config.json"):
        assert (tmp_path / file).read_bytes() == (finished / file).read_bytes(), file


def test_a_run_with_state_reading_killed_and_resumed_is_the_same_too(
    spot_store: Path, killed_at_step_six, tmp_path: Path
) -> None:
    run_both(spot_store, tmp_path / "whole", schedule=SIX_STEPS)
    killed_at_step_six("test_pretrain", "run_both", spot_store, tmp_path / "killed")
    run_both(spot_store, tmp_path / "killed", schedule=SIX_STEPS)
    for file in ("metrics.jsonl", "encoder/weights.safetensors", "encoder/config.json"):
        whole, killed = (tmp_path / name / file for name in ("whole", "killed"))
        assert killed.read_bytes() == whole.read_bytes(), file
    line = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    masked = line["loss_hidden"] + 0.5 * line["loss_context"]
    state = (line["loss_position"] + 0.5 * line["loss_rotation"] + line["loss_gripper"]) / 2.5
    assert line["loss"] == pytest.approx(masked + 0.5 * state, rel=1e-5)
    config = checkpoint.read_config(tmp_path / "whole" / "encoder", kind="encoder")
    assert config["provenance"]["state_weight"] == 0.5


def test_state_reading_alone_teaches_the_encoder_where_the_hand_is(
    spot_store: Path, tmp_path: Path
) -> None:
    """The spot's place is the position; neither rotation nor gripper ever changes."""
    schedule = Schedule(name="cosine", peak=3e-3, steps=50, warmup_steps=5)
    run_pretrain(spot_store, tmp_path, schedule=schedule, masked_weight=0, state_weight=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "loss_hidden" not in lines[0]
    losses = [line["loss_position"] for line in lines]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    assert lines[-1]["loss_rotation"] < 0.01 and lines[-1]["loss_gripper"] < 0.01


def test_states_are_read_from_a_batch_of_their_own_size(spot_store: Path, tmp_path: Path) -> None:
    read = partial(run_pretrain, spot_store, schedule=SIX_STEPS, masked_weight=0, state_weight=1)
    read(tmp_path / "as_many_as_clips", batch_size=5)
    read(tmp_path / "own", batch_size=8, state_batch_size=5)
    read(tmp_path / "other", batch_size=5, state_batch_size=8)
    curves = [(run / "metrics.jsonl").read_text() for run in sorted(tmp_path.iterdir())]
    as_many, other, own = curves
    assert own == as_many != other


def test_no_steps_leave_an_encoder_with_its_first_weights(spot_store: Path, tmp_path: Path) -> None:
    none = Schedule(name="cosine", peak=1e-3, steps=0, warmup_steps=0)
    result = run_pretrain(spot_store, tmp_path, schedule=none, masked_weight=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = VideoEncoder(patch_size=4, embed_dim=24, depth=2, num_heads=2)
    encoder, _ = checkpoint.load_encoder(result.encoder)
    for name, value in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    assert np.isnan(result.loss) and result.probe_error_cm > 0 and result.probe_gripper_error >= 0


def test_steps_without_an_objective_are_refused(spot_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="masked_weight and state_weight are both 0"):
        run_pretrain(spot_store, tmp_path, schedule=SIX_STEPS, masked_weight=0)


def test_memory_holds_as_many_frames_as_allowed_of_random_episodes(spot_store: Path) -> None:
    view, ids = View(open_source(spot_store), "exterior"), list(range(30))
    few = Clips(view, ids, clip_frames=1, frames_in_memory=40, seed=1)
    assert [len(frames) for frames in few.frames] == [13] * 4  # the fourth passes 40
    again = Clips(view, ids, clip_frames=1, frames_in_memory=40, seed=1)
    other = Clips(view, ids, clip_frames=1, frames_in_memory=40, seed=2)
    assert all((a == b).all() for a, b in zip(few.frames, again.frames, strict=True))
    assert any((a != b).any() for a, b in zip(few.frames, other.frames, strict=True))
    assert Clips(view, ids, clip_frames=1, frames_in_memory=10_000).num_frames == 30 * 13


def test_what_was_left_out_of_memory_is_told(spot_store: Path, tmp_path: Path) -> None:
    result = run_pretrain(spot_store, tmp_path, schedule=SIX_STEPS, frames_in_memory=40)
    provenance = checkpoint.read_config(result.encoder)["provenance"]
    assert (result.episodes, result.frames) == (4, 52)
    assert (provenance["episodes"], provenance["frames"]) == (4, 52)
    assert provenance["episodes_left_out"] == result.episodes_left_out > 10


def test_states_are_drawn_from_all_frames_with_the_proprio_at_each(spot_store: Path) -> None:
    store, view = EpisodeStore(spot_store), View(open_source(spot_store), "exterior")
    clips = Clips(view, [3, 5], clip_frames=2)  # no clip begins at a last frame
    frames, proprio = clips.sample_states(np.random.default_rng(0), 400)
    shown = np.concatenate([store.read_frames(i, "exterior") for i in (3, 5)])
    known = np.concatenate([store.read(i).proprio for i in (3, 5)])
    drawn = set()
    for frame, state in zip(frames.numpy(), proprio.numpy(), strict=True):
        (place,) = np.flatnonzero((known == state).all(-1))
        assert (shown[place] == frame).all()
        drawn.add(int(place))
    assert drawn == set(range(26))


def test_another_seed_gives_another_run(finished: Path, spot_store: Path, tmp_path: Path) -> None:
    run_pretrain(spot_store, tmp_path, schedule=SIX_STEPS, seed=1)
    assert (tmp_path / "metrics.jsonl").read_text() != (finished / "metrics.jsonl").read_text()


def test_pretraining_learns_without_collapsing(spot_store: Path, tmp_path: Path) -> None:
    schedule = Schedule(name="cosine", peak=3e-3, steps=50, warmup_steps=5)
    run_pretrain(spot_store, tmp_path, schedule=schedule)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_hidden"] for line in lines]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert lines[-1]["target_std"] > 0.1


def test_clips_of_one_frame_and_of_several_come_from_the_store(spot_store: Path) -> None:
    store, view = EpisodeStore(spot_store), View(open_source(spot_store), "exterior")
    single = Clips(view, [3, 5], clip_frames=1)
    double = Clips(view, [3, 5], clip_frames=2)
    assert single.sample(np.random.default_rng(0), 7).shape == (7, 1, 32, 32, 3)
    clips = double.sample(np.random.default_rng(0), 7).numpy()
    known = np.concatenate([store.read_frames(i, "exterior") for i in (3, 5)])
    for clip in clips:
        first = [i for i, frame in enumerate(known) if (frame == clip[0]).all()]
        assert any((known[i + 1] == clip[1]).all() for i in first if i + 1 < len(known))


def test_a_single_frame_fills_a_tubelet_and_a_clip_stays_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 4, 8, 8, 3), generator=generator, dtype=torch.uint8)
    clip = to_clip(frames, 2)
    assert clip.shape == (2, 3, 4, 8, 8)
    doubled = to_clip(frames[:, 1:2], 2)
    assert doubled.shape == (2, 3, 2, 8, 8)
    assert torch.equal(doubled[:, :, 0], clip[:, :, 1])
    assert torch.equal(doubled[:, :, 0], doubled[:, :, 1])


def test_the_target_moves_towards_the_online_encoder() -> None:
    target, online = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    slow, fast = target.weight.detach().clone(), online.weight.detach()
    update_ema(target, online, 0.75)
    torch.testing.assert_close(target.weight.detach(), 0.75 * slow + 0.25 * fast)
