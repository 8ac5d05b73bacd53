"""Recipes: from simulation to measured weights in one command that goes on where it was stopped."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodel.benchmark import table_rows, worst_first
from worldmodel.invocations import Executor, Outcome, last_line
from worldmodel.names import unknown
from worldmodel.pipeline import plan_stages, read_stages


def run_recipe(
    *,
    stages: Mapping[str, Any],
    run: Path,
    executor: Executor,
    stage: str | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Runs the stages of a recipe that are not done, each in `run/<name of the stage>`.

    Args:
        stages: See `worldmodel.pipeline`.
        run: Folder of the recipe; it holds all that its stages write.
        executor: How they are run, and for how long.
        stage: The only one to run; None is all.
        say: Takes the lines that tell what happens.

    Raises:
        ValueError: The recipe is wrong, its settings are no longer those of what `run` holds, or
            `stage` needs one that is not done.
    """
    calls = plan_stages(read_stages(stages), run, by_content=False)
    known = {call.name: call for call in calls}
    if stage is not None and stage not in known:
        raise ValueError(unknown("stage", stage, known))
    chosen = list(calls) if stage is None else [known[stage]]
    if stage is not None:
        done = {call.folder for call in calls if call.done}
        missing = [folder.name for folder in chosen[0].needs if folder not in done]
        if missing:
            raise ValueError(f"stage {stage} needs {', '.join(missing)}, which is not done yet")
        chosen = [replace(chosen[0], needs=())]
    outcome = executor.run(chosen, say=say)
    for call in chosen:
        status = outcome.statuses[call.folder]
        say(f"{call.name:<12} {status:<8} {last_line(call) if status == 'done' else ''}".rstrip())
    return outcome


def measured(outcome: Outcome) -> str:
    """Returns the success rates of the evaluations that are done in one line, the worst first."""
    reports = [
        json.loads((folder / "out" / "metrics.json").read_text())
        for folder, status in outcome.statuses.items()
        if status == "done" and (folder / "out" / "results.json").exists()
    ]
    rows = [row for report in reports for row in table_rows(report)]
    return f"Success, worst first: {worst_first(rows)}" if rows else ""
