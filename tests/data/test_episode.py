import json
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.data.episode import EpisodeMetadata, find_problems, validate


def test_a_recorded_episode_is_valid_even_where_roll_wraps_around(make_episode):
    for seed in range(20):
        assert find_problems(make_episode(seed, steps=30)) == []


def test_missing_actions_are_counted_in_the_error(make_episode):
    episode = make_episode(steps=50)
    episode = replace(episode, actions=episode.actions[:49])
    with pytest.raises(
        ValueError,
        match="^episode 17: actions have 49 steps but proprio has 51; "
        "expected one more observation than actions$",
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
        (lambda e: {"actions": e.actions[:, :6]}, r"actions has shape \(5, 6\); expected"),
        (lambda e: {"timestamps": e.timestamps[:-1]}, "timestamps have 5 entries but proprio"),
        (lambda e: {"proprio": _changed(e.proprio, (3, 1), np.nan)}, "not finite at step 3 .1 st"),
        (lambda e: {"proprio": _changed(e.proprio, (2, 6), 1.5)}, "gripper is 1.5 at step 2; ex"),
        (lambda e: {"proprio": _changed(e.proprio, (2, 3), 180)}, "angle is 180 at step 2; exp"),
        (lambda e: {"timestamps": _changed(e.timestamps, 4, 0)}, "increase from step 3 to 4"),
        (lambda e: {"actions": _changed(e.actions, (1, 2), 0.5)}, r"at step 1 \(z by 0"),
        (lambda e: {"actions": -e.actions}, "actions differ from the measured change of proprio"),
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
    assert EpisodeMetadata.from_json(json.loads(json.dumps(metadata.to_json()))) == metadata


def test_unknown_metadata_suggests_the_nearest_field(make_episode):
    record = make_episode().metadata.to_json()
    with pytest.raises(KeyError, match="unknown episode metadata field 'control_hx'.*'control_hz'"):
        EpisodeMetadata.from_json({**record, "control_hx": 5})
    del record["seed"]
    with pytest.raises(KeyError, match=r"lacks \['seed'\]"):
        EpisodeMetadata.from_json(record)


def test_metadata_of_the_wrong_type_is_refused(make_episode):
    record = make_episode().metadata.to_json()
    for key, value in {"seed": "one", "task": 3, "cameras": "exterior"}.items():
        with pytest.raises(TypeError, match=f"metadata field '{key}' must be"):
            EpisodeMetadata.from_json({**record, key: value})
