"""The foreign client itself, unmodified, in its own interpreter (it needs numpy < 2).

Set WORLDMODEL_OPENPI_PYTHON to a python that has `openpi-client`.
"""

import json
import os
import subprocess

import pytest

TOKEN = "correct-horse-battery"
VARIABLE = "WORLDMODEL_OPENPI_PYTHON"

# What openpi's DROID example does with its client, without a robot.
SCRIPT = """
import json, sys, warnings
import numpy as np
from openpi_client import image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, token, prompt = int(sys.argv[1]), sys.argv[2] or None, sys.argv[3]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it opens a connection outside of a with block
    client = WebsocketClientPolicy("127.0.0.1", port, api_key=token)
picture = np.full((180, 320, 3), 7, np.uint8)
request = {
    "observation/exterior_image_1_left": image_tools.resize_with_pad(picture, 224, 224),
    "observation/wrist_image_left": image_tools.resize_with_pad(picture + 2, 224, 224),
    "observation/joint_position": np.array([0.0, -0.45, 0.0, -2.35, 0.0, 1.9, 0.78]),
    "observation/gripper_position": np.array([0.1]),
    "prompt": prompt,
}
answers = []
try:
    for _ in range(3):
        answer = client.infer(request)
        actions = answer["actions"]
        assert actions.shape == (10, 8), actions.shape
        row = np.concatenate([actions[0, :-1], np.ones((1,))]).clip(-1, 1)
        assert row.shape == (8,)
        answers.append([actions.dtype.str, sorted(answer["server_timing"]), float(actions[0, 0])])
except RuntimeError as error:
    answers.append(str(error))
print(json.dumps([np.__version__, client.get_server_metadata(), answers]))
"""


@pytest.fixture
def openpi():
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} names no python that has openpi-client")

    def call(port: int, *, token: str = "", prompt: str = "red cube"):
        words = [python, "-c", SCRIPT, str(port), token, prompt]
        return subprocess.run(words, capture_output=True, text=True, timeout=120)

    return call


def test_the_client_plans_with_our_server(run_server, policy, openpi) -> None:
    with run_server(policy, token=TOKEN) as running:
        done = openpi(running.port, token=TOKEN)
    assert done.returncode == 0, done.stderr
    version, metadata, answers = json.loads(done.stdout)
    assert version.startswith("1.")
    assert metadata == policy.metadata
    assert answers == [
        ["<f8", ["infer_ms"], 0.1],
        ["<f8", ["infer_ms", "prev_total_ms"], 0.2],
        ["<f8", ["infer_ms", "prev_total_ms"], 0.3],
    ]
    (first, *_) = policy.requests
    assert first.image.shape == (224, 224, 3)
    assert first.image[0].max() == 0 and (first.image[112] == 7).all()  # letterboxed
    assert first.joints[3] == -2.35
    assert (first.dialect, first.prompt, first.gripper) == ("openpi", "red cube", 0.1)


def test_the_client_sends_what_the_wrist_sees_as_it_is(run_server, make_policy, openpi) -> None:
    policy = make_policy(cameras=("exterior", "wrist"))
    with run_server(policy) as running:
        done = openpi(running.port)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1]["needs_wrist_camera"] is True
    (first, *_) = policy.requests
    assert first.wrist.shape == (224, 224, 3) and (first.wrist[112] == 9).all()
    assert (first.image[112] == 7).all()


def test_the_client_hears_why_it_is_refused(run_server, make_policy, openpi) -> None:
    from worldmodel.serving.dialects import RequestError

    policy = make_policy(fails_with=RequestError("unknown_goal", "'red cube'; available: mug"))
    with run_server(policy) as running:
        done = openpi(running.port)
    _, _, answers = json.loads(done.stdout)
    assert answers == ["Error in inference server:\nunknown_goal: 'red cube'; available: mug"]


def test_the_client_is_turned_away_with_another_token(run_server, policy, openpi) -> None:
    with run_server(policy, token=TOKEN) as running:
        done = openpi(running.port, token="wrong-horse-battery")
    assert done.returncode != 0
    assert "HTTP 401" in done.stderr
    assert policy.requests == []
