import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from worldmodel.envs.robots.limits import (
    FR3,
    FR3_SYSTEM_5_9,
    HARDWARE,
    PANDA,
    UNKNOWN,
    Envelope,
    arm_of_server,
    first_run,
    hardware_limits,
    intersection,
    joint_intersection,
)

BOX: dict[str, Any] = {"workspace_low": (0.3, -0.3, 0.05), "workspace_high": (0.65, 0.3, 0.6)}
NUMBERS = [
    item.name
    for item in fields(Envelope)
    if not item.name.startswith("workspace") and item.name != "binary_gripper"
]


def test_panda_and_fr3_differ_by_more_than_half_a_radian_in_joint_6():
    assert FR3.joints.low[5] - PANDA.joints.low[5] == pytest.approx(0.562)
    assert FR3.joints.high[5] - PANDA.joints.high[5] == pytest.approx(0.7644)


@pytest.mark.parametrize("arm", HARDWARE)
def test_tables_are_whole(arm):
    limits = hardware_limits(arm)
    assert (limits.joints.low < limits.joints.high).all()
    for values in (limits.joints.velocity, limits.joint_acceleration, limits.joint_jerk):
        assert values.shape == (7,)
        assert (values > 0).all()
    for motion in (limits.translation, limits.rotation):
        assert 0 < motion.velocity < motion.acceleration < motion.jerk


def test_published_figures():
    assert (PANDA.translation.velocity, FR3.translation.velocity) == (1.7, 3.0)
    assert (PANDA.translation.acceleration, FR3.translation.acceleration) == (13.0, 9.0)
    assert (PANDA.translation.jerk, FR3.translation.jerk) == (6500.0, 4500.0)
    assert PANDA.joints.velocity.tolist() == [2.175] * 4 + [2.61] * 3
    assert FR3.joints.velocity.tolist() == [2.62] * 4 + [5.26, 4.18, 5.26]


@pytest.mark.parametrize("known", [PANDA, FR3, FR3_SYSTEM_5_9])
def test_an_unknown_arm_gets_what_every_arm_can_do(known):
    assert (UNKNOWN.joints.low >= known.joints.low).all()
    assert (UNKNOWN.joints.high <= known.joints.high).all()
    assert (UNKNOWN.joints.velocity <= known.joints.velocity).all()
    assert (UNKNOWN.joint_acceleration <= known.joint_acceleration).all()
    assert (UNKNOWN.joint_jerk <= known.joint_jerk).all()
    for kind in ("translation", "rotation"):
        for part in ("velocity", "acceleration", "jerk"):
            assert getattr(getattr(UNKNOWN, kind), part) <= getattr(getattr(known, kind), part)


def test_an_intersection_does_not_depend_on_the_order():
    one, other = intersection(PANDA, FR3), intersection(FR3, PANDA)
    np.testing.assert_array_equal(one.joints.low, other.joints.low)
    np.testing.assert_array_equal(one.joint_jerk, other.joint_jerk)
    assert one.translation == other.translation
    same = joint_intersection(PANDA.joints, PANDA.joints)
    np.testing.assert_array_equal(same.high, PANDA.joints.high)


def test_tables_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        PANDA.joints.low[0] = -9.0


@pytest.mark.parametrize(
    ("version", "arm"),
    [(3, "panda"), (5, "panda"), (6, "fr3"), (9, "fr3"), (10, "fr3_5.9")]
    + [(version, "unknown") for version in (None, 0, -1, 11, 99)],
)
def test_the_server_version_says_which_arm_it_is(version, arm):
    assert arm_of_server(version) == arm
    assert arm in HARDWARE


def test_an_arm_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"panda, fr3, fr3_5.9, unknown, got 'ur5'"):
        hardware_limits("ur5")


@pytest.mark.parametrize("missing", BOX)
def test_the_workspace_has_no_default(missing):
    with pytest.raises(TypeError, match=missing):
        Envelope(**{name: value for name, value in BOX.items() if name != missing})


@pytest.mark.parametrize(
    "box",
    [
        {"workspace_low": (0.7, -0.3, 0.05)},
        {"workspace_low": (0.3, 0.3, 0.05)},
        {"workspace_high": (0.65, 0.3, math.nan)},
        {"workspace_high": (0.65, 0.3, math.inf)},
        {"workspace_low": (0.3, -0.3)},
    ],
)
def test_a_workspace_that_is_none_is_refused(box):
    with pytest.raises(ValueError, match="workspace_low"):
        Envelope(**{**BOX, **box})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_every_number_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=name):
        Envelope(**BOX, **{name: value})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"joint_stop_margin": 0.1}, "joint_stop_margin must be below joint_slow_margin"),
        ({"condition_slow": 30.0}, "condition_slow must be below condition_stop"),
        ({"gripper_force": 41.0}, "gripper_force must be at most 40 N"),
        ({"collision_force": 21.0}, "collision_force must be at most 20 N"),
        ({"collision_torque": 21.0}, "collision_torque must be at most 20 Nm"),
        ({"max_valid_for_s": 0.6}, "max_valid_for_s must be at most 0.5 s"),
        ({"tick_timeout_s": 0.6}, "tick_timeout_s must be at most 0.5 s"),
    ],
)
def test_what_is_loosened_too_far_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Envelope(**BOX, **settings)


@pytest.mark.parametrize("arm", HARDWARE)
@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("velocity", lambda h: h.translation.velocity),
        ("acceleration", lambda h: h.translation.acceleration),
        ("jerk", lambda h: h.translation.jerk),
        ("angular_velocity", lambda h: h.rotation.velocity),
        ("angular_acceleration", lambda h: h.rotation.acceleration),
        ("angular_jerk", lambda h: h.rotation.jerk),
        ("joint_velocity", lambda h: h.joints.velocity.min()),
        ("joint_acceleration", lambda h: h.joint_acceleration.min()),
        ("joint_jerk", lambda h: h.joint_jerk.min()),
    ],
)
def test_what_the_arm_cannot_do_is_refused(arm, name, largest):
    hardware = hardware_limits(arm)
    Envelope(**BOX, **{name: largest(hardware)}).check(hardware)
    with pytest.raises(ValueError, match=rf"^{name} must be at most"):
        Envelope(**BOX, **{name: 1.001 * largest(hardware)}).check(hardware)


def test_the_defaults_fit_every_arm():
    for arm in HARDWARE:
        Envelope(**BOX).check(hardware_limits(arm))
        first_run(**BOX).check(hardware_limits(arm))


def test_the_first_run_is_slower_and_never_looser():
    normal, first = Envelope(**BOX), first_run(**BOX)
    assert (first.velocity, first.step_translation, first.step_rotation) == (0.10, 0.02, 0.05)
    looser_when_smaller = {"joint_slow_margin", "joint_stop_margin", "max_rejects"}
    for name in NUMBERS:
        if name not in looser_when_smaller:
            assert getattr(first, name) <= getattr(normal, name), name


def test_stopping_distance_counts_the_delays_and_the_brake():
    envelope = Envelope(**BOX)
    assert envelope.reaction_s == pytest.approx(0.1 + 2 * (0.05 + 0.02))
    assert envelope.stopping_distance == pytest.approx(0.25 * 0.24 + 0.25**2 / 2 * math.sqrt(3))
    assert replace(envelope, velocity=0.1).stopping_distance < 0.5 * envelope.stopping_distance
