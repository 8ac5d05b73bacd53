"""drive: an arm driven to a goal image, goals taken, axes calibrated."""

import getpass
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.names import unknown
from worldmodel.verbs.planning import planner_settings
from worldmodel.verbs.shared import Call, UserError, load_world, open_folder
from worldmodel.views import camera_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.closed_loop import PlannerSettings
    from worldmodel.drive import Outcome
    from worldmodel.driving.calibration import ModelFrame
    from worldmodel.driving.goals import CapturedGoal
    from worldmodel.driving.moves import Mover
    from worldmodel.driving.operator import OperatorStop
    from worldmodel.driving.reference import TwistLaw
    from worldmodel.driving.replanning import Planned, Replanner, Schedule
    from worldmodel.driving.watch import Watch
    from worldmodel.envs.robots.interface import Robot, RobotObservation
    from worldmodel.envs.robots.limits import Envelope
    from worldmodel.envs.robots.recorder import FlightRecorder
    from worldmodel.jepa import JEPA
    from worldmodel.planners.mpc import MPC
    from worldmodel.training import Precision

ACTIONS = ("run", "goal", "calibrate", "stop")
CONNECT_S = 3.0


@dataclass(frozen=True)
class _Setup:
    """A connected robot, and what all actions need of it."""

    robot: "Robot"
    envelope: "Envelope"
    sleep: Callable[[float], None]
    simulated_clock: bool
    cameras: tuple[str, ...]
    operator: str

    def observe(self, *, max_age_s: float) -> "RobotObservation":
        """Returns what is seen now, with a picture of every camera that is driven by."""
        return _complete(self.robot.observe(max_age_s=max_age_s), self.cameras)


def drive(config: "DictConfig", *, call: Call) -> int:
    """Drives to a goal image; takes a goal image; calibrates; stops another drive."""
    from worldmodel.envs.robots.interface import RobotError

    if config.action not in ACTIONS:
        raise UserError(unknown("action", config.action, ACTIONS))
    if config.action == "stop":
        return _stop(config)
    try:
        return _with_model(config, call=call)
    except RobotError as error:
        raise UserError(str(error)) from error


def _with_model(config: "DictConfig", *, call: Call) -> int:
    if config.action == "goal" and config.what != "capture":
        raise UserError("drive goal knows one thing to do: worldmodel drive goal capture goal=NAME")
    if config.action != "goal" and config.what is not None:
        raise UserError(f"drive {config.action} takes settings, got {config.what!r}")
    if config.action in ("run", "goal") and config.goal is None:
        raise UserError("drive needs goal=NAME; worldmodel drive goal capture goal=NAME takes one")
    for name in ("speed", "turn_speed"):
        if not config[name] > 0:
            raise UserError(f"{name} must be above 0, got {config[name]}")
    from worldmodel.joined_views import check_cameras

    world = load_world(config, several_views=True)
    check_cameras(world, config.camera)
    if world.control_hz is None:
        raise UserError("the checkpoint states no control_hz, so its steps have no length")
    if config.action == "goal":
        return _capture(config, world)
    if config.action == "calibrate":
        return _calibrate(config, world)
    return _run(config, world, call=call)


def _stop(config: "DictConfig") -> int:
    from worldmodel.driving.operator import send_stop

    if not config.stop_port:
        raise UserError("drive stop needs stop_port=..., which the drive printed")
    send_stop(config.stop_port, reason="drive stop")
    print("the arm was told to stop")
    return 0


@contextmanager
def _opened(config: "DictConfig") -> Iterator[_Setup]:
    """Opens the robot, not connected yet; it is at rest and disconnected afterwards."""
    from worldmodel.driving.workers import simulated_sleep
    from worldmodel.robots import open_robot

    robot, cameras = open_robot(config.robot), camera_names(config.camera)
    for camera in cameras:
        if camera not in robot.info.cameras:
            more = "; robot.cameras=... says which it has" if "cameras" in config.robot else ""
            raise UserError(unknown("camera", camera, robot.info.cameras) + more)
    sleep = simulated_sleep(robot)
    try:
        yield _Setup(
            robot=robot,
            envelope=robot.envelope,
            sleep=sleep or time.sleep,
            simulated_clock=sleep is not None,
            cameras=cameras,
            operator=config.operator or getpass.getuser(),
        )
    finally:
        robot.close()


def _complete(observation: "RobotObservation", cameras: tuple[str, ...]) -> "RobotObservation":
    """Returns an observation that has a picture of each camera; an optional one may lack."""
    from worldmodel.envs.robots.interface import RobotError

    for camera in cameras:
        if camera not in observation.frames:
            raise RobotError(
                f"the camera {camera!r} delivered no picture; look whether it is plugged in and "
                "delivers frames"
            )
    return observation


def _law(config: "DictConfig", world: "JEPA") -> "TwistLaw":
    from worldmodel.driving.reference import TwistLaw

    assert world.control_hz is not None
    return TwistLaw(lead_s=1 / world.control_hz, speed=config.speed, turn_speed=config.turn_speed)


def _allow(config: "DictConfig", setup: _Setup, *, distance_m: float | None) -> None:
    """Shows what will move, asks for it to be allowed, and arms the robot."""
    from worldmodel.driving.operator import confirm_first_motion, first_motion_text

    text = first_motion_text(
        setup.robot.info, setup.envelope, distance_m=distance_m, speed=config.speed
    )
    confirm_first_motion(
        setup.robot.info, text, yes=config.yes, keyboard=sys.stdin, screen=sys.stdout
    )
    setup.robot.arm(operator=setup.operator)


@contextmanager
def _stoppable(config: "DictConfig", setup: _Setup) -> "Iterator[OperatorStop]":
    from worldmodel.driving.operator import OperatorStop

    with OperatorStop(setup.robot.stop, keyboard=sys.stdin, port=config.stop_port) as operator:
        print("stop with any key or Ctrl-C", end="" if operator.port else "\n")
        if operator.port:
            print(f", or worldmodel drive stop stop_port={operator.port}", flush=True)
        yield operator


def _mover(config: "DictConfig", world: "JEPA", setup: _Setup, operator: "OperatorStop") -> "Mover":
    from worldmodel.drive import COMMAND_PERIODS
    from worldmodel.driving.moves import Mover

    law = _law(config, world)
    return Mover(
        robot=setup.robot,
        envelope=setup.envelope,
        law=law,
        command_hz=config.command_hz,
        valid_for_s=COMMAND_PERIODS * law.lead_s,
        max_age_s=config.max_age_s,
        sleep=setup.sleep,
        stopped=lambda: operator.reason,
    )


def _capture(config: "DictConfig", world: "JEPA") -> int:
    """Saves what the cameras show, after a move if one is asked for."""
    import numpy as np

    from worldmodel.driving.goals import capture_goal, check_new, goal_paths

    paths = goal_paths(config.goal, camera_names(config.camera))
    offset = np.array(config.move, dtype=float)
    if offset.shape != (3,) or not np.isfinite(offset).all():
        raise UserError(f"move must be three numbers [m], got {list(config.move)}")
    for path in paths:
        check_new(path)
    with _opened(config) as setup:
        setup.robot.connect(timeout_s=CONNECT_S)
        if offset.any():
            _allow(config, setup, distance_m=float(np.linalg.norm(offset)))
            with _stoppable(config, setup) as operator:
                observation = _mover(config, world, setup, operator).move_by(offset)
                _complete(observation, setup.cameras)
        else:
            setup.sleep(config.settle_s)  # cameras need a moment until they deliver
            observation = setup.observe(max_age_s=config.max_age_s)
        goals = [
            capture_goal(
                path,
                observation,
                camera=camera,
                info=setup.robot.info,
                model_size=world.image_size,
                crop=config.crop or world.crop,
            )
            for path, camera in zip(paths, setup.cameras, strict=True)
        ]
    for path in paths:
        print(f"wrote {path} and {path.with_suffix('.json').name}")
    sizes = ", ".join(f"{goal.image.shape[1]}x{goal.image.shape[0]}" for goal in goals)
    where = ", ".join(f"{x:.3f}" for x in observation.proprio[:3])
    print(f"{sizes} pixels, tool at {where} m")
    return 0


def _calibrate(config: "DictConfig", world: "JEPA") -> int:
    """Makes small random moves and fits how the model's axes lie in the robot's base frame."""
    import numpy as np

    from worldmodel.driving.calibration import calibrate
    from worldmodel.driving.moves import random_places
    from worldmodel.images import fit_views

    run = open_folder("calibrate", config)
    places = random_places(
        config.moves + 1, config.move_size, rng=np.random.default_rng(config.seed)
    )
    crop = config.crop or world.crop
    frames, proprio = [], []
    with _opened(config) as setup:
        setup.robot.connect(timeout_s=CONNECT_S)
        _allow(config, setup, distance_m=2 * config.move_size)
        with _stoppable(config, setup) as operator:
            mover = _mover(config, world, setup, operator)
            before = np.zeros(3)
            for number, place in enumerate(places):
                seen = _complete(mover.move_by(place - before), setup.cameras)
                before = place
                pictures = [seen.frames[camera].image for camera in setup.cameras]
                frames.append(fit_views(pictures, world.image_size, crop))
                proprio.append(seen.proprio)
                print(f"place {number} of {config.moves}", flush=True)
    result = calibrate(world, np.stack(frames), np.stack(proprio), camera=config.camera)
    result.write(run / "calibration.json")
    print(f"wrote {run / 'calibration.json'}; drive with calibration={run / 'calibration.json'}")
    if result.rms_m is not None:
        print(
            f"of moves of {100 * result.moved_rms_m:.1f} cm, {100 * result.rms_m:.1f} cm are left"
        )
    if not result.trusted:
        print("NOT to be trusted: the model does not see these moves; look at camera and lighting")
    print(f"the model's axes are turned by {np.degrees(result.angle):.1f} degrees")
    return 0 if result.trusted else 1


def _run(config: "DictConfig", world: "JEPA", *, call: Call) -> int:
    """Drives to a goal image."""
    from worldmodel.driving.calibration import ModelFrame, read_calibration
    from worldmodel.driving.goals import goal_paths, read_goals
    from worldmodel.driving.replay import FLIGHT
    from worldmodel.driving.report import print_dry_run, print_outcome, write_outcome
    from worldmodel.driving.watch import Watch
    from worldmodel.envs.robots.recorded import RecordedRobot
    from worldmodel.envs.robots.recorder import FlightRecorder

    frame = ModelFrame.same()
    if config.calibration is not None:
        frame = read_calibration(Path(config.calibration), camera=config.camera).frame
    settings = replace(planner_settings(config, world), subgoals=False)
    gate, settings = settings.gate, replace(settings, gate=None)  # its steps are not the plans'
    crop = config.crop or world.crop
    with _opened(config) as setup:
        goals = read_goals(
            goal_paths(config.goal, setup.cameras),
            live={camera: setup.robot.info.cameras[camera] for camera in setup.cameras},
            model_size=world.image_size,
            crop=crop,
        )
        controller = make_drive_controller(world, settings, config)
        watch = None if gate is None else Watch(gate)
        setup.robot.connect(timeout_s=CONNECT_S)
        run = open_folder("drive", config)
        recorder = FlightRecorder(
            run / FLIGHT,
            settings=_recorded_settings(config, frame, crop=crop, call=call),
            robot=setup.robot.info,
            clock=setup.robot.now,
        )
        try:
            setup = replace(setup, robot=RecordedRobot(setup.robot, recorder))
            outcome = _drive_to(
                config,
                world,
                setup,
                goals,
                controller,
                watch,
                frame,
                recorder,
                precision=settings.precision,
            )
        finally:
            recorder.close()
    write_outcome(run, outcome, goals[0])
    if config.dry_run:
        print_dry_run(outcome)
    print_outcome(run, outcome, goals[0])
    return 0 if outcome.end in ("reached", "time") else 1


def make_drive_controller(
    world: "JEPA", settings: "PlannerSettings", config: "DictConfig"
) -> "MPC":
    """Returns the controller of one arm whose steps keep to a speed."""
    import numpy as np

    from worldmodel.closed_loop import make_controller
    from worldmodel.fleet import Body
    from worldmodel.training import select_device

    assert world.control_hz is not None
    move, turn = config.speed / world.control_hz, config.turn_speed / world.control_hz
    most = np.array([move] * 3 + [turn] * 3 + [1.0], dtype=np.float32)
    body = Body(control_hz=world.control_hz, action_low=-most, action_high=most, renderer="")
    device = select_device(config.device)
    return make_controller(world.to(device), settings, body, device=device)


def _recorded_settings(
    config: "DictConfig", frame: "ModelFrame", *, crop: str, call: Call
) -> dict[str, Any]:
    """Returns what `replay` needs to make a decision again."""
    import torch
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(config, resolve=True)
    return settings | {
        "crop": crop,
        "threads": torch.get_num_threads(),
        "rotation": frame.rotation.tolist(),
        "command": call.command,
    }


def _drive_to(
    config: "DictConfig",
    world: "JEPA",
    setup: _Setup,
    goals: "tuple[CapturedGoal, ...]",
    controller: "MPC",
    watch: "Watch | None",
    frame: "ModelFrame",
    recorder: "FlightRecorder",
    *,
    precision: "Precision",
) -> "Outcome":
    from worldmodel.drive import Driver
    from worldmodel.driving.replanning import Replanner, Schedule
    from worldmodel.driving.report import distance_to, print_plan
    from worldmodel.driving.workers import SimulatedWorker, ThreadWorker
    from worldmodel.images import fit_views

    robot, law, crop = setup.robot, _law(config, world), config.crop or world.crop
    replanner = Replanner(
        controller,
        camera=config.camera,
        image_size=world.image_size,
        crop=crop,
        frame=frame,
        precision=precision,
        seed=config.seed,
        watch=watch,
    )
    schedule = Schedule(
        law, step_s=law.lead_s, first_latency_s=law.lead_s, compensate=config.compensate
    )
    sha256 = "+".join(recorder.goal(goal.name, goal.image) for goal in goals)
    image = fit_views([goal.image for goal in goals], world.image_size, crop)
    replanner.begin(image, sha256=sha256)
    setup.sleep(config.settle_s)  # cameras need a moment until they deliver
    first = _first_plan(config, replanner, schedule, setup)
    replanner.begin(image, sha256=sha256)
    worker = ThreadWorker(replanner.plan)
    if setup.simulated_clock:
        worker = SimulatedWorker(replanner.plan, latency_s=config.latency_s or 0.0, clock=robot.now)
    if not config.dry_run:
        _allow(config, setup, distance_m=distance_to(goals[0], first.task.then.position))
    with _stoppable(config, setup) as operator:
        outcome = Driver(
            robot,
            replanner,
            worker,
            schedule,
            law=law,
            step_s=law.lead_s,
            command_hz=config.command_hz,
            max_age_s=config.max_age_s,
            plan_max_age_s=config.plan_max_age_s,
            settle_plans=config.settle_plans,
            dry_run=config.dry_run,
            sleep=setup.sleep,
            stopped=lambda: operator.reason,
            recorder=recorder,
            on_plan=lambda planned, pose: print_plan(planned, pose, goals[0]),
        ).run(seconds=config.seconds)
    if watch is not None:
        outcome.counters.update({"gate:judged": watch.judged, "gate:unjudged": watch.unjudged})
    return outcome


def _first_plan(
    config: "DictConfig", replanner: "Replanner", schedule: "Schedule", setup: _Setup
) -> "Planned":
    """Makes a plan at rest: says what it would do, and lets the model warm up."""
    observation = setup.observe(max_age_s=config.max_age_s)
    task = schedule.task(observation, config.camera, None, now=setup.robot.now())
    planned = replanner.plan(task)
    move = 100 * planned.decision.plan.actions[0, :, :3].sum(0).float().cpu().numpy()
    print(
        f"first plan: {', '.join(f'{x:+.1f}' for x in move)} cm, energy to the goal "
        f"{planned.decision.energy_now:.4f}, {planned.decision.plan_ms:.0f} ms"
    )
    return planned
