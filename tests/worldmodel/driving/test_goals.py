import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldmodel.driving.goals import capture_goal, goal_paths, read_goal, read_goals
from worldmodel.envs.robots.interface import CameraFrame, CameraInfo

LIVE = CameraInfo(height=4, width=4, fps=30.0)
FIT = {"model_size": 4, "crop": "none"}


@pytest.fixture
def robot(rig_parts):
    robot = rig_parts.PoseRobot()
    robot.connect(timeout_s=1.0)
    return robot


def capture(robot, path: Path, **changes):
    settings = {"camera": "exterior", "info": robot.info, **FIT} | changes
    return capture_goal(path, robot.observe(max_age_s=1.0), **settings)


def test_a_captured_goal_is_read_as_the_camera_showed_it(robot, tmp_path: Path) -> None:
    path = tmp_path / "goals" / "red cube.png"
    taken = capture(robot, path)
    goal = read_goal(path, camera="exterior", live=LIVE, **FIT)
    shown = robot.observe(max_age_s=1.0).frames["exterior"].image
    assert goal.name == "red cube" and np.array_equal(goal.image, shown)
    assert goal.side == taken.side is not None
    assert np.allclose(goal.side.proprio, robot.proprio, atol=1e-6)
    assert np.allclose(goal.side.joint_positions, robot.joints)
    assert (goal.side.camera, goal.side.height, goal.side.width) == ("exterior", 4, 4)
    assert (goal.side.robot, goal.side.gripper_width_m) == ("fake", 0.08)


def test_colours_keep_their_order(robot, tmp_path: Path) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    robot._arrived = {"exterior": CameraFrame(red, robot.now())}
    capture(robot, tmp_path / "red.png")
    assert tuple(cv2.imread(str(tmp_path / "red.png"))[0, 0]) == (0, 0, 200)  # OpenCV is BGR
    goal = read_goal(tmp_path / "red.png", camera="exterior", live=LIVE, **FIT)
    assert np.array_equal(goal.image, red)


def test_what_cannot_be_captured_is_refused(robot, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a goal is a .png file"):
        capture(robot, tmp_path / "goal.jpg")
    with pytest.raises(ValueError, match="'wrist' delivered no picture"):
        capture(robot, tmp_path / "goal.png", camera="wrist")
    capture(robot, tmp_path / "goal.png")
    with pytest.raises(FileExistsError, match="is there already"):
        capture(robot, tmp_path / "goal.png")


def test_a_goal_of_another_size_is_refused_with_both_sizes(robot, tmp_path: Path) -> None:
    capture(robot, tmp_path / "goal.png")
    live = CameraInfo(height=480, width=640, fps=30.0)
    message = r"is 4x4 pixels, but the camera 'exterior' delivers 640x480; .*goal capture"
    with pytest.raises(ValueError, match=message):
        read_goal(tmp_path / "goal.png", camera="exterior", live=live, **FIT)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"camera": "wrist"}, "taken with camera 'exterior' and the arm is driven with 'wrist'"),
        ({"live": replace(LIVE, rendered=True)}, "rendered False and the arm is driven with True"),
        ({"model_size": 8}, "taken with model_size 4 and the arm is driven with 8"),
        ({"crop": "square"}, "taken with crop 'none' and the arm is driven with 'square'"),
    ],
)
def test_a_goal_taken_otherwise_is_refused(
    robot, tmp_path: Path, changes: dict, message: str
) -> None:
    capture(robot, tmp_path / "goal.png")
    asked = {"camera": "exterior", "live": LIVE, **FIT} | changes
    with pytest.raises(ValueError, match=message):
        read_goal(tmp_path / "goal.png", **asked)


def test_a_rendered_goal_is_none_for_a_camera(robot, tmp_path: Path) -> None:
    live = replace(robot.info.cameras["exterior"], rendered=True)
    capture(robot, tmp_path / "goal.png", info=replace(robot.info, cameras={"exterior": live}))
    with pytest.raises(ValueError, match="taken with rendered True and the arm is driven with Fal"):
        read_goal(tmp_path / "goal.png", camera="exterior", live=LIVE, **FIT)
    read_goal(tmp_path / "goal.png", camera="exterior", live=live, **FIT)


def test_a_changed_picture_is_noticed(robot, tmp_path: Path) -> None:
    path = tmp_path / "goal.png"
    capture(robot, path)
    image = cv2.imread(str(path))
    image[1, 2, 0] ^= 1
    cv2.imwrite(str(path), image)
    with pytest.raises(ValueError, match="was changed after it was taken"):
        read_goal(path, camera="exterior", live=LIVE, **FIT)


def test_a_picture_without_a_side_file_has_no_pose(robot, tmp_path: Path) -> None:
    capture(robot, tmp_path / "goal.png")
    (tmp_path / "goal.json").unlink()
    assert read_goal(tmp_path / "goal.png", camera="exterior", live=LIVE, **FIT).side is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda side: side | {"version": 3},
        lambda side: side | {"proprio": [1, 2]},
        lambda side: side | {"proprio": [float("nan")] * 7},
        lambda side: {k: v for k, v in side.items() if k != "camera"},
        lambda side: side | {"more": 1},
        lambda side: [side],
    ],
)
def test_a_wrong_side_file_is_refused(robot, tmp_path: Path, spoil) -> None:
    capture(robot, tmp_path / "goal.png")
    path = tmp_path / "goal.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match="no side file of a goal that can be read"):
        read_goal(tmp_path / "goal.png", camera="exterior", live=LIVE, **FIT)


def test_no_goal_and_no_picture_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="take one with worldmodel drive goal capture"):
        read_goal(tmp_path / "none.png", camera="exterior", live=LIVE, **FIT)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_goal(tmp_path / "text.png", camera="exterior", live=LIVE, **FIT)


# Of several cameras.

BOTH = ("exterior", "wrist")


@pytest.mark.parametrize(
    "name, cameras, paths",
    [
        ("red cube", ("exterior",), ["goals/red cube.png"]),
        ("a+b.png", ("exterior",), ["a+b.png"]),
        ("red cube", BOTH, ["goals/red cube.exterior.png", "goals/red cube.wrist.png"]),
        ("there/x.png", BOTH, ["there/x.exterior.png", "there/x.wrist.png"]),
        ("front.png+w/hand.png", BOTH, ["front.png", "w/hand.png"]),
        ("one+two", BOTH, ["goals/one.png", "goals/two.png"]),
    ],
)
def test_a_goal_is_one_file_of_each_camera(name: str, cameras: tuple, paths: list[str]) -> None:
    assert goal_paths(name, cameras) == tuple(map(Path, paths))


@pytest.mark.parametrize("name, number", [("a.png+b.png+c.png", 3), ("goals/there.wrist.png", 1)])
def test_pictures_of_more_or_fewer_cameras_are_refused(name: str, number: int) -> None:
    message = rf"names {number} picture\(s\), but the model sees 2 cameras \(exterior, wrist\)"
    with pytest.raises(ValueError, match=message):
        goal_paths(name, BOTH)


def capture_both(robot, path: Path) -> tuple[Path, ...]:
    """A goal of two cameras of which the second has larger pictures."""
    robot._arrived |= {"wrist": CameraFrame(np.full((6, 8, 3), 9, np.uint8), robot.now())}
    info = replace(robot.info, cameras={"exterior": LIVE, "wrist": replace(LIVE, height=6)})
    paths = goal_paths(str(path), BOTH)
    for camera, file in zip(BOTH, paths, strict=True):
        capture(robot, file, camera=camera, info=info)
    return paths


def test_pictures_of_two_sizes_are_one_goal(robot, tmp_path: Path) -> None:
    paths = capture_both(robot, tmp_path / "there.png")
    live = {"exterior": LIVE, "wrist": CameraInfo(height=6, width=8, fps=30.0)}
    front, hand = read_goals(paths, live=live, **FIT)
    assert front.image.shape == (4, 4, 3) and hand.image.shape == (6, 8, 3)
    assert front.side is not None and hand.side is not None
    assert (front.side.camera, hand.side.camera) == BOTH
    assert front.side.proprio == hand.side.proprio
    with pytest.raises(ValueError, match="taken with camera 'wrist' and the arm is driven with 'e"):
        read_goals(paths[::-1], live={"exterior": live["wrist"], "wrist": live["exterior"]}, **FIT)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"no goal at .*there\.wrist\.png"):
        read_goals(paths, live=live, **FIT)


def test_pictures_that_were_not_taken_together_are_refused(robot, tmp_path: Path) -> None:
    here = capture_both(robot, tmp_path / "here.png")
    robot.joints = robot.joints + 0.1
    robot.advance(0.05)  # until it is measured
    there = capture_both(robot, tmp_path / "there.png")
    live = {"exterior": LIVE, "wrist": CameraInfo(height=6, width=8, fps=30.0)}
    with pytest.raises(ValueError, match="were not taken together: the arm was at different"):
        read_goals((here[0], there[1]), live=live, **FIT)
    there[1].with_suffix(".json").unlink()  # nothing is known of this one
    assert read_goals((here[0], there[1]), live=live, **FIT)[1].side is None
