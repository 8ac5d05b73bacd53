import numpy as np
import pytest

from worldmodel.envs import franka
from worldmodel.envs.expert import Wander
from worldmodel.envs.franka_env import FrankaEnv
from worldmodel.envs.violations import CONTROL, KINDS, SLIDE, STILL, TELEPORT_DISTANCE, make_pair

STEPS = 8
CAMERA_FAULTS = ("drop_frames", "freeze_camera")


@pytest.fixture(scope="module")
def env():
    env = FrankaEnv(task="reach", image_size=64, backend="ray")
    yield env
    env.close()


@pytest.fixture(scope="module")
def pairs(env):
    return {kind: make_pair(env, kind, Wander, seed=3, steps=STEPS) for kind in KINDS}


def coloured(frame: np.ndarray) -> np.ndarray:
    """Number of pixels of each cube's hue, (3,)."""
    pixels = frame.astype(float).reshape(-1, 3)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True) + 1e-9
    hues = np.array(list(franka.CUBES.values()))
    hues /= np.linalg.norm(hues, axis=1, keepdims=True)
    return (pixels @ hues.T > 0.98).sum(axis=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_the_same_run_until_the_violation_and_another_picture_after(pairs, kind):
    pair = pairs[kind]
    before = slice(0, pair.step)
    assert STEPS // 4 < pair.step <= 3 * STEPS // 4
    assert len(pair.possible.frames) == len(pair.impossible.frames) == STEPS + 1
    np.testing.assert_array_equal(pair.possible.frames[before], pair.impossible.frames[before])
    np.testing.assert_array_equal(pair.possible.proprio[before], pair.impossible.proprio[before])
    np.testing.assert_array_equal(pair.possible.timestamps, pair.impossible.timestamps)
    assert (pair.possible.frames[pair.step :] != pair.impossible.frames[pair.step :]).any()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "slide_object"])
def test_the_arm_does_what_it_did(pairs, kind):
    pair = pairs[kind]  # a sliding cube may push it
    np.testing.assert_allclose(pair.possible.proprio, pair.impossible.proprio, atol=2e-3)


def test_a_frozen_camera_shows_one_picture_of_a_moving_arm(pairs):
    pair = pairs["freeze_camera"]
    stuck = pair.impossible.frames[pair.step - 1 :]
    assert (stuck == stuck[0]).all()
    hand = pair.impossible.proprio[:, :3]
    assert np.linalg.norm(hand[pair.step] - hand[pair.step - 1]) >= STILL


def test_dropped_frames_show_the_arm_ahead_of_its_joints(pairs):
    pair = pairs["drop_frames"]
    shown, measured = pair.impossible.frames, pair.possible.frames
    ahead = [
        lag
        for lag in range(1, STEPS - pair.step + 1)
        if (shown[pair.step : STEPS + 1 - lag] == measured[pair.step + lag :]).all()
    ]
    # Where more frames were dropped than the possible run goes on, nothing can be compared.
    assert ahead or (shown[-1] != measured[-1]).any()
    assert (shown[pair.step] != measured[pair.step]).any()


def test_a_vanished_cube_is_never_seen_again(pairs):
    pair = pairs["vanish_object"]
    lost = coloured(pair.possible.frames[pair.step]) - coloured(pair.impossible.frames[pair.step])
    name = int(np.argmax(lost))
    assert lost[name] > 0
    for frame in pair.impossible.frames[pair.step :]:
        assert coloured(frame)[name] == 0


def test_a_recoloured_cube_has_another_cubes_colour_and_nothing_moves(pairs):
    assert CONTROL == "recolour_object"
    pair = pairs[CONTROL]
    change = coloured(pair.impossible.frames[pair.step]) - coloured(pair.possible.frames[pair.step])
    assert change.min() < 0 < change.max()
    np.testing.assert_array_equal(pair.possible.proprio, pair.impossible.proprio)


@pytest.mark.parametrize("kind", ["teleport_object", "slide_object", "float_object"])
def test_a_moved_cube_is_where_it_cannot_be(env, kind, monkeypatch):
    places = []
    step = FrankaEnv.step

    def watch(self, action):
        result = step(self, action)
        places.append(np.stack(list(self.cube_pos_base.values())))
        return result

    monkeypatch.setattr(FrankaEnv, "step", watch)
    pair = make_pair(env, kind, Wander, seed=5, steps=STEPS)
    run = np.stack(places[-STEPS:])  # (T, 3 cubes, 3), after each step of the impossible run
    rest, moved = run[pair.step - 2], run[pair.step - 1] - run[pair.step - 2]
    cube = int(np.argmax(np.linalg.norm(moved, axis=1)))
    assert np.linalg.norm(np.delete(moved, cube, axis=0)) < 1e-3  # the others stay
    if kind == "teleport_object":
        assert np.linalg.norm(moved[cube]) >= TELEPORT_DISTANCE - 0.01
        assert abs(run[-1, cube] - run[pair.step - 1, cube]).max() < 0.01  # and stays there
    elif kind == "slide_object":
        assert np.linalg.norm(moved[cube][:2]) == pytest.approx(SLIDE, abs=0.01)
    else:
        heights = run[pair.step - 1 :, cube, 2] - rest[cube, 2]
        assert (np.diff(heights) > 0.01).all() and heights[0] > 0.01  # it does not fall back


def test_the_environment_is_left_as_it_was(env):
    before = env.reset(seed=9)[0]["image"]
    for kind in ("recolour_object", "float_object"):
        make_pair(env, kind, Wander, seed=1, steps=4)
    np.testing.assert_array_equal(env.reset(seed=9)[0]["image"], before)
    assert env.unwrapped._arm.model.body_gravcomp[env._arm.model.body("red").id] == 0


def test_the_same_seed_gives_the_same_pair(env, pairs):
    again = make_pair(env, "teleport_object", Wander, seed=3, steps=STEPS)
    pair = pairs["teleport_object"]
    assert (again.seed, again.step) == (pair.seed, pair.step)
    np.testing.assert_array_equal(again.impossible.frames, pair.impossible.frames)
    other = make_pair(env, "teleport_object", Wander, seed=4, steps=STEPS)
    assert other.seed != pair.seed


def test_what_makes_no_pair_is_refused(env):
    with pytest.raises(ValueError, match="unknown violation 'melt'; available: teleport_object"):
        make_pair(env, "melt", Wander, seed=0)
    with pytest.raises(ValueError, match="at least 4 steps"):
        make_pair(env, "freeze_camera", Wander, seed=0, steps=3)


def test_an_arm_that_stands_still_cannot_show_a_frozen_camera(env, monkeypatch):
    monkeypatch.setattr("worldmodel.envs.violations._TRIES", 2)
    with pytest.raises(ValueError, match="no scene of 2 shows freeze_camera"):
        make_pair(env, "freeze_camera", lambda: lambda proprio, rng: np.zeros(7), seed=0, steps=4)
