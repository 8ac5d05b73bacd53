"""How the model's axes lie in the robot's base frame, found by small moves.

A model learned what a move looks like with its own cameras. With another camera place, or a robot
whose base is turned, it takes one direction for another (V-JEPA 2, Assran et al. 2025, arXiv
2506.09985, section 4: the action axes that the model infers turn with the camera). The arm makes
small random moves, and the rotation is fitted between the moves it made and those the model saw.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from worldmodel.envs.robots.kinematics import rotation_vector
from worldmodel.jepa import JEPA
from worldmodel.joined_views import joined
from worldmodel.planners.energy import latent_l1
from worldmodel.pose import (
    GRIPPER,
    POSITION,
    ROTATION,
    action_between,
    euler_to_matrix,
    matrix_to_euler,
)

FORMAT, VERSION = "worldmodel calibration", 1
FEWEST_MOVES = 4
TURNS = 72  # that "energy" tries, evenly spaced over the circle
MIN_SPREAD = 0.2  # of the moves: their least direction, in units of their greatest
Method = Literal["head", "energy"]


@dataclass(frozen=True, eq=False)
class ModelFrame:
    """The model's axes in the robot's base frame: `model = rotation @ robot`.

    Attributes:
        rotation: (3, 3).
    """

    rotation: Float[np.ndarray, "3 3"]

    @classmethod
    def same(cls) -> "ModelFrame":
        """Returns the frame of a model whose axes are the robot's."""
        return cls(np.eye(3))

    def to_model(self, proprio: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
        """Returns the robot's pose as the model would have it."""
        rotation = self.rotation @ euler_to_matrix(proprio[ROTATION].astype(float))
        position = self.rotation @ proprio[POSITION].astype(float)
        return np.concatenate([position, matrix_to_euler(rotation), proprio[GRIPPER]])

    def to_robot(self, proprio: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
        """Returns a pose of the model's as the robot would have it."""
        return ModelFrame(self.rotation.T).to_model(proprio)

    def actions_to_model(self, actions: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 7"]:
        """Returns what the robot does as the model would have it."""
        return _turned(actions, self.rotation)

    def actions_to_robot(self, actions: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 7"]:
        """Returns what the robot is to do for what the model planned."""
        return _turned(actions, self.rotation.T)


def _turned(actions: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Returns actions seen from axes that are turned: R' = A R A^T."""
    turns = rotation @ euler_to_matrix(actions[:, ROTATION].astype(float)) @ rotation.T
    moves = actions[:, POSITION].astype(float) @ rotation.T
    return np.concatenate([moves, matrix_to_euler(turns), actions[:, GRIPPER]], axis=1)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A fitted frame and how well it fits.

    Attributes:
        frame: of the model.
        method: "head", moves read by the state head; "energy", those whose imagined picture is
            nearest to the picture seen.
        rms_m: what is left of the moves after the fit [m]; None of "energy", which sees none.
        moved_rms_m: size of the moves themselves [m].
        num_moves: how many.
        camera: whose pictures were looked at; several joined by "+".
    """

    frame: ModelFrame
    method: Method
    rms_m: float | None
    moved_rms_m: float
    num_moves: int
    camera: str

    @property
    def angle(self) -> float:
        """By how much the axes are turned [rad]."""
        return float(np.linalg.norm(rotation_vector(self.frame.rotation)))

    @property
    def trusted(self) -> bool:
        """Whether the model saw the moves: less than half of them is left unexplained."""
        return self.rms_m is None or self.rms_m < 0.5 * self.moved_rms_m

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "rotation": self.frame.rotation.tolist(),
            "method": self.method,
            "rms_m": self.rms_m,
            "moved_rms_m": self.moved_rms_m,
            "num_moves": self.num_moves,
            "camera": self.camera,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


def read_calibration(path: Path, *, camera: str) -> Calibration:
    """Reads what `Calibration.write` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no calibration, or one of another camera.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no calibration at {path}; make one with worldmodel drive calibrate"
        )
    try:
        content = json.loads(path.read_text())
        rotation = np.array(content["rotation"], dtype=float)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        off = np.abs(rotation @ rotation.T - np.eye(3)).max() if rotation.shape == (3, 3) else 1.0
        if not off < 1e-6 or np.linalg.det(rotation) < 0:
            raise ValueError("its rotation is none")
        calibration = Calibration(
            frame=ModelFrame(rotation),
            method=content["method"],
            rms_m=content["rms_m"],
            moved_rms_m=content["moved_rms_m"],
            num_moves=content["num_moves"],
            camera=content["camera"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no calibration that can be read: {error}") from error
    if calibration.camera != camera:
        raise ValueError(
            f"{path} was made with the camera {calibration.camera!r}, not {camera!r}; make one "
            "with worldmodel drive calibrate"
        )
    return calibration


def fit_rotation(
    moved: Float[np.ndarray, "n 3"], seen: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation R with the least sum of |seen - R moved|^2.

    Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", 1976. Where
    the moves lie in a plane, the third axis follows from the other two.

    Raises:
        ValueError: there are too few moves, they are all along one line, or one is not finite.
    """
    if len(moved) < FEWEST_MOVES:
        raise ValueError(f"a calibration needs {FEWEST_MOVES} moves or more, got {len(moved)}")
    if not (np.isfinite(moved).all() and np.isfinite(seen).all()):
        raise ValueError("a move of the calibration is not finite")
    sizes = np.linalg.svd(moved, compute_uv=False)
    if not sizes[1] > MIN_SPREAD * sizes[0]:
        raise ValueError("all moves of the calibration are along one line; move in all directions")
    left, _, right = np.linalg.svd(seen.T @ moved)
    proper = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    return left @ proper @ right


@torch.inference_mode()
def calibrate(
    world: JEPA,
    frames: UInt8[np.ndarray, "n *views height width 3"],
    proprio: Float[np.ndarray, "n 7"],
    *,
    camera: str,
) -> Calibration:
    """Returns the calibration by what was seen and measured at the places that the arm went to.

    Args:
        world: with a state head all of the rotation is fitted, without one that about z.
        frames: pictures of the model's size.
        proprio: measured with them, robot's base frame.
        camera: that took them; several joined by "+".

    Raises:
        ValueError: there are too few places, or they lie on a line.
    """
    moved = np.diff(proprio[:, POSITION].astype(float), axis=0)
    fit_rotation(moved, moved)  # refuses moves that no rotation can be fitted to
    model = joined(world)
    latents = model.encode(torch.from_numpy(np.array(frames))[None].to(world.device))[0]
    if world.state_head is not None:
        read = world.state_head(latents)[:, POSITION].double().cpu().numpy()
        seen = np.diff(read, axis=0)
        rotation = fit_rotation(moved, seen)
        rms = _rms(seen - moved @ rotation.T)
        return Calibration(ModelFrame(rotation), "head", rms, _rms(moved), len(moved), camera)
    angles = np.linspace(-np.pi, np.pi, TURNS, endpoint=False)
    energies = []
    for angle in angles:
        frame = ModelFrame(about_z(angle))
        turned = np.stack([frame.to_model(one) for one in proprio]).astype(np.float32)
        poses = torch.from_numpy(turned).to(world.device)
        actions = action_between(poses[:-1], poses[1:])
        imagined = model.predict(latents[:-1, None], poses[:-1, None], actions[:, None])
        energies.append(float(latent_l1(imagined[:, 0], latents[1:]).mean()))
    rotation = about_z(best_angle(angles, np.array(energies)))
    return Calibration(ModelFrame(rotation), "energy", None, _rms(moved), len(moved), camera)


def best_angle(angles: Float[np.ndarray, " n"], energies: Float[np.ndarray, " n"]) -> float:
    """Returns the angle of least energy, also between those tried [rad], in [-pi, pi].

    Args:
        angles: evenly spaced over a full turn, the first not again at the end.
        energies: of each.
    """
    best = int(energies.argmin())
    before, least, after = (energies[(best + k) % len(energies)] for k in (-1, 0, 1))
    curve = before - 2 * least + after
    part = 0.5 * (before - after) / curve if curve > 0 else 0.0
    angle = angles[best] + part * (angles[1] - angles[0])
    return float(np.arctan2(np.sin(angle), np.cos(angle)))


def about_z(angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation about the vertical axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _rms(vectors: np.ndarray) -> float:
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))
