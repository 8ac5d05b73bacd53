"""The training loop on one process, with a task whose every number is known: a line through points.

Several processes are in test_distributed.py.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodel import training_state
from worldmodel.engine import (
    Batch,
    Cadence,
    Draw,
    Evaluate,
    Execution,
    Fitted,
    Task,
    TrainingError,
    fit,
)
from worldmodel.task import rows_of
from worldmodel.training import Schedule

TEN_STEPS = Schedule(name="wsd", peak=0.05, steps=10, warmup_steps=2)
CPU = torch.device("cpu")
EXACT = Execution(precision="float32")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class LineLosses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.block, self.out = nn.Linear(1, 4), Block(), nn.Linear(4, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        error = self.out(self.block(self.into(batch["x"]))) - batch["y"]
        return {"loss": error.square().mean(), "loss_absolute": error.abs().mean()}


class LineTask(Task):
    """Learns y = 2 x - 1 from 64 points; the moving average of its weights is a companion."""

    metric = "held_out"

    def __init__(self, *, poisoned: int | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module: LineLosses = LineLosses()
            self.average = LineLosses().requires_grad_(False)
        self.x = torch.linspace(-1, 1, 64)[:, None]
        self.y = 2 * self.x - 1
        if poisoned is not None:
            self.y[poisoned] = math.nan
        self.seen: list[list[int]] = []

    def draw(self, n: int, rng: np.random.Generator, generator: torch.Generator) -> Draw:
        return {"row": rng.integers(64, size=n), "seed": np.int64(rng.integers(9))}

    def load(self, draw: Draw) -> Batch:
        self.seen.append(draw["row"].tolist())
        return {"x": self.x[draw["row"]], "y": self.y[draw["row"]]}

    @property
    def companions(self) -> Mapping[str, nn.Module]:
        return {"average": self.average}

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.module.block]

    def after_step(self, step: int) -> None:
        pairs = zip(self.average.parameters(), self.module.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast.detach(), 0.2)

    def validate(self, evaluate: Evaluate) -> dict[str, float]:
        loss = evaluate({"x": self.x, "y": 2 * self.x - 1})["loss"]
        assert not loss.requires_grad and not self.module.training
        return {"held_out": float(loss)}

    def name_rows(self, draw: Draw) -> list[str]:
        return [f"point {row}" for row in draw["row"]]


def fit_line(
    run: Path,
    task: Task,
    *,
    schedule: Schedule = TEN_STEPS,
    batch_size: int = 16,
    execution: Execution = EXACT,
    clip_norm: float | None = None,
    validate_every: int | None = 2,
    save_every: int = 3,
    keep_last: int = 2,
) -> Fitted:
    run.mkdir(exist_ok=True)
    return fit(
        task,
        run=run,
        schedule=schedule,
        batch_size=batch_size,
        weight_decay=0.01,
        seed=3,
        device=CPU,
        cadence=Cadence(
            log_every=1, save_every=save_every, validate_every=validate_every, keep_last=keep_last
        ),
        execution=execution,
        clip_norm=clip_norm,
    )


def weights(task: LineTask) -> dict[str, Tensor]:
    own = {f"module.{k}": v.clone() for k, v in task.module.state_dict().items()}
    return own | {f"average.{k}": v.clone() for k, v in task.average.state_dict().items()}


class Stop(Exception):  # noqa: N818  (no error: it plays a kill)
    """The run is cut here."""


class StoppedTask(LineTask):
    """A run that ends, without a word, after a step that the optimiser has made."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self.after = after

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if step == self.after:
            raise Stop


def test_a_task_of_a_few_lines_is_learned(tmp_path: Path) -> None:
    schedule = Schedule(name="cosine", peak=0.05, steps=200, warmup_steps=5)
    fitted = fit_line(tmp_path, LineTask(), schedule=schedule, validate_every=None, save_every=150)
    assert fitted.metrics["held_out"] < 1e-3 < fitted.lines[0]["loss"]
    assert [line["step"] for line in fitted.lines] == list(range(1, 201))
    assert fitted.lines[-1]["held_out"] == fitted.metrics["held_out"]
    assert fitted.lines[4]["learning_rate"] == 0.05


def test_a_line_says_the_true_loss_and_gradient_of_its_batch(tmp_path: Path) -> None:
    task, twin = LineTask(), LineTask()
    fitted = fit_line(tmp_path, task)
    batch = twin.load({"row": np.array(task.seen[0])})
    losses = twin.module(batch)
    losses["loss"].backward()
    norm = torch.cat([p.grad.flatten() for p in twin.module.parameters() if p.grad is not None])
    assert fitted.lines[0]["loss"] == pytest.approx(losses["loss"].item(), rel=1e-6)
    assert fitted.lines[0]["loss_absolute"] == pytest.approx(losses["loss_absolute"].item())
    assert fitted.lines[0]["gradient_norm"] == pytest.approx(float(norm.norm()), rel=1e-5)


@pytest.mark.parametrize("after", [1, 3, 5, 10])
def test_a_run_cut_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path, after: int) -> None:
    whole, cut, rest = LineTask(), StoppedTask(after=after), LineTask()
    expected = fit_line(tmp_path / "whole", whole)
    with pytest.raises(Stop):
        fit_line(tmp_path / "cut", cut)
    fitted = fit_line(tmp_path / "cut", rest)
    assert fitted.lines == expected.lines
    for name, value in weights(whole).items():
        assert torch.equal(weights(rest)[name], value), name
    (one, two) = (tmp_path / name / "metrics.jsonl" for name in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()
    assert fitted.best is not None and expected.best is not None
    assert (fitted.best.step, fitted.best.meta) == (expected.best.step, expected.best.meta)


def test_a_run_that_goes_on_remembers_its_best(tmp_path: Path) -> None:
    worse = Schedule(name="wsd", peak=0.05, final=30.0, steps=10, warmup_steps=0, decay_steps=7)
    with pytest.raises(Stop):
        fit_line(tmp_path, StoppedTask(after=5), schedule=worse)
    fitted = fit_line(tmp_path, LineTask(), schedule=worse)
    assert fitted.best is not None and fitted.best.step == 2


def test_a_batch_in_parts_is_the_same_run(tmp_path: Path) -> None:
    whole, parts = LineTask(), LineTask()
    expected = fit_line(tmp_path / "whole", whole)
    fitted = fit_line(
        tmp_path / "parts", parts, execution=Execution(precision="float32", accumulate=4)
    )
    for line, other in zip(fitted.lines, expected.lines, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    assert [len(rows) for rows in parts.seen] == [4] * 40
    assert sum(parts.seen[:4], []) == whole.seen[0]


def test_blocks_computed_twice_are_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    task = LineTask()
    calls = []
    task.module.block.register_forward_hook(lambda *_: calls.append(1))
    expected = fit_line(tmp_path / "once", LineTask(), validate_every=None)
    twice = Execution(precision="float32", activation_checkpointing=True)
    fitted = fit_line(tmp_path / "twice", task, execution=twice, validate_every=None)
    assert fitted.lines == expected.lines
    inner = []
    task.module.block.linear.register_forward_hook(lambda *_: inner.append(1))
    task.module(task.load({"row": np.arange(4)}))["loss"].backward()
    assert len(inner) == 2  # there, and again on the way back


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    free, held = LineTask(), LineTask()
    fit_line(tmp_path / "free", free)
    fitted = fit_line(tmp_path / "held", held, clip_norm=1e-9)
    # AdamW divides by the size of gradients, except for its epsilon, which is larger than these.
    moved = [
        (weights(t)["module.out.bias"] - weights(LineTask())["module.out.bias"]).abs()
        for t in (free, held)
    ]
    assert moved[1] < 0.2 * moved[0]
    assert fitted.lines[0]["gradient_norm"] > 1e-3  # what is logged is the norm before


def test_the_last_states_are_kept_and_the_best_weights(tmp_path: Path) -> None:
    fitted = fit_line(tmp_path, LineTask(), save_every=2, keep_last=3)
    assert [saved.step for saved in training_state.states(tmp_path)] == [6, 8, 10]
    held_out = {line["step"]: line["held_out"] for line in fitted.lines if "held_out" in line}
    best = min(held_out, key=lambda step: held_out[step])
    assert [saved.step for saved in training_state.states(tmp_path, "best")] == [best]
    assert fitted.best is not None and fitted.best.meta == {"held_out": held_out[best]}
    assert not list((tmp_path / "state").glob("*.part"))


def test_the_best_weights_are_those_of_their_step(tmp_path: Path) -> None:
    rising = Schedule(name="wsd", start=0.01, peak=20.0, steps=10, warmup_steps=10)
    fitted = fit_line(tmp_path, task := LineTask(), schedule=rising)
    assert fitted.best is not None and fitted.best.step < 10
    kept = training_state.read_weights(fitted.best, task.module.state_dict())
    twin = LineTask()
    twin.module.load_state_dict(kept)
    loss = twin.module.eval()({"x": twin.x, "y": twin.y})["loss"]
    assert loss.item() == pytest.approx(fitted.best.meta["held_out"], rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(tmp_path: Path) -> None:
    task = LineTask(poisoned=17)
    with pytest.raises(TrainingError) as raised:
        fit_line(tmp_path, task, schedule=Schedule(name="wsd", peak=0.01, steps=99, warmup_steps=0))
    step = int(str(raised.value).split("step ")[1].split()[0])
    file = tmp_path / f"bad_batch_step{step}_rank0.pt"
    assert "is not finite" in str(raised.value) and "point 17" in str(raised.value)
    assert str(file) in str(raised.value) and "worldmodel inspect" in str(raised.value)
    (batch,) = torch.load(file, weights_only=True)
    assert batch["y"].isnan().sum() >= 1 and len(batch["y"]) == 16
    # Nothing of it went into weights or log.
    assert all(value.isfinite().all() for value in weights(task).values())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == step - 1 and all(math.isfinite(json.loads(x)["loss"]) for x in lines)


def test_only_the_bad_part_of_a_batch_is_named(tmp_path: Path) -> None:
    task = LineTask(poisoned=17)
    with pytest.raises(TrainingError) as raised:
        fit_line(
            tmp_path,
            task,
            schedule=Schedule(name="wsd", peak=0.01, steps=99, warmup_steps=0),
            execution=Execution(precision="float32", accumulate=16),
        )
    assert "The batch is of point 17. " in str(raised.value)


class SteepLosses(LineLosses):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().forward(batch)
        nothing = (losses["loss"] - losses["loss"].detach()).abs().sqrt()  # 0, infinitely steep
        return {"loss": losses["loss"] + nothing}


class SteepTask(LineTask):
    """Its loss is finite, its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.module = SteepLosses()


def test_a_gradient_that_is_no_number_stops_the_run_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the gradient of step 1 is not finite"):
        fit_line(tmp_path, SteepTask())


class HungryTask(LineTask):
    def __init__(self, error: BaseException) -> None:
        super().__init__()

        def fail(*_: object) -> None:
            raise error

        self.module.register_forward_pre_hook(fail)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_the_settings_that_help(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(TrainingError) as raised:
        fit_line(
            tmp_path, HungryTask(error), execution=Execution(precision="float32", accumulate=2)
        )
    assert "out of memory at step 1 with 8 rows at once (batch_size=16" in str(raised.value)
    assert "accumulate=4: the same run, 4 at once" in str(raised.value)
    assert "activation_checkpointing=true" in str(raised.value)
    assert "batch_size=8: another run" in str(raised.value)


def test_other_errors_are_not_called_a_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit_line(tmp_path, HungryTask(RuntimeError("shapes cannot be multiplied")))


class IdleLosses(LineLosses):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


class IdleTask(LineTask):
    def __init__(self) -> None:
        super().__init__()
        self.module, self.average = IdleLosses(), IdleLosses().requires_grad_(False)


def test_weights_that_nothing_trains_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 weights got no gradient .*\(idle.weight, idle.bias\)"):
        fit_line(tmp_path, IdleTask())
    task = IdleTask()
    task.module.idle.requires_grad_(False)  # type: ignore[union-attr]
    assert fit_line(tmp_path, task).last is not None


class WatchedTask(LineTask):
    def watch(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 4:
            raise TrainingError(f"collapsed at {metrics['loss']:.3g}")


def test_a_task_can_stop_its_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="collapsed at"):
        fit_line(tmp_path, WatchedTask())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    message = r"batch_size=16 must be a multiple of 3: 1 processes times accumulate=3"
    with pytest.raises(ValueError, match=message):
        fit_line(tmp_path, LineTask(), execution=Execution(precision="float32", accumulate=3))
    with pytest.raises(ValueError, match="5 rows of 'row' cannot be shared out in 2"):
        rows_of({"row": np.arange(5)}, part=0, parts=2)


def test_sharding_needs_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fsdp=true shards over processes.*torchrun"):
        fit_line(tmp_path, LineTask(), execution=Execution(fsdp=True))


def test_shares_of_a_draw_are_all_of_it_in_order() -> None:
    draw = {"row": np.arange(12), "pair": torch.arange(24).view(12, 2), "seed": np.int64(5)}
    shares = [rows_of(draw, part=part, parts=3) for part in range(3)]
    assert np.concatenate([share["row"] for share in shares]).tolist() == list(range(12))
    assert torch.equal(torch.cat([share["pair"] for share in shares]), draw["pair"])
    assert [share["seed"] for share in shares] == [5, 5, 5]


def test_a_finished_run_started_again_changes_nothing(tmp_path: Path) -> None:
    fitted = fit_line(tmp_path, LineTask())
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    again = fit_line(tmp_path, task := LineTask())
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert (again.metrics, again.lines) == (fitted.metrics, fitted.lines)
    assert not task.seen  # nothing was drawn
