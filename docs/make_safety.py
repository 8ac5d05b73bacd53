"""Puts the fault table and the soak on docs/safety.md, between their marks.

    python docs/make_safety.py

The numbers are those of benchmarks/results/faults.json (`make faults`) and soak.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmodel.tables import fill_marks, markdown_table

ROOT = Path(__file__).parents[1]
SCRIPT = "docs/make_safety.py"
PAGE = ROOT / "docs" / "safety.md"
RESULTS = ROOT / "benchmarks" / "results"
LOG_S = 60.0  # that the simulated arm remembers
NOTHING = "Not measured yet.\n"
HEADER = ["fault", "against", "required", "happened", "", "reaction [ms]", "extra travel [mm]"]
PASSED = {True: "pass", False: "**FAIL**", None: "not shown"}


def tables() -> dict[str, str]:
    """Returns the text of each mark of docs/safety.md."""
    faults, soak = read(RESULTS / "faults.json"), read(RESULTS / "soak.json")
    return {
        "faults": fault_text(faults) if faults else NOTHING,
        "soak": soak_text(soak) if soak else NOTHING,
    }


def read(path: Path) -> Any:
    """Returns the content of a JSON file, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def fault_text(faults: Mapping[str, Any]) -> str:
    """Returns the summary, worst first, and the table."""
    rows = faults["rows"]
    failed = [row for row in rows if row["passed"] is False]
    unshown = [row for row in rows if row["passed"] is None]
    lines = [f"{len(rows)} rows, {len(failed)} failed, {len(unshown)} not shown."]
    lines += [f"**Failed: {name(row)}** ({', '.join(row['failed'])})." for row in failed]
    lines += [longest(rows, "extra_travel_mm", "mm of extra travel")]
    lines += [longest(rows, "reaction_ms", "ms to react")]
    text = "\n".join(f"- {line}" for line in lines)
    return f"{text}\n\n{provenance(faults)}\n\n{markdown_table(HEADER, [cells(r) for r in rows])}"


def longest(rows: list[Mapping[str, Any]], column: str, unit: str) -> str:
    """Returns the worst number of a column, in words."""
    known = [row for row in rows if row[column] is not None and row["passed"] is not None]
    if not known:
        return f"No {unit} measured."
    worst = max(known, key=lambda row: row[column])
    return f"At most {worst[column]:.0f} {unit}: {name(worst)}."


def name(row: Mapping[str, Any]) -> str:
    """Returns which row it is."""
    return f"{row['fault']}, {row['against']}"


def cells(row: Mapping[str, Any]) -> list[object]:
    """Returns a row of the table."""
    numbers = [
        None if row[column] is None else f"{row[column]:.0f}"
        for column in ("reaction_ms", "extra_travel_mm")
    ]
    happened = row["happened"]
    if row["failed"]:
        happened += f"; **not so: {', '.join(row['failed'])}**"
    return [
        row["fault"],
        row["against"],
        row["required"],
        happened,
        PASSED[row["passed"]],
        *numbers,
    ]


def provenance(content: Mapping[str, Any]) -> str:
    """Returns when and where it was measured."""
    machine = content["machine"]
    note = f" {content['note']}" if content["note"] else ""
    return (
        f"{content['date']}, commit `{(machine['git_commit'] or 'none')[:10]}`, "
        f"{machine['processor']}, {machine['cores']} cores, MuJoCo {machine['mujoco']}.{note}"
    )


def soak_text(soak: Mapping[str, Any]) -> str:
    """Returns what the soak counted."""
    rows = [
        ["envelope violations", soak["violations"]],
        ["planned duration", f"{soak['minutes']:g} min"],
        ["time simulated", f"{soak['simulated_s'] / 60:.1f} min"],
        ["targets reached", soak["reached"]],
        ["faults", sum(soak["faults"].values())],
        ["connections opened again", soak["reconnects"]],
        ["nearest to a wall, outside is positive", f"{1000 * soak['outside_m']:.1f} mm"],
        ["fastest", f"{soak['top_speed']:.3f} m/s"],
        ["most memory of the robot's process", _memory(soak["memory"], 1)],
        ["most memory of the planner's process", _memory(soak["memory"], 2)],
    ]
    kinds = ", ".join(f"{count} {kind}" for kind, count in soak["faults"].items())
    return f"{markdown_table(['', ''], rows)}\nFaults: {kinds}.\n\n{provenance(soak)}\n"


def _memory(samples: list[list[float]], column: int) -> str:
    """Returns how much it was when the arm's log of a minute was full, and at the end."""
    full = next((sample for sample in samples if sample[0] > LOG_S), samples[-1])
    last = samples[-1]
    return f"{full[column]:.0f} MiB after {full[0]:.0f} s, {last[column]:.0f} after {last[0]:.0f} s"


if __name__ == "__main__":
    PAGE.write_text(fill_marks(PAGE.read_text(), tables(), script=SCRIPT))
    print(PAGE)
