"""Who may command a robot over the network, and when what was allowed before counts no more."""

import secrets
import time
from collections.abc import Callable


class Lease:
    """One controller at a time, known by a session that it alone is told.

    Each connection gets a session of its own. One that shows the session before it is the same
    controller come back: it takes the robot over at once, though its old connection may still look
    alive. Whether the operator's permission to move outlives that depends on how long nothing was
    heard. A controller may never learn its new session, when the network is cut again; so the one
    that it showed counts until the new one is heard.
    """

    def __init__(
        self,
        *,
        silence_s: float,
        rearm_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Lets the first who comes have it.

        Args:
            silence_s: a controller that says nothing for longer is lost.
            rearm_after_s: after so long without a word an operator has to arm the robot again.
            clock: seconds, monotonic; replaced in tests.

        Raises:
            ValueError: unless 0 < silence_s <= rearm_after_s.
        """
        if not 0 < silence_s <= rearm_after_s:
            raise ValueError(
                f"expected 0 < silence_s <= rearm_after_s, got {silence_s} and {rearm_after_s}"
            )
        self._silence_s, self._rearm_after_s, self._clock = silence_s, rearm_after_s, clock
        self._last: str | None = None  # session of who had it last, or has it
        self._before: str | None = None  # that this one showed, until it is heard
        self._heard_at = clock()
        self.session: str | None = None
        """Of who has it; None while nobody has."""

    def is_free(self, *, shown: str | None) -> bool:
        """Returns whether one who shows a session, or none, may take it."""
        return self.session is None or self._is_known(shown)

    def take(self, *, shown: str | None) -> tuple[str, bool]:
        """Takes it. Call it only when it `is_free`.

        Returns:
            The new session, and whether it goes on as before. If not, the robot is to be disarmed.
        """
        known = self._is_known(shown)
        goes_on = known and not self.is_overdue
        self._before = shown if known else None
        self.session = self._last = secrets.token_hex(16)
        self._heard_at = self._clock()
        return self.session, goes_on

    def hear(self, session: str) -> None:
        """Notes that the controller said something, so it knows its session.

        What is left of a session that was taken over says nothing of the one who has it now.
        """
        if session == self.session:
            self._before = None
            self._heard_at = self._clock()

    @property
    def is_silent(self) -> bool:
        """Whether the controller is lost."""
        return self._clock() - self._heard_at > self._silence_s

    @property
    def is_overdue(self) -> bool:
        """Whether nothing was heard for so long that the robot is to be disarmed."""
        return self._clock() - self._heard_at > self._rearm_after_s

    def give_back(self, session: str) -> None:
        """Ends a session; one that was taken over has ended already."""
        if self.session == session:
            self.session = None

    def _is_known(self, shown: str | None) -> bool:
        return _same(shown, self._last) or _same(shown, self._before)


def _same(shown: str | None, session: str | None) -> bool:
    if shown is None or session is None:
        return False
    return secrets.compare_digest(shown.encode(), session.encode())
