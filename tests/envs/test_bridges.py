"""Bridges to other projects' benchmarks; what a benchmark itself is needed for skips without it."""

import importlib.util
import io
import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldmodel.envs import bridges
from worldmodel.envs.bridges.behaviours import POLICIES, make_policy
from worldmodel.envs.bridges.goal_env import GoalImageEnv
from worldmodel.envs.bridges.messages import read_message, write_message
from worldmodel.envs.bridges.rearrange import rearrangement
from worldmodel.envs.bridges.robosuite import PYTHON_VARIABLE
from worldmodel.pose import integrate

TABLE = {"low": np.array([0.3, -0.3]), "high": np.array([0.55, 0.3])}


# Messages


def test_a_message_comes_back_as_it_was_sent() -> None:
    arrays = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::-1],
        "none": np.zeros((0, 7)),
        "number": np.float32(0.25) * np.ones(()),
    }
    pipe = io.BytesIO()
    write_message(pipe, {"op": "step", "size": 3}, arrays)
    write_message(pipe, {"op": "close"}, {})
    pipe.seek(0)
    fields, got = read_message(pipe)
    assert fields == {"op": "step", "size": 3}
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == np.asarray(array).dtype
    assert read_message(pipe) == ({"op": "close"}, {})
    with pytest.raises(EOFError, match="closed"):
        read_message(pipe)


def test_printed_text_is_not_taken_for_a_message() -> None:
    with pytest.raises(ValueError, match="did the other side print"):
        read_message(io.BytesIO(b"Loading the model ..."))


def test_only_numbers_cross_the_pipe() -> None:
    pipe = io.BytesIO()
    write_message(pipe, {}, {"names": np.array(["a"])})
    pipe.seek(0)
    with pytest.raises(ValueError, match="dtype"):
        read_message(pipe)


# The order of carries


def carried(cubes: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, int]:
    """Carries cubes as `rearrangement` says; no cube may be put into another."""
    at = cubes.copy()
    carries = rearrangement(cubes, goals, **TABLE)
    for taken, put in carries:
        cube = int(np.linalg.norm(at - taken, axis=1).argmin())
        others = np.delete(at, cube, axis=0)
        above = (np.linalg.norm(others[:, :2] - taken[:2], axis=1) < 0.03) & (
            others[:, 2] > taken[2] + 0.01
        )
        assert not above.any(), "a cube was pulled from under another"
        assert (np.linalg.norm(others - put, axis=1) > 0.03).all(), "two cubes in one place"
        at[cube] = put
    return at, len(carries)


@pytest.mark.parametrize(
    ("cubes", "goals", "carries"),
    [
        ([[0.4, 0.1, 0.02]], [[0.4, -0.1, 0.02]], 1),
        ([[0.4, 0.1, 0.02]], [[0.405, 0.1, 0.02]], 0),
        # A swap: one has to be laid aside.
        ([[0.42, -0.1, 0.02], [0.42, 0.1, 0.02]], [[0.42, 0.1, 0.02], [0.42, -0.1, 0.02]], 3),
        # A stack is built from below, whichever cube comes first.
        ([[0.4, -0.1, 0.02], [0.4, 0.1, 0.02]], [[0.5, 0.0, 0.06], [0.5, 0.0, 0.02]], 2),
        # The cube below goes only when the one above it has gone.
        ([[0.4, 0.0, 0.02], [0.4, 0.0, 0.06]], [[0.5, 0.2, 0.02], [0.5, -0.2, 0.02]], 2),
    ],
)
def test_cubes_reach_their_places(cubes: list, goals: list, carries: int) -> None:
    at, count = carried(np.array(cubes), np.array(goals))
    assert np.linalg.norm(at - np.array(goals), axis=1).max() <= 0.02
    assert count == carries


def test_a_table_without_room_is_refused() -> None:
    swap = np.array([[0.42, -0.02, 0.02], [0.42, 0.02, 0.02]])
    small = {"low": np.array([0.41, -0.03]), "high": np.array([0.43, 0.03])}
    with pytest.raises(ValueError, match="no room"):
        rearrangement(swap, swap[::-1], **small)


# Names


def test_only_names_with_a_slash_belong_to_a_bridge() -> None:
    assert all(bridges.is_bridge(task) for task in bridges.TASKS)
    assert not bridges.is_bridge("reach")


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'ogbench/cube-single'"):
        bridges.make("ogbench/cube_single")


def test_robosuite_without_its_python_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(ImportError, match=PYTHON_VARIABLE):  # which the program says in a line
        bridges.make_unwrapped("robosuite/lift")
    with pytest.raises(RuntimeError, match=PYTHON_VARIABLE):
        bridges.make("robosuite/lift")


def test_a_python_without_robosuite_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("robosuite"):
        pytest.skip("this Python has robosuite")
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    with pytest.raises(RuntimeError, match="No module named 'robosuite'"):
        bridges.make("robosuite/lift")
    monkeypatch.setenv(PYTHON_VARIABLE, "/no/such/python")
    with pytest.raises(RuntimeError, match="does not start"):
        bridges.make("robosuite/lift")


# OGBench


@pytest.fixture(scope="module")
def cube() -> Iterator[GoalImageEnv]:
    pytest.importorskip("ogbench")
    env = bridges.make_unwrapped("ogbench/cube-single", image_size=64, render_mode="rgb_array")
    yield env
    env.close()


# Roll and pitch do not exist: gymnasium warns of a space that is one point on an axis.
@pytest.mark.filterwarnings("ignore:.*maximum and minimum values are equal")
def test_ogbench_is_a_gymnasium_environment(cube: GoalImageEnv) -> None:
    check_env(cube, skip_render_check=True)


def test_ogbench_same_seed_same_episode(cube: GoalImageEnv) -> None:
    def play(seed: int) -> list[np.ndarray]:
        observation, _ = cube.reset(seed=seed)
        rng = np.random.default_rng(seed)
        seen = [observation["image"], observation["goal_image"], observation["goal_proprio"]]
        for _ in range(3):
            observation, *_ = cube.step(rng.uniform(cube.action_space.low, cube.action_space.high))
            seen += [observation["image"], observation["proprio"]]
        return seen

    first, again, other = play(3), play(3), play(4)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def test_ogbench_arm_goes_where_it_is_told(cube: GoalImageEnv) -> None:
    observation, _ = cube.reset(seed=0)
    middle = (cube.workspace_low + cube.workspace_high) / 2
    for _ in range(10):
        way = np.clip(middle - observation["proprio"][:3], -0.05, 0.05)
        observation, *_ = cube.step(np.concatenate([way, np.zeros(4)]))
    rng = np.random.default_rng(0)
    expected = observation["proprio"].astype(float)
    for turn in (0.1, -0.1, 0.1):
        direction = rng.normal(size=3)
        action = np.zeros(7)
        action[:3] = 0.05 * direction / np.linalg.norm(direction)
        action[5] = turn
        expected = integrate(expected, action)
        observation, *_ = cube.step(action)
    assert np.linalg.norm(observation["proprio"][:3] - expected[:3]) < 0.008
    change = integrate(observation["proprio"].astype(float), np.zeros(7))[5] - expected[5]
    assert abs(np.arctan2(np.sin(change), np.cos(change))) < 0.06
    assert abs(observation["proprio"][4]) < 0.03  # it still points down


def test_ogbench_expert_solves_and_standing_still_does_not(cube: GoalImageEnv) -> None:
    for name, solves in (("expert", True), ("do_nothing", False)):
        observation, info = cube.reset(seed=1)
        assert not info["success"] and info["distance"] > 0.04
        policy, rng = make_policy(name, cube), np.random.default_rng(0)
        for _ in range(35):
            observation, _, terminated, _, info = cube.step(policy(observation["proprio"], rng))
            if terminated:
                break
        assert info["success"] == solves
        assert (info["distance"] <= 0.04) == solves


def test_ogbench_imagining_leaves_the_scene_and_comes_true(cube: GoalImageEnv) -> None:
    cube.reset(seed=2)
    rng = np.random.default_rng(0)
    plans = rng.uniform(cube.action_space.low, cube.action_space.high, (2, 3, 7))
    before = cube.features()
    imagined = cube.imagine(plans)
    np.testing.assert_array_equal(cube.features(), before)
    for action in plans[1]:
        cube.step(action)
    np.testing.assert_allclose(cube.features(), imagined[1], atol=1e-9)


def test_ogbench_goal_is_the_cube_in_its_place(cube: GoalImageEnv) -> None:
    observation, info = cube.reset(seed=5, options={"task_id": 1})
    *stages, goal = cube.subgoals
    names = ["above", "around", "grasp", "lift", "carry", "lower", "place"]
    assert [stage.name for stage in stages] == names
    _, around, grasp, _, carry, _, place = (stage.features for stage in stages)
    assert around[3] < 0.1 < 0.3 < grasp[3]  # the hand is open until it is around the cube
    np.testing.assert_allclose(grasp[:3], cube.features()[4:7], atol=0.015)  # the hand, at the cube
    assert carry[6] > 0.08  # the cube is in the air
    np.testing.assert_allclose(place[4:7], goal.features[4:7], atol=0.02)
    np.testing.assert_array_equal(observation["goal_image"], goal.image)
    np.testing.assert_allclose(goal.features[4:7], [0.425, -0.1, 0.02], atol=0.02)  # OGBench's own
    apart = np.linalg.norm(goal.features[4:7] - cube.features()[4:7])
    assert apart == pytest.approx(info["distance"], abs=0.02)


def test_ogbench_scene_is_put_back_after_the_demonstration(cube: GoalImageEnv) -> None:
    shown, info = cube.reset(seed=7)
    start = cube.features()
    unseen, other = cube.reset(seed=7, options={"demonstrate": False})
    np.testing.assert_array_equal(shown["image"], unseen["image"])
    np.testing.assert_array_equal(shown["proprio"], unseen["proprio"])
    np.testing.assert_array_equal(start, cube.features())
    assert info == other and info["timestamp"] == 0
    assert [goal.name for goal in cube.subgoals] == ["goal"]
    np.testing.assert_array_equal(shown["goal_image"], unseen["goal_image"])


def test_ogbench_unknown_option_is_refused(cube: GoalImageEnv) -> None:
    with pytest.raises(ValueError, match="available: task_id"):
        cube.reset(seed=0, options={"task": 1})


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_behaviours_stay_within_the_bounds(cube: GoalImageEnv, name: str) -> None:
    observation, _ = cube.reset(seed=6)
    policy, rng = make_policy(name, cube), np.random.default_rng(0)
    for _ in range(6):
        action = policy(observation["proprio"], rng)
        assert action.dtype == np.float32
        assert cube.action_space.contains(action)
        observation, *_ = cube.step(action)


# robosuite, in its own process


@pytest.fixture(scope="module")
def lift() -> Iterator[GoalImageEnv]:
    if not os.environ.get(PYTHON_VARIABLE):
        pytest.skip(f"{PYTHON_VARIABLE} names no Python with robosuite")
    env = bridges.make_unwrapped("robosuite/lift", image_size=64)
    yield env
    env.close()


@pytest.mark.slow
def test_robosuite_expert_lifts_and_the_start_is_put_back(lift: GoalImageEnv) -> None:
    observation, info = lift.reset(seed=0)
    assert [goal.name for goal in lift.subgoals] == ["above", "around", "grasp", "lift"]
    assert not info["success"] and info["distance"] > 0.05
    policy, rng = make_policy("expert", lift), np.random.default_rng(0)
    for _ in range(30):
        observation, _, terminated, _, info = lift.step(policy(observation["proprio"], rng))
        if terminated:
            break
    assert info["success"]


@pytest.mark.slow
def test_robosuite_same_seed_same_episode(lift: GoalImageEnv) -> None:
    first, _ = lift.reset(seed=1)
    start = lift.features()
    lift.step(np.array([0.05, 0, 0, 0, 0, 0.1, 0]))
    again, _ = lift.reset(seed=1)
    np.testing.assert_array_equal(start, lift.features())
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["goal_image"], again["goal_image"])


@pytest.mark.slow
def test_robosuite_begins_the_same_episode_in_every_process(lift: GoalImageEnv) -> None:
    other = bridges.make_unwrapped("robosuite/lift", image_size=64)
    try:
        for seed in (3, 4):
            (mine, _), (theirs, _) = (env.reset(seed=seed) for env in (lift, other))
            np.testing.assert_array_equal(lift.features(), other.features())
            np.testing.assert_array_equal(mine["goal_image"], theirs["goal_image"])
    finally:
        other.close()


def test_robosuite_data_need_no_demonstration(lift: GoalImageEnv) -> None:
    observation, _ = lift.reset(seed=2, options={"demonstrate": False})
    assert [goal.name for goal in lift.subgoals] == ["start"]
    before = observation["image"]
    policy, rng = make_policy("play", lift), np.random.default_rng(0)
    for _ in range(3):
        observation, *_ = lift.step(policy(observation["proprio"], rng))
    assert (observation["image"] != before).any()


@pytest.mark.slow
def test_robosuite_errors_come_back_as_they_are(lift: GoalImageEnv) -> None:
    with pytest.raises(ValueError, match="no camera"):
        lift.view("side")
    with pytest.raises(ValueError, match="no reset options"):
        lift.reset(seed=0, options={"task_id": 1})
