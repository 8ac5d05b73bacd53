"""Pictures of a twin for an arm without cameras: what they show, when, and of whom."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.envs import franka, panda
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.interface import (
    CameraInfo,
    Command,
    Robot,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.rendered_cameras import RenderedCameras
from worldmodel.envs.robots.safety import SafeRobot

_spec = importlib.util.spec_from_file_location(
    "fake_robot", Path(__file__).with_name("fake_robot.py")
)
assert _spec is not None and _spec.loader is not None
fake_robot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_robot)

CAMERA = CameraInfo(height=24, width=32, fps=10.0)
ELSEWHERE = panda.HOME_JOINTS + [0.3, 0.2, 0.0, 0.1, 0.0, 0.1, 0.4]


def blind(**settings):
    return fake_robot.FakeRobot(cameras=(), **settings)


@pytest.fixture
def arm():
    return blind()


@pytest.fixture
def robot(arm):
    robot = RenderedCameras(arm, {"exterior": CAMERA, "wrist": CAMERA}, backend="ray")
    robot.connect(timeout_s=1.0)
    yield robot
    robot.close()


def look(robot, max_age_s=1.0):
    return robot.observe(max_age_s=max_age_s)


@pytest.mark.parametrize("gripper", [0.0, 1.0])
def test_a_picture_is_that_of_the_simulated_arm_at_the_same_joints(gripper):
    scene = Arm(franka.build_model())
    scene._place(ELSEWHERE)
    for finger in panda.FINGERS:
        address = scene.model.joint(finger).qposadr[0]
        scene.data.qpos[address] = (1 - gripper) * panda.FINGER_STROKE
    ours = MujocoRobot(scene, cameras={"exterior": CAMERA}, realtime=False, backend="ray")
    ours.connect(timeout_s=1.0)
    arm = blind(joints=ELSEWHERE)
    arm.gripper = gripper
    twin = RenderedCameras(arm, {"exterior": CAMERA}, backend="ray")
    twin.connect(timeout_s=1.0)
    arm.advance(0.2)
    shown = look(twin).frames["exterior"].image
    np.testing.assert_array_equal(shown, ours.observe(max_age_s=1.0).frames["exterior"].image)
    other = blind(joints=panda.HOME_JOINTS)
    at_home = RenderedCameras(other, {"exterior": CAMERA}, backend="ray")
    at_home.connect(timeout_s=1.0)
    assert (look(at_home).frames["exterior"].image != shown).any()
    for one in (ours, twin, at_home):
        one.close()


def test_it_is_a_robot_that_passes_everything_on(robot, arm):
    assert isinstance(robot, Robot)
    assert robot.arm(operator="me") is RobotState.ARMED
    ack = robot.command(Command(0, 0, 0.3, "twist", np.array([0.05, 0, 0, 0, 0, 0]), 1.0))
    assert ack.accepted and arm.commands[-1].seq == 0
    robot.stop(reason="enough")
    assert arm.stops == ["enough"] and look(robot).state is RobotState.IDLE
    arm.errors = ("reflex",)
    assert look(robot).errors == ("reflex",)
    arm.errors = ()
    assert robot.recover(operator="me") is RobotState.IDLE
    assert robot.now() == arm.now()


def test_pictures_come_at_their_rate_with_the_time_of_the_state_that_they_show(robot, arm):
    times = []
    for _ in range(100):
        arm.advance(0.01)
        seen = look(robot)
        assert seen.frames["exterior"].captured_at <= seen.state_at
        times.append(seen.frames["exterior"].captured_at)
    new = np.unique(times)
    assert len(new) in (10, 11, 12)
    assert np.allclose(np.diff(new)[1:], 0.1, atol=0.011)


def test_a_state_that_stands_still_makes_the_cameras_stand_still(robot, arm):
    arm.advance(0.1)
    before = look(robot)
    arm.state_frozen = True
    arm.advance(0.5)
    after = look(robot)
    assert after.frames["exterior"].captured_at == before.frames["exterior"].captured_at
    with pytest.raises(StaleObservationError):
        look(robot, max_age_s=0.2)


def test_faults_can_be_ordered(robot, arm):
    robot.faults.frozen.add("wrist")
    arm.advance(0.5)
    with pytest.raises(StaleObservationError, match="wrist"):
        look(robot, max_age_s=0.3)


def test_every_camera_says_that_it_is_rendered(robot, arm):
    assert arm.info.cameras == {}
    assert set(robot.info.cameras) == {"exterior", "wrist"}
    assert all(camera == replace(CAMERA, rendered=True) for camera in robot.info.cameras.values())


def test_a_physical_arm_gets_none(arm):
    arm.info = replace(arm.info, simulated=False)
    with pytest.raises(ValueError, match="rendered cameras are for simulated arms, and fake is"):
        RenderedCameras(arm, {"exterior": CAMERA})


def test_an_arm_with_cameras_and_a_camera_that_is_none_are_refused():
    with pytest.raises(ValueError, match="fake has cameras of its own: exterior"):
        RenderedCameras(fake_robot.FakeRobot(), {"exterior": CAMERA})
    with pytest.raises(ValueError, match="unknown camera 'exteror'"):
        RenderedCameras(blind(), {"exteror": CAMERA})


def test_the_envelope_holds_when_the_twin_freezes(arm):
    robot = RenderedCameras(arm, {"exterior": CAMERA}, backend="ray")
    envelope = Envelope(workspace_low=(0.2, -0.4, 0.1), workspace_high=(0.8, 0.4, 0.9))
    safe = SafeRobot(robot, envelope, clock=arm.now)
    safe.connect(timeout_s=1.0)
    safe.arm(operator="me")

    def drive(seconds):
        for _ in range(round(seconds / 0.05)):
            seen = safe.observe(max_age_s=9.0)
            twist = np.array([0.02, 0, 0, 0, 0, 0])
            safe.command(Command(seen.applied_seq + 1, seen.seq, 0.3, "twist", twist))
            for _ in range(5):
                arm.advance(0.01)
                safe.tick()

    drive(1.0)
    assert safe.state is RobotState.RUNNING
    robot.faults.frozen.add("exterior")
    drive(0.5)
    assert safe.state is RobotState.HOLD and safe.reason == "camera_stale:exterior"
    safe.close()
