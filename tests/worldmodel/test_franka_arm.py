# pyright: reportAttributeAccessIssue=false
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs import panda
from worldmodel.franka_arm import (
    HAND_LENGTH,
    PANDA_JOINT_HIGH,
    PANDA_JOINT_LOW,
    hand_pose,
)

RELAXED = settings(deadline=None, max_examples=60)

fraction = st.floats(0, 1)
MUJOCO_HAND_LENGTH = 0.149  # m from the flange to between the pads of the longer jaw


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(panda.MJCF)


def test_ready_is_where_franka_says_pointing_down():
    ready = np.array([0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4])
    position, rotation = hand_pose(ready)
    np.testing.assert_allclose(position, [0.3069, 0.0, 0.4869], atol=1e-4)
    np.testing.assert_allclose(rotation, np.diag([1.0, -1.0, -1.0]), atol=1e-12)


@RELAXED
@given(fractions=st.tuples(*[fraction] * 7))
def test_the_hand_is_where_the_simulated_arm_has_it(model, fractions):
    joints = PANDA_JOINT_LOW + np.array(fractions) * (PANDA_JOINT_HIGH - PANDA_JOINT_LOW)
    data = mujoco.MjData(model)
    for name, value in zip(panda.JOINTS, joints, strict=True):
        data.joint(name).qpos = value
    mujoco.mj_kinematics(model, data)
    position, rotation = hand_pose(joints)
    np.testing.assert_allclose(rotation, data.site("tcp").xmat.reshape(3, 3), atol=1e-6)
    beyond = (MUJOCO_HAND_LENGTH - HAND_LENGTH) * rotation[:, 2]
    np.testing.assert_allclose(position + beyond, data.site("tcp").xpos, atol=1e-6)


def test_the_limits_are_those_of_the_simulated_arm(model):
    limits = np.stack([model.joint(name).range for name in panda.JOINTS])
    np.testing.assert_allclose(limits, np.stack([PANDA_JOINT_LOW, PANDA_JOINT_HIGH], axis=1))


def test_many_poses_at_once_are_those_of_each():
    joints = np.random.default_rng(0).uniform(PANDA_JOINT_LOW, PANDA_JOINT_HIGH, (3, 4, 7))
    position, rotation = hand_pose(joints.astype(np.float32))
    assert position.shape == (3, 4, 3) and rotation.shape == (3, 4, 3, 3)
    assert position.dtype == rotation.dtype == np.float64
    one = hand_pose(joints[1, 2].astype(np.float32))
    np.testing.assert_allclose(position[1, 2], one[0], atol=1e-12)
    np.testing.assert_allclose(rotation[1, 2], one[1], atol=1e-12)


def test_another_number_of_joints_is_refused():
    with pytest.raises(ValueError, match=r"7 joints, got joint angles of shape \(5, 6\)"):
        hand_pose(np.zeros((5, 6)))
