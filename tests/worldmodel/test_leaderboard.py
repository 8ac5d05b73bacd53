import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from worldmodel.benchmark import checkpoint_sha256
from worldmodel.cli import compose
from worldmodel.results import wilson_interval
from worldmodel.runs import write_json
from worldmodel.tables import fill_marks

ROOT = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


leaderboard = load(ROOT / "benchmarks" / "leaderboard.py")
page = load(ROOT / "docs" / "make_benchmark.py")


def evaluation(run: Path, *overrides: str, successes: int = 45) -> Path:
    """A run folder of `worldmodel evaluate` as it would be with these settings."""
    run.mkdir()
    config = compose("evaluate", overrides)
    OmegaConf.save(OmegaConf.masked_copy(config, [str(k) for k in config if k != "run"]),
                   run / "config.yaml")  # fmt: skip
    machine = {"processor": "chip", "cores": 2, "gpu": None, "git_commit": "a" * 40}
    rows = [{"policy": "planner", "episodes": 50, "successes": successes}]
    rows += [{"policy": "random", "episodes": 50, "successes": 0}] if config.baselines else []
    report = {"task": config.task, "variation": "none", "seed": config.seed}
    write_json(run / "metrics.json", {**report, "rows": rows, "machine": machine})
    return run


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["task=push", "seed=3", "episodes=7"],
        ["planner=vjepa2_cem"],
        ["planner=random_shooting", "planner.search.num_samples=64", "device='cuda:0'"],
        ["planner.search.num_samples=96", "planner.search.covariance=diagonal"],
    ],
)
def test_the_command_of_a_row_gives_the_settings_again(overrides: list[str]) -> None:
    found = leaderboard.command_of(compose("evaluate", overrides))
    assert compose("evaluate", found) == compose("evaluate", overrides)
    assert len(found) == len(overrides)


def test_settings_that_no_command_gives_are_refused() -> None:
    config = compose("evaluate", [])
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "camera"])
    with pytest.raises(ValueError, match="no command of this version gives the settings"):
        leaderboard.command_of(config)


def test_a_row_takes_the_place_of_the_one_of_the_same_name(tmp_path: Path) -> None:
    rows = leaderboard.add(evaluation(tmp_path / "a", "task=reach"), name="ours", rows=[])
    rows = leaderboard.add(evaluation(tmp_path / "b", "task=push"), name="ours", rows=rows)
    again = evaluation(tmp_path / "c", "task=reach", successes=50)
    rows = leaderboard.add(again, name="ours", rows=rows)
    assert [(row["task"], row["success"]) for row in rows] == [("push", 45), ("reach", 50)]
    for row in rows:
        check_row(row)
    assert "45 of 50" in leaderboard.leaderboard_table(rows)


def test_weights_newer_than_the_evaluation_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"first")
    run = evaluation(tmp_path / "a", f"checkpoint={model}")
    row = leaderboard.row_of(run, name="x")
    assert row["checkpoint_sha256"] == checkpoint_sha256(str(model))
    later = (run / "metrics.json").stat().st_mtime + 60
    os.utime(model / "weights.safetensors", (later, later))
    with pytest.raises(ValueError, match="is newer than the evaluation"):
        leaderboard.row_of(run, name="x")


def test_a_planner_measured_alone_is_refused(tmp_path: Path) -> None:
    run = evaluation(tmp_path / "a", "baselines=false")
    with pytest.raises(ValueError, match="measured with baselines=false"):
        leaderboard.row_of(run, name="x")


def check_row(row: dict[str, Any]) -> None:
    """A row says all it must, and its parts agree."""
    assert tuple(row) == leaderboard.FIELDS
    low, high = wilson_interval(row["success"], row["episodes"])
    assert row["wilson95"] == pytest.approx([low, high], abs=1e-9)
    assert re.fullmatch("[0-9a-f]{64}", row["checkpoint_sha256"])
    program, verb, *overrides = shlex.split(row["command"])
    assert (program, verb) == ("worldmodel", "evaluate")
    config = compose("evaluate", overrides)
    assert (config.task, config.seed) == (row["task"], row["seed"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])


def test_the_rows_of_the_leaderboard_agree_with_themselves() -> None:
    rows = json.loads(leaderboard.FILE.read_text())
    for row in rows:
        check_row(row)
        assert compose("evaluate", shlex.split(row["command"])[2:]).episodes == row["episodes"]
    places = [(row["name"], row["task"], row["variation"]) for row in rows]
    assert len(set(places)) == len(places)


def test_the_benchmark_page_holds_the_measured_numbers() -> None:
    text = page.PAGE.read_text()
    assert fill_marks(text, page.tables(), script=page.SCRIPT) == text, (
        "run: python docs/make_benchmark.py"
    )
