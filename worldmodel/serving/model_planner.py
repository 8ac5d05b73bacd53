"""A world model and its search as the planner of a server: picture, goal and pose to actions."""

import numpy as np
import torch
from jaxtyping import Float, UInt8

from worldmodel.closed_loop import PlannerSettings, make_controller
from worldmodel.fleet import Body
from worldmodel.jepa import JEPA
from worldmodel.planners.split import split_plan
from worldmodel.training import Precision, autocast


class ModelPlanner:
    """Plans every request afresh: the time since the last one is the client's, not the model's."""

    def __init__(
        self,
        world: JEPA,
        settings: PlannerSettings,
        *,
        speed: float,
        turn_speed: float,
        device: torch.device,
    ):
        """Builds the planner.

        Args:
            world: the world model; it must know the rate it was trained at.
            settings: the search. What needs one request after the other is refused.
            speed: largest along each axis [m/s].
            turn_speed: largest about each axis [rad/s].
            device: where the model computes.

        Raises:
            ValueError: the world model has no rate, or the settings depend on earlier steps.
        """
        if world.control_hz is None:
            raise ValueError("the checkpoint states no control_hz, so its steps have no length")
        wanted = {"warm_start": False, "replan_every": 1, "num_context": 1, "gate": None}
        for name, value in wanted.items():
            if getattr(settings, name) != value:
                raise ValueError(
                    f"requests come at no fixed rate, so planner.{name} must be "
                    f"{'null' if value is None else str(value).lower()}, got "
                    f"{getattr(settings, name)}"
                )
        self.step_s = 1 / world.control_hz
        self._precision: Precision = settings.precision
        move, turn = speed * self.step_s, turn_speed * self.step_s
        most = np.array([move, move, move, turn, turn, turn, 1.0], dtype=np.float32)
        body = Body(control_hz=world.control_hz, action_low=-most, action_high=most, renderer="")
        self._controller = make_controller(world.to(device), settings, body, device=device)
        self._goal: np.ndarray | None = None

    def plan(
        self,
        image: UInt8[np.ndarray, "*views height width 3"],
        goal: UInt8[np.ndarray, "*views height width 3"],
        proprio: Float[np.ndarray, "7"],
        *,
        num_actions: int,
    ) -> Float[np.ndarray, "step 7"]:
        """Returns the first actions of a plan that fit in one step each, see `ActionPlanner`."""
        controller = self._controller
        with autocast(controller.device, self._precision):
            if goal is not self._goal:
                controller.set_goal(goal)
                self._goal = goal
            (decision,) = controller.act(image[None], proprio[None])
        planned = decision.plan.actions[0].float().cpu().numpy()
        bounds, snap = controller.step_bounds, controller.gripper_snap
        return split_plan(planned, bounds, snap, most=num_actions)
