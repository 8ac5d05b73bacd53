"""What the environments of other projects have in common once they speak this project's convention.

Observation, action and info are those of `worldmodel.envs.franka_env.FrankaEnv`, so the same
controller, collection and evaluation run on them. Beneath, an arm that is driven at `SUBSTEP_HZ` by
changes of its *measured* pose follows ours, which are changes of the last *command*.
"""

import abc
from typing import Any, Literal

import gymnasium
import numpy as np

from worldmodel.envs.expert import Policy
from worldmodel.envs.franka_env import STAGE_MARGIN, Subgoal, checked_action
from worldmodel.envs.waypoints import Follow, Waypoint, end_of_stages
from worldmodel.pose import PROPRIO_SIZE, integrate

SUBSTEP_HZ = 20.0
CARRY_HEIGHT = 0.12  # [m] above where an object is taken or put
_PLACEMENTS = 100  # draws of a start before giving up


class GoalImageEnv(gymnasium.Env, abc.ABC):
    """A foreign arm behind the observation, action and info of `FrankaEnv`.

    Observation: ``image`` and ``goal_image`` (size, size, 3) uint8 RGB, ``proprio`` and
    ``goal_proprio`` (7,) float32. Action: (7,), the change of proprio over one step, added to the
    last command; finite values beyond `action_space` are clipped to it, so an axis that the arm
    does not have takes part as zero. Info: ``distance`` [m], ``success`` as the benchmark itself
    counts it, ``timestamp`` [simulated s since the reset].

    ``terminated`` is ``success`` unless `terminate_on_success` is off: both benchmarks end an
    episode at its first success.

    Attributes:
        control_hz: Steps per simulated second.
        goal_rejections: Starts drawn again since the environment was made, because they were solved
            already or no goal image could be made.
        max_action: Largest action (7,); zero for an axis that the arm does not have.
        place_low: Smallest x, y of a place on the table where an object may be put [m].
        place_high: Largest.
        renderer_name: Which renderer draws.
        robot: Name of the arm, for the records.
        mujoco_version: Of the simulator, for the records.
        subgoals: What the camera should show at the end of each stage; empty before the first
            reset.
        task_name: Name of the task, as in `worldmodel.envs.bridges.make`.
        workspace_low: Smallest x, y, z of the tool [m].
        workspace_high: Largest.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    renderer_name: Literal["gl", "ray"]
    robot: str
    mujoco_version: str
    place_low: np.ndarray
    place_high: np.ndarray
    workspace_low: np.ndarray
    workspace_high: np.ndarray

    def __init__(
        self,
        *,
        task_name: str,
        cameras: tuple[str, ...],
        camera: str,
        image_size: int,
        render_size: int,
        control_hz: float,
        render_mode: str | None,
        terminate_on_success: bool,
        max_action: np.ndarray,
    ):
        """Check the settings; the scene itself belongs to the subclass.

        Raises:
            ValueError: For an unknown camera or mode, a size below 1, or a rate that does not
                divide 20 Hz.
        """
        for name, size in (("image_size", image_size), ("render_size", render_size)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {size}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        substeps = SUBSTEP_HZ / control_hz if control_hz > 0 else 0.0
        if substeps < 1 or abs(substeps - round(substeps)) > 1e-9:
            raise ValueError(
                f"control_hz must divide the {SUBSTEP_HZ:g} Hz of {task_name}, got {control_hz:g}"
            )
        self.task_name, self.cameras = task_name, cameras
        self._check_camera(camera)
        self.camera, self.image_size, self.render_size = camera, image_size, render_size
        self.control_hz, self.render_mode = control_hz, render_mode
        self.terminate_on_success = terminate_on_success
        self.metadata = {**self.metadata, "render_fps": control_hz}
        self.max_action = np.asarray(max_action, np.float32)
        self.subgoals: tuple[Subgoal, ...] = ()
        self.goal_rejections = 0
        self._substeps = round(substeps)
        self._command = np.zeros(PROPRIO_SIZE)

        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        high = np.array([2.0] * 3 + [3.1416, 1.5708, 3.1416] + [1.0], np.float32)
        low = -high
        low[-1] = 0.0
        proprio = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            image=image, proprio=proprio, goal_image=image, goal_proprio=proprio
        )
        self.action_space = gymnasium.spaces.Box(
            -self.max_action, self.max_action, dtype=np.float32
        )

    @abc.abstractmethod
    def features(self) -> np.ndarray:
        """Return the true state (n,): tool x, y, z [m], gripper, x, y, z of every object [m].

        For baselines that may look; no planner should.
        """

    @abc.abstractmethod
    def waypoints(self) -> list[Waypoint]:
        """Return how a scripted expert goes from this state to the goal."""

    @abc.abstractmethod
    def _begin(self, options: dict[str, Any], *, demonstrate: bool) -> bool:
        """Draw a start and make its `subgoals`; return whether the episode is worth playing.

        With `demonstrate` off nobody will look at the goal.
        """

    @abc.abstractmethod
    def _proprio(self) -> np.ndarray:
        """Return the measured proprio (7,) float64."""

    @abc.abstractmethod
    def _substep(self, start: np.ndarray, command: np.ndarray, part: float) -> None:
        """Drive towards the pose a `part` of the way from `start` to `command`, for one substep."""

    @abc.abstractmethod
    def _distance(self) -> float:
        """Return the distance to the goal [m]."""

    @abc.abstractmethod
    def _solved(self) -> bool:
        """Return whether the benchmark counts this state as success."""

    @abc.abstractmethod
    def _time(self) -> float:
        """Return the simulated time since the reset [s]."""

    @abc.abstractmethod
    def _draw(self, camera: str, size: int) -> np.ndarray:
        """Return uint8 RGB (size, size, 3)."""

    @abc.abstractmethod
    def _state(self) -> np.ndarray:
        """Return the whole state of the simulation."""

    @abc.abstractmethod
    def _restore(self, state: np.ndarray) -> None:
        """Put the simulation back into a state of `_state`."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode with a new goal; starts that are solved already are drawn again.

        Args:
            seed: Seed of this and the following episodes; None goes on from the last.
            options: Reset options of the benchmark, see the subclass; and ``demonstrate``, False
                for data that need no goal: where making one takes an expert, it is left out.

        Raises:
            ValueError: For an unknown option.
            RuntimeError: No start was found that is worth playing.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        demonstrate = options.pop("demonstrate", True)
        for _ in range(_PLACEMENTS):
            worth_playing = self._begin(dict(options), demonstrate=demonstrate)
            if worth_playing and not self._solved():
                break
            self.goal_rejections += 1
        else:
            raise RuntimeError(
                f"{_PLACEMENTS} starts of {self.task_name} in a row were solved already or had no "
                "goal; give other reset options"
            )
        self._command = self._proprio()
        return self._observation(), self._info(success=False)

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move by one action (7,).

        Raises:
            ValueError: For an action of the wrong shape, or one that is not finite.
            RuntimeError: Before the first `reset`.
        """
        if not self.subgoals:
            raise RuntimeError("call reset() before step(): there is no goal yet")
        info = self._info(success=self._move(checked_action(action)))
        terminated = self.terminate_on_success and info["success"]
        return self._observation(), -info["distance"], terminated, False, info

    def imagine(self, plans: np.ndarray) -> np.ndarray:
        """Return the true state (S, n) after each of S plans (S, H, 7), the scene left as it is."""
        state, command = self._state(), self._command
        imagined = []
        for plan in np.asarray(plans, float):
            for action in plan:
                self._move(action)
            imagined.append(self.features())
            self._restore(state)
            self._command = command
        return np.stack(imagined)

    def expert(self) -> Follow:
        """Return the scripted expert, to be followed from this state; it looks at the objects."""
        return Follow(self.waypoints(), closed=bool(self._command[-1] > 0.5))

    def make_policy(self, name: str) -> Policy:
        """Return a behaviour for this episode; see `worldmodel.envs.bridges.behaviours`."""
        from worldmodel.envs.bridges import behaviours  # which needs this module

        return behaviours.make_policy(name, self)

    def view(self, camera: str, *, size: int | None = None) -> np.ndarray:
        """Return what any camera sees now, uint8 RGB (size, size, 3); default `image_size`.

        Raises:
            ValueError: For an unknown camera.
        """
        self._check_camera(camera)
        return self._draw(camera, size or self.image_size)

    def render(self) -> np.ndarray | None:
        """Return a larger image (render_size, render_size, 3) uint8 RGB, None without a mode."""
        return None if self.render_mode is None else self._draw(self.camera, self.render_size)

    def _demonstrate(self, most_steps: int) -> tuple[tuple[Subgoal, ...], bool]:
        """Let the expert go on from here; return what it showed, and whether it solved the task."""
        self._command = self._proprio()
        way = self.expert()
        ends = end_of_stages(way, proprio=self._proprio, act=self._move, most_steps=most_steps)
        subgoals = tuple(self._subgoal(name, steps=steps) for name, steps in ends)
        return subgoals, way.done and self._solved()

    def _subgoal(self, name: str, *, steps: int) -> Subgoal:
        """Return what is seen now, as the end of a stage that took so many steps."""
        return Subgoal(
            name=name,
            image=self._draw(self.camera, self.image_size),
            proprio=self._proprio().astype(np.float32),
            features=self.features(),
            max_steps=2 * steps + STAGE_MARGIN,
        )

    def _move(self, action: np.ndarray) -> bool:
        """Execute one action; return whether the benchmark was solved at any substep."""
        start = self._command
        command = integrate(start, np.clip(action, -self.max_action, self.max_action))
        command[:3] = np.clip(command[:3], self.workspace_low, self.workspace_high)
        solved = False
        for substep in range(self._substeps):
            self._substep(start, command, (substep + 1) / self._substeps)
            solved = solved or self._solved()
        self._command = command
        return solved

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "image": self._draw(self.camera, self.image_size),
            "proprio": self._proprio().astype(np.float32),
            "goal_image": self.subgoals[-1].image.copy(),
            "goal_proprio": self.subgoals[-1].proprio.copy(),
        }

    def _info(self, *, success: bool) -> dict[str, Any]:
        return {"distance": self._distance(), "success": success, "timestamp": self._time()}

    def _check_camera(self, camera: str) -> None:
        if camera not in self.cameras:
            raise ValueError(
                f"{self.task_name} has no camera {camera!r}; available: {', '.join(self.cameras)}"
            )


def pick_and_place(
    taken: np.ndarray, put: np.ndarray, *, release: bool, height: float = CARRY_HEIGHT
) -> list[Waypoint]:
    """Return the waypoints that carry an object from `taken` (3,) to `put` (3,) [m].

    With `release` off the object is held at the end.
    """
    x, y, z = (float(value) for value in taken)
    to_x, to_y, to_z = (float(value) for value in put)
    above = max(z, to_z) + height
    carried = [
        Waypoint((x, y, above), closed=False, stage="above"),
        Waypoint((x, y, z), closed=False, stage="around"),
        Waypoint((x, y, z), closed=True, stage="grasp"),
    ]
    if not release:
        return [*carried, Waypoint((to_x, to_y, to_z), closed=True, stage="lift")]
    return [
        *carried,
        Waypoint((x, y, above), closed=True, stage="lift"),
        Waypoint((to_x, to_y, above), closed=True, stage="carry"),
        Waypoint((to_x, to_y, to_z), closed=True, stage="lower"),
        Waypoint((to_x, to_y, to_z), closed=False, stage="place"),
        Waypoint((to_x, to_y, above), closed=False),
    ]
