"""`planner.gate`: the controller asks a model that watches."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

from worldmodel import checkpoint
from worldmodel.cli import compose
from worldmodel.envs.cameras import choose_backend
from worldmodel.fleet import Scene
from worldmodel.planners.gate import SurpriseGate
from worldmodel.verbs.planning import planner_settings
from worldmodel.verbs.shared import UserError, load_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.gate")


def settings_of(*words: str) -> tuple[Any, Any]:
    config = compose("evaluate", list(words))
    world = load_world(config)
    return world, planner_settings(config, world)


def test_the_gate_asks_the_model_that_is_named() -> None:
    world, settings = settings_of("planner.gate=watch")
    gate = settings.gate
    assert isinstance(gate, SurpriseGate)
    assert checkpoint.fingerprint(gate.world) == checkpoint.fingerprint(checkpoint.load("watch"))
    assert checkpoint.fingerprint(gate.world) != checkpoint.fingerprint(world)
    assert 0 < gate.calm_below < gate.slow_above < gate.hold_above
    assert settings_of()[1].gate is None


def test_a_gate_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gate_calibration is of planner.gate, which names no mode"):
        settings_of("planner.gate_calibration=file")
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        settings_of("planner.gate=nowhere")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(UserError, match="file is a file; .* is for planner.gate_calibration"):
        settings_of(f"planner.gate={tmp_path / 'file'}")
    with pytest.raises(FileNotFoundError, match="no surprise calibration at .*calibrate=true"):
        settings_of("planner.gate=watch", f"planner.gate_calibration={tmp_path / 'none'}")
    with pytest.raises(ValueError, match="was made with another model"):
        file = checkpoint.SHIPPED["default"] / "calibration.safetensors"
        settings_of("planner.gate=watch", f"planner.gate_calibration={file}")
    world = checkpoint.load("watch")
    world.control_hz = 5.0
    checkpoint.save(world, tmp_path / "fast", provenance={})
    with pytest.raises(UserError, match=r"predicts 5.0 frames a second, and the model .* 4.0"):
        settings_of(f"planner.gate={tmp_path / 'fast'}")
    world.control_hz, world.crop = 4.0, "square"
    checkpoint.save(world, tmp_path / "cut", provenance={})
    with pytest.raises(UserError, match=r"sees 128 pixels \(crop square\), .* 128 \(crop none\)"):
        settings_of(f"planner.gate={tmp_path / 'cut'}")


def test_a_frozen_camera_shows_an_old_picture_and_leaves_goals_alone(benchmark) -> None:
    @dataclasses.dataclass
    class Seen:
        image: int
        distance: float = 0.0

    class Goal:
        image = 99

    look = benchmark.Camera(range(2, 4))
    assert [look(Seen(0)), look(Goal()), *(look(Seen(k)) for k in range(1, 6))] == [
        0, 99, 1, 2, 2, 4, 5,
    ]  # fmt: skip


def test_the_shipped_gate_stops_an_arm_whose_camera_froze(benchmark) -> None:
    if choose_backend("auto") != "gl":
        pytest.skip("the shipped models were trained on pictures that OpenGL drew")
    ways = {}
    for gate in ("null", "watch"):
        world, settings = settings_of(f"planner.gate={gate}")
        frozen = benchmark.FROZEN
        scene = Scene("reach", "none", world.image_size, "exterior", "auto", 4.0, 12)
        episodes = benchmark.run(world, settings, scene, frozen, 2)
        row: dict[str, Any] = benchmark.summary(episodes, frozen)
        told = [set(episode.verdicts) for episode in episodes]
        assert told == [set(), set()] if gate == "null" else all(len(one) > 1 for one in told)
        ways[gate] = row["blind_way_cm"]["p50"]
    assert ways["watch"] < ways["null"] / 1.5
