import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from worldmodel.cli import compose
from worldmodel.training import (
    MetricsLog,
    Precision,
    Schedule,
    autocast,
    has_fast_bfloat16,
    make_optimizer,
    plot_metrics,
    select_device,
    set_learning_rate,
    step_generators,
)

# V-JEPA 2-AC post-training (Assran et al. 2025, and the released config).
PUBLISHED = compose("train", ["experiment=vjepa2_ac"])
POST_TRAINING = Schedule(**PUBLISHED.schedule)


@pytest.mark.parametrize(
    "step, expected",
    [
        (1, 7.50778e-5),
        (2250, 2.5e-4),
        (4499, 4.24922e-4),
        (4500, 4.25e-4),
        (50_000, 4.25e-4),
        (90_000, 4.25e-4),
        (92_250, 2.125e-4),
        (94_500, 0.0),
    ],
)
def test_the_wsd_schedule_is_that_of_v_jepa_2_ac(step: int, expected: float) -> None:
    assert POST_TRAINING(step) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_the_published_preset_is_the_published_recipe() -> None:
    assert PUBLISHED.batch_size == 256 and PUBLISHED.window == 8 and PUBLISHED.rollout_steps == 2
    assert PUBLISHED.distance == "l1" and PUBLISHED.weight_decay == 0.04 and PUBLISHED.seed == 239
    assert PUBLISHED.model_hz == 4 and PUBLISHED.crop == "squash" and PUBLISHED.merge == 1
    assert PUBLISHED.clip_norm is None and not PUBLISHED.standardise
    assert PUBLISHED.state_weight == 0 and not PUBLISHED.legacy_rollout
    assert (PUBLISHED.predictor.depth, PUBLISHED.predictor.embed_dim) == (24, 1024)
    optimizer = make_optimizer([nn.Linear(2, 2)], weight_decay=PUBLISHED.weight_decay)
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8


def test_the_cosine_schedule_rises_peaks_and_ends_at_its_final_rate() -> None:
    schedule = Schedule(name="cosine", peak=1.0, start=0.1, final=0.2, steps=110, warmup_steps=10)
    assert schedule(5) == pytest.approx(0.55)
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(110) == pytest.approx(0.2)


@given(
    st.sampled_from(["cosine", "wsd"]), st.integers(1, 40), st.integers(0, 20), st.integers(0, 20)
)
def test_a_rate_stays_between_its_ends(name, stable: int, warmup: int, decay: int) -> None:
    schedule = Schedule(
        name=name,
        peak=1.0,
        start=0.3,
        final=0.1,
        steps=stable + warmup + decay,
        warmup_steps=warmup,
        decay_steps=decay,
    )
    rates = [schedule(step) for step in range(1, schedule.steps + 1)]
    assert all(0.1 <= rate <= 1.0 for rate in rates)
    assert (np.diff(rates[:warmup]) >= 0).all() and (np.diff(rates[warmup:]) <= 1e-12).all()
    if decay or name == "cosine":
        assert rates[-1] == pytest.approx(0.1)


def test_phases_longer_than_the_run_are_refused() -> None:
    with pytest.raises(
        ValueError, match="warmup_steps=8 and decay_steps=3 do not fit into steps=10"
    ):
        Schedule(name="wsd", peak=1.0, steps=10, warmup_steps=8, decay_steps=3)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule must be 'cosine' or 'wsd', got 'linear'"):
        dataclasses.replace(POST_TRAINING, name="linear")  # type: ignore[arg-type]


def test_biases_and_norms_are_not_decayed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    optimizer = make_optimizer([module], weight_decay=0.04)
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.04 and free["weight_decay"] == 0
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in free["params"]] == [(4,), (4,), (4,)]
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_step_draws_the_same_numbers_whatever_was_drawn_before() -> None:
    def numbers(seed: int, step: int) -> list[float]:
        rng, generator = step_generators(seed, step)
        return [float(rng.random()), float(torch.rand((), generator=generator))]

    expected = numbers(0, 7)
    numbers(0, 1)
    assert numbers(0, 7) == expected
    for other in (numbers(0, 8), numbers(1, 7), numbers(1, 6)):
        assert not set(other) & set(expected)


def test_the_log_drops_what_came_after_the_step_that_is_resumed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0)
    for step in range(1, 6):
        log.write(step, {"loss": 1 / step})
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    resumed = MetricsLog(tmp_path, resume_step=3)
    resumed.write(4, {"loss": 9.0})
    lines = [json.loads(line) for line in resumed.path.read_text().splitlines()]
    assert lines == resumed.read()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == [1, 1 / 2, 1 / 3, 9.0]


def test_a_fresh_run_forgets_an_older_log(tmp_path: Path) -> None:
    MetricsLog(tmp_path, resume_step=0).write(1, {"loss": 1.0})
    assert MetricsLog(tmp_path, resume_step=0).read() == []


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device=cuda but torch sees no GPU; use device=cpu"):
        select_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    "precision, amx, expected",
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_on_a_cpu_that_is_fast_at_it(
    monkeypatch, precision: Precision, amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_a_gpu_is_fast_at_bfloat16_whatever_the_cpu_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert has_fast_bfloat16(torch.device("cuda"))
    assert not has_fast_bfloat16(torch.device("cpu"))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, got 'half'"):
        autocast(torch.device("cpu"), "half")  # type: ignore[arg-type]


def test_curves_are_drawn_also_where_a_metric_is_missing(tmp_path: Path) -> None:
    lines = [
        {"step": s, "loss": 1 / s} | ({"held_out": 1.0} if s == 4 else {}) for s in range(1, 5)
    ]
    groups = {"loss": ["loss", "held_out"], "rate": ["loss"]}
    plot_metrics(lines, tmp_path / "curves.png", groups=groups, title="a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
