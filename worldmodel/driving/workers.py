"""Who makes plans while the arm moves: a thread, or, on a simulated clock, a promise of when."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable

from worldmodel.envs.robots.interface import Robot
from worldmodel.envs.robots.safety import SafeRobot

TICK_S = 0.01  # of `SafeRobot`, where the clock is moved by hand
Work = TypeVar("Work")
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)
WorkIn = TypeVar("WorkIn", contravariant=True)


@runtime_checkable
class Worker(Protocol[WorkIn, ResultOut]):
    """Does one piece of work at a time."""

    @property
    def busy(self) -> bool:
        """Whether there is work that was given and not taken back."""
        ...

    def give(self, work: WorkIn) -> None:
        """Begins a piece of work; the one before must have been taken back."""
        ...

    def take(self) -> ResultOut | None:
        """Returns what came of the work, once, when it is ready. Raises what the work raised."""
        ...

    def close(self) -> None:
        """Begins nothing more, and waits for nothing."""
        ...


class ThreadWorker(Generic[Work, Result]):
    """Works in a thread. Work that never ends does not keep the process from ending."""

    def __init__(self, function: Callable[[Work], Result]):
        """Begins to wait for work for a function."""
        self._function = function
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
        self.busy = False
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
        self._thread.start()

    def give(self, work: Work) -> None:
        """See `Worker`."""
        self.busy = True
        self._work.put(work)

    def take(self) -> Result | None:
        """See `Worker`."""
        try:
            result = self._done.get_nowait()
        except queue.Empty:
            return None
        self.busy = False
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """See `Worker`."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._done.put(self._function(work))
            except Exception as error:  # whatever it is, it belongs to who takes the result
                self._done.put(error)


class SimulatedWorker(Generic[Work, Result]):
    """Works at once, and has the result so much later as a planner would: the same every time."""

    def __init__(
        self, function: Callable[[Work], Result], *, latency_s: float, clock: Callable[[], float]
    ):
        """Makes a worker.

        Args:
            function: what is done.
            latency_s: how long it takes on the clock.
            clock: simulated time [s].
        """
        self._function, self._clock = function, clock
        self.latency_s = latency_s
        """May be changed, for tests of a planner that slows down."""
        self._result: Result | None = None
        self._ready_at = 0.0
        self.busy = False

    def give(self, work: Work) -> None:
        """See `Worker`."""
        self.busy = True
        self._ready_at = self._clock() + self.latency_s
        self._result = self._function(work)

    def take(self) -> Result | None:
        """See `Worker`."""
        if not self.busy or self._clock() < self._ready_at - 1e-9:
            return None
        result, self._result, self.busy = self._result, None, False
        return result

    def close(self) -> None:
        """See `Worker`."""


def simulated_sleep(robot: Robot) -> Callable[[float], None] | None:
    """Returns what moves a robot's clock on, or None of a robot whose clock moves by itself."""
    from worldmodel.envs.robots.mujoco import MujocoRobot  # loads the simulator

    if not isinstance(robot, SafeRobot) or not isinstance(robot.inner, MujocoRobot):
        return None
    safe, inner = robot, robot.inner
    if inner.realtime:
        return None

    def sleep(seconds: float) -> None:
        for _ in range(max(round(seconds / TICK_S), 1)):
            safe.tick()
            inner.advance(TICK_S)

    return sleep
