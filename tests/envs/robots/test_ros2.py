import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldmodel.envs.robots.interface import Command
from worldmodel.envs.robots.ros2 import TwistOutput, fill_twist, ros2_twist_output

TWIST = np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.6])


class Vector:
    """Refuses what ROS 2's generated messages refuse: anything but a float."""

    def __setattr__(self, name, value):
        assert name in ("x", "y", "z")
        assert type(value) is float
        object.__setattr__(self, name, value)


def new_message():
    return SimpleNamespace(
        header=SimpleNamespace(stamp=None, frame_id=""),
        twist=SimpleNamespace(linear=Vector(), angular=Vector()),
    )


class Rig:
    def __init__(self):
        self.now, self.sent = 100.0, []
        self.output = TwistOutput(lambda twist: self.sent.append(list(twist)), clock=self.clock)

    def clock(self):
        return self.now

    def run(self, seconds, *, hz=50):
        for _ in range(round(seconds * hz)):
            self.output.tick()
            self.now += 1 / hz


def twist(seq, values=TWIST, *, valid_for_s=0.19, kind="twist", gripper=None):
    return Command(seq, 0, valid_for_s, kind, values, gripper)


def test_a_message_holds_the_twist_in_the_base_frame() -> None:
    message = fill_twist(new_message(), TWIST.astype(np.float32), frame_id="base", stamp="now")
    assert (message.header.frame_id, message.header.stamp) == ("base", "now")
    linear, angular = message.twist.linear, message.twist.angular
    values = [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
    np.testing.assert_allclose(values, TWIST, atol=1e-7)


def test_publishes_while_the_command_lives_then_zeros_once() -> None:
    rig = Rig()
    rig.run(0.1)
    assert rig.sent == []
    rig.output.send(twist(1))
    rig.run(1.0)
    assert rig.sent == [list(TWIST)] * 10 + [[0.0] * 6]


def test_a_newer_command_takes_over() -> None:
    rig = Rig()
    rig.output.send(twist(1))
    rig.run(0.1)
    rig.output.send(twist(2, -TWIST))
    rig.run(1.0)
    assert rig.sent == [list(TWIST)] * 5 + [list(-TWIST)] * 10 + [[0.0] * 6]


@pytest.mark.parametrize("end", ["stop", "hold"])
def test_comes_to_rest_at_once(end) -> None:
    rig = Rig()
    rig.output.send(twist(1))
    rig.run(0.04)
    if end == "stop":
        rig.output.stop()
    else:
        rig.output.send(twist(2, np.zeros(0), kind="hold"))
    rig.run(1.0)
    assert rig.sent == [list(TWIST)] * 2 + [[0.0] * 6]


@pytest.mark.parametrize(
    "command, message",
    [
        (twist(0), "seq_old"),
        (twist(2, np.full(6, np.nan)), "not_finite:values"),
        (twist(2, valid_for_s=0.6), "valid_too_long"),
        (twist(2, np.zeros(7), kind="joint_velocity"), "takes \"twist\" and \"hold\""),
        (twist(2, gripper=1.0), "moves no gripper"),
    ],
)  # fmt: skip
def test_refuses_what_is_wrong_and_goes_on(command, message) -> None:
    rig = Rig()
    rig.output.send(twist(1))
    with pytest.raises(ValueError, match=message):
        rig.output.send(command)
    rig.run(1.0)
    assert rig.sent == [list(TWIST)] * 10 + [[0.0] * 6]


@given(values=arrays(float, 6, elements=st.floats(-5, 5)), life_s=st.floats(0.001, 0.5))
def test_never_longer_than_it_lives_and_always_zeros_last(values, life_s) -> None:
    rig = Rig()
    rig.output.send(twist(1, values, valid_for_s=life_s))
    rig.run(1.0, hz=100)
    assert len(rig.sent) - 1 <= np.ceil(100 * life_s + 1e-6)
    assert rig.sent[:-1] == [list(values)] * (len(rig.sent) - 1)
    assert rig.sent[-1] == [0.0] * 6


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is not None, reason="there is ROS 2")
def test_says_how_to_get_ros() -> None:
    with (
        pytest.raises(ImportError, match=r"source /opt/ros/DISTRIBUTION/setup\.bash"),
        ros2_twist_output(topic="/twist", frame_id="base", rate_hz=50),
    ):
        pass
