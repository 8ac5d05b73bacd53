"""robosuite's Panda tasks (Zhu et al. 2020, arXiv 2009.12293), run by a process of their own.

robosuite needs numpy 1.26 and mujoco below 3.10, so it has its own environment; `PYTHON_VARIABLE`
names its Python. Its arm moves by 7 numbers at 20 Hz through an operational-space controller:
changes of position and rotation in [-1, 1], which stand for 5 cm and 0.5 rad, from the measured
pose, and a gripper that opens or closes. One step of ours is five of its steps.
"""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from worldmodel.envs.bridges.goal_env import GoalImageEnv, pick_and_place
from worldmodel.envs.bridges.messages import read_message, write_message
from worldmodel.envs.cameras import Backend
from worldmodel.envs.franka_env import MAX_ACTION
from worldmodel.envs.waypoints import Waypoint
from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    ROTATION,
    integrate,
    matrix_to_euler,
    rotation_delta,
)

PYTHON_VARIABLE = "ROBOSUITE_PYTHON"
"""Environment variable with the path of the Python that has robosuite."""

TASKS = {"lift": "Lift", "pick_place_can": "PickPlaceCan"}
"""robosuite's names of the tasks by ours."""

CAMERAS = ("exterior", "front", "wrist")
RANGES = np.array([0.05] * 3 + [0.5] * 3)
"""What 1 means on the axes of robosuite's controller: [m], [rad]."""

GAIN = 2.5
"""Of the error at a substep, how much is asked of the controller, which is soft (kp = 150).

It may ask for 5 cm at most, so fast moves lag whatever the gain; docs/bridges.md has the errors.
"""

_EXPERT_STEPS = 60  # control steps the expert may take to make the goal image
_WORKSPACE = np.array([[0.35, -0.35, -0.1], [0.8, 0.5, 0.5]])  # [m] from the robot's base
_PLACES = np.array([[0.46, -0.1], [0.66, 0.1]])  # [m] where play puts things


class NoRobosuiteError(ImportError, RuntimeError):
    """No Python with robosuite is named; to a user it is a package that is not installed."""


class RobosuiteEnv(GoalImageEnv):
    """Lift the cube, or put the can into its bin, as the goal image shows.

    robosuite has no goal images: a scripted expert solves the task from the drawn start, what the
    camera shows at the end of its stages are the sub-goals, and the start is put back. A start the
    expert cannot solve is drawn again. Success is robosuite's. Distance: of the object from where
    the expert brought it.
    """

    robot = "franka"

    def __init__(
        self,
        *,
        task: str = "lift",
        image_size: int = 128,
        camera: str = "exterior",
        backend: Backend = "auto",
        control_hz: float = 4.0,
        render_mode: str | None = None,
        render_size: int = 256,
        terminate_on_success: bool = True,
        python: str | Path | None = None,
    ):
        """Start the process of the simulation, which takes seconds.

        Args:
            task: A name in `TASKS`.
            image_size: Side of the observed images [pixels].
            camera: Which camera is observed, a name in `CAMERAS`.
            backend: ``auto`` or ``gl``: robosuite draws with OpenGL.
            control_hz: Steps per simulated second; must divide 20.
            render_mode: ``rgb_array`` or None.
            render_size: Side of the image `render` returns [pixels].
            terminate_on_success: End the episode at the first success.
            python: The Python that has robosuite; None takes `PYTHON_VARIABLE`.

        Raises:
            ValueError: For an unknown name, a bad size or rate, or the ray renderer.
            RuntimeError: No Python with robosuite is named, or it does not start.
        """
        if task not in TASKS:
            raise ValueError(f"unknown robosuite task {task!r}; available: {', '.join(TASKS)}")
        if backend == "ray":
            raise ValueError("robosuite draws with OpenGL; take backend 'auto' or 'gl'")
        super().__init__(
            task_name=f"robosuite/{task}",
            cameras=CAMERAS,
            camera=camera,
            image_size=image_size,
            render_size=render_size,
            control_hz=control_hz,
            render_mode=render_mode,
            terminate_on_success=terminate_on_success,
            max_action=MAX_ACTION,
        )
        self.renderer_name = "gl"
        self.workspace_low, self.workspace_high = _WORKSPACE
        self.place_low, self.place_high = _PLACES
        self._task = task
        self._measured: dict[str, np.ndarray] = {}
        self._success, self._seconds = False, 0.0
        self._goal_object = np.zeros(3)
        self._server = Server(python or os.environ.get(PYTHON_VARIABLE), TASKS[task])
        answer = self._ask("describe")
        self.versions = {"robosuite": answer["version"], "mujoco": answer["mujoco"]}
        self.mujoco_version = answer["mujoco"]
        """Versions of what runs in the other process."""

    def features(self) -> np.ndarray:
        """Return the true state: tool x, y, z [m], gripper, x, y, z of the object [m]."""
        measured = self._measured
        return np.concatenate([measured["position"], measured["gripper"], *measured["objects"]])

    def waypoints(self) -> list[Waypoint]:
        """Return how to take the object and bring it where the task wants it."""
        taken, put = self._measured["objects"][0], self._measured["goal"]
        return pick_and_place(taken, put, release=self._task != "lift")

    def close(self) -> None:
        """End the process of the simulation."""
        self._server.close()

    def _begin(self, options: dict[str, Any], *, demonstrate: bool) -> bool:
        if options:
            raise ValueError(f"{self.task_name} has no reset options, got {sorted(options)}")
        self._ask("reset", seed=int(self.np_random.integers(2**31)))
        if not demonstrate:
            self.subgoals = (self._subgoal("start", steps=0),)
            self._goal_object = self._measured["goal"].copy()
            return True
        start = self._state()
        self.subgoals, solved = self._demonstrate(_EXPERT_STEPS)
        self._goal_object = self._measured["objects"][0].copy()
        self._restore(start)
        return solved

    def _proprio(self) -> np.ndarray:
        measured = self._measured
        euler = matrix_to_euler(measured["rotation"])
        gripper = np.clip(measured["gripper"], 0.0, 1.0)
        return np.concatenate([measured["position"], euler, gripper])

    def _substep(self, start: np.ndarray, command: np.ndarray, part: float) -> None:
        measured = self._proprio()
        target = start[POSITION] + part * (command[POSITION] - start[POSITION])
        turn = part * rotation_delta(start[ROTATION], command[ROTATION])
        turned = integrate(start, np.concatenate([np.zeros(3), turn, np.zeros(1)]))
        wanted = np.zeros(ACTION_SIZE)
        wanted[:3] = GAIN * (target - measured[POSITION])
        wanted[3:6] = GAIN * rotation_delta(measured[ROTATION], turned[ROTATION])
        wanted[:6] = np.clip(wanted[:6] / RANGES, -1, 1)
        # The fingers' own command runs from 1 (open) to -1 and moves 0.2 a substep, or not at all.
        closed = (1 - self._measured["fingers"][0]) / 2
        missing = command[GRIPPER][0] - closed
        wanted[6] = np.sign(missing) if abs(missing) > 0.05 else 0.0
        self._ask("step", arrays={"action": wanted})

    def _distance(self) -> float:
        return float(np.linalg.norm(self._measured["objects"][0] - self._goal_object))

    def _solved(self) -> bool:
        return self._success

    def _time(self) -> float:
        return self._seconds

    def _draw(self, camera: str, size: int) -> np.ndarray:
        self._ask("render", camera=camera, size=size)
        return self._measured.pop("image")

    def _state(self) -> np.ndarray:
        self._ask("save")
        return self._measured.pop("state")

    def _restore(self, state: np.ndarray) -> None:
        self._ask("restore", arrays={"state": state})

    def _ask(
        self,
        op: str,
        *,
        seed: int | None = None,
        camera: str | None = None,
        size: int | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """Send one request, keep what was measured, and return the fields of the answer."""
        request = {"op": op, "seed": seed, "camera": camera, "size": size}
        answer, self._measured = self._server.ask(request, arrays or {})
        self._success, self._seconds = answer["success"], answer["time"]
        return answer


class Server:
    """The other process, `robosuite_server.py`, and the pipes to it."""

    def __init__(self, python: str | Path | None, task: str):
        """Start it.

        Args:
            python: The Python that has robosuite.
            task: robosuite's name of the task.

        Raises:
            RuntimeError: No Python is named, or it does not start.
        """
        if not python:
            raise NoRobosuiteError(
                f"robosuite runs in an environment of its own: set {PYTHON_VARIABLE} to its Python "
                "(docs/bridges.md says how to make one)"
            )
        script = Path(__file__).with_name("robosuite_server.py")
        self._log = tempfile.TemporaryFile()  # what the other process prints
        try:
            self._process = subprocess.Popen(
                [str(python), "-I", str(script), task],  # isolated: no package nor folder of ours
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, "MUJOCO_GL": "egl"},
            )
        except OSError as error:
            self._log.close()
            raise RuntimeError(f"{PYTHON_VARIABLE}={python} does not start: {error}") from error
        self._requests = cast(IO[bytes], self._process.stdin)
        self._answers = cast(IO[bytes], self._process.stdout)

    def ask(
        self, request: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the answer to a request.

        Raises:
            RuntimeError: The process ended, or says that the request failed.
        """
        try:
            write_message(self._requests, request, arrays)
            answer, measured = read_message(self._answers)
        except (EOFError, BrokenPipeError) as error:
            last_words = self._last_words()
            self.close()
            raise RuntimeError(
                f"the robosuite process ended; its last words: {last_words}"
            ) from error
        if "error" in answer:
            raise RuntimeError(f"robosuite could not {request['op']}: {answer['error']}")
        return answer, measured

    def close(self) -> None:
        """End the process; once is enough, more does no harm."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(BrokenPipeError):  # what was not sent need not be
                pipe.close()
        self._process.wait(timeout=30)
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"
