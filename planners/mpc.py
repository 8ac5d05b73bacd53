"""Model predictive control: encode what the camera shows, plan, execute a little, look again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.planners.checks import require_count
from worldmodel.planners.energy import latent_l1
from worldmodel.planners.interfaces import (
    ActionBounds,
    Observation,
    Plan,
    Planner,
    WorldModel,
    require_finite,
)
from worldmodel.planners.split import split_action
from worldmodel.pose import ACTION_SIZE, PROPRIO_SIZE, action_between

RATE_TOLERANCE = 1e-3  # relative; a quarter second is often written 0.25 and sometimes 1 / 4.0001


@dataclass(frozen=True, eq=False)
class Decision:
    """What the controller chose for one control step, and why.

    Attributes:
        action: (7,) float32 to execute now, within the step bounds.
        plan: the plan it was taken from; the same object until the next replanning.
        energy_now: latent L1 between the present image and the goal image.
        predicted_energy: the planner's cost of `plan` when it was made: with the terminal
            `LatentL1Energy`, the energy imagined at its end.
        replanned: `plan` was made in this step.
        reached: `energy_now` is at most the goal tolerance. The controller keeps acting.
        encode_ms: time to encode the image.
        plan_ms: time to plan, 0 when an earlier plan was continued.
    """

    action: Float[np.ndarray, " action"]
    plan: Plan
    energy_now: float
    predicted_energy: float
    replanned: bool
    reached: bool
    encode_ms: float
    plan_ms: float


class MPC:
    """Receding-horizon control of one arm towards a goal image.

    Planned actions may be larger than the arm's step: each step executes the part of the first
    planned action that fits (see `split_action`). The next plan starts from what is left of this
    one: the remainder of its first action, the actions after it, and zero actions up to the
    horizon. With plan bounds equal to step bounds this is the plain shift by one step.
    """

    def __init__(
        self,
        world: WorldModel,
        planner: Planner,
        *,
        plan_bounds: ActionBounds,
        step_bounds: ActionBounds,
        control_hz: float,
        model_hz: float | None = None,
        warm_start: bool = True,
        replan_every: int = 1,
        deadline_ms: float | None = None,
        num_context: int = 1,
        goal_tolerance: float | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Builds the controller.

        Args:
            world: encodes images and imagines plans.
            planner: searches for plans.
            plan_bounds: actions the planner may imagine as one model step.
            step_bounds: actions the arm may execute in one control step. Each axis goes from below
                zero to above zero, or is fixed to zero in both bounds.
            control_hz: how often `act` is called, per second.
            model_hz: the rate the model was trained at, when `world` has no `control_hz`.
            warm_start: whether a plan starts from what is left of the one before; the public
                V-JEPA 2-AC controller starts each from zero.
            replan_every: control steps executed before planning again.
            deadline_ms: time allowed for one `act`, encoding included; None is no limit.
            num_context: most past frames given to the predictor. The first steps have fewer.
            goal_tolerance: energy at which `Decision.reached` becomes true; None is never.
            seed: of the planner's noise.
            device: where `world` takes its frames.
            clock: seconds, monotonic; replaced in tests.

        Raises:
            ValueError: rates differ, bounds do not fit each other, or a number is out of range.
        """
        _check_rates(world, control_hz, model_hz)
        _check_bounds(plan_bounds, step_bounds)
        require_count("replan_every", replan_every, low=1)
        require_count("num_context", num_context, low=1)
        if deadline_ms is not None and not deadline_ms > 0:
            raise ValueError(f"deadline_ms must be above 0, got {deadline_ms}")
        self.world = world
        self.planner = planner
        self.plan_bounds = plan_bounds
        self.step_bounds = step_bounds
        self.warm_start = warm_start
        self.replan_every = replan_every
        self.deadline_ms = deadline_ms
        self.num_context = num_context
        self.goal_tolerance = goal_tolerance
        self.seed = seed
        self.device = torch.device(device)
        self.clock = clock
        self.reset()

    def reset(self, *, seed: int | None = None) -> None:
        """Forgets goal, context and plan, and seeds the noise: the start of an episode.

        Args:
            seed: of the noise; None is the constructor's.
        """
        self._generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        self._context: list[tuple[Tensor, Tensor]] = []  # latents (1, 1, N, D), proprio (1, 1, P)
        self._goal: Tensor | None = None  # (1, N, D)
        self._goal_shape: tuple[int, ...] = ()
        self._forget_plan()

    @torch.inference_mode()
    def set_goal(self, goal_image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Sets the image to reach, RGB, and drops the present plan.

        Raises:
            TypeError: not a uint8 array.
            ValueError: not (height, width, 3).
        """
        _check_image("goal_image", goal_image)
        goal = self._encode(goal_image)[:, -1]
        require_finite("goal latents", goal)
        self._goal = goal
        self._goal_shape = goal_image.shape
        self._forget_plan()

    @torch.inference_mode()
    def act(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        proprio: Float[np.ndarray, " proprio"],
    ) -> Decision:
        """Returns what to do now. Call it once per control step, and execute what it returns.

        Args:
            image: what the camera shows, RGB, the size of the goal image.
            proprio: (7,) arm state measured with the image.

        Raises:
            TypeError: the image is not a uint8 array.
            ValueError: no goal is set; a wrong shape; a value that is not finite. The controller is
                then as it was before the call.
        """
        start = self.clock()
        if self._goal is None:
            raise ValueError("the controller has no goal; call set_goal(goal_image) before act")
        _check_image("image", image, expected=self._goal_shape)
        measured = _proprio_tensor(proprio)
        latents = self._encode(image)
        context = [*self._context, (latents, measured.to(latents.device))][-self.num_context :]
        observation = _observation(context)
        energy_now = float(latent_l1(latents[:, -1], self._goal))
        encode_ms = 1000 * (self.clock() - start)

        plan, pending, age, plan_ms = self._plan, self._pending, self._plan_age, 0.0
        replanned = plan is None or age >= self.replan_every or len(pending) == 0
        if plan is None or replanned:
            plan_start = self.clock()
            plan = self.planner.plan(
                self.world,
                observation,
                self._goal,
                bounds=self.plan_bounds,
                warm_start=_warm_start(plan, pending) if self.warm_start else None,
                deadline_ms=self._time_left_ms(start),
                generator=self._generator,
            )
            pending, age = plan.actions[0].cpu().double().numpy(), 0
            plan_ms = 1000 * (self.clock() - plan_start)

        action, rest = split_action(pending[0], self.step_bounds)
        self._pending = pending[1:] if rest is None else np.concatenate([rest[None], pending[1:]])
        self._plan, self._plan_age, self._context = plan, age + 1, context
        return Decision(
            action=action.astype(np.float32),
            plan=plan,
            energy_now=energy_now,
            predicted_energy=float(plan.cost[0]),
            replanned=replanned,
            reached=self.goal_tolerance is not None and energy_now <= self.goal_tolerance,
            encode_ms=encode_ms,
            plan_ms=plan_ms,
        )

    def _encode(self, image: np.ndarray) -> Tensor:
        # A copy: the array may be read-only, or the camera's own buffer.
        frame = torch.from_numpy(np.array(image)).to(self.device)
        return self.world.encode(frame[None, None])  # (1, 1, N, D)

    def _forget_plan(self) -> None:
        self._plan: Plan | None = None
        self._plan_age = 0  # control steps executed since it was made
        self._pending = np.zeros((0, ACTION_SIZE))  # what is left of it

    def _time_left_ms(self, start: float) -> float | None:
        if self.deadline_ms is None:
            return None
        return max(0.0, self.deadline_ms - 1000 * (self.clock() - start))


def _observation(context: list[tuple[Tensor, Tensor]]) -> Observation:
    latents, proprio = (torch.cat(parts, dim=1) for parts in zip(*context, strict=True))
    # The measured motion, as in the training data; the arm never follows a command exactly.
    past_actions = action_between(proprio[:, :-1], proprio[:, 1:])
    return Observation(latents=latents, proprio=proprio, past_actions=past_actions)


def _warm_start(plan: Plan | None, pending: np.ndarray) -> Tensor | None:
    if plan is None:
        return None
    warm_start = torch.zeros_like(plan.actions)  # (1, H, A)
    warm_start[0, : len(pending)] = torch.from_numpy(pending).to(warm_start)
    return warm_start


def _proprio_tensor(proprio: np.ndarray) -> Tensor:
    values = torch.from_numpy(np.array(proprio, dtype=np.float32))
    if values.shape != (PROPRIO_SIZE,):
        raise ValueError(f"proprio must have shape ({PROPRIO_SIZE},), got {tuple(values.shape)}")
    require_finite("observation proprio", values)
    return values[None, None]  # (1, 1, P)


def _check_image(name: str, image: np.ndarray, expected: tuple[int, ...] | None = None) -> None:
    if image.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8 RGB in [0, 255], got {image.dtype}")
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (height, width, 3), got {image.shape}")
    if expected is not None and image.shape != expected:
        raise ValueError(f"{name} has shape {image.shape} but the goal image has {expected}")


def _check_rates(world: WorldModel, control_hz: float, model_hz: float | None) -> None:
    trained_hz = getattr(world, "control_hz", None)
    if trained_hz is None:
        trained_hz = model_hz
    elif model_hz is not None and model_hz != trained_hz:
        raise ValueError(f"model_hz={model_hz:g} but the world model says {trained_hz:g} Hz")
    if trained_hz is None:
        raise ValueError(
            "the world model states no control_hz; pass the rate it was trained at as model_hz"
        )
    if not control_hz > 0 or abs(control_hz - trained_hz) > RATE_TOLERANCE * trained_hz:
        raise ValueError(
            f"control_hz is {control_hz:g} Hz but the model was trained at {trained_hz:g} Hz, "
            "so every move would be too long or too short; run the arm at the model's rate"
        )


def _check_bounds(plan_bounds: ActionBounds, step_bounds: ActionBounds) -> None:
    for name, bounds in (("plan_bounds", plan_bounds), ("step_bounds", step_bounds)):
        if bounds.low.shape != (ACTION_SIZE,):
            raise ValueError(f"{name} must have {ACTION_SIZE} axes, got {tuple(bounds.low.shape)}")
    step_low, step_high = step_bounds.low.cpu(), step_bounds.high.cpu()
    plan_low, plan_high = plan_bounds.low.cpu(), plan_bounds.high.cpu()
    still = (step_low == 0) & (step_high == 0)
    bad = (~still & ~((step_low < 0) & (step_high > 0))).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"step_bounds must go from below zero to above zero, or be zero, but axes {bad} go "
            f"from {step_low[bad].tolist()} to {step_high[bad].tolist()}"
        )
    stuck = (still & ((plan_low != 0) | (plan_high != 0))).nonzero().flatten().tolist()
    if stuck:
        raise ValueError(
            f"plan_bounds lets axes {stuck} move, which step_bounds fixes to zero; fix them in both"
        )
