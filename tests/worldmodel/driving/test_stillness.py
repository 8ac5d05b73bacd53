from types import SimpleNamespace

import numpy as np
import pytest

from worldmodel.driving.stillness import STILL_RAD, STILL_S, Stillness

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def seen(at: float, joint: float, speed: float = 0.0):
    joints = np.zeros(7)
    joints[6] = joint
    return SimpleNamespace(state_at=at, joint_positions=joints, joint_velocities=speed * np.ones(7))


def test_an_arm_is_still_when_no_joint_moved_for_a_while_whatever_its_speeds_say() -> None:
    stillness = Stillness()
    jitter = [0.08, -0.08]  # rad/s, as franky-sim measures at rest
    said = [stillness.sees(seen(0.05 * i, 4e-5 * jitter[i % 2], jitter[i % 2])) for i in range(12)]
    assert said == [0.05 * i > STILL_S - 1e-9 for i in range(12)]


def test_an_arm_that_creeps_or_has_just_arrived_is_not_still() -> None:
    creeping = Stillness()
    assert not any(
        creeping.sees(seen(0.05 * i, 3 * STILL_RAD * 0.05 * i / STILL_S)) for i in range(40)
    )
    arriving = Stillness()
    for i in range(20):
        arriving.sees(seen(0.05 * i, 0.01 * i))
    assert not arriving.sees(seen(1.0, 0.19))
    assert not arriving.sees(seen(1.15, 0.19))
    assert arriving.sees(seen(1.25, 0.19))


def test_the_same_state_again_is_no_time() -> None:
    stillness = Stillness()
    assert not any(stillness.sees(seen(7.0, 0.0)) for _ in range(50))
