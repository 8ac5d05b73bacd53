"""What each verb of the `worldmodel` program does with its settings; `worldmodel.cli` calls these.

Every verb first prints where it writes, and last the number that matters.

    shared      what they have in common       recordings  collect, inspect, convert, transcode
    training    encode, pretrain, train        models      published models
    planning    plan, landscape, evaluate, demo
    surprise    surprise                       experiments benchmark, sweep, recipe
    serving     serve                          driving     drive
    replaying   replay
    validation  validate
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from worldmodel.verbs import (
    driving,
    experiments,
    models,
    planning,
    recordings,
    replaying,
    serving,
    training,
    validation,
)
from worldmodel.verbs import surprise as surprises
from worldmodel.verbs.shared import Call, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["RUNNERS", "Call", "UserError", "run"]

RUNNERS: dict[str, Callable[..., int]] = {
    "demo": planning.demo,
    "collect": recordings.collect,
    "inspect": recordings.inspect,
    "convert": recordings.convert,
    "transcode": recordings.transcode,
    "encode": training.encode,
    "pretrain": training.pretrain,
    "train": training.train,
    "plan": planning.plan,
    "landscape": planning.landscape,
    "surprise": surprises.surprise,
    "validate": validation.validate,
    "models": models.models,
    "evaluate": planning.evaluate,
    "benchmark": experiments.benchmark,
    "sweep": experiments.sweep,
    "recipe": experiments.recipe,
    "serve": serving.serve,
    "drive": driving.drive,
    "replay": replaying.replay,
}
"""``runner(config, call=...) -> exit status`` of each verb."""


def run(verb: str, config: "DictConfig", *, call: Call) -> int:
    """Does what a verb is for and returns the exit status.

    Args:
        verb: One of `worldmodel.cli.VERBS`.
        config: Its settings, complete.
        call: How it was called.
    """
    return RUNNERS[verb](config, call=call)
