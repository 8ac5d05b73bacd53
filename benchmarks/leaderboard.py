"""The leaderboard: one row an evaluation, each with the command that made it.

    python benchmarks/leaderboard.py add runs/benchmark/reach-none/out --name "shipped model"
    python benchmarks/leaderboard.py render

`add` takes the run folder of `worldmodel evaluate` and refuses one whose settings the command in
the row would not give again, or whose weights have changed since. `render` prints the table.
"""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from worldmodel.benchmark import checkpoint_sha256
from worldmodel.checkpoint import DEFAULT_CHECKPOINT, WEIGHTS_FILE
from worldmodel.cli import compose
from worldmodel.pipeline import as_overrides
from worldmodel.results import wilson_interval
from worldmodel.tables import markdown_table, percent
from worldmodel.verbs import UserError

FILE = Path(__file__).with_name("leaderboard.json")
PLANNERS = Path(__file__).parents[1] / "configs" / "planner"
FIELDS = (
    "name",
    "task",
    "variation",
    "success",
    "wilson95",
    "episodes",
    "seed",
    "command",
    "commit",
    "checkpoint_sha256",
    "machine",
    "date",
)

Row = dict[str, Any]


def add(run: Path, *, name: str, rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with that of an evaluation added; the same task under the same name goes.

    Raises:
        ValueError: No command repeats the run, or its weights have changed since.
    """
    new = row_of(run, name=name)
    place = (new["name"], new["task"], new["variation"])
    kept = [row for row in rows if (row["name"], row["task"], row["variation"]) != place]
    order = ("task", "variation", "name")
    return sorted([*kept, new], key=lambda row: tuple(row[field] for field in order))


def row_of(run: Path, *, name: str) -> Row:
    """Returns the row of an evaluation's run folder."""
    report = json.loads((run / "metrics.json").read_text())
    policies = {row["policy"]: row for row in report["rows"]}
    if "random" not in policies:
        raise ValueError(
            f"{run} was measured with baselines=false; a row needs the other policies beside it: "
            "evaluate again with baselines=true"
        )
    planner = policies["planner"]
    settings = OmegaConf.load(run / "config.yaml")
    assert isinstance(settings, DictConfig)
    measured = datetime.fromtimestamp((run / "metrics.json").stat().st_mtime, tz=UTC)
    check_weights(settings.checkpoint, measured)
    machine = report["machine"]
    return {
        "name": name,
        "task": report["task"],
        "variation": report["variation"],
        "success": planner["successes"],
        "wilson95": list(wilson_interval(planner["successes"], planner["episodes"])),
        "episodes": planner["episodes"],
        "seed": report["seed"],
        "command": shlex.join(["worldmodel", "evaluate", *command_of(settings)]),
        "commit": machine["git_commit"],
        "checkpoint_sha256": checkpoint_sha256(settings.checkpoint),
        "machine": machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores",
        "date": measured.date().isoformat(),
    }


def check_weights(checkpoint: str | None, measured: datetime) -> None:
    """Refuses weights that were written after they are said to have been measured."""
    path = DEFAULT_CHECKPOINT if checkpoint is None else Path(checkpoint)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if file.exists() and file.stat().st_mtime > measured.timestamp():
        raise ValueError(
            f"{file} is newer than the evaluation, so these may not be the weights it measured; "
            "run the evaluation again"
        )


def command_of(settings: DictConfig) -> list[str]:
    """Returns the overrides that give these settings of `worldmodel evaluate` again.

    Raises:
        ValueError: There are none.
    """
    wanted, default = _plain(settings), _plain(compose("evaluate", []))
    candidates = []
    for planner in sorted(file.stem for file in PLANNERS.glob("*.yaml")):
        choice = [f"planner={planner}"]
        chosen = _plain(compose("evaluate", choice))
        start = [] if chosen == default else choice
        candidates.append([*start, *as_overrides(differences(chosen, wanted))])
    for overrides in sorted(candidates, key=len):  # the planner with the fewest changes first
        try:
            again = compose("evaluate", overrides)
        except UserError:  # what another planner has cannot be said of this one
            continue
        if _plain(again) == wanted:
            return overrides
    raise ValueError(
        "no command of this version gives the settings of the run; run the evaluation again"
    )


def differences(base: Mapping[str, Any], other: Mapping[str, Any], *, at: str = "") -> Row:
    """Returns what `other` has that `base` has not, under dotted keys."""
    found: Row = {}
    for key, value in other.items():
        if key not in base:
            found[f"+{at}{key}"] = value
        elif isinstance(value, Mapping) and isinstance(base[key], Mapping):
            found |= differences(base[key], value, at=f"{at}{key}.")
        elif value != base[key]:
            found[at + key] = value
    return found


def leaderboard_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the Markdown table."""
    cells = []
    for row in rows:
        low, high = row["wilson95"]
        cells.append(
            (
                row["task"],
                row["variation"],
                row["name"],
                f"{row['success']} of {row['episodes']}",
                f"{percent(low)} to {percent(high)}",
                f"`{row['command']}`",
                f"`{row['checkpoint_sha256'][:12]}`",
                f"`{(row['commit'] or 'none')[:10]}`",
                row["machine"],
                row["date"],
            )
        )
    header = ("task", "variation", "model", "success", "95 %", "command", "weights", "commit")
    return markdown_table((*header, "machine", "date"), cells)


def _plain(config: DictConfig) -> Row:
    """Returns settings without the folder they were run in."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "run"}


def main() -> None:
    parser = argparse.ArgumentParser(description="the leaderboard of the benchmark")
    verbs = parser.add_subparsers(dest="verb", required=True)
    adder = verbs.add_parser("add", help="add the row of an evaluation")
    adder.add_argument("run", type=Path, help="run folder of worldmodel evaluate")
    adder.add_argument("--name", default="shipped model")
    verbs.add_parser("render", help="print the table; docs/make_benchmark.py puts it on the page")
    arguments = parser.parse_args()
    rows = json.loads(FILE.read_text())
    if arguments.verb == "add":
        rows = add(arguments.run, name=arguments.name, rows=rows)
        FILE.write_text(json.dumps(rows, indent=2) + "\n")
    print(leaderboard_table(rows), end="")


if __name__ == "__main__":
    main()
