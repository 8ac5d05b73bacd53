"""The two ideas that keep an arm in its box, on a thousand arms at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.shaping import Ramp, keep_in_box, shrink, stoppable_speed

LOW, HIGH = np.array([0.3, -0.3, 0.05]), np.array([0.65, 0.3, 0.6])
ENVELOPE = Envelope(workspace_low=tuple(LOW), workspace_high=tuple(HIGH))


@given(st.floats(0, 2), st.floats(0.01, 1), st.floats(0.1, 10))
def test_from_a_stoppable_speed_rest_is_reached_within_the_distance(distance, reaction, brake):
    speed = float(stoppable_speed(distance, reaction_s=reaction, deceleration=brake))
    assert speed * reaction + speed**2 / (2 * brake) == pytest.approx(distance, abs=1e-9)
    assert stoppable_speed(-distance, reaction_s=reaction, deceleration=brake) == pytest.approx(0)


def test_outside_of_the_box_only_the_way_back_is_left():
    outside = HIGH + 0.01
    np.testing.assert_allclose(keep_in_box(np.full(3, 0.2), outside, ENVELOPE), 0, atol=1e-12)
    back = keep_in_box(np.full(3, -0.2), outside, ENVELOPE)
    np.testing.assert_array_equal(back, np.full(3, -0.2))


def test_shrinking_keeps_the_direction():
    np.testing.assert_allclose(shrink(np.array([3.0, 4.0]), 1.0), [0.6, 0.8])
    np.testing.assert_array_equal(shrink(np.array([0.3, 0.4]), 1.0), [0.3, 0.4])
    np.testing.assert_array_equal(shrink(np.zeros(3), 1.0), np.zeros(3))


@pytest.mark.parametrize("dt", [0.005, 0.05])
def test_100_000_commands_leave_neither_the_box_nor_the_limits(dt):
    """The arms follow with 50 ms of lag in what is known of them, and the loop stops at random."""
    rng, arms = np.random.default_rng(0), 1000
    ramp = Ramp((arms, 3), acceleration=1.0, jerk=100.0, per_axis=False)
    position = rng.uniform(LOW, HIGH, (arms, 3))
    late = max(1, round(ENVELOPE.state_max_age_s / dt))
    seen = [position.copy() for _ in range(late)]
    last, change = ramp.velocity, np.zeros((arms, 3))
    for _ in range(100):
        wanted = shrink(rng.normal(size=(arms, 3)) * 10 ** rng.uniform(-2, 6, (arms, 1)), 0.25)
        corners = rng.random(arms) < 0.5  # the worst directions are into corners
        wanted[corners] = 0.25 / np.sqrt(3) * rng.choice([-1, 1], (corners.sum(), 3))
        for _ in range(max(2, round(0.05 / dt))):
            measured = seen.pop(0)
            seen.append(position.copy())
            velocity = ramp.step(
                keep_in_box(wanted, measured, ENVELOPE),
                braked=keep_in_box(ramp.raw, measured, ENVELOPE),
                dt=dt,
            )
            assert np.linalg.norm(velocity, axis=1).max() <= 0.25 * (1 + 1e-9)
            now = velocity - last
            assert np.linalg.norm(now, axis=1).max() <= 1.0 * dt * (1 + 1e-6) + 1e-6
            if dt <= 0.01:
                jerk = np.linalg.norm(now - change, axis=1).max() / dt**2
                assert jerk <= 100.0 * (1 + 1e-6) + 2e-6 / dt**2
            last, change = velocity, now
            position = position + velocity * dt
            # Were the loop to stand still now, the arm would go on for the timeout, then brake.
            stopped = position + velocity * ENVELOPE.tick_timeout_s
            stopped += velocity * np.abs(velocity) / (2 * ENVELOPE.axis_deceleration)
            for place in (position, stopped):
                assert (place >= LOW - 1e-9).all()
                assert (place <= HIGH + 1e-9).all()


def test_a_turn_in_one_axis_does_not_delay_the_brake_of_another():
    ramp = Ramp((3,), acceleration=1.0, jerk=100.0, per_axis=False)
    ramp.raw = ramp.velocity = np.array([0.1, -0.2, 0.0])
    ramp.step(np.array([0.095, 0.2, 0.0]), braked=np.array([0.095, -0.2, 0.0]), dt=0.01)
    assert ramp.raw[0] == pytest.approx(0.095)
    assert ramp.raw[1] == pytest.approx(-0.195)


def test_joints_have_limits_each_by_itself():
    ramp = Ramp((7,), acceleration=2.0, jerk=200.0, per_axis=True)
    for _ in range(100):
        ramp.step(np.full(7, 0.5), braked=ramp.raw, dt=0.001)
    np.testing.assert_allclose(ramp.raw, np.full(7, 0.2))


def test_it_comes_to_rest_exactly():
    ramp = Ramp((3,), acceleration=1.0, jerk=100.0, per_axis=False)
    for _ in range(200):
        ramp.step(np.array([0.2, 0.1, 0.0]), braked=ramp.raw, dt=0.01)
    assert not ramp.at_rest
    for _ in range(100):
        ramp.step(np.zeros(3), braked=np.zeros(3), dt=0.01)
    assert ramp.at_rest
