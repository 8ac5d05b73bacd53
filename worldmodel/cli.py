"""The `worldmodel` program: `worldmodel <verb> [setting=value ...]`, settings in Hydra's form."""

import contextlib
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from worldmodel import verbs
from worldmodel.names import nearest
from worldmodel.verbs import Call, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS = {
    "demo": "watch the shipped world model plan a few episodes of some tasks",
    "collect": "record scripted episodes in simulation",
    "inspect": "say what recordings of any format hold, draw them, and check them",
    "convert": "write recordings of any format as another format",
    "transcode": "re-encode videos once, so that short pieces are read fast",
    "encode": "cache the latents of recordings",
    "pretrain": "train an encoder: masked prediction, next latents, two views, or the state",
    "train": "train an action-conditioned predictor on a frozen encoder",
    "plan": "plan to one goal image and show every step",
    "landscape": "draw the energy of small moves: does the model know where it should go?",
    "surprise": "score recordings by what the model did not expect, or test its physics",
    "validate": "say from held-out recordings, without a robot, whether a model will plan",
    "models": "list published models, download one, or verify a file",
    "evaluate": "measure success over episodes, beside expert, oracle, random and no policy",
    "benchmark": "evaluate every task and variation, and hold the numbers to the targets",
    "sweep": "what drives success: rows that change one thing each, beside a base",
    "recipe": "make weights, from simulation to success rates, in stages that resume",
    "serve": "answer robot-side scripts with plans to goal images, or serve a robot to planners",
    "drive": "drive an arm to a goal image; take goal images, calibrate",
    "replay": "make a recorded decision of a drive again and say why it was made",
}
_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/]*=")
GROUPS = ("encoder", "objective", "predictor", "planner", "robot", "experiment")
OPTIONS = {"serve": ("robot",), "drive": ("robot",)}  # may be written as --robot NAME, too
POSITIONAL = {
    "inspect": ("data",),
    "convert": ("data", "out"),
    "transcode": ("data", "out"),
    "models": ("action", "source"),
    "drive": ("action", "what"),
    "replay": ("recording", "step"),
}
FLAGS = {
    "evaluate": {"--json": "print metrics.json alone on standard output"},
    "demo": {"--json": "print metrics.json alone on standard output"},
    "inspect": {
        "--check": "read every frame, list what is wrong, write check.html; status 1 on errors",
        "--json": "check, and print one JSON object alone on standard output",
    },
    "drive": {
        "--dry-run": "everything but the sending, and what would have been sent",
        "--yes": "do not ask before the first motion; simulated robots only",
    },
    "validate": {"--json": "print validation.json alone on standard output"},
}
SETTING_OF_FLAG = {"--check": "check=true", "--dry-run": "dry_run=true", "--yes": "yes=true"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, 2 for a wrong input, 130 when stopped."""
    # Before torch is loaded: its threads spin for some ten microseconds and then sleep while they
    # wait. Endless spinning makes every small operation wait for a core that another program holds;
    # none makes a plan take twice as long, for it is hundreds of small operations.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("OpenGL").setLevel(logging.WARNING)  # else it reports that it is not C
    try:
        return _dispatch(words)
    except (UserError, ValueError, TypeError, KeyError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"worldmodel: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("worldmodel: stopped; the same command goes on where it was", file=sys.stderr)
        return 130


def compose(verb: str, overrides: Sequence[str]) -> "DictConfig":
    """Returns the settings of a verb with `overrides` such as `["episodes=10"]` applied.

    Raises:
        UserError: A setting, a choice or a value does not exist; the message names the nearest.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    import worldmodel.configs.schema  # noqa: F401  (registers the schemas)

    for override in overrides:
        if "=" not in override:
            raise UserError(f"expected setting=value, got {override!r}; see worldmodel {verb} -h")
    # No verb has an experiment by default, and Hydra wants a plus before what is added.
    overrides = [f"+{o}" if o.startswith("experiment=") else o for o in overrides]
    with initialize_config_module("worldmodel.configs", version_base="1.3"):
        _check_choices(overrides)
        try:
            return hydra_compose(config_name=verb, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(verb, overrides, error)) from error


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("worldmodel"))
        return 0
    from omegaconf import OmegaConf

    verb, *overrides = words
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        raise UserError(f"unknown verb {verb!r};{near} available: {', '.join(VERBS)}")
    if "-h" in overrides or "--help" in overrides:
        print(_verb_help(verb))
        return 0
    flags, overrides = take_flags(verb, name_options(verb, overrides))
    overrides += [SETTING_OF_FLAG[flag] for flag in sorted(flags) if flag in SETTING_OF_FLAG]
    config = compose(verb, name_positional(verb, overrides))
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{verb} needs {', '.join(f'{key}=...' for key in missing)}")
    command = shlex.join(["worldmodel", *words])
    if "--json" in flags:
        # Whatever anything below prints, standard output holds the JSON object alone.
        output = io.StringIO()
        with contextlib.redirect_stdout(sys.stderr):
            status = verbs.run(verb, config, call=Call(command=command, json_to=output))
        print(output.getvalue(), end="")
        return status
    return verbs.run(verb, config, call=Call(command=command, json_to=None))


def take_flags(verb: str, words: Sequence[str]) -> tuple[set[str], list[str]]:
    """Returns the flags among the words, and the other words."""
    flags = {word for word in words if word.startswith("--")}
    for flag in flags:
        if flag not in FLAGS.get(verb, {}):
            owners = [name for name, known in FLAGS.items() if flag in known]
            if owners:
                raise UserError(f"{flag} belongs to {' and '.join(owners)}, not to {verb}")
            raise UserError(f"expected setting=value, got {flag!r}; see worldmodel {verb} --help")
    return flags, [word for word in words if word not in flags]


def name_options(verb: str, words: Sequence[str]) -> list[str]:
    """Returns the words with "--robot NAME" and "--robot=NAME" as "robot=NAME"."""
    named, rest = [], iter(words)
    for word in rest:
        option, is_one_word, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and option in OPTIONS.get(verb, ()):
            value = value if is_one_word else next(rest, "")
            if not value:
                raise UserError(f"{word} needs a name: one of {', '.join(_choices(option))}")
            named.append(f"{option}={value}")
        else:
            named.append(word)
    return named


def name_positional(verb: str, words: Sequence[str]) -> list[str]:
    """Returns overrides only: paths that stand alone get the names of their settings."""
    names = list(POSITIONAL.get(verb, ()))
    overrides = []
    for word in words:
        if _OVERRIDE.match(word) or not names:
            overrides.append(word)
        else:  # Quoted, because real paths hold spaces, colons and commas.
            escaped = word.replace("'", "\\'")
            overrides.append(f"{names.pop(0)}='{escaped}'")
    return overrides


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "worldmodel: plan robot-arm motions to goal images with a learned world model",
            "",
            "usage: worldmodel <verb> [setting=value ...]",
            "",
            *lines,
            "",
            "worldmodel <verb> --help lists the settings of a verb. Settings are Hydra overrides:",
            "  worldmodel evaluate episodes=20 planner=vjepa2_cem planner.search.num_samples=400",
        ]
    )


def _verb_help(verb: str) -> str:
    from omegaconf import OmegaConf

    config = compose(verb, [])
    groups = [f"  {group}: {', '.join(_choices(group))}" for group in GROUPS if group in config]
    flags = [f"  {flag:<9} {text}" for flag, text in FLAGS.get(verb, {}).items()]
    usage = " ".join([verb, *(name.upper() for name in POSITIONAL.get(verb, ()))])
    return "\n".join(
        [
            f"worldmodel {verb}: {VERBS[verb]}",
            "",
            f"usage: worldmodel {usage} [setting=value ...]",
            *(["", "choices:", *groups] if groups else []),
            *(["", "flags:", *flags] if flags else []),
            "",
            "settings and their defaults (??? must be given):",
            "",
            OmegaConf.to_yaml(config).rstrip(),
        ]
    )


def _choices(group: str) -> list[str]:
    folder = files("worldmodel.configs").joinpath(group)
    names = [file.name for file in folder.iterdir() if file.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in names)


def _check_choices(overrides: Sequence[str]) -> None:
    """Refuses an unknown choice of a group, such as planner=cme."""
    for override in overrides:
        key, value = override.lstrip("+~").split("=", 1)
        if key in GROUPS and value != "null":
            available = _choices(key)
            if value not in available:
                near = nearest(value, available)
                raise UserError(f"unknown {key} {value!r};{near} available: {', '.join(available)}")


def _explain(verb: str, overrides: Sequence[str], error: Exception) -> str:
    """Returns one line for an error of Hydra's, with the nearest setting where a name is wrong."""
    import dataclasses

    from worldmodel.configs import schema

    fields = getattr(schema, verb.capitalize() + "Config")
    known = [field.name for field in dataclasses.fields(fields)]
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split(".", 1)[0]
        if name not in known and name != "experiment":
            near = nearest(name, known)
            return f"{verb} has no setting {name!r};{near} it has {', '.join(known)}"
    text = str(error.__cause__ or error).splitlines()[0].strip()
    return f"{text} (in: worldmodel {verb} {' '.join(overrides)}); see worldmodel {verb} --help"


if __name__ == "__main__":
    sys.exit(main())
