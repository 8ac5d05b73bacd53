"""The turn of a camera is found, written, read again, and refused where it means nothing."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.validation.camera_rotation import (
    camera_rotation,
    fit_map,
    load_camera_rotation,
    nearest_rotation,
    save_camera_rotation,
)
from worldmodel.validation.energy_argmin import energy_argmin


def moves(number: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.07, 0.07, (number, 7))


def rotation(degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def fitted_to(matrix: np.ndarray, *, noise: float = 0.0, seed: int = 0):
    """The fit where the model finds moves that `matrix` turns into the true ones."""
    true = moves(seed=seed)
    found = true.copy()
    found[:, :2] = true[:, :2] @ np.linalg.inv(matrix).T
    found[:, :2] += noise * np.random.default_rng(seed + 1).normal(size=(len(true), 2))
    return camera_rotation(found, true, np.repeat(np.arange(8), 5))


@given(st.floats(-179, 179), st.floats(0.3, 3))
@settings(max_examples=50)
def test_the_angle_is_found_whatever_the_scale(degrees, scale):
    fitted = fitted_to(scale * rotation(degrees))
    np.testing.assert_allclose(fitted.matrix, scale * rotation(degrees), atol=1e-8)
    np.testing.assert_allclose(fitted.rotation, rotation(degrees), atol=1e-8)
    assert fitted.angle_deg == pytest.approx(degrees, abs=1e-6)
    assert fitted.condition == pytest.approx(1, abs=1e-6)
    assert not fitted.mirrored


@given(st.floats(-80, 80), st.floats(1, 5))
@settings(max_examples=30)
def test_the_condition_number_is_that_of_the_map(degrees, stretch):
    fitted = fitted_to(rotation(degrees) @ np.diag([stretch, 1.0]))
    assert fitted.condition == pytest.approx(stretch, rel=1e-6)
    assert fitted.angle_deg == pytest.approx(degrees, abs=1e-5)


def test_turning_repairs_the_error_on_recordings_it_was_not_fitted_on():
    before, after = fitted_to(rotation(35), noise=0.002).errors_cm()
    length = 100 * np.linalg.norm(moves()[:, :2], axis=1).mean()
    assert before == pytest.approx(2 * math.sin(math.radians(35 / 2)) * length, rel=0.1)
    assert after < 0.4
    before, after = fitted_to(rotation(0), noise=0.002).errors_cm()
    assert before < after < 1.1 * before  # a turn that is not there cannot be gained from


def test_each_half_of_the_recordings_is_turned_by_what_the_other_half_says():
    true = moves(20)
    found = true.copy()
    for half, degrees in ((slice(0, 10), 60), (slice(10, 20), -60)):
        found[half, :2] = true[half, :2] @ rotation(degrees)
    before, after = camera_rotation(found, true, np.repeat([0, 1], 10)).errors_cm()
    # The halves contradict each other: turned by the other, a move is 120 degrees off.
    assert after / before == pytest.approx(math.sin(math.radians(60)) / 0.5, rel=1e-6)


def test_the_interval_of_the_angle_holds_it_also_where_the_circle_closes():
    for degrees in (25.0, 179.5):
        fitted = fitted_to(rotation(degrees), noise=0.01)
        low, high = fitted.to_json(seed=0)["angle_deg_95"]
        assert low < fitted.angle_deg < high
        assert 1 < high - low < 20
        assert abs((fitted.angle_deg - degrees + 180) % 360 - 180) < 10


def test_a_mirrored_map_is_called_so_and_never_applied(tmp_path):
    fitted = fitted_to(np.diag([1.0, -1.0]))
    assert fitted.mirrored
    assert np.linalg.det(fitted.rotation) == pytest.approx(1)
    path = tmp_path / "turn.json"
    save_camera_rotation(fitted, path, model="m", camera="c", recordings="r", seed=0)
    with pytest.raises(ValueError, match="mirrored, which no turn repairs; check the axes"):
        load_camera_rotation(path, model="m", camera="c")


def test_moves_along_one_line_do_not_say_how_the_camera_is_turned():
    line = np.outer(np.linspace(-1, 1, 20), [0.05, 0.02])
    with pytest.raises(ValueError, match="20 moves do not say .* more than one horizontal"):
        fit_map(line, line)
    with pytest.raises(ValueError, match="do not say how the camera is turned"):
        fit_map(np.zeros((9, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="2 moves do not say"):
        fit_map(moves(2)[:, :2], moves(2)[:, :2])
    with pytest.raises(ValueError, match="only one; give more"):
        camera_rotation(moves(9), moves(9), np.zeros(9, int))


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_the_nearest_rotation_is_one_and_none_is_nearer(entries):
    matrix = np.array(entries).reshape(2, 2)
    nearest = nearest_rotation(matrix)
    np.testing.assert_allclose(nearest @ nearest.T, np.eye(2), atol=1e-9)
    assert np.linalg.det(nearest) == pytest.approx(1)
    distances = [np.linalg.norm(matrix - rotation(d)) for d in range(0, 360, 5)]
    assert np.linalg.norm(matrix - nearest) <= min(distances) + 1e-9


@pytest.mark.parametrize("degrees", [-70, 40])
def test_the_energy_of_a_model_behind_a_turned_camera_shows_the_angle(toy, degrees):
    world = toy.World(toy.turned(degrees))
    argmin = energy_argmin(
        world,
        toy.held_out(),
        windows=24,
        samples=64,
        iterations=8,
        seed=0,
        limits=[0.09] * 3 + [0.2] * 3 + [0.4],
        progress=False,
    )
    fitted = camera_rotation(argmin.found, argmin.true, argmin.episodes)
    assert fitted.angle_deg == pytest.approx(degrees, abs=1)
    assert fitted.condition < 1.05
    before, after = fitted.errors_cm()
    assert before > 1.5 and after < 0.2


def test_a_correction_survives_being_written_and_belongs_to_one_model_and_camera(tmp_path):
    fitted, path = fitted_to(rotation(12.5)), tmp_path / "camera_rotation.json"
    save_camera_rotation(fitted, path, model="m", camera="left", recordings="monday", seed=0)
    np.testing.assert_allclose(
        load_camera_rotation(path, model="m", camera="left"), rotation(12.5), atol=1e-9
    )
    assert json.loads(path.read_text())["angle_deg"] == pytest.approx(12.5)
    with pytest.raises(ValueError, match="another model; make one .*worldmodel validate"):
        load_camera_rotation(path, model="n", camera="left")
    with pytest.raises(ValueError, match="is of camera 'left', not of 'right'"):
        load_camera_rotation(path, model="m", camera="right")
    with pytest.raises(FileNotFoundError, match="no camera rotation at"):
        load_camera_rotation(tmp_path / "none.json", model="m", camera="left")
    content = json.loads(path.read_text()) | {"rotation": [[2.0, 0.0], [0.0, 2.0]]}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no rotation"):
        load_camera_rotation(path, model="m", camera="left")
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a worldmodel camera rotation"):
        load_camera_rotation(path, model="m", camera="left")
    path.write_text('{"format"')
    with pytest.raises(ValueError, match="is damaged"):
        load_camera_rotation(path, model="m", camera="left")
