"""Goal images taken by the robot's own camera, each with a side file that says how.

A goal is compared with live pictures, so it comes from the same camera, at the same size, through
the same resizing. `capture_goal` saves the picture as the camera delivered it (`x.png`) and beside
it where the arm was (`x.json`); `read_goal` refuses one that was taken otherwise.

A goal of several cameras is one such picture of each, taken at the same place: `x.exterior.png` and
`x.wrist.png`, each with a side file of its own.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from worldmodel.envs.robots.interface import CameraInfo, RobotInfo, RobotObservation

FORMAT, VERSION = "worldmodel goal", 2


@dataclass(frozen=True)
class GoalSide:
    """How a goal image was taken.

    Attributes:
        camera: its name.
        rendered: whether the picture was drawn, not seen, see `CameraInfo`.
        height: of the picture [pixels].
        width: of the picture.
        proprio: of the arm: position [m], extrinsic xyz Euler angles [rad], gripper.
        joint_positions: [rad].
        gripper_width_m: opening [m].
        robot: name of the robot.
        arm: which arm.
        model_size: height and width to which the model's pictures are resized.
        crop: how, see `worldmodel.images`.
        sha256: of shape and pixels.
    """

    camera: str
    rendered: bool
    height: int
    width: int
    proprio: tuple[float, ...]
    joint_positions: tuple[float, ...]
    gripper_width_m: float
    robot: str
    arm: str
    model_size: int
    crop: str
    sha256: str


@dataclass(frozen=True, eq=False)
class CapturedGoal:
    """A goal image.

    Attributes:
        name: of its file, without the ending.
        image: RGB, as the camera delivered it.
        side: how it was taken; None of a picture without a side file.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    side: GoalSide | None


def picture_hash(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """Returns the SHA-256 of a picture's shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def goal_path(name: str) -> Path:
    """Returns the file of a goal: `red cube` is goals/red cube.png, and a path is itself."""
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else Path("goals") / f"{name}.png"


def goal_paths(name: str, cameras: Sequence[str]) -> tuple[Path, ...]:
    """Returns the files of a goal, one of each camera.

    Of several cameras, `red cube` is goals/red cube.exterior.png and goals/red cube.wrist.png, and
    files of theirs, joined by "+" in the order of the cameras, are themselves.

    Raises:
        ValueError: more or fewer files are named than there are cameras.
    """
    path = goal_path(name)
    if len(cameras) == 1:
        return (path,)
    named = name.split("+")
    if len(named) == 1 and path.stem.rpartition(".")[2] not in cameras:
        return tuple(path.with_name(f"{path.stem}.{camera}{path.suffix}") for camera in cameras)
    if len(named) != len(cameras):
        raise ValueError(
            f"goal={name} names {len(named)} picture(s), but the model sees {len(cameras)} cameras "
            f"({', '.join(cameras)}); name one of each, joined by +, or goal=NAME alone"
        )
    return tuple(goal_path(one) for one in named)


def check_new(path: Path) -> None:
    """Refuses what cannot become the file of a new goal.

    Raises:
        ValueError: it is no .png.
        FileExistsError: there is such a goal already.
    """
    if path.suffix != ".png":
        raise ValueError(
            f"a goal is a .png file, got {path}; choose goal=NAME or goal=FOLDER/NAME.png"
        )
    if path.exists() or path.with_suffix(".json").exists():
        raise FileExistsError(f"{path} is there already; delete it, or choose another name")


def capture_goal(
    path: Path,
    observation: RobotObservation,
    *,
    camera: str,
    info: RobotInfo,
    model_size: int,
    crop: str,
) -> CapturedGoal:
    """Saves what a camera shows now as a goal: `path`, and its side file.

    Raises:
        ValueError: the path is no .png, or the camera showed nothing.
        FileExistsError: there is such a goal already.
    """
    check_new(path)
    if camera not in observation.frames:
        raise ValueError(f"the camera {camera!r} delivered no picture")
    image = observation.frames[camera].image
    side = GoalSide(
        camera=camera,
        rendered=info.cameras[camera].rendered,
        height=image.shape[0],
        width=image.shape[1],
        proprio=tuple(observation.proprio.astype(float).tolist()),
        joint_positions=tuple(observation.joint_positions.astype(float).tolist()),
        gripper_width_m=observation.gripper_width_m,
        robot=info.name,
        arm=info.arm,
        model_size=model_size,
        crop=crop,
        sha256=picture_hash(image),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path} could not be written")
    content = {"format": FORMAT, "version": VERSION, **asdict(side)}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return CapturedGoal(path.stem, image, side)


def read_goal(
    path: Path, *, camera: str, live: CameraInfo, model_size: int, crop: str
) -> CapturedGoal:
    """Reads a goal and checks that it can be compared with a camera's live pictures.

    Args:
        path: of the picture; a side file beside it is read too.
        camera: that is driven by.
        live: its pictures.
        model_size: of the model.
        crop: of the model.

    Raises:
        FileNotFoundError: there is no such goal.
        ValueError: it is no picture, was changed since it was taken, or was taken by another
            camera, at another size or for another preprocessing.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no goal at {path}; take one with worldmodel drive goal capture and the goal=... and "
            "camera=... of this call"
        )
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if stored is None:
        raise ValueError(f"{path} is not an image that can be read")
    image = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    if image.shape[:2] != (live.height, live.width):
        raise ValueError(
            f"the goal {path} is {image.shape[1]}x{image.shape[0]} pixels, but the camera "
            f"{camera!r} delivers {live.width}x{live.height}; take the goal with worldmodel drive "
            "goal capture"
        )
    side = _read_side(path.with_suffix(".json"))
    if side is None:
        return CapturedGoal(path.stem, image, None)
    if side.sha256 != picture_hash(image):
        raise ValueError(f"the picture {path} was changed after it was taken; take it again")
    asked = {"camera": camera, "rendered": live.rendered, "model_size": model_size, "crop": crop}
    for name, value in asked.items():
        if getattr(side, name) != value:
            raise ValueError(
                f"the goal {path} was taken with {name} {getattr(side, name)!r} and the arm is "
                f"driven with {value!r}; take it again, or drive with the same"
            )
    return CapturedGoal(path.stem, image, side)


def read_goals(
    paths: Sequence[Path], *, live: Mapping[str, CameraInfo], model_size: int, crop: str
) -> tuple[CapturedGoal, ...]:
    """Reads a goal, one picture of each camera, see `read_goal`.

    Args:
        paths: of the pictures.
        live: the cameras that are driven by, in the order of the paths.
        model_size: of the model.
        crop: of the model.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: as `read_goal`; or the pictures were taken with the arm at different places.
    """
    goals = tuple(
        read_goal(path, camera=camera, live=info, model_size=model_size, crop=crop)
        for path, (camera, info) in zip(paths, live.items(), strict=True)
    )
    if len({(one.side.robot, one.side.joint_positions) for one in goals if one.side}) > 1:
        raise ValueError(
            f"the goals {', '.join(map(str, paths))} were not taken together: the arm was at "
            "different places; take one of all cameras with worldmodel drive goal capture"
        )
    return goals


def _read_side(path: Path) -> GoalSide | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format or version; take the goal again")
        for name in ("proprio", "joint_positions"):
            content[name] = tuple(float(value) for value in content[name])
            if len(content[name]) != 7 or not np.isfinite(content[name]).all():
                raise ValueError(f"{name} must be seven finite numbers")
        return GoalSide(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no side file of a goal that can be read: {error}") from error
