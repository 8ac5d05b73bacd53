"""RoboArena's conversation byte by byte, as its client sends it and wants it answered.

The frames are spelled out by hand, after the published client and evaluator; no encoder of ours or
of others makes or reads them.
"""

import struct

import numpy as np
from websockets.sync.client import connect

TIMEOUT_S = 60.0  # only ever reached by a test that fails


def text(value: str) -> bytes:
    data = value.encode()
    head = bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xd9" + bytes([len(data)])
    return head + data


def blob(data: bytes) -> bytes:
    return (
        b"\xc4" + bytes([len(data)]) if len(data) < 256 else b"\xc5" + struct.pack(">H", len(data))
    ) + data


def array(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    sizes = b"".join(bytes([size]) for size in shape)
    return (
        b"\x84"
        + (blob(b"__ndarray__") + b"\xc3")
        + (blob(b"data") + blob(data))
        + (blob(b"dtype") + text(dtype))
        + (blob(b"shape") + bytes([0x90 | len(shape)]) + sizes)
    )


METADATA = (
    b"\x86"
    + (text("image_resolution") + b"\x92\x20\x20")
    + (text("needs_wrist_camera") + b"\xc2")
    + (text("n_external_cameras") + b"\x01")
    + (text("needs_stereo_camera") + b"\xc2")
    + (text("needs_session_id") + b"\xc2")
    + (text("action_space") + text("cartesian_velocity"))
)
JOINTS = (0.0, -0.45, 0.0, -2.35, 0.0, 1.9, 0.78)
INFER = (
    b"\x86"
    + text("observation/joint_position")
    + array("<f8", (7,), struct.pack("<7d", *JOINTS))
    + text("observation/cartesian_position")
    + array("<f8", (6,), struct.pack("<6d", 0.4, 0.0, 0.4, 3.1, 0.0, 0.0))
    + text("observation/gripper_position")
    + array("<f8", (1,), struct.pack("<d", 0.25))
    + (text("prompt") + text("red cube"))
    + text("observation/exterior_image_1_left")
    + array("|u1", (4, 5, 3), bytes(range(60)))
    + (text("endpoint") + text("infer"))
)
RESET = b"\x82" + text("session_id") + text("7f-A") + text("endpoint") + text("reset")
ROWS = np.full((8, 7), 0.1)


def converse(url: str, *frames: bytes) -> list[bytes | str]:
    with connect(url, compression=None, max_size=None, proxy=None) as client:
        answers = [client.recv(TIMEOUT_S)]
        for frame in frames:
            client.send(frame)
            answers.append(client.recv(TIMEOUT_S))
        return answers


def test_the_bytes_of_a_conversation_with_a_bare_array(run_server, policy) -> None:
    with run_server(policy, reply_style="array") as running:
        told, rows, done = converse(running.url, INFER, RESET)
    assert told == METADATA
    assert rows == array("<f8", (8, 7), ROWS.astype("<f8").tobytes())
    assert done == "reset successful"
    (request,) = policy.requests
    assert request.dialect == "roboarena"
    assert request.prompt == "red cube"
    assert request.image.tobytes() == bytes(range(60)) and request.image.shape == (4, 5, 3)
    assert tuple(request.joints) == JOINTS
    assert request.gripper == 0.25
    assert request.flange is not None and request.flange[3] == 3.1


def test_the_bytes_of_a_map_begin_with_the_actions(run_server, policy) -> None:
    with run_server(policy, reply_style="map") as running:
        _, reply = converse(running.url, INFER)
    actions = text("actions") + array("<f8", (8, 7), ROWS.astype("<f8").tobytes())
    assert isinstance(reply, bytes)
    assert reply[:1] == b"\x84" and reply[1 : 1 + len(actions)] == actions
