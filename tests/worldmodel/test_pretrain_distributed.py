"""Pretraining by two real processes over gloo is the pretraining one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
PATIENCE = 300  # seconds; a machine may be busy

WORKER = """
import sys
from functools import partial
from pathlib import Path
import torch
from worldmodel.distributed import joined

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_pretrain import MASKED, SIX_STEPS, run_pretrain
from test_pretraining import DYNAMIC

store, runs = Path(sys.argv[2]), Path(sys.argv[3])
with joined():
    for name, objective in {"masked": MASKED, "dynamic": DYNAMIC}.items():
        run_pretrain(store, runs / name, schedule=SIX_STEPS, state_weight=0.5,
                     build_objective=objective)
"""


def run(store: Path, runs: Path, processes: int) -> Path:
    runs.mkdir()
    script = runs / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(HERE), str(store), str(runs)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    return runs


@pytest.mark.slow
def test_two_processes_pretrain_as_one_does(spot_store: Path, tmp_path: Path) -> None:
    one, two = run(spot_store, tmp_path / "one", 1), run(spot_store, tmp_path / "two", 2)
    for name in ("masked", "dynamic"):
        ours, theirs = (
            [json.loads(line) for line in (r / name / "metrics.jsonl").read_text().splitlines()]
            for r in (two, one)
        )
        assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6]
        for line, other in zip(ours, theirs, strict=True):
            assert line.keys() == other.keys()
            for key, value in line.items():
                assert value == pytest.approx(other[key], rel=1e-3, abs=1e-5), (name, key)
                if key.startswith("loss"):
                    assert abs(value - other[key]) < 1e-5 * max(1, abs(other[key])), (name, key)
        weights, expected = (
            load_file(r / name / "encoder" / "weights.safetensors") for r in (two, one)
        )
        for key, value in expected.items():
            assert (weights[key] - value).abs().max() < 1e-4, (name, key)
