import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import worldmodel.configs
from worldmodel.checkpoint import DEFAULT_CHECKPOINT
from worldmodel.invocations import Executor, Invocation, Outcome
from worldmodel.pipeline import plan_stages
from worldmodel.runs import write_json
from worldmodel.sweep import (
    BASE,
    choose_rows,
    compare_rows,
    read_row,
    read_successes,
    sweep,
    sweep_table,
)

ABLATION = Path(worldmodel.configs.__path__[0]) / "experiment" / "ablation"
ROWS = choose_rows(ABLATION, ["*"])
SHIPPED = str(DEFAULT_CHECKPOINT)


def test_the_ablations_cover_what_they_are_to_cover() -> None:
    axes = {"objective", "tokens", "pooling", "rollout", "context", "energy"}
    axes |= {"subgoals", "planner", "budget"}
    assert axes <= {name.partition("/")[0] for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_ablations_differs_from_the_base_in_one_thing(
    name: str, tmp_path: Path
) -> None:
    base, row = (read_row(ABLATION, n, knobs={}) for n in (BASE, name))
    assert (ABLATION / f"{name}.yaml").read_text().startswith("# ")
    differing = [
        {key for key in {**a.settings, **b.settings} if a.settings.get(key) != b.settings.get(key)}
        for a, b in zip(base.stages, row.stages, strict=True)
    ]
    assert any(differing), "the row says what the base says"
    # All its settings are accepted, and it shares with the base what comes before the change.
    first = next(i for i, keys in enumerate(differing) if keys)
    planned = [plan_stages(r.stages, tmp_path, by_content=True) for r in (base, row)]
    same = [a.folder == b.folder for a, b in zip(*planned, strict=True)]
    assert same == [i < first for i in range(len(same))]


TINY = {
    "knobs": {"merge": 2, "planning": {"num_context": 1}},
    "stages": {
        "predictor": {
            "verb": "train",
            "settings": {"encoder_checkpoint": "e", "merge": "${knobs.merge}"},
        },
        "measure": {
            "verb": "evaluate",
            "each": {"task": ["reach", "push"]},
            "settings": {
                "checkpoint": "{predictor}/model",
                "planner.num_context": "${knobs.planning.num_context}",
            },
        },
    },
}
TINY_ROWS = {
    "tokens/64": {"knobs": {"merge": 1}},
    "context/2": {"knobs": {"planning": {"num_context": 2}}},
    "budget/8": {"stages": {"measure": {"settings": {"planner.search.num_samples": 8}}}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {BASE: TINY, **TINY_ROWS}.items():
        file = tmp_path / "ablation" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# about {name}\n{yaml.safe_dump(content, sort_keys=False)}")
    return tmp_path / "ablation"


class KnownWorld(Executor):
    """Writes the results of a world in which 64 tokens fail on even seeds and the base does not."""

    def run(self, invocations, *, say=print) -> Outcome:  # type: ignore[no-untyped-def]
        calls = {call.folder: call for call in invocations}
        for call in calls.values():
            call.out.mkdir(parents=True, exist_ok=True)
            if call.verb == "evaluate":
                write_json(call.out / "results.json", self.episodes(call))
        return Outcome(dict.fromkeys(calls, "done"))

    @staticmethod
    def episodes(call: Invocation) -> list[dict]:
        worse = call.name.startswith("tokens/64") and "task=reach" in call.overrides
        planned = [(s, not (worse and s % 2 == 0)) for s in range(10)]
        return [
            *({"policy": "planner", "seed": s, "success": ok} for s, ok in planned),
            {"policy": "random", "seed": 0, "success": False},
        ]


def test_rows_are_compared_with_the_base_on_paired_seeds(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = sweep(folder=folder, patterns=["*"], run=run, executor=KnownWorld())
    found = {(c.row, c.task): c for c in result.comparisons}
    assert [c.row for c in result.comparisons[:6]] == [BASE] * 3 + ["tokens/64"] * 3
    lost = found["tokens/64", "reach"]
    assert (lost.successes, lost.episodes, lost.difference) == (5, 10, -0.5)
    assert (lost.only_row, lost.only_base) == (0, 5)
    assert lost.p_value == pytest.approx(2 * 0.5**5)
    assert found["tokens/64", "push"].p_value == 1.0
    assert found["tokens/64", "all"].difference == -0.25
    assert found["context/2", "all"].only_base == 0
    assert lost.meaning == "about tokens/64"

    written = json.loads((run / "sweep.json").read_text())
    assert written["missing"] == [] and len(written["comparisons"]) == 12
    assert sweep_table(written["comparisons"]) == (run / "sweep.md").read_text()
    assert "| about tokens/64 | reach | 5 of 10" in (run / "sweep.md").read_text()
    assert len((run / "sweep.csv").read_text().splitlines()) == 13


def test_what_is_not_measured_is_named(folder: Path) -> None:
    rows = [read_row(folder, name, knobs={}) for name in (BASE, "tokens/64")]
    assert compare_rows(rows, {"tokens/64": {"reach": {1: True}}}) == ()
    only = compare_rows(rows, {BASE: {"reach": {1: True, 2: False}}})
    assert {c.row for c in only} == {BASE}


def test_a_given_checkpoint_is_measured_and_nothing_is_trained(folder: Path) -> None:
    row = read_row(folder, "context/2", knobs={}, checkpoint=SHIPPED)
    assert {stage.verb for stage in row.stages} == {"evaluate"}
    assert {stage.settings["checkpoint"] for stage in row.stages} == {SHIPPED}
    with pytest.raises(ValueError, match="tokens/64 trains a model of its own"):
        read_row(folder, "tokens/64", knobs={}, checkpoint=SHIPPED)


def test_knobs_reach_every_row(folder: Path) -> None:
    row = read_row(folder, "context/2", knobs={"merge": 4})
    assert row.stages[0].settings["merge"] == 4
    with pytest.raises(ValueError, match="knobs=: unknown knob 'merg'; did you mean 'merge'"):
        read_row(folder, "context/2", knobs={"merg": 4})


def test_a_row_can_take_a_setting_of_the_base_away(folder: Path) -> None:
    changes = {"settings": {"~planner.num_context": None, "planner.axes": ["x"]}}
    OmegaConf.save({"stages": {"measure": changes}}, folder / "context" / "none.yaml")
    row, base = (read_row(folder, name, knobs={}) for name in ("context/none", BASE))
    assert row.stages[0] == base.stages[0]
    for stage, of_base in zip(row.stages[1:], base.stages[1:], strict=True):
        kept = {k: v for k, v in of_base.settings.items() if k != "planner.num_context"}
        assert stage.settings == {**kept, "planner.axes": ["x"]}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"knobs": {"merge": 1, "planning": {}}}, "must change one knob .* changes merge, plan"),
        ({}, "changes nothing"),
        ({"knobs": {"merg": 1}}, "unknown knob 'merg'; did you mean 'merge'"),
        ({"stages": {"measur": {"settings": {}}}}, "unknown stage 'measur'"),
        ({"stages": {"measure": {"verb": "plan"}}}, "unknown part of a stage 'verb'"),
        ({"seed": 1}, "unknown key 'seed'"),
        (
            {"stages": {"measure": {"settings": {"~planner.num_contex": None}}}},
            "unknown setting to take away 'planner.num_contex'; did you mean 'planner.num_context'",
        ),
    ],
)
def test_a_row_that_is_no_single_change_is_refused(
    folder: Path, content: dict, message: str
) -> None:
    OmegaConf.save(OmegaConf.create(content), folder / "tokens" / "wrong.yaml")
    with pytest.raises(ValueError, match=message):
        read_row(folder, "tokens/wrong", knobs={})


def test_a_pattern_must_fit_a_row(folder: Path) -> None:
    assert choose_rows(folder, ["tokens/*", "budget/8"]) == ["budget/8", "tokens/64"]
    with pytest.raises(ValueError, match="unknown row 'token/64'; did you mean 'tokens/64'"):
        choose_rows(folder, ["tokens/*", "token/64"])


def test_only_the_planner_is_read(tmp_path: Path) -> None:
    episodes = [
        {"policy": "planner", "seed": 5, "success": True},
        {"policy": "expert", "seed": 6, "success": True},
    ]
    write_json(tmp_path / "results.json", episodes)
    assert read_successes(tmp_path) == {5: True}
