"""The driver against franky-sim, which speaks the arm's own network protocol, in another process.

Times are the arm's, so that a busy machine changes nothing. WORLDMODEL_FRANKY_SIM_PYTHON names the
Python that has franky-sim, where it is not this one.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs.robots.interface import (
    Command,
    NotConnectedError,
    OperatorRefusedError,
    Robot,
    RobotError,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.kinematics import matrix_to_quat_xyzw, rotation_of_vector
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.safety import SafeRobot

if importlib.util.find_spec("franky") is None:
    pytest.skip("franky-control is not installed", allow_module_level=True)
SIM_PYTHON = os.environ.get("WORLDMODEL_FRANKY_SIM_PYTHON", sys.executable)
if SIM_PYTHON == sys.executable and importlib.util.find_spec("franky_sim") is None:
    pytest.skip("franky-sim is not installed", allow_module_level=True)

from worldmodel.envs.robots import franky_connection  # noqa: E402
from worldmodel.envs.robots.franky import FrankyRobot  # noqa: E402

pytestmark = pytest.mark.slow  # the simulated arm takes its own time
HOST = f"127.77.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"  # loopback, ours alone
PATIENCE_S = 120.0
ENVELOPE = Envelope(
    workspace_low=(0.2, -0.4, 0.1), workspace_high=(0.8, 0.4, 0.8), state_max_age_s=60.0
)


class Simulator:
    """franky-sim in its own process."""

    def __init__(self):
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        script = Path(__file__).with_name("franky_simulator.py")
        self.process = subprocess.Popen(
            [SIM_PYTHON, "-u", str(script), HOST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, order: str) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.communicate()
        self.process = None


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    simulator.start()
    yield simulator
    simulator.kill()


def make(**settings) -> FrankyRobot:
    known: dict[str, Any] = dict(
        arm="fr3", simulated=True, cameras={}, envelope=ENVELOPE, require_realtime=False
    )
    return FrankyRobot(host=HOST, **(known | settings))


@pytest.fixture
def robot(simulator) -> Iterator[FrankyRobot]:
    """A connected arm, armed, at rest."""
    del simulator
    robot = make()
    robot.connect(timeout_s=PATIENCE_S)
    robot.arm(operator="tester")
    yield robot
    robot.close()


def look(robot: Robot):
    return robot.observe(max_age_s=PATIENCE_S)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def at_rest(robot: FrankyRobot) -> bool:
    look(robot)
    return robot._at_rest


def twist(seq: int, *values: float, valid_for_s: float = 0.4, **rest) -> Command:
    padded = np.array([*values, *[0.0] * (6 - len(values))])
    return Command(seq, 0, valid_for_s, "twist", padded, **rest)


def travelled(robot: FrankyRobot, command: Command) -> np.ndarray:
    """Returns where a command moved the tool (3,), left to itself."""
    start = look(robot).tcp_pos_base
    ack = robot.command(command)
    assert ack.accepted, ack
    until(lambda: at_rest(robot))
    return look(robot).tcp_pos_base - start


def test_it_is_a_robot_that_is_known_before_it_is_connected() -> None:
    robot = make()
    assert isinstance(robot, Robot)
    assert robot.info.arm == "fr3" and robot.info.simulated
    assert robot.info.joint_limits.low[5] == pytest.approx(0.5445)
    with pytest.raises(NotConnectedError, match="connect first"):
        robot.observe(max_age_s=1.0)
    robot.stop(reason="nothing to stop")
    robot.close()


def test_what_is_observed_is_the_arm_at_home(robot) -> None:
    observed = look(robot)
    np.testing.assert_allclose(observed.tcp_pos_base, [0.5544, 0.0, 0.5214], atol=0.2)
    np.testing.assert_allclose(observed.tcp_rotation_base[2, 2], -1.0, atol=0.05)  # it looks down
    assert np.linalg.det(observed.tcp_rotation_base) == pytest.approx(1.0, abs=1e-5)
    assert observed.state is RobotState.ARMED and observed.errors == ()
    assert observed.joint_positions.shape == observed.joint_velocities.shape == (7,)
    assert look(robot).seq == observed.seq + 1


def test_our_limits_are_set_and_not_the_librarys(robot) -> None:
    for part, name in (("translation", ""), ("rotation", "angular_"), ("elbow", "joint_")):
        for derivative in ("velocity", "acceleration", "jerk"):
            limit = getattr(robot._robot, f"{part}_{derivative}_limit")
            assert limit.get() == getattr(ENVELOPE, name + derivative) < limit.max
    assert (robot._robot.joint_velocity_limit.get() == ENVELOPE.joint_velocity).all()


def test_a_twist_moves_the_tool_along_the_base_axes_as_far_as_it_lives(robot) -> None:
    velocity, life_s = np.array([-0.08, 0.10, -0.14]), 0.25
    moved = travelled(robot, twist(1, *velocity, valid_for_s=life_s))
    np.testing.assert_allclose(moved, life_s * velocity, atol=0.006)


def test_a_twist_turns_the_tool_about_the_base_axes(robot) -> None:
    before = look(robot).tcp_rotation_base
    travelled(robot, twist(1, 0, 0, 0, 0.2, 0, 0.4, valid_for_s=0.25))
    turned = look(robot).tcp_rotation_base @ before.T
    expected = rotation_of_vector(np.array([0.05, 0, 0.1]))
    np.testing.assert_allclose(turned, expected, atol=0.02)


def test_a_sender_that_falls_silent_leaves_an_arm_that_stops(robot) -> None:
    speed, life_s = 0.2, 0.2
    start = look(robot).tcp_pos_base
    for seq in range(1, 4):
        assert robot.command(twist(seq, 0, 0, -speed, valid_for_s=life_s)).accepted
        time.sleep(0.1)
    last = look(robot).tcp_pos_base
    until(lambda: at_rest(robot))  # nothing is sent any more
    end = look(robot)
    braking = speed**2 / (2 * ENVELOPE.acceleration) + speed * 0.03
    assert np.linalg.norm(end.tcp_pos_base - last) <= speed * life_s + braking
    assert end.tcp_pos_base[2] < start[2] - 0.01  # it did move
    assert end.state is RobotState.HOLD
    assert travelled(robot, twist(4, 0, 0, speed, valid_for_s=life_s))[2] > 0.01  # and goes on


def test_a_pose_is_reached_when_its_command_ends(robot) -> None:
    begin = look(robot)
    goal = begin.tcp_pos_base + [-0.01, 0.005, 0.008]
    rotation = rotation_of_vector(np.array([0.0, 0.0, 0.04])) @ begin.tcp_rotation_base
    values = np.concatenate([goal, matrix_to_quat_xyzw(rotation)])
    for seq in range(1, 4):
        ack = robot.command(Command(seq, 0, 0.3, "pose", values))
        assert ack.accepted and ack.applied.kind == "twist" and ack.clamped == ()
        until(lambda: at_rest(robot))
    end = look(robot)
    np.testing.assert_allclose(end.tcp_pos_base, goal, atol=0.002)
    np.testing.assert_allclose(end.tcp_rotation_base, rotation, atol=0.01)


def test_joints_move_and_the_kind_of_motion_is_kept_until_the_arm_is_armed_anew(robot) -> None:
    before = look(robot).joint_positions
    values = np.array([0.2, 0, 0, 0, 0, 0, -0.3])
    assert robot.command(Command(1, 0, 0.25, "joint_velocity", values)).accepted
    assert robot.command(twist(2, 0.01)).reason == "kind_changed"
    until(lambda: at_rest(robot))
    np.testing.assert_allclose(look(robot).joint_positions - before, 0.25 * values, atol=0.02)
    robot.stop(reason="to change")
    robot.arm(operator="tester")
    assert robot.command(twist(3, 0.01)).accepted


def test_the_safety_wrapper_drives_it(simulator) -> None:
    del simulator
    envelope = replace(ENVELOPE, state_max_age_s=1.0, plan_max_age_s=PATIENCE_S)
    inner = make(envelope=envelope)
    robot = SafeRobot(inner, envelope, clock=lambda: robot_s(inner))
    robot.connect(timeout_s=PATIENCE_S)
    until(lambda: is_armed(robot))
    start = look(robot).tcp_pos_base
    toward = np.array([0.0, 0.1 if start[1] < 0 else -0.1, 0.0])
    seq = 0

    def has_moved() -> bool:
        nonlocal seq
        observed = look(robot)
        seq += 1
        robot.command(replace(twist(seq, *toward), obs_seq=observed.seq))
        robot.tick()
        assert robot.state is not RobotState.FAULT, robot.reason
        return float((observed.tcp_pos_base - start) @ toward) > 0.1 * 0.01

    until(has_moved)
    robot.close()


def robot_s(robot: FrankyRobot) -> float:
    """Returns the arm's own time, which a busy machine slows down [s]; 0 without a connection."""
    return 0.0 if robot._robot is None else robot._robot.state.time.to_sec()


def is_armed(robot: Robot) -> bool:
    try:
        return robot.arm(operator="tester") is RobotState.ARMED
    except RobotError as error:
        assert "state_stale" in str(error)
        return False


def test_what_is_only_too_fast_is_slowed_down_and_said(robot) -> None:
    ack = robot.command(twist(1, 3.0, -4.0, 0.0, 9.0, 0.0, 0.0, valid_for_s=0.05))
    assert ack.accepted and ack.clamped == ("velocity", "angular_velocity")
    np.testing.assert_allclose(ack.applied.values, [0.15, -0.2, 0, 0.5, 0, 0], atol=1e-6)
    until(lambda: at_rest(robot))
    for seq in range(2, 6):  # each to the brim of the library's own check
        direction = np.random.default_rng(seq).choice([-1.0, 0.0, 1.0], 6) + [0, 0, 2, 0, 0, 0]
        ack = robot.command(twist(seq, *(10 * direction), valid_for_s=0.02))
        assert ack.accepted
        until(lambda: at_rest(robot))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (twist(1, float("nan")), "not_finite:values"),
        (Command(1, 0, 0.4, "twist", np.zeros(7)), "shape:values"),
        (twist(1, 0.1, valid_for_s=3.0), "valid_too_long"),
        (twist(1, 0.1, valid_for_s=0.0), "expired"),
        (twist(-1, 0.1), "seq_old"),
        (twist(1, 0.1, gripper=float("nan")), "not_finite:gripper"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_moves(robot, command, reason) -> None:
    before = look(robot).tcp_pos_base
    ack = robot.command(command)
    assert (ack.accepted, ack.applied, ack.reason) == (False, None, reason)
    np.testing.assert_allclose(look(robot).tcp_pos_base, before, atol=1e-4)
    assert look(robot).state is RobotState.ARMED


def test_nothing_moves_before_an_operator_armed_it(simulator) -> None:
    del simulator
    robot = make()
    robot.connect(timeout_s=PATIENCE_S)
    assert robot.command(twist(1, 0.1)).reason == "not_armed"
    with pytest.raises(OperatorRefusedError):
        robot.arm(operator=" ")
    assert robot.command(twist(1, 0.1)).reason == "not_armed"
    robot.close()


def test_a_stop_from_another_thread_is_swift_and_stays(robot) -> None:
    robot.command(twist(1, 0, 0, -0.1, valid_for_s=0.5))
    until(lambda: robot._robot.state.O_dP_EE_c.linear[2] < -0.09)
    before = robot._robot.state
    stopper = threading.Thread(target=robot.stop, kwargs={"reason": "operator"})
    stopper.start()
    stopper.join(PATIENCE_S)
    assert look(robot).state is RobotState.IDLE
    assert robot.command(twist(2, 0.1)).reason == "not_armed"
    until(lambda: at_rest(robot))
    after = robot._robot.state
    far = np.linalg.norm(after.O_T_EE.translation - before.O_T_EE.translation)
    assert far < 0.025  # 0.1^2 / 2 and what passed before the stop; without it 0.045
    robot.stop(reason="again")


def test_a_hold_comes_to_rest_and_the_next_command_goes_on(robot) -> None:
    robot.command(twist(1, 0, 0.1))
    assert robot.command(Command(2, 0, 0.4, "hold")).state is RobotState.HOLD
    until(lambda: at_rest(robot))
    assert abs(travelled(robot, twist(3, 0, -0.1, valid_for_s=0.15))[1] + 0.015) < 0.006


def test_the_hand_closes_on_nothing_and_says_so(robot) -> None:
    assert robot.command(Command(1, 0, 0.1, "hold", gripper=1.0)).accepted
    until(lambda: look(robot).gripper > 0.95)
    until(lambda: robot._hand._motion.wait(0.0))
    until(lambda: robot._hand._gripper.is_grasped)  # the library says otherwise
    assert look(robot).grasped is False
    robot.command(Command(2, 0, 0.1, "hold", gripper=0.5))  # between: stays closed
    assert look(robot).gripper > 0.95
    robot.command(Command(3, 0, 0.1, "hold", gripper=0.0))
    until(lambda: look(robot).gripper < 0.9)
    robot.close()  # while the hand moves


def test_an_arm_without_a_hand_says_what_it_leaves_out(simulator) -> None:
    del simulator
    robot = make(has_hand=False)
    robot.connect(timeout_s=PATIENCE_S)
    robot.arm(operator="tester")
    ack = robot.command(Command(1, 0, 0.1, "hold", gripper=1.0))
    assert ack.accepted and ack.clamped == ("gripper",)
    assert ack.applied is not None and ack.applied.gripper is None
    assert look(robot).grasped is None
    robot.close()


def test_a_reflex_is_a_fault_until_an_operator_recovers(robot, simulator) -> None:
    robot.command(twist(1, 0, 0, 0.05, valid_for_s=0.5))
    simulator.ask("reflex")
    until(lambda: look(robot).state is RobotState.FAULT)
    assert "reflex" in look(robot).errors and "cartesian_reflex" in look(robot).errors
    assert robot.command(twist(2, 0.01)).reason == "fault"
    with pytest.raises(RobotError, match="cartesian_reflex"):
        robot.arm(operator="tester")
    with pytest.raises(OperatorRefusedError):
        robot.recover(operator="")
    assert robot.recover(operator="tester") is RobotState.IDLE
    robot.arm(operator="tester")
    assert travelled(robot, twist(3, 0, 0, -0.1, valid_for_s=0.2))[2] < -0.01


def test_an_arm_with_an_error_connects_and_recovery_waits_for_its_cause(simulator) -> None:
    simulator.ask("user_stop")
    robot = make()
    robot.connect(timeout_s=PATIENCE_S)
    until(lambda: look(robot).state is RobotState.FAULT)
    assert look(robot).errors == ("user_stopped",)
    assert robot.recover(operator="tester") is RobotState.FAULT
    simulator.ask("released")
    until(lambda: robot.recover(operator="tester") is RobotState.IDLE)
    robot.close()


def test_a_hand_that_is_lost_is_a_fault_until_it_is_connected_anew(robot, simulator) -> None:
    assert robot.command(twist(1, 0, 0, 0.05, valid_for_s=0.5)).accepted
    simulator.ask("hand_off")
    until(lambda: look(robot).state is RobotState.FAULT)
    assert look(robot).errors == ("hand_lost",)
    assert robot.command(twist(2, 0.01, gripper=1.0)).reason == "fault"
    until(lambda: at_rest(robot))
    assert robot.recover(operator="tester") is RobotState.FAULT
    robot.connect(timeout_s=PATIENCE_S)
    assert (look(robot).state, look(robot).errors) == (RobotState.IDLE, ())
    robot.arm(operator="tester")
    assert robot.command(Command(1, 0, 0.1, "hold", gripper=1.0)).accepted
    until(lambda: look(robot).gripper > 0.1)


def test_an_arm_that_another_program_has_is_not_waited_for(robot) -> None:
    second = make()
    begin = time.monotonic()
    with pytest.raises(NotConnectedError, match="another program"):
        second.connect(timeout_s=0.5)
    assert time.monotonic() - begin < PATIENCE_S
    assert look(robot).state is RobotState.ARMED  # the first does not notice


def test_another_arm_than_was_said_is_refused(simulator) -> None:
    del simulator
    with pytest.raises(RobotError, match="'panda', but it calls itself 'fr3'"):
        make(arm="panda").connect(timeout_s=PATIENCE_S)
    robot = make(arm="unknown")
    robot.connect(timeout_s=PATIENCE_S)
    robot.close()
    with pytest.raises(RobotError, match="use 'unknown'"):
        franky_connection.check_arm("", "fr3")


def is_lost(robot: FrankyRobot) -> bool:
    try:
        look(robot)
    except NotConnectedError:
        return True
    return False


def test_a_killed_arm_is_noticed_and_a_new_one_connects_and_waits_for_its_operator(
    simulator,
) -> None:
    robot = make()
    robot.connect(timeout_s=PATIENCE_S)
    robot.arm(operator="tester")
    robot.command(twist(1, 0, 0, 0.05, valid_for_s=0.5))
    simulator.kill()
    until(lambda: is_lost(robot))
    with pytest.raises(NotConnectedError):
        robot.command(twist(2, 0.05))
    with pytest.raises(NotConnectedError):
        robot.connect(timeout_s=2.0)
    simulator.start()
    robot.connect(timeout_s=PATIENCE_S)
    first = look(robot)
    assert first.state is RobotState.IDLE and first.applied_seq == -1
    assert robot.command(twist(2, 0.05)).reason == "not_armed"
    robot.arm(operator="tester")
    assert travelled(robot, twist(2, 0, 0, 0.1, valid_for_s=0.2))[2] > 0.01
    robot.close()


@pytest.mark.parametrize("moving", [True, False])
def test_an_arm_that_falls_silent_is_noticed(robot, simulator, moving) -> None:
    if moving:
        assert robot.command(twist(1, 0, 0, 0.05, valid_for_s=0.5)).accepted
        until(lambda: look(robot).tcp_pos_base is not None and not robot._at_rest)
    os.kill(simulator.process.pid, signal.SIGSTOP)
    stale = 0

    def noticed() -> bool:
        nonlocal stale
        try:
            robot.observe(max_age_s=0.1)
        except StaleObservationError as error:
            assert error.sensor == "state"
            stale += 1
        except NotConnectedError as error:
            assert "lost the arm" in str(error)
            return True
        return False

    try:
        until(noticed)
    finally:
        os.kill(simulator.process.pid, signal.SIGCONT)
    assert stale or not moving  # a moving arm is not waited for
