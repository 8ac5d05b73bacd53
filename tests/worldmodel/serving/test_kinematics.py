# pyright: reportAttributeAccessIssue=false
import numpy as np
import pytest

import worldmodel.envs  # noqa: F401  (before mujoco: it chooses the OpenGL platform)

import mujoco  # isort: skip
from worldmodel.data.rotations import angle_between, to_matrix
from worldmodel.envs import panda
from worldmodel.franka_arm import HAND_YAW
from worldmodel.serving.kinematics import JOINT_HIGH, JOINT_LOW, JOINT_MARGIN, Tool

TOOL = Tool(length=0.149, yaw=HAND_YAW)  # of the simulated arm


def test_the_tool_is_where_the_simulator_puts_it() -> None:
    model = mujoco.MjModel.from_xml_string(panda.MJCF)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    joints = rng.uniform(JOINT_LOW, JOINT_HIGH, (20, 7))
    positions, rotations = TOOL.pose(joints)
    for k in range(20):
        data.qpos[:7] = joints[k]
        mujoco.mj_kinematics(model, data)
        assert np.abs(positions[k] - data.site("tcp").xpos).max() < 1e-9
        assert np.abs(rotations[k].ravel() - data.site("tcp").xmat).max() < 1e-6


def test_flange_and_tool_are_each_others_inverse() -> None:
    position, rotation = TOOL.pose(panda.HOME_JOINTS)
    there, turned = TOOL.to_flange(position, rotation)
    assert np.linalg.norm(there - position) == pytest.approx(0.149)
    back = TOOL.of_flange(there, turned)
    assert np.allclose(back[0], position, atol=1e-12) and np.allclose(back[1], rotation, atol=1e-12)


def test_joints_are_found_for_poses_nearby() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        start = panda.HOME_JOINTS + rng.uniform(-0.3, 0.3, 7)
        position, rotation = TOOL.pose(start)
        wanted = position + rng.uniform(-0.03, 0.03, 3)
        turned = to_matrix(rng.uniform(-0.1, 0.1, 3), "rotvec") @ rotation
        joints = TOOL.solve(wanted, turned, start)
        assert joints is not None
        found = TOOL.pose(joints)
        assert np.linalg.norm(found[0] - wanted) < 1e-4
        assert angle_between(found[1], turned) < 1e-3
        assert np.abs(joints - start).max() < 0.5


def test_what_cannot_be_reached_is_said() -> None:
    position, rotation = TOOL.pose(panda.HOME_JOINTS)
    assert TOOL.solve(position + [1.0, 0, 0], rotation, panda.HOME_JOINTS) is None
    assert TOOL.solve(position, -rotation @ np.diag([1, 1, -1]), panda.HOME_JOINTS) is None


def test_the_elbow_turns_and_the_tool_stays() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        joints = start = panda.HOME_JOINTS + rng.uniform(-0.3, 0.3, 7)
        position, rotation = TOOL.pose(start)
        for _ in range(60):
            turned = TOOL.turn_elbow(joints, panda.HOME_JOINTS, most=0.02)
            assert np.abs(turned - joints).max() <= 0.02 + 1e-12
            found = TOOL.solve(position, rotation, turned)
            assert found is not None
            joints = found
        where = TOOL.pose(joints)
        assert np.linalg.norm(where[0] - position) < 1e-4
        assert angle_between(where[1], rotation) < 1e-3
        away = [np.linalg.norm(q - panda.HOME_JOINTS) for q in (joints, start)]
        assert away[0] < away[1]
        again = TOOL.turn_elbow(joints, panda.HOME_JOINTS, most=1.0)
        assert np.abs(again - joints).max() < 1e-3  # it is there


def test_the_joint_limits_are_kept() -> None:
    start = panda.HOME_JOINTS.copy()
    start[6] = JOINT_HIGH[6] - 2 * JOINT_MARGIN
    position, rotation = TOOL.pose(start)
    for turn in np.linspace(-1, 1, 9):  # about the last joint's axis
        turned = rotation @ to_matrix(np.array([0, 0, turn]), "rotvec")
        joints = TOOL.solve(position, turned, start)
        if joints is not None:
            assert (joints >= JOINT_LOW + JOINT_MARGIN - 1e-12).all()
            assert (joints <= JOINT_HIGH - JOINT_MARGIN + 1e-12).all()
    assert TOOL.solve(position, rotation, start) is not None
