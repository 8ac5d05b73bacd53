# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false
import itertools
import threading
import time

import mujoco
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from worldmodel.envs import cameras as renderers
from worldmodel.envs import franka
from worldmodel.envs.control import DOWNWARD, Arm, rotation_vector
from worldmodel.envs.robots import motion, simulated_arm
from worldmodel.envs.robots.interface import (
    CameraInfo,
    Command,
    NotConnectedError,
    OperatorRefusedError,
    Robot,
    RobotError,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.motion import Kinematics, SmoothVelocity
from worldmodel.envs.robots.mujoco import MujocoRobot

TICK = franka.TIMESTEP
CAMERA = CameraInfo(height=24, width=32, fps=20.0)
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # simulating takes too long for it
DOWN_XYZW = np.array([1.0, 0.0, 0.0, 0.0])  # a half turn about x
MODEL = franka.build_model()


class Operator:
    """Drives a robot in tests: counts its commands, and looks at its log."""

    def __init__(self, **settings):
        settings = {"cameras": {}, "realtime": False, "backend": "ray"} | settings
        self.scene = Arm(MODEL)
        self.robot = MujocoRobot(self.scene, **settings)
        self.numbers = itertools.count(1)

    def begin(self):
        self.robot.connect(timeout_s=1.0)
        assert self.robot.arm(operator="test") is RobotState.ARMED
        return self

    def at(self, position):
        """The same, from another place."""
        self.scene.teleport(np.array(position))
        self.robot = MujocoRobot(self.scene, cameras={}, realtime=False)
        return self.begin()

    def ask(self, kind, values, *, valid_for_s=0.4, gripper=None):
        return self.robot.command(
            Command(next(self.numbers), 0, valid_for_s, kind, np.array(values, float), gripper)
        )

    def tell(self, kind, values, **settings):
        ack = self.ask(kind, values, **settings)
        assert ack.accepted, ack.reason
        return ack

    def stream(self, kind, values, *, seconds, gripper=None):
        """Gives the same command again and again, four times a second."""
        for _ in range(round(seconds / 0.25)):
            self.tell(kind, values, gripper=gripper)
            self.robot.advance(0.25)

    def look(self):
        return self.robot.observe(max_age_s=1.0)

    def path(self, *, since=0.0):
        """Positions of the tool (ticks, 3) [m] since a time."""
        times, joints = self.robot.log
        kinematics = Kinematics(MODEL)
        return np.array([kinematics.pose(q)[0] for q in joints[times >= since - 1e-9]])


def norms(vectors):
    return np.linalg.norm(vectors, axis=-1)


def derivative(values):
    return np.diff(values, axis=0) / TICK


@pytest.fixture
def operator():
    """Of an armed robot without cameras."""
    one = Operator().begin()
    yield one
    one.robot.close()


# Motion.


@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
@given(seed=st.integers(0, 10_000), speed=st.floats(0.01, 0.2), turn=st.floats(0.0, 0.4))
def test_the_arm_moves_at_the_commanded_speed_in_the_commanded_direction(seed, speed, turn):
    rng = np.random.default_rng(seed)
    twist = rng.normal(size=6)
    twist[:3] *= speed / norms(twist[:3])
    twist[3:] *= turn / norms(twist[3:])
    operator = Operator().at((0.48, 0.0, 0.27))
    operator.stream("twist", twist, seconds=0.5)
    before = operator.look()
    operator.stream("twist", twist, seconds=0.25)
    after = operator.look()
    moved = (after.tcp_pos_base - before.tcp_pos_base) / 0.25
    turned = rotation_vector(after.tcp_rotation_base @ before.tcp_rotation_base.T) / 0.25
    assert norms(moved - twist[:3]) < 0.02 * speed + 5e-4
    assert norms(turned - twist[3:]) < 0.03 * turn + 2e-3


@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-0.14, 0.14), min_size=3, max_size=3),
            st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3),
            st.sampled_from([0.05, 0.1, 0.3]),
            st.integers(5, 200),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_acceleration_and_jerk_keep_their_limits_whatever_is_commanded(commands):
    operator = Operator().at((0.48, 0.0, 0.27))
    for linear, angular, life, ticks in commands:
        operator.tell("twist", [*linear, *angular], valid_for_s=life)
        operator.robot.advance(ticks * TICK)
    operator.robot.stop(reason="enough")
    operator.robot.advance(0.3)
    acceleration = derivative(derivative(operator.path()))
    # What the limits bound is the command; the motors, which are no ideal ones, add a little.
    assert norms(acceleration).max() < 1.3 * motion.LINEAR_ACCELERATION
    assert norms(derivative(acceleration)).max() < 1.3 * motion.LINEAR_JERK


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.integers(1, 100)),
        min_size=1,
        max_size=10,
    ),
    st.floats(0.5, 10.0),
    st.floats(10.0, 5000.0),
)
def test_a_smooth_velocity_keeps_its_limits_and_arrives(wishes, acceleration, jerk):
    smooth = SmoothVelocity(3, acceleration=acceleration, jerk=jerk, dt=0.002)
    assert smooth.at_rest
    velocities = [np.zeros(3)] * 3
    for wish, ticks in [*wishes, ([0.0, 0.0, 0.0], 0)]:
        velocities += [smooth.follow(np.array(wish)) for _ in range(ticks)]
    ticks = int((2 / acceleration + 2 * acceleration / jerk) / 0.002) + 10
    velocities += [smooth.follow(np.zeros(3)) for _ in range(ticks)]
    first = np.diff(velocities, axis=0) / 0.002
    assert norms(first).max() <= acceleration * (1 + 1e-6)
    assert norms(np.diff(first, axis=0) / 0.002).max() <= jerk * (1 + 1e-6) + 1e-6
    assert smooth.at_rest
    np.testing.assert_array_equal(velocities[-1], 0.0)


def test_an_expired_command_brakes_to_rest_within_the_braking_distance(operator):
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=0.5)
    operator.tell("twist", [0.2, 0, 0, 0, 0, 0], valid_for_s=0.1)
    operator.robot.advance(0.1)
    assert operator.look().state is RobotState.RUNNING
    expired_at, at_expiry = operator.robot.now(), operator.look().tcp_pos_base
    operator.robot.advance(1.0)
    observation = operator.look()
    assert observation.state is RobotState.HOLD
    assert norms(observation.joint_velocities) < 1e-3
    ramp = 2 * motion.LINEAR_ACCELERATION / motion.LINEAR_JERK
    braking = 0.2**2 / (2 * motion.LINEAR_ACCELERATION) + 0.2 * (ramp / 2 + 3 * TICK)
    assert norms(observation.tcp_pos_base - at_expiry) < braking + 5e-4
    speeds = norms(derivative(operator.path(since=expired_at)))
    assert speeds[3] < speeds[0]  # at once, not at some later time
    operator.tell("twist", [-0.1, 0, 0, 0, 0, 0])  # and it goes on with the next
    operator.robot.advance(0.2)
    assert operator.look().state is RobotState.RUNNING
    assert operator.look().tcp_pos_base[0] < observation.tcp_pos_base[0] - 5e-3


def test_commands_that_follow_each_other_in_time_are_one_motion(operator):
    operator.stream("twist", [0, 0.1, 0, 0, 0, 0], seconds=1.5)
    speeds = norms(derivative(operator.path(since=0.5)))
    assert speeds.min() > 0.098 and speeds.max() < 0.102


def test_a_pose_is_reached_without_overshoot_and_no_faster_than_allowed(operator):
    target = np.array([0.55, 0.15, 0.2])
    operator.stream("pose", [*target, *DOWN_XYZW], seconds=3.0)
    observation = operator.look()
    np.testing.assert_allclose(observation.tcp_pos_base, target, atol=1e-3)
    assert norms(rotation_vector(observation.tcp_rotation_base @ DOWNWARD.T)) < 5e-3
    path = operator.path()
    assert norms(derivative(path)).max() < 1.05 * motion.POSE_SPEED
    distances = norms(path - target)
    assert (np.diff(distances) < 1e-5).all()


def test_a_pose_turns_the_tool_as_well(operator):
    half = 0.3 / 2
    turned = np.array([np.cos(half), np.sin(half), 0.0, 0.0])  # 0.3 rad about z, then downward
    operator.stream("pose", [0.45, 0.0, 0.3, *turned], seconds=3.0)
    wanted = rotation_vector(operator.look().tcp_rotation_base @ DOWNWARD.T)
    np.testing.assert_allclose(wanted, [0, 0, 0.3], atol=5e-3)


def test_joints_move_at_the_commanded_velocities(operator):
    wanted = np.array([0.2, -0.1, 0.15, 0.1, -0.3, 0.25, 0.3])
    operator.stream("joint_velocity", wanted, seconds=0.5)
    before = operator.look().joint_positions
    operator.stream("joint_velocity", wanted, seconds=0.25)
    observation = operator.look()
    np.testing.assert_allclose((observation.joint_positions - before) / 0.25, wanted, atol=3e-3)
    np.testing.assert_allclose(observation.joint_velocities, wanted, atol=3e-3)


def test_a_change_of_kind_in_the_midst_of_a_motion_is_smooth(operator):
    for _ in range(3):
        operator.tell("twist", [0, 0.15, 0, 0, 0, 0])
        operator.robot.advance(0.3)
        operator.tell("joint_velocity", [-0.3, 0, 0, 0, 0, 0, 0.2])
        operator.robot.advance(0.3)
    joint_acceleration = derivative(derivative(operator.robot.log[1]))
    # Of the two kinds together; a jump would be ten times as much.
    assert norms(joint_acceleration).max() < 3 * motion.JOINT_ACCELERATION
    assert norms(derivative(joint_acceleration)).max() < 6 * motion.JOINT_JERK


def test_hold_comes_to_rest_and_stays(operator):
    operator.stream("twist", [0.1, 0, 0, 0, 0, 0], seconds=0.5)
    assert operator.tell("hold", []).state is RobotState.HOLD
    operator.robot.advance(0.3)
    before = operator.look().tcp_pos_base
    operator.robot.advance(0.5)
    np.testing.assert_allclose(operator.look().tcp_pos_base, before, atol=1e-4)


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_joint_is_driven_beyond_its_limit(joint, sign):
    operator = Operator().at((0.4, 0.0, 0.42))  # high, so that nothing is in the way at first
    limits = operator.robot.info.joint_limits
    velocities = np.zeros(7)
    velocities[joint] = 2.0 * sign
    for _ in range(8):
        ack = operator.ask("joint_velocity", velocities)
        operator.robot.advance(0.4)
        if not ack.accepted:  # it hit the table first, and said so
            assert ack.reason == "fault" and operator.look().errors == ("reflex",)
    joints = operator.robot.log[1]
    assert (joints > limits.low).all() and (joints < limits.high).all()


def test_the_same_commands_give_the_same_motion_bit_for_bit():
    logs = []
    for _ in range(2):
        operator = Operator().at((0.48, 0.0, 0.27))
        operator.stream("twist", [0.1, 0.05, -0.1, 0.1, 0, 0.3], seconds=0.5, gripper=0.7)
        operator.stream("pose", [0.5, 0.1, 0.3, *DOWN_XYZW], seconds=0.5)
        logs.append(operator.robot.log)
    np.testing.assert_array_equal(logs[0][0], logs[1][0])
    np.testing.assert_array_equal(logs[0][1], logs[1][1])


# Stopping, states, errors.


def test_stop_brakes_from_the_next_tick_on_and_disarms(operator):
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=0.75)
    stopped_at = operator.robot.now()
    operator.robot.stop(reason="test")
    assert operator.look().state is RobotState.IDLE
    operator.robot.advance(5 * TICK)
    speeds = norms(derivative(operator.path(since=stopped_at)))
    assert (np.diff(speeds)[1:] < 0).all()
    assert operator.ask("twist", [0.2, 0, 0, 0, 0, 0]).reason == "not_armed"
    operator.robot.stop(reason="again")
    operator.robot.advance(0.5)
    assert norms(operator.look().joint_velocities) < 1e-3
    assert operator.robot.stop_reason == "again"
    assert operator.robot.arm(operator="test") is RobotState.ARMED
    operator.tell("twist", [0.1, 0, 0, 0, 0, 0])


def test_stop_waits_for_nothing(operator):
    operator.tell("twist", [0.1, 0, 0, 0, 0, 0])
    with operator.robot._lock:  # as if a tick never ended
        stopping = threading.Thread(target=lambda: operator.robot.stop(reason="test"))
        stopping.start()
        stopping.join(timeout=20)
        assert not stopping.is_alive()
    assert operator.look().state is RobotState.IDLE


def test_a_stop_stops_the_gripper_too(operator):
    operator.tell("twist", [0] * 6, gripper=1.0)
    operator.robot.advance(0.1)
    operator.robot.stop(reason="test")
    operator.robot.advance(0.2)
    gripper = operator.look().gripper
    operator.robot.advance(1.0)
    assert 0.05 < gripper < 0.6
    assert operator.look().gripper == pytest.approx(gripper, abs=0.01)


def test_states_follow_the_operator_and_the_commands():
    robot = MujocoRobot(Arm(MODEL), cameras={}, realtime=False)
    assert isinstance(robot, Robot)
    for call in (
        lambda: robot.observe(max_age_s=1.0),
        lambda: robot.command(Command(1, 0, 0.4, "hold")),
        lambda: robot.arm(operator="test"),
        lambda: robot.recover(operator="test"),
    ):
        with pytest.raises(NotConnectedError):
            call()
    robot.connect(timeout_s=1.0)
    assert robot.observe(max_age_s=1.0).state is RobotState.IDLE
    assert robot.command(Command(1, 0, 0.4, "twist", np.zeros(6))).reason == "not_armed"
    with pytest.raises(OperatorRefusedError):
        robot.arm(operator=" ")
    robot.arm(operator="test")
    ack = robot.command(Command(5, 0, 0.4, "twist", np.zeros(6)))
    assert (ack.accepted, ack.seq, ack.state) == (True, 5, RobotState.RUNNING)
    first = robot.observe(max_age_s=1.0)
    assert (first.state, first.applied_seq) == (RobotState.RUNNING, 5)
    assert robot.observe(max_age_s=1.0).seq == first.seq + 1
    robot.advance(0.5)
    assert robot.observe(max_age_s=1.0).state is RobotState.HOLD
    robot.close()
    robot.close()
    with pytest.raises(NotConnectedError):
        robot.observe(max_age_s=1.0)
    robot.connect(timeout_s=1.0)  # a new session counts anew and does not move
    assert robot.observe(max_age_s=1.0).state is RobotState.IDLE
    robot.arm(operator="test")
    assert robot.command(Command(1, 0, 0.4, "hold")).accepted


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (Command(3, 0, 0.4, "hold"), "seq_old"),
        (Command(4, 0, 0.4, "twist", np.array([np.nan, 0, 0, 0, 0, 0])), "not_finite:values"),
        (Command(4, 0, 0.4, "twist", np.zeros(7)), "shape:values"),
        (Command(4, 0, -1.0, "twist", np.zeros(6)), "expired"),
        (Command(4, 0, 60.0, "twist", np.zeros(6)), "valid_too_long"),
        (Command(4, 0, 0.4, "twist", np.zeros(6), np.inf), "not_finite:gripper"),
        (Command(4, 0, 0.4, "pose", np.zeros(7)), "not_unit:values"),
    ],
)
def test_bad_commands_are_refused_and_change_nothing(operator, command, reason):
    assert operator.robot.command(Command(3, 0, 0.4, "twist", np.zeros(6))).accepted
    ack = operator.robot.command(command)
    assert (ack.accepted, ack.applied, ack.reason) == (False, None, reason)
    operator.robot.advance(0.2)
    observation = operator.look()
    assert observation.applied_seq == 3
    np.testing.assert_allclose(observation.joint_velocities, 0.0, atol=1e-4)


def test_a_command_is_not_changed_by_what_its_sender_does_afterwards(operator):
    values = np.array([0.1, 0, 0, 0, 0, 0])
    operator.robot.command(Command(1, 0, 1.0, "twist", values))
    values[:] = [0, 9, 9, 9, 9, 9]
    before = operator.look().tcp_pos_base
    operator.robot.advance(0.4)
    np.testing.assert_allclose(operator.look().tcp_pos_base[1:], before[1:], atol=2e-3)


def test_an_injected_reflex_brakes_and_needs_an_operator(operator):
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=0.5)
    operator.robot.inject_error("reflex")
    observation = operator.look()
    assert (observation.state, observation.errors) == (RobotState.FAULT, ("reflex",))
    assert operator.ask("twist", [0.1, 0, 0, 0, 0, 0]).reason == "fault"
    operator.robot.advance(0.5)
    assert norms(operator.look().joint_velocities) < 1e-3
    operator.robot.stop(reason="test")
    assert operator.look().state is RobotState.FAULT  # a stop is no way out
    with pytest.raises(RobotError, match="reflex"):
        operator.robot.arm(operator="test")
    with pytest.raises(OperatorRefusedError):
        operator.robot.recover(operator="")
    assert operator.robot.recover(operator="test") is RobotState.IDLE
    assert operator.look().errors == ()
    operator.robot.arm(operator="test")
    operator.tell("twist", [0.1, 0, 0, 0, 0, 0])


def test_a_lasting_error_is_there_at_connect_and_outlives_recover():
    robot = MujocoRobot(Arm(MODEL), cameras={}, realtime=False)
    robot.inject_error("brake_open", lasting=True)
    robot.connect(timeout_s=1.0)
    assert robot.observe(max_age_s=1.0).errors == ("brake_open",)
    assert robot.recover(operator="test") is RobotState.FAULT
    robot.clear_error("brake_open")
    assert robot.observe(max_age_s=1.0).state is RobotState.FAULT
    assert robot.recover(operator="test") is RobotState.IDLE
    robot.close()


def test_pushing_into_the_table_is_a_reflex_and_lets_go():
    operator = Operator().at((0.45, 0.1, 0.1))
    operator.stream("twist", [0, 0, -0.1, 0, 0, 0], seconds=0.25)
    forces = []
    for _ in range(150):
        operator.ask("twist", [0, 0, -0.1, 0, 0, 0])
        operator.robot.advance(0.01)
        forces.append(operator.look().wrench_base[2])
    observation = operator.look()
    assert (observation.state, observation.errors) == (RobotState.FAULT, ("reflex",))
    assert 10 < max(forces) < 150  # [N]; the motors could push with more
    assert abs(forces[-1]) < min(25, 0.8 * max(forces))
    operator.robot.recover(operator="test")
    operator.robot.arm(operator="test")
    operator.stream("twist", [0, 0, 0.1, 0, 0, 0], seconds=0.5)
    assert operator.look().tcp_pos_base[2] > observation.tcp_pos_base[2] + 0.03
    operator.robot.close()


def test_motion_in_the_air_feels_no_force():
    operator = Operator().at((0.48, 0.0, 0.27))
    for twist in ([0.25, 0, 0, 0, 0, 0.5], [-0.25, 0, 0, 0, 0, -0.5]):
        for _ in range(50):
            operator.tell("twist", twist)
            operator.robot.advance(0.01)
            wrench = operator.look().wrench_base
            assert wrench is not None and np.abs(wrench).max() < 0.5


def test_a_force_on_the_hand_is_measured(operator):
    hand = operator.scene.data.body("hand")
    hand.xfrc_applied[:3] = [3.0, -4.0, 5.0]
    operator.robot.advance(0.5)
    np.testing.assert_allclose(operator.look().wrench_base[:3], [3.0, -4.0, 5.0], atol=0.1)


# The gripper.


def test_the_gripper_moves_at_its_speed_and_closed_on_nothing_holds_nothing(operator):
    operator.robot.advance(0.5)
    assert operator.look().grasped is False  # open and at rest
    operator.tell("twist", [0] * 6, gripper=1.0)
    operator.robot.advance(0.2)
    width = operator.robot.info.gripper_width_m
    halfway = operator.look()
    assert halfway.gripper_width_m == pytest.approx(
        width - 0.2 * simulated_arm.GRIPPER_SPEED, abs=0.012
    )
    operator.robot.advance(1.0)  # its command has expired; the gripper ends its move
    closed = operator.look()
    assert closed.gripper == pytest.approx(1.0, abs=0.02)
    assert closed.grasped is False
    operator.tell("twist", [0] * 6)
    operator.robot.advance(0.3)
    assert operator.look().gripper == pytest.approx(1.0, abs=0.02)  # None leaves it


@pytest.mark.parametrize("force", [8.0, 15.0, 30.0])
def test_the_gripper_grasps_with_the_force_that_it_may(force):
    operator = Operator()
    x, y, _ = operator.scene.data.body("red").xpos
    operator.scene.teleport(np.array([x, y, 0.03]))
    operator.robot = MujocoRobot(operator.scene, cameras={}, realtime=False, gripper_force=force)
    operator.begin()
    jaw = operator.scene.model.actuator("gripper").id
    pulls = []
    for gripper in (1.0, 0.0):
        operator.tell("twist", [0] * 6, gripper=gripper)
        for _ in range(500):
            operator.robot.advance(0.002)
            pulls.append(float(operator.scene.data.actuator_force[jaw]))
    assert np.abs(pulls).max() < 1.05 * force
    assert pulls[499] == pytest.approx(-force, rel=0.01)  # holds the cube with all of it
    operator.robot.close()


def test_a_cube_is_grasped_lifted_and_weighs_what_it_weighs():
    operator = Operator()
    x, y, _ = operator.scene.data.body("red").xpos
    operator.at((x, y, 0.05))
    operator.stream("pose", [x, y, 0.03, *DOWN_XYZW], seconds=1.0)
    operator.stream("twist", [0] * 6, seconds=1.5, gripper=1.0)
    assert operator.look().grasped is True
    operator.stream("twist", [0, 0, 0.1, 0, 0, 0], seconds=1.5)
    operator.stream("twist", [0] * 6, seconds=0.5)
    observation = operator.look()
    assert observation.grasped is True and observation.errors == ()
    assert 0.04 < observation.gripper_width_m < 0.06
    assert operator.scene.data.body("red").xpos[2] > 0.12
    weight = 9.81 * MODEL.body("red").mass[0]
    assert observation.wrench_base[2] == pytest.approx(-weight, rel=0.05)
    operator.stream("twist", [0] * 6, seconds=0.5, gripper=0.0)
    assert operator.look().grasped is False
    operator.robot.close()


# Cameras.


def test_pictures_come_at_their_rate_with_their_times():
    operator = Operator(cameras={"exterior": CAMERA}).begin()
    stamps = []
    for _ in range(100):
        frame = operator.look().frames["exterior"]
        assert frame.image.shape == (24, 32, 3) and frame.image.dtype == np.uint8
        stamps.append(frame.captured_at)
        assert 0 <= operator.robot.now() - frame.captured_at <= 1 / CAMERA.fps + 1e-9
        operator.robot.advance(0.01)
    np.testing.assert_allclose(np.unique(stamps), np.arange(20) / CAMERA.fps, atol=TICK)
    operator.robot.close()


@pytest.mark.parametrize("name", franka.CAMERAS)
def test_a_picture_shows_the_scene_at_its_time(name, backend):
    operator = Operator(cameras={name: CameraInfo(32, 32, 10.0)}, backend=backend).begin()
    operator.stream("twist", [0, 0.2, 0, 0, 0, 0], seconds=0.5)  # ends when a picture is taken
    mujoco.mj_forward(MODEL, operator.scene.data)
    renderer = renderers.make_renderer(MODEL, 32, 32, backend=backend)
    expected = renderer.render(operator.scene.data, name)
    operator.robot.advance(0.05)  # the scene moves on, the picture does not
    frame = operator.look().frames[name]
    assert frame.captured_at == pytest.approx(0.5, abs=1e-9)
    np.testing.assert_array_equal(frame.image, expected)
    renderer.close()
    operator.robot.close()


def test_pictures_are_the_callers_and_any_thread_may_look(backend):
    operator = Operator(cameras={"exterior": CAMERA}, backend=backend).begin()
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(operator.look().frames["exterior"].image))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        thread.join(timeout=60)
        seen[-1][:] = 0
    image = operator.look().frames["exterior"].image
    assert len(seen) == 3 and image.std() > 10
    operator.robot.close()


def test_a_frozen_camera_is_too_old_and_recovers():
    operator = Operator(cameras={"exterior": CAMERA}).begin()
    operator.robot.advance(0.5)
    operator.robot.faults.frozen.add("exterior")
    operator.robot.advance(0.25)
    operator.robot.observe(max_age_s=0.3)
    with pytest.raises(StaleObservationError, match="exterior") as caught:
        operator.robot.observe(max_age_s=0.2)
    assert caught.value.sensor == "exterior" and caught.value.age_s == pytest.approx(0.25)
    operator.robot.faults.frozen.clear()
    operator.robot.advance(0.05)
    operator.robot.observe(max_age_s=0.05)
    operator.robot.close()


def test_an_optional_camera_that_is_frozen_is_left_out():
    optional = CameraInfo(24, 32, 20.0, optional=True)
    operator = Operator(cameras={"exterior": CAMERA, "wrist": optional}).begin()
    operator.robot.faults.frozen.add("wrist")
    operator.robot.advance(0.5)
    assert set(operator.robot.observe(max_age_s=0.2).frames) == {"exterior"}
    operator.robot.close()


def test_a_repeating_camera_shows_the_same_bytes_with_new_stamps():
    operator = Operator(cameras={"exterior": CAMERA, "wrist": CAMERA}).begin()
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=0.25)
    operator.robot.faults.repeating.add("exterior")
    first = operator.look().frames
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=0.5)
    second = operator.look().frames
    assert second["exterior"].captured_at > first["exterior"].captured_at + 0.4
    np.testing.assert_array_equal(second["exterior"].image, first["exterior"].image)
    assert (second["wrist"].image != first["wrist"].image).any()
    operator.robot.close()


def test_late_sensors_are_late_by_what_was_asked():
    operator = Operator(cameras={"exterior": CAMERA}).begin()
    operator.robot.faults.lag_s = {"exterior": 0.2, "state": 0.03}
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=1.0)
    observation = operator.look()
    assert operator.robot.now() - observation.frames["exterior"].captured_at == pytest.approx(0.2)
    assert operator.robot.now() - observation.state_at == pytest.approx(0.03)
    _, joints = operator.robot.log
    np.testing.assert_array_equal(observation.joint_positions, joints[-16])
    with pytest.raises(StaleObservationError, match="state"):
        operator.robot.faults.lag_s = {"state": 0.3}
        operator.robot.observe(max_age_s=0.25)
    operator.robot.close()


def test_a_frozen_state_ages_while_the_arm_moves_on():
    operator = Operator().begin()
    operator.robot.faults.frozen.add("state")
    before = operator.look()
    operator.stream("twist", [0.2, 0, 0, 0, 0, 0], seconds=0.5)
    after = operator.look()
    assert after.state_at == before.state_at
    np.testing.assert_array_equal(after.joint_positions, before.joint_positions)
    assert norms(operator.path()[-1] - after.tcp_pos_base) > 0.05
    with pytest.raises(StaleObservationError, match="state"):
        operator.robot.observe(max_age_s=0.4)
    operator.robot.close()


def test_lost_frames_are_lost_at_their_rate():
    operator = Operator(cameras={"exterior": CameraInfo(24, 32, 100.0)}, seed=1).begin()
    operator.robot.faults.loss["exterior"] = 0.3
    operator.robot.advance(9.0)
    taken = len(operator.robot._cameras._shots["exterior"])
    assert 900 * 0.65 < taken < 900 * 0.75
    operator.robot.close()


@pytest.mark.parametrize(
    ("name", "camera", "message"),
    [
        ("exteror", CAMERA, "exterior"),
        ("exterior", CameraInfo(0, 32, 20.0), "1 to 1024 pixels"),
        ("exterior", CameraInfo(32, 4096, 20.0), "1 to 1024 pixels"),
        ("exterior", CameraInfo(32, 32, 0.0), "rate above 0"),
    ],
)
def test_cameras_that_cannot_be_are_refused(name, camera, message):
    with pytest.raises(ValueError, match=message):
        MujocoRobot(Arm(MODEL), cameras={name: camera}, realtime=False)


# Real time. These wait for the robot's own clock, however slow the machine is.


def wait_until(condition, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.005)


@pytest.fixture
def live():
    """An operator of a robot whose clock runs by itself."""
    one = Operator(cameras={"exterior": CAMERA}, realtime=True).begin()
    yield one
    one.robot.close()


def test_in_real_time_the_arm_moves_expires_and_stands_by_itself(live):
    before = live.look().tcp_pos_base
    live.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=0.4)
    wait_until(lambda: live.look().state is RobotState.HOLD)
    wait_until(lambda: norms(live.look().joint_velocities) < 1e-3)
    moved = live.look().tcp_pos_base - before
    assert 0.038 < moved[0] < 0.046
    with pytest.raises(RobotError, match="realtime=False"):
        live.robot.advance(0.1)


def test_real_time_is_no_faster_than_wall_time(live):
    wall, own = time.monotonic(), live.robot.now()
    wait_until(lambda: live.robot.now() > own + 0.3)
    assert live.robot.now() - own <= time.monotonic() - wall + 0.05


def test_any_thread_stops_a_robot_in_real_time(live):
    live.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0)
    wait_until(lambda: norms(live.look().joint_velocities) > 0.01)
    stopped_at = live.robot.now()
    thread = threading.Thread(target=lambda: live.robot.stop(reason="test"))
    thread.start()
    thread.join(timeout=20)
    wait_until(lambda: norms(live.look().joint_velocities) < 1e-3)
    wait_until(lambda: live.robot.now() > stopped_at + 0.3)
    travelled = live.path(since=stopped_at)
    assert norms(travelled[-1] - travelled[0]) < 0.1**2 / 2 + 0.1 * 0.1  # late by 0.1 s at most
    assert live.look().state is RobotState.IDLE


def test_time_that_was_lost_is_not_caught_up(live):
    live.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0)
    with live.robot._lock:
        own = live.robot.now()
        time.sleep(0.5)
    wait_until(lambda: live.robot.lost_s > 0.3)
    assert live.robot.now() - own < 0.3


def test_closing_in_the_midst_of_a_motion_ends_at_rest():
    operator = Operator(realtime=True).begin()
    operator.tell("twist", [0.2, 0, 0, 0, 0, 0], valid_for_s=2.0)
    own = operator.robot.now()
    wait_until(lambda: operator.robot.now() > own + 0.2)
    operator.robot.close()
    speeds = norms(derivative(operator.path()))
    assert speeds.max() > 0.1 and speeds[-1] < 5e-3
    assert operator.robot._thread is None
