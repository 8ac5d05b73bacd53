"""Planners: choose the actions whose imagined future looks like the goal.

A planner needs a world model that encodes and rolls out, a cost, and bounds; it knows no concrete
model and no environment (`interfaces.py` has the protocols and records it speaks).

    cem = CEM(cost=LatentEnergy(), horizon=1, num_samples=256, num_iterations=6)
    bounds = ActionBounds.symmetric([0.075] * 3 + [0.15] * 3 + [1.0])  # m, rad, gripper
    controller = MPC(
        world, cem, plan_bounds=bounds, step_bounds=bounds, control_hz=4.0,
        switch=SwitchRule(still_m=0.015), gripper_snap=0.25,
    )
    controller.set_goals([[GoalImage(above, 8), GoalImage(grasped, 10)]])  # or set_goal(image)
    [decision] = controller.act(image[None], proprio[None])  # decision.action is (7,) float32

    cem              the search                     energy     costs
    vjepa2           the published planner,         scoring    imagine and score
                     as settings of the search      mpc        the controller of one arm or many
    random_shooting  the baseline                   subgoals   goals of several images
    interfaces       protocols and records          split      long planned actions in short steps
    gate             slow, replan or hold          checks     argument checks
                     when surprised
    camera_rotation  plan behind a camera that stands elsewhere than in training
    action_space     what actions are changes of: poses of the hand, or joints
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
