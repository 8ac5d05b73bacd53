"""Plans that begin where the arm will be, made in a worker thread while it moves.

A picture is old when its plan is ready: by the camera's delay and by the time planning takes. So
the world model first imagines what the camera will show then, from the picture and from what the
arm does meanwhile, and the plan begins there. For an arm that is nearly at rest the picture itself
says it better, and nothing is imagined.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from worldmodel.driving.calibration import ModelFrame
from worldmodel.driving.reference import Pose, Reference, TwistLaw, way_between
from worldmodel.driving.watch import Watch
from worldmodel.envs.robots.interface import RobotObservation
from worldmodel.envs.robots.kinematics import rotation_vector
from worldmodel.envs.robots.recording_format import PlanRecord
from worldmodel.images import Crop, fit_views
from worldmodel.planners.gate import GateState
from worldmodel.planners.mpc import MPC, Decision
from worldmodel.planners.split import slowed, split_plan
from worldmodel.training import Precision, autocast
from worldmodel.views import camera_names

MOST_STEPS = 8  # of a plan's tail; it expires long before
AT_REST_M, AT_REST_RAD = 2e-3, 0.01  # moves under way below these are not imagined
ROUNDING = 1e-6  # of a step
REMEMBERED_S = 2.0  # of measured poses
SEEN_STEPS = 2  # for so many model steps are pictures kept; they may be older than the state
STEP_TOLERANCE = 0.3  # of a model step, by which two pictures that are judged may miss it
LATENCIES = 5  # of the last plans; the longest is expected of the next


@dataclass(frozen=True, eq=False)
class Moment:
    """What was seen at a time.

    Attributes:
        pictures: of each camera, RGB as it came.
        pose: where the arm was when they were taken.
    """

    pictures: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    pose: Pose


@dataclass(frozen=True, eq=False)
class Task:
    """What a plan is to be made from.

    Attributes:
        observation: the newest.
        taken_at: when its picture was taken, or the arm measured, whichever is older.
        then: where the arm was when the picture was taken; of several cameras the oldest picture.
        start: where the plan is to begin.
        begins_at: when the arm is expected to be there; None is whenever the plan is ready.
        committed: (n, 7) actions from `then` to `start`; none when it is not to be imagined.
        step: the picture, and one that was taken one model step before it; None if there is none.
    """

    observation: RobotObservation
    taken_at: float
    then: Pose
    start: Pose
    begins_at: float | None
    committed: Float[np.ndarray, "n 7"]
    step: tuple[Moment, Moment] | None


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan that is ready.

    Attributes:
        task: what it was made from.
        decision: of the controller.
        gate: what the surprise gate made of the picture; its default without a gate.
        actions: (n, 7) its steps, each within the speed of the arm, in the robot's base frame.
        record: for the flight recorder.
    """

    task: Task
    decision: Decision
    gate: GateState
    actions: Float[np.ndarray, "n 7"]
    record: PlanRecord


class Replanner:
    """The controller of one arm: from a picture and a pose to a plan."""

    def __init__(
        self,
        controller: MPC,
        *,
        camera: str,
        image_size: int,
        crop: Crop,
        frame: ModelFrame,
        precision: Precision,
        seed: int,
        watch: Watch | None = None,
    ):
        """Takes a controller of one arm.

        Args:
            controller: makes a plan in every call and looks at one moment, see below.
            camera: whose pictures the model is shown; several joined by "+".
            image_size: height and width of the model's pictures.
            crop: how the camera's pictures become so large.
            frame: how the model's axes lie in the robot's base frame.
            precision: of the world model.
            seed: of the search's noise.
            watch: judges the pictures; None does not.

        Raises:
            ValueError: the controller relies on being called at a fixed rate.
        """
        wanted = {"replan_every": 1, "num_context": 1, "gate": None}
        for name, value in wanted.items():
            if getattr(controller, name) != value:
                raise ValueError(
                    f"plans are made as fast as the machine can, at no fixed rate, so planner."
                    f"{name} must be {'null' if value is None else value}, got "
                    f"{getattr(controller, name)}"
                )
        self.controller, self.camera = controller, camera
        self._goal_sha256, self._image_size = "", image_size
        self._crop: Crop = crop
        self._frame, self._seed = frame, seed
        self._precision: Precision = precision
        self.watch = watch

    def begin(self, goal: UInt8[np.ndarray, "*views height width 3"], *, sha256: str) -> None:
        """Begins a drive to a goal image, as if there had been none before.

        Args:
            goal: as the model sees it, see `worldmodel.images.fit_views`.
            sha256: what the flight recorder calls it.
        """
        self.controller.reset(seeds=[self._seed])
        with autocast(self.controller.device, self._precision):
            self.controller.set_goal(goal)
        self._goal_sha256 = sha256
        if self.watch is not None:
            self.watch.begin()

    def plan(self, task: Task) -> Planned:
        """Makes a plan; the worker's part."""
        controller = self.controller
        pictures = [task.observation.frames[name].image for name in camera_names(self.camera)]
        fitted = fit_views(pictures, self._image_size, self._crop)
        proprio = self._frame.to_model(task.then.proprio).astype(np.float32)
        committed = self._frame.actions_to_model(task.committed)
        with autocast(controller.device, self._precision):
            (decision,) = controller.act(fitted[None], proprio[None], committed=[committed])
        gate = self._judge(task)
        planned = decision.plan.actions[0].float().cpu().numpy()
        bounds = slowed(controller.step_bounds, gate.scale)
        steps = split_plan(planned, bounds, controller.gripper_snap, most=MOST_STEPS)
        record = PlanRecord(
            obs_seq=task.observation.seq,
            goal=self._goal_sha256,
            stage=decision.stage,
            seed=self._seed,
            generator_state=decision.start.generator_state,
            frames=pictures[0][None],
            proprio=task.then.proprio[None],
            committed=task.committed,
            warm_start=decision.start.warm_start,
            actions=planned,
            action=steps[0].astype(np.float32),
            cost=decision.predicted_energy,
            energy_now=decision.energy_now,
            iterations=decision.plan.iterations,
            evaluations=decision.plan.evaluations,
            deadline_hit=decision.plan.deadline_hit,
            plan_ms=decision.plan_ms,
            verdict=None if self.watch is None else gate.verdict,
            surprise=gate.score if math.isfinite(gate.score) else None,
            other_views=tuple(picture[None] for picture in pictures[1:]),
        )
        return Planned(task, decision, gate, self._frame.actions_to_robot(steps), record)

    def _judge(self, task: Task) -> GateState:
        if self.watch is None:
            return GateState()
        if task.step is None:
            return self.watch.pass_over()
        device = self.controller.device
        frames = [fit_views(one.pictures, self._image_size, self._crop) for one in task.step]
        proprio = [self._frame.to_model(one.pose.proprio) for one in task.step]
        return self.watch.look(
            [torch.from_numpy(frame.copy()).to(device)[None, None] for frame in frames],
            [torch.from_numpy(values.astype(np.float32)).to(device)[None] for values in proprio],
        )

    def is_still(self, planned: Planned) -> bool:
        """Returns whether the plan says that the arm is at the goal."""
        rule, decision = self.controller.switch, planned.decision
        actions = decision.plan.actions[0].float().cpu().numpy()
        gain = float(decision.plan.gain[0])
        return decision.reached or rule.on_planning(gain=gain, actions=actions) is not None


class Schedule:
    """When the next plan will be ready, and where the arm will be."""

    def __init__(self, law: TwistLaw, *, step_s: float, first_latency_s: float, compensate: bool):
        """Begins with a guess of how long a plan takes.

        Args:
            law: by which the arm is driven.
            step_s: time of one planned step.
            first_latency_s: from asking for a plan to having it, until the first is measured.
            compensate: whether plans begin where the arm will be, or where it was.
        """
        self._law, self._step_s, self._compensate = law, step_s, compensate
        self._latencies = deque([first_latency_s], LATENCIES)
        self._poses: deque[tuple[float, Pose]] = deque()
        self._seen: deque[RobotObservation] = deque()

    @property
    def latency_s(self) -> float:
        """Expected from asking for a plan to having it."""
        return max(self._latencies)

    def measured(self, latency_s: float) -> None:
        """Notes how long a plan took."""
        self._latencies.append(latency_s)

    def see(self, observation: RobotObservation) -> Pose:
        """Notes where the arm is, and returns it."""
        pose = Pose(
            position=observation.tcp_pos_base,
            rotation=observation.tcp_rotation_base,
            gripper=observation.gripper,
        )
        if not self._poses or observation.state_at > self._poses[-1][0]:
            self._poses.append((observation.state_at, pose))
        while self._poses[-1][0] - self._poses[0][0] > REMEMBERED_S:
            self._poses.popleft()
        if not self._seen or observation is not self._seen[-1]:
            self._seen.append(observation)
        while observation.state_at - self._seen[0].state_at > SEEN_STEPS * self._step_s:
            self._seen.popleft()
        return pose

    def task(
        self,
        observation: RobotObservation,
        camera: str,
        reference: Reference | None,
        *,
        now: float,
    ) -> Task:
        """Returns what the next plan is to be made from.

        Args:
            observation: the newest.
            camera: whose pictures the plan is made from; several joined by "+".
            reference: what the arm follows; None is nothing.
            now: the robot's time.
        """
        pose = self.see(observation)
        captured_at = min(observation.frames[name].captured_at for name in camera_names(camera))
        taken_at = min(captured_at, observation.state_at)
        step = self._step_before(observation, camera_names(camera))
        if not self._compensate:
            return Task(observation, taken_at, pose, pose, None, np.zeros((0, 7)), step)
        begins_at = now + self.latency_s
        poses, at = [self._pose_at(captured_at)], observation.state_at
        num_steps = math.ceil((begins_at - captured_at) / self._step_s - ROUNDING)
        for steps_left in reversed(range(num_steps)):
            time = begins_at - steps_left * self._step_s
            if time <= observation.state_at:
                poses.append(self._pose_at(time))
                continue
            if reference is not None:
                pose = self._law.ahead(reference, pose, since=at, until=time)
            poses.append(pose)
            at = time
        first, last = poses[0], poses[-1]
        moved = np.linalg.norm(last.position - first.position)
        turned = np.linalg.norm(rotation_vector(last.rotation @ first.rotation.T))
        if moved < AT_REST_M and turned < AT_REST_RAD:
            return Task(observation, taken_at, first, last, begins_at, np.zeros((0, 7)), step)
        return Task(observation, taken_at, first, last, begins_at, way_between(poses), step)

    def _step_before(
        self, observation: RobotObservation, cameras: Sequence[str]
    ) -> tuple[Moment, Moment] | None:
        """Returns the observation and the one nearest to one step before it, if it is near."""

        def captured_at(seen: RobotObservation) -> float:
            return min(seen.frames[name].captured_at for name in cameras)

        def moment(seen: RobotObservation) -> Moment:
            pictures = tuple(seen.frames[name].image for name in cameras)
            return Moment(pictures, self._pose_at(captured_at(seen)))

        wanted = captured_at(observation) - self._step_s
        complete = (seen for seen in self._seen if all(name in seen.frames for name in cameras))
        before = min(complete, key=lambda seen: abs(captured_at(seen) - wanted), default=None)
        if before is None or abs(captured_at(before) - wanted) > STEP_TOLERANCE * self._step_s:
            return None
        return moment(before), moment(observation)

    def _pose_at(self, time: float) -> Pose:
        """Returns where the arm was measured to be, between two measurements on a line."""
        after = next((i for i, (at, _) in enumerate(self._poses) if at >= time), None)
        if after is None:
            return self._poses[-1][1]
        if after == 0:
            return self._poses[0][1]
        (before_at, before), (after_at, pose) = self._poses[after - 1], self._poses[after]
        return before.toward(pose, (time - before_at) / (after_at - before_at))
