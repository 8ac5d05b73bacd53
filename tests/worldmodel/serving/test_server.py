import asyncio
import http.client
import logging
import shutil
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from worldmodel.envs.robots.access import is_authorized, tls_context
from worldmodel.envs.robots.wire import MAX_MESSAGE_BYTES, pack, unpack
from worldmodel.serving.dialects import RequestError
from worldmodel.serving.server import PlannerServer

TOKEN = "correct-horse-battery"
SIX_KEYS = {
    "image_resolution",
    "needs_wrist_camera",
    "n_external_cameras",
    "needs_stereo_camera",
    "needs_session_id",
    "action_space",
}


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def refused(url: str, **options: Any) -> int:
    """The status with which an upgrade is refused."""
    with pytest.raises(InvalidStatus) as caught, connect(url, proxy=None, **options):
        pass
    return caught.value.response.status_code


def test_a_client_is_told_six_things_as_soon_as_it_connects(run_server, policy) -> None:
    with run_server(policy) as running, connect(running.url, proxy=None) as client:
        told = unpack(client.recv(60, decode=False))
    assert set(told) == SIX_KEYS
    assert told["image_resolution"] == [32, 32]
    assert told["action_space"] == "cartesian_velocity"


def test_openpi_gets_ten_rows_and_timings(run_server, policy, droid_request) -> None:
    with run_server(policy) as running, running.client() as client:
        client.send(pack(droid_request))
        first = unpack(client.recv(60, decode=False))
        client.send(pack(droid_request))
        second = unpack(client.recv(60, decode=False))
        assert running.server.num_plans == 2
    assert first["actions"].shape == second["actions"].shape == (10, 8)
    assert (first["actions"][:8] == 0.1).all() and (second["actions"][:8] == 0.2).all()
    assert (first["actions"][8:, :7] == 0).all() and (first["actions"][8:, 7] == 0.1).all()
    assert first["server_timing"].keys() == {"infer_ms"}
    assert second["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
    assert first["policy_timing"].keys() == {"infer_ms"}
    assert policy.sessions[0] is policy.sessions[1]


@pytest.mark.parametrize("style", ["map", "array"])
def test_roboarena_gets_its_rows_as_the_setting_says(
    run_server, policy, droid_request, style: str
) -> None:
    with run_server(policy, reply_style=style) as running:
        answer = running.ask(droid_request | {"endpoint": "infer"})
    actions = answer if style == "array" else answer["actions"]
    assert isinstance(actions, np.ndarray) and actions.shape == (8, 7)


def test_a_reset_is_answered_and_forgets_the_gripper(run_server, policy, droid_request) -> None:
    with run_server(policy) as running, running.client() as client:
        client.send(pack(droid_request | {"endpoint": "infer"}))
        client.recv(60)
        assert policy.sessions[0].gripper == 1.0
        client.send(pack({"endpoint": "reset", "session_id": "x"}))
        assert client.recv(60) == "reset successful"
        assert policy.sessions[0].gripper is None


def test_health_is_answered_while_a_plan_is_made(run_server, policy, droid_request) -> None:
    policy.go.clear()
    with run_server(policy) as running, running.client() as client:
        client.send(pack(droid_request))
        assert policy.entered.acquire(timeout=60)
        assert get(running.port, "/healthz") == (200, b"OK\n")
        client.ping().wait(60)
        assert policy.running == 1  # all the while
        policy.go.set()
        assert unpack(client.recv(60, decode=False))["actions"].shape == (10, 8)


def test_one_plan_is_made_at_a_time(run_server, policy, droid_request) -> None:
    policy.go.clear()
    with run_server(policy) as running:
        answers: list[Any] = []
        clients = [
            threading.Thread(target=lambda: answers.append(running.ask(droid_request)))
            for _ in range(3)
        ]
        for client in clients:
            client.start()
        assert policy.entered.acquire(timeout=60)
        assert not policy.entered.acquire(timeout=0.3)  # the others wait
        policy.go.set()
        for client in clients:
            client.join(60)
    assert policy.most_running == 1
    assert len(answers) == 3
    assert len({id(session) for session in policy.sessions}) == 3


def test_a_client_that_leaves_while_a_plan_is_made_harms_nobody(
    run_server, policy, droid_request
) -> None:
    policy.go.clear()
    with run_server(policy) as running:
        with running.client() as client:
            client.send(pack(droid_request))
            assert policy.entered.acquire(timeout=60)
            client.socket.close()
        policy.go.set()
        assert running.ask(droid_request)["actions"].shape == (10, 8)


HOSTILE = {
    "no msgpack": (b"\xc1", "malformed"),
    "object array": (
        b"\x81\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08AAAAAAAA"
        b"\xc4\x05dtype\xa2|O\xc4\x05shape\x91\x01",
        "bad_dtype",
    ),
    "a list": (pack([1]), "bad_request"),
    "an empty map": (pack({}), "bad_image"),
    "text": ("hello", "bad_request"),
    "another endpoint": (pack({"endpoint": "shutdown"}), "bad_request"),
    "endpoint of a list": (pack({"endpoint": ["infer"]}), "bad_request"),
}


@pytest.mark.parametrize("frame, code", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_request_is_refused_by_code(
    run_server, policy, droid_request, frame: bytes | str, code: str
) -> None:
    with run_server(policy) as running:
        with running.client() as client:
            client.send(frame)
            answer = client.recv(60)
            assert isinstance(answer, str) and answer.startswith(f"{code}: ")
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(60)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1011
        assert running.ask(droid_request)["actions"].shape == (10, 8)  # alive
    assert len(policy.requests) == 1


def test_a_message_too_large_is_not_even_read(run_server, policy, droid_request) -> None:
    with run_server(policy) as running:
        with running.client() as client:
            with pytest.raises(ConnectionClosed) as caught:
                client.send(bytes(MAX_MESSAGE_BYTES + 1))
                client.recv(60)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009
        assert running.ask(droid_request)["actions"].shape == (10, 8)


@pytest.mark.parametrize(
    "error, told",
    [
        (RequestError("unknown_goal", "'x'; available: y"), "unknown_goal: 'x'; available: y"),
        (RuntimeError("secret place"), "internal_error: see the server's log"),
    ],
)
def test_an_error_reaches_the_client_as_a_code_and_the_log_in_full(
    run_server, make_policy, droid_request, caplog, error: Exception, told: str
) -> None:
    with run_server(make_policy(fails_with=error)) as running, caplog.at_level(logging.INFO):
        assert running.ask(droid_request) == told
        assert get(running.port, "/healthz")[0] == 200
    assert str(error) in caplog.text


def test_only_so_many_clients_at_once(run_server, policy, droid_request) -> None:
    with run_server(policy, max_connections=2) as running:
        with running.client(), running.client():
            assert refused(running.url) == 503
            assert get(running.port, "/healthz")[0] == 200
        for _ in range(3):  # those that left make room
            assert running.ask(droid_request)["actions"].shape == (10, 8)


@pytest.mark.parametrize("scheme", ["Api-Key", "Bearer", "bearer"])
def test_a_client_with_the_token_is_let_in(run_server, policy, droid_request, scheme: str) -> None:
    with run_server(policy, token=TOKEN) as running:
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        answer = running.ask(droid_request, additional_headers=headers)
    assert answer["actions"].shape == (10, 8)


WRONG_HEADERS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "wrong": [("Authorization", "Api-Key wrong-horse-battery")],
    "part": [("Authorization", f"Api-Key {TOKEN[:-1]}")],
    "longer": [("Authorization", f"Api-Key {TOKEN}x")],
    "empty": [("Authorization", "Api-Key ")],
    "no scheme": [("Authorization", TOKEN)],
    "other scheme": [("Authorization", f"Basic {TOKEN}")],
    "not ascii": [("Authorization", "Api-Key \xe9\xe9")],
    "twice": [("Authorization", f"Api-Key {TOKEN}")] * 2,
}


@pytest.mark.parametrize("headers", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_a_client_without_the_token_is_turned_away_before_the_upgrade(
    run_server, policy, headers: list[tuple[str, str]]
) -> None:
    assert not is_authorized(Headers(headers), TOKEN)
    if headers == WRONG_HEADERS["not ascii"]:
        return  # the client library does not send it
    with run_server(policy, token=TOKEN) as running:
        assert refused(running.url, additional_headers=headers) == 401
        assert get(running.port, "/healthz") == (200, b"OK\n")
    assert policy.requests == []


def test_a_browser_is_turned_away(run_server, policy) -> None:
    with run_server(policy) as running:
        assert refused(running.url, origin="http://127.0.0.1") == 403


def test_the_token_is_not_logged(run_server, policy, droid_request, caplog) -> None:
    with caplog.at_level(logging.DEBUG), run_server(policy, token=TOKEN) as running:
        logging.getLogger("websockets.client").setLevel(logging.INFO)  # that is the other side
        headers = {"Authorization": f"Api-Key {TOKEN}"}
        running.ask(droid_request, additional_headers=headers)
        refused(running.url, additional_headers={"Authorization": f"Basic {TOKEN}"})
    assert TOKEN not in caplog.text


def test_a_server_checks_its_own_host(policy) -> None:
    server = PlannerServer(policy, token=None, reply_style="map", max_connections=1)

    async def run() -> None:
        await server.run(
            host="0.0.0.0", port=0, tls=None, stop=asyncio.Event(), ready=lambda port: None
        )

    with pytest.raises(ValueError, match="give a token"):
        asyncio.run(run())


def test_tls_encrypts_and_a_client_can_pin_the_certificate(
    run_server, policy, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()
    words += ["-subj", "/CN=planner", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    pinned = ssl.create_default_context(cafile=str(certificate))
    with run_server(policy, tls=tls_context(str(certificate), str(key))) as running:
        url = running.url.replace("ws:", "wss:")
        with connect(url, ssl=pinned, proxy=None) as client:
            assert set(unpack(client.recv(60, decode=False))) == SIX_KEYS
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            connect(url, ssl=ssl.create_default_context(), proxy=None),
        ):
            pass


def test_a_server_without_clients_is_no_server(policy) -> None:
    with pytest.raises(ValueError, match="max_connections"):
        PlannerServer(policy, token=None, reply_style="map", max_connections=0)
