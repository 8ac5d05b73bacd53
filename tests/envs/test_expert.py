import numpy as np
import pytest

from worldmodel.envs import expert, placing
from worldmodel.envs.franka_env import MAX_ACTION
from worldmodel.pose import euler_to_matrix, integrate

HOME = np.array([0.45, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0], np.float32)


def roll_out(policy, *, seed, steps=300):
    """Follow a policy in a world where every action succeeds."""
    rng = np.random.default_rng(seed)
    proprio, actions = [HOME], []
    for _ in range(steps):
        actions.append(policy(proprio[-1], rng))
        proprio.append(integrate(proprio[-1], actions[-1]))
    return np.array(proprio), np.array(actions)


def tilt(proprio):
    return np.arccos(np.clip(-euler_to_matrix(proprio[:, 3:6])[:, 2, 2], -1, 1))


BLIND = ("scripted", "noisy", "explore", "random", "do_nothing")


@pytest.fixture
def env(make_env):
    env = make_env("pick_and_place", image_size=16).unwrapped
    env.reset(seed=0)
    return env


def act(env, name, *, seed, steps=40):
    """Follow a policy in the simulation; returns its actions and the true states."""
    observation, _ = env.reset(seed=seed, options={"demonstrate": False})
    policy, rng = expert.make_policy(name, env), np.random.default_rng(seed)
    actions, states = [], [env.features()]
    for _ in range(steps):
        actions.append(policy(observation["proprio"], rng))
        observation, *_ = env.step(actions[-1])
        states.append(env.features())
    return np.array(actions), np.array(states)


@pytest.mark.parametrize("name", expert.POLICIES)
def test_actions_are_within_the_bounds_of_the_environment_and_repeat_by_seed(env, name):
    actions, states = act(env, name, seed=0)
    again, same = act(env, name, seed=0)
    assert actions.dtype == np.float32 and actions.shape == (40, 7)
    assert (np.abs(actions) <= MAX_ACTION).all()
    np.testing.assert_array_equal(actions, again)
    np.testing.assert_array_equal(states, same)


@pytest.mark.parametrize("name", BLIND)
def test_blind_policies_do_not_look_at_the_simulation(name):
    expert.make_policy(name, None)(HOME, np.random.default_rng(0))


def test_play_moves_objects_and_wandering_high_does_not(env):
    def moved(name, seeds):
        cubes = [act(env, name, seed=seed)[1][:, 4:13] for seed in seeds]
        return [np.abs(track[-1] - track[0]).max() > 0.03 for track in cubes]

    assert sum(moved("play", range(6))) >= 4
    assert not any(moved("do_nothing", range(2)))


def test_play_lifts_objects_and_opens_and_closes_in_the_air(env):
    heights = [act(env, "play", seed=seed)[1][:, [6, 9, 12]].max() for seed in range(6)]
    assert sum(height > 0.08 for height in heights) >= 2


def test_a_noisy_expert_goes_another_way_and_mostly_arrives(env):
    straight, states = act(env, "expert", seed=3)
    noisy, shaken = act(env, "noisy_expert", seed=3)
    assert np.abs(straight[0] - noisy[0]).max() > 1e-3
    heights = shaken[:, [6, 9, 12]].max(axis=1)
    assert heights.max() > 0.08  # it grasped and lifted all the same


def test_bounds_are_those_of_the_environment_and_wandering_covers_the_tasks():
    np.testing.assert_allclose(expert.MAX_ACTION, MAX_ACTION)
    assert (np.array(expert.WORKSPACE_LOW) <= placing.WORKSPACE_LOW).all()
    assert (np.array(expert.WORKSPACE_HIGH) >= placing.WORKSPACE_HIGH).all()


def test_scripted_roams_the_workspace_straight_down():
    proprio, actions = roll_out(expert.make_policy("scripted", None), seed=1, steps=1000)
    places = proprio[:, :3]
    assert (places >= np.array(expert.WORKSPACE_LOW) - 1e-6).all()
    assert (places <= np.array(expert.WORKSPACE_HIGH) + 1e-6).all()
    span = np.subtract(expert.WORKSPACE_HIGH, expert.WORKSPACE_LOW)
    assert (np.ptp(places, axis=0) > 0.8 * span).all()
    assert tilt(proprio).max() < 1e-3
    speeds = np.linalg.norm(actions[:, :3], axis=1)
    assert speeds.min() < 0.02 and 0.06 < speeds.max() <= 0.0751
    assert 0.2 < proprio[:, 6].mean() < 0.8  # the gripper is used


def test_a_waypoint_is_approached_straight_and_reached():
    policy = expert.Wander(renewal=0.0, gripper_toggle=0.0)
    rng, proprio = np.random.default_rng(2), HOME
    proprio = integrate(proprio, policy(proprio, rng))
    waypoint = policy._position
    distances = []
    while np.linalg.norm(proprio[:3] - waypoint) >= 0.01:
        distances.append(np.linalg.norm(proprio[:3] - waypoint))
        proprio = integrate(proprio, policy(proprio, rng))
    steps = -np.diff(distances)
    np.testing.assert_allclose(steps[:-1], steps[0], rtol=1e-3)


def test_noisy_moves_on_every_axis_and_scripted_does_not():
    spread = {
        name: roll_out(expert.make_policy(name, None), seed=3)[1].std(axis=0)
        for name in ("scripted", "noisy")
    }
    assert (spread["noisy"] > 0.1 * MAX_ACTION).all()
    assert (spread["scripted"][3:6] < 1e-5).all()


def test_explore_turns_and_tilts_and_noisy_does_not():
    explore, _ = roll_out(expert.Wander(max_yaw=0.6, max_tilt=0.25), seed=4, steps=1000)
    assert 0.2 < tilt(explore).max() < 0.26
    assert 0.5 < np.abs(explore[:, 5]).max() < 0.7
    noisy, _ = roll_out(expert.make_policy("noisy", None), seed=4, steps=1000)
    assert tilt(noisy).max() < 0.2


def test_do_nothing_does_nothing_and_random_covers_the_bounds():
    assert not roll_out(expert.make_policy("do_nothing", None), seed=0)[1].any()
    _, actions = roll_out(expert.make_policy("random", None), seed=0, steps=2000)
    assert (np.abs(actions).max(axis=0) > 0.98 * MAX_ACTION).all()
    assert (np.abs(actions.mean(axis=0)) < 0.05 * MAX_ACTION).all()


def test_an_unknown_behaviour_names_the_nearest():
    with pytest.raises(ValueError, match="unknown behaviour 'noise'; did you mean 'noisy'"):
        expert.make_policy("noise", None)
