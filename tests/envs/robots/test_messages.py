import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.robots import messages, protocol
from worldmodel.envs.robots.interface import (
    Ack,
    CameraFrame,
    CameraInfo,
    Command,
    JointLimits,
    RobotInfo,
    RobotObservation,
    RobotState,
)
from worldmodel.envs.robots.limits import Envelope, first_run
from worldmodel.envs.robots.protocol import Greeting, Reply, Request
from worldmodel.envs.robots.wire import WireError, pack, unpack

INFO = RobotInfo(
    name="fake",
    arm="panda",
    cameras={
        "wrist": CameraInfo(4, 6, 30.0, optional=True),
        "exterior": CameraInfo(2, 2, 15.0, rendered=True),
    },
    control_hz=4.0,
    joint_limits=JointLimits(-np.arange(7.0), np.arange(7.0), np.ones(7)),
    gripper_width_m=0.08,
    tcp="fingertips",
    simulated=True,
)
ENVELOPE = first_run((0.3, -0.3, 0.05), (0.65, 0.3, 0.6))


def observation(**changes):
    fields = {
        "seq": 7,
        "frames": {"wrist": CameraFrame(np.arange(72, dtype=np.uint8).reshape(4, 6, 3), 3.25)},
        "tcp_pos_base": np.array([0.4, 0.0, 0.2]),
        "tcp_rotation_base": np.eye(3),
        "joint_positions": np.arange(7.0),
        "joint_velocities": -np.arange(7.0),
        "gripper": 0.25,
        "gripper_width_m": 0.06,
        "grasped": None,
        "wrench_base": np.arange(6.0),
        "state_at": 3.5,
        "applied_seq": -1,
        "state": RobotState.FAULT,
        "errors": ("reflex", "hand_lost"),
        "reason": "expired",
    }
    return RobotObservation(**(fields | changes))


def same(first, second):
    """Whether two of our values are equal, arrays and all."""
    if dataclasses.is_dataclass(first) or isinstance(first, CameraFrame):
        keys = ["image", "captured_at"] if isinstance(first, CameraFrame) else vars(first)
        return type(first) is type(second) and all(
            same(getattr(first, key), getattr(second, key)) for key in keys
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=True)
    return first == second or (first != first and second != second)


def over(message):
    return unpack(pack(message))


pytestmark = pytest.mark.usefixtures("without_shape_checks")
numbers = st.integers(-(2**63), 2**63 - 1)
reals = st.floats()
texts = st.text(max_size=20)
commands = st.builds(
    Command,
    seq=numbers,
    obs_seq=numbers,
    valid_for_s=reals,
    kind=st.sampled_from(["twist", "pose", "joint_velocity", "hold"]) | texts,
    values=st.lists(reals, max_size=16).map(np.array),
    gripper=st.none() | reals,
)


@settings(deadline=None)
@given(commands)
def test_a_command_arrives_as_it_was_sent_whatever_its_numbers(command):
    command = dataclasses.replace(command, values=command.values.astype(float))
    assert same(messages.read_command(over(messages.write_command(command))), command)


@settings(deadline=None)
@given(
    seq=numbers,
    accepted=st.booleans(),
    applied=st.none() | commands,
    clamped=st.lists(texts).map(tuple),
    reason=st.none() | texts,
    state=st.sampled_from(RobotState),
)
def test_an_ack_arrives_as_it_was_sent(**fields):
    ack = Ack(**fields)
    assert same(messages.read_ack(over(messages.write_ack(ack))), ack)


@pytest.mark.parametrize("grasped", [None, True, False])
@pytest.mark.parametrize("wrench", [None, np.full(6, np.nan)])
@pytest.mark.parametrize("seq", [7, np.int64(7)])
def test_an_observation_arrives_as_it_was_made(grasped, wrench, seq):
    sent = observation(grasped=grasped, wrench_base=wrench, seq=seq)
    got = messages.read_observation(over(messages.write_observation(sent)))
    assert same(got, sent)
    assert isinstance(got.state, RobotState)


def test_infos_and_envelopes_arrive():
    assert same(messages.read_info(over(messages.write_info(INFO))), INFO)
    greeting = Greeting(INFO, ENVELOPE, "abc", 12)
    assert same(protocol.read_greeting(over(protocol.write_greeting(greeting))), greeting)


@settings(deadline=None)
@given(numbers, reals.filter(math.isfinite), st.sampled_from(RobotState), st.none() | texts)
def test_requests_and_replies_arrive(number, time, state, reason):
    request = Request(number, "command", {"x": [1, {"y": None}]})
    assert protocol.read_request(over(protocol.write_request(request))) == request
    reply = Reply(number, time, time, time, state, reason, {"a": 1}, None, {})
    assert protocol.read_reply(over(protocol.write_reply(reply))) == reply


MESSAGES = {
    "request": (protocol.read_request, protocol.write_request(Request(1, "sync", {}))),
    "reply": (
        protocol.read_reply,
        protocol.write_reply(Reply(1, 0.0, 0.0, 0.0, RobotState.IDLE, None, {})),
    ),
    "greeting": (
        protocol.read_greeting,
        protocol.write_greeting(Greeting(INFO, ENVELOPE, None, -1)),
    ),
    "command": (
        messages.read_command,
        messages.write_command(Command(1, 1, 0.4, "twist", np.zeros(6))),
    ),
    "ack": (messages.read_ack, messages.write_ack(Ack(1, False, None, (), "x", RobotState.IDLE))),
    "observation": (messages.read_observation, messages.write_observation(observation())),
    "info": (messages.read_info, messages.write_info(INFO)),
    "envelope": (messages.read_envelope, messages.write_envelope(ENVELOPE)),
}
STRANGE = [None, True, 1, "x", b"x", [], {}, [1], {"x": 1}, np.zeros((2, 2), np.float32), 1.5]


def test_all_of_them_can_be_read():
    for read, message in MESSAGES.values():
        read(over(message))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_part_that_is_missing_or_unknown_is_refused(name):
    read, message = MESSAGES[name]
    for key in message:
        with pytest.raises(WireError):
            read(over({k: v for k, v in message.items() if k != key}))
    with pytest.raises(WireError):
        read(over(message | {"more": 1}))


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: repr(value)[:12])
def test_a_strange_part_is_read_or_refused_and_nothing_else(name, strange):
    read, message = MESSAGES[name]
    for key in message:
        try:
            read(over(message | {key: strange}))
        except WireError as error:
            assert error.code in ("bad_request", "bad_protocol")
    with pytest.raises(WireError):
        read(strange)


@pytest.mark.parametrize(
    "key, value",
    [
        ("seq", True),
        ("seq", 1.0),
        ("seq", np.int64(1)),
        ("valid_for_s", "0.4"),
        ("valid_for_s", True),
        ("kind", b"twist"),
        ("kind", "x" * 300),
        ("values", [0.0] * 6),
        ("values", np.zeros((2, 3))),
        ("values", np.zeros(17)),
        ("gripper", False),
        ("gripper", "open"),
    ],
)
def test_a_command_of_other_types_is_refused(key, value):
    _, message = MESSAGES["command"]
    with pytest.raises(WireError, match="bad_request"):
        messages.read_command(over(message | {key: value}))


@pytest.mark.parametrize(
    "frame",
    [
        {"image": np.zeros((4, 6), np.uint8), "captured_at": 1.0},
        {"image": np.zeros((4, 6, 3), np.int16), "captured_at": 1.0},
        {"image": np.zeros((4, 6, 4), np.uint8), "captured_at": 1.0},
        {"image": np.zeros((4, 6, 3), np.uint8)},
    ],
)
def test_a_picture_that_is_none_is_refused(frame):
    _, message = MESSAGES["observation"]
    with pytest.raises(WireError):
        messages.read_observation(over(message | {"frames": {"wrist": frame}}))


def test_another_protocol_is_named():
    _, message = MESSAGES["greeting"]
    with pytest.raises(WireError, match=r"expected worldmodel-robot/2, got 'worldmodel-robot/1'"):
        protocol.read_greeting(message | {"protocol": "worldmodel-robot/1"})


def test_an_envelope_that_allows_too_much_is_refused():
    with pytest.raises(WireError, match="collision_force"):
        messages.read_envelope(messages.write_envelope(ENVELOPE) | {"collision_force": 500.0})
    assert same(messages.read_envelope(over(messages.write_envelope(ENVELOPE))), ENVELOPE)
    assert isinstance(ENVELOPE, Envelope)


@pytest.mark.parametrize("value", [-0.1, math.nan, "1", True, None])
def test_a_duration_is_not_negative(value):
    with pytest.raises(WireError):
        messages.read_duration(value, "max_age_s")
    assert messages.read_duration(math.inf, "max_age_s") == math.inf


@pytest.mark.parametrize("value", [math.inf, math.nan, "1", True, None])
def test_a_time_is_finite(value):
    with pytest.raises(WireError):
        messages.read_time(value, "sent_at")
