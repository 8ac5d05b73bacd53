"""A robot at the other end of a network, good and bad."""

import contextlib
import importlib.util
import logging
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.server import serve as websocket_server

from worldmodel.envs.robots.access import make_certificate, pinned_tls, tls_context
from worldmodel.envs.robots.channel import Channel, RefusedError
from worldmodel.envs.robots.client import RemoteRobot, find_robot
from worldmodel.envs.robots.clock_offset import ClockOffset
from worldmodel.envs.robots.fault_proxy import FaultProxy
from worldmodel.envs.robots.interface import (
    Command,
    NotConnectedError,
    OperatorRefusedError,
    Robot,
    RobotError,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.protocol import (
    Greeting,
    Reply,
    read_request,
    write_greeting,
    write_reply,
)
from worldmodel.envs.robots.wire import pack, unpack

_spec = importlib.util.spec_from_file_location("network", Path(__file__).with_name("network.py"))
assert _spec is not None and _spec.loader is not None
network = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(network)
FakeRobot, Rig = network.fake_robot.FakeRobot, network.Rig
TIMEOUT_S, TOKEN, X = network.TIMEOUT_S, network.TOKEN, network.X
serving, calling, eventually = network.serving, network.calling, network.eventually


@pytest.fixture
def rig():
    return Rig()


@contextlib.contextmanager
def remote(port, rig, *, connected=True, **settings):
    """A remote robot, connected."""
    settings = {"token": None, "tls": None, "reply_timeout_s": 5.0} | settings
    robot = RemoteRobot(
        f"{'wss' if settings['tls'] else 'ws'}://127.0.0.1:{port}",
        info=rig.safe.info,
        envelope=rig.safe.envelope,
        **settings,
    )
    try:
        if connected:
            robot.connect(timeout_s=TIMEOUT_S)
        yield robot
    finally:
        robot.close()


@contextlib.contextmanager
def far(rig, *, reply_timeout_s=5.0, server=None, **settings):
    """A remote robot behind a bad network, and that network."""
    with (
        serving(rig.safe, **(server or {})) as (served, port),
        FaultProxy(host="127.0.0.1", port=port) as proxy,
        remote(proxy.port, rig, reply_timeout_s=reply_timeout_s, **settings) as robot,
    ):
        try:
            yield robot, proxy, served
        finally:
            proxy.clear()


def twist(seq, obs_seq, *, valid_for_s=0.4, values=X):
    return Command(seq, obs_seq, valid_for_s, "twist", values)


def look(robot):
    return robot.observe(max_age_s=60.0)


# A robot like any other.


def test_it_is_a_robot_and_says_what_it_is_before_it_is_connected(rig):
    with serving(rig.safe) as (_, port):
        robot = find_robot(f"ws://127.0.0.1:{port}/", token=None, tls=None, timeout_s=TIMEOUT_S)
        assert isinstance(robot, Robot)
        assert robot.info.cameras == rig.safe.info.cameras
        assert vars(robot.envelope) == vars(rig.safe.envelope)
        for act in (
            lambda: look(robot),
            lambda: robot.command(twist(0, 0)),
            lambda: robot.arm(operator="Ada"),
        ):
            with pytest.raises(NotConnectedError, match="connect first"):
                act()
        robot.close()  # does no harm


def test_it_is_driven_as_if_it_were_here(rig):
    with serving(rig.safe) as (_, port), remote(port, rig) as robot:
        seen, here = look(robot), rig.fake.observe(max_age_s=1.0)
        assert seen.state is RobotState.IDLE and seen.applied_seq == -1
        assert np.array_equal(seen.frames["exterior"].image, here.frames["exterior"].image)
        assert np.array_equal(seen.proprio, here.proprio)
        assert robot.command(twist(0, seen.seq)).reason == "not_armed"
        assert robot.arm(operator="Ada") is RobotState.ARMED
        for seq in range(3):
            command = twist(seq, look(robot).seq)
            ack = robot.command(command)
            assert (ack.seq, ack.accepted, ack.reason) == (seq, True, None)
            assert ack.applied is not None and ack.applied.seq == seq
            rig.run(0.1)
        assert look(robot).applied_seq == 2
        assert rig.moves > 0
        robot.stop(reason="enough")
        assert rig.safe.state is RobotState.IDLE and rig.safe.reason == "enough"
        assert robot.command(twist(9, look(robot).seq)).reason == "not_armed"
        assert robot.arm(operator="Ada") is RobotState.ARMED
        assert robot.command(twist(9, look(robot).seq)).accepted


def test_its_numbers_are_its_own_whoever_commanded_before(rig):
    with serving(rig.safe) as (_, port):
        for _ in range(2):
            with remote(port, rig) as robot:
                robot.arm(operator="Ada")
                assert robot.command(twist(0, look(robot).seq)).accepted
                assert robot.command(twist(40, look(robot).seq)).accepted
                assert robot.command(twist(40, look(robot).seq)).reason == "seq_old"
                assert look(robot).applied_seq == 40


def test_errors_are_what_they_are_there(rig):
    rig.fake.errors, rig.fake.lasting_errors = ("reflex",), True
    with serving(rig.safe) as (_, port), remote(port, rig) as robot:  # it connects all the same
        assert look(robot).state is RobotState.FAULT and look(robot).errors == ("reflex",)
        with pytest.raises(RobotError, match="recover it first"):
            robot.arm(operator="Ada")
        with pytest.raises(OperatorRefusedError):
            robot.arm(operator=" ")
        assert robot.recover(operator="Ada") is RobotState.FAULT
        rig.fake.lasting_errors = False
        assert robot.recover(operator="Ada") is RobotState.IDLE


WRONG = {
    "a number of text": ({"seq": "1"}, "type:seq"),
    "half a number": ({"seq": 1.5}, "type:seq"),
    "an endless number": ({"seq": 2**70}, "shape:values"),
    "no array": ({"values": [0.1] * 6}, "type:values"),
    "objects": ({"values": np.array([None] * 6)}, "dtype:values"),
    "a table": ({"values": np.zeros((2, 3))}, "shape:values"),
    "far too many": ({"values": np.zeros(10_000)}, "shape:values"),
    "not finite": ({"values": np.full(6, np.nan)}, "not_finite:values"),
    "whole numbers": ({"values": np.zeros(6, int)}, "dtype:values"),
    "another kind": ({"kind": "torque"}, "unknown_kind"),
    "kind of nothing": ({"kind": None}, "unknown_kind"),
    "a gripper of text": ({"gripper": "open"}, "type:gripper"),
    "a long life": ({"valid_for_s": 60}, "valid_too_long"),
}


@pytest.mark.usefixtures("without_shape_checks")
def test_a_wrong_command_is_refused_in_the_answer_and_the_connection_stays(rig):
    with serving(rig.safe) as (server, port), remote(port, rig) as robot:
        for name, (changes, reason) in WRONG.items():
            robot.arm(operator="Ada") if rig.safe.state is RobotState.IDLE else None
            ack = robot.command(replace(twist(1, look(robot).seq), **changes))
            assert (ack.accepted, ack.reason) == (False, reason), name
            assert ack.applied is None
            if rig.safe.state is RobotState.FAULT:
                robot.recover(operator="Ada")
        assert server.counters["sessions"] == 1 and rig.moves == 0


@pytest.mark.usefixtures("without_shape_checks")
def test_numbers_of_numpy_are_numbers(rig):
    with serving(rig.safe) as (_, port), remote(port, rig) as robot:
        robot.arm(operator="Ada")
        command = Command(np.int64(3), np.int64(look(robot).seq), np.float32(0.25), "twist", X, 1)  # type: ignore[arg-type]
        ack = robot.command(command)
        assert ack.accepted and ack.seq == 3


# Who may connect.


def test_nobody_there_is_said_in_time(rig):
    with serving(rig.safe) as (_, port):
        pass
    with remote(port, rig, connected=False) as robot:
        start = time.monotonic()
        with pytest.raises(NotConnectedError, match="no robot at"):
            robot.connect(timeout_s=0.5)
        assert time.monotonic() - start < TIMEOUT_S / 2
    with pytest.raises(NotConnectedError):
        find_robot(f"ws://127.0.0.1:{port}", token=None, tls=None, timeout_s=0.5)


def test_a_server_that_comes_up_later_is_waited_for(rig):
    with serving(rig.safe) as (_, port):
        pass
    with contextlib.ExitStack() as stack:

        def late():
            time.sleep(0.3)
            stack.enter_context(serving(rig.safe, port=port))

        thread = threading.Thread(target=late)
        thread.start()
        with remote(port, rig) as robot:
            thread.join()
            assert look(robot).state is RobotState.IDLE


@pytest.mark.parametrize("token", [None, TOKEN + "x"])
def test_a_wrong_token_is_said_at_once(rig, token):
    with (
        serving(rig.safe, token=TOKEN) as (_, port),
        remote(port, rig, connected=False, token=token) as robot,
    ):
        with pytest.raises(RefusedError, match="the token is wrong") as caught:
            robot.connect(timeout_s=TIMEOUT_S)
        assert caught.value.status == 401
        assert TOKEN not in str(caught.value)


def test_another_controller_is_said_at_once(rig):
    with serving(rig.safe) as (_, port), remote(port, rig) as robot:
        robot.arm(operator="Ada")
        with remote(port, rig, connected=False) as other:
            with pytest.raises(RefusedError, match="another controller has it") as caught:
                other.connect(timeout_s=TIMEOUT_S)
            assert caught.value.status == 409
            other.stop(reason="anyone may stop it")
        assert rig.safe.state is RobotState.IDLE
        robot.close()
        robot.close()
        with remote(port, rig) as other:
            assert other.arm(operator="Bea") is RobotState.ARMED


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://x", "ws://", "ws://x:1/control"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected ws://host:port"):
        find_robot(url, token=None, tls=None, timeout_s=1.0)


def test_another_robot_than_before_is_not_connected_to(rig):
    other = Rig(arm="fr3")
    with serving(rig.safe) as (_, port):
        robot = find_robot(f"ws://127.0.0.1:{port}", token=None, tls=None, timeout_s=TIMEOUT_S)
    with serving(other.safe, port=port), pytest.raises(RobotError, match="another robot"):
        robot.connect(timeout_s=TIMEOUT_S)


@pytest.fixture
def certificates(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    names = [[str(tmp_path / f"{n}.{part}") for part in ("pem", "key")] for n in ("one", "two")]
    for certificate, key in names:
        make_certificate(certificate, key)
    return names


def test_all_of_it_goes_over_tls_to_the_one_who_has_the_certificate(rig, certificates):
    (certificate, key), (other, _) = certificates
    tls = tls_context(certificate, key)
    with serving(rig.safe, tls=tls, token=TOKEN) as (_, port):
        with remote(port, rig, token=TOKEN, tls=pinned_tls(certificate)) as robot:
            robot.arm(operator="Ada")
            assert robot.command(twist(0, look(robot).seq)).accepted
            robot.stop(reason="enough")
        url = f"wss://127.0.0.1:{port}"
        with pytest.raises(NotConnectedError, match="(?i)certificate"):
            find_robot(url, token=TOKEN, tls=pinned_tls(other), timeout_s=TIMEOUT_S)
        with pytest.raises(NotConnectedError):
            find_robot(f"ws://127.0.0.1:{port}", token=TOKEN, tls=None, timeout_s=TIMEOUT_S)
        with pytest.raises(ValueError, match="needs the server's certificate"):
            find_robot(url, token=TOKEN, tls=None, timeout_s=TIMEOUT_S)
        with pytest.raises(ValueError, match="use wss"):
            find_robot(url.replace("wss", "ws"), token=None, tls=pinned_tls(other), timeout_s=1)


# Time.


class Skewed:
    """A clock that was set elsewhere and runs at another speed."""

    def __init__(self, *, ahead_s, speed=1.0):
        self._ahead_s, self._speed, self._start = ahead_s, speed, time.monotonic()

    def __call__(self):
        now = time.monotonic()
        return now + self._ahead_s + (self._speed - 1) * (now - self._start)


@pytest.mark.parametrize("ahead_s, speed", [(3600, 1.0), (-3600, 1.0), (0, 1.01), (1e9, 0.99)])
def test_what_the_clocks_say_does_not_matter(rig, ahead_s, speed):
    clock = Skewed(ahead_s=ahead_s, speed=speed)
    with serving(rig.safe) as (server, port), remote(port, rig, clock=clock) as robot:
        robot.arm(operator="Ada")
        for seq in range(5):
            seen = robot.observe(max_age_s=TIMEOUT_S / 2)
            assert abs(robot.now() - rig.fake.now()) < TIMEOUT_S / 2
            ack = robot.command(twist(seq, seen.seq))
            assert ack.accepted or ack.reason == "late"  # a machine may stand still for 0.4 s
            rig.run(0.02)
            time.sleep(0.05)
        assert server.counters["late"] < 5


def test_a_clock_that_is_set_while_it_runs_costs_a_moment_and_moves_nothing(rig):
    clock, times = Skewed(ahead_s=0.0), {"silence_s": 1000.0, "rearm_after_s": 1000.0}
    with (
        serving(rig.safe, **times) as (_, port),
        remote(port, rig, clock=clock, heartbeat_s=1000.0) as robot,
    ):
        robot.arm(operator="Ada")
        seen = look(robot)
        clock._ahead_s -= 3600.0  # all we send seems an hour old
        ack = robot.command(twist(0, seen.seq))
        assert (ack.accepted, ack.reason) == (False, "late")
        assert rig.moves == 0
        for _ in range(20):
            seen = look(robot)
        assert abs(robot.now() - rig.fake.now()) < TIMEOUT_S
        assert robot.command(twist(1, seen.seq)).accepted


def test_its_clock_follows_the_robots_and_never_goes_back(rig):
    with serving(rig.safe) as (_, port), remote(port, rig) as robot:
        before = robot.now()
        for _ in range(20):
            rig.fake.advance(0.01)
            look(robot)
            now = robot.now()
            assert now >= before
            before = now
        assert now >= rig.fake.now() - 0.01


def test_its_clock_is_the_robots_before_anything_was_seen(rig):
    """A flight recorder asks it first of all; what it said then it never goes back behind."""
    clock = Skewed(ahead_s=1e6)
    with serving(rig.safe) as (_, port), remote(port, rig, clock=clock) as robot:
        assert abs(robot.now() - rig.fake.now()) < TIMEOUT_S
        look(robot)
        assert abs(robot.now() - rig.fake.now()) < TIMEOUT_S


def test_the_time_on_the_way_counts_as_age(rig):
    with far(rig) as (robot, proxy, _):
        assert robot.observe(max_age_s=TIMEOUT_S).state is RobotState.IDLE
        proxy.delay(0.3)
        with pytest.raises(StaleObservationError) as caught:
            robot.observe(max_age_s=0.2)  # it was fresh when it left
        assert 0.2 < caught.value.age_s
        assert look(robot).state is RobotState.IDLE


def test_what_is_stale_there_is_stale_here(rig):
    with serving(rig.safe) as (_, port), remote(port, rig) as robot:
        rig.fake.state_frozen = True
        rig.fake.advance(2.0)
        with pytest.raises(StaleObservationError) as caught:
            robot.observe(max_age_s=1.0)
        assert caught.value.sensor == "state"
        assert caught.value.age_s == pytest.approx(2.0, abs=0.1)


# A bad network.


def test_a_late_answer_never_answers_the_next_question(rig):
    with far(rig, reply_timeout_s=0.4) as (robot, proxy, _):
        robot.arm(operator="Ada")
        seen, answered = look(robot), []
        for seq in range(0, 12, 2):
            proxy.delay(0.6)
            with pytest.raises(NotConnectedError):
                robot.command(twist(seq, seen.seq))
            proxy.delay(0.0)
            eventually(lambda: tells(robot), what="a connection")
            try:
                ack = robot.command(twist(seq + 1, look(robot).seq))
            except NotConnectedError:
                continue  # this machine stood still for a moment
            assert ack.seq == seq + 1
            answered.append(ack)
        assert len(answered) >= 3


def test_an_answer_to_another_question_is_none(rig):
    greeting = Greeting(rig.safe.info, rig.safe.envelope, None, -1)

    def answer(socket):
        socket.send(pack(write_greeting(greeting)))
        number = read_request(unpack(socket.recv(TIMEOUT_S, decode=False))).id
        socket.send(pack(write_reply(Reply(number - 1, 0.0, 0.0, 0.0, RobotState.IDLE, None, {}))))

    with websocket_server(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/observe"
        channel = Channel(url, token=None, tls=None, offset=ClockOffset())
        channel.open(timeout_s=TIMEOUT_S)
        with pytest.raises(NotConnectedError, match="bad_reply"):
            channel.ask("sync", {}, timeout_s=TIMEOUT_S)
        assert not channel.is_open
        server.shutdown()
        thread.join(TIMEOUT_S)


def tells(robot):
    with contextlib.suppress(NotConnectedError, StaleObservationError):
        return look(robot) is not None
    return False


def test_a_short_cut_is_waited_through(rig):
    with far(rig) as (robot, proxy, server):
        robot.arm(operator="Ada")
        seen = look(robot)
        proxy.cut(0.1)
        ack = robot.command(twist(0, seen.seq))
        assert ack.accepted or ack.reason == "late"
        assert server.counters["sessions"] == 1 and robot.reconnects == 0


def test_no_command_survives_a_cut(rig):
    times = {"rearm_after_s": 60.0}  # a slow machine connects again late
    with far(rig, reply_timeout_s=0.3, server=times) as (robot, proxy, server):
        robot.arm(operator="Ada")
        seen, first = look(robot), robot._session
        proxy.cut(1.0)
        with pytest.raises(NotConnectedError):
            robot.command(twist(0, seen.seq, valid_for_s=0.3))  # it arrives a second later
        with pytest.raises(NotConnectedError):
            robot.command(twist(1, seen.seq, valid_for_s=0.3))
        eventually(lambda: tells(robot), what="a connection")
        rig.run(0.5)
        assert rig.moves == 0 and rig.safe.counters["accepted"] == 0
        assert robot._session != first and robot.reconnects >= 1
        assert rig.safe.state is RobotState.ARMED, rig.safe.reason  # it was not long
        assert robot.command(twist(2, look(robot).seq)).accepted
        assert server.counters["sessions"] >= 2


def test_giving_up_on_an_answer_is_no_goodbye(rig):
    times = {"silence_s": 60.0, "rearm_after_s": 60.0}
    with far(rig, reply_timeout_s=0.3, heartbeat_s=60.0, server=times) as (robot, proxy, server):
        robot.arm(operator="Ada")
        seen = look(robot)
        proxy.delay(1.0)  # whatever is said arrives, and late
        with pytest.raises(NotConnectedError):
            robot.command(twist(0, seen.seq))
        time.sleep(1.5)  # the goodbye, if it were one, is there
        proxy.delay(0.0)
        eventually(lambda: tells(robot), what="a connection")
        assert rig.safe.state is RobotState.ARMED, rig.safe.reason
        robot._channels["/control"].close()  # which is one
        eventually(lambda: rig.safe.state is RobotState.IDLE, what="disarming")
        assert rig.safe.reason == "controller_left"


def test_a_cut_is_told_in_a_line_and_not_in_a_traceback(rig, caplog):
    with far(rig, reply_timeout_s=0.3, heartbeat_s=0.1) as (robot, proxy, _):
        look(robot)
        proxy.half_open()
        time.sleep(2.5)  # longer than a server may leave a ping unanswered
        eventually(lambda: tells(robot), what="a connection")
    told = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "asyncio"]
    assert told and not any(record.exc_info for record in told), told


def test_a_greeting_whose_sync_is_lost_is_remembered(rig):
    with serving(rig.safe, rearm_after_s=60.0) as (server, port), remote(port, rig) as robot:
        robot.arm(operator="Ada")
        channel = robot._channels["/control"]
        ask, lost = channel.ask, []

        def deaf(what, given, *, timeout_s):
            if len(lost) < 3:
                lost.append(what)
                channel._drop()
                raise NotConnectedError("the network is away")
            return ask(what, given, timeout_s=timeout_s)

        channel.ask = deaf
        eventually(lambda: len(lost) == 3 and tells(robot), what="a connection")
        assert rig.safe.state is RobotState.ARMED, rig.safe.reason
        assert server.counters["sessions"] >= 3


def test_after_a_long_cut_an_operator_has_to_arm_again(rig):
    times = {"silence_s": 0.3, "rearm_after_s": 0.8}
    with far(rig, reply_timeout_s=0.3, heartbeat_s=0.1, server=times) as (robot, proxy, _):
        robot.arm(operator="Ada")
        assert robot.command(twist(0, look(robot).seq)).accepted
        rig.run(0.1)
        proxy.cut(1.6)
        eventually(lambda: rig.safe.state is RobotState.IDLE, what="disarming")
        assert rig.safe.reason == "controller_lost"
        eventually(lambda: tells(robot), what="a connection")
        assert robot.command(twist(1, look(robot).seq)).reason == "not_armed"
        assert robot.arm(operator="Ada") is RobotState.ARMED
        assert robot.command(twist(2, look(robot).seq)).accepted


def test_a_connection_that_is_dead_and_looks_alive_is_replaced(rig):
    with far(rig, reply_timeout_s=0.5) as (robot, proxy, server):
        robot.arm(operator="Ada")
        proxy.half_open()
        with pytest.raises(NotConnectedError):
            robot.command(twist(0, 0))
        eventually(lambda: tells(robot), what="a connection")
        assert server.counters["sessions"] >= 2
        ack = robot.command(twist(1, look(robot).seq))
        assert ack.accepted, ack


@pytest.mark.parametrize("num_bytes", [0, 1, 40])
def test_an_answer_that_breaks_off_is_none(rig, num_bytes):
    with far(rig) as (robot, proxy, _):
        proxy.truncate(num_bytes)
        with pytest.raises(NotConnectedError):
            look(robot)
        eventually(lambda: tells(robot), what="a connection")


def test_a_slow_network_is_slow_and_nothing_else(rig):
    with far(rig) as (robot, proxy, _):
        proxy.throttle(20_000.0)
        assert look(robot).state is RobotState.IDLE
        assert robot.arm(operator="Ada") is RobotState.ARMED


def test_a_stop_that_does_not_arrive_is_said_and_nothing_is_sent_after_it(rig):
    with far(rig, reply_timeout_s=0.3) as (robot, proxy, _):
        robot.arm(operator="Ada")
        proxy.cut(2.0)
        with pytest.raises(NotConnectedError):
            robot.stop(reason="now")
        proxy.clear()
        eventually(lambda: rig.safe.state is RobotState.IDLE, what="the stop, at last")
        assert rig.safe.reason == "now"
        eventually(lambda: tells(robot), what="a connection")
        assert robot.command(twist(0, look(robot).seq)).reason == "not_armed"
        assert rig.safe.counters["accepted"] == 0


class SlowRobot(FakeRobot):
    """Whose measurements can be held up."""

    def __init__(self):
        super().__init__()
        self.go, self.waiting = threading.Event(), threading.Event()
        self.go.set()

    def observe(self, *, max_age_s):
        if not self.go.is_set():
            self.waiting.set()
        assert self.go.wait(TIMEOUT_S)
        return super().observe(max_age_s=max_age_s)


def test_a_stop_overtakes_all_else():
    rig = Rig(SlowRobot())
    with serving(rig.safe) as (_, port), remote(port, rig, reply_timeout_s=TIMEOUT_S) as robot:
        robot.arm(operator="Ada")
        seen = look(robot)
        rig.fake.go.clear()
        asking = threading.Thread(target=lambda: robot.command(twist(0, seen.seq)))
        stopping = threading.Thread(target=lambda: robot.stop(reason="now"))
        asking.start()
        assert rig.fake.waiting.wait(TIMEOUT_S)
        stopping.start()
        eventually(lambda: "now" in rig.fake.stops, what="the stop")
        assert asking.is_alive()
        rig.fake.go.set()
        asking.join(TIMEOUT_S)
        stopping.join(TIMEOUT_S)
        rig.run(0.3)
        assert rig.moves == 0 and rig.safe.state is RobotState.IDLE


def test_a_server_that_begins_anew_is_found_again_and_has_to_be_armed(rig):
    first = serving(rig.safe)
    _, port = first.__enter__()
    with remote(port, rig) as robot:
        robot.arm(operator="Ada")
        assert robot.command(twist(0, look(robot).seq)).accepted
        first.__exit__(None, None, None)
        assert rig.safe.state is RobotState.DISCONNECTED
        with pytest.raises(NotConnectedError):
            robot.command(twist(1, 0))
        anew = Rig()
        with serving(anew.safe, port=port):
            eventually(lambda: robot.reconnects == 1 and tells(robot), what="a connection")
            assert robot.command(twist(2, look(robot).seq)).reason == "not_armed"
            anew.run(0.3)
            assert anew.moves == 0
            assert robot.arm(operator="Ada") is RobotState.ARMED
            assert robot.command(twist(3, look(robot).seq)).accepted
