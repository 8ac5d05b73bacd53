"""Tokens, TLS and addresses; what servers do with them is in their own tests."""

import hashlib
import shutil
import ssl
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs.robots.access import (
    REMEMBERED_ADDRESSES,
    ConnectRate,
    check_exposure,
    check_robot_exposure,
    fingerprint,
    make_certificate,
    pinned_tls,
    read_token,
    tls_context,
)

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "", "robot.local"])
def test_others_are_not_let_near_without_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="can be reached from other machines: give a token"):
        check_exposure(host, token=None)
    check_exposure(host, token=TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    check_exposure(host, token=None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5"])
def test_a_physical_arm_needs_tls_where_others_reach_it(host: str) -> None:
    def check(**changes: bool) -> None:
        settings = {"encrypted": False, "simulated": False, "insecure_lan": False} | changes
        check_robot_exposure(host, token=TOKEN, **settings)

    with pytest.raises(ValueError, match="the arm is a physical one"):
        check()
    for reason in ("encrypted", "simulated", "insecure_lan"):
        check(**{reason: True})
        with pytest.raises(ValueError, match="give a token"):
            check_robot_exposure(
                host, token=None, encrypted=True, simulated=True, insecure_lan=True
            )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_may_drive_a_physical_arm(host: str) -> None:
    check_robot_exposure(host, token=None, encrypted=False, simulated=False, insecure_lan=False)


@pytest.mark.parametrize(
    "variables, file, found",
    [
        ({}, None, None),
        ({"WORLDMODEL_TOKEN": f" {TOKEN}\n"}, None, TOKEN),
        ({"WORLDMODEL_TOKEN": "x" * 16}, f"{TOKEN}\n", TOKEN),
    ],
)
def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, variables: Mapping[str, str], file: str | None, found: str | None
) -> None:
    path = tmp_path / "token"
    path.write_text(file or "")
    assert read_token(str(path) if file else None, environment=variables) == found


@pytest.mark.parametrize("token", ["", "short", "two words of a token", "t\xf6ken-long-enough"])
def test_a_poor_token_is_refused_and_not_shown(tmp_path: Path, token: str) -> None:
    path = tmp_path / "token"
    path.write_text(token, encoding="utf-8")
    with pytest.raises(ValueError, match="one word of at least 16 ASCII characters") as caught:
        read_token(str(path), environment={})
    assert not token or token not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no token file"):
        read_token(str(tmp_path / "none"), environment={"WORLDMODEL_TOKEN": TOKEN})


def test_half_of_tls_is_none(tmp_path: Path) -> None:
    assert tls_context(None, None) is None
    with pytest.raises(ValueError, match="belong together"):
        tls_context("cert.pem", None)
    with pytest.raises(FileNotFoundError, match="no file at"):
        tls_context(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


def test_a_certificate_is_made_once_and_its_key_is_the_owners(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "robot.pem", tmp_path / "robot.key"
    make_certificate(str(certificate), str(key))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert tls_context(str(certificate), str(key)) is not None
    with pytest.raises(FileExistsError, match="delete it, or use it as it is"):
        make_certificate(str(certificate), str(tmp_path / "other.key"))
    said = subprocess.run(
        ["openssl", "x509", "-in", str(certificate), "-noout", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip().partition("=")[2] == fingerprint(str(certificate))
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert fingerprint(str(certificate)).replace(":", "").lower() == hashlib.sha256(der).hexdigest()


def test_a_pinned_certificate_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file at"):
        pinned_tls(str(tmp_path / "none.pem"))
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    make_certificate(str(tmp_path / "robot.pem"), str(tmp_path / "robot.key"))
    context = pinned_tls(str(tmp_path / "robot.pem"))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_address_that_connects_too_often_waits_and_others_do_not() -> None:
    clock = Clock()
    rate = ConnectRate(at_once=3, per_s=2.0, clock=clock)
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    clock.now += 0.49
    assert not rate.allows("a")
    clock.now += 0.02
    assert rate.allows("a") and not rate.allows("a")
    clock.now += 1000.0
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=60))
def test_no_more_come_in_than_the_rate_says(waits: list[float]) -> None:
    clock, allowed = Clock(), 0
    rate = ConnectRate(at_once=2, per_s=4.0, clock=clock)
    for wait in waits:
        clock.now += wait
        allowed += rate.allows("a")
    assert allowed <= 2 + 4.0 * clock.now + 1e-6


def test_addresses_are_forgotten_not_gathered() -> None:
    rate = ConnectRate(at_once=1, per_s=1e-9, clock=Clock())
    for number in range(REMEMBERED_ADDRESSES + 10):
        assert rate.allows(str(number))
    assert not rate.allows(str(REMEMBERED_ADDRESSES))
    assert rate.allows("0")


@pytest.mark.parametrize("at_once, per_s", [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_a_rate_that_lets_nobody_in_is_refused(at_once: int, per_s: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        ConnectRate(at_once=at_once, per_s=per_s)
