import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.planners import ActionBounds, split_action
from worldmodel.pose import euler_to_matrix

STEP = ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [0.5])
actions = st.tuples(
    *[st.floats(-0.4, 0.4)] * 3, *[st.floats(-0.6, 0.6)] * 3, st.floats(-1.0, 1.0)
).map(np.array)


def parts_of(action, bounds=STEP, most=50):
    parts = []
    while action is not None:
        part, action = split_action(action, bounds)
        parts.append(part)
        assert len(parts) <= most, "the remainder does not shrink"
    return parts


@settings(max_examples=200, deadline=None)
@given(action=actions)
def test_the_executed_parts_add_up_to_the_action(action):
    parts = np.array(parts_of(action))
    np.testing.assert_allclose(parts.sum(0)[[0, 1, 2, 6]], action[[0, 1, 2, 6]], atol=2e-6)
    rotation = np.eye(3)
    for part in parts:
        rotation = euler_to_matrix(part[3:6]) @ rotation
    np.testing.assert_allclose(rotation, euler_to_matrix(action[3:6]), atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(action=actions)
def test_every_part_is_inside_the_step_bounds_even_in_single_precision(action):
    for part in parts_of(action):
        part = part.astype(np.float32)
        assert (part >= STEP.low.numpy()).all() and (part <= STEP.high.numpy()).all()


@settings(max_examples=200, deadline=None)
@given(action=actions)
def test_the_first_part_keeps_the_direction_of_translation_and_rotation(action):
    part, _ = split_action(action, STEP)
    for group in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(np.cross(part[group], action[group]), 0, atol=1e-6)
        assert part[group] @ action[group] >= 0


def test_a_long_move_takes_exactly_as_many_steps_as_it_needs():
    action = np.array([0.3, -0.15, 0.0, 0, 0, 0, 0])
    parts = parts_of(np.float32(action))
    assert len(parts) == 4
    np.testing.assert_allclose(parts, [[0.075, -0.0375, 0, 0, 0, 0, 0]] * 4, atol=1e-6)


def test_each_group_goes_at_its_own_pace():
    part, rest = split_action(np.array([0.3, 0, 0, 0.05, 0, 0, 1.0]), STEP)
    assert rest is not None
    np.testing.assert_allclose(part, [0.075, 0, 0, 0.05, 0, 0, 0.5], atol=1e-8)
    np.testing.assert_allclose(rest, [0.225, 0, 0, 0, 0, 0, 0.5], atol=1e-8)


def test_an_action_that_fits_is_executed_whole():
    action = np.array([0.075, -0.02, 0.01, 0.1, -0.15, 0.02, -0.5])
    part, rest = split_action(action, STEP)
    assert rest is None
    np.testing.assert_allclose(part, action, atol=1e-7)


def test_unequal_limits_shorten_by_the_direction_taken():
    bounds = ActionBounds(low=-STEP.high / 2, high=STEP.high)
    forward, _ = split_action(np.array([0.3, 0, 0, 0, 0, 0, 0]), bounds)
    backward, _ = split_action(np.array([-0.3, 0, 0, 0, 0, 0, 0]), bounds)
    assert forward[0] == pytest.approx(0.075) and backward[0] == pytest.approx(-0.0375)


def test_a_turn_about_two_axes_ends_even_where_the_third_is_fixed():
    bounds = ActionBounds.symmetric([0.075] * 3 + [0.0, 0.15, 0.15] + [0.5])
    parts = parts_of(np.array([0, 0, 0, 0.0, 0.5, 0.5, 0]), bounds)
    assert all(part[3] == 0 for part in parts)
