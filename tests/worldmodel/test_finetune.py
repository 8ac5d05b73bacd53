from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel import checkpoint, cli
from worldmodel.data.source import open_source
from worldmodel.encode import LatentJob, latent_job
from worldmodel.encoder import VideoEncoder
from worldmodel.finetune import add_low_rank, check_fits, continued, merge_low_rank
from worldmodel.jepa import JEPA
from worldmodel.joint_head import JointHead
from worldmodel.state_head import StateHead


@pytest.fixture
def windows(make_motion) -> Tensor:
    """Poses (64, 4, 7) of consecutive rows, with moves of the size that make_world knows."""
    return make_motion(64, 4)[0]


def job_of(world: JEPA, store: Path, folder: Path) -> LatentJob:
    return latent_job(
        encoder=world.encoder,
        image_size=world.image_size,
        source=open_source(store),
        cache=folder,
        camera="exterior",
        merge=world.merge,
        device="cpu",
    )


@pytest.mark.parametrize("lora_rank", [None, 3])
def test_a_model_that_goes_on_computes_the_same_at_first(
    make_world, make_motion, windows: Tensor, lora_rank: int | None
) -> None:
    start = make_world(merge=2, standardise=True)
    world = continued(
        start, hz=10.0, proprio=windows, state_head="dropped", lora_rank=lora_rank, seed=0
    )
    proprio, actions = make_motion(2, 3)
    latents = torch.randn(2, 3, 4, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = start.predict(latents, proprio, actions)
        torch.testing.assert_close(world.predict(latents, proprio, actions), expected)
        assert torch.equal(world.latent_mean, start.latent_mean)
    assert world.control_hz == 10.0 and start.control_hz == 4.0
    assert world.predictor is not start.predictor


@pytest.mark.parametrize("state_head", ["kept", "trained", "dropped"])
def test_heads_that_read_states_come_along(make_world, windows: Tensor, state_head) -> None:
    start = make_world(merge=2, standardise=True)
    start.state_head = StateHead(latent_dim=96, num_tokens=4)
    start.joint_heads["arm"] = JointHead(size=4, latent_dim=96, num_tokens=4)
    world = continued(start, hz=4.0, proprio=windows, state_head=state_head, lora_rank=None, seed=0)
    latents = torch.randn(2, 4, 96)
    arm = world.joint_heads["arm"]
    assert torch.equal(arm(latents), start.joint_heads["arm"](latents))
    assert arm is not start.joint_heads["arm"]
    if state_head == "dropped":
        assert world.state_head is None
    else:
        assert world.state_head is not None and world.state_head is not start.state_head
        assert torch.equal(world.state_head(latents), start.state_head(latents))
        trained = {weight.requires_grad for weight in world.state_head.parameters()}
        assert trained == {state_head == "trained"}


def test_only_the_thin_matrices_and_the_readers_of_poses_are_trained(
    make_world, windows: Tensor
) -> None:
    world = continued(
        make_world(standardise=True),
        hz=4,
        proprio=windows,
        state_head="dropped",
        lora_rank=3,
        seed=0,
    )
    trained = {name for name, p in world.predictor.named_parameters() if p.requires_grad}
    thin = {name for name in trained if name.endswith(("weight.0.up", "weight.0.down"))}
    assert len(thin) == 2 * 2 * 4  # two matrices for each of qkv, proj, fc1 and fc2 of two blocks
    whole = {name.partition(".")[0] for name in trained - thin}
    assert whole == {"action_encoder", "state_encoder", "extrinsics_encoder"}


def test_merged_changes_compute_the_same_and_leave_no_trace(make_predictor, make_motion) -> None:
    predictor, plain = make_predictor(), make_predictor()
    add_low_rank(predictor, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            if name.endswith(".up"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    proprio, actions = make_motion(2, 3)
    latents = torch.randn(2, 3, 16, 24, generator=generator)
    with torch.inference_mode():
        changed = predictor(latents, proprio, actions)
        assert (changed - plain(latents, proprio, actions)).abs().max() > 0.05
    merge_low_rank(predictor)
    assert predictor.state_dict().keys() == plain.state_dict().keys()
    with torch.inference_mode():
        torch.testing.assert_close(
            predictor(latents, proprio, actions), changed, rtol=1e-4, atol=1e-5
        )
    merge_low_rank(predictor)  # nothing is left to merge


@pytest.mark.parametrize("rank", [0, 32])
def test_a_rank_beyond_the_matrices_is_refused(make_predictor, rank: int) -> None:
    with pytest.raises(ValueError, match=f"lora_rank must be between 1 and 31 .*, got {rank}"):
        add_low_rank(make_predictor(), rank)


def test_recordings_that_fit_are_accepted(
    make_world, windows: Tensor, spot_store: Path, tmp_path: Path
) -> None:
    world = make_world(merge=2, standardise=True)
    job = job_of(world, spot_store, tmp_path)
    check_fits(world, "m", job=job, num_views=1, hz=4.1, rate_was_chosen=False, proprio=windows)
    check_fits(world, "m", job=job, num_views=1, hz=10.0, rate_was_chosen=True, proprio=windows)


def test_another_clock_that_nobody_asked_for_is_refused(
    make_world, windows: Tensor, spot_store: Path, tmp_path: Path
) -> None:
    world = make_world(merge=2, standardise=True)
    job = job_of(world, spot_store, tmp_path)
    message = "recordings are 15 Hz, m makes 4 steps a second; set model_hz=4 .* or model_hz=15 "
    with pytest.raises(ValueError, match=message):
        check_fits(
            world, "m", job=job, num_views=1, hz=15.0, rate_was_chosen=False, proprio=windows
        )


@pytest.mark.parametrize(
    "columns, factor, axis", [(slice(0, 3), 1000, "x"), (slice(3, 6), 180 / np.pi, "roll")]
)
def test_other_units_are_refused(
    make_world,
    windows: Tensor,
    spot_store: Path,
    tmp_path: Path,
    columns: slice,
    factor: float,
    axis: str,
) -> None:
    """Millimetres, and a model that was taught degrees."""
    world = make_world(merge=2, standardise=True)
    job = job_of(world, spot_store, tmp_path)
    other = windows.clone()
    if axis == "x":
        other[..., columns] *= factor
    else:
        assert world.action_limit is not None
        limit = torch.tensor(world.action_limit)
        limit[columns] *= factor
        world.action_limit = tuple(limit.tolist())
    with pytest.raises(ValueError, match=f"moves {axis} by up to .*set it in their mapping"):
        check_fits(world, "m", job=job, num_views=1, hz=4.0, rate_was_chosen=False, proprio=other)


def test_another_view_of_the_frames_is_refused(
    make_world, windows: Tensor, spot_store: Path, tmp_path: Path
) -> None:
    job = job_of(make_world(merge=2, standardise=True), spot_store, tmp_path)
    other = make_world(merge=1, standardise=True, seed=5)
    with pytest.raises(ValueError, match="encoder is .*, the model's .*; merge is 2, the model's"):
        check_fits(other, "m", job=job, num_views=1, hz=4.0, rate_was_chosen=False, proprio=windows)


def test_a_predictor_of_the_stem_alone_is_trained_and_read_again(
    spot_store: Path, tmp_path: Path, capsys
) -> None:
    words = [
        "train",
        "state_weight=0",
        f"data={spot_store}",
        "encoder_checkpoint=default",
        "encoder_blocks=0",
        "merge=1",
        "crop=square",
        f"cache={tmp_path / 'cache'}",
        "predictor.embed_dim=24",
        "predictor.depth=1",
        "predictor.num_heads=2",
        "window=3",
        "strides=[1]",
        "batch_size=4",
        "schedule={steps: 2, warmup_steps: 0}",
        "measure_every=null",
        f"run={tmp_path / 'run'}",
    ]
    assert cli.main(words) == 0
    assert "/model planner.search.num_proposals=0\n" in capsys.readouterr().out  # it has no head
    world = checkpoint.load(tmp_path / "run" / "model")
    assert isinstance(world.encoder, VideoEncoder) and world.encoder.depth == 0
    assert world.predictor.grid_size == (8, 8)
    stem = checkpoint.load_default().encoder
    assert isinstance(stem, VideoEncoder)
    assert checkpoint.fingerprint(world.encoder) == checkpoint.fingerprint(stem.first_blocks(0))
