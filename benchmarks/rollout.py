"""How fast are plans imagined and scored, against a straightforward reference, at equal energies?

The reference does what the published method says, step by step, and no more: the whole prefix
through the predictor again at every step, under a dense boolean mask, every plan with its own copy
of the context, poses integrated one by one in numpy on the CPU, float32. Ours is `JEPA.rollout`.
Both have the same random weights (what they are does not change the time) and the same plans, run
in turns in one process, and must give the same energies before any time is taken.

    python benchmarks/rollout.py [--samples 24] [--repeats 3] [--out rollout.json]
    python benchmarks/rollout.py --device cuda --dtype bfloat16 --full --out rollout-cuda.json
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.jepa import JEPA
from worldmodel.planners import LatentEnergy
from worldmodel.pose import integrate
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.runs import describe_machine

GRID = 16
MID = {"latent_dim": 384, "embed_dim": 384, "depth": 6, "num_heads": 6}  # ViT-S latents
FULL = {"latent_dim": 1408, "embed_dim": 1024, "depth": 24, "num_heads": 16}  # V-JEPA 2-AC
ITERATIONS = 10  # of the published search: 800 plans, 10 times
TARGETS = {"mid": {1: 1.2, 3: 2.0, 5: 3.0}, "full": {1: 5.0}}


def make_world(size: dict[str, int]) -> JEPA:
    """A predictor with random weights in the published form; the encoder plays no part."""
    torch.manual_seed(0)
    predictor = ActionConditionedPredictor(
        **size,
        grid_size=(GRID, GRID),
        rope="tiled",
        residual=False,
        rotation_input="euler",
        num_frequencies=0,
    )
    encoder = VideoEncoder(embed_dim=size["latent_dim"], depth=1, num_heads=1)
    return JEPA(encoder=encoder, predictor=predictor, image_size=16 * GRID).eval()


# The reference: V-JEPA 2-AC (Assran et al. 2025, arXiv 2506.09985) written out.


def rotation_matrix(euler: np.ndarray) -> np.ndarray:
    (cr, cp, cy), (sr, sp, sy) = np.cos(euler), np.sin(euler)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def reference_integrate(states: Tensor, actions: Tensor) -> Tensor:
    reached = []
    for state, action in zip(states.cpu().numpy(), actions.cpu().numpy(), strict=True):
        turned = rotation_matrix(action[3:6]) @ rotation_matrix(state[3:6])
        euler = [
            np.arctan2(turned[2, 1], turned[2, 2]),
            np.arcsin(np.clip(-turned[2, 0], -1, 1)),
            np.arctan2(turned[1, 0], turned[0, 0]),
        ]
        gripper = np.clip(state[6:] + action[6:], 0, 1)
        reached.append(np.concatenate([state[:3] + action[:3], euler, gripper]))
    return torch.from_numpy(np.stack(reached)).to(states)


def reference_rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotates one axis' slot (B, heads, N, width) by the position (N,) on that axis."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.outer(position, frequency).repeat(1, 2)
    partner = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * angle.cos() + partner * angle.sin()


def reference_attention(attention: torch.nn.Module, x: Tensor, at: Tensor, mask: Tensor) -> Tensor:
    B, N, D = x.shape
    heads = attention.num_heads
    q, k, v = attention.qkv(x).view(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    width = 2 * (D // heads // 3 // 2)
    slots = [slice(axis * width, (axis + 1) * width) for axis in range(3)]
    q, k = (
        torch.cat(
            [reference_rotate(y[..., slot], at[:, axis]) for axis, slot in enumerate(slots)]
            + [y[..., 3 * width :]],
            dim=-1,
        )
        for y in (q, k)
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.proj(out.transpose(1, 2).reshape(B, N, D))


def reference_predict(
    predictor: ActionConditionedPredictor, latents: Tensor, states: Tensor, actions: Tensor
) -> Tensor:
    B, T = states.shape[:2]
    tokens = [predictor.action_encoder(actions), predictor.state_encoder(states)]
    x = torch.cat([token[:, :, None] for token in tokens] + [predictor.predictor_embed(latents)], 2)
    G = x.shape[2]
    frame = torch.arange(T, device=x.device).repeat_interleave(G)
    mask = frame[:, None] >= frame[None, :]
    patch = (torch.arange(G, device=x.device) - 2).clamp(min=0)
    at = torch.stack((frame, (patch // GRID).repeat(T), (patch % GRID).repeat(T)), dim=1)
    x = x.flatten(1, 2)
    for block in predictor.predictor_blocks:
        x = x + reference_attention(block.attn, block.norm1(x), at, mask)
        x = x + block.mlp(block.norm2(x))
    x = x.view(B, T, G, -1)[:, :, 2:]
    return predictor.predictor_proj(predictor.predictor_norm(x))


def reference_rollout(world: JEPA, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
    S, H = actions.shape[1:3]
    z, states = latents.repeat(S, 1, 1, 1), proprio.repeat(S, 1, 1)
    for t in range(H):
        ahead = reference_predict(world.predictor, z, states, actions[0, :, : t + 1])[:, -1:]
        z = torch.cat([z, F.layer_norm(ahead, ahead.shape[-1:], eps=1e-5)], dim=1)
        reached = reference_integrate(states[:, -1], actions[0, :, t])
        states = torch.cat([states, reached[:, None]], dim=1)
    return z[None, :, 1:]


# Measuring.


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """The most FLOP/s of five square matrix products."""
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        synchronise(device)
        start = time.perf_counter()
        a @ a
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def reset_peak_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew


def peak_memory_mib(device: str) -> float:
    """Peak memory of the process since the reset: resident on a CPU, allocated on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def timed(function: Callable[[], Tensor], device: str) -> tuple[float, float, Tensor]:
    """Seconds by the clock, seconds of processor time, and the result."""
    synchronise(device)
    start, busy = time.perf_counter(), time.process_time()
    out = function()
    synchronise(device)
    return time.perf_counter() - start, time.process_time() - busy, out


def summary(
    runs: list[tuple[float, float]], *, frames: int, flop: float, peak: float, memory_mib: float
) -> dict[str, float]:
    wall = np.array([seconds for seconds, _ in runs])
    return {
        "p50_ms": 1000 * float(np.quantile(wall, 0.5)),
        "p95_ms": 1000 * float(np.quantile(wall, 0.95)),
        "best_ms": 1000 * float(wall.min()),
        "best_processor_ms": 1000 * min(busy for _, busy in runs),
        "candidate_frames_per_s": frames / float(wall.min()),
        "gflop_per_s": flop / float(wall.min()) / 1e9,
        "share_of_matmul_peak": flop / float(wall.min()) / peak,
        "matmul_peak_gflop_per_s": peak / 1e9,
        "peak_memory_mib": memory_mib,
    }


def compare(
    world: JEPA, ours: Callable[..., Tensor], horizon: int, options: argparse.Namespace
) -> dict[str, object]:
    """One row: equal energies first, then both in turns."""
    device, S = options.device, options.samples
    generator = torch.Generator().manual_seed(horizon)
    N, D = GRID**2, world.predictor.latent_dim
    now, goal = F.layer_norm(torch.randn(2, 1, N, D, generator=generator), (D,)).to(device)
    proprio = torch.tensor([[[0.45, 0.0, 0.3, 3.1, 0.1, -0.2, 0.5]]], device=device)
    scale = torch.tensor([0.04, 0.04, 0.04, 0.1, 0.1, 0.1, 0.4])
    actions = (torch.randn(1, S, horizon, 7, generator=generator) * scale).to(device)
    energy = LatentEnergy()
    lower = options.dtype != "float32"

    def precision() -> AbstractContextManager[object]:
        return torch.autocast(device, getattr(torch, options.dtype)) if lower else nullcontext()

    def fast() -> Tensor:
        with precision():
            return energy(ours(now[None], proprio, actions), actions, goal, now)

    def slow() -> Tensor:
        latents = reference_rollout(world, now[None], proprio, actions)
        return energy(latents, actions, goal, now)

    exact = energy(world.rollout(now[None], proprio, actions), actions, goal, now)
    expected = slow()
    difference = float(((exact - expected).abs() / expected).max())
    if difference > 1e-4:
        raise SystemExit(f"horizon {horizon}: energies differ by {difference:.1e}, over 1e-4")
    quick = fast()
    best = min(10, S)
    elites = [set(x[0].topk(best, largest=False).indices.tolist()) for x in (expected, quick)]

    runs: dict[str, list[tuple[float, float]]] = {"reference": [], "ours": []}
    memory: dict[str, float] = {}
    peak = dict.fromkeys(runs, 0.0)
    dtypes = {"reference": torch.float32, "ours": getattr(torch, options.dtype)}
    for _ in range(options.repeats):
        for name, function in (("reference", slow), ("ours", fast)):
            reset_peak_memory(device)
            wall, busy, _ = timed(function, device)
            runs[name].append((wall, busy))
            memory[name] = max(memory.get(name, 0.0), peak_memory_mib(device))
            peak[name] = max(peak[name], matmul_peak(device, dtypes[name]))

    parameters = sum(p.numel() for p in world.predictor.parameters())
    flop = 2.0 * parameters * (N + 2) * S * horizon  # what the task takes; prefixes not counted
    rows = {
        name: summary(
            runs[name],
            frames=S * horizon,
            flop=flop,
            peak=peak[name],
            memory_mib=memory[name],
        )
        for name in runs
    }
    return {
        "horizon": horizon,
        **rows,
        "ratio_of_best": rows["reference"]["best_ms"] / rows["ours"]["best_ms"],
        "ratio_of_p50": rows["reference"]["p50_ms"] / rows["ours"]["p50_ms"],
        "ratio_of_processor_time": rows["reference"]["best_processor_ms"]
        / rows["ours"]["best_processor_ms"],
        "target": TARGETS["full" if options.full else "mid"].get(horizon),
        "largest_relative_energy_difference": difference,
        "top_10_overlap": len(elites[0] & elites[1]) / best,
    }


def pose_times_ms(device: str) -> dict[str, float]:
    """Best milliseconds to integrate 800 poses by one action each."""
    states = torch.rand(800, 7, device=device)
    actions = 0.1 * torch.randn(800, 7, device=device)
    functions = {"reference": reference_integrate, "ours": integrate}
    return {
        name: 1000 * min(timed(lambda f=f: f(states, actions), device)[0] for _ in range(20))
        for name, f in functions.items()
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--full", action="store_true", help="the 305 M predictor, 800 plans")
    parser.add_argument("--compile", action="store_true", help="torch.compile, with CUDA graphs")
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--horizons", type=int, nargs="+", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    options.samples = options.samples or (800 if options.full else 24)
    horizons = options.horizons or ([1] if options.full else [1, 3, 5])
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device on this machine")

    world = make_world(FULL if options.full else MID).to(options.device)
    ours = world.rollout
    if options.compile:
        ours = torch.compile(world.rollout, mode="reduce-overhead")
    print(f"{'horizon':>7} {'':>9} {'p50':>9} {'p95':>9} {'frames/s':>9} {'peak':>5} {'MiB':>7}")
    rows = []
    for horizon in horizons:
        row = compare(world, ours, horizon, options)
        rows.append(row)
        for name in ("reference", "ours"):
            r = row[name]
            print(
                f"{horizon:>7} {name:>9} {r['p50_ms']:>6.0f} ms {r['p95_ms']:>6.0f} ms "
                f"{r['candidate_frames_per_s']:>9.1f} {r['share_of_matmul_peak']:>5.0%} "
                f"{r['peak_memory_mib']:>7.0f}"
            )
        print(
            f"{horizon:>7} {row['ratio_of_best']:.2f} times as fast (target {row['target']}); "
            f"energies differ by {row['largest_relative_energy_difference']:.0e}, "
            f"top-10 overlap {row['top_10_overlap']:.0%}"
        )
    poses = pose_times_ms(options.device)
    print(f"800 poses: {poses['reference']:.1f} ms one by one, {poses['ours']:.2f} ms ours")
    report = {
        "settings": vars(options) | {"horizons": horizons},
        "predictor": FULL if options.full else MID,
        "rows": rows,
        "plan_s": ITERATIONS * rows[0]["ours"]["p50_ms"] / 1000 if options.full else None,
        "integrate_800_poses_ms": poses,
        "load_average": os.getloadavg(),
        "machine": describe_machine(),
    }
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
