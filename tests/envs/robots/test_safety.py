"""SafeRobot around a kinematic arm that believes what it is told, on a virtual clock."""

import importlib.util
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs.robots.interface import (
    MOVABLE,
    CameraFrame,
    Command,
    NotConnectedError,
    OperatorRefusedError,
    Robot,
    RobotError,
    RobotState,
)
from worldmodel.envs.robots.kinematics import (
    jacobian,
    matrix_to_quat_xyzw,
    quat_xyzw_to_matrix,
    rotation_of_vector,
    rotation_vector,
)
from worldmodel.envs.robots.limits import Envelope, first_run, hardware_limits
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.franka_arm import joint_frames

_spec = importlib.util.spec_from_file_location(
    "fake_robot", Path(__file__).with_name("fake_robot.py")
)
assert _spec is not None and _spec.loader is not None
fake_robot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_robot)
FakeRobot = fake_robot.FakeRobot

LOW, HIGH = np.array([0.3, -0.3, 0.05]), np.array([0.65, 0.3, 0.6])
ENVELOPE = Envelope(workspace_low=tuple(LOW), workspace_high=tuple(HIGH))
EVERYWHERE = Envelope(workspace_low=(-2.0, -2.0, -2.0), workspace_high=(2.0, 2.0, 2.0))
X = np.array([0.1, 0, 0, 0, 0, 0])
DT = 0.01
TURNED = fake_robot.HOME + np.array([1.2, 0, 0, 0, 0, 0, 0])  # outside of the box


class Rig:
    """A safe robot, the fake one inside, and a loop that ticks."""

    def __init__(self, envelope=ENVELOPE, *, armed=True, **fake):
        self.fake = FakeRobot(**fake)
        self.safe = SafeRobot(self.fake, envelope, clock=self.fake.clock)
        self.safe.connect(timeout_s=1.0)
        self.seq = 0
        if armed:
            self.safe.arm(operator="tester")

    def send(self, values=X, *, kind: Any = "twist", valid_for_s=0.375, **fields):
        self.seq += 1
        fields.setdefault("seq", self.seq)
        if "obs_seq" not in fields:
            fields["obs_seq"] = self.safe.observe(max_age_s=10.0).seq
        return self.safe.command(
            Command(kind=kind, values=values, valid_for_s=valid_for_s, **fields)
        )

    def run(self, seconds, *, dt=DT):
        for _ in range(round(seconds / dt)):
            self.safe.tick()
            self.fake.advance(dt)

    def start(self, values=X, **fields):
        ack = self.send(values, **fields)
        assert ack.accepted, ack
        self.run(0.2, dt=0.02)
        return ack

    @property
    def sent(self):
        """Velocities sent to the inner robot (n, 6 or 7)."""
        return np.array([c.values for c in self.fake.commands if c.kind != "hold"])

    @property
    def speed(self):
        return np.abs(self.fake.joint_velocities).max()


@pytest.fixture
def rig():
    return Rig()


# The states.


def test_it_is_a_robot(rig):
    assert isinstance(rig.safe, Robot)


def test_nothing_moves_before_an_operator_arms_it():
    rig = Rig(armed=False)
    assert rig.safe.state is RobotState.IDLE
    ack = rig.send()
    assert (ack.accepted, ack.reason, ack.applied) == (False, "not_armed", None)
    rig.run(0.3)
    assert not rig.fake.commands
    assert rig.safe.arm(operator="Ada") is RobotState.ARMED
    assert rig.fake.armed_by == ["Ada"]
    rig.run(0.3)
    assert not rig.fake.commands
    assert rig.send().state is RobotState.RUNNING


@pytest.mark.parametrize("act", ["arm", "recover"])
@pytest.mark.parametrize("operator", ["", "  "])
def test_an_operator_has_a_name(act, operator):
    rig = Rig(armed=False)
    if act == "recover":
        rig.fake.errors = ("reflex",)
        rig.run(0.05)
    before = rig.safe.state
    with pytest.raises(OperatorRefusedError):
        getattr(rig.safe, act)(operator=operator)
    assert rig.safe.state is before


def test_without_a_connection_there_is_nothing():
    fake = FakeRobot()
    safe = SafeRobot(fake, ENVELOPE, clock=fake.clock)
    assert safe.info.name == "fake"
    for act in (
        lambda: safe.tick(),
        lambda: safe.arm(operator="x"),
        lambda: safe.recover(operator="x"),
        lambda: safe.command(Command(1, 1, 0.1, "hold")),
        lambda: safe.observe(max_age_s=1.0),
    ):
        with pytest.raises(NotConnectedError):
            act()
    safe.stop(reason="nothing to stop")
    fake.gone = True
    with pytest.raises(NotConnectedError):
        safe.connect(timeout_s=0.1)
    assert safe.state is RobotState.DISCONNECTED


def test_a_robot_with_an_error_connects_in_fault_and_says_so():
    fake = FakeRobot()
    fake.errors = ("reflex",)
    safe = SafeRobot(fake, ENVELOPE, clock=fake.clock)
    safe.connect(timeout_s=1.0)
    assert (safe.state, safe.reason) == (RobotState.FAULT, "reflex")
    with pytest.raises(RobotError, match=r"reflex.*recover"):
        safe.arm(operator="x")
    assert safe.recover(operator="x") is RobotState.IDLE
    assert safe.arm(operator="x") is RobotState.ARMED


def test_closing_stops_and_disconnects_and_can_be_repeated(rig):
    rig.start()
    rig.safe.close()
    rig.safe.close()
    assert rig.safe.state is RobotState.DISCONNECTED
    assert "closed" in rig.fake.stops
    rig.safe.connect(timeout_s=1.0)
    assert rig.safe.state is RobotState.IDLE


def test_observations_carry_the_safe_robots_state(rig):
    assert rig.safe.observe(max_age_s=1.0).applied_seq == -1
    rig.start(seq=41)
    observation = rig.safe.observe(max_age_s=1.0)
    assert (observation.state, observation.applied_seq) == (RobotState.RUNNING, 41)
    for _ in range(5):
        rig.send(np.full(6, NAN))
    observation = rig.safe.observe(max_age_s=1.0)
    assert (observation.state, observation.errors) == (RobotState.FAULT, ("too_many_rejects",))


# What is wrong is rejected.

NAN, INF = float("nan"), float("inf")
VALUES = {
    "twist": np.zeros(6),
    "pose": np.array([0.4, 0, 0.4, 1.0, 0, 0, 0]),
    "joint_velocity": np.zeros(7),
}


def spoil(values, i, bad):
    return np.where(np.arange(len(values)) == i, bad, values)


BAD_VALUES = [
    *[
        (
            f"not_finite:values/{kind}/{i}/{bad}",
            kind,
            np.where(np.arange(len(good)) == i, bad, good),
        )
        for kind, good in VALUES.items()
        for i in range(len(good))
        for bad in (NAN, INF, -INF)
    ],
    *[
        (f"shape:values/{kind}/{shape}", kind, np.zeros(shape))
        for kind, size in (("twist", 6), ("pose", 7), ("joint_velocity", 7), ("hold", 0))
        for shape in ((size + 1,), (size, 1), (1, size), ())
    ],
    *[
        (f"dtype:values/{dtype}", "twist", np.zeros(6, dtype))
        for dtype in (int, bool, complex, object, "U3", np.float16)
    ],
    *[(f"type:values/{v!r}", "twist", v) for v in ([0.0] * 6, (0.0,) * 6, None, "000000", 0.0)],
    ("not_unit:values/zero", "pose", np.array([0.4, 0, 0.4, 0, 0, 0, 0])),
    ("not_unit:values/double", "pose", np.array([0.4, 0, 0.4, 2.0, 0, 0, 0])),
    ("out_of_range:values/huge", "twist", np.full(6, 1e300)),
    *[(f"unknown_kind/{k!r}", k, np.zeros(6)) for k in ("delta", "", None, 3, b"twist", ["twist"])],
]
BAD_FIELDS = [
    *[("type:seq", {"seq": v}) for v in (1.0, "1", None, NAN, True)],
    *[("type:obs_seq", {"obs_seq": v}) for v in (1.0, "1", None, NAN, True)],
    *[("type:valid_for_s", {"valid_for_s": v}) for v in ("0.3", None, 1j, True)],
    *[("not_finite:valid_for_s", {"valid_for_s": v}) for v in (NAN, INF, -INF)],
    *[("expired", {"valid_for_s": v}) for v in (0, 0.0, -1.0)],
    *[("valid_too_long", {"valid_for_s": v}) for v in (0.501, 1, 1e9)],
    *[("type:gripper", {"gripper": v}) for v in ("1", [1.0], 1j, True, np.zeros(1))],
    *[("not_finite:gripper", {"gripper": v}) for v in (NAN, INF, -INF)],
    *[("out_of_range:gripper", {"gripper": v}) for v in (-0.01, 1.01, 255)],
    ("obs_unknown", {"obs_seq": 10**9}),
    ("obs_unknown", {"obs_seq": -1}),
    *[("seq_old", {"seq": v}) for v in (0, 1, -5)],
]


@pytest.fixture(scope="module")
def shared_rig():
    return Rig()


def check_rejected(rig, reason, command):
    """The command is refused by name, nothing of it is done, and the arm comes to rest."""
    rig.safe.close()
    rig.safe.connect(timeout_s=1.0)
    rig.safe.arm(operator="tester")
    rig.seq = 0
    rig.start(np.array([0, 0.01, 0, 0, 0, 0]))
    before = rig.safe.counters[f"rejected:{reason}"]
    ack = rig.safe.command(command)
    assert (ack.accepted, ack.applied, ack.reason) == (False, None, reason)
    assert rig.safe.counters[f"rejected:{reason}"] == before + 1
    goes_on = reason in ("seq_old", "obs_unknown")
    assert ack.state is (RobotState.RUNNING if goes_on else RobotState.HOLD)
    rig.run(0.05)
    assert np.abs(rig.sent[-1]).max() <= 0.01 + 1e-9
    assert rig.send(np.zeros(6), seq=1000).accepted


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(("name", "kind", "values"), BAD_VALUES, ids=[b[0] for b in BAD_VALUES])
def test_bad_values_are_rejected(shared_rig, name, kind, values):
    obs_seq = shared_rig.safe.observe(max_age_s=9.0).seq
    command = Command(seq=2, obs_seq=obs_seq, valid_for_s=0.3, kind=kind, values=values)
    check_rejected(shared_rig, name.split("/")[0], command)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(("reason", "fields"), BAD_FIELDS, ids=[f"{r}-{f}" for r, f in BAD_FIELDS])
@pytest.mark.parametrize("kind", ["twist", "hold"])
def test_bad_fields_are_rejected(shared_rig, kind, reason, fields):
    if kind == "hold" and reason == "obs_unknown":
        pytest.skip("to hold needs no plan")
    values = np.zeros(6 if kind == "twist" else 0)
    command = Command(2, shared_rig.fake._seq, 0.3, kind, values)
    check_rejected(shared_rig, reason, replace(command, **fields))


def test_an_old_or_repeated_number_neither_moves_nor_stops_anything(rig):
    rig.start(seq=7)
    before = rig.sent[-1]
    for seq in (7, 6, -1):
        ack = rig.send(-X, seq=seq)
        assert (ack.reason, ack.state) == ("seq_old", RobotState.RUNNING)
    rig.run(0.02)
    np.testing.assert_allclose(rig.sent[-1], before, atol=0.02)
    assert rig.sent[-1][0] > 0


def test_a_plan_from_an_old_observation_is_discarded_and_the_last_one_followed(rig):
    old = rig.safe.observe(max_age_s=1.0).seq
    for _ in range(4):
        rig.start()
        rig.run(0.06)
    ack = rig.send(-X, obs_seq=old)
    assert (ack.reason, ack.state) == ("obs_old", RobotState.RUNNING)


def test_five_rejects_within_two_seconds_are_a_fault_and_four_are_not(rig):
    for _ in range(4):
        rig.send(np.full(6, NAN))
    rig.run(2.1)
    for _ in range(4):
        assert rig.send(np.full(6, NAN)).state is not RobotState.FAULT
    assert rig.send(np.full(6, NAN)).state is RobotState.FAULT
    assert rig.safe.reason == "too_many_rejects"
    assert rig.fake.stops
    assert rig.send().reason == "fault"


def test_late_commands_and_commands_before_arming_are_no_offence():
    rig = Rig(armed=False)
    for _ in range(20):
        assert rig.send().reason == "not_armed"
    old = rig.safe.observe(max_age_s=1.0).seq
    rig.run(1.2)
    rig.safe.arm(operator="x")
    for _ in range(20):
        assert rig.send(obs_seq=old).reason == "obs_old"
    assert rig.safe.state is RobotState.ARMED


def test_a_pose_out_of_reach_is_rejected():
    rig = Rig(EVERYWHERE, joints=[0, 0.6, 0, -0.6, 0, 2.0, 0.8])  # nearly stretched out
    pose = rig.fake.pose
    target = np.append(pose[:3, 3] + [0.3, 0, 0.3], matrix_to_quat_xyzw(pose[:3, :3]))
    reasons = set()
    for _ in range(40):
        ack = rig.send(target, kind="pose", valid_for_s=0.5)
        reasons.add(ack.reason)
        if rig.safe.state is RobotState.FAULT:
            break
        rig.run(0.3)
    assert "unreachable" in reasons


# What is only fast is clamped.


@pytest.mark.parametrize("envelope", [ENVELOPE, first_run(tuple(LOW), tuple(HIGH))])
def test_an_adversarial_planner_leaves_neither_the_box_nor_the_limits(envelope, request):
    request.getfixturevalue("without_shape_checks")
    rng = np.random.default_rng(3)
    rig = Rig(envelope, state_hz=50.0)
    joints = False
    limits = hardware_limits("panda").joints
    for _ in range(400):
        if rng.random() < 0.05:
            joints = not joints
            rig.run(0.6)
        size = 7 if joints else 6
        values = rng.normal(size=size) * 10 ** rng.uniform(-2, 5)
        if rng.random() < 0.5:
            values = np.sign(values) * 10.0
        kind = "joint_velocity" if joints else "twist"
        if not joints and rng.random() < 0.3:
            kind = "pose"
            turned = rotation_of_vector(rng.normal(size=3)) @ rig.fake.pose[:3, :3]
            there = rng.uniform(LOW - 0.3, HIGH + 0.3)
            if rng.random() < 0.7:
                there = rig.fake.position + rng.uniform(-0.05, 0.05, 3)
                turned = rig.fake.pose[:3, :3]
            values = np.append(there, matrix_to_quat_xyzw(turned))
        start = rig.fake.position
        life = rng.uniform(0.05, 0.5)
        ack = rig.send(values, kind=kind, valid_for_s=life)
        if rig.safe.state is RobotState.FAULT:
            assert rig.safe.reason == "too_many_rejects"
            rig.safe.recover(operator="x")
            rig.safe.arm(operator="x")
        if rng.random() < 0.05:
            rig.fake.advance(0.25)  # the loop stands still
        for _ in range(rng.integers(1, 12)):
            rig.safe.tick()
            rig.fake.advance(DT)
            assert (rig.fake.position >= LOW - 1e-4).all()
            assert (rig.fake.position <= HIGH + 1e-4).all()
            assert (rig.fake.joints > limits.low).all()
            assert (rig.fake.joints < limits.high).all()
            frames = joint_frames(rig.fake.joints)
            twist = jacobian(frames, rig.fake.position) @ rig.fake.joint_velocities
            assert np.linalg.norm(twist[:3]) <= envelope.velocity * 1.05
            assert np.linalg.norm(twist[3:]) <= envelope.angular_velocity * 1.05
        reach = envelope.step_translation + envelope.stopping_distance
        assert np.linalg.norm(rig.fake.position - start) <= reach
        assert ack.reason in (None, "unreachable", "kind_changed_in_motion", "tick_late")
    assert rig.safe.counters["accepted"] > 150
    assert rig.safe.counters["clamped:workspace_x"] > 5


def test_velocity_acceleration_and_jerk_of_what_is_sent(rig):
    rng = np.random.default_rng(0)
    for _ in range(40):
        rig.send(rng.choice([-5.0, 5.0], 6), valid_for_s=0.1)
        rig.run(0.06, dt=0.004)
    for part, v, a, j in ((slice(0, 3), 0.25, 1.0, 100.0), (slice(3, 6), 0.5, 2.0, 200.0)):
        velocity = rig.sent[:, part]
        acceleration = np.diff(velocity, axis=0, prepend=0) / 0.004
        jerk = np.diff(acceleration, axis=0, prepend=0) / 0.004
        assert np.linalg.norm(velocity, axis=1).max() <= v * (1 + 1e-9)
        assert 0.8 * a < np.linalg.norm(acceleration, axis=1).max() <= a * (1 + 1e-6)
        assert 0.5 * j < np.linalg.norm(jerk, axis=1).max() <= j * (1 + 1e-3)


def test_the_answer_says_what_is_done_and_what_was_cut(rig):
    ack = rig.send(np.array([0.5, 0, 0, 0, 0, 2.0]), valid_for_s=0.5)
    assert ack.accepted and ack.reason is None
    assert set(ack.clamped) == {
        "velocity",
        "step_translation",
        "angular_velocity",
        "step_rotation",
    }
    np.testing.assert_allclose(ack.applied.values, [0.1, 0, 0, 0, 0, 0.2], atol=1e-12)
    ack = rig.send(np.array([0.05, 0, 0, 0, 0, 0.1]), valid_for_s=0.25)
    assert ack.clamped == ()
    np.testing.assert_array_equal(ack.applied.values, [0.05, 0, 0, 0, 0, 0.1])


def test_the_path_over_the_whole_life_is_checked_not_only_where_it_starts(rig):
    for _ in range(60):
        rig.send(np.array([0, 0.2, 0, 0, 0, 0]), valid_for_s=0.25)
        rig.run(0.1)
    near = HIGH[1] - rig.fake.position[1]
    assert 0 < near < 0.02
    ack = rig.send(np.array([0.05, 0.05, 0, 0, 0, 0]), valid_for_s=0.5)
    assert "workspace_y" in ack.clamped
    x, y = ack.applied.values[:2]
    assert x == pytest.approx(0.05)  # it slides along the wall
    assert y * (0.5 + ENVELOPE.reaction_s) <= near


def test_a_pose_is_reached_smoothly_and_not_overshot(rig):
    pose = rig.fake.pose
    target = pose[:3, 3] + [0.03, -0.02, 0.01]
    turned = rotation_of_vector(np.array([0.0, 0.0, 0.08])) @ pose[:3, :3]
    way = []
    for _ in range(6):
        ack = rig.send(np.append(target, matrix_to_quat_xyzw(turned)), kind="pose")
        assert ack.clamped == ()
        for _ in range(25):
            rig.run(DT)
            way.append(np.linalg.norm(rig.fake.position - target))
    assert way[-1] < 1e-4
    assert (np.diff(way) < 1e-5).all()
    left = rotation_vector(turned @ rig.fake.pose[:3, :3].T)
    assert np.linalg.norm(left) < 1e-3


def test_a_pose_far_away_or_outside_is_brought_near_and_inside(rig):
    pose = rig.fake.pose
    quat = matrix_to_quat_xyzw(rotation_of_vector(np.array([0, 0, 1.0])) @ pose[:3, :3])
    ack = rig.send(np.append(pose[:3, 3] + [0.5, 0, 0], quat), kind="pose")
    applied = ack.applied.values
    np.testing.assert_allclose(applied[:3] - pose[:3, 3], [0.05, 0, 0], atol=1e-9)
    turn = rotation_vector(quat_xyzw_to_matrix(applied[3:]) @ pose[:3, :3].T)
    np.testing.assert_allclose(turn, [0, 0, 0.1], atol=1e-9)
    assert set(ack.clamped) >= {"step_translation", "step_rotation"}
    inside = replace(ENVELOPE, workspace_high=(pose[0, 3] + 0.01, 0.3, 0.6))
    rig = Rig(inside)
    ack = rig.send(
        np.append(pose[:3, 3] + [0.03, 0, 0], matrix_to_quat_xyzw(pose[:3, :3])), kind="pose"
    )
    assert ack.clamped == ("workspace_x",)
    assert ack.applied is not None
    assert ack.applied.values[0] == pytest.approx(pose[0, 3] + 0.01)


# It stops when unsure.


def test_an_expired_command_stops_the_arm_though_nobody_says_anything(rig):
    rig.send(valid_for_s=0.3)
    start = rig.fake.position
    rig.run(0.3)
    assert rig.safe.state is RobotState.RUNNING
    assert rig.speed > 0
    rig.run(1.0)
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, "expired")
    assert rig.safe.observe(max_age_s=1.0).reason == "expired"
    assert rig.speed == 0
    assert rig.fake.commands[-1].kind == "hold"
    way = np.linalg.norm(rig.fake.position - start)
    assert way <= 0.1 * 0.3 + 0.1**2 / 2 + 0.1 * 0.05
    count = len(rig.fake.commands)
    rig.run(0.5)
    assert len(rig.fake.commands) == count  # it is told once
    assert rig.send().state is RobotState.RUNNING
    rig.run(0.2)
    assert rig.speed > 0


def test_a_loop_that_stands_still_stops_the_arm(rig):
    rig.start()
    start = rig.fake.position
    for _ in range(100):
        rig.fake.advance(DT)
    assert rig.speed == 0
    assert np.linalg.norm(rig.fake.position - start) <= 0.1 * (ENVELOPE.tick_timeout_s + 0.05)
    rig.safe.tick()
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, "tick_late")
    assert rig.safe.counters["late_ticks"] == 1
    rig.run(0.1)
    assert rig.speed == 0


def test_time_without_ticks_is_no_time_to_gain_speed_in(rig):
    rig.fake.advance(5.0)
    assert rig.send().accepted
    rig.safe.tick()
    assert np.abs(rig.sent[-1]).max() == 0
    rig.fake.advance(DT)
    rig.safe.tick()
    assert 0 < np.abs(rig.sent[-1]).max() <= ENVELOPE.acceleration * DT


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda fake: fake.frozen.add("exterior"), "camera_stale:exterior"),
        (lambda fake: fake.repeating.add("exterior"), "camera_frozen:exterior"),
        (lambda fake: fake.lost.add("exterior"), "camera_stale:exterior"),
        (lambda fake: setattr(fake, "state_frozen", True), "state_stale"),
        (lambda fake: setattr(fake, "clock_stopped", True), "state_stale"),
        *[
            (lambda fake, name=name: setattr(fake, "spoiled", name), f"not_finite:{name}")
            for name in (
                "tcp_pos_base",
                "tcp_rotation_base",
                "joint_positions",
                "joint_velocities",
                "gripper",
                "gripper_width_m",
                "state_at",
            )
        ],
    ],
)
def test_a_sensor_that_cannot_be_trusted_holds_the_arm_until_it_can(rig, fault, reason):
    rig.start()
    fault(rig.fake)
    for _ in range(30):
        rig.send()
        rig.run(DT)
        if rig.safe.state is RobotState.HOLD:
            break
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, reason)
    refused = rig.send()
    assert (refused.accepted, refused.reason) == (False, reason)
    rig.run(0.4)
    assert rig.speed == 0
    for _ in range(8):  # a planner that goes on asking commits no offence
        rig.send()
    assert rig.safe.state is RobotState.HOLD
    assert rig.safe.counters[f"hold:{reason}"] == 1
    fake = rig.fake
    fake.frozen, fake.repeating, fake.lost = set(), set(), set()
    fake.state_frozen = fake.clock_stopped = False
    fake.spoiled = None
    if reason.startswith("camera_frozen"):
        fake.joints = fake.joints + 1e-9  # a living camera never shows the same twice
    rig.run(0.1)
    assert rig.safe.state is RobotState.HOLD  # it does not move by itself
    assert rig.send().state is RobotState.RUNNING


def test_a_frozen_camera_is_not_suspected_while_nothing_moves(rig):
    rig.fake.repeating.add("exterior")
    for _ in range(20):
        assert rig.send(np.zeros(6)).accepted
        rig.run(0.1)
    assert rig.safe.state is RobotState.RUNNING


def test_an_optional_camera_can_be_lost_and_a_needed_one_not():
    rig = Rig(cameras=["exterior"], optional=["wrist"])
    rig.fake.lost.add("wrist")
    rig.start()
    assert rig.safe.state is RobotState.RUNNING
    rig.fake.lost.add("exterior")
    rig.run(0.05)
    assert rig.safe.reason == "camera_stale:exterior"


def test_a_picture_of_another_size_is_not_trusted(rig):
    rig.start()
    info = rig.fake.info.cameras["exterior"]
    rig.safe._guard._senses._watch._infos["exterior"] = replace(info, height=8)
    rig.run(0.05)
    assert rig.safe.reason == "camera_format:exterior"


def test_a_stamp_from_the_future_is_not_trusted(rig):
    rig.start()
    frame = rig.fake._pictures["exterior"]
    rig.fake._pictures["exterior"] = CameraFrame(frame.image, rig.fake.now() + 3600)
    rig.fake.frozen.add("exterior")
    rig.run(0.02)
    assert rig.safe.reason == "camera_stale:exterior"


# Something is wrong.


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda fake: setattr(fake, "errors", ("reflex",)), "reflex"),
        (lambda fake: setattr(fake, "state", RobotState.FAULT), "robot_fault"),
        (lambda fake: setattr(fake, "gone", True), "not_connected"),
        (lambda fake: setattr(fake, "wrench", np.array([0, 0, 21.0, 0, 0, 0])), "collision"),
        (lambda fake: setattr(fake, "wrench", np.array([0, 0, 0, 0, 21.0, 0])), "collision"),
        (lambda fake: setattr(fake, "joints", TURNED), "outside_workspace"),
    ],
)
def test_an_error_is_a_fault_that_only_an_operator_leaves(rig, fault, reason):
    rig.start()
    fault(rig.fake)
    rig.run(0.06)
    assert (rig.safe.state, rig.safe.reason) == (RobotState.FAULT, reason)
    assert rig.safe.counters[f"fault:{reason}"] == 1
    if reason != "not_connected":
        assert reason in rig.fake.stops
    count = len(rig.fake.commands)
    fake = rig.fake
    fake.gone, fake.wrench, fake.errors = False, None, ()
    rig.run(0.5)
    assert rig.send().reason == "fault"  # the cause is gone, the fault is not
    assert len(fake.commands) == count
    assert rig.speed == 0
    fake.joints = fake_robot.HOME.copy()
    fake.advance(DT)
    assert rig.safe.recover(operator="x") is RobotState.IDLE
    assert rig.send().reason == "not_armed"
    rig.safe.arm(operator="x")
    assert rig.send().accepted


def test_a_short_knock_is_no_collision(rig):
    rig.start()
    rig.fake.wrench = np.array([0, 0, 30.0, 0, 0, 0])
    rig.run(0.02)
    rig.fake.wrench = np.zeros(6)
    rig.run(0.02)
    assert rig.safe.state is RobotState.RUNNING


def test_recovery_while_the_cause_lasts_stays_in_fault(rig):
    rig.start()
    rig.fake.errors, rig.fake.lasting_errors = ("reflex",), True
    rig.run(0.02)
    assert rig.safe.recover(operator="x") is RobotState.FAULT
    rig.fake.lasting_errors = False
    assert rig.safe.recover(operator="x") is RobotState.IDLE


def test_a_robot_that_refuses_holds_and_if_it_goes_on_faults(rig):
    rig.start()
    rig.fake.refusing = "busy"
    rig.run(DT)
    assert (rig.safe.state, rig.safe.reason) == (RobotState.HOLD, "refused_by_robot:busy")
    rig.run(0.2)
    assert rig.safe.state is RobotState.FAULT
    assert rig.safe.counters["refused_by_robot"] == 5


def test_a_stop_that_fails_is_tried_again(rig):
    rig.start()
    rig.fake.stop_fails = True
    rig.fake.errors = ("reflex",)
    rig.run(0.05)
    assert rig.safe.counters["stop_failed"] >= 3
    assert rig.safe.recover(operator="x") is RobotState.FAULT
    rig.fake.stop_fails = False
    rig.run(0.02)
    assert rig.fake.stops
    assert rig.safe.recover(operator="x") is RobotState.IDLE


def test_a_pose_that_contradicts_the_joints_is_a_fault(rig):
    rig.start()
    measured = rig.fake._measured
    rig.fake.state_frozen = True
    rig.fake._measured = {**measured, "tcp_pos_base": measured["tcp_pos_base"] + [0, 0.03, 0]}
    rig.safe.tick()
    assert rig.safe.reason == "pose_contradicts_joints"


def test_arming_needs_a_place_inside_and_sensors_that_work():
    rig = Rig(armed=False, joints=TURNED)
    with pytest.raises(RobotError, match=r"outside of the workspace .* by hand"):
        rig.safe.arm(operator="x")
    rig = Rig(armed=False)
    rig.fake.frozen.add("exterior")
    rig.run(0.3)
    with pytest.raises(RobotError, match="camera_stale:exterior"):
        rig.safe.arm(operator="x")
    rig = Rig(armed=False)
    rig.fake._measured["tcp_pos_base"] = rig.fake.position + [0.0, 0.6, 0.0]
    with pytest.raises(RobotError, match="look at the base frame"):
        rig.safe.arm(operator="x")


# Joints and singularities.


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_joint_gets_nearer_to_its_end_than_the_margin(joint, sign, request):
    request.getfixturevalue("without_shape_checks")
    limits = hardware_limits("panda").joints
    end = limits.high[joint] if sign > 0 else limits.low[joint]
    joints = fake_robot.HOME.copy()
    joints[joint] = end - sign * 0.25
    rig = Rig(replace(EVERYWHERE, condition_slow=1e5, condition_stop=1e6), joints=joints)
    push = np.zeros(7)
    push[joint] = sign * 3.0
    speeds, names = [], set()
    for _ in range(12):
        ack = rig.send(push, kind="joint_velocity", valid_for_s=0.5)
        names |= set(ack.clamped)
        for _ in range(10):
            rig.run(0.02, dt=0.02)
            speeds.append(abs(rig.fake.joint_velocities[joint]))
            assert sign * (end - rig.fake.joints[joint]) >= ENVELOPE.joint_stop_margin
    assert f"joint_limit_{joint + 1}" in names
    assert max(speeds) <= ENVELOPE.joint_velocity * (1 + 1e-9)
    near = sign * (end - rig.fake.joints[joint])
    assert near < ENVELOPE.joint_slow_margin
    rig.send(-push, kind="joint_velocity", valid_for_s=0.5)
    rig.run(0.4)
    assert sign * (end - rig.fake.joints[joint]) > near + 0.01  # the way back is free


def test_a_joint_that_drifts_beyond_its_margin_holds_the_arm(rig):
    rig.start()
    limits = hardware_limits("panda").joints
    rig.fake.state_frozen = True
    rig.fake._measured["joint_velocities"] = np.full(7, 0.1)
    rig.safe._limits.high.setflags(write=True)
    rig.safe._limits.high[4] = rig.fake.joints[4] + 0.01
    rig.safe.tick()
    assert rig.safe.reason == "joint_limit_5"
    assert limits.high[4] == 2.8973


def test_a_singularity_is_approached_slowly_and_never_reached():
    rig = Rig(EVERYWHERE)
    away = np.array([0.2, 0, 0.1, 0, 0, 0])
    conditions, names = [], set()
    for _ in range(40):
        ack = rig.send(away, valid_for_s=0.25)
        names |= set(ack.clamped)
        rig.run(0.2, dt=0.02)
        frames = joint_frames(rig.fake.joints)
        conditions.append(np.linalg.cond(jacobian(frames, rig.fake.position)))
    assert "singularity" in names
    assert ENVELOPE.condition_slow < max(conditions) < ENVELOPE.condition_stop
    before = rig.fake.position
    for _ in range(5):
        rig.send(-away, valid_for_s=0.25)
        rig.run(0.2, dt=0.02)
    assert np.linalg.norm(rig.fake.position - before) > 0.05  # the way back is free


def test_the_kind_of_motion_changes_at_rest_only(rig):
    rig.start()
    ack = rig.send(np.full(7, 0.05), kind="joint_velocity")
    assert (ack.reason, ack.state) == ("kind_changed_in_motion", RobotState.HOLD)
    rig.run(0.5)
    assert rig.send(np.full(7, 0.05), kind="joint_velocity").accepted
    rig.run(0.1)
    assert rig.fake.commands[-1].kind == "joint_velocity"


def test_a_hold_brakes_and_is_followed_without_a_plan(rig):
    rig.start()
    assert rig.send(np.zeros(0), kind="hold", obs_seq=-1).accepted
    rig.run(0.3)
    assert rig.speed == 0


# The gripper.


def test_the_gripper_moves_at_its_speed(rig):
    ack = rig.send(np.zeros(6), gripper=1.0, valid_for_s=0.5)
    assert "gripper_speed" in ack.clamped
    rig.run(0.4)
    assert rig.fake.gripper * fake_robot.WIDTH_M == pytest.approx(0.05 * 0.4, abs=0.001)
    rig.run(0.5)
    held = rig.fake.gripper
    assert rig.safe.state is RobotState.HOLD
    assert held < 0.35  # it stops with the arm
    for _ in range(12):
        rig.send(np.zeros(6), gripper=1.0)
        rig.run(0.2)
    assert rig.fake.gripper == 1.0
    ack = rig.send(np.zeros(6), gripper=None)
    assert ack.applied is not None and ack.applied.gripper is None


def test_a_binary_gripper_has_hysteresis():
    rig = Rig(replace(ENVELOPE, binary_gripper=True))
    done = []
    for wanted in (0.5, 0.59, 0.61, 0.5, 0.41, 0.39, 0.5):
        ack = rig.send(np.zeros(6), gripper=wanted)
        assert ack.applied is not None
        done.append(ack.applied.gripper)
        rig.run(0.05)
        assert rig.fake.gripper == done[-1]
    assert done == [0, 0, 1, 1, 1, 0, 0]


# Stopping, and threads.


def test_a_velocity_that_a_stop_overtakes_is_no_reason_to_hold(rig):
    rig.start()
    command, stopper = rig.fake.command, []

    def command_after_a_stop(given):
        stopper.append(threading.Thread(target=rig.safe.stop, kwargs={"reason": "operator"}))
        stopper[0].start()
        while not rig.fake.stops:  # the arm is told; the stop waits for this tick to end
            time.sleep(0.001)
        return command(given)

    rig.fake.command = command_after_a_stop
    rig.fake.refusing = "not_armed"
    rig.safe.tick()
    stopper[0].join()
    assert (rig.safe.state, rig.safe.reason) == (RobotState.IDLE, "operator")
    assert not [name for name in rig.safe.counters if "refused_by_robot" in name]


def test_stop_disarms(rig):
    rig.start()
    rig.safe.stop(reason="operator")
    rig.safe.stop(reason="operator")
    assert (rig.safe.state, rig.safe.reason) == (RobotState.IDLE, "operator")
    assert rig.send().reason == "not_armed"
    rig.run(0.3)
    assert rig.speed == 0
    rig.safe.arm(operator="x")
    assert rig.send().accepted


def test_stop_reaches_the_arm_while_a_tick_hangs(rig):
    rig.start()
    hanging, go_on, observe = threading.Event(), threading.Event(), rig.fake.observe

    def slow(*, max_age_s):
        hanging.set()
        assert go_on.wait(30)
        return observe(max_age_s=max_age_s)

    rig.fake.observe = slow
    ticking = threading.Thread(target=rig.safe.tick)
    ticking.start()
    assert hanging.wait(30)
    stopping = threading.Thread(target=lambda: rig.safe.stop(reason="now"))
    stopping.start()
    deadline = time.monotonic() + 30
    while not rig.fake.stops and time.monotonic() < deadline:
        time.sleep(0.001)
    assert rig.fake.stops == ["now"]
    sent, command = [], rig.fake.command
    rig.fake.command = lambda given: sent.append(given) or command(given)
    go_on.set()
    ticking.join(30)
    stopping.join(30)
    assert not sent  # the tick that hung sends nothing more, whatever the arm would make of it
    assert rig.safe.state is RobotState.IDLE


def test_a_thread_ticks_by_itself_until_closed():
    fake = FakeRobot()
    safe = SafeRobot(fake, ENVELOPE, clock=fake.clock, tick_hz=200.0)
    safe.connect(timeout_s=1.0)
    deadline = time.monotonic() + 30
    while safe.counters["ticks"] < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    safe.close()
    count = safe.counters["ticks"]
    assert count >= 5
    time.sleep(0.05)
    assert safe.counters["ticks"] == count


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_stops_the_arm():
    fake = FakeRobot()
    safe = SafeRobot(fake, ENVELOPE, clock=fake.clock, tick_hz=200.0)
    safe.connect(timeout_s=1.0)

    def broken(*, max_age_s):
        raise ZeroDivisionError

    fake.observe = broken
    assert safe._thread is not None
    safe._thread.join(30)
    assert (safe.state, safe.reason) == (RobotState.FAULT, "tick_thread_ended")
    assert fake.stops == ["tick_thread_ended"]
    safe.close()


def test_a_thread_that_ticks_too_rarely_is_refused():
    with pytest.raises(ValueError, match="tick_hz must be at least 20"):
        SafeRobot(FakeRobot(), ENVELOPE, tick_hz=10.0)


@pytest.mark.parametrize("arm", ["panda", "fr3", "unknown"])
def test_an_envelope_above_the_hardware_is_refused(arm):
    with pytest.raises(ValueError, match=r"^velocity must be at most"):
        SafeRobot(FakeRobot(arm=arm), replace(ENVELOPE, velocity=3.1))


def test_the_joint_limits_are_those_of_the_arm_and_of_the_robot():
    fake = FakeRobot(arm="fr3")
    tighter = replace(fake.info.joint_limits, high=np.full(7, 1.0))
    fake.info = replace(fake.info, joint_limits=tighter)
    limits = SafeRobot(fake, ENVELOPE).info.joint_limits
    np.testing.assert_array_equal(limits.high, np.minimum(1.0, hardware_limits("fr3").joints.high))


def test_what_can_move_is_what_an_operator_armed():
    assert RobotState.IDLE not in MOVABLE
    assert RobotState.FAULT not in MOVABLE
