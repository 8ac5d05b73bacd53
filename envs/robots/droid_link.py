"""The one thread that may call DROID's `RobotEnv`: it looks and steps, 15 times a second.

`RobotEnv`'s remote calls bear no second thread, so it is made, called and closed by this one.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from worldmodel.envs.robots.droid_format import KINDS, STEP_HZ
from worldmodel.envs.robots.interface import NotConnectedError, RobotError, RobotObservation

STEP_S = 1 / STEP_HZ
CLOSE_TIMEOUT_S = 5.0
logger = logging.getLogger(__name__)


@runtime_checkable
class DroidEnv(Protocol):
    """What is used of DROID's `RobotEnv`.

    Attributes:
        action_space: "cartesian_velocity" or "joint_velocity" here.
        gripper_action_space: "position" here.
    """

    action_space: str
    gripper_action_space: str | None

    def get_observation(self) -> Mapping[str, Any]:
        """Returns pictures, robot state and their stamps."""
        ...

    def step(self, action: np.ndarray) -> Any:
        """Begins one step and returns at once."""
        ...

    def close(self) -> None:
        """Gives the cameras back."""
        ...


class DroidLink:
    """A `RobotEnv`, from `open` to `close`.

    Attributes:
        env: the environment; None when it is not open.
        newest: what was seen last; None before.
        failed_looks: how many in a row have failed by now.
    """

    def __init__(
        self,
        make_env: Callable[[], DroidEnv],
        *,
        read: Callable[[Mapping[str, Any]], RobotObservation],
        next_action: Callable[[], np.ndarray | None],
        on_failure: Callable[[str], None],
        threaded: bool,
    ):
        """Makes nothing yet.

        Args:
            make_env: makes the environment.
            read: reads what `get_observation` returned.
            next_action: what the step that begins now is to do; None for no step.
            on_failure: told "look_failed" or "step_failed", in the link's thread.
            threaded: whether a thread calls `step`; if not, the owner.
        """
        self._make_env, self._read = make_env, read
        self._next_action, self._on_failure = next_action, on_failure
        self._threaded = threaded
        self._wake, self._opened = threading.Event(), threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None  # why it could not be opened
        self.env: DroidEnv | None = None
        self.newest: RobotObservation | None = None
        self.failed_looks = 0

    def open(self, *, timeout_s: float) -> None:
        """Makes the environment and looks once.

        Raises:
            NotConnectedError: it was not ready in time, or could not be made.
            RobotError: it has another action space, or says something that cannot be read.
        """
        if self._thread is not None and self._thread.is_alive():
            raise NotConnectedError("DROID's RobotEnv of the last try is not ready yet; wait")
        self._ending, self._trouble = False, None
        self.newest, self.failed_looks = None, 0
        self._opened.clear()
        if self._threaded:
            self._thread = threading.Thread(target=self._run, name="droid-robot", daemon=True)
            self._thread.start()
            if not self._opened.wait(timeout_s):
                self._ending = True  # it closes what it may yet open
                raise NotConnectedError(f"DROID's RobotEnv was not ready within {timeout_s:g} s")
        else:
            self._make()
        if isinstance(self._trouble, RobotError):
            raise self._trouble
        if self._trouble is not None:
            raise NotConnectedError(f"DROID's RobotEnv: {self._trouble}") from self._trouble

    def hurry(self) -> None:
        """Lets the next step begin at once."""
        self._wake.set()

    def close(self) -> None:
        """Does what is due and closes the environment; waits for it, but not forever."""
        self._ending = True
        self._wake.set()
        if not self._threaded:
            self._shut()
        elif self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                logger.warning("DROID's RobotEnv does not answer; the arm rests at its last step")

    def step(self) -> None:
        """Looks once, and moves the arm by one step or lets it rest; always from one thread.

        Raises:
            NotConnectedError: it is not open.
        """
        if self.env is None:
            raise NotConnectedError("DROID's RobotEnv is not open; connect first")
        try:
            self.newest, self.failed_looks = self._read(self.env.get_observation()), 0
        except Exception as error:  # a camera that misses a frame raises a TypeError, and so on
            self.failed_looks += 1
            self._tell("look_failed", error)
        action = self._next_action()
        if action is not None:
            try:
                self.env.step(action)
            except Exception as error:  # what DROID's layers raise is theirs to choose
                self._tell("step_failed", error)

    def _run(self) -> None:
        self._make()
        due = time.monotonic()
        try:
            while self.env is not None and not self._ending:
                self._wake.clear()
                self.step()
                due = max(due + STEP_S, time.monotonic())
                self._wake.wait(due - time.monotonic())
        finally:
            self._shut()

    def _make(self) -> None:
        try:
            self.env = self._make_env()
            _check(self.env)
            self.newest = self._read(self.env.get_observation())
        except Exception as error:  # told by `open`, whatever it is
            self._trouble = error
            self._shut()
        finally:
            self._opened.set()

    def _shut(self) -> None:
        if self.env is None:
            return
        try:
            action = self._next_action()
            if action is not None:
                self.env.step(action)
            self.env.close()
        except Exception as error:  # the arm rests at its last step all the same
            logger.warning("while closing DROID's RobotEnv: %s", error)
        self.env = None

    def _tell(self, name: str, error: Exception) -> None:
        logger.warning("DROID: %s: %s: %s", name, type(error).__name__, error)
        self._on_failure(name)


def _check(env: DroidEnv) -> None:
    if env.action_space not in KINDS or env.gripper_action_space != "position":
        raise RobotError(
            f"RobotEnv must have the action_space {' or '.join(KINDS)} and the "
            f'gripper_action_space "position", got {env.action_space!r} and '
            f"{env.gripper_action_space!r}"
        )
