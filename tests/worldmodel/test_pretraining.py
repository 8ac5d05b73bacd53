from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.clips import Clips, View, read_clips
from worldmodel.data.source import open_source
from worldmodel.encoder import VideoEncoder
from worldmodel.objectives.lewm import LeWorldModel
from worldmodel.objectives.state_reading import StateReading
from worldmodel.objectives.vjepa import VJepa
from worldmodel.pretraining import Pretraining, Term
from worldmodel.task import rows_of
from worldmodel.training import step_generators

MASKED = partial(
    VJepa,
    clip_frames=1,
    predictor_dim=24,
    predictor_depth=1,
    predictor_heads=2,
    ema=[0.9, 0.99],
    crop_scale=[0.5, 1.0],
)
DYNAMIC = partial(
    LeWorldModel,
    frames=3,
    strides=[1, 2],
    cells=1,
    latent_dim=16,
    projector_dim=32,
    predictor_depth=1,
    predictor_heads=2,
    predictor_mlp_ratio=2.0,
    sigreg_weight=0.1,
    num_directions=64,
    num_knots=17,
)


@pytest.fixture(scope="module")
def clips(spot_store: Path) -> Clips:
    return read_clips(View(open_source(spot_store), "exterior"), [3, 5, 9])


def pretraining(clips: Clips, make=MASKED, *, weight: float = 0.5, state: float = 2.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = VideoEncoder(patch_size=4, embed_dim=24, depth=2, num_heads=2)
        terms = {
            "objective": Term(make(encoder=encoder, grid_size=(8, 8)), weight, 6),
            "state": Term(StateReading(encoder=encoder, grid_size=(8, 8), merge=2), state, 4),
        }
        return Pretraining(encoder=encoder, terms=terms, clips=clips)


@pytest.mark.parametrize("make", [MASKED, DYNAMIC])
def test_what_is_minimised_is_the_weighted_sum_and_parts_are_unweighted(clips, make) -> None:
    model = pretraining(clips, make)
    batch = model.load(model.draw(*step_generators(0, 1)))
    assert batch["objective/frames"].shape[0] == 6 and batch["state/frames"].shape[0] == 4
    with torch.no_grad():
        values = {name: float(value) for name, value in model(batch).items()}
        totals = [float(loss.total) for loss in model.losses(batch)]
    if make is MASKED:
        objective = values["loss_hidden"]
    else:
        objective = values["loss_prediction"] + 0.1 * values["loss_sigreg"]
    state = values["loss_position"] + 0.5 * values["loss_rotation"] + values["loss_gripper"]
    assert values["loss"] == pytest.approx(0.5 * objective + 2.0 * state / 2.5, rel=1e-5)
    assert values["loss"] == pytest.approx(sum(totals), rel=1e-6)


@pytest.mark.parametrize("make", [MASKED, DYNAMIC])
def test_gradients_are_those_of_the_losses_one_after_another(clips, make) -> None:
    one, other = pretraining(clips, make), pretraining(clips, make)
    batch = one.load(one.draw(*step_generators(0, 1)))
    for loss in one.losses(batch):
        loss.total.backward()
    (other(batch)["loss"] / 4).backward()  # as it is divided when a batch is computed in parts
    expected = dict(one.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(4 * parameter.grad, expected[name].grad), name


def test_a_draw_can_be_shared_out(clips) -> None:
    model = pretraining(clips, DYNAMIC)
    drawn = model.draw(*step_generators(0, 1))
    whole = model.load(drawn)
    halves = [model.load(rows_of(drawn, part=part, parts=2)) for part in (0, 1)]
    for name, values in whole.items():
        if values.ndim == 0:
            assert all(torch.equal(half[name], values) for half in halves)
        else:
            assert torch.equal(torch.cat([half[name] for half in halves]), values)


def test_frames_and_proprio_are_of_the_windows_that_were_drawn(clips) -> None:
    model = pretraining(clips, DYNAMIC)
    drawn = model.draw(*step_generators(0, 1))
    batch = model.load(drawn)
    for name in ("objective", "state"):
        for i, (episode, rows) in enumerate(
            zip(drawn[f"{name}/episodes"], drawn[f"{name}/rows"], strict=True)
        ):
            assert (batch[f"{name}/frames"][i].numpy() == clips.frames[episode][rows]).all()
            assert (batch[f"{name}/proprio"][i].numpy() == clips.proprio[episode][rows]).all()
    episodes = {clips.ids[e] for name in ("objective", "state") for e in drawn[f"{name}/episodes"]}
    assert model.name_rows(drawn) == [f"episode {i}" for i in sorted(episodes)]


def test_a_term_without_weight_is_not_drawn_and_not_trained(clips) -> None:
    model = pretraining(clips, weight=0.0)
    drawn = model.draw(*step_generators(0, 1))
    assert all(name.startswith("state/") for name in drawn)
    loss = model(model.load(drawn))["loss"]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.requires_grad == (not name.startswith("objectives.objective")), name
    assert model.remedy == model.terms["state"].objective.remedy
    before = model.kept.norm.weight.clone()
    with torch.no_grad():
        model.encoder.norm.weight.add_(1)
    model.after_step(1, 10)  # what is kept follows all the same
    assert not torch.equal(model.kept.norm.weight, before)


def test_batches_depend_on_seed_and_step_alone(clips) -> None:
    one, same = (pretraining(clips).draw(*step_generators(3, 5)) for _ in range(2))
    other = pretraining(clips).draw(*step_generators(3, 6))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
