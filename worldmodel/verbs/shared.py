"""What the verbs share: opening runs and recordings, loading models, and mistakes of the user."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.source import Source
    from worldmodel.training import Schedule


@dataclass(frozen=True)
class Call:
    """How a verb was called.

    Attributes:
        command: The command line.
        json_to: Where a verb that has a result as JSON writes it, instead of printing for people.
    """

    command: str
    json_to: TextIO | None


class UserError(Exception):
    """A mistake in what was typed; its message is all the user sees."""


def open_folder(verb: str, config: "DictConfig", *, may_change: Collection[str] = ()) -> Path:
    """Opens the run folder, keeps the settings there, and says where it is.

    Settings in `may_change` may have other values when a run is resumed.
    """
    from omegaconf import OmegaConf

    from worldmodel.runs import open_run

    # `run` itself is left out: a run folder may be moved, and resumed by another path.
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "run"])
    text = OmegaConf.to_yaml(settings, resolve=True)
    run = open_run(verb, config.run, text, may_change=may_change)
    print(f"writing to {run}", flush=True)
    return run


def open_recordings(config: "DictConfig") -> "Source":
    """Opens the recordings that the settings name."""
    from worldmodel.data.source import open_source

    return open_source(config.data, format=config.format, mapping=config.mapping, hz=config.hz)


def set_threads(config: "DictConfig") -> None:
    """Sets the number of torch's threads, where one is given."""
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)


def build(config: "DictConfig", **arguments: Any) -> Any:
    """Builds what a group names; what its class refuses is a mistake of the user's."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        raise UserError(str(error.__cause__ or error)) from error


def check_backends(*names: str) -> None:
    """Says before anything is written that a renderer does not work here."""
    from worldmodel.envs.cameras import choose_backend

    for name in names:
        if name == "auto":
            continue
        try:
            choose_backend(name)  # type: ignore[arg-type]  (an unknown name is refused there)
        except RuntimeError as error:
            raise UserError(str(error)) from error


def schedule(config: "DictConfig") -> "Schedule":
    """Returns the learning-rate schedule."""
    from worldmodel.training import Schedule

    return Schedule(**config.schedule)


def is_published(source: str) -> bool:
    """Whether this names a published model, or a file or folder of one, and not one of ours."""
    from worldmodel import hub

    path = Path(source)
    if path.is_dir():
        return (path / "model.safetensors").is_file()
    return path.is_file() or source in [model.name for model in hub.MODELS]


def load_world(
    config: "DictConfig", *, several_views: bool = False, shipped: Path | None = None
) -> Any:
    """Returns the world model that the settings name.

    Args:
        config: The settings.
        several_views: Whether the verb can show it several cameras at once.
        shipped: Which one it is where they name none; None is the one that plans.
    """
    world = _load_world(config, shipped)
    views = world.predictor.num_views
    if views > 1 and not several_views:
        raise UserError(
            f"{config.checkpoint} sees {views} cameras at once, and this verb shows one; train a "
            "model of one camera for it (camera=... with one name)"
        )
    if views > 1:
        _check_order(config.checkpoint, config.camera)
    return world


def _check_order(checkpoint: str, camera: str) -> None:
    """Refuses the cameras that a model was trained with in another order: nothing else would."""
    from worldmodel.checkpoint import read_config
    from worldmodel.views import camera_names

    trained = read_config(checkpoint)["provenance"].get("camera", camera)
    if camera != trained and set(camera_names(camera)) == set(camera_names(trained)):
        raise UserError(f"{checkpoint} was trained with camera={trained}, in this order")


def _load_world(config: "DictConfig", shipped: Path | None) -> Any:
    from worldmodel import hub
    from worldmodel.checkpoint import load, load_default

    set_threads(config)
    if config.checkpoint is None:
        return load_default() if shipped is None else load(shipped)
    if is_published(config.checkpoint):
        return hub.load(config.checkpoint)
    return load(config.checkpoint)
