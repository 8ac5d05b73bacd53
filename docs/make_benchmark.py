"""Puts the measured tables on docs/benchmark.md and README.md, between their marks.

    python docs/make_benchmark.py

The numbers are those of benchmarks/leaderboard.json and of files in benchmarks/results:
benchmark.json, benchmark_more.json and benchmark_strong.json, copied there from the run folders of
`worldmodel benchmark`, and sweep.json and planning_sweep.json from those of `worldmodel sweep`, the
latter of the shipped model.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmodel.benchmark import results_table, targets_table, worst_first
from worldmodel.sweep import sweep_table
from worldmodel.tables import fill_marks, markdown_table, percent

ROOT = Path(__file__).parents[1]
SCRIPT = "docs/make_benchmark.py"
PAGE = ROOT / "docs" / "benchmark.md"
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEYOND = ("benchmark_more.json", "benchmark_strong.json")  # tasks and variation without a target
LEADERBOARD = ROOT / "benchmarks" / "leaderboard.json"
NOTHING = "Not measured yet.\n"


def tables() -> dict[str, str]:
    """Returns the text of each mark of docs/benchmark.md."""
    benchmark, rows = read(RESULTS / "benchmark.json"), read(LEADERBOARD)
    sweep, planning = read(RESULTS / "sweep.json"), read(RESULTS / "planning_sweep.json")
    return {
        "summary": summary(benchmark) if benchmark else NOTHING,
        "results": results_table(benchmark["rows"]) if benchmark else NOTHING,
        "targets": targets_table(benchmark["targets"]) if benchmark else NOTHING,
        "beyond": beyond_text([read(RESULTS / name) for name in BEYOND]),
        "planning_sweep": sweep_text(planning) if planning else NOTHING,
        "sweep": sweep_text(sweep) if sweep else NOTHING,
        "leaderboard": leaderboard().leaderboard_table(rows) if rows else NOTHING,
    }


def readme_tables() -> dict[str, str]:
    """Returns the text of each mark of README.md."""
    benchmark = read(RESULTS / "benchmark.json")
    return {"success": success_text(benchmark) if benchmark else NOTHING}


def read(path: Path) -> Any:
    """Returns the content of a JSON file, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def summary(benchmark: dict[str, Any]) -> str:
    """Returns what was measured, where, and the worst numbers first."""
    return (
        f"Success of the planner, worst first: {worst_first(benchmark['rows'])}.\n\n"
        f"{provenance(benchmark)}\n"
    )


def beyond_text(benchmarks: Sequence[dict[str, Any] | None]) -> str:
    """Returns planner and expert of all that was measured, the worst numbers first."""
    found = [benchmark for benchmark in benchmarks if benchmark is not None]
    if not found:
        return NOTHING
    rows = [row for benchmark in found for row in benchmark["rows"]]
    rows = [row for row in rows if row["policy"] in ("planner", "expert")]
    return f"Worst first: {worst_first(rows)}.\n\n{results_table(rows)}\n{provenance(found[0])}\n"


def provenance(benchmark: dict[str, Any]) -> str:
    """Returns which weights were measured, with which code, where."""
    return f"Weights `{benchmark['checkpoint_sha256'][:12]}`. {measured_at(benchmark['machine'])}"


def measured_at(machine: Mapping[str, Any]) -> str:
    """Returns with which code something was measured, and where."""
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return f"Commit `{(machine['git_commit'] or 'none')[:10]}`, {where}."


def success_text(benchmark: dict[str, Any]) -> str:
    """Returns the table of successes by task, and how long a decision takes."""
    rows = benchmark["rows"]
    timed = [row for row in rows if row["policy"] == "planner" and row["plan_ms"] is not None]
    lines = [success_table(rows)]
    if timed:
        slowest = max(timed, key=lambda row: row["plan_ms"]["p95"])
        lines.append(
            f"Planning takes {slowest['plan_ms']['p50']:.0f} ms in the median and "
            f"{slowest['plan_ms']['p95']:.0f} ms at the 95th percentile in the slowest row "
            f"({slowest['task']}, {slowest['variation']}).\n"
        )
    return "\n".join([*lines, f"{provenance(benchmark)}\n"])


def success_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a row for each task: the planner, plain and varied, beside the other policies.

    Args:
        rows: Of benchmark.json.
    """
    found = {(row["task"], row["variation"], row["policy"]): row for row in rows}
    varied = [name for name in dict.fromkeys(row["variation"] for row in rows) if name != "none"]
    others = [name for name in dict.fromkeys(row["policy"] for row in rows) if name != "planner"]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        planner = found.get((task, "none", "planner"))
        cells: list[str | None] = [task, _counted(planner), None]
        if planner is not None:
            low, high = planner["wilson95"]
            cells[-1] = f"{percent(low)} to {percent(high)}"
        cells += [_counted(found.get((task, name, "planner"))) for name in varied]
        cells += [_counted(found.get((task, "none", name))) for name in others]
        lines.append(cells)
    header = ["task", "planner", "95 % Wilson", *(f"planner, {name}" for name in varied)]
    return markdown_table([*header, *(name.replace("_", " ") for name in others)], lines)


def _counted(row: Mapping[str, Any] | None) -> str | None:
    return None if row is None else f"{row['successes']} of {row['episodes']}"


def sweep_text(sweep: dict[str, Any]) -> str:
    """Returns the table of the ablations, and which of them have not been measured."""
    missing = f"\nNot measured yet: {', '.join(sweep['missing'])}.\n" if sweep["missing"] else ""
    return f"{sweep_table(sweep['comparisons'])}{missing}\n{measured_at(sweep['machine'])}\n"


def leaderboard() -> Any:
    """Returns the module benchmarks/leaderboard.py, which belongs to no package."""
    path = ROOT / "benchmarks" / "leaderboard.py"
    spec = importlib.util.spec_from_file_location("leaderboard", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    for path, texts in ((PAGE, tables()), (README, readme_tables())):
        path.write_text(fill_marks(path.read_text(), texts, script=SCRIPT))
        print(path)
