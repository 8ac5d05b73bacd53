"""What is remembered of whoever sends commands: what they saw, and how often they were wrong."""

from collections import OrderedDict, deque

from worldmodel.envs.robots.interface import Command, RobotObservation
from worldmodel.envs.robots.limits import Envelope

REMEMBERED = 256  # observations that a command may name
HARMLESS = frozenset({"not_armed", "fault", "obs_old", "kind_changed_in_motion"})
"""Reasons of refusals that say nothing bad about who sent the command."""


class Sender:
    """Judges commands by what came before them.

    Attributes:
        seq: number of the last command that was accepted; -1 before the first.
    """

    def __init__(self, envelope: Envelope):
        """Knows nothing yet."""
        self._envelope = envelope
        self.forget()

    def forget(self) -> None:
        """Begins anew, as with another sender."""
        self.seq = -1
        self._seen: OrderedDict[int, float] = OrderedDict()  # oldest stamp by observation
        self._wrong_at: deque[float] = deque(maxlen=self._envelope.max_rejects)

    def forgive(self) -> None:
        """Forgets refusals, as after an operator looked at them."""
        self._wrong_at.clear()

    def saw(self, observation: RobotObservation) -> None:
        """Notes an observation, which commands may be planned from."""
        stamps = [frame.captured_at for frame in observation.frames.values()]
        self._seen[observation.seq] = min([observation.state_at, *stamps])
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def wrong_plan(self, command: Command, *, robot_now: float) -> str | None:
        """Returns what is wrong with what a command was planned from, None when nothing is."""
        if command.kind == "hold":
            return None
        if command.obs_seq not in self._seen:
            return "obs_unknown"
        age = robot_now - self._seen[command.obs_seq]
        return None if age <= self._envelope.plan_max_age_s else "obs_old"

    def wrong_too_often(self, now: float) -> bool:
        """Notes a command that was wrong [s]; returns whether there were too many lately."""
        self._wrong_at.append(now)
        full = len(self._wrong_at) == self._wrong_at.maxlen
        return full and now - self._wrong_at[0] <= self._envelope.reject_window_s
