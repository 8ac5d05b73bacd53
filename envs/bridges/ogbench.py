"""OGBench's cube manipulation (Park et al. 2024, arXiv 2410.20092) as a goal-image environment.

OGBench moves a UR5e with a 2F-85 gripper by 5 numbers at 20 Hz: changes of x, y, z, yaw and gripper
in [-1, 1], which stand for 5 cm, 0.3 rad and a whole stroke, *from the measured pose*. One step of
ours is five of its steps towards our command.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

from typing import Any

import mujoco
import numpy as np

from worldmodel.envs import cameras
from worldmodel.envs.bridges.goal_env import GoalImageEnv, pick_and_place
from worldmodel.envs.bridges.rearrange import rearrangement
from worldmodel.envs.franka_env import MAX_ACTION, Subgoal
from worldmodel.envs.waypoints import Waypoint
from worldmodel.extras import require
from worldmodel.pose import GRIPPER, POSITION, ROTATION, integrate, rotation_delta

TASKS = {"cube-single": 200, "cube-double": 500, "cube-triple": 1000, "cube-quadruple": 1000}
"""Steps an episode has in OGBench, at 20 Hz, by task."""

CAMERAS = {"exterior": "front_pixels", "front": "front"}
"""OGBench's cameras by our names: the one of its visual tasks, and one further back."""

RANGES = np.array([0.05, 0.05, 0.05, 0.3, 1.0])
"""What 1 means on each axis of OGBench's action: [m], [rad], gripper."""

GAIN = 2.5
"""Of the error at a substep, how much is asked of OGBench's servo, which does 39 % of it in 50 ms.

Its gains are kp = 10 kv, so a joint follows a step with a time constant of 0.1 s, and
1 / (1 - exp(-0.05 / 0.1)) = 2.54 would arrive within the substep.
"""


class OGBenchEnv(GoalImageEnv):
    """Put cubes where the goal image shows them.

    Goals are OGBench's own: each of five tasks has a place for every cube; the goal image shows the
    cubes there and the arm at a random pose, so a goal image says nothing about where the arm
    should end. It is the last of the `subgoals`; those before it, which OGBench does not have, show
    the stages of our scripted expert. Success is OGBench's: every cube within 4 cm of its place.
    Distance: of the cube that is farthest from its place.

    Reset options: ``task_id``, 1 to 5; by default drawn.
    """

    robot = "ur5e"
    mujoco_version = mujoco.__version__

    def __init__(
        self,
        *,
        task: str = "cube-single",
        image_size: int = 128,
        camera: str = "exterior",
        backend: cameras.Backend = "auto",
        control_hz: float = 4.0,
        render_mode: str | None = None,
        render_size: int = 256,
        terminate_on_success: bool = True,
    ):
        """Describe the scene; it is compiled at the first reset, which takes seconds.

        Args:
            task: A name in `TASKS`.
            image_size: Side of the observed images [pixels].
            camera: Which camera is observed, a name in `CAMERAS`.
            backend: Which renderer draws: ``gl``, ``ray``, or ``auto`` (gl where OpenGL works).
            control_hz: Steps per simulated second; must divide 20.
            render_mode: ``rgb_array`` or None.
            render_size: Side of the image `render` returns [pixels].
            terminate_on_success: End the episode at the first success, as OGBench does.

        Raises:
            ImportError: ogbench is not installed; the message is the command that installs it.
            ValueError: For an unknown name, a bad size or rate.
        """
        if task not in TASKS:
            raise ValueError(f"unknown OGBench task {task!r}; available: {', '.join(TASKS)}")
        super().__init__(
            task_name=f"ogbench/{task}",
            cameras=tuple(CAMERAS),
            camera=camera,
            image_size=image_size,
            render_size=render_size,
            control_hz=control_hz,
            render_mode=render_mode,
            terminate_on_success=terminate_on_success,
            max_action=MAX_ACTION * [1, 1, 1, 0, 0, 1, 1],  # the gripper always points down
        )
        require("ogbench", extra="ogbench")
        from worldmodel.envs.bridges.ogbench_scene import CubeScene

        self.renderer_name = cameras.choose_backend(backend)
        self._renderers: dict[int, cameras.Renderer] = {}
        self._scene = CubeScene(
            env_type=task.removeprefix("cube-"),
            largest_image=cameras.SUPERSAMPLING * max(image_size, render_size),
        )
        self._scene.draw = lambda: self._draw(self.camera, self.image_size)
        self.workspace_low, self.workspace_high = self._scene.workspace
        self.place_low, self.place_high = self._scene.places
        self._started = 0.0

    def features(self) -> np.ndarray:
        """Return the true state: tool x, y, z [m], gripper, x, y, z of every cube [m]."""
        return self._scene.features()

    def waypoints(self) -> list[Waypoint]:
        """Return how to carry each cube that is not in its place there."""
        carries = rearrangement(
            self._scene.cube_pos, self._scene.goal_pos, low=self.place_low, high=self.place_high
        )
        route = [w for taken, put in carries for w in pick_and_place(taken, put, release=True)]
        x, y, z = self._scene.tool_pos
        return route or [Waypoint((x, y, z), closed=False)]

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _begin(self, options: dict[str, Any], *, demonstrate: bool) -> bool:
        number = len(self._scene.task_infos)
        task_id = options.pop("task_id", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; available: task_id")
        if task_id is None:
            task_id = int(self.np_random.integers(1, number + 1))
        if task_id not in range(1, number + 1):
            raise ValueError(f"task_id must be 1 to {number}, got {task_id!r}")
        seed = int(self.np_random.integers(2**31))
        image, goal = self._scene.reset_from(seed, task_id=task_id)
        steps = round(TASKS[self.task_name.removeprefix("ogbench/")] / self._substeps)
        there = Subgoal(
            name="goal",
            image=image,
            proprio=goal[:7].astype(np.float32),
            features=goal[7:],
            max_steps=steps,
        )
        stages: tuple[Subgoal, ...] = ()
        solved = True
        if demonstrate:
            start = self._state()
            stages, solved = self._demonstrate(steps)
            self._restore(start)
        self.subgoals = (*stages, there)
        self._started = self._scene.data.time
        return solved

    def _proprio(self) -> np.ndarray:
        return self._scene.proprio()

    def _substep(self, start: np.ndarray, command: np.ndarray, part: float) -> None:
        measured = self._scene.proprio()
        target = start[POSITION] + part * (command[POSITION] - start[POSITION])
        yaw_left = rotation_delta(start[ROTATION], command[ROTATION])[2] * part
        turned = integrate(start, np.array([0, 0, 0, 0, 0, yaw_left, 0]))
        wanted = np.zeros(5)
        wanted[:3] = GAIN * (target - measured[POSITION])
        wanted[3] = GAIN * rotation_delta(measured[ROTATION], turned[ROTATION])[2]
        wanted[4] = (command[GRIPPER] - measured[GRIPPER])[0]  # its gripper has a servo of its own
        self._scene.step(np.clip(wanted / RANGES, -1, 1))

    def _distance(self) -> float:
        apart = np.linalg.norm(self._scene.cube_pos - self._scene.goal_pos, axis=1)
        return float(apart.max())

    def _solved(self) -> bool:
        return self._scene.solved()

    def _time(self) -> float:
        return float(self._scene.data.time - self._started)

    def _draw(self, camera: str, size: int) -> np.ndarray:
        if size not in self._renderers:  # lazily: OpenGL must start in the process that draws
            self._renderers[size] = cameras.make_renderer(
                self._scene.model, size, size, backend=self.renderer_name
            )
        return self._renderers[size].render(self._scene.data, CAMERAS[camera])

    def _state(self) -> np.ndarray:
        model, what = self._scene.model, mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.zeros(mujoco.mj_stateSize(model, what))
        mujoco.mj_getState(model, self._scene.data, state, what)
        return state

    def _restore(self, state: np.ndarray) -> None:
        model, data = self._scene.model, self._scene.data
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
