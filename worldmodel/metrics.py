"""The numbers of an evaluation as files: metrics.json, results.json, results.csv, results.md."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.failures import StageFailures, where_it_fails
from worldmodel.results import EpisodeResult, Evaluation, PolicyResult
from worldmodel.runs import write_json
from worldmodel.tables import markdown_table, write_csv


def write_numbers(folder: Path, evaluation: Evaluation) -> None:
    """Writes `metrics.json`, `results.json`, `results.csv` and `results.md`.

    All but the first are the same, byte for byte, for the same evaluation on the same machine:
    they hold no times.
    """
    write_json(folder / "metrics.json", metrics(evaluation))
    lines = [json.dumps(row) for row in episode_table(evaluation)]
    (folder / "results.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    rows = [_csv_row(result.name, e) for result in evaluation.policies for e in result.episodes]
    write_csv(folder / "results.csv", list(rows[0]), [list(row.values()) for row in rows])
    (folder / "results.md").write_text(markdown_report(evaluation))


def metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the numbers of an evaluation, JSON-able: success, intervals, times, settings."""
    planner = evaluation.planner
    return {
        "task": evaluation.task,
        "variation": evaluation.variation,
        "seed": evaluation.seed,
        "episodes": len(planner.episodes),
        "steps": max(len(episode.actions) for episode in planner.episodes),
        "subgoals": evaluation.subgoals,
        "rows": [_row(result) for result in evaluation.policies],
        "paired": [asdict(paired) for paired in evaluation.paired],
        "failures": [
            {**asdict(stage), "seeds": list(stage.seeds)}
            for stage in where_it_fails(planner.episodes)
        ],
        "goal_rejections": evaluation.goal_rejections,
        "command": evaluation.command,
        "settings": evaluation.settings,
        "machine": evaluation.machine,
    }


def _row(result: PolicyResult) -> dict[str, Any]:
    steps = [e.steps_to_success for e in result.episodes if e.steps_to_success is not None]
    return {
        "policy": result.name,
        "episodes": len(result.episodes),
        "successes": result.successes,
        "success_rate": result.success_rate,
        "wilson95": list(result.interval),
        "ever_successful": sum(episode.ever_successful for episode in result.episodes),
        "final_distance_cm": _percentiles(100 * result.final_distances, 50, 90),
        "steps_to_success": _percentiles(np.array(steps), 50, 90),
        "plan_ms": _percentiles(result.plan_ms, 50, 95),
        "encode_ms": _percentiles(result.encode_ms, 50, 95),
    }


def _percentiles(values: np.ndarray, *percents: int) -> dict[str, float] | None:
    if not values.size:
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in percents}


def episode_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns every episode without times: the same, byte for byte, for the same seed."""
    return [
        {
            "policy": result.name,
            "seed": episode.seed,
            "success": episode.success,
            "ever_successful": episode.ever_successful,
            "steps_to_success": episode.steps_to_success,
            "distances": _rounded(episode.distances),
            "energies": _rounded(episode.energies),
            "stage_names": list(episode.stage_names),
            "stages": episode.stages.tolist(),
            "switches": [asdict(switch) for switch in episode.switches],
            "first_grip": None if episode.first_grip is None else asdict(episode.first_grip),
            "actions": _rounded(episode.actions),
            "features": _rounded(episode.features),
        }
        for result in evaluation.policies
        for episode in result.episodes
    ]


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values, 6).tolist()


def _csv_row(policy: str, episode: EpisodeResult) -> dict[str, object]:
    start, closest, final = (
        round(100 * float(value), 4)
        for value in (episode.distances[0], episode.distances.min(), episode.distances[-1])
    )
    grip = episode.first_grip
    return {
        "policy": policy,
        "seed": episode.seed,
        "success": int(episode.success),
        "ever_successful": int(episode.ever_successful),
        "steps": len(episode.actions),
        "steps_to_success": episode.steps_to_success,
        "start_distance_cm": start,
        "closest_distance_cm": closest,
        "final_distance_cm": final,
        "last_stage": episode.stage_names[episode.stages[-1]] if episode.stage_names else None,
        "switches": " ".join(f"{s.step}:{s.reason}" for s in episode.switches),
        "first_grip_step": None if grip is None else grip.step,
        "first_grip_distance_cm": None if grip is None else round(100 * grip.distance, 4),
    }


def markdown_report(evaluation: Evaluation) -> str:
    """Returns the table of policies, and where the planner fails, for people."""
    goals = "every sub-goal image" if evaluation.subgoals else "the goal image only"
    parts = [
        f"## {evaluation.task}, variation {evaluation.variation}, seed {evaluation.seed}\n",
        f"{len(evaluation.planner.episodes)} paired episodes; the planner is given {goals}. "
        "Success: the goal is held at the last step.\n",
        _policy_table(evaluation),
    ]
    if stages := where_it_fails(evaluation.planner.episodes):
        header, rows = failure_rows(stages, grips=closes_gripper(evaluation))
        parts += ["Where the planner fails:\n", markdown_table(header, rows)]
    parts.append(f"Placements drawn again: {evaluation.goal_rejections}.\n")
    if evaluation.command is not None:
        parts.append(f"    {evaluation.command}\n")
    return "\n".join(parts)


def _policy_table(evaluation: Evaluation) -> str:
    paired = {one.against: one for one in evaluation.paired}
    rows = []
    for result in evaluation.policies:
        row, (low, high) = _row(result), result.interval
        against = paired.get(result.name)
        steps, final = row["steps_to_success"], row["final_distance_cm"]
        rows.append(
            [
                result.name.replace("_", " "),
                f"{result.successes} of {len(result.episodes)}",
                f"{result.success_rate:.0%} ({low:.0%} to {high:.0%})",
                row["ever_successful"],
                f"{final['p50']:.1f} / {final['p90']:.1f} cm",
                None if steps is None else f"{steps['p50']:.0f}",
                None if against is None else f"{against.only_planner} : {against.only_other}",
                None if against is None else f"{against.p_value:.2g}",
            ]
        )
    header = ["policy", "successes", "rate (95 % Wilson)", "ever", "final distance p50 / p90"]
    header += ["steps to success p50", "only planner : only it", "McNemar p"]
    return markdown_table(header, rows)


def failure_rows(
    stages: Sequence[StageFailures], *, grips: bool
) -> tuple[list[str], list[list[object]]]:
    """Returns the header and a row for each sub-goal in which episodes failed.

    Args:
        stages: What to list.
        grips: Whether to list what the gripper did.
    """
    header = ["it ended in", "failures", "goal held before", "a stage ran out of time"]
    rows: list[list[object]] = [
        [stage.stage, stage.failures, stage.held_before, stage.out_of_time] for stage in stages
    ]
    if grips:
        header += ["gripper never closed", "first closed on air"]
        for row, stage in zip(rows, stages, strict=True):
            row += [stage.never_closed, stage.closed_on_air]
    return header, rows


def closes_gripper(evaluation: Evaluation) -> bool:
    """Says whether the expert ever closes the gripper in these episodes."""
    experts = [result for result in evaluation.baselines if result.name == "expert"]
    return any(e.first_grip is not None for result in experts for e in result.episodes)
