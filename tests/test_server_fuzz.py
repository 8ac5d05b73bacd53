"""A part of `benchmarks/server_fuzz.py`: a hundred malformed messages at a running robot server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_malformed_messages_are_answered_and_the_arm_stands_still(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.server_fuzz", "--messages", "200", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["failed"] == [] and found["accepted"] == 0
    answers = found["answers"]
    assert set(answers) == {"/control", "/observe", "/stop"}
    assert sum(sum(counts.values()) for counts in answers.values()) == 200
    assert {"malformed", "bad_request", "answered"} <= set(answers["/control"])
    assert "internal_error" not in {code for counts in answers.values() for code in counts}
