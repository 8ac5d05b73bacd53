"""One step of training, on one process or as one of many: forward, backward, clip, optimiser."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from worldmodel import training_state
from worldmodel.distributed import here, mean_of_all, of_all
from worldmodel.task import Batch, Draw, Task, TrainingError, rows_of
from worldmodel.training import (
    Precision,
    autocast,
    make_optimizer,
    set_learning_rate,
    step_generators,
)


@dataclass(frozen=True)
class Execution:
    """How a step is computed. None of this changes what is computed, up to rounding.

    Attributes:
        precision: See `worldmodel.training.autocast`.
        accumulate: Parts that a process computes its rows in, one after the other: the batch stays
            the same, what it takes of memory is divided.
        activation_checkpointing: Whether the `blocks` of a task compute their insides again on the
            way back instead of keeping them: about a third more time, much less memory.
        compile: Whether the blocks are compiled (torch.compile); pays on a GPU.
        fsdp: Whether weights and optimiser are sharded over the processes (FSDP2) instead of kept
            whole in each (DDP).
    """

    precision: Precision = "auto"
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be 1 or more, got {self.accumulate}")


class Stepper:
    """The networks of a run as they are computed with, and what one step does."""

    def __init__(
        self,
        task: Task,
        *,
        run: Path,
        batch_size: int,
        weight_decay: float,
        seed: int,
        device: torch.device,
        execution: Execution,
        clip_norm: float | None,
    ):
        self.task, self.run, self.seed, self.device = task, run, seed, device
        self.batch_size, self.execution, self.clip_norm = batch_size, execution, clip_norm
        self.place = here()
        self.parts = self.place.world * execution.accumulate
        if batch_size % self.parts:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of {self.parts}: "
                f"{self.place.world} processes times accumulate={execution.accumulate}"
            )
        task.module.to(device).train()
        for companion in task.companions.values():
            companion.to(device)
        if execution.activation_checkpointing:
            for block in task.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if execution.compile:
            for block in task.blocks or [task.module]:
                block.compile()
        if execution.fsdp:
            _shard(task, device)
        self.forward: nn.Module = task.module
        if self.place.world > 1 and not execution.fsdp:
            self.forward = nn.parallel.DistributedDataParallel(
                task.module,
                device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        self.optimizer = make_optimizer([task.module], weight_decay=weight_decay)
        self._checked = False  # whether all weights get gradients

    def batches(self, first: int, last: int) -> Iterator[tuple[int, Draw, list[Batch]]]:
        """Yields the steps with their draws and this process's batches, loaded one step ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
            ahead = loader.submit(self._load, first) if first <= last else None
            for step in range(first, last + 1):
                assert ahead is not None
                draw, batches = ahead.result()
                if step < last:
                    ahead = loader.submit(self._load, step + 1)
                yield step, draw, batches

    def _load(self, step: int) -> tuple[Draw, list[Batch]]:
        draw = self.task.draw(self.batch_size, *step_generators(self.seed, step))
        batches = []
        for k in range(self.execution.accumulate):
            part = self.place.rank * self.execution.accumulate + k
            batch = self.task.load(rows_of(draw, part=part, parts=self.parts))
            if self.device.type == "cuda":
                batch = {name: values.pin_memory() for name, values in batch.items()}
            batches.append(batch)
        return draw, batches

    def step(
        self, step: int, draw: Draw, batches: list[Batch], learning_rate: float
    ) -> dict[str, float]:
        """Makes one step and returns the losses, over all processes, and the gradient's norm."""
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        with self._memory_advice(step):
            means = [self._backward(k, batch) for k, batch in enumerate(batches)]
            names = list(means[0])
            own = torch.stack([torch.stack([m[name].float() for name in names]) for m in means])
            values = dict(zip(names, mean_of_all(own.mean(0)).tolist(), strict=True))
            if not self._checked:
                self._check_gradients()
            norm = math.hypot(*[self._clip(group) for group in self.task.clip_groups])
            if not math.isfinite(values["loss"]):
                finite = own[:, names.index("loss")].isfinite().tolist()
                self._stop("the loss", step, draw, batches, [not good for good in finite])
            if not math.isfinite(norm):
                self._stop("the gradient", step, draw, batches, [True] * len(batches))
            self.optimizer.step()
        self.task.after_step(step)
        return {**values, "gradient_norm": norm}

    @contextlib.contextmanager
    def _memory_advice(self, step: int) -> Iterator[None]:
        """Says which settings help when memory runs out."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingError(self._out_of_memory(step)) from error
        except RuntimeError as error:
            if "allocate memory" in str(error):  # how torch says it of the CPU's memory
                raise TrainingError(self._out_of_memory(step)) from error
            raise

    def _check_gradients(self) -> None:
        """Refuses weights that a step leaves alone: no state could be saved that fits them."""
        idle = [
            name
            for name, weight in self.task.module.named_parameters()
            if weight.requires_grad and weight.grad is None
        ]
        if idle:
            raise ValueError(
                f"{len(idle)} weights got no gradient in the first step ({', '.join(idle[:5])}"
                f"{', ...' if len(idle) > 5 else ''}); freeze them with requires_grad_(False)"
            )
        self._checked = True

    def _backward(self, part: int, batch: Batch) -> dict[str, Tensor]:
        """Adds the gradients of one part and returns its losses."""
        last = part == self.execution.accumulate - 1
        with self._gradients_stay_here() if not last else contextlib.nullcontext():
            with autocast(self.device, self.execution.precision):
                losses = self.forward(self._here(batch))
            (losses["loss"] / self.execution.accumulate).backward()
        return {name: value.detach() for name, value in losses.items()}

    @contextlib.contextmanager
    def _gradients_stay_here(self) -> Iterator[None]:
        """Leaves gradients to be averaged over the processes with those of the last part."""
        if isinstance(self.forward, nn.parallel.DistributedDataParallel):
            with self.forward.no_sync():
                yield
        elif self.execution.fsdp:
            self.task.module.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
            self.task.module.set_requires_gradient_sync(True)  # type: ignore[operator]
        else:
            yield

    def _clip(self, group: nn.Module) -> float:
        parameters = [p for p in group.parameters() if p.requires_grad]
        limit = math.inf if self.clip_norm is None else self.clip_norm
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return float(whole)

    def validate(self) -> dict[str, float]:
        """Returns the held-out numbers of the task."""
        self.task.module.eval()
        metrics = self.task.validate(self._evaluate)
        self.task.module.train()
        return metrics

    def measure(self) -> dict[str, float]:
        """Returns the costlier held-out numbers of the task."""
        self.task.module.eval()
        sharded = [m for m in self.task.module.modules() if isinstance(m, FSDPModule)]
        for module in sharded:
            module.unshard()
        with torch.no_grad(), autocast(self.device, self.execution.precision):
            metrics = self.task.measure()
        for module in sharded:
            module.reshard()
        self.task.module.train()
        return metrics

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(self.device, self.execution.precision):
            return self.task.module(self._here(batch))

    def _here(self, batch: Batch) -> Batch:
        return {name: x.to(self.device, non_blocking=True) for name, x in batch.items()}

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.task.module, self.optimizer)
        companions = {name: net.state_dict() for name, net in self.task.companions.items()}
        return {"model": model, "optimizer": optimizer, "companions": companions}

    def save(self, step: int, meta: Mapping[str, Any], *, keep: int) -> training_state.Saved:
        """Saves all that the run goes on from."""
        return training_state.save(self.run, self._state(), step=step, meta=meta, keep=keep)

    def save_best(self, step: int, meta: Mapping[str, Any]) -> None:
        """Saves the weights in place of those that were the best before."""
        state = {"model": get_model_state_dict(self.task.module)}
        training_state.save(self.run, state, step=step, meta=meta, keep=1, kind="best")

    def load(self, saved: training_state.Saved) -> None:
        """Takes up a saved state."""
        state = self._state()
        training_state.load(saved, state)
        set_state_dict(
            self.task.module,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        for name, network in self.task.companions.items():
            network.load_state_dict(state["companions"][name])

    def _stop(
        self, what: str, step: int, draw: Draw, batches: list[Batch], bad: list[bool]
    ) -> NoReturn:
        """Saves the parts of a batch that are bad, and says what they are of, in all processes."""
        names: list[str] = []
        for k in range(len(batches)):
            if bad[k]:
                part = self.place.rank * self.execution.accumulate + k
                names += self.task.name_rows(rows_of(draw, part=part, parts=self.parts))
        file = self.run / f"bad_batch_step{step}_rank{self.place.rank}.pt"
        if any(bad):
            torch.save([batch for batch, is_bad in zip(batches, bad, strict=True) if is_bad], file)
        found = of_all((str(file) if any(bad) else "", names))
        files = [name for name, _ in found if name]
        rows = sorted({row for _, these in found for row in these})
        raise TrainingError(
            f"{what} of step {step} is not finite. "
            + (f"The batch is of {', '.join(rows)}. " if rows else "")
            + f"It is saved in {', '.join(files)}, the weights before it are in the last state. "
            "Look at these recordings (worldmodel inspect), or lower schedule.peak, or raise "
            "schedule.warmup_steps"
        )

    def _out_of_memory(self, step: int) -> str:
        """Returns what to change, the cheapest first."""
        accumulate, at_once = self.execution.accumulate, self.batch_size // self.parts
        advice = []
        if at_once % 2 == 0:
            advice.append(f"accumulate={2 * accumulate}: the same run, {at_once // 2} at once")
        if self.task.blocks and not self.execution.activation_checkpointing:
            advice.append("activation_checkpointing=true: the same run, a third slower")
        if self.batch_size > self.parts:
            advice.append(f"batch_size={self.batch_size // 2}: another run, new folder")
        return (
            f"out of memory at step {step} with {at_once} rows at once (batch_size="
            f"{self.batch_size}, {self.place.world} processes, accumulate={accumulate}); try "
            + ("; or ".join(advice) or "a smaller model")
        )


def _shard(task: Task, device: torch.device) -> None:
    """Shards blocks and the rest of the module over all processes (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        raise ValueError(
            "fsdp=true shards over processes, but this is a single one; start several with "
            "torchrun --nproc-per-node=2 -m worldmodel.cli ..., or leave fsdp out"
        )
    if task.companions:
        raise ValueError(
            f"fsdp=true cannot shard a task with companions ({', '.join(task.companions)}); "
            "leave fsdp out"
        )
    mesh = init_device_mesh(device.type, (here().world,))
    for block in task.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task.module, mesh=mesh)
