import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.frame_groups import block_causal_mask

ROOT = Path(__file__).parents[2]
SIZE = {"latent_dim": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import training_step

        yield training_step
    finally:
        sys.path.remove(str(ROOT))


@pytest.mark.parametrize("frames", [3, 8])
def test_the_arithmetic_of_the_matrices_is_what_torch_counts(benchmark, frames: int) -> None:
    losses = benchmark.losses_of(SIZE, 4)
    task = benchmark.NoiseTask(losses, grid=4, frames=frames)
    batch = task.load(task.draw(2, np.random.default_rng(0), torch.Generator()))
    with FlopCounterMode(display=False) as counter:  # of attention, it counts nothing on a CPU
        losses(batch)["loss"].backward()
    pairs = sum(int(block_causal_mask(t, 18, past_frames=0).sum()) for t in (frames - 1, 2))
    attention = 2 * 12 * pairs * SIZE["embed_dim"] * SIZE["depth"]
    flop = benchmark.flop_of_step(losses.predictor, windows=2, frames=frames)
    assert flop - attention == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_both_ways_are_timed_and_share_their_first_loss(benchmark, tmp_path: Path) -> None:
    options = Namespace(
        device="cpu",
        precision="bfloat16",
        compile=False,
        activation_checkpointing=True,
        full=False,
        frames=3,
        grid=1,
        batch_size=2,
        repeats=1,
    )
    plain, tested = benchmark.measure(options, tmp_path)
    assert (plain["precision"], tested["precision"]) == ("float32", "bfloat16")
    assert plain["first_loss"] != tested["first_loss"]
    assert plain["first_loss"] == pytest.approx(tested["first_loss"], rel=benchmark.LOSS_TOLERANCE)
    for row in (plain, tested):
        assert row["windows_per_s"] == pytest.approx(2 / row["p50_s"])
        assert 0 < row["share_of_peak"] < 1
