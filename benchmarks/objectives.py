"""Which objective of pretraining makes the encoder that plans best, at equal cost?

    python benchmarks/objectives.py --run runs/objectives --minutes 10 --out objectives.json

Every row trains the same encoder, from the same weights, on the same recordings, for as many steps
as fit into the same processor time (measured first, once), then the same predictor on its latents.
Then: the error of linear probes, the robot-free measures of `worldmodel validate` on recordings
that nothing was trained on, and reach. Stages that are done are not made again, so the same command
goes on where it was stopped; `--tiny` shows in minutes that all of it works, and nothing else.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from worldmodel.cli import compose
from worldmodel.clips import Clips
from worldmodel.invocations import Executor, Invocation
from worldmodel.objectives.state_reading import StateReading
from worldmodel.pipeline import Stage, as_overrides, plan_stages
from worldmodel.pretraining import Pretraining, Term
from worldmodel.runs import describe_machine, write_json
from worldmodel.tables import markdown_table
from worldmodel.training import autocast, make_optimizer, select_device

# Rows: an objective and its weight, and the weight of state reading beside it.
ROWS: dict[str, dict[str, Any]] = {
    "vjepa21": {"objective": "vjepa21"},
    "vjepa": {"objective": "vjepa"},
    "ijepa": {"objective": "ijepa"},
    "lewm": {"objective": "lewm"},
    "lewm_4x4": {"objective": "lewm", "objective.cells": 4},
    "barlow_twins": {"objective": "barlow_twins"},
    "vicreg": {"objective": "vicreg"},
    "state": {"objective_weight": 0.0, "state_weight": 4.0},
    "vjepa21_state": {"objective": "vjepa21", "state_weight": 4.0},
    "lewm_state": {"objective": "lewm", "state_weight": 4.0},
    "untrained": {"objective": "vjepa21"},
}
ENCODER = {"encoder": "conv_mini", "merge": 2}
LEVELS = {"objective.levels": [1, 3]}  # of the encoder's four blocks
RATES = {"name": "cosine", "peak": 1e-3, "final": 1e-5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of pretraining, for each row")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=1500, help="recorded for training")
    parser.add_argument("--predictor-steps", type=int, default=1500)
    parser.add_argument("--measured", type=int, default=50, help="episodes of reach")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the rows")
    options = parser.parse_args()
    if options.tiny:
        options.episodes, options.predictor_steps, options.measured = 6, 3, 1
        options.batch_size = 8

    options.run.mkdir(parents=True, exist_ok=True)
    steps = steps_of_rows(options)
    calls = plan_stages(stages(options, steps), options.run, by_content=False)
    outcome = Executor(show=True).run(calls)
    rows = [row_of(name, calls, steps[name]) for name in options.rows]
    report = {
        "settings": {key: str(value) for key, value in vars(options).items()},
        "rows": rows,
        "machine": describe_machine(),
    }
    write_json(options.out or options.run / "objectives.json", report)
    print(table(rows))
    raise SystemExit(outcome.exit_status)


def pretrain_settings(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a row but for data and length."""
    levels = LEVELS if ROWS[row].get("objective", "vjepa21") == "vjepa21" else {}
    common = {"batch_size": options.batch_size, "device": options.device}
    return {**ENCODER, **levels, **common, **ROWS[row]}


def steps_of_rows(options: argparse.Namespace) -> dict[str, int]:
    """How many steps of each row fit into the time; measured once, and kept in the run folder."""
    file = options.run / "steps.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for row in options.rows:
        if row == "untrained":
            known[row] = 0
        elif row not in known:
            known[row] = (
                3
                if options.tiny
                else max(1, round(60 * options.minutes / seconds_of_step(row, options)))
            )
            print(f"{row}: {known[row]} steps", flush=True)
    write_json(file, known)
    return known


def seconds_of_step(row: str, options: argparse.Namespace, repeats: int = 7) -> float:
    """Median time of a training step on made-up frames (processor time of a CPU)."""
    config = compose("pretrain", as_overrides(pretrain_settings(row, options)))
    device = select_device(config.device)
    clips = made_up_clips()
    encoder = instantiate(config.encoder)
    side = clips.image_size // encoder.patch_size
    objective = instantiate(config.objective)(encoder=encoder, grid_size=(side, side))
    terms = {"objective": Term(objective, config.objective_weight, config.batch_size)}
    if config.state_weight:
        reading = StateReading(encoder=encoder, grid_size=(side, side), merge=config.merge)
        terms["state"] = Term(reading, config.state_weight, config.batch_size)
    model = Pretraining(encoder=encoder, terms=terms, clips=clips).to(device)
    optimizer = make_optimizer([model], weight_decay=0.04)
    seconds = []
    for step in range(repeats):
        generator = torch.Generator().manual_seed(step)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        start = clock()
        batch = model.load(model.draw(np.random.default_rng(step), generator))
        with autocast(device):
            loss = model({name: values.to(device) for name, values in batch.items()})["loss"]
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the device
        seconds.append(clock() - start)
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    return float(np.median(seconds)) / cores


def made_up_clips() -> Clips:
    """Noise in place of recordings, of their size."""
    rng = np.random.default_rng(0)
    return Clips(
        frames=[rng.integers(0, 256, (40, 128, 128, 3), dtype=np.uint8) for _ in range(8)],
        proprio=[rng.uniform(0, 1, (40, 7)).astype(np.float32) for _ in range(8)],
        times=[np.arange(40) / 4 for _ in range(8)],
        ids=list(range(8)),
        hz=4.0,
    )


def stages(options: argparse.Namespace, steps: dict[str, int]) -> list[Stage]:
    """All calls: recordings, and for each row an encoder, latents, a predictor, and measures."""
    mix = {
        "tasks": {"reach": 0.5, "pick_and_place": 0.5},
        "behaviours": {"scripted": 0.1, "noisy": 0.3, "explore": 0.2, "play": 0.4},
        "steps": 8 if options.tiny else 40,
    }
    held_out = 4 if options.tiny else 60
    found = [
        Stage("recordings", "collect", {**mix, "episodes": options.episodes, "seed": 1}),
        Stage("held_out", "collect", {**mix, "episodes": held_out, "seed": 900_000}),
    ]
    for row in options.rows:
        warmup = steps[row] // 20
        encoder = {
            "data": "{recordings}",
            **pretrain_settings(row, options),
            "schedule": {**RATES, "steps": steps[row], "warmup_steps": warmup},
        }
        seen = {
            "encoder_checkpoint": f"{{encoder_{row}}}/encoder",
            "encode_precision": "auto",
            "device": options.device,
        }
        length = {"steps": options.predictor_steps, "warmup_steps": options.predictor_steps // 20}
        predictor = {
            "data": "{recordings}",
            **seen,
            "cache": f"{{latents_{row}}}",
            "predictor": "small",
            "strides": [1, 2, 3] if options.tiny else [1, 1, 1, 2, 2, 3, 4, 6, 8],
            "schedule": {**RATES, **length},
        }
        measures = {"checkpoint": f"{{predictor_{row}}}/model", "device": options.device}
        few = {"candidates": 4, "windows": 16, "horizon": 3}
        few |= {"searches": 8, "samples": 8, "iterations": 2}
        validate = {"data": "{held_out}", **measures, **(few if options.tiny else {})}
        quick = {"steps": 2, "workers": 1} if options.tiny else {}
        reach = {**measures, "task": "reach", "episodes": options.measured, "baselines": False}
        reach |= {"seed": 20, "videos": 1, "latency_episodes": 1, **quick}
        found += [
            Stage(f"encoder_{row}", "pretrain", encoder),
            Stage(f"latents_{row}", "encode", {"data": "{recordings}", **seen}),
            Stage(f"predictor_{row}", "train", predictor),
            Stage(f"validate_{row}", "validate", validate),
            Stage(f"reach_{row}", "evaluate", reach),
        ]
    return found


def row_of(name: str, calls: tuple[Invocation, ...], steps: int) -> dict[str, Any]:
    """What was measured of a row; what is missing is None."""
    out = {call.name: call.out for call in calls if call.done}
    row: dict[str, Any] = {"name": name, **ROWS[name], "steps": steps}
    encoder, validation, reach = (
        out.get(f"{what}_{name}") for what in ("encoder", "validate", "reach")
    )
    if encoder is not None:
        made = json.loads((encoder / "encoder" / "config.json").read_text())["provenance"]
        row |= {key: made[key] for key in ("probe_error_cm", "probe_gripper_error")}
        lines = (encoder / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1]) if lines else {}
        row |= {key: last.get(key) for key in ("effective_rank", "feature_std", "feature_cosine")}
    if validation is not None:
        found = json.loads((validation / "validation.json").read_text())
        row |= {key: found[key] for key in ("identity_ratio", "shuffled_action_ratio")}
        row |= {"top1": found["action_ranking"]["top1"], "argmin_cm": found["argmin_error_cm"]}
    if reach is not None:
        (planner,) = json.loads((reach / "metrics.json").read_text())["rows"]
        row |= {"reach": planner["successes"], "episodes": planner["episodes"]}
        row |= {"wilson95": planner["wilson95"]}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    names = {
        "name": "objective",
        "steps": "steps",
        "probe_error_cm": "probe: hand [cm]",
        "probe_gripper_error": "probe: gripper",
        "effective_rank": "effective rank",
        "identity_ratio": "error / copying",
        "top1": "true action first",
        "argmin_cm": "lowest energy off by [cm]",
        "reach": "reach",
    }

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    body = [[cell(row.get(key)) for key in names] for row in rows]
    for cells, row in zip(body, rows, strict=True):
        if "reach" in row:
            cells[-1] = f"{row['reach']} of {row['episodes']}"
    return markdown_table(list(names.values()), body)


if __name__ == "__main__":
    main()
