"""How much does the per-frame cache save in a rollout?

Baseline: the whole sequence through the predictor again at every step, as the public V-JEPA 2-AC
code does. Ours: `JEPA.rollout`. Same model, same plans, same run, results compared.

    python benchmarks/rollout.py [--device cuda] [--samples 128] [--out rollout.json]
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

import worldmodel
from worldmodel.jepa import JEPA
from worldmodel.pose import integrate
from worldmodel.runs import describe_machine


def uncached(world: JEPA, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
    z, state = latents, proprio
    for t in range(actions.shape[1]):
        ahead = world.predict(z, state, actions[:, : t + 1])
        z = torch.cat([z, ahead[:, -1:]], dim=1)
        state = torch.cat([state, integrate(state[:, -1:], actions[:, t : t + 1])], dim=1)
    return z[:, 1:]


def measure(function: Callable[[], Tensor], repeats: int) -> tuple[dict[str, float], Tensor]:
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        out = function()
        float(out.sum())  # waits for the device
        times.append(1000 * (time.perf_counter() - start))
    quantiles = torch.tensor(times[2:]).quantile(torch.tensor([0.5, 0.95])).tolist()
    return {"p50_ms": quantiles[0], "p95_ms": quantiles[1]}, out


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    world = worldmodel.load_default().to(options.device)
    size = world.image_size
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (1, 1, size, size, 3), dtype=torch.uint8, generator=generator)
    latents = world.encode(frame).repeat(options.samples, 1, 1, 1)
    start = torch.tensor([0.45, 0.0, 0.3, 3.14159, 0.0, 0.0, 0.0], device=options.device)
    proprio = start.expand(options.samples, 1, 7)

    rows = []
    print(f"{'horizon':>7} {'uncached p50':>13} {'cached p50':>11} {'ratio':>6} {'max diff':>9}")
    for horizon in (1, 2, 4, 8):
        noise = torch.randn(options.samples, horizon, 7, generator=generator)
        actions = (0.02 * noise).to(options.device)
        inputs = (world, latents, proprio, actions)
        slow, reference = measure(lambda x=inputs: uncached(*x), options.repeats)
        fast, result = measure(lambda x=inputs[1:]: world.rollout(*x), options.repeats)
        ratio = slow["p50_ms"] / fast["p50_ms"]
        difference = float((reference - result).abs().max())
        rows.append(
            {
                "horizon": horizon,
                "uncached": slow,
                "cached": fast,
                "ratio": ratio,
                "max_difference": difference,
            }
        )
        print(
            f"{horizon:>7} {slow['p50_ms']:>10.1f} ms {fast['p50_ms']:>8.1f} ms {ratio:>6.2f} "
            f"{difference:>9.1e}"
        )
    machine = describe_machine()
    report = {
        "samples": options.samples,
        "device": options.device,
        "rows": rows,
        "machine": machine,
    }
    print(f"{options.samples} plans on {options.device}: {machine['gpu'] or machine['processor']}")
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
