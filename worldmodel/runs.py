"""Run folders: runs/<date>-<time>-<name>/ with the resolved settings and where they were run."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

CONFIG_FILE = "config.yaml"


def open_run(
    name: str, path: str | None, config_yaml: str, *, may_change: Collection[str] = ()
) -> Path:
    """Returns the folder of a run, made if needed, with the settings written into it.

    Args:
        name: Name of the entry point, the last part of a new folder's name.
        path: An explicit folder, new or to be resumed; None makes a new one under runs/.
        config_yaml: The resolved settings.
        may_change: Settings that a run may be resumed with other values of.

    Raises:
        ValueError: The folder holds a run with other settings, so going on would mix two runs; the
            message lists them.
    """
    if path is None:
        folder = _new_folder(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")
    else:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_FILE
    started = any(entry.name != CONFIG_FILE for entry in folder.iterdir())
    if started and file.exists() and file.read_text() != config_yaml:
        differences = [
            f"  {key}: {then} in the run, {now} now"
            for key, (then, now) in differing(file.read_text(), config_yaml).items()
            if key.partition(".")[0] not in may_change
        ]
        if differences:
            raise ValueError(
                f"{folder} holds a run with other settings ({file}):\n"
                + "\n".join(differences)
                + "\nresume it with those of the run, or choose another run=..."
            )
    file.write_text(config_yaml)
    return folder


def differing(then: str, now: str) -> dict[str, tuple[str, str]]:
    """Returns the settings, by dotted name, that two YAML texts have different values of."""
    before, after = (dict(_leaves(yaml.safe_load(text) or {})) for text in (then, now))
    return {
        key: (before.get(key, "not set"), after.get(key, "not set"))
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key)
    }


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str)


def describe_machine() -> dict[str, object]:
    """Returns processor, cores, library versions and git commit, JSON-able."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("worldmodel", "torch", "mujoco", "numpy")},
        "git_commit": _git_commit(),
    }


def write_json(path: Path, content: object) -> None:
    """Writes an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _new_folder(root: Path, name: str) -> Path:
    for attempt in range(1000):
        folder = root / (name if attempt == 0 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{root} already has 1000 runs called {name}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Returns the commit of the source tree, or None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
