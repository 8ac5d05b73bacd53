"""`worldmodel validate`: the shipped model, sound and broken on purpose, and the program."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.checkpoint import fingerprint, load_default
from worldmodel.cli import compose, main
from worldmodel.jepa import JEPA
from worldmodel.validate import (
    Validation,
    fresh_episodes,
    measure,
    validation_table,
    write_pictures,
)
from worldmodel.validation.held_out import HeldOut, read_held_out
from worldmodel.verbs.planning import planner_settings

SMALL = {"horizon": 4, "candidates": 8, "searches": 16, "samples": 48, "iterations": 4}
SMALL |= {"plan_steps": 1, "seed": 0, "progress": False}
PICTURES = ["action_ranking", "camera_rotation", "energy_argmin", "latent_errors", "open_loop"]


@pytest.fixture(scope="module")
def shipped() -> JEPA:
    return load_default()


@pytest.fixture(scope="module")
def held_out(shipped: JEPA, tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    source = fresh_episodes(
        tmp_path_factory.mktemp("fresh") / "episodes",
        world=shipped,
        hz=4.0,
        camera="exterior",
        backend="ray",
        episodes=6,
        steps=12,
        seed=0,
        progress=False,
    )
    return read_held_out(
        shipped,
        source,
        camera="exterior",
        hz=4.0,
        frames=5,
        windows=48,
        episodes=6,
        seed=0,
        progress=False,
    )


@pytest.fixture(scope="module")
def sound(shipped: JEPA, held_out: HeldOut) -> Validation:
    return measure(shipped, held_out, **SMALL)


class Mistaken:
    """The shipped model, which takes every action for another one."""

    def __init__(self, world: JEPA, mistake) -> None:
        self.world, self.mistake = world, mistake

    def encode(self, frames):
        return self.world.encode(frames)

    def predict(self, latents, proprio, actions):
        return self.world.predict(latents, proprio, self.mistake(actions))

    def rollout(self, latents, proprio, actions):
        return self.world.rollout(latents, proprio, self.mistake(actions))


def with_noise_in_the_predictor(world: JEPA) -> JEPA:
    broken = copy.deepcopy(world)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in broken.predictor.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += 0.5 * noise * weight.std(correction=0)
    return broken


def with_shuffled_action_columns(world: JEPA) -> Mistaken:
    return Mistaken(world, lambda actions: actions[..., [1, 2, 0, 3, 4, 5, 6]])


def behind_a_turned_camera(world: JEPA, degrees: float = 80.0) -> Mistaken:
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return Mistaken(world, lambda a: torch.cat([a[..., :2] @ matrix.mT, a[..., 2:]], dim=-1))


def test_the_shipped_model_predicts_listens_and_knows_where_to_go(sound: Validation) -> None:
    numbers = sound.to_json()
    assert numbers["identity_ratio"] < 0.7
    assert numbers["shuffled_action_ratio"] < 0.5
    assert numbers["action_ranking"]["top1"] > 0.7
    assert numbers["argmin_error_cm"] < 0.6 * numbers["energy_argmin"]["still_error_cm"]
    assert numbers["open_loop_score"] > numbers["open_loop"]["still_score"] + 10
    assert abs(numbers["camera_rotation"]["angle_deg"]) < 15


BROKEN = {
    "noise in the predictor": with_noise_in_the_predictor,
    "shuffled action columns": with_shuffled_action_columns,
    "behind a turned camera": behind_a_turned_camera,
}


@pytest.fixture(scope="module")
def broken(shipped: JEPA, held_out: HeldOut) -> dict[str, Validation]:
    return {name: measure(make(shipped), held_out, **SMALL) for name, make in BROKEN.items()}


@pytest.mark.parametrize("how", BROKEN)
def test_every_measure_worsens_when_the_model_is_broken_on_purpose(
    sound: Validation, broken: dict[str, Validation], how: str
) -> None:
    good, bad = sound.to_json(), broken[how].to_json()
    assert bad["identity_ratio"] > good["identity_ratio"] + 0.1
    assert bad["shuffled_action_ratio"] > good["shuffled_action_ratio"] + 0.05
    last_ratios = [numbers["latent_errors"]["identity_ratios"][-1] for numbers in (good, bad)]
    assert last_ratios[1] > last_ratios[0] + 0.1
    assert bad["action_ranking"]["top1"] < good["action_ranking"]["top1"] - 0.1
    assert bad["action_ranking"]["mean_rank"] > good["action_ranking"]["mean_rank"] + 0.2
    assert bad["argmin_error_cm"] > 1.3 * good["argmin_error_cm"]
    assert bad["open_loop_score"] < good["open_loop_score"] - 3


def test_of_the_shipped_model_behind_a_turned_camera_the_angle_is_found_and_repaired(
    sound: Validation, broken: dict[str, Validation]
) -> None:
    astray = broken["behind a turned camera"].camera
    # 16 moves of a model that sees depth badly: the angle is known to some ten degrees.
    assert astray.angle_deg - sound.camera.angle_deg == pytest.approx(80, abs=25)
    before, after = astray.errors_cm()
    assert after < 0.85 * before


def test_the_same_measures_draw_the_same_pictures(sound: Validation, tmp_path: Path) -> None:
    files = write_pictures(sound, tmp_path)
    assert sorted(file.stem for file in files) == PICTURES
    first = [file.read_bytes() for file in files]
    assert all(len(content) > 8000 for content in first)
    assert [file.read_bytes() for file in write_pictures(sound, tmp_path)] == first


TINY = ["windows=24", "horizon=3", "candidates=4", "searches=10", "samples=16", "iterations=2"]
TINY += ["plan_steps=2", "episodes=6"]


def test_validate_writes_numbers_pictures_and_the_correction_beside_the_checkpoint(
    world_checkpoint: Path, spot_store: Path, tmp_path: Path, capsys
) -> None:
    run, own = tmp_path / "run", tmp_path / "model"
    own.mkdir()
    for file in world_checkpoint.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    words = ["validate", f"checkpoint={own}", f"data={spot_store}", f"run={run}", *TINY]
    assert main(words) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == f"writing to {run}"
    assert lines[-1].startswith("error ") and lines[-1].endswith(" cm off")
    assert sorted(file.stem for file in run.glob("*.png")) == PICTURES
    correction = json.loads((own / "camera_rotation.json").read_text())
    assert correction["camera"] == "exterior"
    first = (run / "validation.json").read_bytes()
    numbers = json.loads(first)
    assert correction["rotation"] == numbers["camera_rotation"]["rotation"]
    assert numbers["model"] == correction["model"]
    assert numbers["settings"]["windows"] == 24
    # The same again, as one JSON object alone; byte for byte the same.
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.encode() == first == (run / "validation.json").read_bytes()
    assert {"identity_ratio", "shuffled_action_ratio", "argmin_error_cm"} <= set(json.loads(out))
    assert 0 <= json.loads(out)["action_ranking"]["top1"] <= 1


def test_without_data_the_correction_stays_in_the_run_folder(tmp_path: Path) -> None:
    from worldmodel.verbs.validation import _correction_path

    run, model = tmp_path / "run", tmp_path / "model"
    model.mkdir()

    def path(*words: str) -> Path:
        return _correction_path(compose("validate", list(words)), run)

    assert path() == path(f"checkpoint={model}") == run / "camera_rotation.json"
    assert path("data=logs") == run / "camera_rotation.json"  # the shipped model is not written to
    assert path("data=logs", f"checkpoint={model}") == model / "camera_rotation.json"
    assert path("data=logs", f"checkpoint={model}", "correction=a/b.json") == Path("a/b.json")


def test_one_switch_applies_the_correction_at_planning_time(
    shipped: JEPA, sound: Validation, tmp_path: Path
) -> None:
    from worldmodel.closed_loop import make_controller
    from worldmodel.fleet import Arms, Scene
    from worldmodel.planners.camera_rotation import TurnedWorld
    from worldmodel.validation.camera_rotation import save_camera_rotation

    path = tmp_path / "camera_rotation.json"
    save_camera_rotation(
        sound.camera, path, model=fingerprint(shipped), camera="exterior", recordings="r", seed=0
    )
    config = compose("evaluate", [f"planner.camera_rotation={path}"])
    settings = planner_settings(config, shipped)
    np.testing.assert_allclose(settings.camera_rotation, sound.camera.rotation)
    assert planner_settings(compose("evaluate", []), shipped).camera_rotation is None

    arms = Arms([Scene("reach", "none", 128, "exterior", "ray", 4.0, None).make()])
    controller = make_controller(shipped, settings, arms.body(), device=torch.device("cpu"))
    arms.close()
    assert isinstance(controller.world, TurnedWorld) and controller.world.world is shipped
    with pytest.raises(ValueError, match="is of camera 'exterior', not of 'wrist'"):
        planner_settings(
            compose("evaluate", [f"planner.camera_rotation={path}", "camera=wrist"]), shipped
        )


def test_a_table_says_what_is_worthless(sound: Validation) -> None:
    text = validation_table(sound.to_json())
    assert "true action first among 8" in text and "12.5%" in text
    assert "| 4.5 " in text
    assert f"{sound.argmin.error_cm:.2f}" in text


def test_a_model_without_a_rate_must_be_told_it(make_world, spot_store: Path, tmp_path) -> None:
    from worldmodel import checkpoint

    world = make_world(merge=2, standardise=True)
    world.control_hz = None
    checkpoint.save(world, tmp_path / "model", provenance={})
    words = [f"checkpoint={tmp_path / 'model'}", f"data={spot_store}", *TINY]
    assert main(["validate", *words, f"run={tmp_path / 'a'}"]) == 2
    assert main(["validate", *words, f"run={tmp_path / 'b'}", "model_hz=4"]) == 0


def test_recordings_of_another_rate_or_camera_are_refused_in_one_line(
    world_checkpoint: Path, spot_store: Path, tmp_path: Path, capsys
) -> None:
    def message(*words: str) -> str:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        own = [f"checkpoint={world_checkpoint}", f"data={spot_store}", f"run={run}"]
        assert main(["validate", *own, *TINY, *words]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "unknown camera 'wrst'" in message("camera=wrst")
    assert "model_hz=5, but the checkpoint was trained at 4 Hz" in message("model_hz=5")
    assert "limits must be 7 numbers above 0" in message("limits=[1,2]")
    assert "unknown distance 'l3'" in message("distance=l3")
