import json
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from worldmodel import checkpoint, training_state
from worldmodel.data import EpisodeStore, split_episodes
from worldmodel.data.source import open_source
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.encode import latent_job
from worldmodel.encoder import VideoEncoder
from worldmodel.pose import action_between
from worldmodel.prediction_task import PredictorLosses
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.state_errors import state_error
from worldmodel.train import TrainResult, train
from worldmodel.training import Precision, Schedule

SIX_STEPS = Schedule(name="cosine", peak=1e-2, steps=6, warmup_steps=2)


def save_an_encoder(path: Path) -> Path:
    """Writes an encoder with its first, random weights: even those see where the spot is."""
    if path.exists():  # several processes use one
        return path
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = VideoEncoder(patch_size=8, embed_dim=24, depth=1, num_heads=2)
    checkpoint.save_encoder(encoder, path, image_size=32, provenance={"steps": 0})
    return path


def run_train(
    data: Path,
    run: Path,
    *,
    schedule: Schedule,
    strides: tuple[int, ...] = (1,),
    validation_fraction: float = 0.2,
    validate_every: int = 2,
    measure_every: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    state_weight: float = 1.0,
    precision: Precision = "float32",
    accumulate: int = 1,
    activation_checkpointing: bool = False,
    fsdp: bool = False,
    keep_last: int = 2,
    legacy_rollout: bool = False,
    compare_with: str | None = None,
    finetune: str | None = None,
    lora_rank: int | None = None,
    embodiment: str = END_EFFECTOR,
) -> TrainResult:
    run.mkdir(exist_ok=True)
    encoder, image_size = checkpoint.load_encoder(save_an_encoder(run.parent / "encoder"))
    job = latent_job(
        encoder=encoder,
        image_size=image_size,
        source=open_source(data),
        cache=run.parent / "cache",
        camera="exterior",
        merge=2,
        device="cpu",
    )
    latents = job.build()
    assert latents is not None
    return train(
        build_predictor=partial(
            ActionConditionedPredictor, embed_dim=48, depth=2, num_heads=2, rope="interleaved"
        ),
        job=job,
        latents=latents,
        encoder_provenance={"steps": 0},
        run=run,
        window=3,
        strides=list(strides),
        rollout_steps=2,
        schedule=schedule,
        batch_size=16,
        weight_decay=0.01,
        validation_fraction=validation_fraction,
        seed=0,
        device="cpu",
        log_every=1,
        validate_every=validate_every,
        measure_every=measure_every,
        measured_windows=32,
        measured_searches=4,
        save_every=3,
        dtype=dtype,
        state_weight=state_weight,
        precision=precision,
        accumulate=accumulate,
        activation_checkpointing=activation_checkpointing,
        fsdp=fsdp,
        keep_last=keep_last,
        legacy_rollout=legacy_rollout,
        compare_with=compare_with,
        finetune=finetune,
        lora_rank=lora_rank,
        embodiment=embodiment,
    )


@pytest.fixture(scope="module")
def finished(spot_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("train") / "run"
    run_train(spot_store, run, schedule=SIX_STEPS)
    return run


def test_a_run_leaves_a_world_model_curves_and_metrics(finished: Path) -> None:
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4, 6]
    provenance = checkpoint.read_config(finished / "model", kind="jepa")["provenance"]
    assert provenance["validation_loss"] == lines[-1]["validation_loss"]
    assert provenance["encoder"] == {"steps": 0}
    assert provenance["state_weight"] == 1
    assert provenance["state_error"]["x_cm"] == lines[-1]["state_x_cm"] > 0
    assert provenance["state_error"]["gripper_accuracy"] == lines[-1]["state_gripper_accuracy"] == 1
    assert "loss_state" in lines[0] and "state_x_cm" not in lines[0]


def test_the_world_model_carries_the_scales_of_its_training_data(
    finished: Path, spot_store: Path
) -> None:
    world, store = checkpoint.load(finished / "model"), EpisodeStore(spot_store)
    train_ids, _ = split_episodes(store.ids(), 0.2, seed=0)
    frames = torch.from_numpy(np.concatenate([store.read_frames(i, "exterior") for i in train_ids]))
    with torch.inference_mode():
        latents = world.encode(frames[:, None])[:, 0]
    moving = world.latent_std > 0.03  # the floor for what never changes is 0.02
    assert float(moving.float().mean()) > 0.8
    torch.testing.assert_close(
        latents.mean(0), torch.zeros_like(latents[0]), atol=0.02, rtol=0
    )  # the cache holds float16
    std = latents.std(0, correction=0)[moving]
    torch.testing.assert_close(std, torch.ones_like(std), atol=0.02, rtol=0)
    assert world.control_hz == 4.0 and world.standardise and world.merge == 2
    assert world.action_limit is not None
    # x and y change by up to 0.15 a step, nothing else changes.
    np.testing.assert_allclose(world.action_limit, [0.15, 0.15, 0, 0, 0, 0, 0], atol=0.01)
    np.testing.assert_allclose(
        world.predictor.action_std, [0.08, 0.08, *[0.01] * 5], atol=0.01
    )  # the last five are the floor


def test_a_run_killed_and_resumed_has_the_same_curve_and_the_same_weights(
    finished: Path, spot_store: Path, killed_at_step_six, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed_at_step_six("test_train", "run_train", spot_store, run)
    # Five steps are in the log, three in the saved state.
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 5
    assert not (run / "model").exists()

    run_train(spot_store, run, schedule=SIX_STEPS)
    for file in ("metrics.jsonl", "model/weights.safetensors", "model/config.json"):
        assert (run / file).read_bytes() == (finished / file).read_bytes(), file


def test_a_finished_run_started_again_changes_nothing(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    before = {f: f.read_bytes() for f in finished.rglob("*") if f.is_file()}
    run_train(spot_store, finished, schedule=SIX_STEPS)
    assert {f: f.read_bytes() for f in finished.rglob("*") if f.is_file()} == before


def test_training_learns_what_actions_do(spot_store: Path, tmp_path: Path) -> None:
    schedule = Schedule(name="cosine", peak=1e-2, steps=150, warmup_steps=10)
    result = run_train(spot_store, tmp_path / "run", schedule=schedule, validate_every=150)
    assert result.validation_loss < 0.75 * result.copy_loss
    assert result.validation_loss < 0.75 * result.shuffled_loss
    error = result.state_error
    assert error is not None
    # x and y lie within 60 cm: guessing the middle errs by about 13 cm.
    assert error.x_cm < 3 and error.y_cm < 3
    assert error.z_cm < 1 and error.rotation_rad < 0.05 and error.gripper < 0.02

    world, store = checkpoint.load(tmp_path / "run" / "model"), EpisodeStore(spot_store)
    _, held_out = split_episodes(store.ids(), 0.2, seed=0)
    episode = store.read(held_out[0])
    frames = torch.from_numpy(episode.frames["exterior"][:])[:, None]
    proprio = torch.from_numpy(episode.proprio)
    with torch.inference_mode():
        z = world.encode(frames)[:, 0]
        proposed = world.propose(z[:-1], proprio[:-1], z[1:])
    off = (proposed - action_between(proprio[:-1], proprio[1:])).abs().mean(0)
    assert float(off[:2].max()) < 0.04  # [m]


def test_the_predictor_learns_the_same_with_and_without_a_state_head(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    result = run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, state_weight=0)
    alone, beside = (checkpoint.load(run / "model") for run in (tmp_path / "run", finished))
    assert result.state_error is None
    assert alone.state_head is None and beside.state_head is not None
    for name, value in alone.predictor.state_dict().items():
        assert torch.equal(beside.predictor.state_dict()[name], value), name


def test_a_head_without_weight_is_left_out(finished: Path) -> None:
    world = checkpoint.load(finished / "model")
    batch = {
        "latents": torch.randn(2, 3, 4, 96),
        "proprio": torch.rand(2, 3, 7),
        "actions": torch.zeros(2, 2, 7),
    }
    seen = [
        PredictorLosses(world, rollout_steps=1, distance="l1", state_weight=weight).eval()(batch)
        for weight in (0.0, 2.0)
    ]
    assert "states" not in seen[0] and "loss_state" not in seen[0]
    torch.testing.assert_close(seen[1]["loss"], seen[0]["loss"] + 2 * seen[1]["loss_state"])


def test_the_state_head_carries_the_scales_of_the_poses_it_was_trained_on(finished: Path) -> None:
    head = checkpoint.load(finished / "model").state_head
    assert head is not None
    # x and y are spread over 0.2 to 0.8, the rest is the same everywhere and has the least scale.
    np.testing.assert_allclose(head.pose_mean[[0, 1, 2, 9]], [0.5, 0.5, 0.3, 0.5], atol=0.03)
    np.testing.assert_allclose(head.pose_std, [0.16, 0.16, *[0.05] * 8], atol=0.03)


def test_errors_of_states_are_in_their_units() -> None:
    true = torch.tensor([[0.5, 0.0, 0.3, np.pi, 0.0, 0.2, 0.1]]).repeat(4, 1)
    read = true.clone()
    read[:, :3] += torch.tensor([0.01, -0.02, 0.0])
    read[:, 3] = -np.pi  # the same rotation
    read[:, 5] += 0.3
    read[:2, 6] += 0.4  # read as closed
    error = state_error(read, true)
    assert (error.x_cm, error.y_cm, error.z_cm) == pytest.approx((1, 2, 0), abs=1e-4)
    assert error.rotation_rad == pytest.approx(0.3, abs=1e-5)
    assert error.gripper == pytest.approx(0.2) and error.gripper_accuracy == 0.5


def test_training_in_bfloat16_keeps_float32_weights_and_almost_the_loss(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, precision="bfloat16")
    state = training_state.last(tmp_path / "run")
    assert state is not None
    weights = FileSystemReader(state.folder).read_metadata().state_dict_metadata
    kept = {
        value.properties.dtype
        for name, value in weights.items()
        if name.startswith("model.predictor") and isinstance(value, TensorStorageMetadata)
    }
    assert kept == {torch.float32}
    lower, exact = (
        json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        for run in (tmp_path / "run", finished)
    )
    assert lower["validation_loss"] == pytest.approx(exact["validation_loss"], rel=0.02)
    assert lower["validation_loss"] != exact["validation_loss"]


def test_longer_strides_give_longer_actions(spot_store: Path, tmp_path: Path) -> None:
    run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, strides=(1, 4))
    world = checkpoint.load(tmp_path / "run" / "model")
    assert world.action_limit is not None and world.action_limit[0] > 0.2


def test_half_precision_is_stored_on_request(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, dtype="float16")
    full, half = (run / "model" / "weights.safetensors" for run in (finished, tmp_path / "run"))
    assert half.stat().st_size < 0.6 * full.stat().st_size


def test_no_episode_to_validate_on_is_refused(spot_store: Path, tmp_path: Path) -> None:
    message = "validation_fraction=0.0 leaves no episode of 30 to validate on; raise it"
    with pytest.raises(ValueError, match=message):
        run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, validation_fraction=0.0)


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_batch_in_parts_and_blocks_computed_twice_are_the_same_run(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    run_train(
        spot_store,
        tmp_path / "run",
        schedule=SIX_STEPS,
        accumulate=4,
        activation_checkpointing=True,
    )
    for line, expected in zip(metrics_of(tmp_path / "run"), metrics_of(finished), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_last_sentence_compares_with_the_best_checkpoint_before(
    spot_store: Path, tmp_path: Path
) -> None:
    learned = run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS)
    before = min(line["validation_loss"] for line in metrics_of(tmp_path / "run")[1:5:2])
    word = "better than" if learned.validation_loss < before else "worse than"
    assert learned.verdict.startswith(f"{word} the best checkpoint before (step ")
    assert f"validation_loss {learned.validation_loss:.4f}, it has {before:.4f}" in learned.verdict

    after = run_train(
        spot_store,
        tmp_path / "longer",
        schedule=Schedule(name="cosine", peak=1e-2, steps=30, warmup_steps=2),
        validate_every=30,
        compare_with=str(tmp_path / "run/model"),
    )
    assert after.verdict.startswith(f"better than {tmp_path / 'run/model'}: identity_ratio 0.")


def test_the_best_weights_are_a_model_of_their_own(spot_store: Path, tmp_path: Path) -> None:
    # Four good steps, and two that throw the weights far away.
    worse = Schedule(name="wsd", peak=1e-2, final=30.0, steps=6, warmup_steps=0, decay_steps=2)
    result = run_train(spot_store, tmp_path / "run", schedule=worse)
    lines = metrics_of(tmp_path / "run")
    best = min((line for line in lines if "validation_loss" in line), key=_validation_loss)
    assert best["step"] < 6 and result.best_checkpoint == tmp_path / "run" / "best"
    stored = checkpoint.read_config(result.best_checkpoint)["provenance"]
    assert stored["validation_loss"] == best["validation_loss"] < result.validation_loss
    assert "worse than the best checkpoint before" in result.verdict
    weights = [
        checkpoint.load(folder).predictor.predictor_proj.weight
        for folder in (result.checkpoint, result.best_checkpoint)
    ]
    assert not torch.equal(*weights)


def _validation_loss(line: dict[str, float]) -> float:
    return line["validation_loss"]


def test_the_rollout_loss_of_the_first_release_is_another_run(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, legacy_rollout=True)
    (first, *_), (expected, *_) = metrics_of(tmp_path / "run"), metrics_of(finished)
    assert first["loss_teacher_forcing"] == expected["loss_teacher_forcing"]
    assert first["loss_rollout"] != expected["loss_rollout"]


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_a_run_goes_on_from_what_a_model_knows(
    finished: Path, spot_store: Path, tmp_path: Path, lora_rank: int | None
) -> None:
    still = Schedule(name="wsd", peak=1e-12, steps=1, warmup_steps=0)
    run_train(
        spot_store,
        tmp_path / "run",
        schedule=still,
        finetune=str(finished / "model"),
        lora_rank=lora_rank,
    )
    (line,), before = metrics_of(tmp_path / "run"), metrics_of(finished)[-1]
    for name in ("validation_loss", "validation_rollout_loss", "state_x_cm"):
        assert line[name] == pytest.approx(before[name], rel=1e-4), name


def test_low_rank_changes_are_merged_into_a_model_like_any_other(
    finished: Path, spot_store: Path, tmp_path: Path
) -> None:
    quick = Schedule(name="wsd", peak=1e-2, steps=2, warmup_steps=0)
    start = str(finished / "model")
    run_train(spot_store, tmp_path / "run", schedule=quick, finetune=start, lora_rank=3)
    provenance = checkpoint.read_config(tmp_path / "run" / "model")["provenance"]
    assert (provenance["finetuned_from"], provenance["lora_rank"]) == (start, 3)
    before = checkpoint.load(start).state_dict()
    after = checkpoint.load(tmp_path / "run" / "model").state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        change = weight - before[name]
        if "predictor_blocks" in name and name.endswith("weight") and weight.ndim == 2:
            assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-3) <= 3, name
        elif name.startswith(("predictor.action_encoder", "predictor.state_encoder")):
            assert change.abs().max() > 0, name
        elif not name.startswith("state_head"):
            assert not change.any(), name


def test_a_rank_without_a_model_is_refused(spot_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora_rank changes a trained predictor; name one with"):
        run_train(spot_store, tmp_path / "run", schedule=SIX_STEPS, lora_rank=4)
