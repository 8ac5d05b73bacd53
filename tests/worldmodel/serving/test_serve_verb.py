import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

from worldmodel.cli import main
from worldmodel.envs.robots.wire import pack, unpack

WORKSPACE = "workspace=[[0.2,-0.4,0.0],[0.7,0.4,0.6]]"


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "serve needs workspace=..."),
        ([WORKSPACE, "host=0.0.0.0"], "host=0.0.0.0 can be reached from other machines"),
        ([WORKSPACE, "tls_key=key.pem"], "tls_certificate and tls_key belong together"),
        ([WORKSPACE, "token_file=none"], "no token file at none"),
        ([WORKSPACE, "roboarena_reply=list"], "roboarena_reply must be map or array"),
        (["workspace=[[0,0,0]]"], "workspace must be two corners"),
        (["workspace=[[0,0,0],[0,1,1]]"], "workspace must be two corners"),
        ([WORKSPACE, "goals=none"], "no folder of goals at none"),
        ([WORKSPACE, "camera=front"], "known: exterior, wrist, as requests have them; say in"),
        ([WORKSPACE, "camera=exterior+wrist"], "names 2, but this model sees 1 at once; name one"),
        ([WORKSPACE, "speed=9"], "speed must be above 0 and at most 1"),
        ([WORKSPACE, "tokn_file=x"], "serve has no setting 'tokn_file'; did you mean"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys, monkeypatch) -> None:
    monkeypatch.delenv("WORLDMODEL_TOKEN", raising=False)
    assert main(["serve", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_serves_until_it_is_stopped(tmp_path: Path, droid_request) -> None:
    Image.new("RGB", (224, 224), (90, 90, 90)).save(tmp_path / "red cube.png")
    words = [sys.executable, "-m", "worldmodel.cli", "serve", WORKSPACE, "port=0", "crop=square"]
    server = subprocess.Popen(
        [*words, f"goals={tmp_path}", "threads=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        found = re.fullmatch(r"serving at (ws://127\.0\.0\.1:\d+)\n", first)
        assert found, first
        assert server.stdout.readline() == "goals: red cube\n"
        droid_request["observation/exterior_image_1_left"] = np.zeros((224, 224, 3), np.uint8)
        with connect(found[1], proxy=None) as client:
            assert unpack(client.recv(60, decode=False))["image_resolution"] == [128, 128]
            client.send(pack(droid_request))
            assert unpack(client.recv(60, decode=False))["actions"].shape == (10, 8)
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert server.stdout.read().splitlines()[-1] == "answered 1 requests"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
