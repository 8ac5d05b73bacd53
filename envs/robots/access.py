"""How our servers listen, and who may connect: tokens, TLS, addresses in reach, and how often.

Used by the planner server and by the robot server. None of it makes a server a safety device.
"""

import hashlib
import hmac
import http
import ipaddress
import logging
import os
import shutil
import ssl
import subprocess
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import MultipleValuesError
from websockets.http11 import Request as Upgrade
from websockets.http11 import Response

TOKEN_VARIABLE = "WORLDMODEL_TOKEN"
SHORTEST_TOKEN = 16  # characters
SCHEMES = ("api-key", "bearer")
REMEMBERED_ADDRESSES = 1024
QUEUED_FRAMES = 2  # of a client that sends without waiting; then it is no longer read
OPEN_TIMEOUT_S = 10.0
logger = logging.getLogger(__name__)


class ConnectRate:
    """How often each address may connect: a number at once, and that number again in a while."""

    def __init__(self, *, at_once: int, per_s: float, clock: Callable[[], float] = time.monotonic):
        """Lets everyone in at first.

        Args:
            at_once: connections that may come in one moment.
            per_s: how many a second may come for long.
            clock: seconds, monotonic; replaced in tests.
        """
        if at_once < 1 or not per_s > 0:
            raise ValueError(f"at_once and per_s must be above 0, got {at_once} and {per_s}")
        self._at_once, self._per_s, self._clock = at_once, per_s, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # number left, when

    def allows(self, address: str) -> bool:
        """Counts a connection of an address, and returns whether it may be made."""
        now = self._clock()
        left, when = self._left.pop(address, (float(self._at_once), now))
        left = min(self._at_once, left + (now - when) * self._per_s)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        while len(self._left) > REMEMBERED_ADDRESSES:
            self._left.popitem(last=False)
        return allowed


class Door:
    """What a server says before the upgrade to a websocket, to whoever comes."""

    def __init__(self, *, token: str | None, rate: ConnectRate | None):
        """Opens to those with a token.

        Args:
            token: that clients must send; None lets everyone in who can connect.
            rate: of connections of one address; None is any.
        """
        self._token, self._rate = token, rate

    def answer(
        self, connection: ServerConnection, upgrade: Upgrade, *, hurried: bool = False
    ) -> Response | None:
        """Answers the health check and refuses strangers (401) and storms (429).

        Args:
            connection: that is not yet open.
            upgrade: what was asked for.
            hurried: whether it may come at any rate, as a stop may.

        Returns:
            The answer; None for one who may go on.
        """
        if upgrade.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        address = str((connection.remote_address or ("unknown",))[0])
        if self._token is not None and not is_authorized(upgrade.headers, self._token):
            logger.warning("turned away %s: wrong token or none", address)
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "unauthorized\n")
        if self._rate is not None and not hurried and not self._rate.allows(address):
            return connection.respond(http.HTTPStatus.TOO_MANY_REQUESTS, "too_many_connects\n")
        return None


def is_authorized(headers: Mapping[str, str], token: str) -> bool:
    """Whether the headers hold `Authorization: Api-Key <token>`, or the same with `Bearer`."""
    try:
        scheme, _, given = headers.get("Authorization", "").partition(" ")
    except MultipleValuesError:
        return False
    # Compared as bytes: text that is not ASCII would be refused with an exception.
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() in SCHEMES


def read_token(file: str | None, *, environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the token in a file, else that of the variable WORLDMODEL_TOKEN, else None.

    A token never comes from the command line, which every process of the machine can read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the token is short, or holds spaces or anything but ASCII.
    """
    if file is not None:
        if not Path(file).is_file():
            raise FileNotFoundError(f"no token file at {file}")
        token, source = Path(file).read_text(encoding="utf-8").strip(), file
    elif TOKEN_VARIABLE in environment:
        token, source = environment[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise ValueError(
            f"the token in {source} must be one word of at least {SHORTEST_TOKEN} ASCII characters;"
            " make one with: openssl rand -hex 32"
        )
    return token


def check_exposure(host: str, *, token: str | None) -> None:
    """Refuses to be reached from other machines without a token.

    Raises:
        ValueError: there is none.
    """
    if not is_loopback(host) and token is None:
        raise ValueError(
            f"host={host} can be reached from other machines: give a token, in a file named by "
            f"token_file=... or in the variable {TOKEN_VARIABLE}; or use host=127.0.0.1"
        )


def check_robot_exposure(
    host: str, *, token: str | None, encrypted: bool, simulated: bool, insecure_lan: bool
) -> None:
    """Refuses that other machines reach a robot without a token, or a physical one without TLS.

    Args:
        host: address to listen at.
        token: that clients must send.
        encrypted: whether there is TLS.
        simulated: whether nothing physical moves.
        insecure_lan: whether the operator said that the network is theirs alone.

    Raises:
        ValueError: what is missing.
    """
    check_exposure(host, token=token)
    if not (is_loopback(host) or encrypted or simulated or insecure_lan):
        raise ValueError(
            f"host={host} can be reached from other machines and the arm is a physical one: give "
            "tls_certificate=... and tls_key=..., or use host=127.0.0.1. On a network that is "
            "yours alone, insecure_lan=true sends token and commands as they are"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host; a name other than localhost counts as not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Returns the server's side of TLS from PEM files, or None without them.

    Raises:
        ValueError: one is given without the other.
        OSError: a file is missing or is no certificate or key.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("tls_certificate and tls_key belong together: give both or neither")
    for path in (certificate, key):
        _require_file(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def pinned_tls(certificate: str) -> ssl.SSLContext:
    """Returns a client's side of TLS that talks to the holder of one certificate and nobody else.

    The certificate itself is what is trusted, so its names are not looked at: a robot has an
    address of its own in every network.

    Args:
        certificate: PEM file, a copy of the server's.

    Raises:
        OSError: the file is missing or is no certificate.
    """
    _require_file(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.load_verify_locations(certificate)
    return context


def fingerprint(certificate: str) -> str:
    """Returns the SHA-256 of the first certificate in a PEM file, as hexadecimal pairs."""
    text = Path(certificate).read_text(encoding="ascii")
    start, end = text.find("-----BEGIN CERT"), text.find("-----END CERT")
    der = ssl.PEM_cert_to_DER_cert(text[start:end] + "-----END CERTIFICATE-----\n")
    return hashlib.sha256(der).digest().hex(":").upper()


def make_certificate(certificate: str, key: str, *, days: int = 825) -> None:
    """Writes a self-signed certificate and its key, which nobody but the owner can read.

    Args:
        certificate: PEM file to write; a copy of it goes to the clients.
        key: PEM file to write; it stays on this machine.
        days: for which it is good.

    Raises:
        FileExistsError: one of the files is there already.
        RuntimeError: the program openssl is missing or failed.
    """
    for path in (certificate, key):
        if Path(path).exists():
            raise FileExistsError(f"{path} exists; delete it, or use it as it is")
    if shutil.which("openssl") is None:
        raise RuntimeError("the program openssl is needed to make a certificate; install it")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split()
    words += ["-days", str(days), "-subj", "/CN=worldmodel-robot"]
    os.close(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    made = subprocess.run(
        [*words, "-keyout", key, "-out", certificate], capture_output=True, text=True
    )
    if made.returncode != 0:
        Path(key).unlink()
        raise RuntimeError(f"openssl made no certificate: {made.stderr.strip()}")


@asynccontextmanager
async def listening(
    converse: Callable[[ServerConnection], Awaitable[None]],
    *,
    admit: Callable[[ServerConnection, Upgrade], Response | None],
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    max_message_bytes: int,
    ping_s: float,
    lost_after_s: float,
    close_timeout_s: float,
    name: str,
) -> AsyncIterator[int]:
    """Listens for websockets; yields the port.

    Args:
        converse: talks to one client.
        admit: answers an upgrade that is refused; None lets the client in.
        host: address to listen at.
        port: 0 takes any that is free.
        tls: encrypts the connections; None does not.
        max_message_bytes: a client that sends more is no longer served.
        ping_s: how often a client is asked for a sign of life.
        lost_after_s: a client that gives none for so long is lost.
        close_timeout_s: how long a client may take to say goodbye.
        name: of the module whose server it is, for its logger.

    Raises:
        OSError: the port is taken.
    """
    quiet = logging.getLogger(f"{name}.websockets")
    quiet.setLevel(logging.WARNING)  # below, health checks and headers with the token are logged
    async with serve(
        converse,
        host,
        port,
        ssl=tls,
        process_request=admit,
        origins=[None],  # a browser says where its page comes from; a robot does not
        compression=None,
        max_size=max_message_bytes,
        max_queue=QUEUED_FRAMES,
        open_timeout=OPEN_TIMEOUT_S,
        close_timeout=close_timeout_s,
        ping_interval=ping_s,
        ping_timeout=lost_after_s,
        server_header=None,
        logger=quiet,
    ) as server:
        yield next(iter(server.sockets)).getsockname()[1]


def _require_file(path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}")
