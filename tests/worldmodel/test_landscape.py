"""The energy landscape: known in closed form, on the shipped model, and from any pair of frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodel.checkpoint import load_default
from worldmodel.data.source import open_source
from worldmodel.images import fit_frames
from worldmodel.landscape import (
    Landscape,
    Pair,
    draw_landscape,
    energy_landscape,
    fit_pair,
    read_pair,
    recorded_pair,
    simulated_pair,
    summary,
    write_landscape,
)
from worldmodel.planners import latent_l1
from worldmodel.pose import integrate

STEP = 0.0375  # between grid points of the default grid [m]
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


class LinearWorld:
    """Latents are the weighted position; a frame carries it as whole centimetres in its pixels."""

    def encode(self, frames):
        return (frames[:, :, 0, 0].float() / 100 * WEIGHTS)[:, :, None]  # (B, T, 1, 3)

    def predict(self, latents, proprio, actions):
        raise NotImplementedError

    def rollout(self, latents, proprio, actions):
        torch.testing.assert_close(latents[:, 0, 0], proprio[:, 0, :3] * WEIGHTS)
        assert len(actions) == 1 and actions.shape[2:] == (1, 7)
        moved = integrate(proprio.expand(actions.shape[1], 1, 7), actions[0])
        return (moved[..., :3] * WEIGHTS)[None, :, :, None]  # (1, S, 1, 1, 3)


def linear_pair(delta_cm: tuple[int, int, int]) -> Pair:
    places = np.array([[40, 10, 30], np.add([40, 10, 30], delta_cm)])
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[:, 0, 0] = places
    proprio = np.zeros((2, 7), np.float32)
    proprio[:, :3] = places / 100
    return Pair(frames=frames, proprio=proprio, name="linear")


def of_linear_world(delta_cm: tuple[int, int, int], **options) -> Landscape:
    pair = linear_pair(delta_cm)
    return energy_landscape(LinearWorld(), pair.frames, pair.proprio, **options)


def test_of_a_linear_world_the_landscape_is_known_in_closed_form() -> None:
    true = np.array([0.03, -0.06, 0.01])
    landscape = of_linear_world((3, -6, 1))
    axis = np.linspace(-0.075, 0.075, 5)
    dx, dy, dz = np.meshgrid(axis, axis, axis, indexing="ij")
    off = np.abs(dx - true[0]) + 2 * np.abs(dy - true[1]) + 3 * np.abs(dz - true[2])
    np.testing.assert_allclose(landscape.axis, axis)
    np.testing.assert_allclose(landscape.energies, off / 3, atol=1e-6)
    np.testing.assert_allclose(landscape.argmin, [STEP, -2 * STEP, 0], atol=1e-9)
    np.testing.assert_allclose(landscape.true_action, [*true, 0, 0, 0, 0], atol=1e-6)
    assert landscape.true_energy == pytest.approx(0, abs=1e-6)
    assert landscape.true_rank == 1
    assert landscape.still_energy == pytest.approx((0.03 + 2 * 0.06 + 3 * 0.01) / 3, abs=1e-6)
    assert landscape.relief == pytest.approx(1 - off.min() / off.max(), abs=1e-5)
    for i, weight in enumerate((1, 2, 3)):
        np.testing.assert_allclose(
            landscape.cut_energies[i],
            weight * np.abs(landscape.cut_axes[i] - true[i]) / 3,
            atol=1e-6,
        )


def test_a_true_move_outside_the_grid_is_scored_too() -> None:
    landscape = of_linear_world((12, 3, -9))
    np.testing.assert_allclose(landscape.argmin, [0.075, STEP, -0.075], atol=1e-9)
    assert landscape.true_energy == pytest.approx(0, abs=1e-6)
    assert landscape.energies.min() == pytest.approx((0.045 + 2 * 0.0075 + 3 * 0.015) / 3, abs=1e-6)
    assert landscape.cut_axes[0].max() > 0.12 and landscape.cut_axes[0].min() == -0.075
    assert landscape.cut_axes[1].max() == 0.075
    assert landscape.cut_axes[2].min() < -0.09


def test_the_true_action_can_be_given() -> None:
    action = np.array([0, 0.01, 0, 0, 0, 0, 0])
    landscape = of_linear_world((3, 0, 0), limit=0.06, points=7, true_action=action)
    assert landscape.energies.shape == (7, 7, 7)
    assert landscape.true_energy == pytest.approx((0.03 + 2 * 0.01) / 3, abs=1e-6)
    assert landscape.true_rank == 1 + (landscape.energies < landscape.true_energy).sum() > 1


def test_energies_are_those_of_one_predicted_step(make_world) -> None:
    world = make_world(merge=2, standardise=True)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    before = np.array([0.5, 0, 0.3, 3.0, 0, 0.5, 0.5])
    action = np.array([0.02, -0.05, 0.1, 0.05, -0.1, 0.08, 0.3])
    proprio = np.stack([before, integrate(before, action)]).astype(np.float32)
    landscape = energy_landscape(world, frames, proprio, limit=0.75, points=3)

    def energy(values: np.ndarray) -> float:
        with torch.inference_mode():
            latents = world.encode(torch.from_numpy(frames)[None])
            step = torch.from_numpy(values.astype(np.float32)).view(1, 1, 7)
            predicted = world.predict(latents[:, :1], torch.from_numpy(proprio[None, :1]), step)
            return float(latent_l1(predicted[0, 0], latents[0, 1]))

    assert landscape.energies.std() > 1e-3
    for i, j, k in ((0, 0, 0), (2, 0, 1), (1, 2, 2)):
        move = np.array([*landscape.axis[[i, j, k]], 0, 0, 0, 0])
        assert landscape.energies[i, j, k] == pytest.approx(energy(move), abs=1e-5)
    assert landscape.true_energy == pytest.approx(energy(action), abs=1e-5)  # rotation and gripper
    assert landscape.still_energy == pytest.approx(energy(np.zeros(7)), abs=1e-5)
    np.testing.assert_allclose(landscape.true_action, action, atol=1e-5)
    np.testing.assert_allclose(landscape.energies[1, 1, 1], landscape.still_energy, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0.0}, "positive limit"),
        ({"limit": float("nan")}, "positive limit"),
        ({"points": 1}, "at least 2 points"),
        ({"true_action": np.zeros(3)}, "true_action must be 7"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_linear_world((1, 1, 1), **options)


def test_the_files_say_what_was_measured(tmp_path: Path) -> None:
    landscape = of_linear_world((12, 3, -9))
    numbers, picture = write_landscape(landscape, tmp_path / "new", model="linear", pair="toy")
    content = json.loads(numbers.read_text())
    assert content["model"] == "linear" and content["pair"] == "toy"
    assert list(content["axes"]) == ["dx", "dy", "dz"]
    np.testing.assert_array_equal(content["axes"]["dy"], landscape.axis)
    np.testing.assert_array_equal(content["energies"], landscape.energies)
    np.testing.assert_array_equal(content["argmin"], landscape.argmin)
    np.testing.assert_array_equal(content["true_action"], landscape.true_action)
    np.testing.assert_array_equal(content["cuts"]["dz"]["energies"], landscape.cut_energies[2])
    assert content["true_rank"] == 1
    assert content["true_energy"] == landscape.true_energy
    assert content["no_action_energy"] == landscape.still_energy
    assert content["machine"]["processor"]
    with Image.open(picture) as image:
        assert image.width >= 1000
    assert "(+12.0, +3.0, -9.0) cm" in summary(landscape)
    assert "0 of 125 grid points" in summary(landscape)


def test_the_picture_projects_the_minimum_and_marks_both_moves() -> None:
    landscape = of_linear_world((12, 3, -9))
    figure = draw_landscape(landscape, model="linear", pair="toy")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for title, (i, j, k) in {
        "minimum over dz": (0, 1, 2),
        "minimum over dy": (0, 2, 1),
        "minimum over dx": (1, 2, 0),
    }.items():
        axes = panels[title]
        shown = np.asarray(axes.collections[0].get_array()).reshape(5, 5)
        np.testing.assert_array_equal(shown, landscape.energies.min(axis=k).T)
        places = {line.get_label(): line.get_xydata()[0] for line in axes.lines}
        np.testing.assert_allclose(
            places["lowest on the grid"], 100 * landscape.argmin[[i, j]], atol=1e-9
        )
        np.testing.assert_allclose(places["true move"], 100 * landscape.true_action[[i, j]])
        assert axes.get_xlim()[0] < places["true move"][0] < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < places["true move"][1] < axes.get_ylim()[1]
    heights = {panels[f"cut along {name}"].get_ylim() for name in ("dx", "dy", "dz")}
    assert len(heights) == 1


def save(path: Path, *, leave_out: str = "", **changes: np.ndarray) -> Path:
    """Writes a good pair, but for `changes`."""
    rng = np.random.default_rng(0)
    states = np.array([[0.5, 0, 0.3, 3.0, 0, -1.9, 0], [0.55, 0.1, 0.2, 3.1, 0, -1.8, 1]])
    arrays = {
        "observations": rng.integers(0, 256, (1, 2, 6, 8, 3), np.uint8),
        "states": states[None].astype(np.float32),
    } | changes
    np.savez(path, **{key: array for key, array in arrays.items() if key != leave_out})  # type: ignore[arg-type]
    return path


def test_a_pair_is_read_from_a_file(tmp_path: Path) -> None:
    path = save(tmp_path / "pair.npz")
    pair = read_pair(path)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(pair.frames, arrays["observations"][0])
        np.testing.assert_array_equal(pair.proprio, arrays["states"][0])
    assert pair.name == "pair.npz"


def in_degrees() -> np.ndarray:
    states = np.zeros((1, 2, 7), np.float32)
    states[..., 3] = 180
    return states


def with_gripper(value: float) -> np.ndarray:
    states = np.zeros((1, 2, 7), np.float32)
    states[0, 1, 6] = value
    return states


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": in_degrees()}, "180; expected radians .* look like degrees"),
        ({"states": with_gripper(1.2)}, "gripper goes from 0 to 1.2; expected 0"),
        ({"states": with_gripper(-0.1)}, "gripper goes from -0.1 to 0; expected 0"),
        ({"states": with_gripper(np.nan)}, "not finite"),
        ({"states": np.zeros((2, 7), np.float32)}, r"shape \(1, 2, 7\).*got \(2, 7\)"),
        ({"states": np.zeros((1, 2, 8), np.float32)}, r"float \(2, 7\).*got float32 \(2, 8\)"),
        ({"states": np.zeros((1, 3, 7), np.float32)}, r"one episode of two frames; got \(1, 3, 7"),
        ({"observations": np.zeros((1, 2, 6, 8, 3))}, r"uint8 .* got float64 \(2, 6, 8, 3\)"),
        ({"observations": np.zeros((1, 2, 3, 6, 8), np.uint8)}, r"got uint8 \(2, 3, 6, 8\)"),
        ({"observations": np.zeros((2, 6, 8, 3), np.uint8)}, r"must have shape \(1, 2, height"),
    ],
)
def test_a_file_with_something_wrong_is_refused(
    tmp_path: Path, changes: dict, message: str
) -> None:
    path = save(tmp_path / "pair.npz", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        read_pair(path)
    assert "pair.npz" in str(raised.value)


def test_a_missing_key_or_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "pair.npz", leave_out="states", state=np.zeros(3))
    with pytest.raises(KeyError, match=r"no array 'states', it has \['observations', 'state'\]"):
        read_pair(path)
    with pytest.raises(FileNotFoundError, match="no pair of frames at .*absent.npz"):
        read_pair(tmp_path / "absent.npz")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(save(tmp_path / "whole.npz").read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut.npz is not a complete .npz file"):
        read_pair(cut)


def test_a_pair_of_any_recording(spot_store: Path) -> None:
    source = open_source(spot_store)
    pair = recorded_pair(source, 3, (9, 4))
    episode = source.read(3)
    np.testing.assert_array_equal(pair.frames[0], episode.frames["exterior"][9])
    np.testing.assert_array_equal(pair.frames[1], episode.frames["exterior"][4])
    np.testing.assert_array_equal(pair.proprio, episode.proprio[[9, 4]])
    assert pair.name == "store, episode 3, exterior, rows 9 and 4"
    with pytest.raises(KeyError, match="unknown camera 'exteriour'; did you mean 'exterior'"):
        recorded_pair(source, 3, (0, 1), camera="exteriour")
    for rows in ((0, 13), (-1, 0), (2, 2)):
        with pytest.raises(ValueError, match="two different rows from 0 to 12 of episode 3"):
            recorded_pair(source, 3, rows)


def test_frames_of_another_size_are_fitted_and_it_is_said(tmp_path: Path, make_world) -> None:
    world = make_world()
    pair = read_pair(save(tmp_path / "pair.npz"))
    with pytest.raises(ValueError, match="resize them to 32x32 pixels first"):
        energy_landscape(world, pair.frames, pair.proprio)
    fitted = fit_pair(pair, world)
    np.testing.assert_array_equal(fitted.frames, fit_frames(pair.frames, 32, "square"))
    assert fitted.name == "pair.npz, middle square of 8 x 6 resized to 32 x 32 pixels"
    np.testing.assert_array_equal(fitted.proprio, pair.proprio)
    assert fit_pair(fitted, world) is fitted
    world.crop = "squash"  # such a model does it by itself
    assert fit_pair(pair, world) is pair
    assert energy_landscape(world, pair.frames, pair.proprio, points=2).energies.shape == (2, 2, 2)


def test_a_simulated_pair_shows_the_move_it_was_told() -> None:
    pair = simulated_pair(image_size=16, seed=3, move=(0.05, -0.02, 0.03), backend="ray")
    moved = pair.proprio[1] - pair.proprio[0]
    np.testing.assert_allclose(moved[:3], [0.05, -0.02, 0.03], atol=0.005)
    assert (pair.frames[0] != pair.frames[1]).any()


def test_the_shipped_model_finds_moves_it_did_not_see() -> None:
    world = load_default()
    errors, ranks = [], []
    for seed in range(8):
        move = np.random.default_rng(seed).uniform(-0.07, 0.07, 3)
        pair = simulated_pair(image_size=128, seed=seed, move=tuple(move), backend="ray")
        landscape = energy_landscape(world, pair.frames, pair.proprio)
        assert landscape.true_energy < landscape.still_energy
        ranks.append(landscape.true_rank)
        errors.append(np.abs(landscape.argmin - landscape.true_action[:3]).max())
    assert max(ranks) <= 12 and sum(rank <= 2 for rank in ranks) >= 7, ranks  # of 125
    # Along the line of sight it sees distances badly, so not all of them.
    assert np.sum(np.array(errors) <= STEP) >= 6


def test_the_real_pair_goes_through_the_shipped_model(shared: Path) -> None:
    world = load_default()
    pair = read_pair(shared / "data" / "franka_example_traj.npz")
    fitted = fit_pair(pair, world)
    assert fitted.name.endswith("middle square of 256 x 256 resized to 128 x 128 pixels")
    landscape = energy_landscape(world, fitted.frames, fitted.proprio)
    np.testing.assert_allclose(landscape.true_action[:3], [0.092, 0.031, 0.084], atol=5e-4)
    assert np.isfinite(landscape.energies).all()
    assert landscape.relief > 0  # it never saw a real image: what it ranks first means nothing
