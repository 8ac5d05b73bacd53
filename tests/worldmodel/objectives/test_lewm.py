import pytest
import torch
from torch import Tensor

from worldmodel.objectives.interface import Batch
from worldmodel.objectives.projector import pooled_tokens


def made(small):
    encoder, objective = small.make("lewm")
    batch = small.batch_for(objective, 6)
    objective.set_scales(list(batch.proprio))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *objective.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder, objective, batch


def test_the_gradient_goes_through_what_is_predicted_and_through_what_predicts(small) -> None:
    encoder, objective, batch = made(small)
    objective.sigreg_weight = 0.0
    leaf = objective.latents(encoder, batch).detach().requires_grad_()
    objective.latents = lambda encoder, batch: leaf
    next(objective.losses(encoder, batch)).total.backward()
    assert leaf.grad is not None
    moved = leaf.grad.abs().amax(dim=(0, 2, 3))
    assert (moved > 1e-6).all()  # the first frame is only input, the last only target


def test_a_prediction_sees_its_action_and_nothing_of_the_future(small) -> None:
    encoder, objective, batch = made(small)
    objective.predicted_projector = torch.nn.Identity()  # its batch norm mixes all rows
    latents = torch.randn(6, 3, 1, 16, generator=torch.Generator().manual_seed(0))

    def predicted(latents: Tensor, proprio: Tensor) -> Tensor:
        with torch.no_grad():
            return objective.predict(latents, proprio)

    before = predicted(latents, batch.proprio)
    later, moved = latents.clone(), batch.proprio.clone()
    later[:, 1:] += 1
    moved[:, 2, 0] += 0.1  # another last action
    assert torch.equal(predicted(later, moved)[:, 0], before[:, 0])
    assert not torch.allclose(predicted(latents, moved)[:, 1], before[:, 1], atol=1e-4)


def test_actions_are_in_units_of_their_spread(small) -> None:
    _, objective, batch = made(small)
    std = objective.predictor.action_std
    assert 0.03 < float(std[0]) < 0.2 and 0.03 < float(std[1]) < 0.2
    torch.testing.assert_close(std[2:], torch.full((5,), 0.01))  # axes that never move


def test_directions_are_drawn_anew_each_step(small) -> None:
    encoder, objective, batch = made(small)
    other = Batch(batch.frames, batch.proprio, {"seed": batch.chosen["seed"] + 1})
    with torch.no_grad():
        one, two = (next(objective.losses(encoder, b)).parts for b in (batch, other))
    assert float(one["prediction"]) == float(two["prediction"])
    assert float(one["sigreg"]) != float(two["sigreg"])


@pytest.mark.parametrize("side", [1, 2, 8])
def test_tokens_are_averaged_over_cells_in_their_places(small, side: int) -> None:
    encoder, _ = small.make("lewm")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cells = pooled_tokens(encoder, images, side)
        tokens = encoder(images[:, :, None].expand(-1, -1, 2, -1, -1)).view(2, 8, 8, 24)
    width = 8 // side
    for row in range(side):
        for column in range(side):
            part = tokens[:, row * width :, column * width :][:, :width, :width]
            torch.testing.assert_close(cells[:, row * side + column], part.mean(dim=(1, 2)))
    with pytest.raises(ValueError, match="8 x 8 tokens cannot be averaged over 3 x 3"):
        pooled_tokens(encoder, images, 3)
