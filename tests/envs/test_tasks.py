"""Every task: the expert solves it, nothing else does, and success means what it says."""

import numpy as np
import pytest

from worldmodel.envs import placing
from worldmodel.envs.expert import make_policy
from worldmodel.envs.franka_env import HOLD_STEPS
from worldmodel.envs.tasks import TASKS
from worldmodel.envs.tasks.drawer_open import SUCCESS_OPENING
from worldmodel.envs.tasks.pick_and_place import PickAndPlace

ZERO = np.zeros(7, np.float32)


def play(env, name, *, seed):
    """Return whether a policy ends an episode in success."""
    observation, info = env.reset(seed=seed, options={"demonstrate": False})
    policy, rng = make_policy(name, env.unwrapped), np.random.default_rng(seed)
    truncated = False
    while not truncated:
        observation, _, _, truncated, info = env.step(policy(observation["proprio"], rng))
    return info["success"]


@pytest.fixture(params=TASKS)
def env(make_env, request):
    return make_env(request.param, image_size=16, render_mode=None)


def test_the_expert_solves_it(env):
    assert all(play(env, "expert", seed=seed) for seed in range(5))


@pytest.mark.parametrize("name", ["random", "do_nothing"])
def test_policies_that_do_not_look_fail(env, name):
    assert not any(play(env, name, seed=seed) for seed in range(3))


def test_a_start_is_never_solved_and_a_goal_always_is(env):
    inner = env.unwrapped
    for seed in range(5):
        env.reset(seed=seed)
        assert not inner.task.success(inner._arm)
        assert inner.task.success(inner._goal_arm)
        assert inner.task.distance(inner._goal_arm) < 0.04
        assert inner.subgoals[-1].name == inner.task.waypoints(inner._arm)[-1].stage


def test_stage_limits_leave_time_for_twice_the_expert(env):
    env.reset(seed=0)
    limits = [goal.max_steps for goal in env.unwrapped.subgoals]
    assert min(limits) >= 4
    assert TASKS[env.unwrapped.spec.kwargs["task"]].max_episode_steps >= 16


def put(env, name, place):
    """Lay a cube somewhere, at rest."""
    arm = env.unwrapped._arm
    joint = arm.data.joint(name)
    joint.qpos[:3], joint.qvel = place, 0.0
    arm.settle(0.2)


def test_an_object_placed_without_the_arm_counts_only_where_it_should(make_env):
    env = make_env("pick_and_place", image_size=16).unwrapped
    env.reset(seed=0)
    task = env.task
    assert isinstance(task, PickAndPlace)
    cube, goal = task._cube, task._goal
    for offset, counts in ((0.0, True), (0.035, True), (0.05, False)):
        put(env, cube, [goal[0], goal[1] + offset, placing.franka.CUBE_HALF_SIZE])
        assert task.success(env._arm) is counts
    put(env, cube, [goal[0], goal[1], 0.025])
    for step in range(HOLD_STEPS):
        *_, info = env.step(ZERO)
        assert info["success"] is (step == HOLD_STEPS - 1)


def test_a_cube_at_its_goal_but_still_in_the_hand_is_not_placed(make_env):
    env = make_env("pick_and_place", image_size=16).unwrapped
    env.reset(seed=1)
    way = env.expert()
    observation, _ = env.reset(seed=1)
    while "lower" not in way.ended:
        way.update(observation["proprio"])
        assert not env.task.success(env._arm)
        observation, *_ = env.step(way.action(observation["proprio"]))
    assert env.task.distance(env._arm) < 0.01


def test_one_finger_is_no_grasp_and_a_raised_hand_no_lift(make_env):
    env = make_env("lift", image_size=16).unwrapped
    observation, _ = env.reset(seed=0)
    cube = env.task._cube
    beside = env.cube_pos_base[cube] + [0.0, 0.062, 0.005]
    env._arm.teleport(beside)  # the right finger would be inside: let it be pushed out
    env._arm.settle(0.2)
    assert placing.touching_fingers(env._arm, cube) < 2
    assert not env.task.success(env._arm)


def test_the_drawer_moves_only_when_pulled_by_its_knob(make_env):
    env = make_env("drawer_open", image_size=16).unwrapped
    env.reset(seed=0)
    opening = env.features()[-1]
    for _ in range(5):
        env.step(ZERO)
    assert env.features()[-1] == pytest.approx(opening, abs=2e-3)
    env._arm.data.joint("drawer").qpos = SUCCESS_OPENING + 0.01
    assert env.task.success(env._arm)


def test_pushes_keep_the_cube_on_the_table_and_need_contact(make_env):
    env = make_env("push", image_size=16).unwrapped
    env.reset(seed=0)
    cube, goal = env.task._cube, env.task._goal
    put(env, cube, [*goal, 0.2])
    env._arm.data.joint(cube).qpos[2] = 0.2  # in the air above its goal
    env._arm._refresh()
    assert not env.task.success(env._arm)
