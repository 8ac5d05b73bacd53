"""Sweeps: rows that change one thing each, made and measured, beside the base on paired seeds.

A row is a YAML file that changes one knob of `base.yaml`, or settings of one of its stages:

    knobs:  {merge: 2, steps: 1500}                               # base.yaml
    stages: {predictor: {verb: train, settings: {merge: "${knobs.merge}"}}, ...}

    knobs:  {merge: 1}                                            # tokens/64.yaml

Rows share every stage whose settings, and those of the stages before it, are the same.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from worldmodel.benchmark import checkpoint_sha256
from worldmodel.invocations import Executor, Invocation, Outcome
from worldmodel.names import unknown
from worldmodel.pipeline import Stage, plan_stages, read_stages
from worldmodel.results import mcnemar_p_value, wilson_interval
from worldmodel.runs import describe_machine, write_json
from worldmodel.tables import markdown_table, percent, write_csv

BASE = "base"
ALL_TASKS = "all"
HEADER = ("row", "task", "success", "95 %", "difference", "only row", "only base", "p")


@dataclass(frozen=True)
class Row:
    """One row of a sweep.

    Attributes:
        name: Its file below the folder of the sweep without ".yaml", such as "tokens/64".
        meaning: The first line of the file: what is changed.
        stages: How it is made and measured.
    """

    name: str
    meaning: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Comparison:
    """A row beside the base, on the episodes that both have done.

    Attributes:
        row: Name of the row.
        meaning: What it changes.
        task: Name of the task, or "all" for the episodes of all tasks together.
        episodes: How many episodes of it.
        successes: How many succeeded.
        success_rate: Share of them.
        wilson95: Interval of that share.
        difference: Success rate less that of the base on the same episodes.
        only_row: Episodes in which the row succeeded and the base did not.
        only_base: Episodes in which the base succeeded and the row did not.
        p_value: Exact McNemar test, two-sided, not corrected for the number of rows.
    """

    row: str
    meaning: str
    task: str
    episodes: int
    successes: int
    success_rate: float
    wilson95: tuple[float, float]
    difference: float
    only_row: int
    only_base: int
    p_value: float


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found.

    Attributes:
        comparisons: One for each row and task that is measured, the base's own first.
        missing: Rows that are not measured (yet).
        outcome: What became of each call.
    """

    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]
    outcome: Outcome


def sweep(
    *,
    folder: Path,
    patterns: Sequence[str],
    run: Path,
    executor: Executor,
    checkpoint: str | None = None,
    knobs: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> SweepResult:
    """Makes and measures rows that are not done, and writes `sweep.json`, `.csv` and `.md`.

    Args:
        folder: Where base.yaml and, in folders by axis, the rows are.
        patterns: Which rows, such as "tokens/*"; the base always is one.
        run: Folder of all; a stage lies in `<verb>-<hash of all that decides what is in it>`.
        executor: How the calls are run, and for how long.
        checkpoint: World model to measure in place of the one that the base trains; then only rows
            that change nothing but planning make sense, and others are refused.
        knobs: Values of knobs for all rows, over those of base.yaml, such as {"episodes": 20}.
        say: Takes the lines that tell what happens.

    Raises:
        ValueError: A pattern names no row, a row is wrong, or it trains though `checkpoint` is set.
        FileNotFoundError: `checkpoint` has no weights.
    """
    rows = [
        read_row(folder, name, knobs=knobs or {}, checkpoint=checkpoint)
        for name in (BASE, *choose_rows(folder, patterns))
    ]
    sha256 = "" if checkpoint is None else checkpoint_sha256(checkpoint)
    plans = {
        row.name: plan_stages(
            row.stages, run, by_content=True, label=f"{row.name}: ", made_from=sha256
        )
        for row in rows
    }
    outcome = executor.run([call for calls in plans.values() for call in calls], say=say)
    measured = {
        row.name: measured_tasks(row, plans[row.name])
        for row in rows
        if all(outcome.statuses[call.folder] == "done" for call in plans[row.name])
    }
    comparisons = compare_rows(rows, measured)
    missing = tuple(row.name for row in rows if row.name not in measured)
    result = SweepResult(comparisons, missing, outcome)
    write_sweep(result, run)
    return result


def choose_rows(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Returns the names of the rows below `folder` that fit a pattern, in order.

    Raises:
        ValueError: A pattern fits none.
    """
    known = sorted(
        file.relative_to(folder).with_suffix("").as_posix() for file in folder.glob("*/*.yaml")
    )
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in known):
            raise ValueError(unknown("row", pattern, known))
    return [name for name in known if any(fnmatch(name, pattern) for pattern in patterns)]


def read_row(
    folder: Path, name: str, *, knobs: Mapping[str, Any], checkpoint: str | None = None
) -> Row:
    """Returns a row: base.yaml, `knobs` and the row's own changes over one another.

    A setting `~name` of a row takes the base's setting `name` away, as it does in Hydra.

    Raises:
        ValueError: The row changes not exactly one knob or one stage, one that does not exist, or
            more than planning though `checkpoint` is given.
    """
    base = OmegaConf.load(folder / f"{BASE}.yaml")
    file = folder / f"{name}.yaml"
    OmegaConf.set_struct(base.knobs, True)
    _check_names("knob", knobs, base.knobs, "knobs=")
    plain = merged = OmegaConf.merge(base, {"knobs": dict(knobs)})
    if name != BASE:
        changes = OmegaConf.load(file)
        _check_changes(file, changes, base)
        plain, merged = merged, OmegaConf.merge(merged, changes)
    stages = _resolved(merged)
    if checkpoint is not None:
        stages = _measure_only(name, stages, _resolved(plain), checkpoint)
    return Row(name, file.read_text().splitlines()[0].removeprefix("# "), stages)


def _resolved(document: Any) -> tuple[Stage, ...]:
    """Returns the stages of a document, with the knobs put in."""
    content = OmegaConf.to_container(document, resolve=True)
    assert isinstance(content, dict)
    for body in content["stages"].values():
        for gone in [name for name in body["settings"] if name.startswith("~")]:
            del body["settings"][gone], body["settings"][gone[1:]]
    return read_stages(content["stages"])


def _check_changes(file: Path, changes: Any, base: Any) -> None:
    """Refuses a row that changes more than one thing, or something that is not there."""
    wrong = set(changes) - {"knobs", "stages"}
    if wrong:
        raise ValueError(f"{file}: " + unknown("key", min(wrong), ("knobs", "stages")))
    changed = [*changes.get("knobs", {}), *changes.get("stages", {})]
    if len(changed) != 1:
        raise ValueError(
            f"{file} must change one knob or the settings of one stage, and changes "
            f"{', '.join(changed) or 'nothing'}"
        )
    _check_names("knob", changes.get("knobs", {}), base.knobs, str(file))
    _check_names("stage", changes.get("stages", {}), base.stages, str(file))
    for name, body in changes.get("stages", {}).items():
        _check_names("part of a stage", body, ("settings",), str(file))
        gone = [one[1:] for one in body.get("settings", {}) if one.startswith("~")]
        _check_names("setting to take away", gone, base.stages[name].settings, str(file))


def _check_names(what: str, given: Any, known: Any, where: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: " + unknown(what, name, map(str, known)))


def _measure_only(
    name: str, stages: Sequence[Stage], base: Sequence[Stage], checkpoint: str
) -> tuple[Stage, ...]:
    """Returns the evaluations of a row, of a world model that is there already."""
    trained = [stage for stage in stages if stage.verb != "evaluate"]
    if trained != [stage for stage in base if stage.verb != "evaluate"]:
        raise ValueError(
            f"{name} trains a model of its own, which says nothing beside checkpoint={checkpoint}; "
            "leave out the checkpoint, or name rows that change planning only"
        )
    return tuple(
        Stage(stage.name, stage.verb, {**stage.settings, "checkpoint": checkpoint})
        for stage in stages
        if stage.verb == "evaluate"
    )


Successes = dict[int, bool]
"""Whether the planner succeeded, by the seed of the episode."""


def measured_tasks(row: Row, calls: Sequence[Invocation]) -> dict[str, Successes]:
    """Returns what the planner did in each task of a row whose calls are done."""
    return {
        str(stage.settings["task"]): read_successes(call.out)
        for stage, call in zip(row.stages, calls, strict=True)
        if stage.verb == "evaluate"
    }


def read_successes(run: Path) -> Successes:
    """Returns whether the planner succeeded, by seed, from an evaluation's run folder."""
    episodes = json.loads((run / "results.json").read_text())
    return {e["seed"]: bool(e["success"]) for e in episodes if e["policy"] == "planner"}


def compare_rows(
    rows: Sequence[Row], measured: Mapping[str, Mapping[str, Successes]]
) -> tuple[Comparison, ...]:
    """Returns every measured row beside the base: the base first, the largest loss next."""
    if BASE not in measured:
        return ()
    found = []
    for row in rows:
        pairs: list[tuple[bool, bool]] = []
        for task, successes in measured.get(row.name, {}).items():
            base = measured[BASE][task]
            both = [(successes[seed], base[seed]) for seed in successes if seed in base]
            found.append(compare_pairs(row, task, both))
            pairs += both
        if pairs:
            found.append(compare_pairs(row, ALL_TASKS, pairs))
    totals = {c.row: c.difference for c in found if c.task == ALL_TASKS}
    order = [c.row for c in found]
    found.sort(key=lambda c: (c.row != BASE, totals[c.row], order.index(c.row)))
    return tuple(found)


def compare_pairs(row: Row, task: str, pairs: Sequence[tuple[bool, bool]]) -> Comparison:
    """Returns the comparison of a row, from (row succeeded, base succeeded) of each episode."""
    if not pairs:
        raise ValueError(f"{row.name} and the base have no episode of {task} in common")
    successes, n = sum(first for first, _ in pairs), len(pairs)
    only_row = sum(first and not second for first, second in pairs)
    only_base = sum(second and not first for first, second in pairs)
    return Comparison(
        row=row.name,
        meaning=row.meaning,
        task=task,
        episodes=n,
        successes=successes,
        success_rate=successes / n,
        wilson95=wilson_interval(successes, n),
        difference=(only_row - only_base) / n,
        only_row=only_row,
        only_base=only_base,
        p_value=mcnemar_p_value(only_row, only_base),
    )


def sweep_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Returns the Markdown table of `sweep.json`'s comparisons."""
    rows = []
    for c in comparisons:
        base = c["row"] == BASE
        low, high = c["wilson95"]
        rows.append(
            (
                c["meaning"],
                c["task"],
                f"{c['successes']} of {c['episodes']}",
                f"{percent(low)} to {percent(high)}",
                None if base else f"{round(100 * c['difference'], 1):+g}",
                None if base else c["only_row"],
                None if base else c["only_base"],
                None if base else f"{c['p_value']:.2g}",
            )
        )
    return markdown_table(HEADER, rows)


def write_sweep(result: SweepResult, run: Path) -> None:
    """Writes sweep.json, sweep.csv and sweep.md."""
    run.mkdir(parents=True, exist_ok=True)
    comparisons = [asdict(comparison) for comparison in result.comparisons]
    found = {"comparisons": comparisons, "missing": list(result.missing)}
    write_json(run / "sweep.json", found | {"machine": describe_machine()})
    columns = [name for name in Comparison.__dataclass_fields__ if name != "wilson95"]
    write_csv(
        run / "sweep.csv",
        [*columns, "wilson95_low", "wilson95_high"],
        [[*(c[name] for name in columns), *c["wilson95"]] for c in comparisons],
    )
    missing = [f"Not measured: {', '.join(result.missing)}.\n"] if result.missing else []
    (run / "sweep.md").write_text("\n".join([sweep_table(comparisons), *missing]))
