# pyright: reportAttributeAccessIssue=false
import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.envs import franka, panda
from worldmodel.envs.robots.kinematics import (
    inverse_kinematics,
    jacobian,
    matrix_to_quat_xyzw,
    pose_matrix,
    quat_xyzw_to_matrix,
    rotation_of_vector,
    rotation_vector,
    tool_offset,
)
from worldmodel.envs.robots.limits import PANDA
from worldmodel.franka_arm import joint_frames

vectors = st.lists(st.floats(-1.8, 1.8), min_size=3, max_size=3).map(np.array)
LOW, HIGH = PANDA.joints.low, PANDA.joints.high


@pytest.fixture(scope="module")
def simulated():
    model = franka.build_model()
    data = mujoco.MjData(model)
    qpos = [model.joint(name).qposadr[0] for name in panda.JOINTS]
    dofs = [model.joint(name).dofadr[0] for name in panda.JOINTS]
    site = model.site("tcp").id

    def measure(joints):
        data.qpos[qpos] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        columns = np.empty((6, model.nv))
        mujoco.mj_jacSite(model, data, columns[:3], columns[3:], site)
        rotation = data.site_xmat[site].reshape(3, 3).copy()
        return data.site_xpos[site].copy(), rotation, columns[:, dofs]

    return measure


def test_an_independent_model_of_the_arm_agrees(simulated):
    for joints in np.random.default_rng(0).uniform(LOW, HIGH, (50, 7)):
        position, rotation, columns = simulated(joints)
        tool = tool_offset(joint_frames(joints), position, rotation)
        np.testing.assert_allclose(tool[:3, 3], [0, 0, 0.149], atol=1e-9)
        np.testing.assert_allclose(joint_frames(joints)[-1] @ tool, pose_matrix(position, rotation))
        np.testing.assert_allclose(jacobian(joint_frames(joints), position), columns, atol=1e-9)


def test_inverse_kinematics_finds_poses_near_by_and_says_when_there_are_none(simulated):
    rng = np.random.default_rng(1)
    for _ in range(20):
        position, rotation, _ = simulated(panda.HOME_JOINTS)
        tool = tool_offset(joint_frames(panda.HOME_JOINTS), position, rotation)
        there = panda.HOME_JOINTS + rng.uniform(-0.1, 0.1, 7)
        target = joint_frames(there)[-1] @ tool
        found, miss = inverse_kinematics(panda.HOME_JOINTS, tool, target, low=LOW, high=HIGH)
        assert miss < 1e-4
        reached = joint_frames(found)[-1] @ tool
        assert np.linalg.norm(reached[:3, 3] - target[:3, 3]) == pytest.approx(miss, abs=1e-12)
        target[:3, 3] = [1.5, 0.0, 0.5]
        assert inverse_kinematics(panda.HOME_JOINTS, tool, target, low=LOW, high=HIGH)[1] > 0.3


@given(vectors)
def test_rotations_come_back(vector):
    angle = np.linalg.norm(vector)
    rotation = rotation_of_vector(vector)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    quat = matrix_to_quat_xyzw(rotation)
    np.testing.assert_allclose(quat_xyzw_to_matrix(quat), rotation, atol=1e-12)
    assert quat[3] >= 0
    if angle < np.pi - 1e-3:
        np.testing.assert_allclose(rotation_vector(rotation), vector, atol=1e-9)


def test_a_quarter_turn_about_z():
    quat = matrix_to_quat_xyzw(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(quat, [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
