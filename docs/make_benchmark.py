"""Puts the measured tables on docs/benchmark.md, between their marks; all else is by hand.

    python docs/make_benchmark.py

The numbers are those of benchmarks/results/benchmark.json and sweep.json, copied there from the run
folders of `worldmodel benchmark` and `worldmodel sweep`, and of benchmarks/leaderboard.json.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from worldmodel.benchmark import results_table, targets_table, worst_first
from worldmodel.sweep import sweep_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmark.md"
RESULTS = ROOT / "benchmarks" / "results"
LEADERBOARD = ROOT / "benchmarks" / "leaderboard.json"
NOTHING = "Not measured yet.\n"


def tables() -> dict[str, str]:
    """Returns the text of each mark."""
    benchmark, sweep = read(RESULTS / "benchmark.json"), read(RESULTS / "sweep.json")
    rows = read(LEADERBOARD)
    return {
        "summary": summary(benchmark) if benchmark else NOTHING,
        "results": results_table(benchmark["rows"]) if benchmark else NOTHING,
        "targets": targets_table(benchmark["targets"]) if benchmark else NOTHING,
        "sweep": sweep_text(sweep) if sweep else NOTHING,
        "leaderboard": leaderboard().leaderboard_table(rows) if rows else NOTHING,
    }


def read(path: Path) -> Any:
    """Returns the content of a JSON file, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def summary(benchmark: dict[str, Any]) -> str:
    """Returns what was measured, where, and the worst numbers first."""
    machine = benchmark["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return (
        f"Success of the planner, worst first: {worst_first(benchmark['rows'])}.\n\n"
        f"Weights `{benchmark['checkpoint_sha256'][:12]}`, commit "
        f"`{(machine['git_commit'] or 'none')[:10]}`, {where}.\n"
    )


def sweep_text(sweep: dict[str, Any]) -> str:
    """Returns the table of the ablations, and which of them have not been measured."""
    missing = f"\nNot measured yet: {', '.join(sweep['missing'])}.\n" if sweep["missing"] else ""
    return sweep_table(sweep["comparisons"]) + missing


def leaderboard() -> Any:
    """Returns the module benchmarks/leaderboard.py, which belongs to no package."""
    path = ROOT / "benchmarks" / "leaderboard.py"
    spec = importlib.util.spec_from_file_location("leaderboard", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(page: str, texts: dict[str, str]) -> str:
    """Returns the page with the text of each mark replaced.

    Raises:
        ValueError: The page lacks a mark.
    """
    for name, text in texts.items():
        begin, end = f"<!-- {name}: docs/make_benchmark.py -->\n", f"<!-- /{name} -->"
        if begin not in page or end not in page:
            raise ValueError(f"docs/benchmark.md needs the lines {begin.strip()} and {end}")
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page = pattern.sub(lambda _, b=begin, t=text, e=end: f"{b}\n{t}\n{e}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(), tables()))
    print(PAGE)
