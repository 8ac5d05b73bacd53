"""How far another machine's monotonic clock is from ours, by round trips alone."""

import math
from collections import deque
from operator import itemgetter

KEPT = 16  # exchanges: recent enough for clocks that drift apart


class ClockOffset:
    """Remembers the last exchanges and believes the quickest.

    The true offset is within half of that exchange's time on the way. Wall clocks play no part, so
    it does not matter what either machine believes the time to be.
    """

    def __init__(self) -> None:
        self._exchanges: deque[tuple[float, float]] = deque(maxlen=KEPT)  # delay, offset

    def forget(self) -> None:
        """Starts anew, as after the other machine may have been another one."""
        self._exchanges.clear()

    def add(
        self, *, sent_at: float, came_at: float, answered_at: float, received_at: float
    ) -> None:
        """Takes up one exchange.

        Args:
            sent_at: when we asked, on our clock [s].
            came_at: when that came, on theirs.
            answered_at: when they answered, on theirs.
            received_at: when that came, on ours.
        """
        delay = max(0.0, (received_at - sent_at) - (answered_at - came_at))
        offset = ((came_at - sent_at) + (answered_at - received_at)) / 2
        self._exchanges.append((delay, offset))

    @property
    def is_known(self) -> bool:
        """Whether there was an exchange."""
        return bool(self._exchanges)

    @property
    def offset_s(self) -> float:
        """Their clock minus ours; 0 before the first exchange."""
        return self._quickest[1]

    @property
    def error_s(self) -> float:
        """How wrong `offset_s` may be; infinite before the first exchange."""
        return self._quickest[0] / 2

    @property
    def _quickest(self) -> tuple[float, float]:
        """The newest of the quickest."""
        return min(reversed(self._exchanges), key=itemgetter(0), default=(math.inf, 0.0))
