from dataclasses import replace

import numpy as np
import pytest

from worldmodel.driving.reference import Pose, Reference, TwistLaw
from worldmodel.driving.replanning import Schedule
from worldmodel.envs.robots.interface import CameraFrame, RobotObservation, RobotState
from worldmodel.pose import integrate

HOME = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0])
LAW = TwistLaw(lead_s=0.25, speed=0.1, turn_speed=0.4)
SPEED = 0.08
LINE = np.tile([SPEED * 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], (40, 1))


def seen_at(time: float, *, delay_s: float = 0.0, seq: int = 0) -> RobotObservation:
    """By an arm that moves along x at `SPEED` since time 0; the picture is `delay_s` old."""
    return RobotObservation(
        seq=seq,
        frames={"exterior": CameraFrame(np.zeros((4, 4, 3), np.uint8), time - delay_s)},
        tcp_pos_base=HOME[:3] + [SPEED * time, 0, 0],
        tcp_rotation_base=Pose.of(HOME).rotation,
        joint_positions=np.zeros(7),
        joint_velocities=np.zeros(7),
        gripper=0.0,
        gripper_width_m=0.08,
        grasped=None,
        wrench_base=None,
        state_at=time,
        applied_seq=-1,
        state=RobotState.RUNNING,
    )


def make_schedule(**changes) -> Schedule:
    settings = {"step_s": 0.25, "first_latency_s": 0.1, "compensate": True} | changes
    return Schedule(LAW, **settings)


def moving(schedule: Schedule, *, until: float, delay_s: float = 0.0):
    for k in range(round(until / 0.05)):
        schedule.see(seen_at(k * 0.05))
    reference = Reference(Pose.of(HOME), LINE, begins_at=0.0, step_s=0.25)
    return schedule.task(seen_at(until, delay_s=delay_s), "exterior", reference, now=until)


@pytest.mark.parametrize("latency_s, delay_s", [(0.1, 0.0), (0.1, 0.07), (0.2, 0.15), (0.6, 0.2)])
def test_what_is_under_way_leads_from_the_picture_to_where_the_plan_begins(
    latency_s: float, delay_s: float
) -> None:
    task = moving(make_schedule(first_latency_s=latency_s), until=1.0, delay_s=delay_s)
    assert task.begins_at == pytest.approx(1.0 + latency_s)
    assert task.taken_at == pytest.approx(1.0 - delay_s)
    assert np.allclose(task.then.position, HOME[:3] + [SPEED * (1 - delay_s), 0, 0], atol=1e-9)
    expected = HOME[:3] + [SPEED * (1 + latency_s), 0, 0]
    assert np.allclose(task.start.position, expected, atol=1e-6)
    assert len(task.committed) == int(np.ceil((latency_s + delay_s) / 0.25 - 1e-6))
    reached = task.then.proprio
    for action in task.committed:
        assert np.linalg.norm(action[:3]) <= SPEED * 0.25 + 1e-6  # of one model step at most
        reached = integrate(reached, action)
    assert np.allclose(reached[:3], expected, atol=1e-6)


def test_a_plan_from_two_cameras_is_as_old_as_the_older_picture() -> None:
    """The wrist's picture is 0.2 s older: what is under way begins where the arm was then."""
    schedule, picture = make_schedule(first_latency_s=0.1), np.zeros((6, 8, 3), np.uint8)
    for k in range(20):
        schedule.see(seen_at(k * 0.05))
    newest = seen_at(1.0, delay_s=0.05)
    seen = replace(newest, frames={**newest.frames, "wrist": CameraFrame(picture, 0.75)})
    reference = Reference(Pose.of(HOME), LINE, begins_at=0.0, step_s=0.25)
    tasks = {
        camera: schedule.task(seen, camera, reference, now=1.0)
        for camera in ("exterior", "exterior+wrist", "wrist+exterior")
    }
    assert tasks["exterior"].taken_at == pytest.approx(0.95)
    for camera in ("exterior+wrist", "wrist+exterior"):
        task = tasks[camera]
        assert task.taken_at == pytest.approx(0.75)
        assert np.allclose(task.then.position, HOME[:3] + [SPEED * 0.75, 0, 0], atol=1e-9)
        assert np.allclose(task.start.position, tasks["exterior"].start.position, atol=1e-6)
        assert task.committed[:, 0].sum() == pytest.approx(SPEED * 0.35, abs=1e-6)


def test_for_an_arm_at_rest_nothing_is_imagined() -> None:
    schedule = make_schedule()
    still = seen_at(0.0)
    for reference in (None, Reference(Pose.of(HOME), LINE * 0, begins_at=0.0, step_s=0.25)):
        task = schedule.task(still, "exterior", reference, now=0.0)
        assert task.committed.shape == (0, 7)
        assert np.allclose(task.start.position, HOME[:3])


def test_without_compensation_a_plan_begins_where_the_arm_was_and_when_it_is_ready() -> None:
    task = moving(make_schedule(compensate=False), until=1.0, delay_s=0.1)
    assert task.begins_at is None and task.committed.shape == (0, 7)
    assert np.allclose(task.start.position, HOME[:3] + [SPEED, 0, 0])


def test_the_longest_of_the_last_latencies_is_expected() -> None:
    schedule = make_schedule(first_latency_s=0.25)
    assert schedule.latency_s == 0.25
    for latency in (0.1, 0.1, 0.1, 0.3, 0.1):
        schedule.measured(latency)
    assert schedule.latency_s == 0.3
    for _ in range(4):
        schedule.measured(0.1)
    assert schedule.latency_s == 0.1


@pytest.mark.parametrize("name, value", [("replan_every", 2), ("num_context", 2), ("gate", 1)])
def test_what_needs_a_steady_rate_is_refused(make_rig, name: str, value: int) -> None:
    rig = make_rig()
    setattr(rig.controller, name, value)
    with pytest.raises(ValueError, match=f"planner.{name} must be"):
        type(rig.replanner)(
            rig.controller,
            camera="exterior",
            image_size=4,
            crop="none",
            frame=rig.frame,
            precision="float32",
            seed=0,
        )


def test_with_a_plan_go_two_pictures_that_lie_one_step_apart() -> None:
    task = moving(make_schedule(), until=1.0, delay_s=0.1)
    assert task.step is not None
    before, after = (moment.pose.position[0] - HOME[0] for moment in task.step)
    assert after == pytest.approx(SPEED * 0.9)  # where the arm was when the picture was taken
    assert after - before == pytest.approx(SPEED * 0.25, abs=SPEED * 0.03)
    assert make_schedule().task(seen_at(0.0), "exterior", None, now=0.0).step is None

    sparse = make_schedule()
    for time in (0.0, 0.6):  # nothing was seen a step before the second
        sparse.see(seen_at(time))
    assert sparse.task(seen_at(0.6), "exterior", None, now=0.6).step is None
