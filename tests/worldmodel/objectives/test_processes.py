"""Two processes with half a batch each train as one process with all of it does."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldmodel.objectives.processes import batch_moments, num_processes, sum_over_processes

_SPEC = importlib.util.spec_from_file_location("small", Path(__file__).with_name("conftest.py"))
assert _SPEC is not None and _SPEC.loader is not None
SMALL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(SMALL)
NAMES = ["vjepa21", "vjepa", "ijepa", "lewm", "barlow_twins", "vicreg", "state_reading"]
ROWS = 8

# One of the two: the losses of its rows, and gradients averaged as data parallel training does.
_PROCESS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist

torch.set_num_threads(1)
here, rank, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, str(here))
from test_processes import NAMES, losses_and_gradients, shared_out

dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
found = {}
for name in NAMES:
    total, gradients = losses_and_gradients(name, lambda batch: shared_out(batch, rank))
    for value in (total, *gradients.values()):
        dist.all_reduce(value)
        value /= 2
    found[name] = (total, gradients)
if rank == 0:
    torch.save(found, folder / "found.pt")
dist.destroy_process_group()
"""


def shared_out(batch, rank: int):  # type: ignore[no-untyped-def]
    """Returns the rows of one of two processes."""
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    chosen = {name: x if x.ndim == 0 else x[half] for name, x in batch.chosen.items()}
    return type(batch)(batch.frames[half], batch.proprio[half], chosen)


def losses_and_gradients(name: str, part) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[no-untyped-def]
    encoder, objective = SMALL.make(name)
    batch = part(SMALL.batch_for(objective, ROWS))
    total = torch.zeros(())
    for loss in objective.losses(encoder, batch):
        loss.total.backward()
        total += loss.total.detach()
    gradients = {
        f"{number}.{key}": p.grad
        for number, module in enumerate((encoder, objective))
        for key, p in module.named_parameters()
        if p.grad is not None
    }
    return total, gradients


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    words = [sys.executable, "-c", _PROCESS, str(Path(__file__).parent)]
    running = [
        subprocess.Popen([*words, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_loss_and_gradients_of_one(by_two, name: str) -> None:
    total, gradients = by_two[name]
    expected_total, expected = losses_and_gradients(name, lambda batch: batch)
    torch.testing.assert_close(total, expected_total, rtol=1e-5, atol=1e-6)
    assert set(gradients) == set(expected)
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for key, gradient in expected.items():
        # Some are zero but for rounding, such as that of a bias before a batch normalisation.
        assert (gradients[key] - gradient).norm() < 1e-3 * gradient.norm() + 1e-5 * whole, key


def test_alone_a_sum_is_the_number_itself() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert num_processes() == 1
    assert sum_over_processes(x) is x
    mean, variance, n = batch_moments(x)
    assert n == 6
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, x.var(0, correction=0))
