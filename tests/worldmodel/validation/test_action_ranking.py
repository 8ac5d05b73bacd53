"""Where the true action comes in: first of a perfect model, anywhere of a random one."""

import numpy as np
import pytest
import torch

from worldmodel.validation.action_ranking import action_ranking


def ranking_of(world, held_out, **options):
    return action_ranking(
        world, held_out, **({"candidates": 8, "seed": 0, "progress": False} | options)
    )


def test_a_perfect_model_finds_the_true_action_every_time(toy):
    found = ranking_of(toy.World(), toy.held_out())
    assert (found.ranks == 1).all()
    assert found.top1 == found.mean_rank == 1
    assert found.to_json(seed=0)["top1_95"] == [1, 1]


def test_a_model_that_does_not_listen_is_not_rewarded_for_ties(toy):
    found = ranking_of(toy.World(deaf=True), toy.held_out())
    assert found.top1 == 0
    assert found.mean_rank == 8


def test_a_model_of_chance_is_first_in_one_of_n(toy):
    held_out = toy.held_out(windows=400, episodes=40)
    noise = torch.Generator().manual_seed(0)

    def anything(actions):
        return actions * 0 + 0.1 * torch.randn(actions.shape, generator=noise)

    numbers = ranking_of(toy.World(anything), held_out).to_json(seed=0)
    assert numbers["chance_top1"] == 1 / 8 and numbers["chance_mean_rank"] == 4.5
    assert numbers["top1"] == pytest.approx(1 / 8, abs=0.06)
    assert numbers["mean_rank"] == pytest.approx(4.5, abs=0.4)
    low, high = numbers["top1_95"]
    assert low < numbers["top1"] < high


def test_a_model_that_takes_every_action_for_its_opposite_finds_the_true_one_late(toy):
    found = ranking_of(toy.World(lambda a: -a), toy.held_out(windows=60, episodes=12))
    assert found.top1 < 1 / 8
    assert found.mean_rank > 5


def test_shuffled_action_columns_make_it_worse(toy):
    held_out = toy.held_out(windows=60, episodes=12)
    broken = ranking_of(toy.World(lambda a: a[..., [1, 2, 0, 3, 4, 5, 6]]), held_out)
    assert broken.top1 < 0.95 and broken.mean_rank > 1.1


def test_rivals_are_of_other_recordings_and_of_the_seed(toy):
    held_out = toy.held_out(windows=24, episodes=3)
    seen = []

    def watch(actions):
        seen.append(actions[:, :, 0].clone())
        return actions

    ranking_of(toy.World(watch), held_out)
    compared = torch.cat(seen).double().numpy()  # (W, N, 7)
    true = held_out.actions[:, 0]
    np.testing.assert_allclose(compared[:, 0], true, atol=1e-6)
    for window, rivals in enumerate(compared[:, 1:]):
        sources = [int(np.abs(true - rival).sum(axis=1).argmin()) for rival in rivals]
        assert len(set(sources)) == 7
        assert (held_out.episodes[sources] != held_out.episodes[window]).all()
    broken = toy.World(lambda a: a[..., [1, 2, 0, 3, 4, 5, 6]])
    ranks = [ranking_of(broken, held_out, seed=seed).ranks.tolist() for seed in (0, 0, 1)]
    assert ranks[0] == ranks[1] != ranks[2]


def test_too_few_recordings_are_refused(toy):
    with pytest.raises(ValueError, match="7 actions of other recordings .* but there are 0; give"):
        ranking_of(toy.World(), toy.held_out(episodes=1))
    with pytest.raises(ValueError, match="candidates must be at least 2, got 1"):
        ranking_of(toy.World(), toy.held_out(), candidates=1)
