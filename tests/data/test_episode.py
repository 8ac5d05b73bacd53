import json
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.data.episode import EpisodeMetadata, find_problems, validate
from worldmodel.pose import integrate


def test_a_recorded_episode_is_valid_even_where_roll_wraps_around(make_episode):
    for seed in range(20):
        assert find_problems(make_episode(seed, steps=30)) == []


def test_actions_are_the_measured_change_of_proprio(make_episode):
    episode = make_episode(steps=30)
    assert episode.actions.dtype == np.float32 and episode.actions.shape == (30, 7)
    assert episode.steps == 30
    reached = integrate(episode.proprio[:-1].astype(np.float64), episode.actions.astype(np.float64))
    np.testing.assert_allclose(reached, episode.proprio[1:], atol=1e-6)
    assert episode.actions is episode.actions


def test_rows_are_counted_in_the_error(make_episode):
    episode = make_episode(steps=50)
    episode = replace(episode, proprio=episode.proprio[:49])
    with pytest.raises(
        ValueError,
        match="^episode 17: timestamps have 51 entries but proprio has 49; "
        "camera 'exterior' has 51 frames but proprio has 49; "
        "expected one frame per observation$",
    ):
        validate(episode, name="episode 17")


def _changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: {"proprio": e.proprio.astype(np.float64)}, "proprio is float64; expected f"),
        (lambda e: {"proprio": e.proprio[:, :6]}, r"proprio has shape \(6, 6\); expected"),
        (
            lambda e: {
                "proprio": e.proprio[:1],
                "timestamps": e.timestamps[:1],
                "frames": {"exterior": e.frames["exterior"][:1]},
            },
            "there are 1 observations; an episode has at least one step",
        ),
        (lambda e: {"joints": e.proprio[1:]}, "joints has 5 rows but proprio has 6"),
        (lambda e: {"usable": np.ones(5, bool)}, "usable has 5 rows but proprio has 6"),
        (lambda e: {"logged_actions": {"go": e.proprio[:2]}}, "logged action 'go' has 2 rows"),
        (lambda e: {"logged_actions": {"a/b": e.proprio}}, "logged action 'a/b' must be named"),
        (lambda e: {"timestamps": e.timestamps[:-1]}, "timestamps have 5 entries but proprio"),
        (lambda e: {"proprio": _changed(e.proprio, (3, 1), np.nan)}, "not finite at step 3 .1 st"),
        (lambda e: {"proprio": _changed(e.proprio, (2, 6), 1.5)}, "gripper is 1.5 at step 2; ex"),
        (lambda e: {"proprio": _changed(e.proprio, (2, 3), 180)}, "angle is 180 at step 2; exp"),
        (lambda e: {"timestamps": _changed(e.timestamps, 4, 0)}, "increase from step 3 to 4"),
        (lambda e: {"frames": {}}, "there are no cameras"),
        (lambda e: {"frames": {"exterior": e.frames["exterior"] / 255}}, "float64; expected uint8"),
        (lambda e: {"frames": {"exterior": e.frames["exterior"][1:]}}, "'exterior' has 5 frames b"),
        (lambda e: {"frames": {"exterior": e.frames["exterior"][..., :1]}}, r"6, 8, 8, 1\); expec"),
        (lambda e: {"frames": {"../x": e.frames["exterior"]}}, "camera name '../x' must consist"),
        (lambda e: {"frames": {"wrist": e.frames["exterior"]}}, "metadata names cameras"),
        (lambda e: {"metadata": replace(e.metadata, control_hz=0.0)}, "expected a positive rate"),
    ],
)
def test_every_kind_of_damage_is_named(make_episode, change, message):
    episode = make_episode()
    with pytest.raises(ValueError, match=message):
        validate(replace(episode, **change(episode)))


def test_metadata_survives_json(make_episode):
    metadata = make_episode(cameras=("exterior", "wrist")).metadata
    told = replace(metadata, name="a/b.h5", success=False, robot="panda", clock="declared")
    for written in (metadata, told):
        assert EpisodeMetadata.from_json(json.loads(json.dumps(written.to_json()))) == written


def test_metadata_of_version_1_gets_the_fields_added_since(make_episode):
    metadata = make_episode().metadata
    added = ("name", "success", "robot", "clock")
    record = metadata.to_json()
    old = {key: value for key, value in record.items() if key not in added}
    assert EpisodeMetadata.from_json(old) == metadata
    with pytest.raises(KeyError, match=r"lacks \['clock'\]"):
        EpisodeMetadata.from_json({k: v for k, v in record.items() if k != "clock"})


def test_unknown_metadata_suggests_the_nearest_field(make_episode):
    record = make_episode().metadata.to_json()
    with pytest.raises(KeyError, match="unknown episode metadata field 'control_hx'.*'control_hz'"):
        EpisodeMetadata.from_json({**record, "control_hx": 5})
    del record["seed"]
    with pytest.raises(KeyError, match=r"lacks \['seed'\]"):
        EpisodeMetadata.from_json(record)


def test_metadata_of_the_wrong_type_is_refused(make_episode):
    record = make_episode().metadata.to_json()
    wrong = {"seed": "one", "task": 3, "cameras": "exterior", "success": 1, "clock": "wall"}
    for key, value in wrong.items():
        with pytest.raises(TypeError, match=f"metadata field '{key}' must be"):
            EpisodeMetadata.from_json({**record, key: value})
