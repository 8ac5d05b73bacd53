import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worldmodel.envs.panda import HOME_JOINTS
from worldmodel.franka_arm import HAND_YAW
from worldmodel.pose import integrate, matrix_to_euler
from worldmodel.serving.chunks import ACTION_SPACES, Limits
from worldmodel.serving.dialects import Request, RequestError
from worldmodel.serving.goals import Goals
from worldmodel.serving.kinematics import Tool
from worldmodel.serving.policy import GoalPolicy, Session

TOOL = Tool(length=0.149, yaw=HAND_YAW)
POSITION, ROTATION = TOOL.pose(HOME_JOINTS)


@dataclass
class FakePlanner:
    """Plans the same action over and over."""

    action: list[float]
    step_s: float = 0.25
    asked: list[Any] = field(default_factory=list)

    def plan(
        self, image: np.ndarray, goal: np.ndarray, proprio: np.ndarray, *, num_actions: int
    ) -> np.ndarray:
        self.asked.append((image, goal, proprio, num_actions))
        return np.array([self.action] * num_actions)


@pytest.fixture
def goals(tmp_path: Path) -> Goals:
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(tmp_path / "red cube.png")
    return Goals(tmp_path, image_size=32, crop="square")


def policy(goals: Goals, action: list[float], **changes: Any) -> GoalPolicy:
    settings = {
        "tool": TOOL,
        "limits": Limits(
            low=POSITION - 0.3, high=POSITION + 0.3, speed=0.2, turn_speed=0.4, joint_speed=1.0
        ),
        "num_rows": 8,
        "action_space": "cartesian_position",
        "posture": None,
        "resize_to": 32,
    } | changes
    return GoalPolicy(FakePlanner(action), goals, **settings)


def request(**changes: Any) -> Request:
    plain = Request(
        dialect="roboarena",
        image=np.full((48, 64, 3), 100, np.uint8),
        joints=HOME_JOINTS,
        gripper=0.2,
        flange=None,
        prompt="red cube",
    )
    return replace(plain, **changes)


FLANGE = np.concatenate([TOOL.to_flange(POSITION, ROTATION)[0], [0.0] * 3])
FLANGE[3:] = matrix_to_euler(TOOL.to_flange(POSITION, ROTATION)[1])


def test_the_planner_sees_pictures_of_the_model_and_the_pose_of_its_tool(goals: Goals) -> None:
    served = policy(goals, [0.02, 0, 0, 0, 0, 0, 0])
    served.infer(request(), Session())
    ((image, goal, proprio, num_actions),) = served.planner.asked  # type: ignore[attr-defined]
    assert image.shape == goal.shape == (32, 32, 3)
    assert (image == 100).all() and (goal == 200).all()
    assert proprio.dtype == np.float32
    assert np.allclose(proprio[:3], POSITION, atol=1e-6)
    assert np.allclose(np.abs(proprio[3:6]), [math.pi, 0, 0], atol=1e-5)
    assert proprio[6] == np.float32(0.2)
    assert num_actions == 3  # eight rows are 0.53 s


@pytest.mark.parametrize("cameras", [("exterior", "wrist"), ("wrist", "exterior"), ("wrist",)])
def test_the_planner_sees_the_cameras_in_the_order_of_the_model(tmp_path: Path, cameras) -> None:
    for camera in cameras:
        name = "red cube.png" if len(cameras) == 1 else f"red cube.{camera}.png"
        value = {"exterior": 200, "wrist": 150}[camera]
        Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(tmp_path / name)
    goals = Goals(tmp_path, image_size=32, crop="square", cameras=cameras)
    served = policy(goals, [0.02, 0, 0, 0, 0, 0, 0])
    assert served.metadata["needs_wrist_camera"] is True
    pictures = {
        "image": np.full((40, 40, 3), 100, np.uint8),
        "wrist": np.full((40, 40, 3), 50, np.uint8),
    }
    served.infer(request(**pictures), Session())
    ((image, goal, *_),) = served.planner.asked  # type: ignore[attr-defined]
    seen = [{"exterior": (100, 200), "wrist": (50, 150)}[camera] for camera in cameras]
    views = (1, 32, 32, 3) if len(cameras) == 1 else (2, 32, 32, 3)
    assert image.shape == goal.shape == views[len(cameras) == 1 :]
    for k, (now, there) in enumerate(seen):
        assert (image.reshape(-1, 32, 32, 3)[k] == now).all()
        assert (goal.reshape(-1, 32, 32, 3)[k] == there).all()
    with pytest.raises(RequestError, match="bad_image: .*wrist_image_left is missing"):
        served.infer(request(image=pictures["image"]), Session())


def test_the_tool_goes_where_the_plan_says(goals: Goals) -> None:
    action = np.array([0.02, -0.01, 0.01, 0, 0, 0.05, 0])
    made = policy(goals, action.tolist(), num_rows=8).infer(request(flange=FLANGE), Session())
    proprio = np.array([*POSITION, *matrix_to_euler(ROTATION), 0.0])
    parts = 8 / 15 / 0.25
    for part in (1.0, 1.0, parts - 2):
        proprio = integrate(proprio, part * action)
    expected = TOOL.to_flange(proprio[:3], ROTATION)[0]  # the turn is about the flange's axis
    assert made.notes == ()
    assert np.allclose(made.rows[-1, :3], expected, atol=1e-4)


@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_openpi_always_gets_joint_velocities(goals: Goals, action_space: Any) -> None:
    served = policy(goals, [0.02, 0, 0, 0, 0, 0, 0], action_space=action_space)
    width = 7 if action_space.startswith("cartesian") else 8
    assert served.infer(request(), Session()).rows.shape == (8, width)
    rows = served.infer(request(dialect="openpi"), Session()).rows
    assert rows.shape == (8, 8) and 0 < np.abs(rows).max() < 0.5
    assert served.metadata["action_space"] == action_space


def test_a_closed_gripper_stays_closed_whatever_it_measures(goals: Goals) -> None:
    session = Session()
    closing, moving = policy(goals, [0] * 6 + [1.0]), policy(goals, [0.01] + [0] * 6)
    assert closing.infer(request(), session).gripper == 1
    made = moving.infer(request(gripper=0.4), session)  # it holds something and is half open
    assert (made.rows[:, -1] == 1).all()
    assert (moving.infer(request(gripper=0.4), Session()).rows[:, -1] == 0).all()
    assert (moving.infer(request(gripper=0.9), Session()).rows[:, -1] == 1).all()


def test_another_frame_than_the_flange_is_refused(goals: Goals) -> None:
    served = policy(goals, [0.01] + [0] * 6)
    served.infer(request(flange=FLANGE), Session())
    for off in (np.array([0.0, 0, 0.103, 0, 0, 0]), np.array([0.0, 0, 0, 0, 0, 0.785])):
        with pytest.raises(RequestError, match="pose_mismatch"):
            served.infer(request(flange=FLANGE + off), Session())
        served.infer(request(flange=FLANGE + off, dialect="openpi"), Session())


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"prompt": "mug"}, "unknown_goal"),
        ({"image": np.zeros((64, 64, 3), np.uint8)}, "goal_mismatch"),
    ],
)
def test_what_has_no_goal_is_refused(goals: Goals, changes: dict, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        policy(goals, [0.0] * 7).infer(request(**changes), Session())
    assert caught.value.code == code


def test_a_plan_that_is_not_finite_is_never_sent(goals: Goals) -> None:
    with pytest.raises(RequestError, match="not_finite"):
        policy(goals, [float("nan")] + [0] * 6).infer(request(), Session())


def test_rows_are_at_most_what_openpi_takes(goals: Goals) -> None:
    for number in (0, 11):
        with pytest.raises(ValueError, match="rows must be from 1 to 10"):
            policy(goals, [0.0] * 7, num_rows=number)
