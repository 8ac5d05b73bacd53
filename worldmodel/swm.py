"""stable-worldmodel's planners on our world models.

stable-worldmodel (swm) plans with anything that has ``get_cost(info, candidates) -> costs``; its
`World` then evaluates the plans on gymnasium environments. Its conventions: every entry of ``info``
is (environments B, samples S, time T, ...), repeated over the samples; candidates are in the units
of the solver's noise, which is around 1, so that a scaler must turn them into physical actions; and
``action_block`` actions of the environment stand side by side in the last axis of a step.

    scaler = ActionScaler(world.action_limit)
    cost = SWMCostModel(
        world, scaler=scaler, env_hz=4.0, image_key="image", goal_key="goal_image"
    )
    solver = stable_worldmodel.solver.CEMSolver(cost, var_scale=0.5)
    policy = WorldModelPolicy(solver, PlanConfig(horizon=3, receding_horizon=1),
                              process={"action": scaler})

swm does not bound what its solvers try, nor know the rate of a model; both are checked here.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.interfaces import Cost, Observation, WorldModel
from worldmodel.planners.scoring import score_plans
from worldmodel.pose import (
    ACTION_SIZE,
    GRIPPER,
    POSITION,
    PROPRIO_SIZE,
    ROTATION,
    action_between,
    euler_to_matrix,
    matrix_to_euler,
)

RATE_TOLERANCE = 1e-3  # relative
_CONTEXT_ENTRY, _GOAL_ENTRY = "worldmodel_context", "worldmodel_goal"


class ActionScaler:
    """Turns actions in units of `scale` into physical ones, at most `scale`, and back.

    Both the policy (`process={"action": scaler}`) and the cost need the same one, so that what is
    executed is what was imagined.
    """

    def __init__(self, scale: Sequence[float]):
        """Takes the largest change per axis (7,), physical units; 0 fixes an axis to zero.

        Raises:
            ValueError: Not seven numbers from zero up.
        """
        values = np.asarray(scale, np.float64)
        if values.shape != (ACTION_SIZE,) or not (values >= 0).all():
            raise ValueError(f"scale must be {ACTION_SIZE} numbers from 0 up, got {scale!r}")
        self.scale = values

    def transform(self, actions: np.ndarray) -> np.ndarray:
        """Returns physical actions (..., blocks * 7) in units of `scale`, 0 on a fixed axis."""
        blocks = actions.reshape(*actions.shape[:-1], -1, ACTION_SIZE)
        safe = np.where(self.scale > 0, self.scale, np.inf)
        return (blocks / safe).astype(np.float32).reshape(actions.shape)

    def inverse_transform(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions (..., blocks * 7) in physical units, clipped to `scale`."""
        blocks = actions.reshape(*actions.shape[:-1], -1, ACTION_SIZE)
        physical = np.clip(blocks, -1, 1) * self.scale
        return physical.astype(np.float32).reshape(actions.shape)


class SWMCostModel:
    """A world model as stable-worldmodel's solvers see it (protocol ``Costable``)."""

    def __init__(
        self,
        world: WorldModel,
        *,
        scaler: ActionScaler,
        env_hz: float,
        action_block: int = 1,
        cost: Cost | None = None,
        image_key: str = "pixels",
        goal_key: str = "goal",
        proprio_key: str = "proprio",
        chunk_size: int | None = None,
        device: str | torch.device = "cpu",
    ):
        """Wraps a world model.

        Args:
            world: The world model, in evaluation mode.
            scaler: Turns candidates into physical actions.
            env_hz: Steps per second of the environment.
            action_block: Steps of the environment in one step of the model, as in swm's
                `PlanConfig`.
            cost: Scores imagined futures; None is the terminal latent L1 energy.
            image_key: Entry of ``info`` with the camera images: uint8 (B, S, T, height, width, 3),
                or float (B, S, T, 3, height, width) that were normalised already.
            goal_key: Entry with the goal images, in the same form.
            proprio_key: Entry with proprio (B, S, T, 7).
            chunk_size: Most plans imagined at once per environment; None is all.
            device: Where `world` takes its frames.

        Raises:
            ValueError: A step of the plan would not last as long as a step of the model.
        """
        step_hz = env_hz / action_block
        known = getattr(world, "control_hz", None)
        if known is not None and abs(step_hz - known) > RATE_TOLERANCE * known:
            raise ValueError(
                f"a step of {action_block} environment steps at {env_hz:g} Hz runs at "
                f"{step_hz:g} Hz, but the model was trained at {known:g} Hz; choose an "
                "action_block that makes them equal"
            )
        self.world, self.scaler, self.action_block = world, scaler, action_block
        self.cost = cost if cost is not None else LatentEnergy()
        self.image_key, self.goal_key, self.proprio_key = image_key, goal_key, proprio_key
        self.chunk_size, self.device = chunk_size, torch.device(device)

    @torch.inference_mode()
    def get_cost(
        self, info_dict: dict, action_candidates: Float[Tensor, "batch sample horizon blocks"]
    ) -> Float[Tensor, "batch sample"]:
        """Returns the cost of every candidate; lower is better.

        What was encoded is kept in `info_dict`, which swm's solvers pass again with every
        iteration on the same observation, and build anew for the next.

        Raises:
            KeyError: `info_dict` lacks an image, a goal or proprio; names what it has.
            ValueError: A wrong shape.
        """
        width = self.action_block * ACTION_SIZE
        if action_candidates.ndim != 4 or action_candidates.shape[-1] != width:
            raise ValueError(
                f"action candidates must be (environments, samples, horizon, {width}) for "
                f"action_block={self.action_block}, got {tuple(action_candidates.shape)}"
            )
        if _CONTEXT_ENTRY not in info_dict:
            info_dict[_CONTEXT_ENTRY] = self._observe(info_dict)
            info_dict[_GOAL_ENTRY] = self._encode(info_dict, self.goal_key)[:, -1]
        plans = self._physical(action_candidates)
        costs = score_plans(
            self.world,
            self.cost,
            info_dict[_CONTEXT_ENTRY],
            info_dict[_GOAL_ENTRY],
            plans.to(self.device),
            chunk_size=self.chunk_size,
        )
        return costs.to(action_candidates.device)

    def _observe(self, info: dict) -> Observation:
        proprio = self._entry(info, self.proprio_key).float().to(self.device)
        if proprio.ndim != 3 or proprio.shape[-1] != PROPRIO_SIZE:
            raise ValueError(
                f"info[{self.proprio_key!r}] must be (environments, samples, time, "
                f"{PROPRIO_SIZE}), got {tuple(info[self.proprio_key].shape)}"
            )
        # The measured motion, as in the training data.
        past = action_between(proprio[:, :-1], proprio[:, 1:])
        latents = self._encode(info, self.image_key)
        return Observation(latents=latents, proprio=proprio, past_actions=past)

    def _encode(self, info: dict, key: str) -> Float[Tensor, "batch time token latent"]:
        return self.world.encode(self._entry(info, key).to(self.device))

    def _entry(self, info: dict, key: str) -> Tensor:
        """Returns an entry (B, T, ...): that of the first sample, for all are the same."""
        if key not in info:
            raise KeyError(f"info has no {key!r}; it has {', '.join(sorted(info))}")
        return torch.as_tensor(info[key])[:, 0]

    def _physical(self, candidates: Tensor) -> Float[Tensor, "batch sample horizon action"]:
        """Returns what the arm would do in each step of the model, (B, S, H, 7)."""
        blocks = candidates.float().unflatten(-1, (self.action_block, ACTION_SIZE))
        scale = torch.as_tensor(self.scaler.scale, dtype=blocks.dtype, device=blocks.device)
        physical = blocks.clamp(-1, 1) * scale
        moved = physical[..., POSITION].sum(-2)
        gripped = physical[..., GRIPPER].sum(-2)
        turned = euler_to_matrix(physical[..., 0, ROTATION])
        for step in range(1, self.action_block):
            turned = euler_to_matrix(physical[..., step, ROTATION]) @ turned
        return torch.cat([moved, matrix_to_euler(turned), gripped], dim=-1)
