"""What robot server and client say to each other: plain maps for `wire`, and back, strictly.

A client opens up to three websockets. On each the server speaks first, with a `Greeting`; then the
client asks (`Request`) and is answered (`Reply`) in turn:

    /control   "command", "arm", "recover", "sync"; one client at a time, whose session it is
    /observe   "observe", "sync"; read only
    /stop      "stop", "sync"; anyone with the token, and never behind anything else

"""

import math
from dataclasses import dataclass, field
from typing import Any

from worldmodel.envs.robots.interface import (
    NotConnectedError,
    OperatorRefusedError,
    RobotError,
    RobotInfo,
    RobotState,
    StaleObservationError,
)
from worldmodel.envs.robots.limits import Envelope
from worldmodel.envs.robots.messages import (
    read_envelope,
    read_info,
    read_state,
    read_time,
    take,
    write_envelope,
    write_info,
)
from worldmodel.envs.robots.wire import WireError

PROTOCOL = "worldmodel-robot/2"
SESSION_HEADER = "Worldmodel-Session"
CONTROL, OBSERVE, STOP = "/control", "/observe", "/stop"
MAX_REQUEST_BYTES = 16 * 2**10


@dataclass(frozen=True)
class Greeting:
    """What a server says first.

    Attributes:
        info: of the robot.
        envelope: within which the server keeps it.
        session: by which this client holds the robot; None where it does not.
        last_seq: number of the last command that the robot took from anyone; -1 before the first.
        protocol: name and version.
    """

    info: RobotInfo
    envelope: Envelope
    session: str | None
    last_seq: int
    protocol: str = PROTOCOL


@dataclass(frozen=True)
class Request:
    """What a client asks.

    Attributes:
        id: number that the reply bears.
        ask: for what.
        given: the details.
    """

    id: int
    ask: str
    given: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What a server answers.

    Attributes:
        id: of the request; -1 when it could not be read.
        received_at: when the request came, on the server's monotonic clock [s].
        sent_at: when the reply went.
        robot_now: the robot's own clock at `sent_at` [s].
        state: of the robot.
        reason: why it last held, faulted or was stopped.
        answer: what was asked for; None after an error.
        error: a short name such as "bad_request" or "stale"; None when there is none.
        detail: about the error, fit to be shown.
    """

    id: int
    received_at: float
    sent_at: float
    robot_now: float
    state: RobotState
    reason: str | None
    answer: dict[str, Any] | None
    error: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def write_greeting(greeting: Greeting) -> dict[str, Any]:
    """Returns the map of a greeting."""
    info, envelope = write_info(greeting.info), write_envelope(greeting.envelope)
    return vars(greeting) | {"info": info, "envelope": envelope}


def read_greeting(message: Any) -> Greeting:
    """Returns the greeting in a map.

    Raises:
        WireError: it is none, or of another version ("bad_protocol").
    """
    protocol = message.get("protocol") if isinstance(message, dict) else None
    if not isinstance(protocol, str) or protocol != PROTOCOL:
        raise WireError("bad_protocol", f"expected {PROTOCOL}, got {protocol!r:.40}")
    info, envelope, session, last_seq, _ = take(
        message,
        {
            "info": dict,
            "envelope": dict,
            "session": (str, type(None)),
            "last_seq": int,
            "protocol": str,
        },
    )
    return Greeting(read_info(info), read_envelope(envelope), session, last_seq)


def write_request(request: Request) -> dict[str, Any]:
    """Returns the map of a request."""
    return dict(vars(request))


def read_request(message: Any) -> Request:
    """Returns the request in a map.

    Raises:
        WireError: it is none.
    """
    return Request(*take(message, {"id": int, "ask": str, "given": dict}))


def write_reply(reply: Reply) -> dict[str, Any]:
    """Returns the map of a reply."""
    return vars(reply) | {"state": str(reply.state)}


def read_reply(message: Any) -> Reply:
    """Returns the reply in a map.

    Raises:
        WireError: it is none.
    """
    none = type(None)
    take(
        message,
        {
            "id": int,
            "received_at": float,
            "sent_at": float,
            "robot_now": float,
            "state": str,
            "reason": (str, none),
            "answer": (dict, none),
            "error": (str, none),
            "detail": dict,
        },
    )
    times = {name: read_time(message[name], name) for name in ("received_at", "sent_at")}
    times["robot_now"] = read_time(message["robot_now"], "robot_now")
    return Reply(**message | times | {"state": read_state(message["state"])})


def answer_of(reply: Reply, *, max_age_s: float = math.inf) -> dict[str, Any]:
    """Returns what was asked for; the robot's errors are raised as they were there.

    Args:
        reply: to the question.
        max_age_s: that an observation was asked with.

    Raises:
        StaleObservationError, OperatorRefusedError, RobotError: what the robot said.
        NotConnectedError: the robot is not connected to its server, or that refused the question.
    """
    if reply.error is None and reply.answer is not None:
        return reply.answer
    sensor, age_s = reply.detail.get("sensor"), reply.detail.get("age_s")
    if reply.error == "stale" and isinstance(sensor, str) and isinstance(age_s, int | float):
        raise StaleObservationError(sensor, age_s=age_s, max_age_s=max_age_s)
    text = f"{reply.error}: {reply.detail.get('text', 'no reason given')}"
    if reply.error == "operator_refused":
        raise OperatorRefusedError(text)
    if reply.error == "refused":
        raise RobotError(text)
    raise NotConnectedError(text)
