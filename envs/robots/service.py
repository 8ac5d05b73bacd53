"""What a robot server's requests do to its robot: no network in here.

A command that was on its way for longer than it is valid is refused ("late"), and one that was
delayed is valid for what is left. When it was sent the client says on the server's clock, by a
measured offset; a wrong one can make a command shorter, never longer than it asks to be.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from worldmodel.envs.robots.interface import (
    MOVABLE,
    Ack,
    NotConnectedError,
    OperatorRefusedError,
    Robot,
    RobotError,
    StaleObservationError,
)
from worldmodel.envs.robots.messages import (
    read_command,
    read_duration,
    read_time,
    take,
    take_text,
    write_ack,
    write_observation,
)
from worldmodel.envs.robots.protocol import (
    Greeting,
    Reply,
    read_request,
    write_greeting,
    write_reply,
)
from worldmodel.envs.robots.recorded import RecordedRobot
from worldmodel.envs.robots.recorder import FlightRecorder
from worldmodel.envs.robots.safety import SafeRobot
from worldmodel.envs.robots.wire import MAX_MESSAGE_BYTES, WireError, pack, unpack

HEADER_BYTES = 64 * 2**10  # of a message with pictures, besides them
logger = logging.getLogger(__name__)

Ask = Callable[[dict[str, Any]], dict[str, Any]]


class RobotService:
    """Reads requests, does them, and writes replies. Any thread may call it.

    Attributes:
        counters: how often what happened, such as "late" and "refused:malformed".
    """

    def __init__(
        self,
        robot: SafeRobot,
        *,
        recorder: FlightRecorder | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Wraps a robot.

        Args:
            robot: that requests are about.
            recorder: records all that is asked and answered; its owner closes it.
            clock: seconds, monotonic; replaced in tests.

        Raises:
            ValueError: the robot's pictures do not fit a message.
        """
        size = sum(3 * c.height * c.width for c in robot.info.cameras.values()) + HEADER_BYTES
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(
                f"the pictures of all cameras need {size} bytes, a message holds "
                f"{MAX_MESSAGE_BYTES}; make them smaller"
            )
        self.counters: Counter[str] = Counter()
        self.robot: Robot = robot if recorder is None else RecordedRobot(robot, recorder)
        self._safe, self._recorder, self._clock = robot, recorder, clock
        self._last_seq = -1
        self.observing: Mapping[str, Ask] = {"observe": self._observe}
        self.stopping: Mapping[str, Ask] = {"stop": self._stop}

    def controlling(self, still_held: Callable[[], bool]) -> Mapping[str, Ask]:
        """Returns what a controller may ask for, as long as it holds the robot."""
        return {
            "command": lambda given: self._command(given, still_held),
            "arm": self._arm,
            "recover": self._recover,
        }

    def greeting(self, session: str | None) -> bytes:
        """Returns what is said first to a client."""
        return pack(
            write_greeting(Greeting(self._safe.info, self._safe.envelope, session, self._last_seq))
        )

    def disarm(self, reason: str) -> None:
        """Stops the arm if it may move; an operator has to arm it again."""
        if self._safe.state in MOVABLE:
            logger.warning("disarmed: %s", reason)
            self.robot.stop(reason=reason)

    def reply(
        self, frame: bytes | str, asks: Mapping[str, Ask], received_at: float
    ) -> tuple[bytes, bool]:
        """Does what a frame asks for.

        Args:
            frame: as it came.
            asks: what may be asked for; "sync" always may.
            received_at: when it came, on the service's clock.

        Returns:
            The packed reply, and whether the frame was a request at all.
        """
        number, answer, fits = -1, None, True
        error: str | None = None
        detail: dict[str, Any] = {}
        try:
            if isinstance(frame, str):
                raise WireError("bad_request", "expected a binary frame, got text")
            request = read_request(unpack(frame))
            number = request.id
            if request.ask == "sync":
                take(request.given, {})
                answer = {}
            elif request.ask in asks:
                answer = asks[request.ask](request.given)
            else:
                raise WireError("bad_request", f"unknown or not for this place: {request.ask:.40}")
        except StaleObservationError as stale:
            error = "stale"
            detail = {"sensor": stale.sensor, "age_s": stale.age_s}
        except (WireError, RobotError) as refusal:
            error, fits = _code(refusal), not isinstance(refusal, WireError)
            detail = {"text": str(refusal)}
        except Exception:  # whatever it is, the server goes on and the peer is told nothing of it
            logger.exception("a request failed")
            error, fits, detail = "internal_error", False, {"text": "see the server's log"}
        if error is not None:
            self.counters[f"refused:{error}"] += 1
        reply = Reply(
            id=number,
            received_at=received_at,
            sent_at=self._clock(),
            robot_now=self.robot.now(),
            state=self._safe.state,
            reason=self._safe.reason,
            answer=answer,
            error=error,
            detail=detail,
        )
        return pack(write_reply(reply)), fits

    # Answers, each in a thread.

    def _observe(self, given: dict[str, Any]) -> dict[str, Any]:
        (max_age_s,) = take(given, {"max_age_s": float})
        observation = self.robot.observe(max_age_s=read_duration(max_age_s, "max_age_s"))
        return write_observation(observation)

    def _command(self, given: dict[str, Any], still_held: Callable[[], bool]) -> dict[str, Any]:
        message, sent_at = take(given, {"command": dict, "sent_at": float})
        command = read_command(message)
        delay_s = max(0.0, self._clock() - read_time(sent_at, "sent_at"))
        if not still_held():
            raise NotConnectedError("this session is over")
        if delay_s >= command.valid_for_s > 0:
            self.counters["late"] += 1
            ack = Ack(command.seq, False, None, (), "late", self._safe.state)
            if self._recorder is not None:
                self._recorder.command(command)
                self._recorder.ack(ack)
            return write_ack(ack)
        ack = self.robot.command(replace(command, valid_for_s=command.valid_for_s - delay_s))
        if ack.accepted:
            self._last_seq = ack.seq
        return write_ack(ack)

    def _arm(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"state": str(self.robot.arm(operator=take_text(given, "operator")))}

    def _recover(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"state": str(self.robot.recover(operator=take_text(given, "operator")))}

    def _stop(self, given: dict[str, Any]) -> dict[str, Any]:
        self.robot.stop(reason=take_text(given, "reason"))
        return {}


def _code(error: Exception) -> str:
    if isinstance(error, WireError):
        return error.code
    if isinstance(error, OperatorRefusedError):
        return "operator_refused"
    return "not_connected" if isinstance(error, NotConnectedError) else "refused"
