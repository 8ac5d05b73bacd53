from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.rotations import to_matrix, to_rotvec
from worldmodel.envs.panda import HOME_JOINTS
from worldmodel.franka_arm import HAND_YAW
from worldmodel.pose import euler_to_matrix
from worldmodel.serving.chunks import (
    ACTION_SPACES,
    ANGULAR_UNIT,
    ELBOW_SPEED,
    JOINT_UNIT,
    LINEAR_UNIT,
    OUTSIDE_TOLERANCE,
    ROW_HZ,
    Chunk,
    Limits,
    make_chunk,
)
from worldmodel.serving.kinematics import JOINT_HIGH, JOINT_LOW, Tool

TOOL = Tool(length=0.149, yaw=HAND_YAW)
HOME = TOOL.pose(HOME_JOINTS)[0]
LIMITS = Limits(
    low=HOME - [0.15, 0.2, 0.2],
    high=HOME + [0.1, 0.2, 0.1],
    speed=0.2,
    turn_speed=0.4,
    joint_speed=1.0,
)


def chunk(actions: Any, **changes: Any) -> Chunk:
    settings = {
        "step_s": 0.25,
        "num_rows": 8,
        "joints": HOME_JOINTS,
        "gripper": 0.0,
        "tool": TOOL,
        "limits": LIMITS,
        "action_space": "joint_velocity",
        "posture": None,
    } | changes
    return make_chunk(np.array(actions, dtype=np.float64), **settings)


def driven(made: Chunk, joints: np.ndarray = HOME_JOINTS) -> np.ndarray:
    """The joints (N + 1, 7) of an arm that executes joint velocities perfectly."""
    return joints + np.concatenate([np.zeros((1, 7)), np.cumsum(made.rows[:, :7], 0) * JOINT_UNIT])


def action(x: float = 0, y: float = 0, z: float = 0, yaw: float = 0, gripper: float = 0) -> list:
    return [x, y, z, 0, 0, yaw, gripper]


def test_the_tool_goes_straight_and_evenly_where_the_actions_say() -> None:
    made = chunk([action(x=0.03, yaw=0.05), action(y=-0.04)])
    positions, rotations = TOOL.pose(driven(made))
    assert made.notes == ()
    times = np.arange(9) / ROW_HZ
    expected = HOME + np.stack(
        [0.03 * np.clip(times / 0.25, 0, 1), -0.04 * np.clip(times / 0.25 - 1, 0, 1), 0 * times], 1
    )
    assert np.abs(positions - expected).max() < 1e-4
    turned = to_rotvec(rotations @ rotations[0].T)
    assert np.allclose(turned[4:], [0, 0, 0.05], atol=1e-3)  # on the left: about the base's z


def test_after_the_actions_the_arm_holds_still() -> None:
    made = chunk([action(z=-0.02)])
    assert np.abs(made.rows[:3, :7]).max() > 0.01
    assert np.abs(made.rows[4:, :7]).max() < 1e-3  # an action ends within the fourth row


@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_every_space_tells_the_same_motion(action_space: Any) -> None:
    actions = [action(x=0.03, y=0.01, yaw=0.08, gripper=1), action(z=-0.04, yaw=-0.05)]
    path = driven(chunk(actions))
    made = chunk(actions, action_space=action_space)
    positions, rotations = TOOL.to_flange(*TOOL.pose(path))
    rows, grips = made.rows[:, :-1], made.rows[:, -1]
    assert (grips == 1).all()
    if action_space == "joint_position":
        assert np.allclose(rows, path[1:])
    elif action_space == "cartesian_position":
        assert np.allclose(rows[:, :3], positions[1:])
        assert np.allclose(euler_to_matrix(rows[:, 3:]), rotations[1:], atol=1e-6)
    elif action_space == "cartesian_velocity":
        position, rotation = positions[0], rotations[0]
        for row in rows:
            position = position + LINEAR_UNIT * row[:3]
            rotation = to_matrix(ANGULAR_UNIT * row[3:], "rotvec") @ rotation
        assert np.allclose(position, positions[-1]) and np.allclose(
            rotation, rotations[-1], atol=1e-6
        )


ACTIONS = st.lists(
    st.tuples(*[st.floats(-0.3, 0.3)] * 3, *[st.floats(-0.8, 0.8)] * 3, st.floats(-1, 1)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(ACTIONS, st.lists(st.floats(-0.4, 0.4), min_size=7, max_size=7), st.floats(0, 1))
def test_whatever_is_planned_the_limits_are_kept(
    actions: list, offset: list, gripper: float
) -> None:
    joints = np.clip(HOME_JOINTS + offset, JOINT_LOW, JOINT_HIGH)
    made = chunk(actions, joints=joints, gripper=gripper)
    path = driven(made, joints)
    positions, _ = TOOL.pose(path)
    outside = np.maximum(LIMITS.low - positions, positions - LIMITS.high).max(axis=1)
    if "outside_workspace" in made.notes:
        assert outside[0] > OUTSIDE_TOLERANCE and (path == joints).all()
    else:
        assert (outside <= max(outside[0], 0) + 1e-3).all()
    assert np.abs(np.diff(path, axis=0)).max() <= LIMITS.joint_speed / ROW_HZ + 1e-9
    way = np.linalg.norm(np.diff(positions, axis=0), axis=1).max()
    # An arm whose joints were held back catches up, never faster than twice the speed.
    assert way <= LIMITS.speed / ROW_HZ * (2 if "joint_speed" in made.notes else 1.05)
    assert (path >= JOINT_LOW - 1e-9).all() and (path <= JOINT_HIGH + 1e-9).all()
    assert np.abs(made.rows).max() <= 1 and made.gripper == made.rows[-1, -1]


@pytest.mark.parametrize(
    "actions, note",
    [
        ([action(x=0.3)], "speed"),
        ([action(yaw=0.8)], "turn_speed"),
        ([action(z=0.05)] * 3, "workspace"),
    ],
)
def test_what_is_limited_is_named(actions: list, note: str) -> None:
    assert note in chunk(actions).notes


def test_fast_joints_are_held_back_together() -> None:
    slow = replace(LIMITS, joint_speed=0.05)
    made, free = chunk([action(x=0.04)], limits=slow), chunk([action(x=0.04)])
    assert made.notes == ("joint_speed",)
    assert np.abs(made.rows[0, :7]).max() == pytest.approx(0.05 / ROW_HZ / JOINT_UNIT)
    fastest = np.abs(free.rows[0, :7]).argmax()
    share = made.rows[0, fastest] / free.rows[0, fastest]
    assert share < 0.2 and np.allclose(made.rows[0, :7], share * free.rows[0, :7])


def test_an_arm_out_of_bounds_is_not_moved() -> None:
    far = replace(LIMITS, low=HOME + 0.05, high=HOME + 0.2)
    made = chunk([action(x=0.04, gripper=1)], limits=far)
    assert made.notes == ("outside_workspace",)
    assert (made.rows[:, :7] == 0).all() and (made.rows[:, 7] == 0).all()
    bent = HOME_JOINTS.copy()
    bent[5] = 0.4  # below what an FR3 can do
    made = chunk([action(x=0.04)], joints=bent, limits=replace(LIMITS, low=HOME - 1, high=HOME + 1))
    assert made.notes == ("joint_limits",)
    assert (made.rows[:, :7] == 0).all()


def test_an_arm_stopped_at_the_border_may_come_back() -> None:
    border = replace(LIMITS, high=HOME + [-0.01, 0.2, 0.1])  # measured a centimetre beyond
    made = chunk([action(x=-0.04)], limits=border)
    assert "outside_workspace" not in made.notes
    assert TOOL.pose(driven(made))[0][-1, 0] == pytest.approx(HOME[0] - 0.04, abs=1e-3)


def test_the_rows_stop_where_the_arm_cannot_reach() -> None:
    everywhere = replace(LIMITS, low=HOME - 2, high=HOME + 2, speed=0.5, joint_speed=2.0)
    made = chunk([action(x=0.1)] * 5 + [action(gripper=1)], limits=everywhere, num_rows=20)
    assert "unreachable" in made.notes
    path = driven(made)
    still = np.flatnonzero(np.abs(np.diff(path, axis=0)).max(axis=1) == 0)
    assert len(still) and still[0] > 3 and (np.diff(still) == 1).all() and still[-1] == 19
    assert (made.rows[:, 7] == 0).all()  # the gripper, too, stays as it was


def test_the_gripper_follows_the_last_command_and_not_what_is_measured() -> None:
    closing = chunk([action(), action(gripper=1), action(gripper=0)])
    assert closing.rows[:, 7].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert closing.gripper == 1
    assert (chunk([action(x=0.01)], gripper=1.0).rows[:, 7] == 1).all()
    opening = chunk([action(gripper=-1)], gripper=1.0)
    assert (opening.rows[:, 7] == 0).all()


def test_limits_must_make_sense() -> None:
    with pytest.raises(ValueError, match="workspace must be two corners"):
        replace(LIMITS, low=LIMITS.high)
    for name, value in (("speed", 0.0), ("joint_speed", 3.0), ("turn_speed", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            replace(LIMITS, **{name: value})


def test_the_elbow_goes_to_the_posture_while_the_tool_does_what_it_would() -> None:
    joints = TOOL.turn_elbow(HOME_JOINTS, HOME_JOINTS + 1.0, most=0.1)
    actions = [action(x=0.02), action(y=0.02)]
    left, turned = (
        driven(chunk(actions, joints=joints, posture=p), joints) for p in (None, HOME_JOINTS)
    )
    assert np.abs(TOOL.pose(left)[0] - TOOL.pose(turned)[0]).max() < 1e-4
    off = [TOOL.turn_elbow(path[-1], HOME_JOINTS, most=9.0) - path[-1] for path in (left, turned)]
    assert np.abs(off[0]).max() > 0.03 and np.abs(off[1]).max() < 0.005
    elbow = np.abs(turned - left).max(axis=1)
    assert (np.diff(elbow) <= ELBOW_SPEED / ROW_HZ + 1e-3).all()
    still = driven(chunk([action()], joints=joints, posture=HOME_JOINTS), joints)
    assert np.abs(still[4:] - still[4]).max() < 1e-9  # after the last action nothing moves
    assert np.abs(still[4] - joints).max() > 0.04
