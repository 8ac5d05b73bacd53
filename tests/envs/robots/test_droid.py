import importlib.util
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldmodel.envs import franka
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.droid import DroidRobot
from worldmodel.envs.robots.droid_format import (
    DroidCamera,
    droid_velocity,
    within_range,
)
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
from worldmodel.envs.robots.kinematics import (
    matrix_to_quat_xyzw,
    rotation_of_vector,
    rotation_vector,
    tool_on_flange,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.franka_arm import HAND_YAW

_spec = importlib.util.spec_from_file_location(
    "droid_env", Path(__file__).with_name("droid_env.py")
)
assert _spec is not None and _spec.loader is not None
droid_env = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(droid_env)
SERIALS, SimulatedDroidEnv, STEP_S = droid_env.SERIALS, droid_env.SimulatedDroidEnv, 1 / 15

MODEL = franka.build_model()
CAMERA = CameraInfo(height=24, width=32, fps=30.0)
TOOL = {"tool_length": 0.149, "tool_yaw": HAND_YAW}
PATIENCE_S = 60.0  # only ever reached by a test that fails


class Rig:
    """A simulated arm, DROID's environment over it, and our robot over that."""

    def __init__(self, *, space="cartesian_velocity", cameras=("exterior",), optional=(), **more):
        names = (*cameras, *optional)
        self.sim = MujocoRobot(
            Arm(MODEL), cameras=dict.fromkeys(names, CAMERA), realtime=False, backend="ray"
        )
        self.env = SimulatedDroidEnv(self.sim, action_space=space, gripper_action_space="position")
        self.sim.advance(0.1)  # the cameras have delivered
        info = {name: CameraInfo(24, 32, 30.0, optional=name in optional) for name in names}
        settings = {
            "arm": "panda",
            "cameras": {name: DroidCamera(SERIALS[name], info[name]) for name in names},
            **TOOL,
            "gripper_width_m": 0.085,
            "simulated": True,
            "threaded": False,
            "clock": self.sim.now,
            "wall_clock": self.env.wall,
        }
        self.robot = DroidRobot(lambda: self.env, **settings | more)
        self.numbers = itertools.count(1)

    def begin(self):
        self.robot.connect(timeout_s=PATIENCE_S)
        assert self.robot.arm(operator="test") is RobotState.ARMED
        return self

    def step(self, times=1):
        for _ in range(times):
            taken = len(self.env.actions)
            self.robot.step()
            if len(self.env.actions) == taken:
                self.sim.advance(STEP_S)

    def tell(self, kind, values, *, valid_for_s=0.4, gripper=None):
        return self.robot.command(
            Command(next(self.numbers), 0, valid_for_s, kind, np.array(values, float), gripper)
        )

    def truth(self):
        return self.sim.observe(max_age_s=1.0)


@pytest.fixture(scope="module")
def seen():
    rig = Rig(cameras=()).begin()
    return rig.robot.observe(max_age_s=1.0)


# What it sees.


def test_sees_what_the_simulation_measures() -> None:
    rig = Rig().begin()
    assert isinstance(rig.robot, Robot)
    rig.tell("twist", [0.1, 0.05, 0, 0.2, 0, 0.4], gripper=0.7)
    rig.step(8)
    rig.step()
    seen, truth = rig.robot.observe(max_age_s=1.0), rig.env.robot.observe(max_age_s=1.0)
    rig.env.get_observation()
    assert seen.gripper == pytest.approx(truth.gripper, abs=0.05)
    assert 0.2 < seen.gripper < 0.8
    assert seen.gripper_width_m == pytest.approx(0.085 * (1 - seen.gripper))
    np.testing.assert_allclose(seen.tcp_pos_base, truth.tcp_pos_base, atol=2e-3)
    np.testing.assert_allclose(seen.tcp_rotation_base, truth.tcp_rotation_base, atol=2e-2)
    np.testing.assert_allclose(seen.joint_positions, truth.joint_positions, atol=1e-2)


def test_pictures_are_rgb() -> None:
    rig = Rig().begin()
    picture = rig.robot.observe(max_age_s=1.0).frames["exterior"].image
    np.testing.assert_array_equal(picture, rig.truth().frames["exterior"].image)
    assert picture.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("offset_s", [-3600.0, 0.0, 1.7e9, 4e9])
def test_stamps_do_not_depend_on_the_wall_clock(offset_s) -> None:
    rig = Rig()
    rig.env.wall_offset_s = offset_s
    rig.begin()
    rig.step()
    seen = rig.robot.observe(max_age_s=1.0)
    assert seen.state_at == pytest.approx(rig.sim.now() - STEP_S, abs=2e-3)
    assert rig.sim.now() - seen.frames["exterior"].captured_at == pytest.approx(
        STEP_S + droid_env.LATENCY_S, abs=2e-3
    )


def test_is_stale_without_steps() -> None:
    rig = Rig().begin()
    rig.sim.advance(0.3)
    with pytest.raises(StaleObservationError, match="state is 300 ms old"):
        rig.robot.observe(max_age_s=0.2)
    rig.step()
    with pytest.raises(StaleObservationError, match="exterior"):
        rig.robot.observe(max_age_s=0.1)  # a step ago, and as late as the camera is
    rig.robot.observe(max_age_s=0.2)


def test_a_camera_that_is_gone_is_stale_unless_it_is_optional() -> None:
    rig = Rig(optional=("wrist",)).begin()
    assert set(rig.robot.observe(max_age_s=1.0).frames) == {"exterior", "wrist"}
    rig.env.missing.add(SERIALS["wrist"])
    rig.step()
    assert set(rig.robot.observe(max_age_s=1.0).frames) == {"exterior"}
    rig.env.missing.add(SERIALS["exterior"])
    rig.step()
    with pytest.raises(StaleObservationError, match="exterior"):
        rig.robot.observe(max_age_s=1.0)


# Units and frames.


@settings(max_examples=200)
@given(
    values=arrays(float, 6, elements=st.floats(-5, 5)),
    length=st.floats(0, 0.3),
    yaw=st.floats(-3, 3),
)
def test_a_twist_is_within_droids_range_and_keeps_its_direction(seen, values, length, yaw) -> None:
    tool = tool_on_flange(length=length, yaw=yaw)
    command = Command(1, 0, 0.4, "twist", values)
    slower, clamped = within_range(command, seen, tool)
    velocity = droid_velocity(slower, seen, tool)
    sizes = np.linalg.norm(velocity[:3]), np.linalg.norm(velocity[3:])
    assert max(sizes) <= 1
    if clamped:
        assert max(sizes) > 0.999
        part = np.linalg.norm(slower.values) / np.linalg.norm(values)
        np.testing.assert_allclose(slower.values, part * values, atol=1e-9)
    else:
        np.testing.assert_array_equal(slower.values, values)


def test_units_are_those_of_droid(seen) -> None:
    flange = tool_on_flange(length=0.0, yaw=0.0)
    one = Command(1, 0, 0.4, "twist", np.array([1.125, 0, 0, 0, 0, 2.25]))
    np.testing.assert_allclose(droid_velocity(one, seen, flange), [1, 0, 0, 0, 0, 1])
    joints = Command(1, 0, 0.4, "joint_velocity", np.full(7, 3.0))
    np.testing.assert_allclose(droid_velocity(joints, seen, flange), np.ones(7))
    fast = Command(1, 0, 0.4, "joint_velocity", np.array([6.0, 3.0, 0, 0, 0, 0, 0]))
    slower, clamped = within_range(fast, seen, flange)
    np.testing.assert_allclose(slower.values[:2], [3.0, 1.5])
    assert clamped == ("joint_velocity",)


# Motion.


@pytest.mark.parametrize(
    "twist",
    [
        [0.1, 0, 0, 0, 0, 0],
        [0, -0.08, 0.06, 0, 0, 0],
        [0, 0, 0, 0.4, 0, 0],
        [0, 0, 0, 0, 0.4, 0],
        [0.05, 0, 0.05, 0, 0, -0.5],
    ],
)
def test_a_twist_moves_the_tool_centre_point(twist) -> None:
    rig = Rig(cameras=()).begin()
    before = rig.truth()
    assert rig.tell("twist", twist, valid_for_s=0.5).accepted
    rig.step(20)
    after = rig.truth()
    np.testing.assert_allclose(
        after.tcp_pos_base - before.tcp_pos_base, 0.5 * np.array(twist[:3]), atol=0.004
    )
    turn = rotation_vector(after.tcp_rotation_base @ before.tcp_rotation_base.T)
    np.testing.assert_allclose(turn, 0.5 * np.array(twist[3:]), atol=0.02)


def test_joints_move_at_their_velocity() -> None:
    rig = Rig(space="joint_velocity", cameras=()).begin()
    before = rig.truth().joint_positions
    speeds = np.array([0.2, -0.1, 0.1, 0.1, -0.2, 0.2, 0.3])
    assert rig.tell("joint_velocity", speeds, valid_for_s=0.5).accepted
    rig.step(20)
    np.testing.assert_allclose(rig.truth().joint_positions - before, 0.5 * speeds, atol=0.01)


def test_a_pose_is_reached_when_the_command_ends() -> None:
    rig = Rig(cameras=()).begin()
    seen = rig.truth()
    target = seen.tcp_pos_base + [0.03, -0.04, 0.02]
    turned = rotation_of_vector(np.array([0, 0, 0.2])) @ seen.tcp_rotation_base
    rig.tell("pose", [*target, *matrix_to_quat_xyzw(turned)], valid_for_s=1.0)
    rig.step(20)
    after = rig.truth()
    np.testing.assert_allclose(after.tcp_pos_base, target, atol=0.005)
    assert np.linalg.norm(rotation_vector(turned @ after.tcp_rotation_base.T)) < 0.03


def test_moves_no_longer_than_the_command_lives() -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("twist", [0.15, 0, 0, 0, 0, 0], valid_for_s=0.1)
    rig.step(10)
    moves = [action for action in rig.env.actions if action[:6].any()]
    assert len(moves) == 2
    assert moves[1][0] == pytest.approx(moves[0][0] / 2, rel=0.05)  # 1.5 steps in all
    assert not rig.env.actions[-1][:6].any() and len(rig.env.actions) == 3
    assert rig.robot.observe(max_age_s=1.0).state is RobotState.HOLD


def test_too_fast_is_slowed_and_said() -> None:
    rig = Rig(cameras=()).begin()
    ack = rig.tell("twist", [3.0, 0, 0, 0, 0, 0], valid_for_s=STEP_S)
    assert ack.accepted and ack.clamped == ("velocity",)
    assert ack.applied is not None and ack.applied.values[0] == pytest.approx(1.125)


def test_the_gripper_moves_without_the_arm_and_keeps_its_command() -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("hold", [], gripper=1.0)
    rig.step(15)
    assert rig.truth().gripper > 0.9
    rig.tell("twist", [0.05, 0, 0, 0, 0, 0])
    rig.step(2)
    assert rig.env.actions[-1][-1] == 1.0


# How it stops.


def test_stop_lets_no_further_step_move_the_arm() -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("twist", [0.2, 0, 0, 0, 0, 0], valid_for_s=2.0, gripper=1.0)
    rig.step(3)
    rig.robot.stop(reason="test")
    before = len(rig.env.actions)
    rig.step(5)
    assert [list(action) for action in rig.env.actions[before:]] == [[0.0] * 6 + [1.0]]
    assert rig.robot.observe(max_age_s=1.0).state is RobotState.IDLE
    assert rig.tell("twist", [0.1, 0, 0, 0, 0, 0]).reason == "not_armed"
    rig.robot.stop(reason="again")
    assert rig.robot.arm(operator="test") is RobotState.ARMED


def test_a_step_that_fails_is_a_fault_until_an_operator_recovers_it() -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0)
    rig.env.fails_with["step"] = ConnectionError("the remote side is gone")
    rig.step(3)
    seen = rig.robot.observe(max_age_s=1.0)
    assert (seen.state, seen.errors) == (RobotState.FAULT, ("step_failed",))
    assert rig.tell("twist", [0.1, 0, 0, 0, 0, 0]).reason == "fault"
    with pytest.raises(RobotError, match="recover it first"):
        rig.robot.arm(operator="test")
    rig.env.fails_with.clear()
    rig.step(3)
    assert not any(action[:6].any() for action in rig.env.actions)
    assert rig.robot.recover(operator="test") is RobotState.IDLE


def test_a_look_that_fails_holds_and_three_are_a_fault() -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0)
    rig.step()
    rig.env.fails_with["get_observation"] = TypeError("cannot unpack non-iterable NoneType")
    rig.step()
    assert not rig.env.actions[-1][:6].any()
    assert rig.tell("twist", [0.1, 0, 0, 0, 0, 0]).reason == "state_stale"
    rig.env.fails_with.clear()
    rig.step()
    assert rig.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0).accepted
    rig.env.fails_with["get_observation"] = TypeError("cannot unpack non-iterable NoneType")
    rig.step(3)
    assert rig.robot.observe(max_age_s=10).state is RobotState.FAULT
    assert rig.robot.recover(operator="test") is RobotState.FAULT
    rig.env.fails_with.clear()
    rig.step()
    assert rig.robot.recover(operator="test") is RobotState.IDLE


@pytest.mark.parametrize("name", ["joint_positions", "cartesian_position", "gripper_position"])
def test_a_state_that_is_not_finite_holds(name, monkeypatch) -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0)
    rig.step()
    honest = rig.env.get_observation

    def spoiled():
        raw = honest()
        value = raw["robot_state"][name]
        raw["robot_state"][name] = np.nan if np.isscalar(value) else [np.nan, *value[1:]]
        return raw

    monkeypatch.setattr(rig.env, "get_observation", spoiled)
    rig.step()
    assert not rig.env.actions[-1][:6].any()
    assert rig.robot.observe(max_age_s=10).state is RobotState.HOLD


def test_close_takes_the_last_step_back() -> None:
    rig = Rig(cameras=()).begin()
    rig.tell("twist", [0.1, 0, 0, 0, 0, 0], valid_for_s=2.0)
    rig.step(2)
    rig.robot.close()
    rig.robot.close()
    assert rig.env.closed and not rig.env.actions[-1][:6].any()
    with pytest.raises(NotConnectedError):
        rig.robot.observe(max_age_s=1.0)
    with pytest.raises(NotConnectedError):
        rig.robot.step()


# What is refused.


def test_refuses_what_the_action_space_cannot_do() -> None:
    rig = Rig(cameras=()).begin()
    assert rig.tell("joint_velocity", np.zeros(7)).reason == "kind_not_supported"
    assert rig.tell("twist", np.full(6, np.nan)).reason == "not_finite:values"
    assert rig.tell("twist", np.zeros(6), valid_for_s=3.0).reason == "valid_too_long"
    rig = Rig(space="joint_velocity", cameras=()).begin()
    assert rig.tell("twist", np.zeros(6)).reason == "kind_not_supported"
    assert rig.env.actions == []
    with pytest.raises(OperatorRefusedError):
        rig.robot.arm(operator=" ")


@pytest.mark.parametrize("attribute", ["action_space", "gripper_action_space"])
def test_refuses_another_action_space(attribute) -> None:
    rig = Rig(cameras=())
    setattr(rig.env, attribute, "joint_position")
    with pytest.raises(RobotError, match="RobotEnv must have the action_space"):
        rig.robot.connect(timeout_s=1.0)
    assert rig.env.closed


def test_refuses_a_flange_that_is_not_link_8(monkeypatch) -> None:
    rig = Rig(cameras=())
    raw = rig.env.get_observation()
    raw["robot_state"]["cartesian_position"][2] -= 0.1034  # the fingertips of a Franka hand
    monkeypatch.setattr(rig.env, "get_observation", lambda: raw)
    with pytest.raises(RobotError, match=r"10\.3 cm from where the joints put link 8"):
        rig.robot.connect(timeout_s=1.0)
    assert rig.env.closed


def test_names_the_pictures_that_there_are() -> None:
    rig = Rig()
    rig.env.missing.add(SERIALS["exterior"])
    with pytest.raises(RobotError, match=r"no picture 24259877_left for 'exterior'"):
        rig.robot.connect(timeout_s=1.0)


def test_says_why_the_environment_could_not_be_made() -> None:
    def fail():
        raise TimeoutError("no heartbeat of the NUC")

    rig = Rig(cameras=())
    robot = DroidRobot(
        fail,
        arm="panda",
        cameras={},
        **TOOL,
        gripper_width_m=0.085,
        simulated=True,
    )
    with pytest.raises(NotConnectedError, match="no heartbeat of the NUC"):
        robot.connect(timeout_s=PATIENCE_S)
    with pytest.raises(NotConnectedError):
        robot.observe(max_age_s=1.0)
    with pytest.raises(ValueError, match="arm must be one of"):
        Rig(cameras=(), arm="ur5")
    rig.robot.close()


# The thread.


def _wait_until(happened) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_one_thread_makes_calls_and_closes_the_environment(monkeypatch) -> None:
    rig, threads = Rig(cameras=()), set()

    def note(honest):
        def noted(*words):
            threads.add(threading.get_ident())
            return honest(*words)

        return noted

    for name in ("get_observation", "step", "close"):
        monkeypatch.setattr(rig.env, name, note(getattr(rig.env, name)))

    def make():
        threads.add(threading.get_ident())
        return rig.env

    robot = DroidRobot(
        make, arm="panda", cameras={}, **TOOL, gripper_width_m=0.085, simulated=True,
        wall_clock=rig.env.wall,
    )  # fmt: skip
    robot.connect(timeout_s=PATIENCE_S)
    robot.arm(operator="test")
    robot.command(Command(1, 0, 2.0, "twist", np.array([0.05, 0, 0, 0, 0, 0])))
    _wait_until(lambda: any(action[:6].any() for action in rig.env.actions))
    robot.stop(reason="test")
    _wait_until(lambda: not rig.env.actions[-1][:6].any())
    robot.close()
    assert rig.env.closed
    assert len(threads) == 1 and threads != {threading.get_ident()}


def test_an_environment_that_is_made_too_late_is_closed() -> None:
    rig, go = Rig(cameras=()), threading.Event()

    def make():
        assert go.wait(PATIENCE_S)
        return rig.env

    robot = DroidRobot(make, arm="panda", cameras={}, **TOOL, gripper_width_m=0.085, simulated=True)
    with pytest.raises(NotConnectedError, match=r"not ready within 0\.05 s"):
        robot.connect(timeout_s=0.05)
    with pytest.raises(NotConnectedError, match="of the last try"):
        robot.connect(timeout_s=0.05)
    go.set()
    _wait_until(lambda: rig.env.closed)
    assert rig.env.actions == []


# In its envelope.


def test_reaches_a_place_within_the_safety_wrapper() -> None:
    rig = Rig()
    start = rig.truth().tcp_pos_base
    envelope = Envelope(
        workspace_low=tuple(start - [0.02, 0.10, 0.10]),
        workspace_high=tuple(start + [0.04, 0.10, 0.10]),
        state_max_age_s=0.2,
        camera_max_age_s=0.3,
    )
    safe = SafeRobot(rig.robot, envelope, clock=rig.sim.now)
    safe.connect(timeout_s=1.0)
    safe.arm(operator="test")
    target, quat = start + [0.10, 0.03, -0.04], matrix_to_quat_xyzw(rig.truth().tcp_rotation_base)
    furthest = 0.0
    for number in range(60):
        seen = safe.observe(max_age_s=1.0)
        safe.command(Command(number, seen.seq, 0.4, "pose", np.append(target, quat)))
        for _ in range(2):
            safe.tick()
            rig.step()
            furthest = max(furthest, rig.truth().tcp_pos_base[0] - start[0])
    assert safe.state is not RobotState.FAULT, safe.reason
    away = rig.truth().tcp_pos_base - target
    assert np.abs(away[1:]).max() < 0.006
    assert 0.015 < furthest < 0.04 + 0.002  # up to the wall of the box, and no farther
