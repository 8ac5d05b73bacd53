"""The benchmark: every task and variation evaluated, one table, and which targets are met."""

import hashlib
import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from worldmodel.checkpoint import WEIGHTS_FILE, folder_of
from worldmodel.invocations import Executor, Outcome
from worldmodel.pipeline import Stage, plan_stages
from worldmodel.runs import write_json
from worldmodel.tables import markdown_table, percent, write_csv

TARGETS_FILE = "benchmark/targets.yaml"
HEADER = (
    "task",
    "variation",
    "policy",
    "success",
    "95 %",
    "final distance p50 / p90",
    "steps p50",
    "plan p50 / p95",
)


@dataclass(frozen=True)
class Targets:
    """What the shipped model is meant to reach.

    Attributes:
        episodes: Episodes a task must have for its number to count.
        success: Success rate by task, variation "none".
        kept: Share of the success at "none" that must be left, by variation.
        plan_ms_p95: 95th percentile of the planning time of a step [ms], for every task.
    """

    episodes: int
    success: Mapping[str, float]
    kept: Mapping[str, float]
    plan_ms_p95: float


@dataclass(frozen=True)
class Verdict:
    """One target beside what was measured.

    Attributes:
        what: What is measured.
        measured: The number; None where it was not measured, or on too few episodes.
        wanted: The target.
        unit: "%" or "ms".
        met: Whether it is met; None where nothing was measured.
    """

    what: str
    measured: float | None
    wanted: float
    unit: str
    met: bool | None


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark has found.

    Attributes:
        rows: One for each task, variation and policy, as `benchmark.json` holds them.
        verdicts: The targets, missed ones first.
        outcome: What became of each evaluation.
    """

    rows: tuple[dict[str, Any], ...]
    verdicts: tuple[Verdict, ...]
    outcome: Outcome


def benchmark(
    *,
    checkpoint: str | None,
    tasks: Sequence[str],
    variations: Sequence[str],
    settings: Mapping[str, Any],
    run: Path,
    executor: Executor,
    targets: Targets,
    say: Callable[[str], None] = print,
) -> BenchmarkResult:
    """Evaluates what is not done yet and writes benchmark.json, .csv, .md and .html.

    Args:
        checkpoint: World model; None is the shipped one.
        tasks: Names of the tasks.
        variations: Names of the variations.
        settings: Other settings of `worldmodel evaluate`, the same for all.
        run: Folder of the benchmark; an evaluation lies in `<task>-<variation>`.
        executor: How the evaluations are run, and for how long.
        targets: What the numbers are held to.
        say: Takes the lines that tell what happens.

    Raises:
        ValueError: `run` holds evaluations with other settings or of other weights.
    """
    sha256 = checkpoint_sha256(checkpoint)
    where = {} if checkpoint is None else {"checkpoint": checkpoint}
    stages = [
        Stage(f"{task}-{variation}", "evaluate", {
            "task": task, "variation": variation, **where, **settings
        })
        for task in tasks
        for variation in variations
    ]  # fmt: skip
    calls = plan_stages(stages, run, by_content=False, made_from=sha256)
    outcome = executor.run(calls, say=say)
    reports = [
        json.loads((call.out / "metrics.json").read_text())
        for call in calls
        if outcome.statuses[call.folder] == "done"
    ]
    rows = tuple(row for report in reports for row in table_rows(report))
    result = BenchmarkResult(rows, judge(rows, targets), outcome)
    write_benchmark(
        result,
        run,
        about={
            "checkpoint": checkpoint or "shipped",
            "checkpoint_sha256": sha256,
            "settings": dict(settings),
            "machine": reports[0]["machine"] if reports else None,
        },
    )
    return result


def read_targets() -> Targets:
    """Returns the targets that the project has set itself."""
    text = files("worldmodel.configs").joinpath(TARGETS_FILE).read_text(encoding="utf-8")
    return Targets(**yaml.safe_load(text))


def checkpoint_sha256(checkpoint: str | None) -> str:
    """Returns the SHA-256 of a world model's weights file.

    Args:
        checkpoint: Folder or file; None is the shipped one.

    Raises:
        FileNotFoundError: There is none.
    """
    path = folder_of("default" if checkpoint is None else checkpoint)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no weights at {file}; name the folder of a world model, such as runs/.../model"
        )
    with file.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def table_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of an evaluation's metrics.json, each with its task and variation."""
    place = {"task": report["task"], "variation": report["variation"]}
    return [{**place, **row} for row in report["rows"]]


def judge(rows: Sequence[Mapping[str, Any]], targets: Targets) -> tuple[Verdict, ...]:
    """Returns the targets beside the planner's rows: missed first, the furthest from it foremost.

    A success rate on fewer episodes than the targets ask for does not count.
    """
    planner = {(row["task"], row["variation"]): row for row in rows if row["policy"] == "planner"}
    rates = {
        place: row["success_rate"]
        for place, row in planner.items()
        if row["episodes"] >= targets.episodes
    }
    verdicts = [
        _at_least(f"success, {task}", rates.get((task, "none")), wanted)
        for task, wanted in targets.success.items()
    ]
    for variation, share in targets.kept.items():
        for task in targets.success:
            none, varied = rates.get((task, "none")), rates.get((task, variation))
            kept = varied / none if none and varied is not None else None
            verdicts.append(_at_least(f"success kept at {variation}, {task}", kept, share))
    for (task, variation), row in planner.items():
        if row["plan_ms"] is not None:
            p95 = row["plan_ms"]["p95"]
            met = p95 <= targets.plan_ms_p95
            what = f"planning time p95, {task} {variation}"
            verdicts.append(Verdict(what, p95, targets.plan_ms_p95, "ms", met))
    return tuple(sorted(verdicts, key=_shortfall))


def _at_least(what: str, rate: float | None, wanted: float) -> Verdict:
    measured = None if rate is None else 100 * rate
    met = None if rate is None else rate >= wanted
    return Verdict(what, measured, 100 * wanted, "%", met)


def _shortfall(verdict: Verdict) -> tuple[int, float]:
    order = {False: 0, None: 1, True: 2}[verdict.met]
    if verdict.measured is None:
        return order, 0.0
    sign = 1 if verdict.unit == "%" else -1  # a rate is to be high, a time low
    return order, sign * (verdict.measured / verdict.wanted - 1)


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the Markdown table of a benchmark's rows."""
    return markdown_table(HEADER, [_cells(row) for row in rows])


def targets_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Returns the Markdown table of a benchmark's verdicts."""
    words = {True: "met", False: "missed", None: "not measured"}
    return markdown_table(
        ("target", "measured", "wanted", "verdict"),
        [
            (
                v["what"],
                None if v["measured"] is None else f"{v['measured']:.3g} {v['unit']}",
                f"{'at least' if v['unit'] == '%' else 'at most'} {v['wanted']:.3g} {v['unit']}",
                words[v["met"]],
            )
            for v in verdicts
        ],
    )


def worst_first(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the planner's success rates in one line, the worst first."""
    planner = [row for row in rows if row["policy"] == "planner"]
    planner.sort(key=lambda row: (row["success_rate"], row["task"], row["variation"]))
    return ", ".join(
        f"{row['task']} {row['variation']} {percent(row['success_rate'])}" for row in planner
    )


def _cells(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    low, high = row["wilson95"]
    final, steps, plan = row["final_distance_cm"], row["steps_to_success"], row["plan_ms"]
    return (
        row["task"],
        row["variation"],
        row["policy"],
        f"{row['successes']} of {row['episodes']}",
        f"{percent(low)} to {percent(high)}",
        f"{final['p50']:.1f} / {final['p90']:.1f} cm",
        None if steps is None else f"{steps['p50']:g}",
        None if plan is None else f"{plan['p50']:.0f} / {plan['p95']:.0f} ms",
    )


def write_benchmark(result: BenchmarkResult, run: Path, *, about: Mapping[str, Any]) -> None:
    """Writes benchmark.json, benchmark.csv, benchmark.md and benchmark.html."""
    verdicts = [asdict(verdict) for verdict in result.verdicts]
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "benchmark.json", {**about, "targets": verdicts, "rows": list(result.rows)})
    flat = [_flat(row) for row in result.rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    write_csv(run / "benchmark.csv", columns, [[row.get(c) for c in columns] for row in flat])
    (run / "benchmark.md").write_text(
        f"Worst first: {worst_first(result.rows)}.\n\n"
        f"{results_table(result.rows)}\n{targets_table(verdicts)}"
    )
    (run / "benchmark.html").write_text(_page(result, about))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row without nesting: `plan_ms: {p50: 1}` as `plan_ms_p50: 1`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}_{part}": number for part, number in value.items()}
        elif key == "wilson95":
            flat |= {"wilson95_low": value[0], "wilson95_high": value[1]}
        elif value is not None:
            flat[key] = value
    return flat


def _page(result: BenchmarkResult, about: Mapping[str, Any]) -> str:
    """Returns a page of its own: both tables, nothing loaded from elsewhere."""

    def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        def line(cells: Sequence[object], tag: str) -> str:
            texts = ["-" if cell is None else html.escape(str(cell)) for cell in cells]
            return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"

        lines = [line(header, "th"), *(line(row, "td") for row in rows)]
        return f"<table>{''.join(lines)}</table>"

    words = {True: "met", False: "missed", None: "not measured"}
    verdicts = [
        (v.what, None if v.measured is None else f"{v.measured:.3g} {v.unit}",
         f"{v.wanted:.3g} {v.unit}", words[v.met])
        for v in result.verdicts
    ]  # fmt: skip
    return "\n".join(
        [
            "<!doctype html><meta charset=utf-8><title>benchmark</title>",
            "<style>body{font:15px system-ui;margin:2em}table{border-collapse:collapse;margin:1em "
            "0}td,th{border-bottom:1px solid #ddd;padding:.3em .8em;text-align:left}</style>",
            f"<h1>Benchmark of {html.escape(str(about['checkpoint']))}</h1>",
            f"<p>Weights {about['checkpoint_sha256'][:16]}. Worst first: "
            f"{html.escape(worst_first(result.rows))}.</p>",
            table(HEADER, [_cells(row) for row in result.rows]),
            table(("target", "measured", "wanted", "verdict"), verdicts),
        ]
    )
