import numpy as np
import pytest

from worldmodel.envs import expert
from worldmodel.envs.franka_env import MAX_ACTION
from worldmodel.envs.tasks import reach
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


@pytest.mark.parametrize("name", expert.POLICIES)
def test_actions_are_within_the_bounds_of_the_environment_and_repeat_by_seed(name):
    _, actions = roll_out(expert.make_policy(name), seed=0)
    _, again = roll_out(expert.make_policy(name), seed=0)
    assert actions.dtype == np.float32 and actions.shape == (300, 7)
    assert (np.abs(actions) <= MAX_ACTION).all()
    np.testing.assert_array_equal(actions, again)


def test_bounds_and_workspace_are_those_of_the_environment():
    np.testing.assert_allclose(expert.MAX_ACTION, MAX_ACTION)
    np.testing.assert_array_equal(expert.WORKSPACE_LOW, reach.WORKSPACE_LOW)
    np.testing.assert_array_equal(expert.WORKSPACE_HIGH, reach.WORKSPACE_HIGH)


def test_scripted_roams_the_workspace_straight_down():
    proprio, actions = roll_out(expert.make_policy("scripted"), seed=1, steps=1000)
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
        name: roll_out(expert.make_policy(name), seed=3)[1].std(axis=0)
        for name in ("scripted", "noisy")
    }
    assert (spread["noisy"] > 0.1 * MAX_ACTION).all()
    assert (spread["scripted"][3:6] < 1e-5).all()


def test_explore_turns_and_tilts_and_noisy_does_not():
    explore, _ = roll_out(expert.Wander(max_yaw=0.6, max_tilt=0.25), seed=4, steps=1000)
    assert 0.2 < tilt(explore).max() < 0.26
    assert 0.5 < np.abs(explore[:, 5]).max() < 0.7
    noisy, _ = roll_out(expert.make_policy("noisy"), seed=4, steps=1000)
    assert tilt(noisy).max() < 0.2


def test_do_nothing_does_nothing_and_random_covers_the_bounds():
    assert not roll_out(expert.make_policy("do_nothing"), seed=0)[1].any()
    _, actions = roll_out(expert.make_policy("random"), seed=0, steps=2000)
    assert (np.abs(actions).max(axis=0) > 0.98 * MAX_ACTION).all()
    assert (np.abs(actions.mean(axis=0)) < 0.05 * MAX_ACTION).all()


def test_an_unknown_behaviour_names_the_nearest():
    with pytest.raises(ValueError, match="unknown behaviour 'noise'; did you mean 'noisy'"):
        expert.make_policy("noise")
