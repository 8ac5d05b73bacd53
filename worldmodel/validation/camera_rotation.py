"""Does the camera stand elsewhere than the model believes? How far its moves are turned.

A predictor learned directions from the camera it was trained with. Behind another camera the moves
it finds are turned, by an angle almost linear in the camera's. The least-squares map from found to
true horizontal moves says so; its rotation, U V^T of the singular value decomposition, is what
planned moves are to be multiplied by (`worldmodel.planners.camera_rotation`).

Source: V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985), the section on sensitivity to the camera
position, where the map's condition number is about 1.5 and the correction is proposed, not used.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from worldmodel.runs import write_json
from worldmodel.validation.intervals import bootstrap_interval

CAMERA_ROTATION_FILE = "camera_rotation.json"
FORMAT, VERSION = "worldmodel camera rotation", 1
PLANE = slice(0, 2)  # x and y of an action
MAX_CONDITION = 1e4  # of the moves; beyond, they are along one line


@dataclass(frozen=True, eq=False)
class CameraRotation:
    """The map from horizontal moves that the model finds to those that were made.

    Attributes:
        matrix: The least-squares map: true = matrix @ found.
        found: Moves found [m].
        true: Moves made [m].
        episodes: Recording of each move.
    """

    matrix: Float[np.ndarray, "2 2"]
    found: Float[np.ndarray, "moves 2"]
    true: Float[np.ndarray, "moves 2"]
    episodes: np.ndarray

    @property
    def condition(self) -> float:
        """Condition number of the map: 1 for a rotation; large where a direction is not seen."""
        return float(np.linalg.cond(self.matrix))

    @property
    def rotation(self) -> Float[np.ndarray, "2 2"]:
        """The rotation nearest to the map, of determinant 1."""
        return nearest_rotation(self.matrix)

    @property
    def angle_deg(self) -> float:
        """Angle by which found moves are to be turned, counter-clockwise from above [degrees]."""
        return _angle_deg(self.rotation)

    @property
    def mirrored(self) -> bool:
        """Whether the map mirrors: then no rotation repairs it, and its angle means nothing."""
        return bool(np.linalg.det(self.matrix) <= 0)

    def errors_cm(self) -> tuple[float, float]:
        """Returns the mean error of found moves as they are, and turned [cm].

        Each move is turned by what the others say: those of the other half of the recordings.
        """
        _, number = np.unique(self.episodes, return_inverse=True)
        turned = np.empty_like(self.found)
        for half in (0, 1):
            here = number % 2 == half
            fitted = nearest_rotation(fit_map(self.found[~here], self.true[~here]))
            turned[here] = self.found[here] @ fitted.T
        before, after = (
            100 * float(np.linalg.norm(moves - self.true, axis=1).mean())
            for moves in (self.found, turned)
        )
        return before, after

    def to_json(self, *, seed: int) -> dict[str, object]:
        """Returns the numbers, with the 95 % interval of the angle."""
        before, after = self.errors_cm()

        def further_deg(rows: np.ndarray) -> float:  # from the angle, for angles are a circle
            again = nearest_rotation(fit_map(self.found[rows], self.true[rows]))
            return _angle_deg(again @ self.rotation.T)

        low, high = bootstrap_interval(further_deg, self.episodes, seed=seed)
        return {
            "angle_deg": self.angle_deg,
            "angle_deg_95": [self.angle_deg + low, self.angle_deg + high],
            "condition": self.condition,
            "mirrored": self.mirrored,
            "matrix": self.matrix.tolist(),
            "rotation": self.rotation.tolist(),
            "error_cm": before,
            "corrected_error_cm": after,
            "moves": len(self.true),
        }


def camera_rotation(
    found: Float[np.ndarray, "moves 7"], true: Float[np.ndarray, "moves 7"], episodes: np.ndarray
) -> CameraRotation:
    """Fits the map from found to true horizontal moves, see `EnergyArgmin` for both.

    Args:
        found: Actions of lowest energy.
        true: Actions that were done.
        episodes: Recording of each; at least two.

    Raises:
        ValueError: There are too few moves, or all are along one line.
    """
    if len(np.unique(episodes)) < 2:
        raise ValueError(
            "the turn of the camera is fitted on some recordings and tried on others, but there is "
            "only one; give more"
        )
    planar = found[:, PLANE], true[:, PLANE]
    return CameraRotation(fit_map(*planar), *planar, episodes)


def fit_map(
    found: Float[np.ndarray, "moves 2"], true: Float[np.ndarray, "moves 2"]
) -> Float[np.ndarray, "2 2"]:
    """Returns the least-squares map W of `true = W @ found`.

    Raises:
        ValueError: There are fewer than three moves, or all are along one line.
    """
    spread = [np.linalg.svd(moves, compute_uv=False) for moves in (found, true) if len(moves) > 2]
    if not spread or any(not high < MAX_CONDITION * low for high, low in spread):
        raise ValueError(
            f"{len(found)} moves do not say how the camera is turned: expected at least three, in "
            "more than one horizontal direction; give recordings in which the arm moves about"
        )
    return np.linalg.lstsq(found, true, rcond=None)[0].T


def nearest_rotation(matrix: Float[np.ndarray, "2 2"]) -> Float[np.ndarray, "2 2"]:
    """Returns the rotation of determinant 1 nearest to a map (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def save_camera_rotation(
    fitted: CameraRotation, path: Path, *, model: str, camera: str, recordings: str, seed: int
) -> None:
    """Writes the correction for `planner.camera_rotation`.

    Args:
        fitted: The diagnosis.
        path: The file; its folder exists.
        model: Fingerprint of the model.
        camera: Name of the camera.
        recordings: Where the moves come from, for people.
        seed: Of the interval of the angle.
    """
    header = {"format": FORMAT, "version": VERSION, "model": model, "camera": camera}
    write_json(path, {**header, "recordings": recordings, **fitted.to_json(seed=seed)})


def load_camera_rotation(path: str | Path, *, model: str, camera: str) -> Float[np.ndarray, "2 2"]:
    """Reads a correction and checks that it is of this model and camera.

    Raises:
        FileNotFoundError: There is none; the message says how to make it.
        ValueError: The file is no correction, of another model or camera, or of a map that mirrors.
    """
    path = Path(path)
    make = (
        "make one from recordings of this camera in which the arm moves about: worldmodel validate "
        "data=RECORDINGS"
    )
    if not path.is_file():
        raise FileNotFoundError(f"no camera rotation at {path}; {make}")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); {make}") from error
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(f"{path} is not a {FORMAT} of version {VERSION}; {make}")
    if content["model"] != model:
        raise ValueError(f"{path} was made with another model; {make}")
    if content["camera"] != camera:
        raise ValueError(f"{path} is of camera '{content['camera']}', not of '{camera}'; {make}")
    if content["mirrored"]:
        raise ValueError(
            f"{path} found moves that are mirrored, which no turn repairs; check the axes of the "
            "recordings it was made from (worldmodel inspect PATH --check)"
        )
    rotation = np.array(content["rotation"], float)
    if rotation.shape != (2, 2) or not np.allclose(rotation @ rotation.T, np.eye(2), atol=1e-6):
        raise ValueError(f"{path} holds no rotation: {content['rotation']}; {make}")
    return rotation


def _angle_deg(rotation: np.ndarray) -> float:
    return math.degrees(math.atan2(rotation[1, 0], rotation[0, 0]))
