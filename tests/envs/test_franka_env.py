import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import worldmodel.envs
from worldmodel.envs import franka
from worldmodel.envs.franka_env import HOLD_STEPS, MAX_ACTION, FrankaEnv
from worldmodel.envs.tasks import reach
from worldmodel.pose import action_between

ZERO = np.zeros(7, np.float32)


def run_episode(env, *, seed, steps=6):
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    record = [(observation, 0.0, False, False, info)]
    for _ in range(steps):
        record.append(env.step(rng.uniform(-MAX_ACTION, MAX_ACTION).astype(np.float32)))
    return record


def drive_to(env, observation, goal, *, steps):
    for _ in range(steps):
        action = np.clip(action_between(observation["proprio"], goal), -MAX_ACTION, MAX_ACTION)
        observation, _, _, _, info = env.step(action)
    return observation, info


def test_the_environment_passes_the_gymnasium_checker(make_env, backend):
    check_env(make_env(backend=backend).unwrapped)


def test_the_registered_id_makes_the_documented_spaces():
    env = gymnasium.make("worldmodel/FrankaReach-v0", backend="ray")
    observation, info = env.reset(seed=0)
    shapes = {name: (value.shape, value.dtype) for name, value in observation.items()}
    env.close()
    assert shapes == {
        "image": ((128, 128, 3), np.uint8),
        "goal_image": ((128, 128, 3), np.uint8),
        "proprio": ((7,), np.float32),
        "goal_proprio": ((7,), np.float32),
    }
    np.testing.assert_allclose(env.action_space.high, [0.075] * 3 + [0.15] * 3 + [1.0])
    np.testing.assert_array_equal(env.action_space.low, -env.action_space.high)
    assert set(info) == {"distance", "success", "timestamp"}
    assert env.spec.max_episode_steps == 16


def test_the_simulator_shows_several_cameras(make_env):
    both = make_env(camera="exterior+wrist", image_size=48)
    seen, _ = both.reset(seed=3)
    for number, camera in enumerate(("exterior", "wrist")):
        alone, _ = make_env(camera=camera, image_size=48).reset(seed=3)
        assert np.array_equal(seen["image"][number], alone["image"])
        assert np.array_equal(seen["goal_image"][number], alone["goal_image"])
    assert both.observation_space["image"].shape == (2, 48, 48, 3)
    with pytest.raises(ValueError, match="unknown camera 'wrst'"):
        make_env(camera="exterior+wrst")


def test_the_same_seed_gives_the_same_episode_bit_for_bit(make_env, backend):
    first = run_episode(make_env(backend=backend), seed=7)
    second = run_episode(make_env(backend=backend), seed=7)
    for (one, *rest_one), (two, *rest_two) in zip(first, second, strict=True):
        assert rest_one == rest_two
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_an_episode_does_not_depend_on_the_one_before(make_env):
    env = make_env()
    first = run_episode(env, seed=7)
    run_episode(env, seed=8)
    again = run_episode(env, seed=7)
    np.testing.assert_array_equal(first[-1][0]["image"], again[-1][0]["image"])
    np.testing.assert_array_equal(first[-1][0]["proprio"], again[-1][0]["proprio"])


def test_different_seeds_give_different_goals(make_env):
    env = make_env()
    goals = [env.reset(seed=seed)[0]["goal_proprio"] for seed in range(3)]
    assert len({goal.tobytes() for goal in goals}) == 3


def test_the_goal_image_is_what_the_camera_sees_at_the_goal(make_env, backend):
    env = make_env(backend=backend, image_size=128, max_episode_steps=100)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        before = np.abs(observation["image"].astype(float) - observation["goal_image"]).mean()
        observation, info = drive_to(env, observation, observation["goal_proprio"], steps=16)
        after = np.abs(observation["image"].astype(float) - observation["goal_image"]).mean()
        assert info["success"] and info["distance"] < 5e-3  # the expert errs a little too
        assert before > 3.0  # grey levels: the arm was elsewhere
        assert after < 0.8  # an edge here and there


def test_making_the_goal_image_leaves_the_episode_as_it_was(make_env):
    env = make_env().unwrapped
    env.reset(seed=3)
    reference = worldmodel.envs.control.Arm(franka.build_model())
    rng = np.random.default_rng(3)
    rng.integers(2**32)  # the variation's seed comes first
    reach.Reach().reset(reference, rng, {})
    for name in ("qpos", "qvel", "ctrl", "act", "qacc_warmstart", "site_xpos"):
        np.testing.assert_array_equal(
            getattr(env._arm.data, name), getattr(reference.data, name), err_msg=name
        )


def test_cubes_lie_still_apart_and_the_same_in_goal_and_scene(make_env):
    env = make_env().unwrapped
    for seed in range(5):
        env.reset(seed=seed)
        before = env.cube_pos_base
        for name, place in before.items():
            assert place[2] == pytest.approx(franka.CUBE_HALF_SIZE, abs=1e-3)
            np.testing.assert_allclose(place, env._goal_arm.data.body(name).xpos, atol=1e-4)
        env.step(ZERO)
        after = env.cube_pos_base
        assert all(np.linalg.norm(after[name] - before[name]) < 1e-3 for name in before)


def test_the_caller_may_write_into_observations(make_env):
    env = make_env()
    observation, _ = env.reset(seed=0)
    kept = {name: value.copy() for name, value in observation.items()}
    for value in observation.values():
        value[:] = 0
    later, *_ = env.step(ZERO)
    np.testing.assert_array_equal(later["goal_image"], kept["goal_image"])
    np.testing.assert_array_equal(later["goal_proprio"], kept["goal_proprio"])


def test_info_says_distance_success_and_simulated_time(make_env):
    env = make_env()
    observation, info = env.reset(seed=0)
    assert info["timestamp"] == 0.0
    for step in range(1, 4):
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        offset = observation["proprio"][:3] - observation["goal_proprio"][:3]
        assert info["timestamp"] == pytest.approx(0.25 * step)
        assert info["distance"] == pytest.approx(np.linalg.norm(offset), abs=5e-3)
        assert not info["success"]
        assert reward == -info["distance"] and not terminated


def test_episodes_are_truncated_at_the_step_limit(make_env):
    env = make_env(max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(ZERO)[3] for _ in range(2)] == [False, True]


def test_success_must_be_held_and_ends_the_episode_only_on_request():
    for wish in (False, True):
        env = FrankaEnv(backend="ray", image_size=16, terminate_on_success=wish)
        near = {"start_position": [0.45, 0, 0.3], "goal_position": [0.45, 0, 0.33]}
        env.reset(seed=0, options=near)
        towards = np.array([0, 0, 0.03, 0, 0, 0, 0])
        steps = [env.step(towards)] + [env.step(ZERO) for _ in range(HOLD_STEPS - 1)]
        assert all(info["distance"] < 0.01 for *_, info in steps)
        assert [info["success"] for *_, info in steps] == [False, False, True]
        assert [terminated for _, _, terminated, _, _ in steps] == [False, False, wish]
        *_, info = env.step(np.array([0.05, 0, 0, 0, 0, 0, 0]))
        assert not info["success"]  # it does not count once it is left
        env.close()


def test_a_start_that_is_solved_already_is_drawn_again_and_refused_if_fixed(make_env):
    env = make_env()
    for seed in range(30):
        _, info = env.reset(seed=seed, options={"start_distance": (0.0, 0.04)})
        assert info["distance"] > reach.SUCCESS_DISTANCE
    assert env.unwrapped.goal_rejections > 0
    solved = {"start_position": [0.45, 0, 0.3], "goal_position": [0.45, 0, 0.31]}
    with pytest.raises(RuntimeError, match="solved already"):
        env.reset(seed=0, options=solved)


def test_subgoals_are_what_the_expert_sees_and_the_last_is_the_goal(make_env):
    env = make_env("lift").unwrapped
    observation, _ = env.reset(seed=1)
    assert [goal.name for goal in env.subgoals] == ["above", "around", "grasp", "lift"]
    np.testing.assert_array_equal(env.subgoals[-1].image, observation["goal_image"])
    np.testing.assert_array_equal(env.subgoals[-1].proprio, observation["goal_proprio"])
    heights = [goal.proprio[2] for goal in env.subgoals]
    assert heights[0] > 0.1 and heights[1] < 0.04 and heights[2] < 0.04 and heights[3] > 0.1
    assert [goal.proprio[6] > 0.2 for goal in env.subgoals] == [False, False, True, True]
    assert env.features()[[6, 9, 12]].max() < 0.03  # the scene itself was not touched


def test_imagining_leaves_the_scene_and_foresees_it_exactly(make_env):
    env = make_env("push").unwrapped
    env.reset(seed=2)
    rng = np.random.default_rng(0)
    plans = rng.uniform(-MAX_ACTION, MAX_ACTION, (3, 4, 7))
    before = env.features()
    imagined = env.imagine(plans)
    np.testing.assert_array_equal(env.features(), before)
    for action in plans[1]:
        env.step(action)
    np.testing.assert_allclose(env.features(), imagined[1], atol=1e-12)


def test_without_a_demonstration_the_scene_is_the_same(make_env):
    env = make_env("stack").unwrapped
    with_goal, _ = env.reset(seed=4)
    without, _ = env.reset(seed=4, options={"demonstrate": False})
    np.testing.assert_array_equal(with_goal["image"], without["image"])
    assert [goal.name for goal in env.subgoals] == ["start"]


def test_a_variation_changes_the_picture_and_not_the_placement(make_env):
    plain, varied = make_env().unwrapped, make_env(variation="strong").unwrapped
    plain_image = plain.reset(seed=5)[0]["image"]
    image = varied.reset(seed=5)[0]["image"]
    assert np.abs(plain_image.astype(int) - image).mean() > 5
    for name, place in plain.cube_pos_base.items():
        np.testing.assert_allclose(place[:2], varied.cube_pos_base[name][:2], atol=5e-3)
    with pytest.raises(ValueError, match="did you mean 'mild'"):
        FrankaEnv(variation="mildd")


def test_an_action_beyond_the_bounds_counts_as_the_bound(make_env):
    ends = []
    for action in (MAX_ACTION, 100 * MAX_ACTION):
        env = make_env()
        env.reset(seed=1)
        ends.append(env.unwrapped.step(action)[0]["proprio"])
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([0, 0, np.nan, 0, 0, 0, 0]), r"must be finite, got .*nan"),
        (np.array([0, 0, np.inf, 0, 0, 0, 0]), r"must be finite, got .*inf"),
        (np.zeros(6), r"shape \(7,\).*got shape \(6,\)"),
        (np.zeros((1, 7)), r"shape \(7,\).*got shape \(1, 7\)"),
    ],
)
def test_a_bad_action_is_refused(make_env, action, message):
    env = make_env().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_a_step_before_the_first_reset_says_so(make_env):
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        make_env().unwrapped.step(ZERO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_distanse": (0.1, 0.2)}, "did you mean 'start_distance'"),
        ({"start_distance": 0.2}, r"must be \(smallest, largest\)"),
        ({"start_distance": (0.3, 0.2)}, r"must be \(smallest, largest\)"),
        ({"start_distance": (5.0, 6.0)}, "widen start_distance"),
        ({"goal_position": (0.4, 0.0)}, r"shape \(3,\), got \(2,\)"),
        ({"goal_position": (0.4, 0.0, 2.0)}, "outside the workspace"),
        ({"goal_position": (0.4, np.nan, 0.3)}, "outside the workspace"),
        (
            {
                "start_position": (0.4, 0.0, 0.3),
                "goal_position": (0.4, 0.1, 0.3),
                "start_distance": (0.1, 0.2),
            },
            "already fix the distance",
        ),
    ],
)
def test_a_bad_reset_option_is_explained(make_env, options, message):
    with pytest.raises(ValueError, match=message):
        make_env().reset(seed=0, options=options)


def test_reset_options_are_obeyed(make_env):
    env = make_env()
    start, goal = (0.45, -0.1, 0.25), (0.5, 0.1, 0.3)
    observation, _ = env.reset(seed=0, options={"start_position": start, "goal_position": goal})
    np.testing.assert_allclose(observation["proprio"][:3], start, atol=1e-3)
    np.testing.assert_allclose(observation["goal_proprio"][:3], goal, atol=1e-3)
    for seed in range(10):
        _, info = env.reset(seed=seed, options={"start_distance": (0.2, 0.25)})
        assert 0.199 <= info["distance"] <= 0.251


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"camera": "wirst"}, "did you mean 'wrist'.*exterior, exterior_right, wrist"),
        ({"image_size": 0}, "image_size must be 1 to 1024 pixels, got 0"),
        ({"render_mode": "human"}, "render_mode must be"),
        ({"control_hz": 7.0}, "control_hz must divide"),
        ({"backend": "vulkan"}, "choose from auto, gl, ray"),
    ],
)
def test_a_bad_setting_is_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        FrankaEnv(**{"backend": "ray", **settings})


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'raech'; did you mean 'reach'"):
        worldmodel.envs.make("raech")


def test_any_camera_can_be_looked_through(make_env):
    env = make_env().unwrapped
    env.reset(seed=0)
    views = [env.view(camera, size=48) for camera in franka.CAMERAS]
    assert all(view.shape == (48, 48, 3) and view.std() > 10 for view in views)
    assert np.abs(views[0].astype(int) - views[1]).mean() > 1
    with pytest.raises(ValueError, match="did you mean 'exterior'"):
        env.view("exteriour")


def test_render_returns_a_larger_image_only_in_its_mode(make_env):
    env = make_env()
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3)
    assert make_env(render_mode=None).unwrapped.render() is None


def test_importing_the_environments_imports_neither_torch_nor_mujoco():
    code = (
        "import sys, worldmodel.envs; assert 'mujoco' not in sys.modules;"
        "import worldmodel.envs.franka_env, worldmodel.envs.expert, worldmodel.envs.tasks.reach;"
        "assert 'mujoco' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mujoco_has_nothing_to_complain_about(make_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # mujoco logs its warnings in the working directory
    env = make_env(max_episode_steps=100)
    for seed in range(3):
        run_episode(env, seed=seed, steps=15)
    assert env.unwrapped._arm.data.warning.number.sum() == 0
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()
