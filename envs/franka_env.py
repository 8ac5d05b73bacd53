"""The gymnasium environment: a Franka arm, a task, and a goal shown as an image."""

import copy
import dataclasses
import difflib
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np

from worldmodel.envs import cameras, franka
from worldmodel.envs import variation as variations
from worldmodel.envs.control import Arm
from worldmodel.envs.disturbance import Disturbance
from worldmodel.envs.tasks import Task, make_task
from worldmodel.envs.varied import apply
from worldmodel.envs.waypoints import Follow, end_of_stages
from worldmodel.pose import ACTION_SIZE, GRIPPER
from worldmodel.views import camera_names, side_by_side

MAX_ACTION = np.array([0.075] * 3 + [0.15] * 3 + [1.0], np.float32)
"""Largest change of proprio in one step: [m], [rad], gripper."""

HOLD_STEPS = 3
"""Control steps in a row for which a task must be solved to count as success."""

_EXPERT_STEPS = 80  # control steps the expert may take to make the goal images
_PLACEMENTS = 100  # draws of a start before giving up
STAGE_MARGIN = 4  # control steps a stage may take besides twice the expert's


@dataclasses.dataclass(frozen=True, eq=False)
class Subgoal:
    """What the scripted expert saw at the end of a stage, on a copy of the scene.

    Attributes:
        name: Name of the stage, such as "grasp".
        image: uint8 RGB (size, size, 3), or (V, size, size, 3) of V cameras.
        proprio: Measured proprio (7,) float32.
        features: True state (n,), see `FrankaEnv.features`; no planner should look.
        max_steps: Control steps after which a controller should go on to the next stage.
    """

    name: str
    image: np.ndarray
    proprio: np.ndarray
    features: np.ndarray
    max_steps: int


class FrankaEnv(gymnasium.Env):
    """Move a simulated Franka arm until the scene looks like the goal image.

    Observation: ``image`` and ``goal_image`` (size, size, 3) uint8 RGB, with several cameras
    (V, size, size, 3); ``proprio`` and ``goal_proprio`` (7,) float32; the arrays are the caller's
    to keep.

    Action: (7,), the change of proprio (`worldmodel.pose`) over one step, added to the last
    command. Finite values beyond `MAX_ACTION` are clipped to it.

    Reward: minus the distance to the goal [m]. Info: ``distance`` [m]; ``success``, whether the
    task has been solved for `HOLD_STEPS` steps in a row; ``timestamp`` [simulated s since the
    reset].

    Goals are made by the task's scripted expert on a copy of the scene: `subgoals` has what it saw
    at the end of each stage, ``goal_image`` is the last of them. A start that is already solved, or
    that the expert cannot solve, is drawn again and counted in `goal_rejections`.

    ``terminated`` stays False unless `terminate_on_success`: a planner should hold the goal, not
    brush past it. ``truncated`` comes from the ``max_episode_steps`` of the registration.

    The same seed gives the same episode, bit for bit, on one machine and mujoco version with one
    renderer.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    robot = "franka"
    mujoco_version = mujoco.__version__

    def __init__(
        self,
        *,
        task: str | Task = "reach",
        variation: str = "none",
        image_size: int = 128,
        camera: str = "exterior",
        backend: cameras.Backend = "auto",
        control_hz: float = 4.0,
        render_mode: str | None = None,
        render_size: int = 256,
        terminate_on_success: bool = False,
    ):
        """Build the scene; nothing is drawn, and OpenGL not touched, before the first reset.

        Args:
            task: Name of a task, or a task.
            variation: What differs from episode to episode, such as ``mild``; see
                `worldmodel.envs.variation`.
            image_size: Side of the observed images [pixels].
            camera: Which camera is observed: ``exterior``, ``exterior_right`` or ``wrist``; or
                several of them, such as ``exterior+wrist``.
            backend: Which renderer draws: ``gl``, ``ray``, or ``auto`` (gl where OpenGL works).
            control_hz: Steps per simulated second.
            render_mode: ``rgb_array`` or None.
            render_size: Side of the image `render` returns [pixels].
            terminate_on_success: End the episode at the first success.

        Raises:
            ValueError: For an unknown name, a bad size or rate; names the nearest.
            RuntimeError: For ``gl`` where OpenGL does not work.
        """
        self._cameras = camera_names(camera)
        for name in self._cameras:
            _check_camera(name)
        for name, size in (("image_size", image_size), ("render_size", render_size)):
            if not 1 <= size <= franka.MAX_IMAGE_SIZE:
                raise ValueError(f"{name} must be 1 to {franka.MAX_IMAGE_SIZE} pixels, got {size}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.task = make_task(task) if isinstance(task, str) else task
        self._spec = variations.parse(variation)
        self.image_size, self.render_size, self.render_mode = image_size, render_size, render_mode
        self.camera, self.control_hz = camera, control_hz
        self.terminate_on_success = terminate_on_success
        self.renderer_name: Literal["gl", "ray"] = cameras.choose_backend(backend)
        """``gl`` or ``ray``: which renderer draws the images."""
        self.metadata = {**self.metadata, "render_fps": control_hz}

        model = franka.build_model(drawer=self.task.drawer)
        self._plain = copy.copy(model)
        self._arm = Arm(model, control_hz=control_hz)
        self._goal_arm = Arm(model, control_hz=control_hz)  # a second copy of the scene
        self._renderers: dict[int, cameras.Renderer] = {}
        self._solved_steps = 0
        self._disturbance = Disturbance(variations.Variation())
        self._disturbance_rng = np.random.default_rng(0)
        self.variation = variations.Variation()
        """How the scene of this episode differs from the plain one."""
        self.subgoals: tuple[Subgoal, ...] = ()
        """What the camera should show at the end of each stage; empty before the first reset."""
        self.goal_rejections = 0
        """Starts drawn again since the environment was made."""

        views = (len(self._cameras),) if len(self._cameras) > 1 else ()
        image = gymnasium.spaces.Box(0, 255, (*views, image_size, image_size, 3), np.uint8)
        low = np.array([-2.0] * 3 + [-np.pi, -np.pi / 2, -np.pi] + [0.0])
        high = np.array([2.0] * 3 + [np.pi, np.pi / 2, np.pi] + [1.0])
        proprio = gymnasium.spaces.Box(
            np.nextafter(np.float32(low), np.float32(-np.inf)),  # pi rounds outward in float32
            np.nextafter(np.float32(high), np.float32(np.inf)),
            dtype=np.float32,
        )
        self.observation_space = gymnasium.spaces.Dict(
            image=image, proprio=proprio, goal_image=image, goal_proprio=proprio
        )
        self.action_space = gymnasium.spaces.Box(-MAX_ACTION, MAX_ACTION, dtype=np.float32)

    @property
    def tcp_pos_base(self) -> np.ndarray:
        """Measured position (3,) of the tool centre point in the base frame [m]."""
        return self._arm.tcp_pos_base

    @property
    def joints(self) -> np.ndarray:
        """Measured joints [rad] and gripper (8,) float32."""
        return self._arm.joints

    @property
    def cube_pos_base(self) -> dict[str, np.ndarray]:
        """Position (3,) of each cube in the base frame [m]; no planner should look."""
        return {name: self._arm.data.body(name).xpos.copy() for name in franka.CUBES}

    @property
    def knob_pos_base(self) -> np.ndarray | None:
        """Position (3,) of the drawer's knob [m], None without one; no planner should look."""
        return self._arm.data.geom("drawer_knob").xpos.copy() if self.task.drawer else None

    @property
    def gripper_closed(self) -> bool:
        """Whether the gripper is commanded to close."""
        return self._arm.closed

    def features(self) -> np.ndarray:
        """Return the true state (n,) for baselines that may look; no planner should.

        Position of the tool [m], gripper, positions of the cubes [m], and opening of the drawer [m]
        where there is one.
        """
        return self._features(self._arm)

    def imagine(self, plans: np.ndarray) -> np.ndarray:
        """Return the true state (S, n) after each of S plans (S, H, 7), the scene left as it is."""
        states = []
        for plan in np.asarray(plans, float):
            self._goal_arm.copy_from(self._arm)
            for action in plan:
                self._goal_arm.step(np.clip(action, -MAX_ACTION, MAX_ACTION))
            states.append(self._features(self._goal_arm))
        return np.stack(states)

    def expert(self) -> Follow:
        """Return the task's scripted expert, to be followed from this state."""
        return Follow(self.task.waypoints(self._arm), closed=self._arm.closed)

    def _features(self, arm: Arm) -> np.ndarray:
        cubes = [arm.data.body(name).xpos for name in franka.CUBES]
        drawer = arm.data.joint("drawer").qpos if self.task.drawer else []
        return np.concatenate([arm.tcp_pos_base, arm.proprio[GRIPPER], *cubes, drawer])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode with a new goal.

        Args:
            seed: Seed of this and the following episodes; None goes on from the last.
            options: Reset options of the task, such as ``{"start_distance": (0.15, 0.3)}``; for
                reach see `worldmodel.envs.tasks.reach.Reach`.

        Raises:
            ValueError: For an unknown option, naming the nearest, or a wrong value.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        demonstrate = options.pop("demonstrate", True)
        for name in options:
            if name not in self.task.options:
                known = (*self.task.options, "demonstrate")
                raise ValueError(f"unknown reset option {_nearest(name, known)}")
        self._vary(int(self.np_random.integers(2**32)))
        for _ in range(_PLACEMENTS):
            self._arm.reset()
            self.task.reset(self._arm, self.np_random, options)
            self._arm.nudge(self.variation.start_offset, self.variation.start_yaw)
            self._arm.data.time = 0.0
            self._solved_steps = 0
            if not self.task.success(self._arm) and (not demonstrate or self._demonstrate()):
                break
            self.goal_rejections += 1
        else:
            raise RuntimeError(
                f"{_PLACEMENTS} starts in a row were solved already or beyond the expert; give "
                "other reset options"
            )
        if not demonstrate:
            self.subgoals = (self._subgoal("start", self._arm, steps=0),)
        return self._observation(), self._info()

    def _vary(self, seed: int) -> None:
        """Draw this episode's variation, from a stream of its own, and put it into the scene."""
        rng = np.random.default_rng(seed)
        self.variation = variations.draw(self._spec, rng)
        apply(self.variation, self._arm.model, plain=self._plain)
        self._disturbance, self._disturbance_rng = Disturbance(self.variation), rng

    def _demonstrate(self) -> bool:
        """Let the expert solve the task on a copy of the scene; return whether it did."""
        arm = self._goal_arm
        arm.copy_from(self._arm)
        way = Follow(self.task.waypoints(arm), closed=arm.closed)
        ends = end_of_stages(
            way, proprio=lambda: arm.proprio, act=arm.step, most_steps=_EXPERT_STEPS
        )
        self.subgoals = tuple(self._subgoal(name, arm, steps=steps) for name, steps in ends)
        return way.done and self.task.success(arm)

    def _subgoal(self, name: str, arm: Arm, *, steps: int) -> Subgoal:
        return Subgoal(
            name=name,
            image=self._look(arm, self.image_size),
            proprio=arm.proprio,
            features=self._features(arm),
            max_steps=2 * steps + STAGE_MARGIN,
        )

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move by one action (7,).

        Raises:
            ValueError: For an action of the wrong shape, or one that is not finite.
            RuntimeError: Before the first `reset`.
        """
        self._require_goal()
        values = self._disturbance.action(
            np.clip(checked_action(action), -MAX_ACTION, MAX_ACTION), self._disturbance_rng
        )
        self._arm.step(values)
        return self._outcome()

    def step_joints(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move by one change of `joints` (8,) [rad, gripper]; an arm that does not speak in poses.

        A variation's latency and noise are of actions in poses, and do not apply.

        Raises:
            ValueError: For an action of the wrong shape, or one that is not finite.
            RuntimeError: Before the first `reset`.
        """
        self._require_goal()
        values = np.asarray(action, float)
        if values.shape != self.joints.shape or not np.isfinite(values).all():
            raise ValueError(
                f"an action in joints is {self.joints.size} finite numbers: the change of each "
                f"joint [rad] and of the gripper; got {values.tolist()}"
            )
        self._arm.step_joints(values)
        return self._outcome()

    def _require_goal(self) -> None:
        if not self.subgoals:
            raise RuntimeError("call reset() before a step: there is no goal yet")

    def _outcome(self) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Return what gymnasium wants to know after a control step."""
        self._solved_steps = self._solved_steps + 1 if self.task.success(self._arm) else 0
        info = self._info()
        terminated = self.terminate_on_success and info["success"]
        return self._observation(), -info["distance"], terminated, False, info

    def render(self) -> np.ndarray | None:
        """Return a larger image (render_size, render_size, 3) uint8 RGB, None without a mode.

        With several cameras their pictures side by side.
        """
        if self.render_mode is None:
            return None
        return side_by_side(self._look(self._arm, self.render_size))

    def view(self, camera: str, *, size: int | None = None) -> np.ndarray:
        """Return what any camera sees now, uint8 RGB (size, size, 3); default `image_size`.

        Raises:
            ValueError: For an unknown camera, naming the nearest.
        """
        _check_camera(camera)
        return self._draw(self._arm, camera, size or self.image_size)

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _look(self, arm: Arm, size: int) -> np.ndarray:
        images = [self._draw(arm, camera, size) for camera in self._cameras]
        return np.stack(images) if len(images) > 1 else images[0]

    def _draw(self, arm: Arm, camera: str, size: int) -> np.ndarray:
        if size not in self._renderers:  # lazily: OpenGL must start in the process that draws
            self._renderers[size] = cameras.make_renderer(
                arm.model, size, size, backend=self.renderer_name
            )
        return self._renderers[size].render(arm.data, camera)

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "image": self._look(self._arm, self.image_size),
            "proprio": self._disturbance.proprio(self._arm.proprio, self._disturbance_rng),
            "goal_image": self.subgoals[-1].image.copy(),
            "goal_proprio": self.subgoals[-1].proprio.copy(),
        }

    def _info(self) -> dict[str, Any]:
        return {
            "distance": self.task.distance(self._arm),
            "success": self._solved_steps >= HOLD_STEPS,
            "timestamp": self._arm.data.time,
        }


def checked_action(action: np.ndarray) -> np.ndarray:
    """Return an action (7,) as float64.

    Raises:
        ValueError: It has another shape, or is not finite.
    """
    values = np.asarray(action, dtype=float)
    if values.shape != (ACTION_SIZE,):
        raise ValueError(
            f"an action has shape ({ACTION_SIZE},): dx, dy, dz [m], three rotation angles "
            f"[rad], gripper change; got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"an action must be finite, got {values.tolist()}")
    return values


def _check_camera(camera: str) -> None:
    if camera not in franka.CAMERAS:
        raise ValueError(f"unknown camera {_nearest(camera, franka.CAMERAS)}")


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """Return the tail of an error message about an unknown name."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name!r}; did you mean {nearest!r}? Available: {', '.join(known)}"
