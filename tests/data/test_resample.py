import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.resample import (
    gap_around,
    hold,
    interpolate_linear,
    interpolate_proprio,
    nearest,
)
from worldmodel.data.rotations import angle_between, to_matrix
from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix, matrix_to_euler

RELAXED = settings(deadline=None, max_examples=60)

steps = st.lists(st.floats(0.01, 0.3), min_size=1, max_size=12)
start = st.sampled_from([0.0, -3.0, 1.7e9])
fractions = st.lists(st.floats(0, 1), min_size=1, max_size=10)


def moving(seconds: np.ndarray) -> np.ndarray:
    """Proprio (n, 7) of a hand on a straight line, turning at a constant speed."""
    axis = np.array([0.6, -0.64, 0.48])
    first = to_matrix(np.array([3.0, 0.2, -0.4]), "euler_xyz")
    turned = to_matrix(axis * 0.9 * seconds[:, None], "rotvec") @ first
    position = np.array([0.4, 0.1, 0.3]) + seconds[:, None] * [0.1, -0.2, 0.05]
    return np.concatenate(
        [position, matrix_to_euler(turned), np.sin(seconds)[:, None] ** 2], axis=1
    )


@RELAXED
@given(steps=steps, start=start, fractions=fractions)
def test_a_steady_motion_is_interpolated_exactly_and_the_gripper_held(steps, start, fractions):
    times = start + np.concatenate([[0], np.cumsum(steps)])
    at = np.sort(times[0] + np.array(fractions) * (times[-1] - times[0]))
    found = interpolate_proprio(times, moving(times - start), at)
    expected = moving(at - start)
    np.testing.assert_allclose(found[:, POSITION], expected[:, POSITION], atol=1e-6)
    turned = angle_between(
        euler_to_matrix(found[:, ROTATION]), euler_to_matrix(expected[:, ROTATION])
    )
    assert turned.max() < 1e-6
    before = [max(k for k in range(len(times)) if times[k] <= t) for t in at]
    np.testing.assert_array_equal(found[:, GRIPPER], moving(times - start)[before][:, GRIPPER])


@RELAXED
@given(steps=steps, start=start)
def test_at_a_measurement_everything_is_as_measured_to_the_last_bit(steps, start):
    times = start + np.concatenate([[0], np.cumsum(steps)])
    proprio = moving(times - start).astype(np.float32)
    found = interpolate_proprio(times, proprio, times)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, proprio)
    values = np.random.default_rng(0).normal(size=(len(times), 2, 3))
    np.testing.assert_array_equal(interpolate_linear(times, values, times), values)
    np.testing.assert_array_equal(hold(times, values, times), values)
    np.testing.assert_array_equal(gap_around(times, times), 0)
    np.testing.assert_array_equal(nearest(times, times), np.arange(len(times)))


def test_rotations_go_the_short_way_across_the_seam_of_euler_angles():
    proprio = np.zeros((2, 7))
    proprio[:, 3] = [np.pi - 0.1, -np.pi + 0.1]  # roll of a hand that points down
    middle = interpolate_proprio(np.array([0.0, 1.0]), proprio, np.array([0.5]))
    assert abs(abs(middle[0, 3]) - np.pi) < 1e-9


def test_values_between_measurements():
    times, values = np.array([1.0, 2.0, 4.0]), np.array([[0.0], [10.0], [30.0]])
    at = np.array([1.25, 1.5, 3.0, 3.5])
    assert interpolate_linear(times, values, at).ravel().tolist() == [2.5, 5.0, 20.0, 25.0]
    assert hold(times, values, at).ravel().tolist() == [0.0, 0.0, 10.0, 10.0]
    assert gap_around(times, at).tolist() == [1.0, 1.0, 2.0, 2.0]
    assert nearest(times, at).tolist() == [0, 0, 1, 2]
    assert nearest(times, np.array([-5.0, 9.0])).tolist() == [0, 2]
    assert nearest(times[:1], at).tolist() == [0, 0, 0, 0]


@RELAXED
@given(steps=steps, at=st.floats(-1, 5))
def test_the_nearest_is_nearest_and_of_two_the_earlier(steps, at):
    times = np.cumsum(steps)
    found = int(nearest(times, np.array([at]))[0])
    assert found == int(np.argmin(np.abs(times - at)))


@pytest.mark.parametrize("outside", [0.9, 4.1])
def test_nothing_is_made_up_beyond_the_measurements(outside):
    times, at = np.array([1.0, 2.0, 4.0]), np.array([2.0, outside])
    message = "reach beyond the measurements, 1 to 4 s"
    with pytest.raises(ValueError, match=message):
        interpolate_proprio(times, np.zeros((3, 7)), at)
    for function in (interpolate_linear, hold):
        with pytest.raises(ValueError, match=message):
            function(times, np.zeros((3, 1)), at)


def test_no_times_give_no_values():
    times, none = np.array([0.0, 1.0]), np.zeros(0)
    assert interpolate_proprio(times, np.zeros((2, 7)), none).shape == (0, 7)
    assert interpolate_linear(times, np.zeros((2, 3)), none).shape == (0, 3)
