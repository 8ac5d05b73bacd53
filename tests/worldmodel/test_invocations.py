import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest

from worldmodel.invocations import Executor, Invocation, last_line

RECORD = ("image_size=32", "backends=[ray]", "workers=1")


def call(
    root: Path, name: str, verb: str, *overrides: str, needs: tuple[Path, ...] = ()
) -> Invocation:
    return Invocation(name, verb, overrides, root / name, f"{verb} {overrides}", needs)


def records(root: Path, name: str, *, episodes: int) -> Invocation:
    return call(root, name, "collect", f"episodes={episodes}", "steps=2", *RECORD)


@pytest.fixture
def pipeline(tmp_path: Path) -> list[Invocation]:
    """Recordings, a copy of them, and a picture of the copy."""
    recorded = records(tmp_path, "recorded", episodes=1)
    copied = call(tmp_path, "copied", "convert", f"data={recorded.out}", needs=(recorded.folder,))
    drawn = call(tmp_path, "drawn", "inspect", f"data={copied.out}", needs=(copied.folder,))
    return [recorded, copied, drawn]


def test_calls_run_in_order_of_need_and_only_once(pipeline: list[Invocation]) -> None:
    said: list[str] = []
    outcome = Executor(workers=2).run([*pipeline, pipeline[0]], say=said.append)
    assert outcome.complete and outcome.exit_status == 0
    assert list(outcome.statuses) == [call.folder for call in pipeline]
    assert (pipeline[2].out / "contact_sheet.png").exists()
    assert said[-1] == f"[3/3] drawn: {last_line(pipeline[2])}"
    assert last_line(pipeline[2]).startswith("1 episodes")

    logs = [(call.folder / "log.txt").read_text() for call in pipeline]
    said.clear()
    assert Executor().run(pipeline, say=said.append).complete
    assert said == ["3 of 3 were done already"]
    assert [(call.folder / "log.txt").read_text() for call in pipeline] == logs


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    bad = call(tmp_path, "bad", "inspect", f"data={tmp_path / 'nowhere'}")
    after = call(tmp_path, "after", "inspect", f"data={bad.out}", needs=(bad.folder,))
    good = records(tmp_path, "good", episodes=1)
    said: list[str] = []
    outcome = Executor().run([bad, after, good], say=said.append)
    assert list(outcome.statuses.values()) == ["failed", "needs", "done"]
    assert outcome.exit_status == 1 and outcome.failed == [bad.folder]
    assert said[0].startswith("[0/3] bad: failed: worldmodel: nothing at")
    assert "log.txt" in said[0]


def test_the_time_limit_stops_a_call_and_the_next_run_goes_on(tmp_path: Path) -> None:
    long = records(tmp_path, "long", episodes=100_000)
    later = records(tmp_path, "later", episodes=1)
    outcome = Executor(minutes=0.1).run([long, later], say=lambda _: None)
    assert list(outcome.statuses.values()) == ["stopped", "stopped"]
    assert outcome.exit_status == 3
    assert not (long.folder / "done.json").exists()
    assert not (later.folder / "log.txt").exists()
    # Nobody is left at work there: the lock is free again.
    begun = replace(long, verb="inspect", overrides=(f"data={tmp_path / 'nowhere'}",))
    assert Executor().run([begun], say=lambda _: None).exit_status == 1


def test_a_folder_holds_results_of_one_identity(tmp_path: Path) -> None:
    first = records(tmp_path, "recorded", episodes=1)
    Executor().run([first], say=lambda _: None)
    other = replace(first, identity="another")
    with pytest.raises(ValueError, match="holds results of other settings or weights"):
        Executor().run([other])
    # Also where it was begun only.
    (first.folder / "done.json").unlink()
    with pytest.raises(ValueError, match="settings.json"):
        Executor().run([other])


def test_a_call_must_stand_after_what_it_needs(pipeline: list[Invocation]) -> None:
    with pytest.raises(ValueError, match="copied needs .*recorded, which must stand before it"):
        Executor().run(pipeline[1:])


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    held = records(tmp_path, "held", episodes=1)
    held.folder.mkdir()
    with (held.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = Executor().run([held], say=lambda _: None)
        assert list(outcome.statuses.values()) == ["busy"] and outcome.exit_status == 3
        assert not held.out.exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kind": "slurm"}, "unknown executor 'slurm'"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"minutes": 0.0}, "minutes must be above 0"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Executor(**wrong)


def test_ray_does_the_same(pipeline: list[Invocation], monkeypatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    bad = call(pipeline[0].folder.parent, "bad", "inspect", "data=nowhere")
    after = call(bad.folder.parent, "after", "inspect", "data=x", needs=(bad.folder,))
    outcome = Executor(kind="ray").run([*pipeline, bad, after], say=lambda _: None)
    assert list(outcome.statuses.values()) == ["done"] * 3 + ["failed", "needs"]
    assert (pipeline[2].out / "contact_sheet.png").exists()
    settings = json.loads((pipeline[0].folder / "settings.json").read_text())
    assert settings["command"][:2] == ["worldmodel", "collect"]
