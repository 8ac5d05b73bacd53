"""Model predictive control: encode what the cameras show, plan, execute a little, look again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldmodel.planners.action_space import POSES, ActionSpace, PoseSpace
from worldmodel.planners.checks import require_count
from worldmodel.planners.energy import latent_l1
from worldmodel.planners.gate import Gate, GateState
from worldmodel.planners.interfaces import (
    ActionBounds,
    Observation,
    Plan,
    Planner,
    WorldModel,
    require_finite,
)
from worldmodel.planners.split import slowed, snap_gripper, split_action
from worldmodel.planners.subgoals import GoalImage, SwitchReason, SwitchRule, check_image

NOTHING = np.zeros((0, 0))  # is pending of no plan
RATE_TOLERANCE = 1e-3  # relative; a quarter second is often written 0.25 and sometimes 1 / 4.0001


@dataclass(frozen=True, eq=False)
class PlanStart:
    """Where a search set out. From here, and with what `MPC.problem` returns, it does the same.

    Attributes:
        generator_state: (n,) of the arm's noise.
        warm_start: (H, A) float32, where the search began; None is nowhere.
    """

    generator_state: UInt8[np.ndarray, " byte"]
    warm_start: Float[np.ndarray, "horizon action"] | None


@dataclass(frozen=True, eq=False)
class Decision:
    """What the controller chose for one arm and one control step, and why.

    Attributes:
        action: (A,) float32 to execute now, within the step bounds.
        plan: the plan it was taken from, of this arm alone (a batch of one); the same object until
            the next replanning.
        start: where the search that found `plan` set out.
        energy_now: latent L1 between the present image and the present sub-goal.
        predicted_energy: the planner's cost of `plan` when it was made: with the terminal
            `LatentEnergy`, the energy imagined at its end.
        stage: which sub-goal `action` is for, counted from 0.
        switched: why the arm came to it in this step; None when it was there before.
        reached: the arm is at the last image of its goal, and `energy_now` is at most the switch
            rule's tolerance. The controller keeps acting.
        replanned: `plan` was made in this step.
        gate: what the surprise gate made of the step before; its default without a gate.
        encode_ms: time to encode the images of all arms.
        plan_ms: time to plan for all arms, 0 when an earlier plan was continued.
    """

    action: Float[np.ndarray, " action"]
    plan: Plan
    start: PlanStart
    energy_now: float
    predicted_energy: float
    stage: int
    switched: SwitchReason | None
    reached: bool
    replanned: bool
    gate: GateState
    encode_ms: float
    plan_ms: float


class MPC:
    """Receding-horizon control of one arm or many, each towards its own sequence of goal images.

    Planned actions may be larger than the arm's step: each step executes the part of the first
    planned action that fits (see `split_action`). The next plan starts from what is left of this
    one: the remainder of its first action, the actions after it, and zero actions up to the
    horizon. With plan bounds equal to step bounds this is the plain shift by one step.

    The images of all arms are encoded at once and their plans searched at once. Each arm has its
    own noise, so it does what it would do alone, up to the rounding of batched arithmetic. All
    methods take `arms`, the indices their arguments belong to, in that order; None is all arms.

        controller = MPC(world, planner, ..., num_arms=2, switch=SwitchRule(min_gain=0.05))
        controller.reset(seeds=[7, 8])
        controller.set_goals([[GoalImage(above, 4), GoalImage(grasped, 10)], [GoalImage(there)]])
        first, second = controller.act(images, proprio)
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
        num_arms: int = 1,
        switch: SwitchRule | None = None,
        gripper_snap: float | None = None,
        gate: Gate | None = None,
        warm_start: bool = True,
        replan_every: int = 1,
        deadline_ms: float | None = None,
        num_context: int = 1,
        seed: int = 0,
        device: str | torch.device = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Builds the controller.

        Args:
            world: encodes images and imagines plans. One with a `num_views` above 1 is shown
                images (V, height, width, 3), here and in goals. One with an `action_space` speaks
                in that, and all others in poses (`worldmodel.planners.action_space`).
            planner: searches for plans.
            plan_bounds: actions the planner may imagine as one model step.
            step_bounds: actions the arm may execute in one control step. Each axis goes from below
                zero to above zero, or is fixed to zero in both bounds.
            control_hz: how often `act` is called, per second.
            model_hz: the rate the model was trained at, when `world` has no `control_hz`.
            num_arms: arms B that are controlled at once.
            switch: when an arm goes on to its next sub-goal; None is by step limits alone.
            gripper_snap: a planned gripper change above this is executed as the whole step bound,
                and a smaller one not at all; None executes what was planned. A gripper that closes
                on an object stops early, so the change to plan for a firm grasp is a part of the
                change to command.
            gate: slows, replans or holds when the world does not do what the model predicted.
            warm_start: whether a plan starts from what is left of the one before; the public
                V-JEPA 2-AC controller starts each from zero.
            replan_every: control steps executed before planning again.
            deadline_ms: time allowed for one `act`, encoding included; None is no limit.
            num_context: most past frames given to the predictor. The first steps have fewer.
            seed: of the planner's noise; arm i has `seed + i` until `reset` says otherwise.
            device: where `world` takes its frames.
            clock: seconds, monotonic; replaced in tests.

        Raises:
            ValueError: rates differ, bounds do not fit each other, or a number is out of range.
        """
        space: ActionSpace = getattr(world, "action_space", POSES)
        _check_rates(world, control_hz, model_hz)
        _check_bounds(plan_bounds, step_bounds, action_size=space.action_size)
        require_count("num_arms", num_arms, low=1)
        require_count("replan_every", replan_every, low=1)
        require_count("num_context", num_context, low=1)
        if deadline_ms is not None and not deadline_ms > 0:
            raise ValueError(f"deadline_ms must be above 0, got {deadline_ms}")
        if gripper_snap is not None and not gripper_snap >= 0:
            raise ValueError(f"gripper_snap must be at least 0, got {gripper_snap}")
        if switch is not None and switch.still_m is not None and not isinstance(space, PoseSpace):
            raise ValueError(
                f"still_m={switch.still_m:g} of the switch rule is a way of the hand, and this "
                "world model speaks in joints; set it to None and give min_gain, tolerance or step "
                "limits"
            )
        self.world = world
        self.num_views: int = getattr(world, "num_views", 1)
        self.space = space
        self.planner = planner
        self.plan_bounds = plan_bounds
        self.step_bounds = step_bounds
        self.num_arms = num_arms
        self.switch = switch if switch is not None else SwitchRule()
        self.gripper_snap = gripper_snap
        self.gate = gate
        self.warm_start = warm_start
        self.replan_every = replan_every
        self.deadline_ms = deadline_ms
        self.num_context = num_context
        self.seed = seed
        self.device = torch.device(device)
        self.clock = clock
        self._arms: list[_Arm] = [_Arm.seeded(seed + i) for i in range(num_arms)]

    def reset(
        self, *, seeds: Sequence[int] | None = None, arms: Sequence[int] | None = None
    ) -> None:
        """Forgets goals, context and plans, and seeds the noise: the start of an episode.

        Args:
            seeds: of the noise, one per arm; None is the constructor's.
            arms: which arms start again.
        """
        chosen = self._chosen(arms)
        seeds = [self.seed + i for i in chosen] if seeds is None else seeds
        _check_number("seeds", len(seeds), chosen)
        for i, seed in zip(chosen, seeds, strict=True):
            self._arms[i] = _Arm.seeded(seed)

    @torch.inference_mode()
    def set_goals(
        self, goals: Sequence[Sequence[GoalImage]], *, arms: Sequence[int] | None = None
    ) -> None:
        """Sets the images each arm is to reach, in their order, and drops the present plans.

        Args:
            goals: for each arm at least one image.
            arms: which arms they are for.

        Raises:
            ValueError: an arm has no image, or the images differ in size.
        """
        chosen = self._chosen(arms)
        _check_number("goals", len(goals), chosen)
        empty = [i for i, goal in zip(chosen, goals, strict=True) if not goal]
        if empty:
            raise ValueError(f"arms {empty} have a goal of no images; give each at least one")
        flat = [goal for sequence in goals for goal in sequence]
        size = flat[0].image.shape[-3:-1]
        for goal in flat:
            check_image("goal image", goal.image, views=self.num_views, size=size)
        latents = self._encode(np.stack([goal.image for goal in flat]))[:, 0]  # (K, N, D)
        require_finite("goal latents", latents)
        stages = [
            _Stage(latents=latents[k : k + 1], max_steps=goal.max_steps, size=size)
            for k, goal in enumerate(flat)
        ]
        for i, sequence in zip(chosen, goals, strict=True):
            own, stages = tuple(stages[: len(sequence)]), stages[len(sequence) :]
            self._arms[i] = self._arms[i].heading_for(own)

    def set_goal(self, image: UInt8[np.ndarray, "*views height width 3"]) -> None:
        """Sets one image as the goal of the only arm.

        Raises:
            TypeError: not a uint8 array.
            ValueError: not (height, width, 3), or there are several arms.
        """
        if self.num_arms != 1:
            raise ValueError(
                f"set_goal is for one arm and this controller has {self.num_arms}; call set_goals"
            )
        self.set_goals([[GoalImage(image)]])

    @torch.inference_mode()
    def act(
        self,
        images: UInt8[np.ndarray, "arm *views height width 3"],
        proprio: Float[np.ndarray, "arm proprio"],
        *,
        arms: Sequence[int] | None = None,
        committed: Sequence[Float[np.ndarray, "_ action"]] | None = None,
    ) -> tuple[Decision, ...]:
        """Returns what each arm is to do now. Call it once per control step, and execute that.

        An arm that is at its sub-goal goes on and plans to the next one in the same call.

        Args:
            images: what each arm's camera shows, RGB, the size of the goal images.
            proprio: (B, P) arm states measured with the images.
            arms: which arms act; the others stay as they are.
            committed: of each arm, (n, A) actions of at most one model step each that are under
                way. The plan begins where they lead, as the world model imagines it. None is none.

        Raises:
            TypeError: the images are not a uint8 array.
            ValueError: an arm has no goal; a wrong shape; a value that is not finite. The
                controller is then as it was before the call, but for its noise.
        """
        start = self.clock()
        chosen = self._chosen(arms)
        states = [self._arms[i] for i in chosen]
        aimless = [i for i, arm in zip(chosen, states, strict=True) if not arm.stages]
        if aimless:
            raise ValueError(f"arms {aimless} have no goal; call set_goals before act")
        for arm in states:
            check_image("images", images, batch=True, views=self.num_views, size=arm.stages[0].size)
        _check_number("images", len(images), chosen)
        nothing = np.zeros((0, self.space.action_size))
        under_way = [nothing] * len(chosen) if committed is None else list(committed)
        _check_number("committed", len(under_way), chosen)
        measured = _proprio_tensor(proprio, num_arms=len(chosen), size=self.space.proprio_size)
        frames = self._frames(images)
        latents = self.world.encode(frames)  # (B, 1, N, D)
        measured = measured.to(latents.device)
        before = list(states)
        for k, arm in enumerate(states):
            states[k] = arm.seeing(latents[k : k + 1], measured[k : k + 1], most=self.num_context)
        if self.gate is not None:
            self._judge(self.gate, frames, before, states)

        switched: list[SwitchReason | None] = [None] * len(states)
        for k, (arm, energy) in enumerate(zip(states, _energies(states), strict=True)):
            if arm.may_go_on:
                switched[k] = self.switch.on_seeing(
                    energy=energy, steps=arm.steps, max_steps=arm.stages[arm.stage].max_steps
                )
                states[k] = arm.going_on() if switched[k] else arm
        encode_ms = 1000 * (self.clock() - start)

        plan_start = self.clock()
        replanned = [
            arm.plan is None or arm.age >= self.replan_every or len(arm.pending) == 0
            for arm in states
        ]
        self._plan(states, [k for k, due in enumerate(replanned) if due], start, under_way)
        for k, arm in enumerate(states):
            if replanned[k] and arm.may_go_on:
                switched[k] = self._reason_in_plan(arm)
                states[k] = arm.going_on() if switched[k] else arm
        self._plan(
            states, [k for k, arm in enumerate(states) if arm.plan is None], start, under_way
        )
        plan_ms = 1000 * (self.clock() - plan_start)

        decisions = []
        for k, (arm, energy) in enumerate(zip(states, _energies(states), strict=True)):
            assert arm.plan is not None and arm.start is not None
            bounds = slowed(self.step_bounds, arm.gate.scale)
            action, rest = split_action(arm.pending[0], bounds, self.gripper_snap, space=self.space)
            if not arm.gate.scale:
                action, rest = np.zeros(self.space.action_size), arm.pending[0]
            states[k] = arm.executed(rest)
            tolerance, is_last = self.switch.tolerance, arm.stage == len(arm.stages) - 1
            decisions.append(
                Decision(
                    action=action.astype(np.float32),
                    plan=arm.plan,
                    start=arm.start,
                    energy_now=energy,
                    predicted_energy=float(arm.plan.cost[0]),
                    stage=arm.stage,
                    switched=switched[k],
                    reached=tolerance is not None and is_last and energy <= tolerance,
                    replanned=replanned[k],
                    gate=arm.gate,
                    encode_ms=encode_ms,
                    plan_ms=plan_ms if replanned[k] else 0.0,
                )
            )
        for i, arm in zip(chosen, states, strict=True):
            self._arms[i] = arm
        return tuple(decisions)

    @torch.inference_mode()
    def problem(
        self,
        images: UInt8[np.ndarray, "context *views height width 3"],
        proprio: Float[np.ndarray, "context proprio"],
        *,
        committed: Float[np.ndarray, "_ action"] | None = None,
    ) -> tuple[Observation, Float[Tensor, "1 token latent"]]:
        """Returns what the search of the only arm is given in `act`: its start and its goal.

        Args:
            images: what the camera showed, the newest last.
            proprio: (C, P) arm states measured with them.
            committed: see `act`.

        Raises:
            ValueError: there are several arms, there is no goal, or a shape does not fit.
        """
        if self.num_arms != 1 or not self._arms[0].stages:
            raise ValueError("problem is for one arm with a goal; call set_goal first")
        (arm,) = self._arms
        check_image("images", images, batch=True, views=self.num_views, size=arm.stages[0].size)
        measured = _proprio_tensor(proprio, num_arms=len(images), size=self.space.proprio_size)
        context = []
        for k in range(len(images)):  # one by one, as `act` saw them
            latents = self._encode(images[k : k + 1])
            context.append((latents, measured[k : k + 1].to(latents.device)))
        observation = _observation([tuple(context)], self.space)
        if committed is not None:
            observation = self._ahead(observation, [committed])
        return observation, arm.goal

    def _judge(
        self, gate: Gate, frames: Tensor, before: "list[_Arm]", states: "list[_Arm]"
    ) -> None:
        """Lets the gate look at what the last actions did, and drops the plans it distrusts."""
        seen = gate.see(frames)
        for k, arm in enumerate(states):
            states[k] = replace(arm, watched=seen[k : k + 1])
        moved = [k for k, arm in enumerate(before) if arm.watched is not None and arm.steps]
        if not moved:
            return
        past = torch.cat([_watched(before[k]) for k in moved])
        now = torch.cat([_watched(states[k]) for k in moved])
        was = torch.cat([before[k].context[-1][1][:, 0] for k in moved])  # (B, P)
        is_ = torch.cat([states[k].context[-1][1][:, 0] for k in moved])
        with torch.autocast(was.device.type, enabled=False):  # poses keep single precision
            action = self.space.between(was, is_)
        verdicts = gate.judge(
            [states[k].gate for k in moved], before=past, proprio=was, action=action, after=now
        )
        for k, verdict in zip(moved, verdicts, strict=True):
            states[k] = states[k].judged(verdict)

    def _plan(
        self,
        states: "list[_Arm]",
        due: list[int],
        start: float,
        committed: Sequence[np.ndarray],
    ) -> None:
        """Gives the arms at `due` new plans, in one search unless they differ in shape."""
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for k in due:
            cold = not self.warm_start or states[k].plan is None
            groups.setdefault((len(states[k].context), len(committed[k]), cold), []).append(k)
        for (_, _, cold), members in groups.items():
            group = [states[k] for k in members]
            warm = None if cold else torch.cat([arm.rest_of_plan() for arm in group])
            starts = [
                PlanStart(
                    generator_state=arm.generator.get_state().numpy(),
                    warm_start=None if warm is None else warm[j].float().cpu().numpy(),
                )
                for j, arm in enumerate(group)
            ]
            observation = _observation([arm.context for arm in group], self.space)
            plan = self.planner.plan(
                self.world,
                self._ahead(observation, [committed[k] for k in members]),
                torch.cat([arm.goal for arm in group]),
                bounds=self.plan_bounds,
                warm_start=warm,
                deadline_ms=self._time_left_ms(start),
                generator=[arm.generator for arm in group],
            )
            for j, k in enumerate(members):
                states[k] = states[k].following(plan.problem(j), starts[j])

    def _ahead(self, observation: Observation, committed: Sequence[np.ndarray]) -> Observation:
        """Returns what will be seen when the committed actions are done, as it is imagined."""
        actions = torch.from_numpy(np.stack(committed)).to(observation.proprio)  # (B, n, A)
        size = self.space.action_size
        if actions.ndim != 3 or actions.shape[2] != size:
            raise ValueError(f"committed must be (n, {size}), got {tuple(actions.shape[1:])}")
        require_finite("committed", actions)
        if not actions.shape[1]:
            return observation
        all_actions = torch.cat([observation.past_actions, actions], dim=1)
        latents = self.world.rollout(
            observation.latents, observation.proprio, all_actions[:, None]
        )  # (B, 1, n, N, D)
        proprio = observation.proprio[:, -1:]
        with torch.autocast(proprio.device.type, enabled=False):  # poses keep single precision
            for step in actions.split(1, dim=1):
                proprio = self.space.integrate(proprio, step)
        return Observation(latents=latents[:, 0, -1:], proprio=proprio, past_actions=actions[:, :0])

    def _reason_in_plan(self, arm: "_Arm") -> SwitchReason | None:
        assert arm.plan is not None
        actions = arm.pending.copy()  # all of the plan, for it is new
        if self.gripper_snap is not None:
            actions = snap_gripper(actions, self.step_bounds, self.gripper_snap)
        return self.switch.on_planning(gain=float(arm.plan.gain[0]), actions=actions)

    def _encode(self, images: np.ndarray) -> Tensor:
        return self.world.encode(self._frames(images))  # (B, 1, N, D)

    def _frames(self, images: np.ndarray) -> Tensor:
        """Returns frames (B, 1, ...); a copy: the array may be read-only, or the camera's own."""
        return torch.from_numpy(np.array(images)).to(self.device)[:, None]

    def _chosen(self, arms: Sequence[int] | None) -> list[int]:
        chosen = list(range(self.num_arms)) if arms is None else list(arms)
        known = set(chosen) <= set(range(self.num_arms))
        if not chosen or not known or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"arms must be different indices from 0 to {self.num_arms - 1}, got {chosen}"
            )
        return chosen

    def _time_left_ms(self, start: float) -> float | None:
        if self.deadline_ms is None:
            return None
        return max(0.0, self.deadline_ms - 1000 * (self.clock() - start))


@dataclass(frozen=True, eq=False)
class _Stage:
    """A sub-goal as the controller keeps it."""

    latents: Tensor  # (1, N, D)
    max_steps: int | None
    size: tuple[int, ...]  # height and width of its image


@dataclass(frozen=True, eq=False)
class _Arm:
    """What the controller remembers of one arm. Frozen: a failed `act` leaves the old one."""

    generator: torch.Generator
    context: tuple[tuple[Tensor, Tensor], ...] = ()  # latents (1, 1, N, D), proprio (1, 1, P)
    stages: tuple[_Stage, ...] = ()
    stage: int = 0
    steps: int = 0  # executed towards the stage's image
    plan: Plan | None = None
    start: PlanStart | None = None  # of the plan
    age: int = 0  # steps executed since the plan was made
    pending: np.ndarray = field(default_factory=lambda: NOTHING)  # of the plan
    gate: GateState = GateState()
    watched: Tensor | None = None  # (1, ...) what the gate saw last

    @classmethod
    def seeded(cls, seed: int) -> "_Arm":
        return cls(generator=torch.Generator().manual_seed(seed))

    @property
    def goal(self) -> Tensor:
        return self.stages[self.stage].latents

    @property
    def may_go_on(self) -> bool:
        return self.steps > 0 and self.stage + 1 < len(self.stages)

    def heading_for(self, stages: tuple[_Stage, ...], stage: int = 0) -> "_Arm":
        fresh = _Arm(generator=self.generator, context=self.context, watched=self.watched)
        return replace(fresh, stages=stages, stage=stage, gate=self.gate)

    def going_on(self) -> "_Arm":
        return self.heading_for(self.stages, self.stage + 1)

    def seeing(self, latents: Tensor, proprio: Tensor, *, most: int) -> "_Arm":
        return replace(self, context=(*self.context, (latents, proprio))[-most:])

    def judged(self, gate: GateState) -> "_Arm":
        if gate.verdict != "replan":
            return replace(self, gate=gate)
        return replace(self, gate=gate, plan=None, pending=NOTHING)

    def following(self, plan: Plan, start: PlanStart) -> "_Arm":
        pending = plan.actions[0].cpu().double().numpy()
        return replace(self, plan=plan, start=start, age=0, pending=pending)

    def executed(self, rest: np.ndarray | None) -> "_Arm":
        pending = self.pending[1:]
        if rest is not None:
            pending = np.concatenate([rest[None], pending])
        return replace(self, pending=pending, age=self.age + 1, steps=self.steps + 1)

    def rest_of_plan(self) -> Tensor:
        """What is left of the plan and zero actions, (1, H, A)."""
        assert self.plan is not None
        rest = torch.zeros_like(self.plan.actions)
        rest[0, : len(self.pending)] = torch.from_numpy(self.pending).to(rest)
        return rest


def _watched(arm: _Arm) -> Tensor:
    assert arm.watched is not None
    return arm.watched


def _energies(states: Sequence[_Arm]) -> list[float]:
    now = torch.cat([arm.context[-1][0][:, 0] for arm in states])  # (B, N, D)
    return latent_l1(now, torch.cat([arm.goal for arm in states])).tolist()


def _observation(
    contexts: Sequence[tuple[tuple[Tensor, Tensor], ...]], space: ActionSpace
) -> Observation:
    """Of arms with equally many context frames."""
    latents = torch.cat([torch.cat([frame[0] for frame in c], dim=1) for c in contexts])
    proprio = torch.cat([torch.cat([frame[1] for frame in c], dim=1) for c in contexts])
    # The measured motion, as in the training data; the arm never follows a command exactly.
    with torch.autocast(proprio.device.type, enabled=False):  # poses keep single precision
        past_actions = space.between(proprio[:, :-1], proprio[:, 1:])
    return Observation(latents=latents, proprio=proprio, past_actions=past_actions)


def _proprio_tensor(proprio: np.ndarray, *, num_arms: int, size: int) -> Tensor:
    values = torch.from_numpy(np.array(proprio, dtype=np.float32))
    if values.shape != (num_arms, size):
        raise ValueError(f"proprio must have shape ({num_arms}, {size}), got {tuple(values.shape)}")
    require_finite("observation proprio", values)
    return values[:, None]  # (B, 1, P)


def _check_number(name: str, number: int, chosen: Sequence[int]) -> None:
    if number != len(chosen):
        raise ValueError(f"{name} must be one per arm ({len(chosen)}), got {number}")


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


def _check_bounds(
    plan_bounds: ActionBounds, step_bounds: ActionBounds, *, action_size: int
) -> None:
    for name, bounds in (("plan_bounds", plan_bounds), ("step_bounds", step_bounds)):
        if bounds.low.shape != (action_size,):
            raise ValueError(f"{name} must have {action_size} axes, got {tuple(bounds.low.shape)}")
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
