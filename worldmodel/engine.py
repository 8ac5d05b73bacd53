"""The training loop: one for everything that is trained here, on one process or many.

A `Task` says what is trained, on which batches; `fit` trains it. The least that a task needs:

    class LineTask(Task):
        def __init__(self, x, y):
            self.x, self.y = x, y
            self.module = LineLosses()       # module(batch) -> {"loss": scalar, ...}

        def draw(self, n, rng, generator):   # the whole batch of a step, without reading it
            return {"row": rng.integers(len(self.x), size=n)}

        def load(self, draw):                # the part of it that one process computes
            return {"x": self.x[draw["row"]], "y": self.y[draw["row"]]}

    fitted = fit(LineTask(x, y), run=folder, schedule=schedule, batch_size=64, ...)

**One run, however many processes.** The batch of step n is drawn for all processes together, from
(seed, n) alone; each process loads and computes its share of the rows, and gradients are averaged.
So neither the number of processes, nor `accumulate`, nor being killed and started again changes the
run. Three rules keep it so. A loss is a mean over rows; one that looks at the whole batch, such as
a covariance, must gather what it needs itself (torch.distributed.nn), and then sees the rows of one
accumulated part at a time. Chance comes from `draw` alone. Every parameter of `module` that
requires a gradient gets one in every step: freeze the others, and keep frozen networks outside.

**Launched by** `torchrun --nproc-per-node=8 -m worldmodel.cli train ...` or `srun`, inside
`worldmodel.distributed.joined`; without either it is the same loop on one process. The networks of
a task are wrapped in DDP, or with `fsdp=true` sharded (FSDP2), after `fit` is called.

**Stopped** at any moment, a run goes on from its last whole state (`worldmodel.training_state`)
when `fit` is called again with the same arguments.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from worldmodel import training_state
from worldmodel.distributed import ProcessLostError, here, is_lost_peer
from worldmodel.stepping import Execution, Stepper
from worldmodel.task import Batch, Draw, Evaluate, Task, TrainingError
from worldmodel.tracking import Tracker, Tracking
from worldmodel.training import Schedule

__all__ = [
    "Batch",
    "Cadence",
    "Draw",
    "Evaluate",
    "Execution",
    "Fitted",
    "Task",
    "TrainingError",
    "fit",
]


@dataclass(frozen=True)
class Cadence:
    """When a run says something and when it saves.

    Attributes:
        log_every: Steps between metric lines.
        validate_every: Steps between validations; None validates at the end only.
        measure_every: Steps between the costlier measures of a task, which are also taken at the
            end; None takes none.
        save_every: Steps between saved states.
        keep_last: How many states are kept.
    """

    log_every: int
    save_every: int
    validate_every: int | None = None
    measure_every: int | None = None
    keep_last: int = 2


@dataclass(frozen=True)
class Fitted:
    """What a run ends with.

    Attributes:
        last: The last state; None for a run of no steps.
        best: The weights with the best `Task.metric`; None if nothing was validated.
        metrics: The last validation, and the last measures.
        lines: All metric lines; in the first process only.
    """

    last: training_state.Saved | None
    best: training_state.Saved | None
    metrics: dict[str, float]
    lines: list[dict[str, Any]]


def fit(
    task: Task,
    *,
    run: Path,
    schedule: Schedule,
    batch_size: int,
    weight_decay: float,
    seed: int,
    device: torch.device,
    cadence: Cadence,
    execution: Execution | None = None,
    clip_norm: float | None = None,
    trackers: Sequence[Tracker] = ("tensorboard",),
    name: str = "train",
) -> Fitted:
    """Trains the module of a task with AdamW, or goes on with a run that was stopped.

    Args:
        task: What is trained; its networks are moved to the device.
        run: Folder for states and metrics.
        schedule: Learning rate and number of steps.
        batch_size: Rows of a step, over all processes.
        weight_decay: Of weights; biases and norms have none.
        seed: Of the batches.
        device: Where this process computes.
        cadence: When it logs, validates and saves.
        execution: How a step is computed; the default does nothing special.
        clip_norm: Norm that gradients are clipped to; None clips nothing.
        trackers: Who is told besides metrics.jsonl, see `worldmodel.tracking`.
        name: Of the live line, which also says how long the rest will take.

    Raises:
        TrainingError: A loss or gradient is not finite, memory runs out, or the task says so.
        ProcessLostError: Another process is gone.
        ValueError: The batch cannot be shared out, or sharding does not fit the task.
    """
    with _peers_are_there(run):
        stepper = Stepper(
            task,
            run=run,
            batch_size=batch_size,
            weight_decay=weight_decay,
            seed=seed,
            device=device,
            execution=execution or Execution(),
            clip_norm=clip_norm,
        )
        return _fit(
            stepper, run=run, schedule=schedule, cadence=cadence, trackers=trackers, name=name
        )


def _fit(
    stepper: Stepper,
    *,
    run: Path,
    schedule: Schedule,
    cadence: Cadence,
    trackers: Sequence[Tracker],
    name: str,
) -> Fitted:
    task, place = stepper.task, stepper.place
    before = training_state.last(run)
    first, best, metrics = 1, math.inf, {}
    if before is not None:
        stepper.load(before)
        first, metrics = before.step + 1, before.meta["metrics"]
        best = before.meta["best"] if before.meta["best"] is not None else math.inf
    tracking = Tracking(run, trackers, resume_step=first - 1) if place.first else None
    bar = tqdm(
        total=schedule.steps, initial=first - 1, desc=name, unit="step", disable=not place.first
    )
    for step, draw, batches in stepper.batches(first, schedule.steps):
        learning_rate = schedule(step)
        values = stepper.step(step, draw, batches, learning_rate)
        last = step == schedule.steps
        validates = last or _is_due(step, cadence.validate_every)
        measures = cadence.measure_every is not None and (
            last or _is_due(step, cadence.measure_every)
        )
        found = stepper.validate() if validates else {}
        if measures:
            found |= stepper.measure()
        metrics = {**metrics, **found}
        if step % cadence.log_every == 0 or found:
            line = {**values, "learning_rate": learning_rate, **found}
            if tracking is not None:
                tracking.write(step, line)
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            task.watch(step, line)
        if validates and task.metric is not None and found[task.metric] < best:
            best = found[task.metric]
            stepper.save_best(step, found)
        bar.update()
        if step % cadence.save_every == 0 or last:
            meta = {"best": best if best < math.inf else None, "metrics": metrics}
            before = stepper.save(step, meta, keep=cadence.keep_last)
    bar.close()
    if first > schedule.steps or not schedule.steps:
        metrics = metrics or stepper.validate()
        if cadence.measure_every is not None and not before:
            metrics |= stepper.measure()
    if tracking is not None:
        tracking.close()
    return Fitted(
        last=before,
        best=training_state.last(run, "best"),
        metrics=metrics,
        lines=tracking.log.read() if tracking is not None else [],
    )


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


@contextlib.contextmanager
def _peers_are_there(run: Path) -> Iterator[None]:
    """Says what to do when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        saved = training_state.states(run)
        begin = f"step {saved[-1].step + 1}" if saved else "the start"
        raise ProcessLostError(
            f"another process of this run is gone, so process {here().rank} stops too. The same "
            f"command goes on from {begin}"
        ) from error
