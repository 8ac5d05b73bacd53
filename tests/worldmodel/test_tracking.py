import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worldmodel.tracking import Tracking


def test_lines_and_events_are_written(tmp_path: Path) -> None:
    tracking = Tracking(tmp_path, ["tensorboard"], resume_step=0)
    assert not (tmp_path / "events").exists()  # a finished run that is started again adds nothing
    tracking.write(1, {"loss": 0.5})
    tracking.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    assert len(list((tmp_path / "events").iterdir())) == 1


def test_lines_alone_are_written_on_request(tmp_path: Path) -> None:
    Tracking(tmp_path, [], resume_step=0).write(1, {"loss": 0.5})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_unknown_tracker_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; did you mean 'tensorb"):
        Tracking(tmp_path, ["tensorbord"], resume_step=0)  # type: ignore[list-item]


def test_wandb_that_is_not_installed_names_the_command(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"wandb is not installed; run: pip install 'worldmodel"):
        Tracking(tmp_path, ["wandb"], resume_step=0)


def test_wandb_knows_a_resumed_run_again(monkeypatch, tmp_path: Path) -> None:
    calls: list[tuple[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        calls.append(("init", settings))
        return SimpleNamespace(
            log=lambda values, step: calls.append(("log", (step, values))),
            finish=lambda: calls.append(("finish", None)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for resume_step in (0, 1):
        tracking = Tracking(tmp_path, ["wandb"], resume_step=resume_step)
        tracking.write(resume_step + 1, {"loss": 0.5})
        tracking.close()
    assert [name for name, _ in calls] == ["init", "log", "finish"] * 2
    assert calls[0][1]["id"] == calls[3][1]["id"] and calls[0][1]["resume"] == "allow"
    assert calls[1][1] == (1, {"loss": 0.5}) and calls[4][1] == (2, {"loss": 0.5})
