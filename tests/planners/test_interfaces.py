import pytest
import torch

from worldmodel.planners import CEM, ActionBounds, Cost, LatentEnergy, Observation, Planner
from worldmodel.planners import WorldModel as WorldModelProtocol


def make_observation(**changes):
    parts = {
        "latents": torch.zeros(2, 3, 4, 8),
        "proprio": torch.zeros(2, 3, 7),
        "past_actions": torch.zeros(2, 2, 7),
    }
    return Observation(**(parts | changes))


def test_the_toy_world_the_cem_and_the_energy_satisfy_their_protocols(toy):
    assert isinstance(toy.mixed, WorldModelProtocol)
    assert isinstance(CEM(cost=LatentEnergy()), Planner)
    assert isinstance(LatentEnergy(), Cost)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_observation_refuses_a_context_of_different_lengths():
    with pytest.raises(
        ValueError, match=r"3 context frames.*past_actions with \(2, 2\).*\(2, 3, 7"
    ):
        make_observation(past_actions=torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match=r"latents \(B, C, N, D\).*latents \(2, 4, 8\)"):
        make_observation(latents=torch.zeros(2, 4, 8))


@pytest.mark.parametrize("value, kind", [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_an_observation_refuses_to_act_on_values_that_are_not_finite(value, kind):
    proprio = torch.zeros(2, 3, 7)
    proprio[1, 2, 4] = value
    message = rf"observation proprio contains {kind} at \[1, 2, 4\]; the planner refuses to act"
    with pytest.raises(ValueError, match=message):
        make_observation(proprio=proprio)
    with pytest.raises(ValueError, match=f"observation latents contains {kind}"):
        make_observation(latents=torch.full((2, 3, 4, 8), value))


@pytest.mark.usefixtures("without_shape_checks")
def test_bounds_refuse_low_above_high_and_infinite_and_unequal_lengths():
    with pytest.raises(ValueError, match=r"low > high on axes \[1\]"):
        ActionBounds(low=torch.tensor([0.0, 2.0]), high=torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match="must be finite"):
        ActionBounds.symmetric([1.0, float("inf")])
    with pytest.raises(ValueError, match=r"low \(2,\) and high \(3,\)"):
        ActionBounds(low=torch.zeros(2), high=torch.zeros(3))


def test_symmetric_bounds_go_both_ways():
    bounds = ActionBounds.symmetric([0.5, 0.0])
    assert bounds.low.tolist() == [-0.5, 0.0] and bounds.high.tolist() == [0.5, 0.0]
