import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from worldmodel.cli import compose
from worldmodel.pipeline import plan_stages
from worldmodel.runs import write_json

FILE = Path(__file__).parents[2] / "benchmarks" / "objectives.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("objectives_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load()


def options(run: Path, **changed) -> Namespace:
    given = {
        "run": run,
        "rows": list(benchmark.ROWS),
        "minutes": 1.0,
        "batch_size": 8,
        "episodes": 6,
        "predictor_steps": 20,
        "measured": 2,
        "device": "cpu",
        "tiny": False,
    }
    return Namespace(**(given | changed))


def test_every_row_is_accepted_by_every_verb_and_differs_in_its_encoder_alone(
    tmp_path: Path,
) -> None:
    chosen = options(tmp_path)
    steps = {row: 100 for row in chosen.rows}
    calls = plan_stages(benchmark.stages(chosen, steps), tmp_path, by_content=False)
    names = {call.name for call in calls}
    assert {f"reach_{row}" for row in chosen.rows} < names
    encoders = {
        row: compose("pretrain", call.overrides)
        for row in chosen.rows
        for call in calls
        if call.name == f"encoder_{row}"
    }
    same = ("data", "encoder", "batch_size", "merge", "schedule", "seed", "image_size")
    for row, config in encoders.items():
        for name in same:
            assert config[name] == encoders["vjepa21"][name], (row, name)
    assert {config.objective._target_ for config in encoders.values()} == {
        compose("pretrain", [f"objective={name}"]).objective._target_
        for name in ("vjepa21", "vjepa", "ijepa", "lewm", "barlow_twins", "vicreg")
    }


def test_steps_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"lewm": 0.5, "state": 0.1}
    monkeypatch.setattr(benchmark, "seconds_of_step", lambda row, options: seconds[row])
    chosen = options(tmp_path, rows=["lewm", "state", "untrained"])
    steps = benchmark.steps_of_rows(chosen)
    assert steps == {"lewm": 120, "state": 600, "untrained": 0}
    seconds["lewm"] = 5.0
    assert benchmark.steps_of_rows(chosen) == steps


def test_the_time_of_a_step_can_be_measured_for_a_row_with_state_reading(tmp_path: Path) -> None:
    assert 0 < benchmark.seconds_of_step("lewm_state", options(tmp_path), repeats=1) < 120


def test_what_is_not_measured_yet_is_left_out(tmp_path: Path) -> None:
    chosen = options(tmp_path, rows=["lewm"])
    calls = plan_stages(benchmark.stages(chosen, {"lewm": 5}), tmp_path, by_content=False)
    by_name = {call.name: call for call in calls}
    assert benchmark.row_of("lewm", calls, 5)["steps"] == 5
    assert "probe_error_cm" not in benchmark.row_of("lewm", calls, 5)
    encoder = by_name["encoder_lewm"]
    provenance = {"probe_error_cm": 1.25, "probe_gripper_error": 0.5}
    (encoder.out / "encoder").mkdir(parents=True)
    write_json(encoder.out / "encoder" / "config.json", {"provenance": provenance})
    line = {"step": 5, "effective_rank": 9.0, "feature_std": 0.5, "feature_cosine": 0.25}
    (encoder.out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_json(encoder.folder / "done.json", {"identity": encoder.identity})
    row = benchmark.row_of("lewm", calls, 5)
    assert (row["probe_error_cm"], row["effective_rank"]) == (1.25, 9.0)
    (cells,) = (line for line in benchmark.table([row]).splitlines() if "lewm" in line)
    assert [cell.strip() for cell in cells.split("|")][1:6] == ["lewm", "5", "1.25", "0.5", "9"]
