import numpy as np
import pytest

from worldmodel.envs import franka, panda
from worldmodel.envs.control import DOWNWARD, Arm, limit_tilt, minimum_jerk, rotation_vector
from worldmodel.envs.tasks.reach import WORKSPACE_HIGH, WORKSPACE_LOW
from worldmodel.pose import euler_to_matrix, integrate


@pytest.fixture(scope="module")
def arm():
    return Arm(franka.build_model())


def random_move(rng, position, *, length):
    """A direction in which a move of this length stays in the workspace."""
    while True:
        move = rng.normal(size=3)
        move *= length / np.linalg.norm(move)
        if ((position + move > WORKSPACE_LOW) & (position + move < WORKSPACE_HIGH)).all():
            return move


def test_the_arm_ends_a_7_5_cm_step_within_3_mm_of_the_command(arm):
    rng = np.random.default_rng(0)
    errors = []
    for i in range(200):
        if i % 10 == 0:
            arm.teleport(rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH))
            commanded = arm.tcp_pos_base
        move = random_move(rng, commanded, length=0.075)
        arm.step(np.concatenate([move, rng.uniform(-0.05, 0.05, 3), [0.0]]))
        commanded = commanded + move
        errors.append(np.linalg.norm(arm.tcp_pos_base - commanded))
    assert np.median(errors) < 3e-3
    assert np.percentile(errors, 95) < 5e-3


def test_a_step_does_what_the_action_says(arm):
    arm.teleport(np.array([0.5, 0.0, 0.3]))
    before = arm.proprio
    action = np.array([0.02, -0.03, 0.04, 0.05, -0.06, 0.1, 0.5])
    arm.step(action)
    arm.step(np.zeros(7))  # settle
    expected, after = integrate(before, action.astype(np.float32)), arm.proprio
    np.testing.assert_allclose(after[:3], expected[:3], atol=1e-3)
    turned = euler_to_matrix(after[3:6]) @ euler_to_matrix(expected[3:6]).T
    assert np.linalg.norm(rotation_vector(turned.astype(float))) < 5e-3
    assert after[6] == pytest.approx(0.5, abs=0.02)


def test_steps_and_their_opposites_end_where_they_began(arm):
    arm.teleport(np.array([0.45, 0.1, 0.3]))
    before = arm.tcp_pos_base
    moves = np.random.default_rng(1).uniform(-0.03, 0.03, (5, 3))
    for move in [*moves, *-moves, np.zeros(3)]:
        arm.step(np.concatenate([move, np.zeros(4)]))
    np.testing.assert_allclose(arm.tcp_pos_base, before, atol=5e-4)


def test_standing_still_does_not_drift(arm):
    arm.teleport(np.array([0.6, 0.25, 0.15]))
    before = arm.proprio
    for _ in range(8):
        arm.step(np.zeros(7))
    np.testing.assert_allclose(arm.proprio[:3], before[:3], atol=1e-4)


def test_every_place_in_the_workspace_can_be_reached_within_a_millimetre(arm):
    rng = np.random.default_rng(0)
    corners = np.array(np.meshgrid(*zip(WORKSPACE_LOW, WORKSPACE_HIGH, strict=True))).reshape(3, -1)
    for place in [*corners.T, *rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH, (200, 3))]:
        arm.teleport(place)
        np.testing.assert_allclose(arm.tcp_pos_base, place, atol=1e-3)


def test_the_gripper_opens_and_closes(arm):
    arm.teleport(np.array([0.5, 0.0, 0.3]))
    assert arm.proprio[6] == pytest.approx(0.0, abs=0.01)
    for change, expected in ((1.0, 1.0), (-0.5, 0.5), (-1.0, 0.0)):
        arm.step(np.array([0, 0, 0, 0, 0, 0, change]))
        arm.step(np.zeros(7))
        assert arm.proprio[6] == pytest.approx(expected, abs=0.02)


def test_wild_commands_stay_in_the_box_near_downward_and_in_hand(arm):
    rng = np.random.default_rng(3)
    arm.teleport(np.array([0.5, 0.0, 0.3]))
    for _ in range(60):
        arm.step(rng.uniform(-1, 1, 7) * [0.075, 0.075, 0.075, 0.15, 0.15, 0.15, 1])
        assert (arm._position >= np.array([0.28, -0.34, 0.03]) - 1e-9).all()
        assert (arm._position <= np.array([0.66, 0.34, 0.46]) + 1e-9).all()
        assert np.arccos(-arm._rotation[2, 2]) <= 0.4 + 1e-6
        # The command never runs away: the next step starts near it, whatever was asked.
        assert np.linalg.norm(arm.tcp_pos_base - arm._position) < 0.03


def test_pushing_against_the_border_is_not_remembered(arm):
    arm.teleport(np.array([0.5, 0.0, 0.42]))
    for _ in range(6):
        arm.step(np.array([0, 0, 0.075, 0, 0, 0, 0]))
    top = arm.tcp_pos_base[2]
    arm.step(np.array([0, 0, -0.05, 0, 0, 0, 0]))
    assert top == pytest.approx(0.46, abs=5e-3)
    assert arm.tcp_pos_base[2] == pytest.approx(0.41, abs=5e-3)


@pytest.mark.parametrize("move", [[0, 0, 0], [0, 0.004, 0]])
def test_turning_beyond_the_last_joint_is_not_remembered(arm, move):
    arm.teleport(np.array([0.5, 0.0, 0.3]))
    for _ in range(25):
        arm.step(np.array([*move, 0, 0, 0.15, 0]))
    stuck = arm.proprio
    assert abs(stuck[5]) < 3.0  # less than was asked: 3.75 rad
    np.testing.assert_allclose(stuck[1], 25 * move[1], atol=2e-3)  # the move was done all the same
    arm.step(np.array([0, 0, 0, 0, 0, -0.15, 0]))
    assert stuck[5] - arm.proprio[5] == pytest.approx(0.15, abs=0.02)


def test_stretching_beyond_reach_is_not_remembered(arm):
    long = Arm(arm.model, position_high=(2.0, 0.34, 0.46))
    long.teleport(np.array([0.6, 0.0, 0.3]))
    for _ in range(12):
        long.step(np.array([0.05, 0, 0, 0, 0, 0, 0]))
    stuck = long.tcp_pos_base[0]
    assert 0.6 < stuck < 1.0  # less than was asked: 1.2 m
    long.step(np.array([-0.05, 0, 0, 0, 0, 0, 0]))
    assert stuck - long.tcp_pos_base[0] == pytest.approx(0.05, abs=5e-3)


def test_an_unreachable_place_is_refused(arm):
    with pytest.raises(ValueError, match="cannot reach"):
        arm.teleport(np.array([1.5, 0.0, 0.3]))


def test_a_copied_arm_has_the_same_future(arm):
    arm.reset()
    arm.teleport(np.array([0.4, 0.1, 0.2]))
    arm.step(np.full(7, 0.03))
    twin = Arm(arm.model)
    twin.copy_from(arm)
    for one in (arm, twin):
        one.step(np.full(7, -0.05))
    np.testing.assert_array_equal(arm.data.qpos, twin.data.qpos)
    np.testing.assert_array_equal(arm.data.qvel, twin.data.qvel)


def test_minimum_jerk_starts_and_ends_at_rest():
    assert minimum_jerk(0.0) == (0.0, 0.0)
    assert minimum_jerk(1.0) == (1.0, 0.0)
    step = 1e-6
    slope = (minimum_jerk(0.3 + step)[0] - minimum_jerk(0.3 - step)[0]) / (2 * step)
    assert minimum_jerk(0.3)[1] == pytest.approx(slope)


@pytest.mark.parametrize("tilt", [0.1, 0.39, 0.8, np.pi])
def test_a_tilt_is_cut_off_at_the_limit_and_kept_below(tilt):
    tilted = euler_to_matrix(np.array([tilt, 0.0, 0.0])) @ DOWNWARD
    limited = limit_tilt(tilted, max_tilt=0.4)
    assert np.arccos(np.clip(-limited[2, 2], -1, 1)) == pytest.approx(min(tilt, 0.4), abs=1e-6)
    np.testing.assert_allclose(limited @ limited.T, np.eye(3), atol=1e-12)


def test_servo_gains_in_the_model_are_the_ones_the_feed_forward_uses():
    model = franka.build_model()
    servos = [model.actuator(name).id for name in panda.SERVOS]
    np.testing.assert_array_equal(model.actuator_gainprm[servos, 0], panda.STIFFNESS)
    np.testing.assert_array_equal(-model.actuator_biasprm[servos, 2], panda.DAMPING)


def test_a_step_in_joints_does_what_it_says_and_pose_steps_go_on_from_there(arm):
    arm.teleport(np.array([0.5, 0.0, 0.3]))
    before = arm.joints
    move = np.array([0.1, -0.05, 0.08, 0.04, -0.1, 0.05, 0.2, 0.4])
    arm.step_joints(move)
    arm.step_joints(np.zeros(8))  # settle
    np.testing.assert_allclose(arm.joints[:7] - before[:7], move[:7], atol=3e-3)
    assert arm.joints[7] == pytest.approx(0.4, abs=0.02)
    held = arm.tcp_pos_base
    arm.step(np.zeros(7))
    np.testing.assert_allclose(arm.tcp_pos_base, held, atol=1e-3)
    arm.step(np.array([0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(arm.tcp_pos_base - held, [0, 0, 0.05], atol=4e-3)


def test_joints_keep_the_tool_in_the_box_and_themselves_within_limits(arm):
    rng = np.random.default_rng(3)
    arm.reset()
    low, high = np.array(arm._low), np.array(arm._high)
    for _ in range(60):
        arm.step_joints(rng.uniform(-1, 1, 8) * [*[0.5] * 7, 1.0])
        position, _ = arm._pose_of(arm._joints)
        assert (position >= low).all() and (position <= high).all()
        assert (arm._joints >= arm._joint_low).all() and (arm._joints <= arm._joint_high).all()


def test_an_arm_outside_the_box_may_come_back_by_its_joints(arm):
    arm.teleport(np.array([0.45, 0.0, 0.46]))
    arm._place(arm._joints + np.array([0, -0.2, 0, 0, 0, 0, 0]))
    outside, _ = arm._pose_of(arm._joints)
    assert outside[2] > arm._high[2]
    arm.step_joints(np.array([0, 0.1, 0, 0, 0, 0, 0, 0]))
    assert arm._pose_of(arm._joints)[0][2] < outside[2]
