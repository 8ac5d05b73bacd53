"""SafeRobot around the simulated arm: real dynamics, pictures and contacts, on a virtual clock."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.envs import franka, panda
from worldmodel.envs.control import Arm
from worldmodel.envs.robots.interface import CameraInfo, Command, RobotState
from worldmodel.envs.robots.kinematics import matrix_to_quat_xyzw, rotation_of_vector
from worldmodel.envs.robots.limits import PANDA, Envelope
from worldmodel.envs.robots.motion import Kinematics
from worldmodel.envs.robots.mujoco import MujocoRobot
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.simulated_cameras import SimulatedCameras

LOW, HIGH = np.array([0.35, -0.25, 0.15]), np.array([0.62, 0.25, 0.45])
ENVELOPE = Envelope(workspace_low=tuple(LOW), workspace_high=tuple(HIGH))
START = (0.48, 0.0, 0.3)
CAMERAS = {"exterior": CameraInfo(24, 32, 20.0)}
X = np.array([0.1, 0, 0, 0, 0, 0])
TICK_S = 0.02
OVERSHOOT = 0.003  # [m] beyond a wall: the motors follow what is commanded with a lag
MODEL = franka.build_model()


class Rig:
    """A safe robot around a simulated one, ticked by hand."""

    def __init__(self, *, cameras=CAMERAS, envelope=ENVELOPE):
        scene = Arm(MODEL)
        scene.teleport(np.array(START))
        self.inner = MujocoRobot(scene, cameras=cameras, realtime=False, backend="ray")
        self.safe = SafeRobot(self.inner, envelope, clock=self.inner.now)
        self.safe.connect(timeout_s=1.0)
        self.safe.arm(operator="test")
        self.numbers = itertools.count(1)

    def send(self, kind, values, *, valid_for_s=0.375, gripper=None):
        seen = self.safe.observe(max_age_s=1.0)
        return self.safe.command(
            Command(next(self.numbers), seen.seq, valid_for_s, kind, values, gripper)
        )

    def run(self, seconds):
        for _ in range(round(seconds / TICK_S)):
            self.safe.tick()
            self.inner.advance(TICK_S)

    def back_and_forth(self, times):
        for i in range(times):
            self.send("twist", X if i % 2 else -X)
            self.run(0.24)

    @property
    def position(self):
        return self.safe.observe(max_age_s=1.0).tcp_pos_base


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.safe.close()


@pytest.fixture
def drawn(monkeypatch):
    """The cameras that were drawn, in order."""
    names, draw = [], SimulatedCameras._draw

    def note(cameras, name, qpos):
        names.append(name)
        return draw(cameras, name, qpos)

    monkeypatch.setattr(SimulatedCameras, "_draw", note)
    return names


def test_neither_ticks_nor_commands_draw_pictures(drawn, rig):
    rig.back_and_forth(4)
    assert rig.safe.state is RobotState.RUNNING and rig.safe.counters["ticks"] >= 48
    assert drawn == []
    image = rig.safe.observe(max_age_s=1.0).frames["exterior"].image
    assert image.std() > 10
    assert drawn == ["exterior"]


def test_a_picture_that_comes_again_and_again_is_noticed_without_drawing_it(drawn, rig):
    rig.back_and_forth(2)
    rig.inner.faults.repeating.add("exterior")
    rig.back_and_forth(2)
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, "camera_frozen:exterior")
    assert drawn == []
    rig.inner.faults.repeating.clear()
    rig.run(0.1)
    assert rig.send("twist", X).accepted


def test_a_camera_that_stands_still_holds_the_arm(rig):
    rig.back_and_forth(2)
    rig.inner.faults.frozen.add("exterior")
    before = rig.position
    rig.back_and_forth(3)
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, "camera_stale:exterior")
    assert np.linalg.norm(rig.position - before) < 0.1 * 0.3 + ENVELOPE.stopping_distance
    rig.inner.faults.frozen.clear()
    rig.run(0.1)
    assert rig.send("twist", X).accepted


def test_a_sender_that_falls_silent_leaves_an_arm_at_rest(rig):
    rig.send("twist", X)
    rig.run(0.3)
    before = rig.position
    rig.run(0.6)
    rested = rig.position
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, "expired")
    assert 0 < (rested - before)[0] < 0.1 * 0.075 + 0.1**2 / 2 + 0.1 * 0.06
    rig.run(0.4)
    np.testing.assert_allclose(rig.position, rested, atol=5e-4)


def test_a_stop_disarms_both_robots(rig):
    rig.send("twist", X)
    rig.run(0.3)
    rig.safe.stop(reason="operator")
    assert rig.send("twist", X).reason == "not_armed"
    rig.run(0.3)
    assert rig.inner.observe(max_age_s=1.0).state is RobotState.IDLE
    before = rig.position
    rig.run(0.2)
    np.testing.assert_allclose(rig.position, before, atol=5e-4)


def adversarial(rng, position, rotation):
    """Returns a command's kind and values: too fast, too far, or both."""
    if rng.random() < 0.3:
        there = rng.uniform(LOW - 0.3, HIGH + 0.3)
        if rng.random() < 0.5:
            there = position + rng.uniform(-0.1, 0.1, 3)
        turned = rotation_of_vector(rng.normal(size=3) * rng.choice([0.0, 0.1, 1.0])) @ rotation
        return "pose", np.append(there, matrix_to_quat_xyzw(turned))
    size = 10 ** rng.uniform(-2, 5)
    if rng.random() < 0.5:
        return "twist", rng.choice([-10.0, 0.0, 10.0], 6)
    return "twist", rng.normal(size=6) * size


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("kind", ["tool", "joints"])
def test_an_adversarial_planner_never_leaves_the_box(kind):
    # Slower than the joints' own limits make it, so that it is this limit that is seen.
    envelope = replace(ENVELOPE, velocity=0.12)
    rig, rng = Rig(cameras={}, envelope=envelope), np.random.default_rng(7)
    kinematics = Kinematics(MODEL)
    accepted, clamped = 0, set()
    what, values = "hold", np.zeros(0)
    for _ in range(1000):
        seen = rig.safe.observe(max_age_s=1.0)
        if rng.random() < 0.3:  # else the same again
            if kind == "joints":
                what, values = "joint_velocity", rng.normal(size=7) * 10 ** rng.uniform(-1, 3)
            else:
                what, values = adversarial(rng, seen.tcp_pos_base, seen.tcp_rotation_base)
        ack = rig.send(what, values, valid_for_s=rng.uniform(0.05, 0.5))
        assert ack.reason in (None, "unreachable", "tick_late"), ack.reason
        accepted += ack.accepted
        clamped |= set(ack.clamped)
        if rng.random() < 0.02:
            rig.inner.advance(0.3)  # the loop stands still
        rig.run(TICK_S * rng.integers(1, 5))
        if rig.safe.state is RobotState.FAULT:
            assert rig.safe.reason == "too_many_rejects"
            rig.safe.recover(operator="test")
            rig.run(0.5)
            rig.safe.arm(operator="test")
    _, joints = rig.inner.log
    rig.safe.close()
    path = np.array([kinematics.pose(q)[0] for q in joints])
    assert accepted > 700 and {"workspace_x", "workspace_y", "workspace_z"} <= clamped
    assert (path >= LOW - OVERSHOOT).all() and (path <= HIGH + OVERSHOOT).all()
    assert np.ptp(path, axis=0).min() > 0.1  # it did go from wall to wall
    speed = np.linalg.norm(np.diff(path, axis=0), axis=1) / franka.TIMESTEP
    assert speed.max() <= 1.1 * envelope.velocity
    assert (joints > PANDA.joints.low).all() and (joints < PANDA.joints.high).all()
    assert len(panda.JOINTS) == joints.shape[1]
