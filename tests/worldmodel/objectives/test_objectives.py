"""What holds for every objective: it learns, and it keeps to what the loop relies on."""

import inspect

import pytest
import torch

from worldmodel.objectives.ema import EmaObjective

MASKED = ["vjepa21", "vjepa", "ijepa"]
NAMES = [*MASKED, "lewm", "barlow_twins", "vicreg", "state_reading"]


def total(objective, encoder, batch) -> torch.Tensor:
    return sum((loss.total for loss in objective.losses(encoder, batch)), start=torch.zeros(()))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_one_batch_falls_when_it_is_trained_on(small, name: str) -> None:
    encoder, objective = small.make(name)
    batch = small.batch_for(objective, 12)
    objective.set_scales([batch.proprio[:, 0]] if name == "state_reading" else list(batch.proprio))
    trained = [p for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    curve = []
    for step in range(40):
        optimizer.zero_grad()
        loss = total(objective, encoder, batch)
        loss.backward()
        optimizer.step()
        objective.after_step(encoder, step + 1, 400)
        curve.append(float(loss.detach()))
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5]), curve


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_trained_gets_a_gradient_and_nothing_else_does(small, name: str) -> None:
    encoder, objective = small.make(name)
    batch = small.batch_for(objective, 6)
    for loss in objective.losses(encoder, batch):
        loss.total.backward()
    for module in (encoder, objective):
        for parameter_name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), parameter_name
    assert isinstance(objective, EmaObjective) == any(
        not p.requires_grad for p in objective.parameters()
    )


@pytest.mark.parametrize("name", NAMES)
def test_all_chance_is_in_the_draw(small, name: str) -> None:
    encoder, objective = small.make(name)
    first, again, other = (
        small.batch_for(objective, 6, seed=seed).chosen.values() for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    batch = small.batch_for(objective, 6, seed=1)
    with torch.no_grad():
        assert torch.equal(total(objective, encoder, batch), total(objective, encoder, batch))
    if name != "state_reading":
        assert any(
            a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other, strict=True)
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_has_a_row_for_each_window_or_no_rows_at_all(small, name: str) -> None:
    _, objective = small.make(name)
    drawn = objective.draw(6, torch.Generator().manual_seed(0))
    assert all(values.ndim == 0 or len(values) == 6 for values in drawn.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_add_up_over_what_is_yielded(small, name: str) -> None:
    encoder, objective = small.make(name)
    batch = small.batch_for(objective, 6)
    with torch.no_grad():
        losses = list(objective.losses(encoder, batch))
    assert len(losses) == (2 if name in ("vjepa21", "vjepa") else 1)
    weights = {
        "vjepa21": {"hidden": 1.0, "context": 0.5},
        "vjepa": {"hidden": 1.0},
        "ijepa": {"hidden": 1.0},
        "lewm": {"prediction": 1.0, "sigreg": 0.1},
        "barlow_twins": {"invariance": 1.0, "redundancy": 0.005},
        "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
        "state_reading": {"position": 0.4, "rotation": 0.2, "gripper": 0.4},
    }[name]
    for loss in losses:
        assert set(loss.parts) == set(weights)
        expected = sum(weights[part] * float(value) for part, value in loss.parts.items())
        assert float(loss.total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_keeps_its_arguments_and_says_what_to_change(small, name: str) -> None:
    encoder, objective = small.make(name)
    arguments = set(inspect.signature(type(objective)).parameters) - {"encoder", "grid_size"}
    assert all(hasattr(objective, argument) for argument in arguments)
    assert objective.needs.frames >= 1 and objective.remedy
    kept = objective.kept(encoder)
    assert (kept is encoder) == (name not in MASKED)


@pytest.mark.parametrize("name", MASKED)
def test_the_target_follows_the_encoder_faster_at_first(small, name: str) -> None:
    encoder, objective = small.make(name)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    moved = []
    for step in (1, 100):
        before = objective.target.norm.weight[0].item()
        objective.after_step(encoder, step, 100)
        moved.append((objective.target.norm.weight[0].item() - before) / (2.0 - before))
    assert moved == pytest.approx([1 - 0.9009, 1 - 0.99], abs=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_hidden_pixels_cannot_help_to_predict_themselves(small, name: str) -> None:
    """Only the target encoder sees them; with its features held, nothing else may change."""
    encoder, objective = small.make(name)
    batch = small.batch_for(objective, 4)
    seen = []
    objective.target.levels = lambda clip, levels: (
        seen.append(clip)
        or [  # type: ignore[method-assign]
            torch.zeros(len(clip), 64, 24) for _ in levels
        ]
    )
    hide = {"vjepa21": ["hidden_short"], "vjepa": ["hidden_short"], "ijepa": ["blocks"]}[name]
    places = torch.zeros(4, 64, dtype=torch.bool)
    if name == "vjepa":  # nothing is cut, so that tokens lie where pixels do
        objective.crop_scale = [1.0, 1.0]
    for key in hide:
        places.scatter_(1, batch.chosen[key].flatten(1), True)
    mask = places.view(4, 8, 8).repeat_interleave(4, 1).repeat_interleave(4, 2)
    painted = batch.frames.clone()
    painted[:, 0][mask] = 255
    with torch.no_grad():
        before = next(objective.losses(encoder, batch)).parts["hidden"]
        other = type(batch)(painted, batch.proprio, batch.chosen)
        after = next(objective.losses(encoder, other)).parts["hidden"]
    assert torch.equal(before, after)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("vjepa21", {"levels": [2]}, r"levels must name blocks 0\.\.1 of the encoder, got \[2\]"),
        ("vjepa21", {"ema": [0.9]}, "ema must be two momenta"),
        ("vjepa", {"clip_frames": 3}, "multiple of the encoder's tubelet_size=2, got 3"),
        ("ijepa", {"crop_scale": [0.5, 0.2]}, "crop_scale must be two areas"),
        ("lewm", {"frames": 1}, "frames must be 2 or more"),
        ("vicreg", {"contrast": 1.0}, "contrast within 0..1, got 0.4 and 1.0"),
        ("state_reading", {"merge": 3}, "8 x 8 tokens cannot be joined in squares of 3"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(small, name: str, wrong, message: str) -> None:
    encoder, objective = small.make(name)
    names = set(inspect.signature(type(objective)).parameters) - {"encoder", "grid_size"}
    arguments = {key: getattr(objective, key) for key in names} | wrong
    with pytest.raises(ValueError, match=message):
        type(objective)(encoder=encoder, grid_size=small.grid, **arguments)


@pytest.mark.parametrize("name", ["vjepa21", "vjepa"])
def test_clips_of_several_frames_are_masked_alike_at_all_times(small, name: str) -> None:
    encoder, objective = small.make(name)
    names = set(inspect.signature(type(objective)).parameters) - {"encoder", "grid_size"}
    arguments = {key: getattr(objective, key) for key in names} | {"clip_frames": 4}
    clips = type(objective)(encoder=encoder, grid_size=small.grid, **arguments)
    assert clips.needs.frames == 4 and clips.grid == (2, 8, 8)
    batch = small.batch_for(clips, 3)
    hidden = batch.chosen["hidden_long"]
    assert int(hidden.max()) >= 64
    assert float(total(clips, encoder, batch).detach()) > 0
