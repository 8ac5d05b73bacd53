"""The gymnasium environment: a Franka arm, a task, and a goal shown as an image."""

import difflib
from typing import Any, Literal

import gymnasium
import numpy as np

from worldmodel.envs import cameras, franka
from worldmodel.envs.control import Arm
from worldmodel.envs.tasks import Task, make_task
from worldmodel.pose import ACTION_SIZE, PROPRIO_SIZE

MAX_ACTION = np.array([0.075] * 3 + [0.15] * 3 + [1.0], np.float32)
"""Largest change of proprio in one step: [m], [rad], gripper."""


class FrankaEnv(gymnasium.Env):
    """Move a simulated Franka arm until the scene looks like the goal image.

    Observation: ``image`` and ``goal_image`` (size, size, 3) uint8 RGB, ``proprio`` and
    ``goal_proprio`` (7,) float32; the arrays are the caller's to keep.

    Action: (7,), the change of proprio (`worldmodel.pose`) over one step, added to the last
    command. Finite values beyond `MAX_ACTION` are clipped to it.

    Reward: minus the distance to the goal [m]. Info: ``distance`` [m], ``success``, ``timestamp``
    [simulated s since the reset].

    ``terminated`` stays False unless `terminate_on_success`: a planner should hold the goal, not
    brush past it. ``truncated`` comes from the ``max_episode_steps`` of the registration.

    The same seed gives the same episode, bit for bit, on one machine and mujoco version with one
    renderer.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        *,
        task: str | Task = "reach",
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
            image_size: Side of the observed images [pixels].
            camera: Which camera is observed: ``exterior``, ``exterior_right`` or ``wrist``.
            backend: Which renderer draws: ``gl``, ``ray``, or ``auto`` (gl where OpenGL works).
            control_hz: Steps per simulated second.
            render_mode: ``rgb_array`` or None.
            render_size: Side of the image `render` returns [pixels].
            terminate_on_success: End the episode at the first success.

        Raises:
            ValueError: For an unknown name, a bad size or rate; names the nearest.
            RuntimeError: For ``gl`` where OpenGL does not work.
        """
        _check_camera(camera)
        for name, size in (("image_size", image_size), ("render_size", render_size)):
            if not 1 <= size <= franka.MAX_IMAGE_SIZE:
                raise ValueError(f"{name} must be 1 to {franka.MAX_IMAGE_SIZE} pixels, got {size}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.task = make_task(task) if isinstance(task, str) else task
        self.image_size, self.render_size, self.render_mode = image_size, render_size, render_mode
        self.camera, self.control_hz = camera, control_hz
        self.terminate_on_success = terminate_on_success
        self.renderer_name: Literal["gl", "ray"] = cameras.choose_backend(backend)
        """``gl`` or ``ray``: which renderer draws the images."""
        self.metadata = {**self.metadata, "render_fps": control_hz}

        model = franka.build_model()
        self._arm = Arm(model, control_hz=control_hz)
        self._goal_arm = Arm(model, control_hz=control_hz)  # a second copy of the scene
        self._renderers: dict[int, cameras.Renderer] = {}
        self._goal_image: np.ndarray | None = None
        self._goal_proprio = np.zeros(PROPRIO_SIZE, np.float32)

        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
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
    def cube_pos_base(self) -> dict[str, np.ndarray]:
        """Position (3,) of each cube in the base frame [m]; no planner should look."""
        return {name: self._arm.data.body(name).xpos.copy() for name in franka.CUBES}

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
        options = options or {}
        for name in options:
            if name not in self.task.options:
                raise ValueError(f"unknown reset option {_nearest(name, self.task.options)}")
        self._arm.reset()
        self.task.reset(self._arm, self.np_random, options)
        self._arm.data.time = 0.0
        self._goal_arm.copy_from(self._arm)
        self.task.move_to_goal(self._goal_arm)
        self._goal_image = self._draw(self._goal_arm, self.camera, self.image_size)
        self._goal_proprio = self._goal_arm.proprio
        return self._observation(), self._info()

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move by one action (7,).

        Raises:
            ValueError: For an action of the wrong shape, or one that is not finite.
            RuntimeError: Before the first `reset`.
        """
        if self._goal_image is None:
            raise RuntimeError("call reset() before step(): there is no goal yet")
        values = np.asarray(action, dtype=float)
        if values.shape != (ACTION_SIZE,):
            raise ValueError(
                f"an action has shape ({ACTION_SIZE},): dx, dy, dz [m], three rotation angles "
                f"[rad], gripper change; got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"an action must be finite, got {values.tolist()}")
        self._arm.step(np.clip(values, -MAX_ACTION, MAX_ACTION))
        info = self._info()
        terminated = self.terminate_on_success and info["success"]
        return self._observation(), -info["distance"], terminated, False, info

    def render(self) -> np.ndarray | None:
        """Return a larger image (render_size, render_size, 3) uint8 RGB, None without a mode."""
        if self.render_mode is None:
            return None
        return self._draw(self._arm, self.camera, self.render_size)

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

    def _draw(self, arm: Arm, camera: str, size: int) -> np.ndarray:
        if size not in self._renderers:  # lazily: OpenGL must start in the process that draws
            self._renderers[size] = cameras.make_renderer(
                arm.model, size, size, backend=self.renderer_name
            )
        return self._renderers[size].render(arm.data, camera)

    def _observation(self) -> dict[str, np.ndarray]:
        assert self._goal_image is not None  # set by reset; for the type checker
        return {
            "image": self._draw(self._arm, self.camera, self.image_size),
            "proprio": self._arm.proprio,
            "goal_image": self._goal_image.copy(),
            "goal_proprio": self._goal_proprio.copy(),
        }

    def _info(self) -> dict[str, Any]:
        distance = self.task.distance(self._arm)
        return {
            "distance": distance,
            "success": self.task.success(distance),
            "timestamp": self._arm.data.time,
        }


def _check_camera(camera: str) -> None:
    if camera not in franka.CAMERAS:
        raise ValueError(f"unknown camera {_nearest(camera, franka.CAMERAS)}")


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """Return the tail of an error message about an unknown name."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name!r}; did you mean {nearest!r}? Available: {', '.join(known)}"
