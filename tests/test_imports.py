"""Importing is cheap, goes one way only, and says what is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import worldmodel
from worldmodel.extras import require

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"

# The modules in worldmodel/ that bring the parts together; all others are held to the contracts.
ENTRY_POINTS = {
    "__init__",
    "benchmark",
    "cli",
    "clips",
    "closed_loop",
    "drive",
    "embodied",
    "encode",
    "encoder_probes",
    "engine",
    "evaluate",
    "finetune",
    "fleet",
    "intuitive_physics",
    "invocations",
    "landscape",
    "new_world",
    "oracle",
    "pipeline",
    "plan",
    "prediction_task",
    "pretrain",
    "pretraining",
    "recipe",
    "report",
    "robot_free",
    "robots",
    "runs",
    "surprise",
    "surprise_page",
    "sweep",
    "swm",
    "tensorboard",
    "tracking",
    "train",
    "validate",
    "verdict",
}


def imported_by(statement: str) -> set[str]:
    """Returns the top-level packages that a fresh Python has loaded after `statement`."""
    code = f"{statement}; import sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_worldmodel_loads_nothing_heavy() -> None:
    heavy = {"torch", "mujoco", "gymnasium", "matplotlib", "cv2", "zarr", "av", "hydra", "numpy"}
    assert imported_by("import worldmodel") & heavy == set()


@pytest.mark.parametrize("module", ["worldmodel.pose", "worldmodel.franka_arm"])
def test_importing_arithmetic_loads_numpy_only(module: str) -> None:
    heavy = {"torch", "mujoco", "gymnasium", "cv2", "zarr", "av", "scipy"}
    assert imported_by(f"import {module}") & heavy == set()


@pytest.mark.parametrize(
    "package", ["worldmodel.envs", "worldmodel.data", "worldmodel.envs.robots"]
)
def test_importing_the_torch_free_packages_does_not_load_torch(package: str) -> None:
    loaded = imported_by(f"import {package}")
    assert "worldmodel" in loaded
    assert "torch" not in loaded


def test_importing_the_planners_does_not_load_a_simulator() -> None:
    assert imported_by("import worldmodel.planners") & {"mujoco", "gymnasium"} == set()


def test_dependencies_point_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def test_every_exported_name_can_be_imported() -> None:
    for name in worldmodel.__all__:
        assert getattr(worldmodel, name) is not None
        assert name in dir(worldmodel)


def test_version_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert worldmodel.__version__ == project["version"]


def test_an_unknown_attribute_suggests_the_nearest() -> None:
    with pytest.raises(
        AttributeError, match="no attribute 'load_defualt'; did you mean 'load_default'"
    ):
        worldmodel.load_defualt  # noqa: B018  # pyright: ignore
    with pytest.raises(AttributeError, match="It has: JEPA"):
        worldmodel.qqq  # noqa: B018  # pyright: ignore


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    expected = "tensorflow-datasets is not installed; run: pip install 'worldmodel[rlds]'"
    with pytest.raises(ImportError, match=re.escape(expected)):
        require("tensorflow_datasets", extra="rlds")


def test_a_present_extra_is_returned() -> None:
    assert require("json.decoder", extra="none") is sys.modules["json.decoder"]


def test_an_extra_that_is_itself_broken_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_installed.py").write_text("import a_part_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_part_it_needs"):
        require("half_installed", extra="none")


def test_every_library_module_is_held_to_a_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    held = {module for contract in contracts for module in contract["source_modules"]}
    modules = {path.stem for path in (ROOT / "worldmodel").glob("*.py")} - ENTRY_POINTS
    assert {f"worldmodel.{name}" for name in modules} - held == set(), (
        "add them to the model's contract in pyproject.toml, or to ENTRY_POINTS here"
    )
