import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.driving.reference import Pose, Reference, TwistLaw, way_between
from worldmodel.envs.robots.kinematics import rotation_of_vector, rotation_vector
from worldmodel.pose import integrate

HOME = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.5])
LAW = TwistLaw(lead_s=0.25, speed=0.1, turn_speed=0.4)
small = st.floats(-0.025, 0.025)
angle = st.floats(-0.1, 0.1)
action = st.tuples(small, small, small, angle, angle, angle, st.floats(-0.5, 0.5)).map(np.array)
plan = st.lists(action, min_size=1, max_size=6).map(np.stack)


def turn_between(one: Pose, other: Pose) -> float:
    return float(np.linalg.norm(rotation_vector(other.rotation @ one.rotation.T)))


@settings(deadline=None)
@given(plan)
def test_at_the_end_of_every_step_it_is_where_the_actions_lead(actions) -> None:
    reference = Reference(Pose.of(HOME), actions, begins_at=7.0, step_s=0.25)
    assert reference.ends_at == 7.0 + 0.25 * len(actions)
    here = HOME
    for number in range(len(actions) + 1):
        there, expected = reference.at(7.0 + 0.25 * number + 1e-9), Pose.of(here)
        assert np.allclose(there.position, expected.position, atol=1e-6)
        assert turn_between(there, expected) < 1e-5
        if number < len(actions):
            here = integrate(here, actions[number])
    assert np.allclose(reference.at(99.0).position, here[:3], atol=1e-9)
    assert np.array_equal(reference.at(0.0).position, HOME[:3])


@settings(deadline=None)
@given(plan, st.floats(0.0, 2.0))
def test_it_is_continuous(actions, time: float) -> None:
    reference = Reference(Pose.of(HOME), actions, begins_at=0.0, step_s=0.25)
    one, other = reference.at(time), reference.at(time + 1e-4)
    assert np.linalg.norm(one.position - other.position) < 2e-5
    assert turn_between(one, other) < 1e-3


def follow(reference: Reference, pose: Pose, *, seconds: float, dt: float = 0.005) -> list[Pose]:
    poses = [pose]
    for k in range(round(seconds / dt)):
        twist = LAW.twist(reference, poses[-1], k * dt)
        poses.append(
            Pose(
                position=poses[-1].position + dt * twist[:3],
                rotation=rotation_of_vector(dt * twist[3:]) @ poses[-1].rotation,
                gripper=pose.gripper,
            )
        )
    return poses


@settings(max_examples=20, deadline=None)
@given(plan)
def test_who_follows_arrives_and_is_never_too_fast(actions) -> None:
    reference = Reference(Pose.of(HOME), actions, begins_at=0.0, step_s=0.25)
    poses = follow(reference, Pose.of(HOME), seconds=reference.ends_at + 2.5)
    end = reference.at(99.0)
    assert np.linalg.norm(poses[-1].position - end.position) < 1e-3
    assert turn_between(poses[-1], end) < 1e-2
    steps = np.diff([pose.position for pose in poses], axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= 0.1 * 0.005 + 1e-9


def test_along_a_line_the_velocity_is_that_of_the_line_and_nothing_lags() -> None:
    actions = np.tile([0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], (6, 1))
    reference = Reference(Pose.of(HOME), actions, begins_at=0.0, step_s=0.25)
    poses = follow(reference, Pose.of(HOME), seconds=1.0)
    assert np.allclose(poses[-1].position, HOME[:3] + [0.08, 0, 0], atol=1e-6)


def test_a_new_plan_from_where_the_old_one_leads_does_not_change_the_velocity() -> None:
    actions = np.tile([0.02, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0], (6, 1))
    old = Reference(Pose.of(HOME), actions, begins_at=0.0, step_s=0.25)
    pose = follow(old, Pose.of(HOME), seconds=0.4)[-1]
    begins_at = 0.55
    start = LAW.ahead(old, pose, since=0.4, until=begins_at)
    new = Reference(start, actions, begins_at=begins_at, step_s=0.25)
    for time in (0.4, 0.5, 0.6):  # also when the plan is early
        here = LAW.ahead(old, pose, since=0.4, until=time)
        assert np.allclose(LAW.twist(old, here, time), LAW.twist(new, here, time), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(plan, st.floats(0.05, 1.0))
def test_ahead_is_where_who_follows_will_be(actions, seconds: float) -> None:
    reference = Reference(Pose.of(HOME), actions, begins_at=0.0, step_s=0.25)
    seconds = round(seconds / 0.005) * 0.005
    expected = follow(reference, Pose.of(HOME), seconds=seconds)[-1]
    found = LAW.ahead(reference, Pose.of(HOME), since=0.0, until=seconds)
    assert np.linalg.norm(found.position - expected.position) < 1e-3
    assert turn_between(found, expected) < 1e-2


@settings(deadline=None)
@given(plan)
def test_the_way_between_poses_is_what_leads_along_them(actions) -> None:
    poses = [Pose.of(HOME)]
    for action in actions:
        poses.append(Reference(poses[-1], action[None], begins_at=0.0, step_s=1.0).at(2.0))
    assert np.allclose(way_between(poses)[:, :6], actions[:, :6], atol=1e-6)


def test_the_gripper_changes_in_its_step_only() -> None:
    actions = np.zeros((3, 7))
    actions[1, 6] = 1.0
    reference = Reference(Pose.of(HOME), actions, begins_at=1.0, step_s=0.25)
    assert [reference.gripper_change(t) for t in (0.5, 1.1, 1.3, 1.6, 9.0)] == [0, 0, 1.0, 0, 0]
    assert reference.at(9.0).gripper == 1.0
