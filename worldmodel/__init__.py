"""Plan robot-arm motions to goal images with action-conditioned JEPA world models.

    import worldmodel

    world = worldmodel.load_default()       # the small model shipped with this package
    latents = world.encode(frames)          # uint8 (B, T, height, width, 3) -> (B, T, N, D)
    future = world.rollout(latents, proprio, actions)

The parts:

- `worldmodel.JEPA`: the world model: encode, predict, rollout, propose.
- `worldmodel.load`, `worldmodel.load_default`: a checkpoint folder; the shipped one.
- `worldmodel.hub`: published models of the family, as encoders or world models.
- `worldmodel.planners`: choose actions by imagining their outcome.
- `worldmodel.envs`: a Franka arm in MuJoCo and its tasks, as Gymnasium environments.
- `worldmodel.data`: recorded episodes, their stores, and windows for training.
- `worldmodel.configs`: the Hydra configs behind the `worldmodel` program.

What the program does is in modules named after its verbs: `worldmodel.pretrain`,
`worldmodel.train`, `worldmodel.evaluate`, `worldmodel.surprise` and others (docs/design.md).

Everywhere: `proprio` is (x, y, z [m], roll, pitch, yaw [rad, extrinsic xyz], gripper in [0, 1] with
1 closed) in the robot base frame; `action` is its change over one model step, in physical units.

Importing this package is cheap: a name's own module, and torch with it, is imported at first use.
"""

import difflib
import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel import data, envs, hub, planners
    from worldmodel.checkpoint import load, load_default
    from worldmodel.jepa import JEPA

    __version__: str

__all__ = [
    "JEPA",
    "__version__",
    "data",
    "envs",
    "hub",
    "load",
    "load_default",
    "planners",
]

_MODULES = ("data", "envs", "hub", "planners")
_HOMES = {
    "JEPA": "worldmodel.jepa",
    "load": "worldmodel.checkpoint",
    "load_default": "worldmodel.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("worldmodel")
    if name in _MODULES:
        return importlib.import_module(f"worldmodel.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    near = difflib.get_close_matches(name, __all__, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f". It has: {', '.join(__all__)}"
    raise AttributeError(f"module 'worldmodel' has no attribute '{name}'{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
