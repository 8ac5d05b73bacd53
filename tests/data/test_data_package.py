import subprocess
import sys

import pytest

import worldmodel.data

_HEAVY = """
import sys
import {modules}
loaded = {{"torch", "mujoco", "gymnasium"}} & set(sys.modules)
raise SystemExit(f"imported {{loaded}}" if loaded else 0)
"""


def test_no_data_module_imports_torch_or_mujoco():
    names = ("episode", "store", "windows", "latents", "collect", "inspect")
    modules = ", ".join(f"worldmodel.data.{name}" for name in names)
    script = _HEAVY.format(modules=modules)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_package_alone_imports_nothing():
    script = "import sys, worldmodel.data; raise SystemExit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_every_exported_name_exists():
    for name in worldmodel.data.__all__:
        assert getattr(worldmodel.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Epsiode'"):
        worldmodel.data.Epsiode  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
