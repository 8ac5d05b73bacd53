"""Drives simulated arms: a controller many at once, a scripted policy one; both leave results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from worldmodel.envs.expert import make_policy
from worldmodel.fleet import Arms, Body, Fleet, Start, View, reset, step
from worldmodel.jepa import JEPA
from worldmodel.joined_views import joined
from worldmodel.planners.camera_rotation import TurnedWorld
from worldmodel.planners.energy import latent_l1
from worldmodel.planners.gate import Gate
from worldmodel.planners.interfaces import ActionBounds, Planner, WorldModel
from worldmodel.planners.mpc import MPC, Decision
from worldmodel.planners.subgoals import GoalImage, SwitchRule
from worldmodel.pose import ACTION_SIZE
from worldmodel.results import EpisodeResult, Switch
from worldmodel.training import Precision, autocast
from worldmodel.views import side_by_side

if TYPE_CHECKING:
    from worldmodel.envs.franka_env import Subgoal

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

Look = Callable[["View | Subgoal"], np.ndarray]
"""What the controller is shown of a view, and of a sub-goal: uint8 (height, width, 3) or, with
several cameras, (V, height, width, 3)."""


@dataclass(frozen=True)
class PlannerSettings:
    """How the controller uses a planner.

    Attributes:
        search: Finds plans.
        axes: Names of the action axes it searches; the others stay zero.
        limits: Largest planned change per axis (7,), physical units; None takes the largest the
            world model was trained on.
        warm_start: Whether a plan starts from what is left of the one before.
        replan_every: Control steps between plans.
        num_context: Frames given to the predictor.
        deadline_ms: Time allowed for one decision; None is no limit.
        subgoals: Whether the planner is given an image for every stage of the task; otherwise the
            goal image alone.
        switch: When the arm is at a sub-goal and goes on to the next.
        gripper_snap: A planned gripper change above this is made in full, and a smaller one not
            at all, see `MPC`; None executes what was planned.
        gate: Slows, replans or holds on surprise; None does not look.
        camera_rotation: Turns the model's horizontal moves into the arm's (2, 2), see
            `worldmodel.planners.camera_rotation`; None: the camera stands as in training.
        precision: Of the world model: "float32", "bfloat16", or "auto", which is bfloat16 where
            the device is fast at it.
    """

    search: Planner
    axes: tuple[str, ...]
    limits: tuple[float, ...] | None
    warm_start: bool
    replan_every: int
    num_context: int
    deadline_ms: float | None
    subgoals: bool = True
    switch: SwitchRule = field(default_factory=SwitchRule)
    gripper_snap: float | None = None
    gate: Gate | None = None
    camera_rotation: np.ndarray | None = None
    precision: Precision = "auto"


def make_controller(
    world: WorldModel,
    settings: PlannerSettings,
    body: Body,
    *,
    num_arms: int = 1,
    device: torch.device,
) -> MPC:
    """Returns the controller of some arms of one kind.

    Raises:
        ValueError: An axis has no such name, the limits do not fit, or model and arm run at
            different rates.
    """
    unknown = [axis for axis in settings.axes if axis not in AXES]
    if unknown:
        raise ValueError(f"unknown action axes {unknown}; available: {', '.join(AXES)}")
    limits = settings.limits
    if limits is None:
        limits = getattr(world, "action_limit", None)
    if limits is None:
        raise ValueError(
            "the checkpoint states no action_limit; set planner.limits to the largest change per "
            "model step, seven numbers [m, rad, gripper]"
        )
    if len(limits) != ACTION_SIZE:
        raise ValueError(
            f"planner.limits must have {ACTION_SIZE} values ({', '.join(AXES)}), got {len(limits)}"
        )
    if isinstance(world, JEPA):
        world = joined(world)
    if settings.camera_rotation is not None:
        world = TurnedWorld(world, settings.camera_rotation)
    searched = [x if axis in settings.axes else 0.0 for axis, x in zip(AXES, limits, strict=True)]
    return MPC(
        world,
        settings.search,
        plan_bounds=ActionBounds.symmetric(searched),
        step_bounds=ActionBounds(
            low=torch.tensor(body.action_low), high=torch.tensor(body.action_high)
        ),
        control_hz=body.control_hz,
        warm_start=settings.warm_start,
        replan_every=settings.replan_every,
        num_context=settings.num_context,
        deadline_ms=settings.deadline_ms,
        num_arms=num_arms,
        switch=settings.switch,
        gripper_snap=settings.gripper_snap,
        gate=settings.gate,
        device=device,
    )


def camera(seen: "View | Subgoal") -> np.ndarray:
    """Returns what the cameras show: what a world model is given."""
    return seen.image


def drive(
    arms: Arms | Fleet,
    controller: MPC,
    seeds: Sequence[int],
    *,
    subgoals: bool = True,
    precision: Precision = "float32",
    look: Look = camera,
    goal_image: np.ndarray | None = None,
    on_step: Callable[[int, Decision, View], None] | None = None,
) -> list[EpisodeResult]:
    """Runs one episode of each seed, all arms in lockstep and planned in one batch.

    An arm's episode is the one it would have alone, up to rounding in the batched arithmetic; one
    that ends before the others waits for them.

    Args:
        arms: At least as many as there are seeds.
        controller: Of as many arms as there are seeds.
        seeds: Seeds of the environments' resets and of the planner's noise.
        subgoals: Whether it is given all sub-goals; otherwise the last, the goal, alone.
        precision: Of the world model, see `PlannerSettings`.
        look: What it is shown.
        goal_image: Overrides the episodes' own goals.
        on_step: Called before each action with the step, and decision and view of the first arm.
    """
    starts = arms.reset(seeds)
    routes = [_route(start, look, subgoals=subgoals, goal_image=goal_image) for start in starts]
    views = [start.view for start in starts]
    seen = [[view] for view in views]
    made: list[list[Decision]] = [[] for _ in seeds]
    with autocast(controller.device, precision):
        controller.reset(seeds=list(seeds))
        controller.set_goals([[goal for _, goal in route] for route in routes])
        going = list(range(len(seeds)))
        while going:
            decisions = controller.act(
                np.stack([look(views[arm]) for arm in going]),
                np.stack([views[arm].proprio for arm in going]),
                arms=going,
            )
            if on_step is not None and going[0] == 0:
                on_step(len(made[0]), decisions[0], views[0])
            actions: list[np.ndarray | None] = [None] * len(seeds)
            for arm, decision in zip(going, decisions, strict=True):
                made[arm].append(decision)
                actions[arm] = decision.action
            for arm, view in enumerate(arms.step(actions)):
                if view is not None:
                    views[arm] = view
                    seen[arm].append(view)
            going = [arm for arm in going if not views[arm].ended]
        last_goals = [
            route[of_arm[-1].stage][1].image for route, of_arm in zip(routes, made, strict=True)
        ]
        energies = energy_between(controller, [look(view) for view in views], last_goals)
    return [
        _result(
            seed,
            seen[arm],
            made[arm],
            names=tuple(name for name, _ in routes[arm]),
            last_energy=float(energies[arm]),
            goal_rejections=starts[arm].goal_rejections,
            alone=len(seeds) == 1,
            gated=controller.gate is not None,
        )
        for arm, seed in enumerate(seeds)
    ]


def run_policy(env: gymnasium.Env, seed: int, *, name: str) -> EpisodeResult:
    """Runs one episode of a policy of `worldmodel.envs.expert`."""
    start = reset(env, seed)
    inner: Any = env.unwrapped  # a FrankaEnv; gymnasium's type does not say so
    policy, rng = make_policy(name, inner), np.random.default_rng(seed)
    seen, actions = [start.view], []
    while not seen[-1].ended:
        actions.append(policy(seen[-1].proprio, rng))
        seen.append(step(env, actions[-1]))
    return EpisodeResult(
        seed=seed,
        **_measured(seen),
        actions=np.stack(actions).astype(float),
        stages=np.zeros(0, int),
        stage_names=(),
        switches=(),
        energies=np.zeros(0),
        plan_ms=np.zeros(0),
        encode_ms=np.zeros(0),
        goal_rejections=start.goal_rejections,
    )


def redraw(env: gymnasium.Env, episode: EpisodeResult) -> EpisodeResult:
    """Returns an episode with its pictures, by doing its actions again in the same world.

    Raises:
        RuntimeError: The simulation went another way than it did.
    """
    start = reset(env, episode.seed)
    frames, distances = [np.asarray(env.render())], [start.view.distance]
    for action in episode.actions:
        distances.append(step(env, action).distance)
        frames.append(np.asarray(env.render()))
    if distances != episode.distances.tolist():
        raise RuntimeError(
            f"the actions of episode {episode.seed} lead elsewhere when they are done again; the "
            "run folder may come from another machine or version: choose another run=..."
        )
    goals = start.subgoals if len(episode.stage_names) > 1 else start.subgoals[-1:]
    return replace(
        episode,
        frames=np.stack(frames),
        goal_images=np.stack([side_by_side(goal.image) for goal in goals]),
    )


@torch.inference_mode()
def energy_between(
    controller: MPC, images: Sequence[np.ndarray], goals: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns the latent energy (B,) between images and goals, as the controller measures it."""
    pairs = torch.from_numpy(np.stack([images, goals], axis=1)).to(controller.device)
    latents = controller.world.encode(pairs)  # (B, 2, N, D)
    return latent_l1(latents[:, 0], latents[:, 1]).cpu().numpy()


def _route(
    start: Start, look: Look, *, subgoals: bool, goal_image: np.ndarray | None
) -> list[tuple[str, GoalImage]]:
    """Returns names and images of what is to be reached, in order."""
    if goal_image is not None:
        return [("goal", GoalImage(image=goal_image))]
    wanted = start.subgoals if subgoals else start.subgoals[-1:]
    return [(goal.name, GoalImage(image=look(goal), max_steps=goal.max_steps)) for goal in wanted]


def _measured(seen: Sequence[View]) -> dict[str, Any]:
    """Returns what the simulator says of an episode."""
    return {
        "successes": np.array([view.success for view in seen]),
        "distances": np.array([view.distance for view in seen]),
        "features": np.stack([view.features for view in seen]),
    }


def _result(
    seed: int,
    seen: Sequence[View],
    made: Sequence[Decision],
    *,
    names: tuple[str, ...],
    last_energy: float,
    goal_rejections: int,
    alone: bool,
    gated: bool,
) -> EpisodeResult:
    stages = [decision.stage for decision in made]
    return EpisodeResult(
        seed=seed,
        **_measured(seen),
        actions=np.stack([decision.action for decision in made]).astype(float),
        stages=np.array([*stages, stages[-1]]),
        stage_names=names,
        switches=tuple(
            Switch(step=number, stage=decision.stage, reason=decision.switched)
            for number, decision in enumerate(made)
            if decision.switched is not None
        ),
        energies=np.array([*(decision.energy_now for decision in made), last_energy]),
        plan_ms=np.array([decision.plan_ms for decision in made] if alone else [], float),
        encode_ms=np.array([decision.encode_ms for decision in made] if alone else [], float),
        goal_rejections=goal_rejections,
        verdicts=tuple(decision.gate.verdict for decision in made) if gated else (),
    )
