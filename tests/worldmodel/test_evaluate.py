import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel import checkpoint, envs
from worldmodel.evaluate import (
    PlannerSettings,
    energy_between,
    episode_seeds,
    evaluate,
    keep_frames,
    make_controller,
    run_baseline,
    run_planner,
)
from worldmodel.planners import CEM, LatentL1Energy
from worldmodel.results import EpisodeResult, Evaluation

CPU = torch.device("cpu")
SETTINGS = PlannerSettings(
    search=CEM(cost=LatentL1Energy(), num_samples=8, num_elites=2, num_iterations=2),
    axes=("x", "y", "z"),
    limits=None,
    warm_start=True,
    replan_every=1,
    num_context=1,
    deadline_ms=None,
)


@pytest.fixture(scope="module")
def env():
    env = envs.make("reach", image_size=32, backend="ray", max_episode_steps=2)
    yield env
    env.close()


def run_evaluate(world_checkpoint: Path, run: Path, *, seed: int = 0) -> Evaluation:
    run.mkdir()
    return evaluate(
        world=checkpoint.load(world_checkpoint),
        settings=SETTINGS,
        run=run,
        task="reach",
        episodes=2,
        steps=2,
        seed=seed,
        camera="exterior",
        backend="ray",
        device="cpu",
        videos=1,
        description={"planner": "cem"},
        progress=False,
    )


@pytest.fixture(scope="module")
def finished(world_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    run = tmp_path_factory.mktemp("evaluate") / "run"
    return run, run_evaluate(world_checkpoint, run)


def test_the_metrics_have_the_promised_entries(finished) -> None:
    numbers = json.loads((finished[0] / "metrics.json").read_text())
    assert numbers["success_rate"] in (0.0, 0.5, 1.0)
    assert numbers["baselines"].keys() == {"random", "do_nothing"}
    for rates in (numbers, *numbers["baselines"].values()):
        assert rates["episodes"] == 2
        assert rates["success_rate"] == rates["successes"] / 2
        low, high = rates["wilson95"]
        assert 0 <= low <= rates["success_rate"] <= high <= 1
        assert rates["final_distance_cm"]["p50"] > 0
    assert 0 < numbers["plan_ms"]["p50"] <= numbers["plan_ms"]["p95"]
    assert 0 < numbers["encode_ms"]["p50"] <= numbers["encode_ms"]["p95"]
    assert numbers["settings"] == {"planner": "cem", "renderer": "ray"}
    assert numbers["machine"]["torch_threads"] == 1


def test_every_policy_meets_the_same_episodes(finished) -> None:
    _, evaluation = finished
    policies = (evaluation.planner, *evaluation.baselines)
    assert [p.name for p in policies] == ["planner", "random", "do_nothing"]
    seeds = [[e.seed for e in p.episodes] for p in policies]
    assert seeds[0] == seeds[1] == seeds[2] == episode_seeds(0, 2)
    starts = [[e.distances[0] for e in p.episodes] for p in policies]
    assert starts[0] == starts[1] == starts[2]
    assert min(starts[0]) >= 0.15  # starts are at least 15 cm from the goal
    still = evaluation.baselines[1]
    for episode in still.episodes:
        assert not episode.actions.any()
        np.testing.assert_allclose(episode.distances, episode.distances[0], atol=2e-3)


def test_a_report_and_the_asked_number_of_videos_are_written(finished) -> None:
    run, evaluation = finished
    assert (run / "report.html").stat().st_size > 0
    assert len(list((run / "episodes").glob("*.mp4"))) == 1
    assert sum(e.frames is not None for e in evaluation.planner.episodes) == 1


def test_the_same_seed_gives_the_same_results_byte_for_byte(
    finished, world_checkpoint: Path, tmp_path: Path
) -> None:
    expected = (finished[0] / "results.json").read_bytes()
    run_evaluate(world_checkpoint, tmp_path / "same")
    assert (tmp_path / "same" / "results.json").read_bytes() == expected
    run_evaluate(world_checkpoint, tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "results.json").read_bytes() != expected


def test_the_table_of_episodes_has_no_times(finished) -> None:
    table = json.loads((finished[0] / "results.json").read_text())
    assert len(table) == 6
    assert {key for row in table for key in row} == {
        "policy",
        "seed",
        "success",
        "distances",
        "energies",
        "actions",
    }


def test_more_episodes_begin_with_the_same_seeds_and_none_is_a_training_seed() -> None:
    assert episode_seeds(3, 50)[:10] == episode_seeds(3, 10)
    assert episode_seeds(3, 10) != episode_seeds(4, 10)
    assert min(episode_seeds(3, 1000)) >= 2**31  # collect draws below
    assert max(episode_seeds(3, 1000)) < 2**32


def test_no_episodes_are_refused(world_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(
            world=checkpoint.load(world_checkpoint),
            settings=SETTINGS,
            run=tmp_path,
            task="reach",
            episodes=0,
            steps=2,
            seed=0,
            camera="exterior",
            backend="ray",
            device="cpu",
            videos=0,
            description={},
        )


def an_episode(seed: int, success: bool) -> EpisodeResult:
    return EpisodeResult(
        seed=seed,
        success=success,
        distances=np.array([0.3, 0.2]),
        energies=np.array([1.0, 0.5]),
        actions=np.full((1, 7), 0.1),
        plan_ms=np.array([5.0]),
        encode_ms=np.array([1.0]),
        frames=np.zeros((2, 4, 4, 3), np.uint8),
        goal_image=np.zeros((4, 4, 3), np.uint8),
    )


@pytest.mark.parametrize(
    "videos, shown", [(0, []), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (9, [0, 1, 2, 3])]
)
def test_failures_are_the_first_to_be_shown(videos: int, shown: list[int]) -> None:
    episodes = [an_episode(i, success=i not in (1, 3)) for i in range(4)]
    kept = keep_frames(episodes, videos)
    assert [e.seed for e in kept] == [0, 1, 2, 3]
    assert [e.seed for e in kept if e.frames is not None] == shown
    for before, after in zip(episodes, kept, strict=True):
        assert after.success == before.success
        for name in ("distances", "energies", "actions", "plan_ms", "encode_ms"):
            assert np.array_equal(getattr(after, name), getattr(before, name))


def test_only_the_named_axes_move_within_the_limits(make_world, env) -> None:
    limits = (0.01, 0.02, 0.03, 0.1, 0.1, 0.1, 0.5)
    settings = dataclasses.replace(SETTINGS, axes=("x", "z", "gripper"), limits=limits)
    controller = make_controller(make_world(), settings, env, device=CPU)
    assert controller.plan_bounds.high.tolist() == pytest.approx([0.01, 0, 0.03, 0, 0, 0, 0.5])
    assert controller.plan_bounds.low.tolist() == pytest.approx([-0.01, 0, -0.03, 0, 0, 0, -0.5])
    assert controller.step_bounds.high.tolist() == pytest.approx([0.075] * 3 + [0.15] * 3 + [1])


def test_without_limits_the_checkpoint_decides(make_world, env) -> None:
    world = make_world()
    controller = make_controller(world, SETTINGS, env, device=CPU)
    assert controller.plan_bounds.high.tolist() == pytest.approx([0.075] * 3 + [0] * 4)
    world.action_limit = None
    with pytest.raises(ValueError, match="states no action_limit; set planner.limits"):
        make_controller(world, SETTINGS, env, device=CPU)


def test_an_unknown_axis_is_refused(make_world, env) -> None:
    settings = dataclasses.replace(SETTINGS, axes=("x", "w"))
    with pytest.raises(ValueError, match=r"unknown action axes \['w'\]; available: x, y, z, roll"):
        make_controller(make_world(), settings, env, device=CPU)


def test_limits_of_another_length_are_refused(make_world, env) -> None:
    settings = dataclasses.replace(SETTINGS, limits=(0.1, 0.1, 0.1))
    message = r"planner.limits must have 7 values \(x, y, .*gripper\), got 3"
    with pytest.raises(ValueError, match=message):
        make_controller(make_world(), settings, env, device=CPU)


def test_a_model_of_another_rate_is_refused(make_world, env) -> None:
    world = make_world()
    world.control_hz = 5.0
    with pytest.raises(ValueError, match="control_hz is 4 Hz but the model was trained at 5 Hz"):
        make_controller(world, SETTINGS, env, device=CPU)


def test_an_episode_pairs_every_step_with_what_was_seen_before_it(make_world, env) -> None:
    world = make_world(merge=2, standardise=True)
    controller = make_controller(world, SETTINGS, env, device=CPU)
    told: list[tuple[int, float, float]] = []
    episode = run_planner(env, controller, seed=5, on_step=lambda *step: told.append(step))
    assert episode.frames is not None and episode.goal_image is not None
    assert len(episode.actions) == len(episode.plan_ms) == len(episode.encode_ms) == 2
    assert len(episode.frames) == len(episode.energies) == len(episode.distances) == 3
    observation, info = env.reset(seed=5)
    assert np.array_equal(episode.goal_image, observation["goal_image"])
    assert episode.distances[0] == info["distance"]
    expected = energy_between(world, observation["image"], observation["goal_image"])
    assert episode.energies[0] == pytest.approx(expected, abs=1e-6)
    assert told == [(t, episode.energies[t], episode.distances[t]) for t in range(2)]
    for t in range(2):
        observation, _, _, _, info = env.step(episode.actions[t])
        assert info["distance"] == episode.distances[t + 1]
    last = energy_between(world, observation["image"], episode.goal_image)
    assert episode.energies[-1] == pytest.approx(last, abs=1e-6)


def test_a_goal_image_of_ones_own_replaces_the_episodes(make_world, env) -> None:
    world = make_world()
    controller = make_controller(world, SETTINGS, env, device=CPU)
    observation, _ = env.reset(seed=5)
    episode = run_planner(env, controller, seed=5, goal_image=observation["image"])
    assert episode.energies[0] == 0  # the arm is where the image shows it
    assert episode.energies[1] > 0


def test_the_energy_of_an_image_to_itself_is_zero(make_world) -> None:
    world = make_world()
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert energy_between(world, a, a) == 0
    assert energy_between(world, a, b) > 0


def test_a_baseline_does_not_look_and_repeats_by_seed(env) -> None:
    first, again = (run_baseline(env, "random", seed=3) for _ in range(2))
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.distances, again.distances)
    assert first.energies.size == first.plan_ms.size == 0
    assert not np.array_equal(first.actions, run_baseline(env, "random", seed=4).actions)
