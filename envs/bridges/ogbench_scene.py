"""OGBench's cube scenes without what costs time and without chance that no seed governs."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# ogbench belongs to an extra; mujoco's compiled names have no type stubs.

from collections.abc import Callable

import gymnasium
import numpy as np
from ogbench.manipspace.envs.cube_env import CubeEnv

from worldmodel.pose import matrix_to_euler


class CubeScene(CubeEnv):
    """OGBench's `CubeEnv`, which observes (7 + 4 + 3 cubes,) numbers: proprio, then features.

    OGBench draws a picture at every one of its steps, with shadows; here only `draw` draws, when
    it is asked. OGBench takes the two random actions that settle a goal scene from a generator
    without a seed; here they come from `action_space`, which `reset_from` seeds.
    """

    def __init__(self, *, env_type: str, largest_image: int):
        """Describe the scene; it is compiled at the first reset.

        Args:
            env_type: How many cubes, in OGBench's words: single, double, triple or quadruple.
            largest_image: Side of the largest image that will be drawn [pixels].
        """
        self._actions = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        super().__init__(
            env_type=env_type,
            ob_type="pixels",  # the colours and the camera of the visual tasks
            visualize_info=False,  # nor does the goal show in the picture
            terminate_at_goal=False,
            width=largest_image,
            height=largest_image,
        )

    draw: Callable[[], np.ndarray]
    """Draws the goal image; called within a reset."""

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """Changes of x, y, z, yaw and gripper, all in [-1, 1]."""
        return self._actions

    def reset_from(self, seed: int, *, task_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Start task `task_id` (from 1); return its goal image, and what is observed there."""
        self._actions.seed(seed)
        options = {"task_id": task_id, "render_goal": True}
        _, info = self.reset(seed=seed, options=options)
        return info["goal_rendered"], info["goal"]

    def post_compilation(self) -> None:
        """Find the parts of the scene, and switch multisampling off."""
        super().post_compilation()
        self._model.vis.quality.offsamples = 0

    def compute_observation(self) -> np.ndarray:
        """Return proprio and features."""
        return np.concatenate([self.proprio(), self.features()])

    def render(self, camera: str | None = None) -> np.ndarray:
        """Return what `draw` draws."""
        return self.draw()

    def proprio(self) -> np.ndarray:
        """Return the measured proprio (7,); OGBench's base frame is the world's."""
        rotation = self._data.site_xmat[self._pinch_site_id].reshape(3, 3)
        return np.concatenate([self.tool_pos, matrix_to_euler(rotation), [self.gripper]])

    def features(self) -> np.ndarray:
        """Return the true state: tool [m], gripper, cubes [m]."""
        return np.concatenate([self.tool_pos, [self.gripper], self.cube_pos.ravel()])

    @property
    def tool_pos(self) -> np.ndarray:
        """Position (3,) of the point between the finger pads [m]."""
        return self._data.site_xpos[self._pinch_site_id].copy()

    @property
    def gripper(self) -> float:
        """How far the gripper is closed: 0 open to 1 closed."""
        return float(np.clip(self._data.qpos[self._gripper_opening_joint_id] / 0.8, 0, 1))

    @property
    def cube_pos(self) -> np.ndarray:
        """Positions of the cubes (cubes, 3) [m]."""
        return np.stack([self._data.joint(f"object_joint_{i}").qpos[:3] for i in self._cubes])

    @property
    def goal_pos(self) -> np.ndarray:
        """Where each cube should be (cubes, 3) [m]."""
        return np.stack([self._data.mocap_pos[self._cube_target_mocap_ids[i]] for i in self._cubes])

    @property
    def workspace(self) -> np.ndarray:
        """Smallest and largest x, y, z of the tool (2, 3) [m]."""
        return self._workspace_bounds

    @property
    def places(self) -> np.ndarray:
        """Smallest and largest x, y of a target (2, 2) [m]."""
        return self._target_sampling_bounds

    def solved(self) -> bool:
        """Return whether OGBench counts this state as success."""
        return all(self._compute_successes())

    @property
    def _cubes(self) -> range:
        return range(self._num_cubes)
