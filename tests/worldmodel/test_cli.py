import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldmodel.cli import VERBS, compose, main
from worldmodel.verbs import RUNNERS

TINY = [
    "episodes=1",
    "steps=2",
    "videos=1",
    "backend=ray",
    "planner.search.num_samples=8",
    "planner.search.num_samples_first=8",
    "planner.search.num_elites=2",
    "planner.search.num_iterations=1",
    "planner.search.num_proposals=0",
]
TINY_PLAN = [word for word in TINY if not word.startswith(("episodes", "videos"))]
TINY += ["num_envs=1", "workers=1", "oracle_episodes=0", "latency_episodes=1"]


@pytest.fixture
def fails(capsys, monkeypatch, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail as the user's mistake, and returns the message."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        assert main(list(words)) == 2
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return out.err.strip().splitlines()[-1]

    return run


def test_help_names_every_verb(capsys) -> None:
    for words in (["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        for verb, text in VERBS.items():
            assert re.search(rf"^  {verb} +{re.escape(text)}$", out, re.MULTILINE)
    assert main([]) == 2
    assert "usage: worldmodel <verb>" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_its_settings_and_choices(verb: str, capsys) -> None:
    for words in ([verb, "--help"], [verb, "seed=3", "-h"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"worldmodel {verb}: {VERBS[verb]}")
        config = compose(verb, [])
        for setting in config:
            assert re.search(rf"^'?{setting}'?:", out, re.MULTILINE)  # YAML quotes some words
        if "planner" in config:
            assert "planner: cem, random_shooting, vjepa2_cem" in out
    assert ("--json" in out) == (verb in ("evaluate", "demo", "inspect", "validate"))


def test_the_version_is_printed(capsys) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_an_unknown_verb_suggests_the_nearest(fails) -> None:
    message = fails("evalute")
    assert message.startswith("worldmodel: unknown verb 'evalute'; did you mean 'evaluate'?")
    assert "available: demo, collect" in message
    assert "did you mean" not in fails("xyzzy")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["collect", "episods=3"], "collect has no setting 'episods'; did you mean 'episodes'?"),
        (["demo", "stepps=3"], "demo has no setting 'stepps'; did you mean 'steps'?"),
        (["plan", "episodes=3"], "plan has no setting 'episodes';"),
        (
            ["evaluate", "planner=cme"],
            "unknown planner 'cme'; did you mean 'cem'? available: cem, ",
        ),
        (["pretrain", "encoder=vit_tny"], "unknown encoder 'vit_tny'; did you mean 'vit_tiny'?"),
        (["train", "predictor=mni"], "unknown predictor 'mni'; did you mean 'mini'?"),
        (["evaluate", "episodes=many"], "Value 'many' of type 'str' could not be converted to Int"),
        (
            ["evaluate", "planner.serch=1"],
            "Key 'serch' is not in struct (in: worldmodel evaluate p",
        ),
        (["evaluate", "episodes"], "expected setting=value, got 'episodes'; see worldmodel evalu"),
        (["evaluate", "--jsn"], "expected setting=value, got '--jsn'"),
        (
            ["train", "--json"],
            "--json belongs to evaluate and demo and inspect and val",
        ),
        (["demo", "--check"], "--check belongs to inspect, not to demo"),
        (["inspect", "a", "b"], "expected setting=value, got 'b'"),
        (["convert", "datasets/x"], "convert needs out=..."),
        (["inspect", ".", "format=lerobt"], "unknown format 'lerobt'; did you mean 'lerobot'?"),
        (["train"], "train needs encoder_checkpoint=..."),
        (["encode"], "encode needs encoder_checkpoint=..."),
        (["encode", "encoder_checkpoint=default", "executor=rya"], "unknown executor 'rya'"),
        (["evaluate", "checkpoint=nowhere"], "no checkpoint at nowhere: config.json and weights"),
        (["train", "encoder_checkpoint=nowhere"], "no checkpoint at nowhere: "),
        (["pretrain", "data=nowhere"], "nothing at nowhere"),
        (["inspect", "data=nowhere"], "nothing at nowhere"),
        (["inspect", "no where, 'at' all:x"], "nothing at no where, 'at' all:x"),
        (["evaluate", "backend=opengl"], "unknown render backend 'opengl'; choose from auto, gl,"),
        (["collect", "backends=[ray,vulkan]"], "unknown render backend 'vulkan'; choose from"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(fails, words: list[str], expected: str) -> None:
    assert fails(*words).startswith(f"worldmodel: {expected}")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["task=raech"], "unknown task 'raech'; did you mean 'reach'?"),
        (["camera=exteror"], "unknown camera 'exteror'; did you mean 'exterior'?"),
        (["planner.axes=[x,q]"], "unknown action axes ['q']; available: x, y, z"),
        (["planner.limits=[1,2]"], "planner.limits must have 7 values"),
        (["planner.search.num_samples=1"], "num_samples must be at least 2, got 1"),
        (["device=tpu"], "device must be auto, cpu or cuda, got 'tpu'"),
        (["episodes=0"], "episodes must be at least 1, got 0"),
        (["planner.memory_mib=0.01"], "one plan of 1 steps needs"),
        (
            ["planner.memory_mib=9", "planner.search.chunk_size=3"],
            "planner.memory_mib and planner.search.chunk_size exclude each other",
        ),
    ],
)
def test_a_mistake_that_the_parts_find_is_one_line_too(
    fails, world_checkpoint: Path, words: list[str], expected: str
) -> None:
    message = fails("evaluate", f"checkpoint={world_checkpoint}", *TINY, *words)
    assert message.startswith(f"worldmodel: {expected}")


@pytest.mark.parametrize(
    "verb, setting", [("evaluate", "backend=gl"), ("collect", "backends=[gl]")]
)
def test_where_there_is_no_opengl_the_other_renderer_is_named(
    fails, monkeypatch, verb: str, setting: str
) -> None:
    monkeypatch.setattr("worldmodel.envs.opengl.why_unusable", lambda: "libEGL is missing")
    message = fails(verb, setting)
    assert message.startswith("worldmodel: backend='gl' needs OpenGL, but libEGL is missing.")
    assert "backend='ray' works without OpenGL" in message


def test_a_stopped_program_says_how_to_go_on(monkeypatch, capsys) -> None:
    def interrupt(config: object, *, call: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(RUNNERS, "collect", interrupt)
    assert main(["collect"]) == 130
    assert "the same command goes on where it was" in capsys.readouterr().err


def test_an_evaluation_prints_where_it_writes_and_ends_with_the_success_count(
    world_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    run = tmp_path / "run"
    assert main(["evaluate", f"checkpoint={world_checkpoint}", f"run={run}", *TINY]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == f"writing to {run}"
    assert re.fullmatch(r"reach: solved \d of 1", lines[-1])
    assert any(line.startswith("| do nothing") for line in lines)
    assert f"report: {run / 'report.html'}" in lines
    assert (run / "report.html").is_file() and (run / "config.yaml").is_file()

    # The same run with other settings would mix two evaluations in one folder.
    words = ["evaluate", f"checkpoint={world_checkpoint}", f"run={run}", *TINY, "seed=1"]
    assert main(words) == 2
    assert f"{run} holds a run with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "demo"])
def test_with_json_standard_output_is_one_json_object(
    world_checkpoint: Path, monkeypatch, tmp_path: Path, capsys, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, f"checkpoint={world_checkpoint}", "--json", *TINY]) == 0
    out = json.loads(capsys.readouterr().out)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith(f"-{verb}")
    folders = [run] if verb == "evaluate" else [run / "reach", run / "pick_and_place"]
    for numbers, folder in zip([out] if verb == "evaluate" else out, folders, strict=True):
        assert [row["policy"] for row in numbers["rows"]] == [
            "planner", "expert", "random", "do_nothing",
        ]  # fmt: skip
        assert all(0 <= row["success_rate"] <= 1 for row in numbers["rows"])
        times = numbers["rows"][0]["plan_ms"]
        assert 0 < times["p50"] <= times["p95"]
        assert numbers["command"].startswith(f"worldmodel {verb} checkpoint=")
        assert json.loads((folder / "metrics.json").read_text()) == numbers


def test_a_plan_shows_every_step_and_leaves_a_video(
    world_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    run = tmp_path / "run"
    assert main(["plan", f"checkpoint={world_checkpoint}", f"run={run}", *TINY_PLAN]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^step +(\d+)  energy", out, re.MULTILINE) == ["0", "1"]
    assert re.search(r"(not )?reached: \d+\.\d cm from the goal\n$", out)
    assert (run / "episode.mp4").stat().st_size > 0
    assert (run / "filmstrip.png").read_bytes().startswith(b"\x89PNG")
    episode = json.loads((run / "episode.json").read_text())
    assert len(episode["actions"]) == 2 and len(episode["energies"]) == 3


def test_a_plan_to_an_image_file_judges_by_energy(
    world_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    goal = tmp_path / "goal.png"
    cv2.imwrite(str(goal), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    words = [f"checkpoint={world_checkpoint}", f"run={tmp_path / 'run'}", f"goal={goal}"]
    assert main(["plan", *words, *TINY_PLAN]) == 0
    out = capsys.readouterr().out
    assert re.search(r"energy to the goal image \d\.\d+ -> \d\.\d+\n$", out)
    assert "distance" not in out and "reached" not in out


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "no goal image at goal.png"),
        (b"no picture", "goal.png is not an image that can be read"),
        (48, "the goal image goal.png is 48x48 pixels, the model takes 32x32; resize it"),
    ],
)
def test_a_goal_image_that_does_not_fit_is_refused(
    fails, world_checkpoint: Path, tmp_path: Path, content, expected: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "goal.png").write_bytes(content)
    elif content is not None:
        cv2.imwrite(str(tmp_path / "goal.png"), np.zeros((content, content, 3), np.uint8))
    message = fails("plan", f"checkpoint={world_checkpoint}", "goal=goal.png", *TINY_PLAN)
    assert message.startswith(f"worldmodel: {expected}")


def test_an_unknown_format_lists_what_was_looked_for(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["inspect", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path} is of no format known here; looked for:" in message
    for text in ("zarr_store", "meta/info.json", "trajectory.h5", "data/demo_0"):
        assert text in message


def test_inspect_checks_and_prints_one_json_object(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "out=set", "episodes=2", "steps=5", "workers=1", "backends=[ray]"]) == 0
    capsys.readouterr()
    assert main(["inspect", "set", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"format", "episodes", "steps", "cameras", "clock_hz", "findings"}
    assert (report["format"], report["episodes"], report["steps"]) == ("zarr_store", 2, 10)
    # A wrong rate is an error, and an error is a status that scripts can see.
    assert main(["inspect", "set", "--check", "hz=60", "run=look"]) == 1
    out = capsys.readouterr().out
    assert "error: rate_mismatch (2)" in out and "2 episodes, 2 errors, " in out
    assert "<html" in (tmp_path / "look" / "check.html").read_text()
    assert (tmp_path / "look" / "contact_sheet.png").stat().st_size > 0


def test_paths_need_no_quotes_of_hydras(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "Fri_Jul__7_09:42:23 2023, it's"
    words = ["episodes=1", "steps=5", "workers=1", "backends=[ray]"]
    assert main(["collect", "out=set", *words]) == 0
    assert main(["convert", "set", odd]) == 0
    assert (tmp_path / odd / "store.json").is_file()


def test_a_memory_budget_becomes_the_number_of_plans_at_once() -> None:
    from worldmodel import load_default
    from worldmodel.verbs.planning import planner_settings

    world = load_default()
    overrides = ["planner.memory_mib=2", "planner.search.horizon=3", "planner.num_context=2"]
    config = compose("evaluate", overrides)
    search = planner_settings(config, world).search
    assert search.chunk_size == world.plans_within(2, steps=4)
    assert 1 <= search.chunk_size < world.plans_within(20, steps=4)
    assert planner_settings(compose("evaluate", []), world).search.chunk_size is None


def test_models_are_listed_and_a_file_is_described(capsys, tmp_path: Path) -> None:
    assert main(["models"]) == 0
    assert re.search(r"^vjepa2-ac +1408x40/16", capsys.readouterr().out, re.MULTILINE)
    assert main(["models", "verify", str(tmp_path / "nothing.pt")]) == 2
    assert "nothing.pt" in capsys.readouterr().err
