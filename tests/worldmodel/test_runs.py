import json
import re
from pathlib import Path

import pytest

from worldmodel.runs import describe_machine, open_run, write_json


def test_a_new_run_gets_a_folder_of_its_own(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [open_run("train", None, "seed: 0\n") for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert re.fullmatch(r"runs/\d{8}-\d{6}-train(-\d)?", folder.as_posix())
        assert (folder / "config.yaml").read_text() == "seed: 0\n"


def test_a_run_is_resumed_with_the_same_settings_only(tmp_path: Path) -> None:
    folder = open_run("train", str(tmp_path / "a" / "b"), "seed: 0\n")
    assert open_run("train", str(folder), "seed: 0\n") == folder
    (folder / "state.pt").touch()
    with pytest.raises(ValueError, match="holds a run with other settings .*config.yaml"):
        open_run("train", str(folder), "seed: 1\n")
    assert (folder / "config.yaml").read_text() == "seed: 0\n"


def test_what_differs_from_the_run_is_listed(tmp_path: Path) -> None:
    then = "seed: 0\nworkers: 2\nschedule:\n  peak: 0.1\n  steps: 5\nold: null\n"
    now = "seed: 0\nworkers: 3\nschedule:\n  peak: 0.2\n  steps: 5\nnew: a\n"
    folder = open_run("train", str(tmp_path / "run"), then)
    (folder / "metrics.jsonl").touch()
    with pytest.raises(ValueError) as raised:
        open_run("train", str(folder), now, may_change=("workers",))
    assert [line for line in str(raised.value).splitlines() if line.startswith("  ")] == [
        "  schedule.peak: 0.1 in the run, 0.2 now",
        "  old: null in the run, not set now",
        '  new: not set in the run, "a" now',
    ]


def test_what_changes_nothing_that_is_computed_may_differ(tmp_path: Path) -> None:
    folder = open_run("train", str(tmp_path / "run"), "seed: 0\nworkers: 2\n")
    (folder / "metrics.jsonl").touch()
    assert open_run("train", str(folder), "seed: 0\nworkers: 3\n", may_change=("workers",))
    assert (folder / "config.yaml").read_text() == "seed: 0\nworkers: 3\n"


def test_a_run_that_failed_before_it_began_does_not_block_the_corrected_command(
    tmp_path: Path,
) -> None:
    folder = open_run("plan", str(tmp_path / "run"), "task: reech\n")
    assert open_run("plan", str(folder), "task: reach\n") == folder
    assert (folder / "config.yaml").read_text() == "task: reach\n"


def test_the_machine_is_described_in_json(tmp_path: Path) -> None:
    machine = describe_machine()
    write_json(tmp_path / "machine.json", machine)
    assert json.loads((tmp_path / "machine.json").read_text()) == machine
    assert machine["torch_threads"] == 1
    assert {"processor", "cores", "gpu", "torch", "mujoco", "git_commit"} <= machine.keys()
