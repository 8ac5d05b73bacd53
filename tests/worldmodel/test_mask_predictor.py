import pytest
import torch

from worldmodel.mask_predictor import MaskPredictor

GRID = (2, 3, 4)


@pytest.fixture
def predictor() -> MaskPredictor:
    torch.manual_seed(0)
    return MaskPredictor(context_dim=10, target_dim=6, embed_dim=24, depth=2, num_heads=2)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    order = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    kept, hidden = order[:, :9].sort(dim=1).values, order[:, 9:20].sort(dim=1).values
    context = torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(1))
    return context, kept, hidden


@torch.inference_mode()
def test_hidden_and_kept_tokens_are_predicted_in_their_order(predictor) -> None:
    context, kept, hidden = inputs()
    at_hidden, at_kept = predictor(context, kept, hidden, GRID)
    assert at_hidden.shape == (2, 11, 6)
    assert at_kept.shape == (2, 9, 6)
    backwards = predictor(context.flip(1), kept.flip(1), hidden.flip(1), GRID)
    torch.testing.assert_close(backwards[0], at_hidden.flip(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(backwards[1], at_kept.flip(1), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_hidden_tokens_differ_by_their_place_alone(predictor) -> None:
    context, kept, hidden = inputs()
    at_hidden, _ = predictor(context, kept, hidden, GRID)
    assert float((at_hidden[:, 1:] - at_hidden[:, :-1]).abs().max(-1).values.min()) > 0
    alone, _ = predictor(context, kept, hidden[:, :1].expand(-1, 5), GRID)
    torch.testing.assert_close(alone, alone[:, :1].expand(-1, 5, -1))


@torch.inference_mode()
def test_the_visible_tokens_have_an_output_layer_of_their_own(predictor) -> None:
    context, kept, hidden = inputs()
    before = predictor(context, kept, hidden, GRID)
    predictor.predictor_proj_context.bias.add_(1)
    after = predictor(context, kept, hidden, GRID)
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1] + 1)
