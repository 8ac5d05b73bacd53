"""Recordings whose every value is known, to be written in each format and read back.

The arm follows smooth random joint paths; poses come from its kinematics, so joints, poses and
rotations agree. Every frame carries its own number as bright and dark tiles, which survive video
compression: whoever reads frame k can prove that it is frame k.
"""

from dataclasses import dataclass

import numpy as np

from worldmodel.franka_arm import hand_pose
from worldmodel.pose import matrix_to_euler

CAMERAS = ("exterior", "wrist")
HOME = np.array([0.0, -0.6, 0.0, -2.2, 0.0, 1.7, 0.8])  # rad
CAMERA_CODE = {"exterior": 0, "wrist": 1}
TILES = 16  # bits of a frame's label: 8 of the frame number, 6 of the episode, 2 of the camera


@dataclass(frozen=True)
class Truth:
    """One recording with everything a log may hold, in our units and conventions.

    Attributes:
        number: Which recording, 0, 1, ...
        times: (rows,) [s], jittered around the rate, starting at an epoch time.
        joints: (rows, 7) [rad].
        position: (rows, 3) [m] of the hand.
        rotation: (rows, 3, 3) of the hand.
        euler: (rows, 3) [rad], extrinsic xyz.
        gripper: (rows,) 0 open to 1 closed.
        frames: Camera -> uint8 RGB (rows, height, width, 3).
        task: What was to be done.
        success: Whether it was.
    """

    number: int
    times: np.ndarray
    joints: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    euler: np.ndarray
    gripper: np.ndarray
    frames: dict[str, np.ndarray]
    task: str
    success: bool

    @property
    def proprio(self) -> np.ndarray:
        """(rows, 7) as `Episode.proprio`."""
        return np.concatenate([self.position, self.euler, self.gripper[:, None]], axis=1)


def make_truth(
    number: int = 0,
    *,
    rows: int = 30,
    hz: float = 15.0,
    height: int = 48,
    width: int = 64,
    jitter: float = 0.0,
    cameras: tuple[str, ...] = CAMERAS,
) -> Truth:
    """Returns recording `number`; the same number gives the same recording."""
    rng = np.random.default_rng(1000 + number)
    seconds = np.arange(rows) / hz
    times = 1.7e9 + 100.0 * number + seconds + rng.uniform(-jitter, jitter, rows) / hz
    waves = [
        rng.uniform(0.1, 0.35, 7)
        * np.sin(2 * np.pi * rng.uniform(0.1, 0.4, 7) * seconds[:, None] + rng.uniform(0, 6, 7))
        for _ in range(2)
    ]
    joints = HOME + sum(waves)
    position, rotation = hand_pose(joints)
    # Starts open, closes once, opens again near the end.
    closing = np.clip((seconds / seconds[-1] - 0.3) * 5, 0, 1)
    opening = np.clip((seconds / seconds[-1] - 0.75) * 8, 0, 1)
    return Truth(
        number=number,
        times=times,
        joints=joints,
        position=position,
        rotation=rotation,
        euler=matrix_to_euler(rotation),
        gripper=closing * (1 - opening) * 0.9,
        frames={
            camera: np.stack(
                [
                    picture(k, number, camera, height=height, width=width, hand=position[k])
                    for k in range(rows)
                ]
            )
            for camera in cameras
        },
        task=("put the cup on the plate", "open the drawer", "wipe the table")[number % 3],
        success=number % 2 == 0,
    )


def picture(
    frame: int, episode: int, camera: str, *, height: int, width: int, hand: np.ndarray
) -> np.ndarray:
    """Returns a warm-coloured scene with a blob at the hand, and the label in its upper half."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (170, 140, 105)  # a wooden table
    row = int(height * np.clip(0.75 - 0.2 * hand[2], 0.55, 0.9))
    column = int(width * np.clip(0.5 + 0.5 * hand[1], 0.1, 0.9))
    image[row - 2 : row + 3, column - 3 : column + 4] = (200, 60, 40)
    bits = (frame % 256) | (episode % 64) << 8 | CAMERA_CODE[camera] << 14
    for k in range(TILES):
        top, left = (k // 8) * height // 4, (k % 8) * width // 8
        bright = bits >> k & 1
        tile = image[top : top + height // 4, left : left + width // 8]
        tile[:] = (235, 230, 220) if bright else (40, 32, 25)
    return image


def label(image: np.ndarray) -> tuple[int, int, int]:
    """Returns frame (mod 256), episode (mod 64) and camera code that a picture carries."""
    frame, episode, camera = labels(image[None])[0].tolist()
    return frame, episode, camera


def labels(images: np.ndarray) -> np.ndarray:
    """Returns the labels (n, 3) of pictures (n, height, width, 3)."""
    height, width = images.shape[1:3]
    bits = np.zeros(len(images), np.int64)
    for k in range(TILES):
        top, left = (k // 8) * height // 4, (k % 8) * width // 8
        middle = images[
            :, top + height // 12 : top + height // 6, left + width // 24 : left + width // 12
        ]
        bits |= (middle.mean(axis=(1, 2, 3)) > 128).astype(np.int64) << k
    return np.stack([bits & 255, bits >> 8 & 63, bits >> 14], axis=1)
