"""Runs the fault table and writes it as JSON. See the package."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmodel.runs import describe_machine, write_json

from . import network_rows, rows
from .fci_rows import ROWS as FCI_ROWS
from .fci_rows import FciRig, why_no_simulator
from .rigs import FCI, IN_PROCESS, TWO_PROCESSES, InProcess, TwoProcesses, begin
from .verdict import Row, Verdict

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
RIGS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    IN_PROCESS: InProcess,
    TWO_PROCESSES: TwoProcesses,
    FCI: FciRig,
}
ROWS: Sequence[Row] = [*rows.ROWS, *network_rows.ROWS, *FCI_ROWS]


def run_row(row: Row, where: str) -> dict[str, Any]:
    """Returns one line of the table; whatever goes wrong is a line that failed."""
    began, kept = time.perf_counter(), []
    try:
        rig = RIGS[where](row.options)
        try:
            if row.armed:
                begin(rig)
            verdict = row.run(rig)
        finally:
            kept = rig.close()
    except Exception as error:  # a row that cannot be run has failed, and the next one is run
        traceback.print_exc()
        verdict = Verdict(f"{type(error).__name__}: {error}", {"could be run": False})
    checks = dict(verdict.checks) | ({"recorded": bool(kept)} if row.recorded else {})
    failed = [name for name, held in checks.items() if not held]
    return {
        "fault": row.fault,
        "against": where,
        "required": row.required,
        "happened": verdict.happened,
        "passed": not failed if verdict.shown else None,
        "failed": failed,
        "reaction_ms": _thousandths(verdict.reaction_s),
        "extra_travel_mm": _thousandths(verdict.extra_m),
        "recorded": kept,
        "seconds": round(time.perf_counter() - began, 1),
    }


def skipped(row: Row, where: str, why: str) -> dict[str, Any]:
    """Returns a line of a row that was not run."""
    return {
        "fault": row.fault,
        "against": where,
        "required": row.required,
        "happened": f"not run: {why}",
        "passed": None,
        "failed": [],
        "reaction_ms": None,
        "extra_travel_mm": None,
        "recorded": [],
        "seconds": 0.0,
    }


def main() -> int:
    """Runs all rows, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of rows")
    parser.add_argument("--against", nargs="*", default=list(RIGS), choices=list(RIGS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    arguments = parser.parse_args()
    lines = []
    no_simulator = why_no_simulator() if FCI in arguments.against else None
    for row in ROWS:
        if arguments.only and not any(word in row.fault for word in arguments.only):
            continue
        for where in row.on:
            if where not in arguments.against:
                continue
            if where == FCI and no_simulator is not None:
                line = skipped(row, where, no_simulator)
            else:
                line = run_row(row, where)
            lines.append(line)
            print(_said(line), flush=True)
    if not lines:
        parser.error("no row has such a name")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "note": arguments.note,
        "machine": describe_machine(),
        "rows": lines,
    }
    write_json(arguments.out, content)
    failed = sum(line["passed"] is False for line in lines)
    print(f"{len(lines)} rows, {failed} failed: {arguments.out}")
    return 1 if failed else 0


def _said(line: Mapping[str, Any]) -> str:
    mark = {True: "pass", False: "FAIL", None: " -- "}[line["passed"]]
    numbers = json.dumps([line["reaction_ms"], line["extra_travel_mm"]])
    failed = f" NOT {line['failed']}" if line["failed"] else ""
    return (
        f"{mark} {line['seconds']:6.1f} s  {line['fault']} [{line['against']}] {numbers} "
        f"{line['happened']}{failed}"
    )


def _thousandths(value: float | None) -> float | None:
    return None if value is None else round(1000 * value, 1)


if __name__ == "__main__":
    sys.exit(main())
