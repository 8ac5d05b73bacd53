"""Shared by all tests: run-time shape checks, determinism, and the reference data."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import config, install_import_hook

ROOT = Path(__file__).parents[1]

# Import path is file path: the folders of the repository and the packages they are.
FOLDERS = {"worldmodel": "worldmodel"} | {
    name: f"worldmodel.{name}" for name in ("planners", "envs", "data", "configs")
}


def modules_with_shapes() -> list[str]:
    """Returns the names of the modules that state array shapes in their annotations."""
    return [
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
        for folder, package in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]


# Annotations with shapes are checked at run time in this suite and nowhere else: production pays
# nothing. This must come before the first import of worldmodel. An int passes for a float, as the
# typing rules say.
install_import_hook(
    modules_with_shapes(),
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# No test may depend on the machine's speed.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA

import torch  # noqa: E402  (after the variable above, which is read once)

# One thread sums in one order on every machine, and is the fastest for the suite's small tensors.
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; without it, its tests are skipped."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no reference data: the folder '{ROOT.parent.name}/shared' does not exist")
    return folder


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Switches the run-time checks of annotations off, as in production.

    For tests of the errors that our own code raises on a wrong shape: with the checks on, the
    annotation would speak first.
    """
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
