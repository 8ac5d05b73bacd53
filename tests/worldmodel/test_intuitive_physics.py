"""The whole measurement, on a model that knows nothing: its numbers must belong together."""

import json

import pytest
import torch

from worldmodel import checkpoint, error_model
from worldmodel.envs.cameras import choose_backend
from worldmodel.envs.expert import make_policy
from worldmodel.envs.franka_env import FrankaEnv
from worldmodel.envs.violations import CONTROL, KINDS, make_pair
from worldmodel.intuitive_physics import (
    KindResult,
    PhysicsResult,
    _episode,
    measure_physics,
    physics_table,
)
from worldmodel.surprise import episode_surprise
from worldmodel.surprise_calibration import CALIBRATION_FILE, fit_calibration, load_calibration


@pytest.fixture(scope="module", autouse=True)
def short_lessons():
    """An error model of made-up latents has little to learn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_model, "UPDATES", 300)
        yield


def quiet_calibration(steps: int):
    drawn = torch.Generator().manual_seed(0)
    clean = []
    for _ in range(30):
        before = torch.randn(steps, 4, 96, generator=drawn)
        predicted, after = (
            before + 0.1 * torch.randn(steps, 4, 96, generator=drawn) for _ in range(2)
        )
        clean.append((before, predicted, after))
    about = {"model": "m", "camera": "exterior", "recordings": "made up"}
    return fit_calibration(clean, merge=2, **about, progress=False)


def test_every_kind_is_played_scored_and_drawn(make_world, tmp_path):
    result = measure_physics(
        world=make_world(merge=2, standardise=True),
        calibration=quiet_calibration(5),
        run=tmp_path,
        task="reach",
        behaviour="scripted",
        pairs=1,
        steps=5,
        seed=0,
        backend="ray",
        progress=False,
    )
    written = json.loads((tmp_path / "physics.json").read_text())
    assert tuple(written["kinds"]) == KINDS
    for kind in result.kinds:
        numbers = written["kinds"][kind.kind]
        assert numbers["paired_accuracy"]["count"] == kind.higher <= kind.pairs == 1
        assert numbers["control"] == (kind.kind == CONTROL)
        assert (tmp_path / f"{kind.kind}_worst_step.png").is_file()
    assert written["paired_accuracy"]["of"] == len(KINDS) - 1  # the control does not count
    assert written["false_flags"]["of"] == len(KINDS)


def test_the_control_is_not_counted_as_a_violation():
    result = PhysicsResult(
        (
            KindResult("vanish_object", 10, 9, 4, 1),
            KindResult("freeze_camera", 10, 10, 8, 0),
            KindResult(CONTROL, 10, 5, 2, 0),
        )
    )
    assert result.paired == (19, 20)
    assert result.flagged == (12, 20)
    assert result.false_flags == (1, 30)
    last = physics_table(result).splitlines()
    assert last[-2].startswith("all but the control") and " 95%" in last[-2] and " 60%" in last[-2]
    assert last[-1].startswith("possible runs") and " 3%" in last[-1]


def test_the_shipped_watcher_sees_what_happens_to_cubes():
    if choose_backend("auto") != "gl":
        pytest.skip("it was trained on pictures that OpenGL drew")
    world = checkpoint.load("watch")
    calibration = load_calibration(
        checkpoint.WATCH_CHECKPOINT / CALIBRATION_FILE, world=world, camera="exterior"
    )
    env = FrankaEnv(task="reach", image_size=128, backend="gl")
    noticed = 0
    for kind in ("teleport_object", "slide_object"):
        for seed in range(100, 103):
            pair = make_pair(env, kind, lambda: make_policy("noisy", env), seed=seed, steps=8)
            scores = [
                episode_surprise(world, calibration, _episode(recording, env, "noisy")).scores
                for recording in (pair.possible, pair.impossible)
            ]
            noticed += scores[1].max() > scores[0].max()
    env.close()
    assert noticed >= 5


def test_no_pairs_are_refused(make_world, tmp_path):
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        measure_physics(
            world=make_world(),
            calibration=quiet_calibration(5),
            run=tmp_path,
            task="reach",
            behaviour="scripted",
            pairs=0,
            steps=5,
            seed=0,
            backend="ray",
        )
