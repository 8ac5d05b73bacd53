"""What a robot server does with whoever connects; questions are asked by hand."""

import contextlib
import http.client
import importlib.util
import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from worldmodel.envs.robots.access import ConnectRate
from worldmodel.envs.robots.interface import CameraInfo, RobotState
from worldmodel.envs.robots.protocol import read_reply
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.envs.robots.service import RobotService
from worldmodel.envs.robots.wire import pack, unpack

_spec = importlib.util.spec_from_file_location("network", Path(__file__).with_name("network.py"))
assert _spec is not None and _spec.loader is not None
network = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(network)
FakeRobot, Rig = network.fake_robot.FakeRobot, network.Rig
TIMEOUT_S, TOKEN, X = network.TIMEOUT_S, network.TOKEN, network.X
serving, calling, eventually = network.serving, network.calling, network.eventually
PLACES = ["/control", "/observe", "/stop"]


@pytest.fixture
def rig():
    return Rig()


@contextlib.contextmanager
def armed(rig, **settings):
    """A server, its controller, armed, and an observer."""
    with (
        serving(rig.safe, **settings) as (server, port),
        calling(port, "/control") as control,
        calling(port, "/observe") as observer,
    ):
        assert control.ask("arm", operator="Ada").state is RobotState.ARMED
        yield server, port, control, observer


def refused(port, path, **options):
    """The status with which an upgrade is refused."""
    with pytest.raises(InvalidStatus) as caught, calling(port, path, **options):
        pass
    return caught.value.response.status_code


def is_lost(caller):
    with pytest.raises(ConnectionClosed) as caught:
        caller.socket.recv(TIMEOUT_S)
    return caught.value.rcvd.code if caught.value.rcvd else None


# Who may come in.


def test_the_server_says_what_it_serves(rig):
    with serving(rig.safe) as (_, port):
        sessions = []
        for place in PLACES:
            with calling(port, place) as caller:
                assert caller.greeting.info.name == "fake"
                assert vars(caller.greeting.envelope) == vars(network.ENVELOPE)
                assert caller.greeting.last_seq == -1
                sessions.append(caller.greeting.session)
        assert len(sessions[0]) == 32 and sessions[1:] == [None, None]


@pytest.mark.parametrize("place", PLACES)
def test_only_those_with_the_token_come_in(rig, place):
    with serving(rig.safe, token=TOKEN) as (_, port):
        assert refused(port, place) == 401
        assert refused(port, place, token=TOKEN[:-1]) == 401
        with calling(port, place, token=TOKEN):
            pass


def test_health_needs_no_token_and_tells_nothing(rig):
    with serving(rig.safe, token=TOKEN) as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"OK\n")
        connection.close()


def test_there_are_three_places_and_no_browsers(rig):
    with serving(rig.safe) as (_, port):
        assert refused(port, "/") == 404
        assert refused(port, "/control/x") == 404
        assert refused(port, "/control", origin="http://127.0.0.1") == 403


def test_one_controls_and_others_look_on(rig):
    with armed(rig) as (_, port, control, observer):
        assert refused(port, "/control") == 409
        assert refused(port, "/control", session="0" * 32) == 409
        with calling(port, "/observe") as other:
            assert other.observe()["state"] == "armed"
        assert control.command(0, observer.observe()["seq"]).answer["accepted"]
    with serving(rig.safe) as (_, port):
        with calling(port, "/control"):
            pass
        eventually(lambda: free(port), what="a free robot")


def free(port):
    try:
        with calling(port, "/control"):
            return True
    except InvalidStatus:
        return False


def test_only_so_many_may_look_on(rig):
    with serving(rig.safe, max_observers=2) as (_, port):
        with calling(port, "/observe"), calling(port, "/observe"):
            assert refused(port, "/observe") == 503
            with calling(port, "/control"), calling(port, "/stop"):
                pass


def test_a_storm_of_connections_is_held_back_but_no_stop(rig):
    with serving(rig.safe, rate=ConnectRate(at_once=2, per_s=1e-6)) as (_, port):
        for _ in range(2):
            with calling(port, "/observe"):
                pass
        assert refused(port, "/observe") == 429
        for _ in range(4):
            with calling(port, "/stop") as caller:
                assert caller.ask("stop", reason="now").error is None
        assert rig.fake.stops == ["now"] * 8  # each at once, and again behind the lock


def test_the_token_is_not_logged(rig, caplog):
    with caplog.at_level(logging.DEBUG), serving(rig.safe, token=TOKEN) as (_, port):
        logging.getLogger("websockets.client").setLevel(logging.INFO)  # that is the other side
        refused(port, "/control", token=TOKEN + "x")
        with calling(port, "/control", token=TOKEN):
            pass
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "settings, simulated, message",
    [
        ({"token": None}, True, "give a token"),
        ({"token": TOKEN}, False, "the arm is a physical one: give tls_certificate"),
    ],
)
def test_others_are_not_let_near_an_arm(rig, settings, simulated, message):
    import asyncio
    from dataclasses import replace

    from worldmodel.envs.robots.server import RobotServer

    rig.fake.info = replace(rig.fake.info, simulated=simulated)
    server = RobotServer(rig.safe, recorder=None, **settings)

    async def run():
        stop = asyncio.Event()
        stop.set()
        await server.run(host="0.0.0.0", port=0, tls=None, stop=stop, ready=print)

    with pytest.raises(ValueError, match=message):
        asyncio.run(run())
    assert rig.fake.state is RobotState.DISCONNECTED


def test_pictures_that_fit_no_message_are_refused_at_once(rig):
    from dataclasses import replace

    from worldmodel.envs.robots.server import RobotServer

    rig.fake.info = replace(rig.fake.info, cameras={"exterior": CameraInfo(2160, 3840, 30.0)})
    with pytest.raises(ValueError, match="make them smaller"):
        RobotServer(rig.safe, token=None, recorder=None)


# What is asked.


def test_an_observation_is_that_of_the_robot(rig):
    with serving(rig.safe) as (_, port), calling(port, "/observe") as observer:
        answer = observer.observe()
        expected = rig.fake.observe(max_age_s=1.0)
        assert np.array_equal(
            answer["frames"]["exterior"]["image"], expected.frames["exterior"].image
        )
        assert np.array_equal(answer["joint_positions"], expected.joint_positions)
        assert answer["state"] == "idle"
        reply = observer.ask("sync")
        assert reply.robot_now == rig.fake.now() and reply.received_at <= reply.sent_at


def test_a_command_moves_the_arm_until_it_expires(rig):
    with armed(rig) as (_, _, control, observer):
        start = rig.fake.position.copy()
        reply = control.command(0, observer.observe()["seq"], values=X)
        assert reply.answer["accepted"] and reply.state is RobotState.RUNNING
        rig.run(2.0)
        assert 0.005 < rig.fake.position[0] - start[0] < 0.1
        assert rig.safe.state is RobotState.HOLD and rig.safe.reason == "expired"


def test_numbers_of_commands_only_grow(rig):
    with armed(rig) as (_, port, control, observer):
        seq = observer.observe()["seq"]
        assert control.command(5, seq).answer["accepted"]
        for old in (5, 4, -1):
            answer = control.command(old, seq).answer
            assert (answer["accepted"], answer["reason"]) == (False, "seq_old")
        assert control.command(6, seq).answer["accepted"]
        session = control.greeting.session
        with calling(port, "/control", session=session) as again:
            assert again.greeting.last_seq == 6
            assert again.command(6, seq).answer["reason"] == "seq_old"


def test_a_command_is_planned_from_what_was_seen_lately(rig):
    with armed(rig) as (_, _, control, observer):
        seq = observer.observe()["seq"]
        assert control.command(0, seq + 1).answer["reason"] == "obs_unknown"
        rig.run(1.2)
        assert control.command(1, seq).answer["reason"] == "obs_old"


@pytest.mark.parametrize("delay_s", [0.4, 3.0, 1e9])
def test_a_command_that_comes_late_is_not_done(rig, delay_s):
    with armed(rig) as (server, _, control, observer):
        answer = control.command(0, observer.observe()["seq"], delay_s=delay_s).answer
        assert (answer["accepted"], answer["reason"]) == (False, "late")
        rig.run(0.5)
        assert rig.moves == 0 and rig.safe.state is RobotState.ARMED
        assert server.counters["late"] == 1


@pytest.mark.parametrize("delay_s, longest", [(0.2, 0.2), (0.0, 0.4), (-5.0, 0.4), (-1e9, 0.4)])
def test_a_command_is_valid_for_what_is_left_and_never_longer(rig, delay_s, longest):
    with armed(rig) as (_, _, control, observer):
        answer = control.command(0, observer.observe()["seq"], delay_s=delay_s).answer
        if answer["reason"] == "late":
            pytest.skip("this machine stood still for a moment")
        assert 0 < answer["applied"]["valid_for_s"] <= longest
        rig.run(longest + 0.02)
        assert rig.safe.state is RobotState.HOLD


@pytest.mark.parametrize("place", ["/observe", "/stop"])
def test_who_does_not_control_cannot_command(rig, place):
    with armed(rig) as (_, port, _, observer), calling(port, place) as other:
        seq = observer.observe()["seq"]
        reply = other.command(0, seq)
        assert reply.error == "bad_request"
        assert is_lost(other) == 1008
        rig.run(0.2)
        assert rig.moves == 0


def test_acts_of_an_operator_need_a_name_and_a_good_reason(rig):
    with serving(rig.safe) as (_, port), calling(port, "/control") as control:
        assert control.ask("arm", operator=" ").error == "operator_refused"
        rig.fake.errors = ("reflex",)
        assert control.ask("arm", operator="Ada").error == "refused"
        assert control.ask("sync").state is RobotState.FAULT
        reply = control.ask("recover", operator="Ada")
        assert reply.answer == {"state": "idle"} and reply.state is RobotState.IDLE


def test_what_is_stale_is_named(rig):
    rig.fake.frozen.add("exterior")
    with serving(rig.safe) as (_, port), calling(port, "/observe") as observer:
        rig.fake.advance(1.0)
        rig.fake.state_frozen = True
        rig.fake.advance(0.5)
        reply = observer.ask("observe", max_age_s=0.2)
        assert reply.error == "stale" and reply.detail["sensor"] == "state"
        assert reply.detail["age_s"] == pytest.approx(0.5)
        assert observer.observe()["state"] == "idle"  # it is asked again


def test_no_word_of_an_error_of_our_own_is_told(rig, caplog):
    with serving(rig.safe) as (_, port), calling(port, "/observe") as observer:
        rig.fake.observe = lambda **_: 1 / 0
        reply = observer.ask("observe", max_age_s=1.0)
        assert (reply.error, reply.detail) == ("internal_error", {"text": "see the server's log"})
        assert is_lost(observer) == 1008
        with calling(port, "/observe") as other:
            assert other.ask("sync").error is None
    assert "division by zero" in caplog.text


# Stops.


def test_a_stop_needs_no_session_and_disarms(rig):
    with armed(rig) as (_, port, control, observer), calling(port, "/stop") as stopper:
        assert control.command(0, observer.observe()["seq"]).answer["accepted"]
        rig.run(0.1)
        reply = stopper.ask("stop", reason="operator")
        assert reply.state is RobotState.IDLE and reply.reason == "operator"
        assert "operator" in rig.fake.stops
        assert control.command(1, observer.observe()["seq"]).answer["reason"] == "not_armed"


class SlowRobot(FakeRobot):
    """Whose measurements can be held up."""

    def __init__(self):
        super().__init__()
        self.go, self.waiting = threading.Event(), threading.Semaphore(0)
        self.go.set()

    def observe(self, *, max_age_s):
        if not self.go.is_set():
            self.waiting.release()
            assert self.go.wait(TIMEOUT_S)
        return super().observe(max_age_s=max_age_s)


def test_a_stop_waits_for_nothing():
    rig = Rig(SlowRobot())
    with armed(rig) as (_, port, control, observer), calling(port, "/stop") as stopper:
        seq = observer.observe()["seq"]
        rig.fake.go.clear()
        message = {"seq": 0, "obs_seq": seq, "valid_for_s": 0.4, "kind": "twist", "values": X}
        given = {"command": message | {"gripper": None}, "sent_at": time.monotonic() + 1e6}
        control.send("command", given)  # holds the robot's lock, and does not come back
        assert rig.fake.waiting.acquire(timeout=TIMEOUT_S)
        stopper.send("stop", {"reason": "now"})
        eventually(lambda: rig.fake.stops == ["now"], what="the stop")
        rig.fake.go.set()
        assert stopper.hear().state is RobotState.IDLE
        control.hear()
        rig.run(0.3)
        assert rig.moves == 0


# Controllers that are lost.


def test_a_controller_that_is_silent_is_lost_and_later_the_arm_is_disarmed(rig):
    with armed(rig, silence_s=0.3, rearm_after_s=1.0) as (server, _, control, observer):
        assert control.command(0, observer.observe()["seq"]).answer["accepted"]
        is_lost(control)
        assert server.counters["lost"] == 1
        assert rig.safe.state is RobotState.RUNNING  # its command expires by itself
        eventually(lambda: rig.safe.state is RobotState.IDLE, what="disarming")
        assert rig.safe.reason == "controller_lost"


def test_a_controller_that_is_heard_is_kept(rig):
    with armed(rig, silence_s=0.8, rearm_after_s=1.0) as (server, _, control, _):
        for _ in range(12):
            time.sleep(0.1)
            control.ask("sync")
        assert rig.safe.state is RobotState.ARMED
        assert not server.counters["lost"]


@pytest.mark.parametrize("closed", [True, False])
def test_who_comes_back_soon_has_the_arm_as_it_was(rig, closed):
    with armed(rig) as (_, port, control, observer):
        if closed:
            control.socket.socket.close()  # without a word, as when it is killed
        first = control.greeting.session
        with calling(port, "/control", session=first) as again:
            assert again.greeting.session not in (None, first)
            assert again.command(0, observer.observe()["seq"]).answer["accepted"]
            if not closed:
                is_lost(control)
            assert again.ask("sync").error is None


def test_who_is_cut_off_again_before_the_greeting_has_the_arm_as_it_was(rig):
    with armed(rig) as (server, port, control, observer):
        first = control.greeting.session
        for count in range(2, 5):
            with calling(port, "/control", session=first) as unheard:
                unheard.socket.socket.close()
            eventually(lambda n=count: server.counters["sessions"] == n, what="taking it over")
        with calling(port, "/control", session=first) as again:
            assert again.command(0, observer.observe()["seq"]).answer["accepted"]
            assert not free(port) and refused(port, "/control", session=first) == 409


def test_who_comes_back_late_finds_it_disarmed(rig):
    with armed(rig, silence_s=0.2, rearm_after_s=0.4) as (_, port, control, observer):
        is_lost(control)
        time.sleep(0.4)
        with calling(port, "/control", session=control.greeting.session) as again:
            reply = again.command(0, observer.observe()["seq"])
            assert reply.answer["reason"] == "not_armed"
            assert again.ask("arm", operator="Ada").state is RobotState.ARMED


def test_somebody_else_finds_it_disarmed(rig):
    with armed(rig) as (_, port, control, observer):
        control.socket.socket.close()
        eventually(lambda: observer.ask("sync").error is None and free(port), what="a free robot")
        assert rig.safe.state is RobotState.IDLE and rig.safe.reason == "controller_changed"


def test_who_leaves_in_good_order_disarms_it(rig):
    with armed(rig) as (_, _, control, _):
        control.socket.close()
        eventually(lambda: rig.safe.state is RobotState.IDLE, what="disarming")
        assert rig.safe.reason == "controller_left"


def test_a_command_of_a_session_that_is_over_is_not_done():
    rig = Rig(SlowRobot())
    with armed(rig) as (_, port, control, observer):
        seq = observer.observe()["seq"]
        rig.fake.go.clear()
        message = {"seq": 0, "obs_seq": seq, "valid_for_s": 0.4, "kind": "twist", "values": X}
        given = {"command": message | {"gripper": None}, "sent_at": time.monotonic() + 1e6}
        for number in range(3):  # the first is held up, the others wait behind it
            given["command"]["seq"] = number
            control.send("command", given)
        assert rig.fake.waiting.acquire(timeout=TIMEOUT_S)
        with calling(port, "/control", session=control.greeting.session) as again:
            rig.fake.go.set()
            eventually(lambda: again.ask("sync").error is None)
            assert again.ask("sync").state is RobotState.RUNNING
        assert rig.safe.counters["accepted"] <= 1


@pytest.mark.parametrize("held", [False, True])
def test_a_command_whose_session_ended_while_it_waited_is_not_done(rig, held):
    service = RobotService(rig.safe, recorder=None)
    rig.safe.connect(timeout_s=1.0)
    rig.safe.arm(operator="Ada")
    message = {"seq": 0, "obs_seq": rig.safe.observe(max_age_s=1.0).seq, "valid_for_s": 0.4}
    message |= {"kind": "twist", "values": X, "gripper": None}
    given = {"command": message, "sent_at": time.monotonic() + 1e6}
    frame = pack({"id": 1, "ask": "command", "given": given})
    packed, goes_on = service.reply(frame, service.controlling(lambda: held), time.monotonic())
    assert goes_on
    assert read_reply(unpack(packed)).error == (None if held else "not_connected")
    assert rig.safe.counters["accepted"] == held


# What is no request.

HOSTILE = {
    "no msgpack": (b"\xc1", "malformed"),
    "nothing": (b"", "malformed"),
    "text": ("hello", "bad_request"),
    "a list": (pack([1]), "bad_request"),
    "an empty map": (pack({}), "bad_request"),
    "more keys": (pack({"id": 1, "ask": "sync", "given": {}, "more": 1}), "bad_request"),
    "an unknown question": (pack({"id": 1, "ask": "shutdown", "given": {}}), "bad_request"),
    "a number of text": (pack({"id": "1", "ask": "sync", "given": {}}), "bad_request"),
    "a command of nothing": (pack({"id": 1, "ask": "command", "given": {}}), "bad_request"),
    "an operator of numbers": (
        pack({"id": 1, "ask": "arm", "given": {"operator": 7}}),
        "bad_request",
    ),
    "an endless name": (
        pack({"id": 1, "ask": "arm", "given": {"operator": "x" * 300}}),
        "bad_request",
    ),
    "object array": (
        b"\x81\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08AAAAAAAA"
        b"\xc4\x05dtype\xa2|O\xc4\x05shape\x91\x01",
        "bad_dtype",
    ),
    "negative shape": (
        b"\x81\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08AAAAAAAA"
        b"\xc4\x05dtype\xa3<f8\xc4\x05shape\x91\xff",
        "bad_shape",
    ),
    "deep": (b"\x81\xa1x" * 200 + b"\xc0", "too_large"),
}


@pytest.mark.parametrize("frame, code", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_request_is_refused_and_the_arm_is_left_alone(rig, frame, code):
    with armed(rig) as (server, port, control, _):
        control.socket.send(frame)
        reply = control.hear()
        assert (reply.error, reply.answer) == (code, None)
        assert is_lost(control) == 1008
        assert server.counters[f"refused:{code}"] == 1
        with calling(port, "/control", session=control.greeting.session) as again:
            assert again.ask("sync").state is RobotState.ARMED
        rig.run(0.3)
        assert rig.moves == 0


@pytest.mark.parametrize("place", PLACES)
def test_a_message_too_large_is_not_even_read(rig, place):
    with serving(rig.safe) as (_, port):
        with calling(port, place) as caller:
            with contextlib.suppress(ConnectionClosed):
                caller.socket.send(bytes(100_000))
            assert is_lost(caller) in (1009, None)
        with calling(port, "/observe") as other:
            assert other.ask("sync").error is None


NUMBERS = {
    "not a number": {"values": np.full(6, np.nan)},
    "too far": {"values": np.full(6, 1e300)},
    "too few": {"values": np.zeros(5)},
    "whole numbers": {"values": np.zeros(6, np.int64)},
    "another kind": {"kind": "torque"},
    "no life": {"valid_for_s": 0.0},
    "a long life": {"valid_for_s": 60.0},
    "an endless life": {"valid_for_s": float("inf")},
    "no life at all": {"valid_for_s": float("nan")},
    "a gripper beyond": {"gripper": 2.0},
}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("changes", NUMBERS.values(), ids=NUMBERS)
def test_a_wrong_command_is_for_the_robot_to_refuse(rig, changes):
    with armed(rig) as (_, _, control, observer):
        reply = control.command(0, observer.observe()["seq"], **changes)
        assert reply.error is None and not reply.answer["accepted"]
        assert reply.answer["reason"] and reply.answer["applied"] is None
        rig.run(0.3)
        assert rig.moves == 0


# The record.


def test_all_that_is_asked_and_answered_is_recorded(rig, tmp_path):
    recorder = FlightRecorder(
        tmp_path, settings={}, robot=rig.safe.info, clock=rig.safe.now, min_free_bytes=0
    )
    with armed(rig, recorder=recorder) as (_, port, control, observer):
        control.command(0, observer.observe()["seq"])
        control.command(1, observer.observe()["seq"], delay_s=9.0)
        with calling(port, "/stop") as stopper:
            stopper.ask("stop", reason="enough")
    recorder.close()
    texts = [path.read_text() for path in tmp_path.rglob("events.jsonl")]
    lines = [json.loads(line) for line in "".join(texts).splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("command") == events.count("ack") == 2
    assert [line["reason"] for line in lines if line["event"] == "ack"] == [None, "late"]
    assert "stop: enough" in [line["reason"] for line in lines if line["event"] == "trip"]


def test_a_server_without_tls_is_no_place_for_tls(rig):
    with serving(rig.safe) as (_, port), pytest.raises((OSError, EOFError)):
        connect(f"wss://127.0.0.1:{port}/observe", proxy=None, open_timeout=5).close()
