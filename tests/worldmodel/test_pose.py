import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.pose import (
    action_between,
    euler_to_matrix,
    integrate,
    matrix_to_euler,
    rotation_delta,
)

# Two states of a real Franka arm (the example shipped with V-JEPA 2-AC), and the action between.
START = [0.58043909, -0.00202123, 0.24755727, -3.06661558, 0.03052980, -1.91275120, 0.99697137]
END = [0.67280847, 0.02896597, 0.33183685, -3.05143738, 0.01770951, -1.91249502, 0.99697137]
ACTION = [0.09236938, 0.03098720, 0.08427958, -0.01716477, -0.00999905, -0.00002407, 0.0]

# Angles up to both ends of their range; pitch stops short of the poles, where Euler angles are not
# unique.
angle = st.one_of(st.floats(-np.pi, np.pi), st.sampled_from([-np.pi, np.pi, 0.0, 3.1415, -3.1415]))
pitch = st.floats(-1.4, 1.4)
proprios = st.tuples(*[st.floats(-1, 1)] * 3, angle, pitch, angle, st.floats(0, 1)).map(np.array)
small_actions = st.tuples(
    *[st.floats(-0.075, 0.075)] * 3, *[st.floats(-0.15, 0.15)] * 3, st.floats(-1, 1)
).map(np.array)


def same_rotation(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(euler_to_matrix(a), euler_to_matrix(b), atol=1e-7)


def test_the_action_between_two_real_franka_states_is_the_published_one() -> None:
    action = action_between(np.array(START), np.array(END))
    np.testing.assert_allclose(action, ACTION, atol=1e-7)
    naive_rotation = np.subtract(END, START)[3:6]
    assert np.abs(action[3:6] - naive_rotation).max() > 0.03  # subtracting angles is no rotation


def test_the_recorded_franka_pair_gives_the_same_action_in_float32(shared) -> None:
    with np.load(shared / "data" / "franka_example_traj.npz") as recording:
        states = recording["states"][0]
    assert states.dtype == np.float32
    np.testing.assert_allclose(action_between(states[0], states[1]), ACTION, atol=1e-6)


def test_integrating_the_published_action_reaches_the_second_state() -> None:
    reached = integrate(np.array(START), np.array(ACTION))
    np.testing.assert_allclose(reached, END, atol=1e-7)


def test_euler_angles_are_extrinsic_xyz() -> None:
    roll, pitch_, yaw = 0.3, -0.4, 0.5
    about_x = euler_to_matrix(np.array([roll, 0, 0]))
    about_y = euler_to_matrix(np.array([0, pitch_, 0]))
    about_z = euler_to_matrix(np.array([0, 0, yaw]))
    np.testing.assert_allclose(about_x @ [0, 1, 0], [0, np.cos(roll), np.sin(roll)])
    np.testing.assert_allclose(about_y @ [0, 0, 1], [np.sin(pitch_), 0, np.cos(pitch_)])
    np.testing.assert_allclose(about_z @ [1, 0, 0], [np.cos(yaw), np.sin(yaw), 0])
    np.testing.assert_allclose(
        euler_to_matrix(np.array([roll, pitch_, yaw])), about_z @ about_y @ about_x
    )


def test_a_rotation_delta_multiplies_on_the_left() -> None:
    start, end = np.array(START[3:6]), np.array(END[3:6])
    turned = euler_to_matrix(rotation_delta(start, end)) @ euler_to_matrix(start)
    np.testing.assert_allclose(turned, euler_to_matrix(end), atol=1e-12)


@given(proprios, proprios)
def test_integrating_the_action_between_two_states_reaches_the_second(start, end) -> None:
    reached = integrate(start, action_between(start, end))
    np.testing.assert_allclose(reached[[0, 1, 2, 6]], end[[0, 1, 2, 6]], atol=1e-12)
    assert same_rotation(reached[3:6], end[3:6])


@given(proprios, small_actions)
def test_the_action_between_a_state_and_what_it_reaches_is_the_action(start, action) -> None:
    action[6] = np.clip(start[6] + action[6], 0, 1) - start[6]
    measured = action_between(start, integrate(start, action))
    np.testing.assert_allclose(measured, action, atol=1e-6)


def test_a_small_turn_across_the_wrap_at_pi_is_a_small_action() -> None:
    start = np.array([0.5, 0, 0.3, np.pi - 0.01, 0, 0, 0])
    end = np.array([0.5, 0, 0.3, -np.pi + 0.01, 0, 0, 0])
    np.testing.assert_allclose(action_between(start, end), [0, 0, 0, 0.02, 0, 0, 0], atol=1e-12)


@given(st.tuples(angle, pitch, angle).map(np.array))
def test_a_rotation_matrix_turns_back_into_its_angles(euler) -> None:
    matrix = euler_to_matrix(euler)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert same_rotation(matrix_to_euler(matrix), euler)


@given(proprios, proprios, small_actions)
def test_numpy_and_torch_agree(start, end, action) -> None:
    between = action_between(torch.from_numpy(start), torch.from_numpy(end))
    reached = integrate(torch.from_numpy(start), torch.from_numpy(action))
    assert between.dtype == torch.float64
    for one, other in (
        (between.numpy(), action_between(start, end)),
        (reached.numpy(), integrate(start, action)),
    ):
        apart = one - other
        apart[3:6] -= 2 * np.pi * np.round(apart[3:6] / (2 * np.pi))  # pi and -pi are one angle
        np.testing.assert_allclose(apart, 0, atol=1e-12)


def test_leading_dimensions_are_kept_and_broadcast() -> None:
    states = np.array([START, END] * 3).reshape(3, 2, 7)
    assert action_between(states[:, :1], states).shape == (3, 2, 7)
    np.testing.assert_allclose(action_between(states[:, 0], states[:, 1])[2], ACTION, atol=1e-7)


def test_gradients_flow_through_a_step() -> None:
    action = torch.tensor(ACTION, requires_grad=True)
    (gradient,) = torch.autograd.grad(integrate(torch.tensor(START), action)[:6].sum(), action)
    assert gradient[:6].abs().min() > 0


@pytest.mark.parametrize("change, expected", [(0.7, 1.0), (-0.7, 0.0), (0.25, 0.75)])
def test_the_gripper_stops_at_its_ends(change: float, expected: float) -> None:
    start, action = np.zeros(7), np.zeros(7)
    start[6], action[6] = 0.5, change
    assert integrate(start, action)[6] == expected
    assert integrate(torch.tensor(start), torch.tensor(action))[6] == expected


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: integrate(np.zeros(6), np.zeros(7)), "proprio must end in 7 values, got shape (6"),
        (lambda: integrate(np.zeros(7), np.zeros((2, 6))), "action must end in 7 values, got sha"),
        (lambda: action_between(np.zeros(()), np.zeros(7)), "proprio_from must end in 7 values"),
        (lambda: action_between(np.zeros(7), np.zeros(8)), "proprio_to must end in 7 values"),
        (lambda: euler_to_matrix(torch.zeros(4)), "Euler angles must end in 3 values, got shape"),
    ],
)
def test_a_wrong_size_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
