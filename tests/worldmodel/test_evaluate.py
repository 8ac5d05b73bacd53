import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel import checkpoint
from worldmodel.closed_loop import drive, energy_between, make_controller, redraw, run_policy
from worldmodel.episode_log import EpisodeLog
from worldmodel.evaluate import PlannerSettings, batches, episode_seeds, evaluate, shown
from worldmodel.fleet import Arms, Fleet, Scene
from worldmodel.planners import CEM, LatentEnergy, SwitchRule
from worldmodel.results import Evaluation, episode_to_json

CPU = torch.device("cpu")
SETTINGS = PlannerSettings(
    search=CEM(cost=LatentEnergy(), num_samples=8, num_elites=2, num_iterations=2),
    axes=("x", "y", "z"),
    limits=None,
    warm_start=True,
    replan_every=1,
    num_context=1,
    deadline_ms=None,
    precision="float32",
)
SCENE = Scene(
    task="reach",
    variation="none",
    image_size=32,
    camera="exterior",
    backend="ray",
    control_hz=4.0,
    max_steps=2,
)
LIFT = dataclasses.replace(SCENE, task="lift", max_steps=3)
POLICIES = ["planner", "expert", "oracle", "random", "do_nothing"]


def run_evaluate(world_checkpoint: Path, run: Path, *, seed: int = 0, **changes) -> Evaluation:
    run.mkdir(exist_ok=True)
    arguments = {
        "settings": SETTINGS,
        "episodes": 2,
        "num_envs": 1,
        "workers": 1,
        "latency_episodes": 1,
        "oracle_episodes": 1,
        "videos": 1,
    }
    return evaluate(
        world=checkpoint.load(world_checkpoint),
        run=run,
        task="reach",
        variation="none",
        steps=2,
        seed=seed,
        camera="exterior",
        backend="ray",
        device="cpu",
        description={"planner": "cem"},
        command="worldmodel evaluate seed=0",
        progress=False,
        **{**arguments, **changes},
    )


@pytest.fixture(scope="module")
def env():
    env = SCENE.make()
    yield env
    env.close()


@pytest.fixture(scope="module")
def body(env):
    return Arms([env]).body()


@pytest.fixture(scope="module")
def finished(world_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    run = tmp_path_factory.mktemp("evaluate") / "run"
    return run, run_evaluate(world_checkpoint, run)


def test_the_metrics_have_the_promised_entries(finished) -> None:
    numbers = json.loads((finished[0] / "metrics.json").read_text())
    assert (numbers["task"], numbers["variation"], numbers["seed"]) == ("reach", "none", 0)
    assert (numbers["episodes"], numbers["steps"], numbers["subgoals"]) == (2, 2, True)
    assert numbers["command"] == "worldmodel evaluate seed=0"
    assert [row["policy"] for row in numbers["rows"]] == POLICIES
    for row in numbers["rows"]:
        assert row["episodes"] == (1 if row["policy"] == "oracle" else 2)
        assert row["success_rate"] == row["successes"] / row["episodes"]
        low, high = row["wilson95"]
        assert 0 <= low <= row["success_rate"] <= high <= 1
        assert 0 < row["final_distance_cm"]["p50"] <= row["final_distance_cm"]["p90"]
        assert row["steps_to_success"] is None  # two steps are too few to hold a goal
        for times in (row["plan_ms"], row["encode_ms"]):
            assert (times is not None) == (row["policy"] == "planner")
            assert times is None or 0 < times["p50"] <= times["p95"]
    assert [pair["against"] for pair in numbers["paired"]] == POLICIES[1:]
    assert [pair["episodes"] for pair in numbers["paired"]] == [2, 1, 2, 2]
    assert numbers["goal_rejections"] >= 0
    assert numbers["failures"][0]["stage"] == "reach"
    assert sum(stage["failures"] for stage in numbers["failures"]) == 2
    assert numbers["settings"] == {"planner": "cem", "renderer": "ray"}
    assert numbers["machine"]["torch_threads"] == 1


def test_every_policy_meets_the_same_episodes(finished) -> None:
    _, evaluation = finished
    assert [p.name for p in evaluation.policies] == POLICIES
    seeds = episode_seeds(0, 2)
    starts = evaluation.planner.episodes
    for policy in evaluation.policies:
        assert [e.seed for e in policy.episodes] == seeds[: len(policy.episodes)]
        for episode, start in zip(policy.episodes, starts, strict=False):
            assert episode.distances[0] == start.distances[0]
            assert np.array_equal(episode.features[0], start.features[0])
    by_name = {policy.name: policy for policy in evaluation.policies}
    for episode in by_name["do_nothing"].episodes:
        assert not episode.actions.any()
        np.testing.assert_allclose(episode.distances, episode.distances[0], atol=2e-3)
    for name in ("expert", "oracle"):  # they know the way
        for episode in by_name[name].episodes:
            assert episode.distances[-1] < episode.distances[0] - 0.05


def test_a_report_and_the_asked_number_of_videos_are_written(finished) -> None:
    run, evaluation = finished
    for name in ("report.html", "results.md", "results.csv"):
        assert (run / name).stat().st_size > 0
    assert len(list((run / "episodes").glob("*.mp4"))) == 1
    assert sum(e.frames is not None for e in evaluation.planner.episodes) == 1


def test_the_same_seed_gives_the_same_results_byte_for_byte(
    finished, world_checkpoint: Path, tmp_path: Path
) -> None:
    expected = (finished[0] / "results.json").read_bytes()
    run_evaluate(world_checkpoint, tmp_path / "same")
    for name in ("results.json", "results.csv", "results.md"):
        mine = (tmp_path / "same" / name).read_bytes()
        assert mine == (finished[0] / name).read_bytes(), name
    run_evaluate(world_checkpoint, tmp_path / "other", seed=1, oracle_episodes=0)
    assert (tmp_path / "other" / "results.json").read_bytes() != expected
    assert b"oracle" not in (tmp_path / "other" / "results.json").read_bytes()


def test_the_table_of_episodes_has_no_times(finished) -> None:
    text = (finished[0] / "results.json").read_text()
    assert len(json.loads(text)) == 9
    assert "_ms" not in text


def test_workers_and_batches_change_no_result(
    finished, world_checkpoint: Path, tmp_path: Path
) -> None:
    run_evaluate(world_checkpoint, tmp_path, num_envs=2, workers=2, latency_episodes=0, videos=0)
    mine, alone = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path, finished[0])
    )
    for one, other in zip(mine, alone, strict=True):
        for name in ("policy", "seed", "success", "stages", "switches"):
            assert one[name] == other[name], name
        for name in ("distances", "energies", "actions", "features"):
            # Up to the rounding of a batched product.
            np.testing.assert_allclose(one[name], other[name], atol=2e-5, err_msg=name)
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert rows[0]["plan_ms"] is None  # nobody was timed alone


# An evaluation in another process that ends by kill -9 in the midst of writing its third episode.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from worldmodel.episode_log import EpisodeLog
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
here, world, run = sys.argv[1:]
sys.path.insert(0, here)
from test_evaluate import run_evaluate
append = EpisodeLog.append
def killed(log, policy, episodes):
    append(log, policy, episodes)
    if len(log.episodes) == 3:
        content = log.path.read_bytes()
        log.path.write_bytes(content[: len(content) - 50])
        os.kill(os.getpid(), signal.SIGKILL)
EpisodeLog.append = killed
run_evaluate(Path(world), Path(run))
"""


def test_a_killed_evaluation_goes_on_where_it_was(
    finished, world_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    here = Path(__file__).parent
    words = [sys.executable, "-c", KILLED, here, world_checkpoint, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "results.json").exists()
    assert len(EpisodeLog(tmp_path / "episodes.jsonl").episodes) == 2

    def refuse(*arguments, **keywords):
        raise AssertionError("the planner's episodes are done again")

    monkeypatch.setattr("worldmodel.evaluate.drive", refuse)
    run_evaluate(world_checkpoint, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == (finished[0] / "results.json").read_bytes()


def test_with_a_deadline_one_arm_is_planned_for(
    world_checkpoint: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    sizes: list[int] = []

    def note(fleet, controller, seeds, **keywords):
        sizes.append(len(seeds))
        return drive(fleet, controller, seeds, **keywords)

    monkeypatch.setattr("worldmodel.evaluate.drive", note)
    settings = dataclasses.replace(SETTINGS, deadline_ms=10_000.0)
    run_evaluate(
        world_checkpoint,
        tmp_path,
        settings=settings,
        num_envs=2,
        latency_episodes=0,
        oracle_episodes=0,
        videos=0,
    )
    assert sizes == [1, 1]
    assert "planner.deadline_ms is the time of one arm: num_envs is 1" in capsys.readouterr().out
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert rows[0]["plan_ms"]["p50"] > 0


def test_more_episodes_begin_with_the_same_seeds_and_none_is_a_training_seed() -> None:
    assert episode_seeds(3, 50)[:10] == episode_seeds(3, 10)
    assert episode_seeds(3, 10) != episode_seeds(4, 10)
    assert min(episode_seeds(3, 1000)) >= 2**31  # collect draws below
    assert max(episode_seeds(3, 1000)) < 2**32


def test_the_planner_can_be_measured_alone(world_checkpoint: Path, tmp_path: Path) -> None:
    beside = run_evaluate(world_checkpoint, tmp_path / "beside", oracle_episodes=0)
    alone = run_evaluate(world_checkpoint, tmp_path / "alone", baselines=False)
    assert [result.name for result in beside.policies] == [
        "planner",
        "expert",
        "random",
        "do_nothing",
    ]
    assert [result.name for result in alone.policies] == ["planner"]
    for one, other in zip(alone.planner.episodes, beside.planner.episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    assert "planner" in (tmp_path / "alone" / "results.md").read_text()


@pytest.mark.parametrize(
    "name", ["episodes", "num_envs", "workers", "latency_episodes", "oracle_episodes", "videos"]
)
def test_numbers_below_their_range_are_refused(
    world_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least [01], got -1"):
        run_evaluate(world_checkpoint, tmp_path, **{name: -1})


def test_the_first_episodes_are_run_alone() -> None:
    assert batches([1, 2, 3, 4, 5], alone=1, size=3) == [[1], [2, 3, 4], [5]]
    assert batches([1, 2], alone=3, size=3) == [[1], [2]]
    assert batches([1, 2, 3], alone=0, size=2) == [[1, 2], [3]]


@pytest.mark.parametrize("videos, expected", [(0, []), (1, [1]), (3, [1, 3, 0]), (9, [1, 3, 0, 2])])
def test_failures_are_the_first_to_be_shown(env, videos: int, expected: list[int]) -> None:
    episode = run_policy(env, 1, name="do_nothing")
    episodes = [
        dataclasses.replace(episode, successes=np.array([i not in (1, 3)])) for i in range(4)
    ]
    assert shown(episodes, videos) == expected


def test_only_the_named_axes_move_within_the_limits(make_world, body) -> None:
    limits = (0.01, 0.02, 0.03, 0.1, 0.1, 0.1, 0.5)
    settings = dataclasses.replace(SETTINGS, axes=("x", "z", "gripper"), limits=limits)
    controller = make_controller(make_world(), settings, body, device=CPU)
    assert controller.plan_bounds.high.tolist() == pytest.approx([0.01, 0, 0.03, 0, 0, 0, 0.5])
    assert controller.plan_bounds.low.tolist() == pytest.approx([-0.01, 0, -0.03, 0, 0, 0, -0.5])
    assert controller.step_bounds.high.tolist() == pytest.approx([0.075] * 3 + [0.15] * 3 + [1])


def test_without_limits_the_checkpoint_decides(make_world, body) -> None:
    world = make_world()
    controller = make_controller(world, SETTINGS, body, device=CPU)
    assert controller.plan_bounds.high.tolist() == pytest.approx([0.075] * 3 + [0] * 4)
    world.action_limit = None
    with pytest.raises(ValueError, match="states no action_limit; set planner.limits"):
        make_controller(world, SETTINGS, body, device=CPU)


def test_an_unknown_axis_is_refused(make_world, body) -> None:
    settings = dataclasses.replace(SETTINGS, axes=("x", "w"))
    with pytest.raises(ValueError, match=r"unknown action axes \['w'\]; available: x, y, z, roll"):
        make_controller(make_world(), settings, body, device=CPU)


def test_limits_of_another_length_are_refused(make_world, body) -> None:
    settings = dataclasses.replace(SETTINGS, limits=(0.1, 0.1, 0.1))
    message = r"planner.limits must have 7 values \(x, y, .*gripper\), got 3"
    with pytest.raises(ValueError, match=message):
        make_controller(make_world(), settings, body, device=CPU)


def test_a_model_of_another_rate_is_refused(make_world, body) -> None:
    world = make_world()
    world.control_hz = 5.0
    with pytest.raises(ValueError, match="control_hz is 4 Hz but the model was trained at 5 Hz"):
        make_controller(world, SETTINGS, body, device=CPU)


def test_an_episode_pairs_every_step_with_what_was_seen_before_it(make_world, env, body) -> None:
    controller = make_controller(make_world(merge=2, standardise=True), SETTINGS, body, device=CPU)
    told: list[tuple[int, float, float]] = []
    (episode,) = drive(
        Arms([env]),
        controller,
        [5],
        on_step=lambda step, decision, view: told.append(
            (step, decision.energy_now, view.distance)
        ),
    )
    assert len(episode.actions) == len(episode.plan_ms) == len(episode.encode_ms) == 2
    assert len(episode.energies) == len(episode.distances) == len(episode.successes) == 3
    assert (episode.stage_names, episode.stages.tolist()) == (("reach",), [0, 0, 0])
    drawn = redraw(env, episode)
    assert drawn.frames is not None and drawn.goal_images is not None
    observation, info = env.reset(seed=5)
    assert np.array_equal(drawn.goal_images, observation["goal_image"][None])
    assert np.array_equal(drawn.frames[0], env.render())
    assert episode.distances[0] == info["distance"]
    goal = observation["goal_image"]
    for t in range(3):
        expected = energy_between(controller, [observation["image"]], [goal])[0]
        assert episode.energies[t] == pytest.approx(expected, abs=1e-6)
        assert info["distance"] == episode.distances[t]
        assert np.array_equal(episode.features[t], env.unwrapped.features())
        if t < 2:
            assert told[t] == (t, episode.energies[t], episode.distances[t])
            observation, _, _, _, info = env.step(episode.actions[t])


def test_an_episode_that_does_not_repeat_is_not_drawn(make_world, env, body) -> None:
    episode = run_policy(env, 5, name="random")
    other = dataclasses.replace(episode, distances=episode.distances + 1e-9)
    with pytest.raises(RuntimeError, match="the actions of episode 5 lead elsewhere"):
        redraw(env, other)


def test_sub_goals_are_switched_through_and_the_last_energy_is_to_the_present_one(
    make_world,
) -> None:
    world = make_world()
    settings = dataclasses.replace(SETTINGS, switch=SwitchRule(tolerance=1e9))
    with Fleet(LIFT, num_arms=1, workers=1) as fleet:
        controller = make_controller(world, settings, fleet.body, device=CPU)
        (episode,) = drive(fleet, controller, [3])
        (start,) = fleet.reset([3])
        views = [start.view] + [fleet.step([action])[0] for action in episode.actions]
        (direct,) = drive(fleet, controller, [3], subgoals=False)
    assert len(start.subgoals) == 4  # so it ends before the last
    assert episode.stages.tolist() == [0, 1, 2, 2]
    assert [(s.step, s.stage, s.reason) for s in episode.switches] == [
        (1, 1, "energy"),
        (2, 2, "energy"),
    ]
    for t, stage in enumerate(episode.stages):
        image = start.subgoals[stage].image
        expected = energy_between(controller, [views[t].image], [image])[0]
        assert episode.energies[t] == pytest.approx(expected, abs=1e-6)
    assert (direct.stage_names, direct.switches) == ((start.subgoals[-1].name,), ())
    expected = energy_between(controller, [start.view.image], [start.subgoals[-1].image])[0]
    assert direct.energies[0] == pytest.approx(expected, abs=1e-6)


def test_an_arm_that_ends_first_does_not_end_the_others(make_world, body) -> None:
    """Benchmarks that end an episode at its first success end those of a batch one by one."""
    scenes = [dataclasses.replace(SCENE, max_steps=steps) for steps in (1, 4, 2)]
    environments = [scene.make() for scene in scenes]
    world, seeds = make_world(merge=2, standardise=True), [5, 6, 7]
    try:
        controller = make_controller(world, SETTINGS, body, num_arms=3, device=CPU)
        together = drive(Arms(environments), controller, seeds)
        one = make_controller(world, SETTINGS, body, device=CPU)
        alone = [
            drive(Arms([env]), one, [seed])[0]
            for env, seed in zip(environments, seeds, strict=True)
        ]
    finally:
        for env in environments:
            env.close()
    assert [len(episode.actions) for episode in together] == [1, 4, 2]
    for with_others, by_itself in zip(together, alone, strict=True):
        np.testing.assert_allclose(with_others.actions, by_itself.actions, atol=1e-5)
        np.testing.assert_allclose(with_others.distances, by_itself.distances, atol=1e-5)
        np.testing.assert_allclose(with_others.energies, by_itself.energies, atol=1e-5)


def test_a_goal_image_of_ones_own_replaces_the_episodes(make_world, env, body) -> None:
    controller = make_controller(make_world(), SETTINGS, body, device=CPU)
    observation, _ = env.reset(seed=5)
    (episode,) = drive(Arms([env]), controller, [5], goal_image=observation["image"])
    assert episode.energies[0] == 0  # the arm is where the image shows it
    assert episode.energies[1] > 0


def test_the_energy_of_an_image_to_itself_is_zero(make_world, body) -> None:
    controller = make_controller(make_world(), SETTINGS, body, device=CPU)
    a, b = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    same, other = energy_between(controller, [a, a], [a, b])
    assert same == 0 < other


def test_a_policy_repeats_by_seed(env) -> None:
    first, again, other = (
        json.dumps(episode_to_json(run_policy(env, seed, name="random"))) for seed in (3, 3, 4)
    )
    assert first == again != other
