"""Recordings whose every value is known, and who writes them in each format.

The files beside this one are loaded by path, because tests are no package.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"formats_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Truths are pickled by their module's name.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def truth() -> ModuleType:
    """The module that makes recordings whose every value is known."""
    return _load(HERE / "truth.py")


@pytest.fixture(scope="session")
def writers(truth: ModuleType) -> dict[str, ModuleType]:
    """Name of a format -> module with `write(path, truths)`, which returns the path to open.

    A module of a format without a schema has `MAPPING`, what a user would say of its columns.
    """
    files = sorted(HERE.glob("write_*.py"))
    return {file.stem.removeprefix("write_"): _load(file) for file in files}
