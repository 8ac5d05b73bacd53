"""What the README shows works: its Python runs, its commands exist, its links lead somewhere.

Its tables say what the code says. The commands and links of the other pages are checked too; their
Python may need a GPU.
"""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from worldmodel.cli import VERBS
from worldmodel.envs import franka
from worldmodel.envs.control import Arm
from worldmodel.envs.tasks import TASKS, make_task
from worldmodel.tables import fill_marks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PLACEHOLDER = "<none>"  # a parameter list must not be empty; the tests below fail on it


def blocks(language: str, page: str) -> list[str]:
    """Returns the contents of a page's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Returns the shell commands of a page's bash blocks as words, continuation lines joined."""
    lines = "\n".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    return [
        words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))
    ]


def worldmodel_commands(page: str) -> list[list[str]]:
    """Returns the arguments of a page's calls of the `worldmodel` program."""
    calls = []
    for words in commands(page):
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # VARIABLE=value in front
            words = words[1:]
        if words and Path(words[0]).name == "worldmodel":
            calls.append(words[1:])
    return calls


ALL_CALLS = [
    call for page in PAGES for call in worldmodel_commands(page.read_text(encoding="utf-8"))
]


def test_readme_shows_python_and_commands() -> None:
    assert blocks("python", README), "README.md needs at least one ```python block"
    assert worldmodel_commands(README), "README.md needs a `worldmodel ...` line in a ```bash block"


@pytest.mark.parametrize("code", blocks("python", README) or [PLACEHOLDER])
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code != PLACEHOLDER, "README.md has no ```python block"
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("words", ALL_CALLS, ids=" ".join)
def test_command_line_composes(words: list[str]) -> None:
    verb, *overrides = words
    if verb == "--help":
        return
    cli = importlib.import_module("worldmodel.cli")
    flags, words = cli.take_flags(verb, cli.name_options(verb, overrides))
    assert flags <= set(cli.FLAGS.get(verb, {}))
    cli.compose(verb, cli.name_positional(verb, words))


def test_every_verb_is_shown_on_some_page() -> None:
    assert set(VERBS) - {"demo"} - {call[0] for call in ALL_CALLS} == set()  # make demo calls it


def test_the_table_of_tasks_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| ([\w, ]+) \| (\d+) \|$", README, re.MULTILINE)
    shown = {name: (stages.split(", "), int(steps)) for name, stages, steps in rows}
    assert shown == {
        name: (stages_of(name), spec.max_episode_steps) for name, spec in TASKS.items()
    }


def stages_of(name: str) -> list[str]:
    """Returns the names of a task's stages, in order."""
    task = make_task(name)
    arm = Arm(franka.build_model(drawer=task.drawer), control_hz=4.0)
    arm.reset()
    task.reset(arm, np.random.default_rng(0), {})
    return [waypoint.stage for waypoint in task.waypoints(arm) if waypoint.stage is not None]


@pytest.fixture(scope="module")
def make_benchmark() -> ModuleType:
    """docs/make_benchmark.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("page", ROOT / "docs" / "make_benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_measured_numbers(make_benchmark: ModuleType) -> None:
    filled = fill_marks(README, make_benchmark.readme_tables(), script=make_benchmark.SCRIPT)
    assert filled == README, "run: python docs/make_benchmark.py"


def test_the_table_of_successes_puts_every_number_in_its_place(make_benchmark: ModuleType) -> None:
    def row(task: str, variation: str, policy: str, successes: int) -> dict[str, Any]:
        return {
            "task": task,
            "variation": variation,
            "policy": policy,
            "successes": successes,
            "episodes": 50,
            "wilson95": [0.1, 0.255],
        }

    rows = [
        row("push", "mild", "planner", 7),
        row("push", "none", "planner", 9),
        row("push", "none", "do_nothing", 1),
        row("push", "mild", "do_nothing", 2),
        row("lift", "none", "planner", 40),
    ]
    table = make_benchmark.success_table(rows).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table] == [
        ["task", "planner", "95 % Wilson", "planner, mild", "do nothing"],
        ["-" * len(cell) for cell in table[1].split("|")[1:-1]],
        ["push", "9 of 50", "10 % to 25.5 %", "7 of 50", "1 of 50"],
        ["lift", "40 of 50", "10 % to 25.5 %", "-", "-"],
    ]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    used = {
        page.name: {
            words[1]
            for words in commands(page.read_text(encoding="utf-8"))
            if words[0] == "make" and len(words) > 1
        }
        for page in PAGES
    }
    assert {"demo", "test"} <= used["README.md"], "README.md must show `make demo` and `make test`"
    assert {name: names - targets for name, names in used.items() if names - targets} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_images_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)
    linked += re.findall(r'(?:src|href)="([^"]+)"', text)
    local = [link.partition("#")[0] for link in linked if not re.match(r"\w+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []
