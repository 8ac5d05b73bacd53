import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from worldmodel.data.collect import CollectResult, collect
from worldmodel.data.episode import find_problems
from worldmodel.data.store import EpisodeStore


def _collect(path: Path, **changes) -> CollectResult:
    arguments = {
        "episodes": 4,
        "steps": 3,
        "image_size": 24,
        "backends": ("ray",),
        "behaviours": {"scripted": 0.5, "explore": 0.5},
        "seed": 5,
        "progress": False,
    }
    return collect(path, **arguments | changes)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> EpisodeStore:
    """Four episodes by one worker, in one go."""
    path = tmp_path_factory.mktemp("collect") / "reference"
    assert _collect(path, workers=1).collected == 4
    return EpisodeStore(path)


def _assert_same(store: EpisodeStore, reference: EpisodeStore, ids: list[int]) -> None:
    for i in ids:
        left, right = store.read(i), reference.read(i)
        assert left.metadata == right.metadata
        np.testing.assert_array_equal(left.frames["exterior"], right.frames["exterior"])
        np.testing.assert_array_equal(left.proprio, right.proprio)
        np.testing.assert_array_equal(left.timestamps, right.timestamps)


def test_collected_episodes_are_valid_and_differ(reference):
    assert reference.ids() == [0, 1, 2, 3]
    episodes = [reference.read(i) for i in reference.ids()]
    for episode in episodes:
        assert find_problems(episode) == []
        assert episode.frames["exterior"].shape == (4, 24, 24, 3)
        assert episode.metadata.renderer == "ray"
        np.testing.assert_allclose(np.diff(episode.timestamps), 0.25, atol=1e-6)
        assert np.abs(episode.actions[:, :3]).max() > 1e-3, "the arm moved"
    assert len({episode.proprio.tobytes() for episode in episodes}) == 4
    assert {episode.metadata.behaviour for episode in episodes} == {"scripted", "explore"}


def test_two_workers_in_two_goes_make_the_same_episodes(reference, tmp_path):
    path = tmp_path / "store"
    _collect(path, workers=1, episodes=1, start_index=2)
    result = _collect(path, workers=2)
    assert (result.found, result.collected) == (1, 3)
    _assert_same(EpisodeStore(path), reference, [0, 1, 2, 3])
    assert _collect(path).collected == 0


def _runs(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_collection_is_continued_to_the_same_result(reference, tmp_path):
    path = tmp_path / "store"
    script = (
        "from worldmodel.data.collect import collect\n"
        "if __name__ == '__main__':\n"
        f"    collect({str(path)!r}, episodes=400, steps=3, image_size=24, backends=('ray',),\n"
        "            behaviours={'scripted': 0.5, 'explore': 0.5}, seed=5, workers=2)\n"
    )
    (tmp_path / "run.py").write_text(script)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")], stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not (path / "store.json").exists() or len(EpisodeStore(path)) < 2:
                assert process.poll() is None
                time.sleep(0.02)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            os.kill(process.pid, signal.SIGKILL)

    assert len(children) >= 2
    deadline = time.monotonic() + 60  # The workers notice that their parent is gone, and exit.
    while any(_runs(int(pid)) for pid in children):
        assert time.monotonic() < deadline, "the workers outlive their parent"
        time.sleep(0.05)
    count = len(EpisodeStore(path))
    assert 2 <= count < 400
    _collect(path)
    while list((path / "writing").iterdir()):  # a worker missing from `children` may end later
        assert time.monotonic() < deadline, "the draft of a dead worker is never removed"
        time.sleep(0.05)
        EpisodeStore(path, mode="a")
    _assert_same(EpisodeStore(path), reference, [0, 1, 2, 3])


def test_other_settings_do_not_mix_into_the_store(reference):
    for changes, message in (
        ({"seed": 6}, "its seed is .*repeat the settings to continue, or choose another folder"),
        ({"image_size": 32}, r"its frames is \(4, 24, 24, 3\), these settings give \(4, 32"),
        ({"steps": 4}, "its frames is"),
        ({"behaviours": {"noisy": 1.0}}, "its behaviour is .*, these settings give noisy"),
        ({"backends": ("gl",)}, "its renderer is ray, these settings give gl"),
    ):
        with pytest.raises(ValueError, match=message):
            _collect(reference.path, **changes)


def test_tasks_and_variations_are_mixed_and_recorded(tmp_path):
    halves = {"none": 0.5, "mild": 0.5}
    mix = {"seed": 6, "tasks": {"lift": 0.5, "drawer_open": 0.5}, "variations": halves}
    _collect(tmp_path, episodes=8, workers=1, behaviours={"play": 1.0}, **mix)
    store = EpisodeStore(tmp_path)
    seen = {(m.task, m.variation) for m in map(store.read_metadata, range(8))}
    assert {task for task, _ in seen} == {"lift", "drawer_open"}
    assert {variation for _, variation in seen} == {"none", "mild"}
    with pytest.raises(ValueError, match="its (task|variation|behaviour|seed) is"):
        _collect(tmp_path, episodes=8, behaviours={"play": 1.0}, tasks={"push": 1.0})


def test_several_cameras_are_recorded_together(tmp_path):
    _collect(tmp_path, episodes=1, cameras=("exterior", "wrist"), workers=1)
    episode = EpisodeStore(tmp_path).read(0)
    assert list(episode.frames) == ["exterior", "wrist"]
    assert find_problems(episode) == []
    assert (episode.frames["exterior"][:] != episode.frames["wrist"][:]).any()


def test_arguments_out_of_range_are_named(tmp_path):
    for changes, message in (
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 1"),
        ({"cameras": ()}, "name at least one camera"),
        ({"behaviours": {"noisy": 0.0}}, "behaviour weights must be >= 0 with a positive sum"),
        ({"tasks": {"lift": -1.0}}, "task weights must be >= 0"),
        ({"tasks": {"lfit": 1.0}}, "unknown task 'lfit'; did you mean 'lift'"),
        ({"variations": {"mildd": 1.0}}, "did you mean 'mild'"),
        ({"behaviours": {"noisi": 1.0}}, "unknown behaviour 'noisi'; did you mean 'noisy'"),
    ):
        with pytest.raises(ValueError, match=message):
            _collect(tmp_path / "store", **changes)
