"""Between LeRobot's tensors and the messages of a planner server."""

from collections.abc import Mapping
from typing import Any

import numpy as np

ACTION_NAMES = (*(f"joint_{i}.vel" for i in range(1, 8)), "gripper.pos")
NUM_JOINTS = 7
JOINT_UNIT = 0.2 * 15  # rad/s of a joint at a velocity of 1, in DROID's units


def request_of(state: np.ndarray, image: np.ndarray, prompt: str) -> dict[str, Any]:
    """Returns what the server is asked, in RoboArena's dialect.

    Args:
        state: joints [rad] and gripper (0 open, 1 closed), then whatever follows.
        image: (3, height, width) in [0, 1], as LeRobot has it.
        prompt: name of the goal.

    Raises:
        ValueError: the state is too short, the image is none, or there is no prompt.
    """
    if state.ndim != 1 or len(state) <= NUM_JOINTS:
        raise ValueError(
            f"observation.state must begin with seven joints and the gripper, got shape "
            f"{state.shape}"
        )
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image of shape (3, height, width), got {image.shape}")
    if not prompt:
        raise ValueError("name a goal: --task=NAME, for the server's goals/NAME.png")
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return {
        "endpoint": "infer",
        "observation/exterior_image_1_left": np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        "observation/joint_position": state[:NUM_JOINTS].astype(np.float64),
        "observation/gripper_position": state[NUM_JOINTS : NUM_JOINTS + 1].astype(np.float64),
        "prompt": prompt,
    }


def actions_of(reply: Any) -> np.ndarray:
    """Returns the actions (N, 8) in a reply: joint speeds [rad/s], then the gripper.

    Raises:
        ValueError: there are none.
    """
    rows = reply.get("actions") if isinstance(reply, Mapping) else reply
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != NUM_JOINTS + 1:
        raise ValueError(f"expected rows of eight numbers from the server, got {reply!r:.200}")
    scale = np.append(np.full(NUM_JOINTS, JOINT_UNIT), 1.0)
    return (scale * rows).astype(np.float32)


def check_metadata(metadata: Any) -> None:
    """Checks what the server says of itself.

    Raises:
        ValueError: it plans in another action space, or sees the wrist camera.
    """
    space = metadata.get("action_space") if isinstance(metadata, Mapping) else None
    if space != "joint_velocity":
        raise ValueError(
            f"the server's action_space must be joint_velocity, got {space!r}; start it with: "
            "worldmodel serve ... action_space=joint_velocity"
        )
    if metadata.get("needs_wrist_camera"):
        raise ValueError(
            "the server's model sees the wrist camera, and this policy sends the picture of one "
            "exterior camera; serve a model of that one, with camera=exterior"
        )
