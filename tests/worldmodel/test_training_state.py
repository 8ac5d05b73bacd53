import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldmodel import training_state
from worldmodel.training_state import last, load, read_weights, save, states


def state_of(number: float) -> dict[str, dict[str, Tensor]]:
    return {"model": {"weight": torch.full((2, 3), number), "bias": torch.full((3,), -number)}}


def save_one(run: Path, step: int, *, keep: int = 2) -> None:
    save(run, state_of(step), step=step, meta={"best": 0.5}, keep=keep)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert last(tmp_path) is None
    save_one(tmp_path, 7)
    saved = last(tmp_path)
    assert saved is not None and (saved.step, saved.meta) == (7, {"best": 0.5})
    into = state_of(0)
    load(saved, into)
    torch.testing.assert_close(into, state_of(7), rtol=0, atol=0)
    whole = read_weights(saved, state_of(0)["model"])
    torch.testing.assert_close(whole, state_of(7)["model"], rtol=0, atol=0)


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (5, 90, 1000):  # in the order of numbers, not of letters
        save_one(tmp_path, step)
    assert [saved.step for saved in states(tmp_path)] == [90, 1000]
    save(tmp_path, state_of(1), step=90, meta={}, keep=1, kind="best")
    assert [saved.step for saved in states(tmp_path)] == [90, 1000]  # each kind by itself
    assert [saved.step for saved in states(tmp_path, "best")] == [90]
    with pytest.raises(ValueError, match="keep_last must be 1 or more, got 0"):
        save_one(tmp_path, 1001, keep=0)


@pytest.mark.parametrize("moment", ["shards", "meta", "rename"])
def test_a_state_that_was_not_finished_is_never_picked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The process dies while it writes shards, before it writes meta.json, before it renames."""
    save_one(tmp_path, 3)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "shards":
            patch.setattr(training_state.FileSystemWriter, "finish", die)
        elif moment == "meta":
            patch.setattr(training_state.json, "dump", die)
        else:
            patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            save_one(tmp_path, 6)
    saved = last(tmp_path)
    assert saved is not None and saved.step == 3
    load(saved, into := state_of(0))
    torch.testing.assert_close(into, state_of(3))
    assert (tmp_path / "state" / "step-00000006.part").exists()
    save_one(tmp_path, 9)
    names = sorted(folder.name for folder in (tmp_path / "state").iterdir())
    assert names == ["step-00000003", "step-00000009"]  # the draft is gone


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state.FileSystemWriter, "write_data", fill)
    with pytest.raises(OSError, match="state of step 6 cannot be written to .*No space left"):
        save_one(tmp_path, 6)
    assert last(tmp_path) is None


def test_a_state_that_is_made_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    save_one(tmp_path, 3)
    save(tmp_path, state_of(8), step=3, meta={}, keep=2)
    saved = last(tmp_path)
    assert saved is not None
    torch.testing.assert_close(read_weights(saved, state_of(0)["model"]), state_of(8)["model"])


def test_a_damaged_state_is_named_and_not_passed_over(tmp_path: Path) -> None:
    save_one(tmp_path, 3)
    save_one(tmp_path, 6)
    (shard,) = (tmp_path / "state" / "step-00000006").glob("*.distcp")
    shard.unlink()
    saved = last(tmp_path)
    assert saved is not None and saved.step == 6
    with pytest.raises(ValueError, match="step-00000006 cannot be read.*delete that folder"):
        load(saved, state_of(0))
    shutil.rmtree(saved.folder)
    saved = last(tmp_path)
    assert saved is not None and saved.step == 3


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save_one(tmp_path, 3)
    saved = last(tmp_path)
    assert saved is not None
    for other in ({"weight": torch.zeros(2, 4)}, {"scale": torch.zeros(3)}):
        with pytest.raises(ValueError, match="cannot be read: it is damaged, or of another model"):
            load(saved, {"model": other})


def test_a_run_of_an_earlier_version_is_not_started_anew_in_silence(tmp_path: Path) -> None:
    old = tmp_path / "state.pt"
    old.touch()
    with pytest.raises(ValueError, match="earlier version, .*delete .*state.pt"):
        last(tmp_path)
    old.unlink()
    assert last(tmp_path) is None
    save_one(tmp_path, 7)
    old.touch()  # a leftover beside a state of this version harms nobody
    saved = last(tmp_path)
    assert saved is not None and saved.step == 7
