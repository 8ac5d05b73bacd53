from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from worldmodel.cli import compose
from worldmodel.pipeline import Stage, as_overrides, plan_stages, read_stages
from worldmodel.verbs import UserError

DOCUMENT = {
    "recorded": {"verb": "collect", "settings": {"episodes": 3, "backends": ["ray"]}},
    "encoder": {
        "verb": "pretrain",
        "settings": {"data": "{recorded}", "schedule": {"steps": 20, "warmup_steps": 1}},
    },
    "predictor": {
        "verb": "train",
        "settings": {"data": "{recorded}", "encoder_checkpoint": "{encoder}/encoder"},
    },
    "measure": {
        "verb": "evaluate",
        "each": {"seed": [3, 4]},
        "settings": {"checkpoint": "{predictor}/model", "planner.num_context": 2},
    },
}


def test_stages_become_calls_that_read_what_earlier_ones_wrote(tmp_path: Path) -> None:
    calls = plan_stages(read_stages(DOCUMENT), tmp_path, by_content=False)
    assert [call.folder.name for call in calls] == [
        "recorded",
        "encoder",
        "predictor",
        "measure_3",
        "measure_4",
    ]
    recorded, encoder, predictor, measure, _ = calls
    assert recorded.words[-1] == f"out={tmp_path}/recorded/out"
    assert predictor.needs == (recorded.folder, encoder.folder)
    assert predictor.words[-1] == f"run={tmp_path}/predictor/out"
    config = compose("train", predictor.words[1:])
    assert config.data == str(recorded.out)
    assert config.encoder_checkpoint == str(encoder.out / "encoder")
    measured = compose("evaluate", measure.words[1:])
    assert measured.planner.num_context == 2 and measured.seed == 3
    assert compose("pretrain", encoder.words[1:]).schedule.steps == 20


def changed(**settings: object) -> dict:
    document = {name: {**body, "settings": {**body["settings"]}} for name, body in DOCUMENT.items()}
    for path, value in settings.items():
        stage, key = path.split("__")
        document[stage]["settings"][key] = value
    return document


def folders(document: dict, root: Path, **more: str) -> list[str]:
    calls = plan_stages(read_stages(document), root, by_content=True, **more)
    return [call.folder.relative_to(root).as_posix() for call in calls]


def test_stages_are_shared_exactly_as_far_as_all_that_decides_them_is_the_same(
    tmp_path: Path,
) -> None:
    base = folders(DOCUMENT, tmp_path)
    assert len(set(base)) == 5
    assert folders(DOCUMENT, tmp_path / "elsewhere") == base
    # What comes after a change is another, what comes before is the same.
    for stage, shared in (("recorded", 0), ("encoder", 1), ("predictor", 2)):
        other = folders(changed(**{f"{stage}__seed": 7}), tmp_path)
        assert [a == b for a, b in zip(base, other, strict=True)] == [i < shared for i in range(5)]
    # Names do not matter, what they stand for does; nor does the order of settings.
    settings = changed(encoder__data="{data}")["encoder"]["settings"]
    renamed = {
        "data": DOCUMENT["recorded"],
        "encoder": {
            "verb": "pretrain",
            "settings": dict(reversed(settings.items())),
        },
    }
    assert folders(renamed, tmp_path) == base[:2]
    assert set(folders(DOCUMENT, tmp_path, made_from="other weights")).isdisjoint(base)


@pytest.mark.parametrize(
    "document, error, message",
    [
        (
            {"a": {"verb": "colect"}},
            ValueError,
            "stage a: unknown verb 'colect'; did you mean 'col",
        ),
        ({"a": {"verb": "collect", "setings": {}}}, ValueError, "unknown key 'setings'"),
        (changed(recorded__data="{encoder}"), ValueError, "unknown earlier stage 'encoder'"),
        (changed(encoder__dat="x"), UserError, "pretrain has no setting 'dat'"),
        (changed(encoder__run="x"), ValueError, "where it writes is not for it to say"),
        (
            {"a": {"verb": "collect", "each": {"seed": [1], "steps": [2]}}},
            ValueError,
            "each takes one setting, got seed, steps",
        ),
    ],
)
def test_a_wrong_document_is_refused_before_anything_runs(
    document: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        plan_stages(read_stages(document), tmp_path, by_content=False)


TEXT = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1).filter(
    lambda text: "${" not in text
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.25, 1e-3]) | TEXT,
    lambda value: (
        st.lists(value, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), value, max_size=3)
    ),
    max_leaves=6,
)


@hypothesis.settings(max_examples=25, deadline=None)
@given(VALUES)
@hypothesis.example("\\0")
@hypothesis.example("ends in \\")
@hypothesis.example("\\' and '")
def test_any_value_reaches_the_verb_as_it_is(value: object) -> None:
    """`evaluate`'s group planner is open, so it takes whatever is given."""
    words = as_overrides({"+planner.extra": value})
    config = compose("evaluate", words)
    assert OmegaConf.to_container(config.planner)["extra"] == value


def test_a_stage_is_what_it_says() -> None:
    assert read_stages({"a": {"verb": "inspect"}}) == (Stage("a", "inspect", {}),)
