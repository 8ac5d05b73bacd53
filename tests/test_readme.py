"""What the README shows works: its Python runs, its commands exist, its links lead somewhere.

The commands and links of the other pages are checked too; their Python may need a GPU.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    flags, words = cli.take_flags(verb, overrides)
    assert flags <= set(cli.FLAGS.get(verb, {}))
    cli.compose(verb, cli.name_positional(verb, words))


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
