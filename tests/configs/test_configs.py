"""Every choice can be made, every setting reaches the code, and every name is one of the code's."""

import dataclasses
import inspect
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from hydra.utils import get_class, get_object, instantiate
from omegaconf import OmegaConf

from worldmodel import cli
from worldmodel.cli import VERBS, compose
from worldmodel.configs import schema
from worldmodel.encoder import VideoEncoder
from worldmodel.planners import Planner

CONFIGS = Path(schema.__file__).parent
CHOICES = sorted(
    (path.parent.name, path.stem)
    for group in ("encoder", "objective", "predictor", "planner")
    for path in (CONFIGS / group).glob("*.yaml")
)
GIVEN = {  # what the code gives a choice beside what it says itself
    "objective": lambda: {"encoder": VideoEncoder(depth=12), "grid_size": (8, 8)},
    "predictor": lambda: {"latent_dim": 32, "grid_size": (4, 4)},
}
VERB_OF_GROUP = {
    "encoder": "pretrain",
    "objective": "pretrain",
    "predictor": "train",
    "planner": "evaluate",
}


def targets(node: Any) -> list[dict[str, Any]]:
    """Returns every mapping with a `_target_` inside a YAML document."""
    if not isinstance(node, dict):
        return []
    below = [found for value in node.values() for found in targets(value)]
    return [node, *below] if "_target_" in node else below


@pytest.mark.parametrize("group, name", CHOICES)
def test_every_key_of_a_choice_is_an_argument_of_its_class(group: str, name: str) -> None:
    document = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    found = targets(document)
    assert found
    for node in found:
        known = inspect.signature(get_object(node["_target_"])).parameters
        given = set(node) - {"_target_", "_partial_"}
        assert given <= set(known)
        if not node.get("_partial_"):
            required = {n for n, p in known.items() if p.default is inspect.Parameter.empty}
            assert required <= given


@pytest.mark.parametrize("group, name", CHOICES)
def test_every_choice_composes_and_builds_what_it_says(group: str, name: str) -> None:
    needed = ["encoder_checkpoint=x"] if group == "predictor" else []
    config = compose(VERB_OF_GROUP[group], [f"{group}={name}", *needed])
    with torch.device("meta"):  # no memory: one of them has 305 million parameters
        if group == "planner":
            built = instantiate(config.planner.search)
            assert isinstance(built, Planner)
        else:
            built = instantiate(config[group], _partial_=True)
            assert isinstance(built, partial)
            module = built(**GIVEN.get(group, lambda: {})())
            assert isinstance(module, get_class(config[group]._target_))
            for key in set(config[group]) - {"_target_", "_partial_"}:
                assert getattr(module, key) == config[group][key]


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "planner"])
def test_every_planner_says_how_the_controller_uses_it(name: str) -> None:
    from worldmodel.closed_loop import AXES, PlannerSettings

    config = compose("evaluate", [f"planner={name}"])
    # The memory budget becomes the search's `chunk_size`, a calibration part of the gate.
    assert set(config.planner) - {"memory_mib", "gate_calibration"} == {
        field.name for field in dataclasses.fields(PlannerSettings)
    }
    assert set(config.planner.axes) <= set(AXES)
    assert config.planner.limits is None or len(config.planner.limits) == len(AXES)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_of_settings_belongs_to_a_verb_and_starts_with_a_comment(path: Path) -> None:
    assert path.stem in VERBS
    assert path.read_text().startswith(f"# worldmodel {path.stem}: ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes_and_survives_a_round_trip_through_yaml(verb: str) -> None:
    config = compose(verb, [])
    assert OmegaConf.create(OmegaConf.to_yaml(config)) == config


# What each verb calls, and settings of other values than the defaults, so that each can be seen to
# arrive. `run`, `threads` and the groups are used on the way.
OPEN_SOURCE = "worldmodel.data.source.open_source"
CALLS = {
    "collect": ["worldmodel.data.collect.collect"],
    "convert": [OPEN_SOURCE, "worldmodel.data.convert.convert"],
    "transcode": ["worldmodel.data.transcode.transcode"],
    "encode": [OPEN_SOURCE, "worldmodel.encode.latent_job"],
    "pretrain": [OPEN_SOURCE, "worldmodel.pretrain.pretrain"],
    "train": [OPEN_SOURCE, "worldmodel.encode.latent_job", "worldmodel.train.train"],
    "plan": ["worldmodel.plan.plan"],
    "evaluate": ["worldmodel.evaluate.evaluate"],
    "demo": ["worldmodel.evaluate.evaluate"],
    "validate": [OPEN_SOURCE, "worldmodel.validate.validate"],
}
ON_THE_WAY = {"run", "threads", "planner", "checkpoint", "encoder", "predictor", "control_hz"}
ON_THE_WAY |= {"objective", "encoder_blocks"}
ON_THE_WAY |= {"verify"}  # another thing to do than the rest is for
ON_THE_WAY |= {"evaluate", "stages", "stage", "knobs"}  # settings of other verbs
# Settings that the code has by another name.
RENAMED = {
    "collect": {"out": "path"},
    "convert": {"data": "path", "to": "format"},
    "transcode": {"data": "source"},
    "encode": {
        "data": "path",
        "encoder_checkpoint": "encoder",
        "encode_precision": "precision",
        "latent_dtype": "dtype",
    },
    "pretrain": {"data": "path"},
    "train": {
        "data": "path",
        "encoder_checkpoint": "encoder",
        "encode_precision": "precision",
    },
    "demo": {"tasks": "task"},
    "validate": {"data": "path"},
}
OTHER_VALUES: dict[str, Any] = {
    "behaviours": {"scripted": 0.25, "noisy": 0.5, "explore": 0.125},
    "variations": {"none": 0.5, "mild": 0.25},
    "variation": "mild",
    "precision": "float32",
    "encode_precision": "bfloat16",
    "distance": "l1",
    "collapse": {
        "min_effective_rank": 1.5,
        "min_std": 0.5,
        "max_cosine": 0.75,
        "patience": 5,
        "first_step": 7,
    },
    "frames_in_memory": 123,
    "steps": 7,
    "cameras": ["exterior", "wrist"],
    "backends": ["ray"],
    "backend": "ray",
    "strides": [1, 5],
    "schedule": {
        "name": "wsd",
        "peak": 0.5,
        "start": 0.25,
        "final": 0.125,
        "steps": 77,
        "warmup_steps": 7,
        "decay_steps": 5,
    },
    "workers": 3,
    "executor": "ray",
    "goal": "goal.png",
    "dtype": "float16",
    "hz": 7.5,
    "model_hz": 2.5,
    "image_size": [48, 64],
    "cache": "other_cache",
    "rank": 1,
    "state_batch_size": 9,
    "world": 4,
    "height": 48,
    "width": 64,
    "confirmed": True,
    "baselines": False,
    "legacy_rollout": True,
    "standardise": False,
    "activation_checkpointing": True,
    "compile": True,
    "fsdp": True,
    "trackers": ["wandb"],
    "lora_rank": 4,
    "limits": [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 1.5],
}


class Called(Exception):  # noqa: N818  (no error: it says that a place was reached)
    """The code behind a verb was reached."""


def other_value(name: str, value: Any) -> Any:
    """Returns a value of the same type that is not the default."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(value, int | float):
        return value + 1
    return f"other_{name}"


def as_override(name: str, value: Any) -> list[str]:
    if name in ("behaviours", "variations") or (name == "tasks" and isinstance(value, dict)):
        # An open mapping: replaced whole.
        return [f"{name}={{{','.join(f'{key}:{item}' for key, item in value.items())}}}"]
    if isinstance(value, dict):
        return [f"{name}.{key}={item}" for key, item in value.items()]
    if isinstance(value, list):
        return [f"{name}=[{','.join(map(str, value))}]"]
    return [f"{name}={value}"]


def plain(value: Any) -> Any:
    """Returns a value as YAML would write it, so that paths, tuples and dataclasses compare."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


@pytest.mark.parametrize("verb", CALLS)
def test_every_setting_reaches_the_code(verb: str, monkeypatch, tmp_path: Path) -> None:
    recorders = {}
    for place in CALLS[verb]:
        module, _, function = place.rpartition(".")
        real = inspect.signature(getattr(import_module(module), function))
        recorders[place] = (real, MagicMock())
        monkeypatch.setattr(place, recorders[place][1])
    last = recorders[CALLS[verb][-1]][1]
    job = last.return_value if verb == "encode" else None
    (job.build if job else last).side_effect = Called
    world = MagicMock()
    world.predictor.num_views = 1
    monkeypatch.setattr("worldmodel.checkpoint.load", lambda path: world)
    monkeypatch.setattr("worldmodel.checkpoint.load_default", lambda: world)
    monkeypatch.setattr("worldmodel.checkpoint.load_encoder", lambda path: (str(path), 128))
    monkeypatch.setattr("worldmodel.checkpoint.read_config", MagicMock())
    config = compose(verb, [])
    settings = {
        str(name): other_value(str(name), None if OmegaConf.is_missing(config, name) else value)
        for name, value in config.items_ex(resolve=False)
        if name not in ON_THE_WAY
    }
    if isinstance(config.get("image_size"), int) or verb == "pretrain":
        settings["image_size"] = 96
    if "tasks" in settings:
        settings["tasks"] = {"lift": 0.5, "push": 0.25} if verb == "collect" else ["lift"]
    overrides = [word for name, value in settings.items() for word in as_override(name, value)]
    run = [f"run={tmp_path / 'run'}"] if "run" in config else []
    with pytest.raises(Called):
        cli.main([verb, *overrides, *run])

    reached = [
        signature.bind(*call.args, **call.kwargs).arguments
        for signature, recorder in recorders.values()
        for call in recorder.call_args_list
    ]
    makers = [recorder.return_value for place, (_, recorder) in recorders.items() if "job" in place]
    reached += [call.kwargs for maker in makers for call in maker.build.call_args_list]
    clusters = [arguments["cluster"] for arguments in reached if arguments.get("cluster")]
    reached += [{"executor": "ray", **vars(cluster)} for cluster in clusters]
    starts = [arguments["start"] for arguments in reached if arguments.get("start")]
    reached += [{"finetune": start.name} for start in starts]
    for name, value in settings.items():
        known = RENAMED.get(verb, {}).get(name, name)
        found = [plain(arguments[known]) for arguments in reached if known in arguments]
        if name == "latent_dtype":  # `dtype` is also the type of the stored model
            found += [plain(a["dtype"]) for a in reached if "dtype" in a]
        if (verb, name) == ("demo", "tasks"):  # one call each
            value = value[0]
        assert value in found, f"{name}: {found}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_schema_explains_itself(verb: str) -> None:
    assert getattr(schema, f"{verb.capitalize()}Config").__doc__


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda p: p.stem
)
def test_an_experiment_changes_the_settings_of_the_verb_it_names(path: Path) -> None:
    verb = path.read_text().splitlines()[1].split()[2]
    settings = yaml.safe_load(path.read_text())
    config = OmegaConf.to_container(compose(verb, [f"experiment={path.stem}"]), resolve=True)
    assert config == OmegaConf.to_container(compose(verb, [f"+experiment={path.stem}"]))
    assert isinstance(config, dict)
    for choice in settings.pop("defaults", []):  # of groups
        ((override, name),) = choice.items()
        group = override.removeprefix("override /")
        chosen = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
        assert {**chosen, **settings.pop(group, {})} == config[group]
    for name, value in settings.items():
        if isinstance(value, dict):
            assert value.items() <= config[name].items()
        else:
            assert config[name] == value
