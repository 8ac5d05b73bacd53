"""What the cameras saw: all frames are decoded once, and looked at one after the other."""

from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.frames import FrameReadError, Frames
from worldmodel.data.rotations import angle_between
from worldmodel.pose import POSITION, ROTATION, euler_to_matrix

CHUNK = 32  # frames decoded at a time
BLACK = 5.0  # mean grey level of 255; the darkest real scenes lie above, and lost frames are 0
CHANGED = 8  # grey levels: codecs change a still pixel by less, an arm that moves by more
FROZEN_S = 0.4  # a camera slower than the log repeats frames for less
FROZEN_M, FROZEN_RAD = 0.02, 0.1  # motion during that time that a camera must have seen
# Two 16:9 pictures are 3.55 wide, two 4:3 ones 2.67; one alone is at most 2.4 (cinema).
STEREO_RATIO = 2.5
STEREO_MATCH = 0.6  # correlation of the halves; two eyes see nearly the same
_STEREO_SIZE = (24, 24)  # coarse enough that the eyes' distance does not matter


def find_cameras(
    frames: Mapping[str, Frames], proprio: np.ndarray | None, dt: np.ndarray | None
) -> tuple[list[Finding], dict[str, tuple[float, ...]]]:
    """Looks at every frame of every camera.

    Args:
        frames: Camera -> frames.
        proprio: (T + 1, 7), row k at the time of frame k; None where nobody knows.
        dt: (T,) [s]; None likewise.

    Returns:
        What was found, and for each camera the mean of R, G and B, or nothing if all was dark.
    """
    found, colours = [], {}
    for camera, seen in frames.items():
        of_camera, colour = _find_camera(camera, seen, proprio, dt)
        found += of_camera
        colours[camera] = colour
    return found, colours


def _find_camera(
    camera: str, frames: Frames, proprio: np.ndarray | None, dt: np.ndarray | None
) -> tuple[list[Finding], tuple[float, ...]]:
    black, same, colours = [], [], []
    found: list[Finding] = []
    previous = None
    middle = len(frames) // 2
    for k, image in _decoded(frames):
        if isinstance(image, FrameReadError):
            return [_unreadable(camera, frames, k, image)], ()
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA).reshape(-1, 3)
        black.append(float(small.mean()) < BLACK)
        same.append(previous is not None and int(cv2.absdiff(image, previous).max()) <= CHANGED)
        if not black[-1]:
            colours.append(small.mean(axis=0))
        if k == middle:
            found += _find_stereo(camera, image)
        previous = image
    found += _find_black(camera, np.array(black))
    if proprio is not None and dt is not None and len(same) == len(proprio):
        found += _find_frozen(camera, np.array(same) & ~np.array(black), proprio, dt)
    return found, tuple(np.mean(colours, axis=0).tolist()) if colours else ()


def _decoded(frames: Frames) -> Iterator[tuple[int, np.ndarray | FrameReadError]]:
    """Yields every frame; where one cannot be read, the error in its place, and stops."""
    for first in range(0, len(frames), CHUNK):
        last = min(first + CHUNK, len(frames))
        try:
            chunk = frames[first:last]
        except FrameReadError:
            for k in range(first, last):
                try:
                    yield k, frames[k]
                except FrameReadError as error:
                    yield k, error
                    return
            continue
        yield from enumerate(chunk, start=first)


def _unreadable(camera: str, frames: Frames, step: int, error: FrameReadError) -> Finding:
    try:
        frames[len(frames) - 1]
        ends_there = False
    except FrameReadError:
        ends_there = 0 < step
    code = "video_truncated" if ends_there else "frames_unreadable"
    message = (
        f"camera '{camera}' declares {len(frames)} frames but ends after {step}"
        if ends_there
        else f"frame {step} of camera '{camera}' cannot be read"
    )
    return finding(code, f"{message}: {error}", step=step)


def _find_black(camera: str, black: np.ndarray) -> list[Finding]:
    if not black.any():
        return []
    return [
        finding(
            "camera_black",
            f"{black.sum()} of {len(black)} frames of camera '{camera}' are black",
            step=int(np.flatnonzero(black)[0]),
            severity="error" if black.all() else "warning",
        )
    ]


def _find_frozen(
    camera: str, same: np.ndarray, proprio: np.ndarray, dt: np.ndarray
) -> list[Finding]:
    """Finds runs of frames equal to the one before, through which the arm moved.

    Args:
        camera: Name.
        same: bool (T + 1,): frame k equals frame k - 1.
        proprio: (T + 1, 7).
        dt: (T,) [s].
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(int)))
    rotation = euler_to_matrix(proprio[:, ROTATION].astype(np.float64))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        first, last = begin - 1, end - 1  # frames first to last are all the same
        moved = np.linalg.norm(proprio[last, POSITION] - proprio[first, POSITION])
        turned = angle_between(rotation[first], rotation[last])
        seconds = float(dt[first:last].sum())
        if seconds >= FROZEN_S and (moved >= FROZEN_M or turned >= FROZEN_RAD):
            return [
                finding(
                    "camera_frozen",
                    f"camera '{camera}' shows the same picture from frame {first} to {last} "
                    f"({seconds:.1f} s), while the hand moves {100 * moved:.0f} cm and turns "
                    f"{np.degrees(turned):.0f} degrees",
                    step=int(first),
                )
            ]
    return []


def _find_stereo(camera: str, image: np.ndarray) -> list[Finding]:
    height, width = image.shape[:2]
    if width < STEREO_RATIO * height:
        return []
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    left, right = (
        cv2.resize(half, _STEREO_SIZE, interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
        for half in (grey[:, : width // 2], grey[:, width - width // 2 :])
    )
    if left.std() < 1 or right.std() < 1:
        return []
    match = float(np.corrcoef(left, right)[0, 1])
    if match < STEREO_MATCH:
        return []
    return [
        finding(
            "stereo_pair",
            f"pictures of camera '{camera}' are {width} x {height} and their halves show the same "
            f"(correlation {match:.2f})",
        )
    ]
