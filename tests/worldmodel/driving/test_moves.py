import numpy as np
import pytest

from worldmodel.driving.moves import Mover, random_places
from worldmodel.envs.robots.interface import RobotError


def make_mover(rig) -> Mover:
    return Mover(
        robot=rig.safe,
        envelope=rig.safe.envelope,
        law=rig.law,
        command_hz=20.0,
        valid_for_s=0.375,
        max_age_s=0.2,
        sleep=rig.sleep,
        stopped=lambda: rig.stop_reason,
    )


def test_the_arm_goes_where_it_is_told_and_is_seen_there_at_rest(make_rig) -> None:
    rig = make_rig()
    mover, home, before = make_mover(rig), rig.fake.position.copy(), np.zeros(3)
    for place in random_places(4, 0.05, rng=np.random.default_rng(0)):
        seen = mover.move_by(place - before)
        before = place
        assert np.linalg.norm(rig.fake.position - home - place) < 0.01
        assert np.abs(rig.fake.joint_velocities).max() < 1e-3
        assert np.allclose(seen.tcp_pos_base, rig.fake.position, atol=1e-4)
        shown = seen.frames["exterior"].image.reshape(-1)[:28].copy().view(np.float32)
        assert np.allclose(shown[:3], rig.fake.position, atol=1e-4)  # not from on the way


def test_a_slow_arm_is_waited_for_as_long_as_it_comes_nearer(make_rig) -> None:
    rig = make_rig(envelope={"velocity": 0.01})
    home = rig.fake.position.copy()
    make_mover(rig).move_by(np.array([0.1, 0.0, 0.0]))
    assert rig.fake.now() > 108  # it began at 100; the move should have taken a second
    assert np.linalg.norm(rig.fake.position - home - [0.1, 0.0, 0.0]) < 0.01


def test_a_place_outside_of_the_workspace_is_refused_before_the_arm_moves(make_rig) -> None:
    rig = make_rig()
    with pytest.raises(RobotError, match="is outside of the workspace"):
        make_mover(rig).move_by(np.array([0.0, 0.0, 0.9]))
    assert rig.fake.commands == []


def test_a_stop_and_a_fault_end_a_move(make_rig) -> None:
    for spoil, message in [
        (lambda rig: setattr(rig, "stop_reason", "key"), "stopped: key"),
        (lambda rig: setattr(rig.fake, "errors", ("reflex",)), "fault and not moving: reflex"),
        (lambda rig: rig.fake.lost.add("exterior"), "did not come to .*camera_stale:exterior"),
    ]:
        rig = make_rig()

        def during(rig=rig, spoil=spoil) -> None:
            if 100.5 < rig.fake.now() < 100.52:
                spoil(rig)

        rig.during = during
        with pytest.raises(RobotError, match=message):
            make_mover(rig).move_by(np.array([0.1, 0.0, 0.0]))


def test_places_are_far_apart_and_none_is_too_far() -> None:
    places = random_places(200, 0.05, rng=np.random.default_rng(1))
    away = np.linalg.norm(places, axis=1)
    assert 0.025 <= away.min() and away.max() <= 0.05
    assert np.linalg.norm(np.diff(places, axis=0), axis=1).min() > 0.035
