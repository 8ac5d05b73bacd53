import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel import checkpoint
from worldmodel.clips import ClipWindows, View, read_clips
from worldmodel.collapse import CollapseError, CollapseLimits
from worldmodel.data import EpisodeStore
from worldmodel.data.source import open_source
from worldmodel.dino import DinoEncoder
from worldmodel.encoder import VideoEncoder
from worldmodel.images import Crop
from worldmodel.objectives.interface import Loss, as_clip
from worldmodel.objectives.vjepa21 import VJepa21
from worldmodel.pretrain import PretrainResult, Start, pretrain
from worldmodel.training import Schedule

NO_LIMITS = CollapseLimits(min_effective_rank=1, min_std=0, max_cosine=1)

MASKED = partial(
    VJepa21,
    clip_frames=1,
    levels=[0, 1],
    predictor_dim=24,
    predictor_depth=1,
    predictor_heads=2,
    context_loss_weight=0.5,
    ema=[0.9, 0.99],
)


def run_pretrain(
    data: Path,
    run: Path,
    *,
    schedule: Schedule,
    seed: int = 0,
    objective_weight: float = 1.0,
    state_weight: float = 0.0,
    batch_size: int = 8,
    state_batch_size: int | None = None,
    frames_in_memory: int | None = None,
    build_objective=MASKED,
    collapse: CollapseLimits = NO_LIMITS,
    image_size: int | None = None,
    crop: Crop = "none",
    start: Start | None = None,
) -> PretrainResult:
    run.mkdir(exist_ok=True)
    return pretrain(
        build_encoder=partial(VideoEncoder, patch_size=4, embed_dim=24, depth=2, num_heads=2),
        source=open_source(data),
        run=run,
        camera="exterior",
        build_objective=build_objective,
        schedule=schedule,
        batch_size=batch_size,
        weight_decay=0.04,
        validation_fraction=0.2,
        seed=seed,
        device="cpu",
        log_every=1,
        save_every=3,
        objective_weight=objective_weight,
        state_weight=state_weight,
        state_batch_size=state_batch_size,
        frames_in_memory=frames_in_memory,
        precision="float32",
        collapse=collapse,
        image_size=image_size,
        crop=crop,
        start=start,
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


def test_a_run_that_goes_on_from_an_encoder_begins_with_its_weights_and_leaves_it_alone(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    encoder, image_size = checkpoint.load_encoder(finished / "encoder")
    assert isinstance(encoder, VideoEncoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    start = Start("mine", encoder.requires_grad_(False), image_size)
    none, three = (Schedule(name="cosine", peak=1e-3, steps=n, warmup_steps=0) for n in (0, 3))

    same = run_pretrain(spot_store, tmp_path / "same", schedule=none, start=start, seed=5)
    again, _ = checkpoint.load_encoder(same.encoder)
    assert all(torch.equal(again.state_dict()[name], before[name]) for name in before)
    told = checkpoint.read_config(same.encoder)["provenance"]
    assert told["finetuned_from"] == "mine"

    moved = run_pretrain(spot_store, tmp_path / "moved", schedule=three, start=start)
    again, _ = checkpoint.load_encoder(moved.encoder)
    assert not all(torch.equal(again.state_dict()[name], before[name]) for name in before)
    assert all(torch.equal(encoder.state_dict()[name], before[name]) for name in before)

    with pytest.raises(ValueError, match="32 pixels, mine was trained on 64; set image_size=64"):
        run_pretrain(spot_store, tmp_path / "x", schedule=none, start=Start("mine", encoder, 64))
    with pytest.raises(ValueError, match="finetune=mine is a DinoEncoder; objectives train"):
        Start("mine", DinoEncoder.__new__(DinoEncoder), 32).copied()
    larger = Start("mine", encoder, 64)
    run_pretrain(
        spot_store, tmp_path / "y", schedule=none, start=larger, image_size=64, crop="square"
    )
    assert checkpoint.load_encoder(tmp_path / "y" / "encoder")[1] == 64


def test_state_reading_alone_teaches_the_encoder_where_the_hand_is(
    spot_store: Path, tmp_path: Path
) -> None:
    """The spot's place is the position; neither rotation nor gripper ever changes."""
    schedule = Schedule(name="cosine", peak=3e-3, steps=50, warmup_steps=5)
    run_pretrain(spot_store, tmp_path, schedule=schedule, objective_weight=0, state_weight=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "loss_hidden" not in lines[0]
    losses = [line["loss_position"] for line in lines]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    assert lines[-1]["loss_rotation"] < 0.01 and lines[-1]["loss_gripper"] < 0.01


def test_states_are_read_from_a_batch_of_their_own_size(spot_store: Path, tmp_path: Path) -> None:
    read = partial(run_pretrain, spot_store, schedule=SIX_STEPS, objective_weight=0, state_weight=1)
    read(tmp_path / "as_many_as_clips", batch_size=5)
    read(tmp_path / "own", batch_size=8, state_batch_size=5)
    read(tmp_path / "other", batch_size=5, state_batch_size=8)
    curves = [(run / "metrics.jsonl").read_text() for run in sorted(tmp_path.iterdir())]
    as_many, other, own = curves
    assert own == as_many != other


def test_no_steps_leave_an_encoder_with_its_first_weights(spot_store: Path, tmp_path: Path) -> None:
    none = Schedule(name="cosine", peak=1e-3, steps=0, warmup_steps=0)
    result = run_pretrain(spot_store, tmp_path, schedule=none, objective_weight=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = VideoEncoder(patch_size=4, embed_dim=24, depth=2, num_heads=2)
    encoder, _ = checkpoint.load_encoder(result.encoder)
    for name, value in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    assert np.isnan(result.loss) and result.probe_error_cm > 0 and result.probe_gripper_error >= 0


def test_steps_without_an_objective_are_refused(spot_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objective_weight and state_weight are both 0"):
        run_pretrain(spot_store, tmp_path, schedule=SIX_STEPS, objective_weight=0)


def test_memory_holds_as_many_frames_as_allowed_of_random_episodes(spot_store: Path) -> None:
    view, ids = View(open_source(spot_store), "exterior"), list(range(30))
    few = read_clips(view, ids, frames_in_memory=40, seed=1)
    assert [len(frames) for frames in few.frames] == [13] * 4  # the fourth passes 40
    again = read_clips(view, ids, frames_in_memory=40, seed=1)
    other = read_clips(view, ids, frames_in_memory=40, seed=2)
    assert all((a == b).all() for a, b in zip(few.frames, again.frames, strict=True))
    assert any((a != b).any() for a, b in zip(few.frames, other.frames, strict=True))
    assert read_clips(view, ids, frames_in_memory=10_000).num_frames == 30 * 13


def test_what_was_left_out_of_memory_is_told(spot_store: Path, tmp_path: Path) -> None:
    result = run_pretrain(spot_store, tmp_path, schedule=SIX_STEPS, frames_in_memory=40)
    provenance = checkpoint.read_config(result.encoder)["provenance"]
    assert (result.episodes, result.frames) == (4, 52)
    assert (provenance["episodes"], provenance["frames"]) == (4, 52)
    assert provenance["episodes_left_out"] == result.episodes_left_out > 10


def test_states_are_drawn_from_all_frames_with_the_proprio_at_each(spot_store: Path) -> None:
    store, view = EpisodeStore(spot_store), View(open_source(spot_store), "exterior")
    clips = read_clips(view, [3, 5])
    windows = ClipWindows(clips, frames=1, strides=[1])
    frames, proprio = windows.load(*windows.draw(np.random.default_rng(0), 400))
    shown = np.concatenate([store.read_frames(i, "exterior") for i in (3, 5)])
    known = np.concatenate([store.read(i).proprio for i in (3, 5)])
    drawn = set()
    for frame, state in zip(frames[:, 0].numpy(), proprio[:, 0].numpy(), strict=True):
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
    assert lines[-1]["feature_std"] > 0.1


def test_windows_of_one_frame_and_of_several_come_from_the_store(spot_store: Path) -> None:
    store, view = EpisodeStore(spot_store), View(open_source(spot_store), "exterior")
    clips = read_clips(view, [3, 5])
    known = np.concatenate([store.read_frames(i, "exterior") for i in (3, 5)])
    states = np.concatenate([store.read(i).proprio for i in (3, 5)])
    for length, strides in ((1, [1]), (2, [1]), (3, [2])):
        windows = ClipWindows(clips, frames=length, strides=strides)
        frames, proprio = windows.load(*windows.draw(np.random.default_rng(0), 7))
        assert frames.shape == (7, length, 32, 32, 3)
        for shown, at in zip(frames.numpy(), proprio.numpy(), strict=True):
            (first,) = np.flatnonzero((states == at[0]).all(-1))
            rows = first + strides[0] * np.arange(length)
            assert (known[rows] == shown).all() and (states[rows] == at).all()


def test_the_pictures_that_collapse_is_judged_by_are_always_the_same(spot_store: Path) -> None:
    clips = read_clips(View(open_source(spot_store), "exterior"), [3, 5, 7])
    one, same, other = (clips.pictures(10, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (10, 32, 32, 3)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_single_frame_fills_a_tubelet_and_a_clip_stays_as_it_is() -> None:
    pixels = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clip = as_clip(pixels, 2)
    assert clip.shape == (2, 3, 4, 8, 8)
    doubled = as_clip(pixels[:, 1:2], 2)
    assert doubled.shape == (2, 3, 2, 8, 8)
    assert torch.equal(doubled[:, :, 0], clip[:, :, 1])
    assert torch.equal(doubled[:, :, 0], doubled[:, :, 1])


class NoTarget(VJepa21):
    """Masked prediction whose target is the encoder itself: equal features cost nothing."""

    def __init__(self, **arguments):  # type: ignore[no-untyped-def]
        super().__init__(**arguments)
        self.predictor.requires_grad_(False)

    def losses(self, encoder, batch):  # type: ignore[no-untyped-def]
        """Yields what the encoder must learn: that its features do not differ."""
        clip = as_clip(batch.pixels(), encoder.tubelet_size)
        tokens = torch.nn.functional.layer_norm(encoder(clip), (encoder.embed_dim,))
        apart = (tokens - tokens.flatten(0, 1).mean(0).detach()).square().mean()
        yield Loss(apart, {"hidden": apart})

    def kept(self, encoder):  # type: ignore[no-untyped-def]
        """Returns the encoder itself."""
        return encoder


def test_a_collapsing_run_is_stopped_and_says_why(spot_store: Path, tmp_path: Path) -> None:
    schedule = Schedule(name="cosine", peak=1e-2, steps=200, warmup_steps=5)
    limits = CollapseLimits(first_step=10)
    collapsing = partial(NoTarget, *MASKED.args, **MASKED.keywords)
    with pytest.raises(CollapseError, match="the encoder collapsed") as stopped:
        run_pretrain(
            spot_store, tmp_path, schedule=schedule, build_objective=collapsing, collapse=limits
        )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 10 <= lines[-1]["step"] < 200
    last = lines[-1]
    assert f"step {last['step']}: " in str(stopped.value)
    assert last["effective_rank"] < 2 or last["feature_std"] < 0.02 or last["feature_cosine"] > 0.99
    assert "raise objective.ema" in str(stopped.value)
    assert (tmp_path / "curves.png").is_file() and not (tmp_path / "encoder").exists()


class Interrupted(Schedule):
    """A constant rate, and Ctrl-C at the step that stands in place of the last rate."""

    def __call__(self, step: int) -> float:
        if step == int(self.final):
            raise KeyboardInterrupt
        return 1e-2


def test_a_collapse_is_counted_over_an_interruption(spot_store: Path, tmp_path: Path) -> None:
    limits = CollapseLimits(first_step=5, patience=8)
    collapsing = partial(NoTarget, *MASKED.args, **MASKED.keywords)

    def train(run: Path, interruption: int) -> None:
        schedule = Interrupted(
            name="cosine", peak=1e-2, steps=200, warmup_steps=0, final=interruption
        )
        run_pretrain(
            spot_store, run, schedule=schedule, build_objective=collapsing, collapse=limits
        )

    def last_step(run: Path) -> int:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]

    with pytest.raises(CollapseError):
        train(tmp_path / "whole", 0)
    end = last_step(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", end - 1)
    with pytest.raises(CollapseError):
        train(tmp_path / "parts", 0)
    assert last_step(tmp_path / "parts") == end


def test_a_healthy_run_is_not_stopped_by_the_default_limits(
    spot_store: Path, tmp_path: Path
) -> None:
    schedule = Schedule(name="cosine", peak=3e-3, steps=40, warmup_steps=5)
    result = run_pretrain(
        spot_store, tmp_path, schedule=schedule, collapse=CollapseLimits(first_step=10)
    )
    assert result.encoder.is_dir()


# What this run gave before objectives were files of their own.
RECORDED = {
    "loss": [1.311792515218258, 1.328839749097824, 1.2191521227359772]
    + [1.1976637467741966, 1.2253874838352203, 1.2222716361284256],
    "loss_hidden": [0.826425164937973, 0.8050797581672668, 0.7890280783176422]
    + [0.7810412347316742, 0.7817788124084473, 0.7818062007427216],
    "loss_context": [0.7528324723243713, 0.7293423414230347, 0.7043042182922363]
    + [0.6612341105937958, 0.689732700586319, 0.7064074575901031],
    "loss_position": [0.4979921281337738, 0.5606656670570374, 0.36985912919044495]
    + [0.3151596486568451, 0.45969223976135254, 0.4208221137523651],
}


def test_masked_prediction_with_state_reading_gives_what_it_always_gave(
    spot_store: Path, tmp_path: Path
) -> None:
    """On the machine that recorded them they are equal to the last bit; others may round."""
    run_both(spot_store, tmp_path, schedule=SIX_STEPS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name, recorded in RECORDED.items():
        assert [line[name] for line in lines] == pytest.approx(recorded, rel=1e-5), name
