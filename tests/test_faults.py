"""A part of the fault table (`make faults`), and that the table cannot hide a failure."""

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from worldmodel.tables import fill_marks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "safety.md"
IN_PROCESS = [
    "camera frozen: same frame",
    "camera frozen: same bytes, new stamps",
    "planner silent",
    "commands out of order, or twice",
    "nothing but wrong commands",
    "reflex mid-motion: pushed with 60 N",
    "safety loop starved for 0.6 s",
]


@pytest.fixture(scope="module")
def table():
    """The fault table's program, which belongs to no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.faults.__main__")


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("make_safety", ROOT / "docs" / "make_safety.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(table, name):
    (found,) = [row for row in table.ROWS if row.fault == name]
    return found


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("name", IN_PROCESS)
def test_the_arm_in_process(table, name):
    line = table.run_row(row(table, name), "in process")
    assert line["passed"], line


@pytest.mark.usefixtures("without_shape_checks")
def test_a_planner_that_stands_still_is_no_danger(table):
    line = table.run_row(row(table, "planner SIGSTOP"), "two processes")
    assert line["passed"], line
    assert 0 < line["extra_travel_mm"] and "stop: controller_lost" in line["recorded"]


@pytest.mark.usefixtures("without_shape_checks")
def test_a_row_that_cannot_be_run_has_failed(table, capsys):
    def broken(rig):
        raise RuntimeError("no such arm")

    bad = replace(row(table, "planner silent"), run=broken)
    line = table.run_row(bad, "in process")
    assert line["passed"] is False and "no such arm" in line["happened"]
    assert "no such arm" in capsys.readouterr().err


@pytest.mark.usefixtures("without_shape_checks")
def test_what_was_not_recorded_has_failed(table):
    silent = replace(row(table, "limits above the hardware's"), recorded=True)
    assert table.run_row(silent, "in process")["failed"] == ["recorded"]


def test_the_page_is_that_of_the_results(page):
    text = PAGE.read_text()
    assert fill_marks(text, page.tables(), script=page.SCRIPT) == text, (
        "run: python docs/make_safety.py"
    )


def test_failures_stand_first_and_in_the_table(page):
    line = {
        "fault": "planner silent",
        "against": "in process",
        "required": "HOLD",
        "happened": "stayed running",
        "passed": False,
        "failed": ["at rest"],
        "reaction_ms": None,
        "extra_travel_mm": 900.0,
        "recorded": [],
        "seconds": 1.0,
    }
    machine = {"git_commit": None, "processor": "p", "cores": 2, "mujoco": "4"}
    text = page.fault_text({"rows": [line], "date": "2026-01-01", "note": "", "machine": machine})
    assert "1 rows, 1 failed, 0 not shown" in text
    assert "**Failed: planner silent, in process** (at rest)." in text
    assert "not so: at rest" in text and "**FAIL**" in text
