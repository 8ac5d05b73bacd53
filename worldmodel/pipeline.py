"""Pipelines: stages in a YAML file, each a verb with settings, that use what earlier ones wrote.

    stages:
      recordings: {verb: collect, settings: {episodes: 100}}
      predictor:  {verb: train, settings: {data: "{recordings}", schedule: {steps: 2000}}}
      measure:    {verb: evaluate, each: {task: [reach, push]},
                   settings: {checkpoint: "{predictor}/model"}}

`{recordings}` is the folder that stage wrote to. `each` makes one stage of several: here
`measure_reach` and `measure_push`. Settings are Hydra's: `planner.search.horizon: 2` works too.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from worldmodel.cli import VERBS, compose
from worldmodel.invocations import PLACES, Invocation
from worldmodel.names import unknown

_REFERENCE = re.compile(r"\{(\w+)\}")
HASH_LENGTH = 12


@dataclass(frozen=True)
class Stage:
    """One call of a verb, whose settings may name earlier stages in braces.

    Attributes:
        name: Its name.
        verb: The verb.
        settings: The settings that differ from the verb's defaults.
    """

    name: str
    verb: str
    settings: Mapping[str, Any]


def read_stages(stages: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Returns the stages that a document describes, `each` written out.

    Raises:
        ValueError: A stage has an unknown key or verb, or `each` names not exactly one setting.
    """
    found = []
    for name, body in stages.items():
        wrong = set(body) - {"verb", "settings", "each"}
        if wrong:
            raise ValueError(f"stage {name}: " + unknown("key", min(wrong), ("verb", "settings")))
        if body.get("verb") not in VERBS:
            raise ValueError(f"stage {name}: " + unknown("verb", str(body.get("verb")), VERBS))
        settings, each = body.get("settings") or {}, body.get("each") or {}
        if len(each) > 1:
            raise ValueError(f"stage {name}: each takes one setting, got {', '.join(each)}")
        if not each:
            found.append(Stage(name, body["verb"], settings))
        for key, values in each.items():
            for value in values:
                found.append(Stage(f"{name}_{value}", body["verb"], {**settings, key: value}))
    return tuple(found)


def plan_stages(
    stages: Sequence[Stage], root: Path, *, by_content: bool, label: str = "", made_from: str = ""
) -> tuple[Invocation, ...]:
    """Returns the calls that make the stages, in folders under `root`.

    Args:
        stages: The stages; each names earlier ones only.
        root: Folder of all.
        by_content: Whether a folder is called by the hash of all that decides what is in it, and
            so is shared by every pipeline with that stage; else by the stage's name.
        label: What messages put before the names of the stages.
        made_from: Hash of what else decides the results, such as weights named in the settings.

    Raises:
        ValueError: A stage names one that does not come before it.
        UserError: A verb refuses a setting.
    """
    calls: dict[str, Invocation] = {}
    for stage in stages:
        named = _names_in(stage.settings)
        for name in named:
            if name not in calls:
                raise ValueError(f"stage {stage.name}: " + unknown("earlier stage", name, calls))
        # The hash sees the hashes of the stages that this one is made from, not where they lie.
        content = {name: calls[name].identity for name in named}
        identity = _hash([stage.verb, _fill(stage.settings, content), made_from])
        short = f"{stage.verb}-{identity[:HASH_LENGTH]}"
        overrides = as_overrides(
            _fill(stage.settings, {name: str(calls[name].out) for name in named})
        )
        _check(stage, overrides)
        calls[stage.name] = Invocation(
            name=label + stage.name,
            verb=stage.verb,
            overrides=tuple(overrides),
            folder=root / (short if by_content else stage.name),
            identity=identity,
            needs=tuple(calls[name].folder for name in named),
        )
    return tuple(calls.values())


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as Hydra overrides, `{"a": [1, "x"]}` as `["a=[1,'x']"]`."""
    return [f"{key}={_literal(value)}" for key, value in settings.items()]


def _literal(value: Any) -> str:
    """Returns a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_literal(item) for item in value) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def _names_in(settings: Any) -> list[str]:
    """Returns the stages that settings name, each once."""
    return list(dict.fromkeys(_REFERENCE.findall(json.dumps(settings))))


def _fill(value: Any, folders: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: folders[match[1]], value)
    if isinstance(value, Mapping):
        return {key: _fill(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, folders) for item in value]
    return value


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(stage: Stage, overrides: Sequence[str]) -> None:
    """Composes the settings, so that a misspelt one is refused before hours of work."""
    if PLACES.get(stage.verb, "run") in stage.settings:
        raise ValueError(
            f"stage {stage.name}: where it writes is not for it to say; leave out "
            f"{PLACES.get(stage.verb, 'run')}"
        )
    _compose(stage.verb, tuple(overrides))


@cache  # the rows of a sweep share most of their stages
def _compose(verb: str, overrides: tuple[str, ...]) -> None:
    compose(verb, overrides)
