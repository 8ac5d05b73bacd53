"""The Franka Hand: it opens or closes all the way, one motion after the other."""

import threading
from typing import Any

from worldmodel.envs.robots.franky_connection import franky

GRIPPER_WIDTH_M = 0.08
CLOSE_ABOVE, OPEN_BELOW = 0.6, 0.4  # between them the hand stays with what it was told last
SMALLEST_OBJECT_M = 0.003  # closed on nothing, the hand too says that it holds something
LOOK_EVERY_S = 0.02


class FrankyHand:
    """A `franky.Gripper` that is told again and again where it is to be, and is never waited for.

    A thread looks at it: the library waits a second for a hand that is lost. The library's own
    `stop` of the hand is not used: while the hand moves it may never return.

    Attributes:
        width: opening [m].
        grasped: whether something is held.
        lost: whether it no longer answers.
    """

    def __init__(self, gripper: Any, *, speed: float, force: float):
        """Takes the hand over, without moving it.

        Args:
            gripper: a connected `franky.Gripper`.
            speed: of the opening [m/s].
            force: to hold with [N].
        """
        self._gripper: Any = gripper
        self._speed, self._force = speed, force
        self._motion: Any = None  # the library's future of the motion begun last
        self._closes: bool | None = None  # by that motion
        self._should_close: bool | None = None
        self._closed = threading.Event()
        self.lost = False
        self._look()
        self._thread = threading.Thread(target=self._run, name="franky-hand", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        state = self._gripper.state
        self.width = float(state.width)
        self.grasped = bool(state.is_grasped and state.width > SMALLEST_OBJECT_M)

    def _run(self) -> None:
        try:
            while not self._closed.wait(LOOK_EVERY_S):
                self._look()
        except (franky.NetworkException, RuntimeError):
            self.lost = True
        motion = self._motion
        if motion is not None:
            motion.wait()  # the library crashes when a hand that moves is given back
        self._motion = self._gripper = None

    def want(self, target: float) -> None:
        """Says where the hand is to be, 0 open, 1 closed."""
        if not OPEN_BELOW <= target <= CLOSE_ABOVE:
            self._should_close = target > CLOSE_ABOVE
        self.go_on()

    def go_on(self) -> None:
        """Begins the next motion when the hand is to do another thing and is free."""
        if self.lost or self._should_close in (None, self._closes):
            return
        if self._motion is not None and not self._motion.wait(0.0):
            return
        if self._should_close:
            any_width = GRIPPER_WIDTH_M  # whatever is between the fingers is to be held
            self._motion = self._gripper.grasp_async(
                0.0, self._speed, self._force, any_width, any_width
            )
        else:
            self._motion = self._gripper.open_async(self._speed)
        self._closes = self._should_close

    def close(self, *, timeout_s: float) -> None:
        """Gives the hand back when its motion is over; waits for that no longer than asked."""
        self._closed.set()
        self._thread.join(timeout_s)
