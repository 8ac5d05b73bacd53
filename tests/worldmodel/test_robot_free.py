import importlib.util
from pathlib import Path

import pytest
import torch

from worldmodel import checkpoint
from worldmodel.data.latents import LatentCache
from worldmodel.jepa import JEPA
from worldmodel.pose import action_between
from worldmodel.prediction_task import Windows
from worldmodel.robot_free import RobotFree, compared
from worldmodel.training import Schedule

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("train_on_spots", HERE / "test_train.py")
assert spec is not None and spec.loader is not None
spots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(spots)
SIX_STEPS, metrics_of, run_train = spots.SIX_STEPS, spots.metrics_of, spots.run_train

NAMES = ["identity_ratio", "shuffled_action_ratio", "argmin_error_cm", "ranking_top1"]
LEARNING = Schedule(name="cosine", peak=1e-2, steps=40, warmup_steps=5)


@pytest.fixture(scope="module")
def learned(spot_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned where the spot goes, measured three times."""
    run = tmp_path_factory.mktemp("robot_free") / "run"
    run_train(spot_store, run, schedule=LEARNING, validate_every=20, measure_every=16)
    return run


def measures(line: dict[str, float]) -> dict[str, float]:
    return {name: line[f"robot_free_{name}"] for name in NAMES}


def test_measures_are_taken_at_their_interval_and_at_the_end(learned: Path) -> None:
    measured = [line for line in metrics_of(learned) if "robot_free_ranking_top1" in line]
    assert [line["step"] for line in measured] == [16, 32, 40]
    assert "validation_loss" not in measured[0] and "validation_loss" in measured[-1]
    provenance = checkpoint.read_config(learned / "model")["provenance"]
    assert measures(provenance) == measures(measured[-1])


def windows_of(run: Path) -> Windows:
    """Windows of two frames of all recordings."""
    (folder,) = (run.parent / "cache" / "store").iterdir()
    cache = LatentCache(folder, folder.name)
    return Windows(cache, cache.ids.tolist(), dt=0.25, frames=2, strides=[1])


def broken(world: JEPA, how: str) -> JEPA:
    """Returns the model, deaf to actions, or with its energies turned away from the truth."""
    with torch.no_grad():
        if how == "deaf":
            world.predictor.action_encoder.weight.zero_()
        if how == "copying":
            world.predictor.predictor_proj.weight.zero_()
            world.predictor.predictor_proj.bias.zero_()
    return world


@pytest.mark.parametrize(
    ("how", "worse"),
    [("deaf", NAMES), ("copying", ["identity_ratio", "shuffled_action_ratio", "ranking_top1"])],
)
def test_measures_worsen_when_the_model_is_broken(
    learned: Path, how: str, worse: list[str]
) -> None:
    robot_free = RobotFree.draw(windows_of(learned), windows=64, searches=8, distance="l1", seed=0)
    good = robot_free.measure(checkpoint.load(learned / "model"))
    bad = robot_free.measure(broken(checkpoint.load(learned / "model"), how))
    for name in worse:
        sign = -1 if name == "ranking_top1" else 1
        assert sign * bad[f"robot_free_{name}"] > sign * good[f"robot_free_{name}"], name
    assert bad["robot_free_shuffled_action_ratio"] == pytest.approx(1.0)


def test_the_error_is_that_of_the_latents_that_the_model_was_trained_on(learned: Path) -> None:
    robot_free = RobotFree.draw(windows_of(learned), windows=32, searches=2, distance="l2", seed=0)
    world = checkpoint.load(learned / "model")
    latents = (robot_free.latents.float() - world.latent_mean) / world.latent_std
    proprio = torch.from_numpy(robot_free.proprio)
    with torch.inference_mode():
        ahead = world.predict(
            latents[:, :1], proprio[:, :1], action_between(proprio[:, :1], proprio[:, 1:])
        )
    error, still = ((x - latents[:, 1:]).square().mean() for x in (ahead, latents[:, :1]))
    measured = robot_free.measure(world)["robot_free_identity_ratio"]
    assert measured == pytest.approx(float(error / still), rel=1e-3)


def test_measuring_changes_nothing_of_the_run(learned: Path, spot_store: Path) -> None:
    run = learned.parent / "unmeasured"
    run_train(spot_store, run, schedule=LEARNING, validate_every=20)
    plain = {line["step"]: line for line in metrics_of(run)}
    for line in metrics_of(learned):
        kept = {name: x for name, x in line.items() if not name.startswith("robot_free")}
        assert kept == plain[line["step"]]


def test_the_last_sentence_has_the_measures_beside_those_before(
    learned: Path, spot_store: Path
) -> None:
    again = run_train(
        spot_store, learned, schedule=LEARNING, validate_every=20, measure_every=16
    )  # it has ended, and says the same
    lines = [line for line in metrics_of(learned) if "robot_free_ranking_top1" in line]
    then, now = measures(lines[-2]), measures(lines[-1])
    word = "better" if now["argmin_error_cm"] < then["argmin_error_cm"] else "worse"
    said = f"argmin_error_cm {now['argmin_error_cm']:.3g} ({word}, {then['argmin_error_cm']:.3g}),"
    assert "without a robot, beside step 32: identity_ratio" in again.verdict
    assert said in again.verdict


def test_another_checkpoint_is_measured_on_the_same_windows(
    learned: Path, spot_store: Path
) -> None:
    result = run_train(
        spot_store,
        learned.parent / "short",
        schedule=SIX_STEPS,
        measure_every=100,
        compare_with=str(learned / "model"),
    )
    theirs = measures(checkpoint.read_config(learned / "model")["provenance"])
    assert f"(worse, {theirs['identity_ratio']:.3g})" in result.verdict
    assert f"(worse, {theirs['shuffled_action_ratio']:.3g})" in result.verdict


def test_a_rank_is_better_when_it_is_higher_and_an_error_when_it_is_lower() -> None:
    now = {"robot_free_ranking_top1": 0.5, "robot_free_argmin_error_cm": 2.0, "loss": 1.0}
    then = {"robot_free_ranking_top1": 0.25, "robot_free_argmin_error_cm": 1.0, "loss": 2.0}
    assert compared(now, then) == "ranking_top1 0.5 (better, 0.25), argmin_error_cm 2 (worse, 1)"
    assert compared(now, now).count("the same") == 2


def test_actions_of_too_few_recordings_are_not_ranked(learned: Path) -> None:
    cache = windows_of(learned).cache
    few = Windows(cache, cache.ids.tolist()[:1], dt=0.25, frames=2, strides=[1])
    robot_free = RobotFree.draw(few, windows=16, searches=2, distance="l2", seed=0)
    measured = robot_free.measure(checkpoint.load(learned / "model"))
    assert [name.removeprefix("robot_free_") for name in measured] == NAMES[:3]


def test_event_files_have_the_measures(learned: Path) -> None:
    written = b"".join(file.read_bytes() for file in (learned / "events").iterdir())
    assert written.count(b"robot_free_argmin_error_cm") == 3
