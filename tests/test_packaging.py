"""What gets installed is what is in the repository, on every machine the same."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = ("planners", "envs", "data", "configs")


def own_files() -> list[str]:
    """Returns the files of the project as relative paths: what git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listing.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def package_of(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "worldmodel" else ("worldmodel", *parts))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names inside the wheel, built from a copy so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in own_files():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    # The links are not copied: the mapping alone must suffice, as on a system without them.
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_every_package_folder_is_listed_in_pyproject() -> None:
    folders = [
        file.parent for top in ("worldmodel", *MAPPED) for file in (ROOT / top).rglob("__init__.py")
    ]
    found = {package_of(folder) for folder in folders if folder.resolve() == folder.absolute()}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    assert {package_of(ROOT / folder): folder for folder in mapping.values()} == mapping


def test_links_are_relative_and_point_to_the_folders() -> None:
    for name in MAPPED:
        link = ROOT / "worldmodel" / name
        if not link.is_symlink() and link.is_file():
            pytest.skip("this checkout has no symbolic links")
        assert os.readlink(link) == f"../{name}"


def test_wheel_holds_every_file_of_the_packages(wheel: set[str]) -> None:
    tops = ("worldmodel/", *(f"{name}/" for name in MAPPED))
    files = {name for name in own_files() if name.startswith(tops)}
    expected = {name if name.startswith("worldmodel/") else f"worldmodel/{name}" for name in files}
    assert {"worldmodel/py.typed", "worldmodel/pose.py", "worldmodel/data/episode.py"} <= expected
    assert expected - wheel == set(), "add them to package-data in pyproject.toml"


def test_wheel_holds_the_program_the_licence_and_nothing_else(wheel: set[str]) -> None:
    info = f"worldmodel-{PROJECT['project']['version']}.dist-info"
    assert {f"{info}/entry_points.txt", f"{info}/licenses/LICENSE"} <= wheel
    assert {name.split("/")[0] for name in wheel} == {"worldmodel", info}
    assert not [name for name in wheel if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.parametrize(
    "name",
    [
        "data/new.py",
        "worldmodel/weights/model.safetensors",
        "configs/dataset/droid.yaml",
        "docs/a.png",
    ],
)
def test_git_does_not_ignore_code_weights_or_pictures(name: str) -> None:
    done = subprocess.run(["git", "check-ignore", "--no-index", "-q", name], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 1


@pytest.mark.parametrize(
    "name", [".venv/x", "runs/x", "datasets/x.zarr", "build/x", "MUJOCO_LOG.TXT"]
)
def test_git_ignores_what_the_commands_produce(name: str) -> None:
    done = subprocess.run(["git", "check-ignore", "--no-index", "-q", name], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def dependencies(name: str, *, extras: tuple[str, ...], seen: set[tuple[str, str]]) -> set[str]:
    """Returns the distributions that `name[extras]` needs here, directly or through others."""
    found: set[str] = set()
    for line in requires(name) or []:
        need = Requirement(line)
        for extra in ("", *extras):
            if (need.name, extra) in seen or not (
                need.marker is None or need.marker.evaluate({"extra": extra})
            ):
                continue
            seen.add((need.name, extra))
            key = canonicalize_name(need.name)
            found.add(key)
            if key != "torch":  # what torch needs depends on its build; torch pins it itself
                found |= dependencies(need.name, extras=tuple(need.extras), seen=seen)
    return found


def test_constraints_pin_all_that_an_install_brings() -> None:
    missing = dependencies("worldmodel", extras=("dev",), seen=set()) - set(pins())
    assert missing == set(), "pin them in constraints.txt"


def test_constraints_lie_within_the_ranges_of_pyproject() -> None:
    project = PROJECT["project"]
    pinned = [project["optional-dependencies"][extra] for extra in ("dev", "franka", "franka-sim")]
    for line in [*project["dependencies"], *sum(pinned, [])]:
        need = Requirement(line)
        assert need.specifier.contains(pins()[canonicalize_name(need.name)]), line


def test_torch_is_pinned_for_any_build_of_it() -> None:
    assert pins()["torch"] == "2.13.0"  # no local label: a CPU and a CUDA build both match
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_no_file_names_a_path_of_one_machine() -> None:
    """A path that exists on its author's machine only breaks on every other."""
    homes = ("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers")
    pattern = re.compile(r"(?<![\w.$}~-])/(?:" + "|".join(homes) + r")/\w")
    suspects = [
        name
        for name in own_files()
        if not name.startswith(".git/") and (ROOT / name).suffix not in {".safetensors", ".npz"}
    ]
    found = [
        f"{name}: {match.group()}"
        for name in suspects
        for match in pattern.finditer((ROOT / name).read_bytes().decode("utf-8", "replace"))
    ]
    assert found == []
