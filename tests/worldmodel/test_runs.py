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
