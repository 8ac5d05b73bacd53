from typing import Any

import numpy as np
import pytest

from worldmodel.envs.robots.wire import unpack
from worldmodel.serving.chunks import ACTION_SPACES, Chunk
from worldmodel.serving.dialects import (
    Request,
    RequestError,
    Reset,
    metadata,
    read_request,
    write_reply,
)


def read(message: Any) -> Request:
    request = read_request(message)
    assert isinstance(request, Request)
    return request


def test_the_droid_script_of_openpi_is_understood(droid_request) -> None:
    request = read(droid_request)
    assert request.dialect == "openpi"
    assert (request.image == 7).all() and request.image.shape == (32, 32, 3)
    assert np.array_equal(request.joints, droid_request["observation/joint_position"])
    assert (request.gripper, request.prompt, request.flange) == (0.1, "red cube", None)


def test_an_endpoint_makes_it_roboarena(droid_request) -> None:
    pose = np.array([0.5, 0.0, 0.4, 3.1, 0.0, 0.0])
    request = read(
        droid_request
        | {"endpoint": "infer", "observation/cartesian_position": pose, "session_id": np.zeros(1)}
    )
    assert request.dialect == "roboarena"
    assert request.flange is not None and np.array_equal(request.flange, pose)
    assert read_request({"endpoint": "reset"}) == Reset()


@pytest.mark.parametrize(
    "numbers, expected", [([0], 0), ([1], 1), ([0, 1], 0), ([1, 2], 1), ([2, 1], 1)]
)
def test_exterior_cameras_are_counted_from_zero_or_one(
    droid_request, numbers: list[int], expected: int
) -> None:
    picture = droid_request.pop("observation/exterior_image_1_left")
    for number in numbers:
        droid_request[f"observation/exterior_image_{number}_left"] = picture * 0 + number
        droid_request[f"observation/exterior_image_{number}_right"] = picture * 0 + 99
    assert (read(droid_request).image == expected).all()


def test_a_second_camera_alone_is_not_taken_for_the_first(droid_request) -> None:
    picture = droid_request.pop("observation/exterior_image_1_left")
    with pytest.raises(RequestError, match="bad_image: .*is missing"):
        read(droid_request | {"observation/exterior_image_2_left": picture})


WRIST = "observation/wrist_image_left"


def test_a_picture_of_the_wrist_is_read_where_the_model_sees_it(droid_request) -> None:
    droid_request[WRIST] = np.full((24, 40, 3), 5, np.uint8)
    request = read_request(droid_request, wrist=True)
    assert isinstance(request, Request)
    assert request.picture("exterior").shape == (32, 32, 3)
    assert request.picture("wrist") is request.wrist
    assert request.wrist is not None and (request.wrist == 5).all()
    assert metadata(image_size=32, action_space="joint_velocity", cameras=("wrist", "exterior"))[
        "needs_wrist_camera"
    ]


@pytest.mark.parametrize(
    "spoilt",
    [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3)), np.zeros((1300, 1, 3), np.uint8)],
)
def test_a_bad_picture_of_the_wrist_matters_where_the_model_sees_it(droid_request, spoilt) -> None:
    droid_request[WRIST] = spoilt
    assert read(droid_request).wrist is None
    with pytest.raises(RequestError, match=f"bad_image: {WRIST} must be"):
        read_request(droid_request, wrist=True)
    del droid_request[WRIST]
    with pytest.raises(RequestError, match=f"bad_image: {WRIST} is missing"):
        read_request(droid_request, wrist=True)
    with pytest.raises(RequestError, match=f"bad_image: {WRIST} is missing"):
        read(droid_request).picture("wrist")


JOINTS, GRIPPER = "observation/joint_position", "observation/gripper_position"
FLANGE, IMAGE = "observation/cartesian_position", "observation/exterior_image_1_left"
BAD: list[tuple[str, Any, str]] = [
    (JOINTS, None, "bad_request"),
    (JOINTS, [0.0] * 7, "bad_request"),
    (JOINTS, np.zeros(6), "bad_request"),
    (JOINTS, np.zeros((1, 7)), "bad_request"),
    (JOINTS, np.zeros(7, bool), "bad_request"),
    (JOINTS, np.full(7, np.nan), "not_finite"),
    (JOINTS, np.array([0, 0, 0, np.inf, 0, 0, 0]), "not_finite"),
    (GRIPPER, np.zeros(()), "bad_request"),
    (GRIPPER, np.array([1.2]), "bad_request"),
    (GRIPPER, np.array([-0.2]), "bad_request"),
    (GRIPPER, np.array([np.nan]), "not_finite"),
    (FLANGE, np.zeros(7), "bad_request"),
    (FLANGE, np.full(6, -np.inf), "not_finite"),
    (IMAGE, None, "bad_image"),
    (IMAGE, np.zeros((32, 32, 3), np.float32), "bad_image"),
    (IMAGE, np.zeros((32, 32), np.uint8), "bad_image"),
    (IMAGE, np.zeros((32, 32, 4), np.uint8), "bad_image"),
    (IMAGE, np.zeros((3, 32, 32), np.uint8), "bad_image"),
    (IMAGE, np.zeros((0, 32, 3), np.uint8), "bad_image"),
    (IMAGE, np.zeros((1, 1281, 3), np.uint8), "bad_image"),
    ("prompt", None, "bad_request"),
    ("prompt", "  ", "bad_request"),
    ("prompt", b"red cube", "bad_request"),
    ("endpoint", "infer ", "bad_request"),
    ("endpoint", None, "bad_request"),
]


@pytest.mark.parametrize("key, value, code", BAD)
def test_a_bad_value_is_refused_by_name(droid_request, key: str, value: Any, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(droid_request | {key: value})
    assert caught.value.code == code
    assert key in str(caught.value)


@pytest.mark.parametrize("key", [JOINTS, GRIPPER, IMAGE, "prompt"])
def test_a_missing_value_is_named(droid_request, key: str) -> None:
    del droid_request[key]
    with pytest.raises(RequestError, match=f"{key}.*(is missing|must be)"):
        read_request(droid_request)


@pytest.mark.parametrize("message", [None, 3, "infer", [1], np.zeros(3), {1: 2}])
def test_what_is_no_map_is_refused(message: Any) -> None:
    with pytest.raises(RequestError, match="bad_request: expected a map"):
        read_request(message)


@pytest.mark.parametrize("measured, taken", [(-0.03, 0.0), (1.03, 1.0), (0.5, 0.5)])
def test_a_gripper_may_be_measured_a_little_outside(
    droid_request, measured: float, taken: float
) -> None:
    assert read(droid_request | {GRIPPER: np.array([measured])}).gripper == taken


@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_the_metadata_is_six_keys(action_space: Any) -> None:
    assert metadata(image_size=None, action_space=action_space) == {
        "image_resolution": None,
        "needs_wrist_camera": False,
        "n_external_cameras": 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": action_space,
    }


CHUNK = Chunk(
    rows=np.concatenate([np.full((8, 7), 0.3), np.ones((8, 1))], axis=1),
    gripper=1.0,
    notes=("speed",),
)
TIMING = {"infer_ms": 3.0}


def test_openpi_is_sent_ten_rows_that_end_in_standing_still() -> None:
    reply = unpack(write_reply(CHUNK, dialect="openpi", timing=TIMING, style="array"))
    assert reply["actions"].shape == (10, 8)
    assert np.array_equal(reply["actions"][:8], CHUNK.rows)
    assert np.array_equal(reply["actions"][8:], [[0, 0, 0, 0, 0, 0, 0, 1]] * 2)
    assert reply["notes"] == ["speed"]


def test_roboarena_is_sent_the_rows_alone() -> None:
    reply = unpack(write_reply(CHUNK, dialect="roboarena", timing=TIMING, style="array"))
    assert np.array_equal(reply, CHUNK.rows)
    reply = unpack(write_reply(CHUNK, dialect="roboarena", timing=TIMING, style="map"))
    assert np.array_equal(reply["actions"], CHUNK.rows)
