"""Planners: choose the actions whose imagined future looks like the goal.

A planner needs a world model that encodes and rolls out, a cost, and bounds; it knows no concrete
model and no environment (`interfaces.py` has the protocols and records it speaks).

    cem = CEM(cost=LatentEnergy(), horizon=1, num_samples=256, num_iterations=6)
    bounds = ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [1.0])  # m, rad, gripper
    controller = MPC(world, cem, plan_bounds=bounds, step_bounds=bounds, control_hz=4.0)
    controller.set_goal(goal_image)
    [decision] = controller.act(image[None], proprio[None])  # decision.action is (7,) float32

Files: `cem.py` the search; `vjepa2.py` the published V-JEPA 2-AC planner as settings of it;
`random_shooting.py` the baseline; `energy.py` costs; `scoring.py` imagine and score; `mpc.py` the
controller of one arm or many; `subgoals.py` goals of several images; `split.py` long planned
actions in short steps; `checks.py` argument checks.
"""

from worldmodel.planners.cem import CEM
from worldmodel.planners.energy import (
    ActionPenalty,
    LatentEnergy,
    WeightedSum,
    latent_l1,
)
from worldmodel.planners.interfaces import (
    ActionBounds,
    Cost,
    Observation,
    Plan,
    Planner,
    Proposer,
    WorldModel,
)
from worldmodel.planners.mpc import MPC, Decision
from worldmodel.planners.random_shooting import random_shooting
from worldmodel.planners.split import split_action
from worldmodel.planners.subgoals import GoalImage, SwitchRule
from worldmodel.planners.vjepa2 import vjepa2_bounds, vjepa2_cem

__all__ = [
    "CEM",
    "MPC",
    "ActionBounds",
    "ActionPenalty",
    "Cost",
    "Decision",
    "GoalImage",
    "LatentEnergy",
    "Observation",
    "Plan",
    "Planner",
    "Proposer",
    "SwitchRule",
    "WeightedSum",
    "WorldModel",
    "latent_l1",
    "random_shooting",
    "split_action",
    "vjepa2_bounds",
    "vjepa2_cem",
]
