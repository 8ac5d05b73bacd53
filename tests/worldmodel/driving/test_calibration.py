import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.driving.calibration import (
    Calibration,
    ModelFrame,
    about_z,
    best_angle,
    calibrate,
    fit_rotation,
    read_calibration,
)
from worldmodel.driving.moves import random_places
from worldmodel.envs.robots.kinematics import rotation_of_vector, rotation_vector
from worldmodel.pose import action_between, integrate

rotation = st.tuples(*[st.floats(-1.7, 1.7)] * 3).map(lambda v: rotation_of_vector(np.array(v)))
pose = st.tuples(*[st.floats(-0.6, 0.6)] * 3, *[st.floats(-1.2, 1.2)] * 3, st.floats(0, 1)).map(
    np.array
)


@settings(deadline=None)
@given(rotation, st.integers(0, 10**6))
def test_any_rotation_is_found_from_what_was_moved_and_seen(turn, seed: int) -> None:
    rng = np.random.default_rng(seed)
    moved = np.diff(random_places(9, 0.05, rng=rng), axis=0)
    assert np.abs(fit_rotation(moved, moved @ turn.T) - turn).max() < 1e-6
    noisy = moved @ turn.T + rng.normal(scale=0.002, size=moved.shape)
    off = rotation_vector(fit_rotation(moved, noisy) @ turn.T)
    assert np.linalg.norm(off) < 0.2
    assert np.linalg.det(fit_rotation(moved, noisy)) == pytest.approx(1)


def test_moves_in_a_plane_are_enough_and_along_a_line_are_not() -> None:
    turn = about_z(0.7)
    plane = np.array([[0.05, 0, 0], [0, 0.05, 0], [-0.05, 0.02, 0], [0, -0.05, 0]])
    assert np.allclose(fit_rotation(plane, plane @ turn.T), turn)
    line = np.outer([1, -2, 3, -1], [0.01, 0.02, 0.0])
    with pytest.raises(ValueError, match="along one line"):
        fit_rotation(line, line)
    with pytest.raises(ValueError, match="needs 4 moves or more, got 3"):
        fit_rotation(plane[:3], plane[:3])
    with pytest.raises(ValueError, match="not finite"):
        fit_rotation(plane, plane * np.nan)


@settings(deadline=None)
@given(rotation, pose, pose)
def test_to_act_in_the_models_frame_is_to_act_in_the_robots(turn, here, there) -> None:
    """The way between two poses, taken in the model's axes and brought back, is the way."""
    frame = ModelFrame(turn)
    action = action_between(frame.to_model(here), frame.to_model(there))
    back = frame.actions_to_robot(action[None])[0]
    reached = integrate(here, back)
    assert np.allclose(reached[:3], there[:3], atol=1e-6)
    assert np.allclose(reached[6], there[6])
    from worldmodel.pose import euler_to_matrix

    assert np.allclose(euler_to_matrix(reached[3:6]), euler_to_matrix(there[3:6]), atol=1e-6)
    assert np.allclose(frame.actions_to_model(back[None])[0, :3], action[:3], atol=1e-9)
    assert np.allclose(frame.to_robot(frame.to_model(here))[:3], here[:3], atol=1e-9)


@settings(deadline=None)
@given(st.floats(-3.1, 3.1))
def test_the_angle_between_those_tried_is_found(true: float) -> None:
    angles = np.linspace(-np.pi, np.pi, 72, endpoint=False)
    found = best_angle(angles, 2 - np.cos(angles - true))
    assert abs(np.angle(np.exp(1j * (found - true)))) < 0.01


class Reader(torch.nn.Module):
    """A state head that reads what was written into the first seven values of the latents."""

    def __init__(self, world, turn: np.ndarray, blind: bool = False):
        super().__init__()
        self.num_tokens, self.latent_dim = 16, 24
        self.turn, self.blind, self.poses = ModelFrame(turn), blind, []

    def forward(self, latents):
        states = [self.turn.to_model(pose) for pose in self.poses]
        if self.blind:
            states = list(np.random.default_rng(1).normal(size=(len(states), 7)) * 0.05)
        return torch.tensor(np.stack(states)).float()


def moves_of(rng) -> np.ndarray:
    home = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0])
    return np.stack([home + [*place, 0, 0, 0, 0] for place in random_places(9, 0.05, rng=rng)])


def test_the_head_says_how_the_axes_lie(make_world) -> None:
    world, turn = make_world(), rotation_of_vector(np.array([0.1, -0.2, 0.8]))
    world.state_head = Reader(world, turn)
    proprio = moves_of(np.random.default_rng(0))
    world.state_head.poses = proprio
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    found = calibrate(world, frames, proprio, camera="exterior")
    assert found.method == "head" and found.trusted and found.num_moves == 8
    assert np.allclose(found.frame.rotation, turn, atol=1e-4)
    assert found.rms_m is not None and found.rms_m < 1e-5
    assert 0.04 < found.moved_rms_m < 0.1
    world.state_head.blind = True
    assert not calibrate(world, frames, proprio, camera="exterior").trusted


def test_without_a_head_the_energy_says_how_they_are_turned(make_world) -> None:
    world, turn = make_world(), ModelFrame(about_z(0.6))
    proprio = moves_of(np.random.default_rng(3))
    # The pictures are what the model imagines when its axes are turned by 0.6.
    latents = [torch.randn(1, 1, 16, 24, generator=torch.Generator().manual_seed(1))]
    poses = torch.tensor(np.stack([turn.to_model(p) for p in proprio])).float()
    with torch.inference_mode():
        for k in range(8):
            action = action_between(poses[k : k + 1], poses[k + 1 : k + 2])
            latents.append(world.predict(latents[-1], poses[k : k + 1, None], action[:, None]))
    world.encode = lambda frames: torch.cat(latents, dim=1)
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    found = calibrate(world, frames, proprio, camera="exterior")
    assert found.method == "energy" and found.rms_m is None
    angle = np.arctan2(found.frame.rotation[1, 0], found.frame.rotation[0, 0])
    assert angle == pytest.approx(0.6, abs=0.05)


def test_with_two_cameras_all_of_their_tokens_are_read(make_world) -> None:
    """One view alone tells where the arm is: the head, and the energy, are given both."""
    world, turn = make_world(num_views=2), about_z(0.6)
    proprio = moves_of(np.random.default_rng(0))
    reader = Reader(world, turn)
    reader.poses, read = proprio, reader.forward
    shapes = []
    reader.forward = lambda latents: shapes.append(tuple(latents.shape)) or read(latents)
    frames = np.random.default_rng(1).integers(0, 256, (9, 2, 32, 32, 3), np.uint8)
    world.state_head = reader
    found = calibrate(world, frames, proprio, camera="exterior+wrist")
    assert shapes == [(9, 2 * 16, 24)]
    assert np.allclose(found.frame.rotation, turn, atol=1e-4)
    assert found.camera == "exterior+wrist"
    world.state_head = None
    assert calibrate(world, frames, proprio, camera="exterior+wrist").method == "energy"


def test_it_is_read_as_it_was_written(tmp_path) -> None:
    path = tmp_path / "calibration.json"
    one = Calibration(ModelFrame(about_z(0.3)), "head", 0.004, 0.06, 10, "exterior")
    one.write(path)
    again = read_calibration(path, camera="exterior")
    assert np.array_equal(again.frame.rotation, one.frame.rotation)
    assert again.angle == pytest.approx(0.3)
    assert (again.rms_m, again.num_moves, again.method) == (0.004, 10, "head")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"camera": "wrist"}, "made with the camera 'wrist', not 'exterior'"),
        ({"rotation": [[1, 0], [0, 1]]}, "its rotation is none"),
        ({"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "its rotation is none"),
        ({"rotation": [[float("nan")] * 3] * 3}, "its rotation is none"),
        ({"version": 9}, "another format or version"),
        ({"rotation": "x"}, "is no calibration that can be read"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, changes: dict, message: str) -> None:
    path = tmp_path / "calibration.json"
    Calibration(ModelFrame.same(), "head", 0.004, 0.06, 10, "exterior").write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        read_calibration(path, camera="exterior")


def test_a_missing_or_broken_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="make one with worldmodel drive calib"):
        read_calibration(tmp_path / "none.json", camera="exterior")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="no calibration that can be read"):
        read_calibration(tmp_path / "bad.json", camera="exterior")
