import csv
import json
from pathlib import Path

import pytest

from worldmodel.benchmark import (
    Targets,
    benchmark,
    checkpoint_sha256,
    judge,
    read_targets,
    results_table,
    table_rows,
    worst_first,
)
from worldmodel.invocations import Executor, Outcome
from worldmodel.results import wilson_interval
from worldmodel.runs import write_json

TARGETS = Targets(
    episodes=100, success={"reach": 0.9, "push": 0.8}, kept={"mild": 0.85}, plan_ms_p95=120.0
)
POLICIES = ("planner", "expert", "oracle", "random", "do_nothing")


def report(
    task: str, variation: str, successes: int, *, episodes: int = 100, p95: float = 100.0
) -> dict:
    """An evaluation's metrics.json in which the planner had so many successes."""
    rows = []
    for policy in POLICIES:
        n = successes if policy == "planner" else 0
        rows.append(
            {
                "policy": policy,
                "episodes": episodes,
                "successes": n,
                "success_rate": n / episodes,
                "wilson95": list(wilson_interval(n, episodes)),
                "final_distance_cm": {"p50": 1.5, "p90": 20.0},
                "steps_to_success": {"p50": 7.0, "p90": 12.0} if n else None,
                "plan_ms": {"p50": 80.0, "p95": p95} if policy == "planner" else None,
                "encode_ms": None,
            }
        )
    machine = {"processor": "p", "cores": 2, "gpu": None, "git_commit": "c"}
    return {"task": task, "variation": variation, "rows": rows, "machine": machine}


def rows_of(*reports: dict) -> list[dict]:
    return [row for item in reports for row in table_rows(item)]


def test_targets_are_judged_and_the_worst_comes_first() -> None:
    verdicts = judge(
        rows_of(
            report("reach", "none", 95, p95=121.0),
            report("reach", "mild", 80),
            report("push", "none", 40),
            report("push", "mild", 36),
        ),
        TARGETS,
    )
    assert [(v.what, v.met) for v in verdicts[:3]] == [
        ("success, push", False),
        ("success kept at mild, reach", False),
        ("planning time p95, reach none", False),
    ]
    assert verdicts[1].measured == pytest.approx(100 * 80 / 95)
    assert {v.what for v in verdicts if v.met} == {
        "success, reach",
        "success kept at mild, push",
        "planning time p95, reach mild",
        "planning time p95, push none",
        "planning time p95, push mild",
    }


def test_a_target_that_is_just_reached_is_met() -> None:
    verdicts = judge(rows_of(report("reach", "none", 90, p95=120.0)), TARGETS)
    assert {v.what: v.met for v in verdicts if v.met is not None} == {
        "success, reach": True,
        "planning time p95, reach none": True,
    }


def test_too_few_episodes_are_no_measurement() -> None:
    verdicts = judge(rows_of(report("reach", "none", 99, episodes=99)), TARGETS)
    success = next(v for v in verdicts if v.what == "success, reach")
    assert success.measured is None and success.met is None


def test_the_projects_targets_name_tasks_and_fractions() -> None:
    targets = read_targets()
    assert targets.success["pick_and_place"] == 0.75 and targets.episodes == 100
    assert all(0 < share <= 1 for share in [*targets.success.values(), *targets.kept.values()])


def test_the_summary_begins_with_the_worst() -> None:
    rows = rows_of(report("reach", "none", 95), report("push", "mild", 7))
    assert worst_first(rows) == "push mild 7 %, reach none 95 %"


class KnownWorld(Executor):
    """Writes what evaluations would, all done but those of the task push."""

    def run(self, invocations, *, say=print) -> Outcome:  # type: ignore[no-untyped-def]
        statuses = {}
        for call in invocations:
            task, variation = call.folder.name.split("-")
            statuses[call.folder] = "stopped" if task == "push" else "done"
            call.out.mkdir(parents=True)
            assert {"episodes=100", f"task={task}", "seed=0"} < set(call.overrides)
            write_json(call.out / "metrics.json", report(task, variation, 95))
        return Outcome(statuses)


def test_the_tables_are_written_and_hold_the_same_numbers(tmp_path: Path) -> None:
    result = benchmark(
        checkpoint=None,
        tasks=["reach", "push"],
        variations=["none", "mild"],
        settings={"episodes": 100, "seed": 0},
        run=tmp_path,
        executor=KnownWorld(),
        targets=TARGETS,
    )
    assert result.outcome.exit_status == 3  # push is still to be done
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["checkpoint_sha256"] == checkpoint_sha256(None)
    assert [(row["task"], row["variation"], row["policy"]) for row in content["rows"]] == [
        ("reach", variation, policy) for variation in ("none", "mild") for policy in POLICIES
    ]
    assert results_table(content["rows"]) in (tmp_path / "benchmark.md").read_text()
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["successes"] == "95" and first["plan_ms_p95"] == "100.0"
    assert float(first["wilson95_low"]) == content["rows"][0]["wilson95"][0]
    page = (tmp_path / "benchmark.html").read_text()
    assert page.count("<tr>") == 1 + 10 + 1 + len(result.verdicts)
    assert "95 of 100" in page


def test_other_weights_are_not_the_same_benchmark(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "weights.safetensors"
    weights.parent.mkdir()
    identities = []

    class Recorder(KnownWorld):
        def run(self, invocations, *, say=print) -> Outcome:  # type: ignore[no-untyped-def]
            identities.extend(call.identity for call in invocations)
            return Outcome({call.folder: "stopped" for call in invocations})

    for content in (b"a", b"b", b"a"):
        weights.write_bytes(content)
        benchmark(
            checkpoint=str(weights.parent),
            tasks=["reach"],
            variations=["none"],
            settings={},
            run=tmp_path / "run",
            executor=Recorder(),
            targets=TARGETS,
        )
    assert identities[0] == identities[2] != identities[1]


def test_a_checkpoint_without_weights_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no weights at nowhere"):
        checkpoint_sha256("nowhere")
