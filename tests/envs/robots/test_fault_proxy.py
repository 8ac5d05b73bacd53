import contextlib
import importlib.util
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from worldmodel.envs.robots.fault_proxy import FaultProxy

_spec = importlib.util.spec_from_file_location("network", Path(__file__).with_name("network.py"))
assert _spec is not None and _spec.loader is not None
network_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(network_module)
eventually = network_module.eventually
TIMEOUT_S = 60.0


@contextlib.contextmanager
def echo():
    """A server that says again what it hears; yields its port and all that it heard."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                heard.append(data)
                connection.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def network():
    with echo() as (port, heard), FaultProxy(host="127.0.0.1", port=port) as proxy:
        yield proxy, heard


def test_it_ends_in_silence_whatever_its_connections_do(caplog):
    """asyncio logs a callback that ends badly, which a program would print at its exit."""
    with echo() as (port, heard), contextlib.ExitStack() as stack:
        with FaultProxy(host="127.0.0.1", port=port) as proxy:
            for _ in range(3):
                connection = stack.enter_context(dial(proxy))
                say(connection, b"hello")
            proxy.delay(60.0)  # it ends while bytes wait
            connection.sendall(b"and on their way")
    assert len(heard) >= 3
    assert [record.getMessage() for record in caplog.records] == []


@contextlib.contextmanager
def dial(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=TIMEOUT_S) as connection:
        yield connection


def say(connection, data):
    """What comes back, and after how long; an empty answer is the end."""
    start = time.monotonic()
    connection.sendall(data)
    return heard(connection, len(data)), time.monotonic() - start


def heard(connection, size):
    """So many bytes, or fewer when the connection ends."""
    parts = bytearray()
    while len(parts) < size and (part := connection.recv(65536)):
        parts += part
    return bytes(parts)


def test_it_changes_nothing_by_itself(network):
    proxy, _ = network
    data = bytes(range(256)) * 4000
    with dial(proxy) as first, dial(proxy) as second:
        for connection in (first, second, first):
            sender = threading.Thread(target=connection.sendall, args=(data,))
            sender.start()
            assert heard(connection, len(data)) == data
            sender.join(TIMEOUT_S)
        first.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b""  # the end is passed on, too
        assert say(second, b"x")[0] == b"x"


def test_a_delay_holds_each_way(network):
    proxy, _ = network
    with dial(proxy) as connection:
        say(connection, b"first")
        proxy.delay(0.2)
        answer, took = say(connection, b"second")
        assert answer == b"second" and took >= 0.4
        proxy.clear()
        assert say(connection, b"third")[0] == b"third"


def test_a_throttle_holds_each_way(network):
    proxy, _ = network
    with dial(proxy) as connection:
        proxy.throttle(20_000)
        assert say(connection, bytes(2000))[1] >= 0.2


def test_a_cut_holds_back_and_loses_nothing(network):
    proxy, heard = network
    with dial(proxy) as connection:
        say(connection, b"first")
        proxy.cut(3.0)
        start = time.monotonic()
        connection.sendall(b"second")
        time.sleep(0.1)
        assert heard == [b"first"]
        with dial(proxy) as other:
            assert say(other, b"other")[0] == b"other"
            assert time.monotonic() - start >= 2.9
        assert connection.recv(6) == b"second"


def test_a_drop_is_noticed_and_the_next_connection_works(network):
    proxy, _ = network
    with dial(proxy) as connection:
        say(connection, b"first")
        proxy.drop()
        assert ended(connection)
    with dial(proxy) as connection:
        assert say(connection, b"second")[0] == b"second"


def ended(connection):
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_what_is_truncated_breaks_off(network):
    proxy, heard = network
    with dial(proxy) as connection:
        say(connection, b"first")
        proxy.truncate(3)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"second")
            while connection.recv(100):
                pass
        eventually(lambda: len(heard) > 1)  # our end may come before the server's turn
        assert b"".join(heard[1:]) == b"sec"


def test_a_half_open_connection_looks_alive(network):
    proxy, heard = network
    with dial(proxy) as connection, dial(proxy) as other:
        say(connection, b"first")
        say(other, b"other")
        proxy.half_open()
        connection.sendall(b"second")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        assert b"second" not in heard
        with dial(proxy) as third:
            assert say(third, b"third")[0] == b"third"


def test_nobody_behind_it_is_an_end():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with FaultProxy(host="127.0.0.1", port=port) as proxy, dial(proxy) as connection:
        assert ended(connection)


def test_as_a_program_it_obeys_its_input():
    with echo() as (port, _):
        words = [sys.executable, "-m", "worldmodel.envs.robots.fault_proxy", "127.0.0.1", str(port)]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdin is not None and program.stdout is not None
            own = int(program.stdout.readline())
            with socket.create_connection(("127.0.0.1", own), timeout=TIMEOUT_S) as connection:
                assert say(connection, b"first")[0] == b"first"
                program.stdin.write("delay 0.1\ndrop\n")
                program.stdin.flush()
                assert ended(connection)
            program.stdin.close()
            assert program.wait(TIMEOUT_S) == 0
