"""What comes between a policy and the arm: late actions, inexact actions, inexact measurements."""

import numpy as np

from worldmodel.envs.variation import Variation
from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    ROTATION,
    euler_to_matrix,
    matrix_to_euler,
)


class Disturbance:
    """Disturbs one episode's actions and measured poses; without noise or latency, not at all."""

    def __init__(self, variation: Variation):
        self._late = variation.latency_steps
        self._action_noise = variation.action_noise
        self._position_noise = variation.position_noise
        self._rotation_noise = variation.rotation_noise
        self.reset()

    def reset(self) -> None:
        """Forget the action that is still under way."""
        self._last = np.zeros(ACTION_SIZE)

    def action(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what the arm does in this step when told `action` (7,).

        Lateness by part of a step moves that part of every action into the next step, as for
        commands held at constant speed; one whole step delays each action by a step. Noise is
        Gaussian, its standard deviation a part of each component; the gripper has none.
        """
        done = np.asarray(action, float)
        if self._late:
            done, self._last = self._late * self._last + (1 - self._late) * done, done
        if self._action_noise:
            error = self._action_noise * rng.normal(size=ACTION_SIZE)
            error[GRIPPER] = 0.0
            done = done * (1 + error)
        return done

    def proprio(self, proprio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what is measured (7,) float32 at the true `proprio` (7,); the gripper exactly."""
        if not (self._position_noise or self._rotation_noise):
            return proprio
        measured = np.array(proprio, float)
        measured[POSITION] += self._position_noise * rng.normal(size=3)
        error = euler_to_matrix(self._rotation_noise * rng.normal(size=3))
        measured[ROTATION] = matrix_to_euler(error @ euler_to_matrix(measured[ROTATION]))
        return measured.astype(np.float32)
