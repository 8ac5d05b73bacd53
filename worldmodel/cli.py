"""The `worldmodel` program: `worldmodel <verb> [setting=value ...]`, settings in Hydra's form."""

import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.evaluate import PlannerSettings
    from worldmodel.results import Evaluation
    from worldmodel.training import Schedule

VERBS = {
    "demo": "watch the shipped world model reach a few goal images",
    "collect": "record scripted episodes in simulation",
    "inspect": "say what is in an episode store, and draw it",
    "encode": "cache the latents of an episode store",
    "pretrain": "train an encoder by masked latent prediction",
    "train": "train an action-conditioned predictor on a frozen encoder",
    "plan": "plan to one goal image and show every step",
    "evaluate": "measure success over episodes, beside random and do-nothing policies",
}
GROUPS = ("encoder", "predictor", "planner", "experiment")
WITH_JSON = ("evaluate", "demo")


class UserError(Exception):
    """A mistake in what was typed; its message is all the user sees."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, 2 for a wrong input, 130 when stopped."""
    # Before torch is loaded: its threads sleep while they wait. Spinning, the default, makes every
    # small operation wait for a core that another program holds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    verb, *overrides = words
    if verb not in VERBS:
        near = _did_you_mean(verb, VERBS)
        raise UserError(f"unknown verb {verb!r};{near} available: {', '.join(VERBS)}")
    if "-h" in overrides or "--help" in overrides:
        print(_verb_help(verb))
        return 0
    as_json = "--json" in overrides
    if as_json and verb not in WITH_JSON:
        raise UserError(f"--json belongs to {' and '.join(WITH_JSON)}, not to {verb}")
    overrides = [word for word in overrides if word != "--json"]

    from omegaconf import OmegaConf

    config = compose(verb, overrides)
    missing = [key for key in config if OmegaConf.is_missing(config, key)]
    if missing:
        raise UserError(f"{verb} needs {', '.join(f'{key}=...' for key in missing)}")
    runners: dict[str, Callable[[DictConfig], None]] = {
        "collect": _collect,
        "inspect": _inspect,
        "encode": _encode,
        "pretrain": _pretrain,
        "train": _train,
        "plan": _plan,
    }
    if verb in runners:
        runners[verb](config)
    elif as_json:
        # Whatever anything below prints, standard output holds the JSON object alone.
        with contextlib.redirect_stdout(sys.stderr):
            run, _ = _evaluate(config, verb)
        print((run / "metrics.json").read_text(), end="")
    else:
        run, evaluation = _evaluate(config, verb)
        _print_evaluation(run, evaluation, verb)
    return 0


def _open(verb: str, config: "DictConfig") -> Path:
    from omegaconf import OmegaConf

    from worldmodel.runs import open_run

    # `run` itself is left out: a run folder may be moved, and resumed by another path.
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "run"])
    run = open_run(verb, config.run, OmegaConf.to_yaml(settings, resolve=True))
    print(f"writing to {run}", flush=True)
    return run


def _set_threads(config: "DictConfig") -> None:
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _instantiate(config: "DictConfig", **arguments: Any) -> Any:
    """Builds what a group names; what its class refuses is a mistake of the user's."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        raise UserError(str(error.__cause__ or error)) from error


def _check_backends(*names: str) -> None:
    """Says before anything is written that a renderer does not work here."""
    from worldmodel.envs.cameras import choose_backend

    for name in names:
        if name == "auto":
            continue
        try:
            choose_backend(name)  # type: ignore[arg-type]  (an unknown name is refused there)
        except RuntimeError as error:
            raise UserError(str(error)) from error


def _schedule(config: "DictConfig") -> "Schedule":
    from worldmodel.training import Schedule

    return Schedule(**config.schedule)


def _collect(config: "DictConfig") -> None:
    from worldmodel.data.collect import collect

    _check_backends(*config.backends)
    print(f"writing to {config.out}", flush=True)
    result = collect(
        config.out,
        episodes=config.episodes,
        task=config.task,
        steps=config.steps,
        behaviours=None if config.behaviours is None else dict(config.behaviours),
        seed=config.seed,
        image_size=config.image_size,
        cameras=tuple(config.cameras),
        backends=tuple(config.backends),
        workers=config.workers,
    )
    print(
        f"{result.collected} episodes recorded, {result.found} were there already "
        f"({result.steps_per_second:.0f} steps/s); next: worldmodel inspect data={config.out}"
    )


def _inspect(config: "DictConfig") -> None:
    from worldmodel.data.inspect import contact_sheet, path_figure, summarise
    from worldmodel.data.store import EpisodeStore

    store = EpisodeStore(config.data)
    run = _open("inspect", config)
    summary = summarise(store)
    print(summary)
    contact_sheet(store, run / "contact_sheet.png")
    path_figure(store, run / "motion.png")
    print(f"look at {run / 'contact_sheet.png'} and {run / 'motion.png'}")
    print(f"{summary.episodes} episodes, {len(summary.problems)} problems")


def _encode(config: "DictConfig") -> None:
    from worldmodel.checkpoint import load_encoder
    from worldmodel.encode import encode

    print(f"writing to {config.cache}", flush=True)
    encoder, _ = load_encoder(config.encoder_checkpoint)
    cache = encode(
        encoder=encoder,
        data=Path(config.data),
        cache=Path(config.cache),
        camera=config.camera,
        merge=config.merge,
        device=config.device,
    )
    print(f"latents of {len(cache)} episodes in {cache.path}")


def _pretrain(config: "DictConfig") -> None:
    from worldmodel.pretrain import pretrain

    _set_threads(config)
    run = _open("pretrain", config)
    result = pretrain(
        build_encoder=_instantiate(config.encoder, _partial_=True),
        data=Path(config.data),
        run=run,
        camera=config.camera,
        clip_frames=config.clip_frames,
        levels=list(config.levels),
        predictor_dim=config.predictor_dim,
        predictor_depth=config.predictor_depth,
        predictor_heads=config.predictor_heads,
        context_loss_weight=config.context_loss_weight,
        ema=(config.ema[0], config.ema[1]),
        schedule=_schedule(config),
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        device=config.device,
        log_every=config.log_every,
        save_every=config.save_every,
    )
    print(
        f"curves: {run / 'curves.png'}; next: worldmodel train encoder_checkpoint={result.encoder}"
    )
    print(
        f"loss {result.loss:.4f}; a linear probe places the hand within "
        f"{result.probe_error_cm:.2f} cm on held-out episodes"
    )


def _train(config: "DictConfig") -> None:
    from worldmodel.train import train

    _set_threads(config)
    run = _open("train", config)
    result = train(
        build_predictor=_instantiate(config.predictor),
        data=Path(config.data),
        encoder=Path(config.encoder_checkpoint),
        cache=Path(config.cache),
        run=run,
        camera=config.camera,
        merge=config.merge,
        window=config.window,
        strides=list(config.strides),
        rollout_steps=config.rollout_steps,
        schedule=_schedule(config),
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        device=config.device,
        log_every=config.log_every,
        validate_every=config.validate_every,
        dtype=config.dtype,
        save_every=config.save_every,
    )
    print(f"curves: {run / 'curves.png'}; next: worldmodel evaluate checkpoint={result.checkpoint}")
    print(
        f"held-out L1 {result.validation_loss:.4f} (no change {result.copy_loss:.4f}, "
        f"wrong actions {result.shuffled_loss:.4f})"
    )


def _planner(config: "DictConfig") -> "PlannerSettings":
    from worldmodel.evaluate import PlannerSettings

    planner = config.planner
    return PlannerSettings(
        search=_instantiate(planner.search),
        axes=tuple(planner.axes),
        limits=None if planner.limits is None else tuple(planner.limits),
        warm_start=planner.warm_start,
        replan_every=planner.replan_every,
        num_context=planner.num_context,
        deadline_ms=planner.deadline_ms,
    )


def _load_world(config: "DictConfig") -> Any:
    from worldmodel.checkpoint import load, load_default

    _set_threads(config)
    return load_default() if config.checkpoint is None else load(config.checkpoint)


def _plan(config: "DictConfig") -> None:
    from worldmodel.plan import plan

    _check_backends(config.backend)
    world = _load_world(config)
    settings = _planner(config)
    run = _open("plan", config)
    episode = plan(
        world=world,
        settings=settings,
        run=run,
        task=config.task,
        goal=None if config.goal is None else Path(config.goal),
        steps=config.steps,
        seed=config.seed,
        camera=config.camera,
        backend=config.backend,
        device=config.device,
    )
    print(f"look at {run / 'episode.mp4'} and {run / 'filmstrip.png'}")
    if config.goal is None:
        print(
            f"{'reached' if episode.success else 'not reached'}: "
            f"{100 * episode.distances[-1]:.1f} cm from the goal"
        )
    else:
        print(f"energy to the goal image {episode.energies[0]:.3f} -> {episode.energies[-1]:.3f}")


def _evaluate(config: "DictConfig", verb: str) -> "tuple[Path, Evaluation]":
    from omegaconf import OmegaConf

    from worldmodel.evaluate import evaluate

    _check_backends(config.backend)
    world = _load_world(config)
    settings = _planner(config)
    run = _open(verb, config)
    description = OmegaConf.to_container(config, resolve=True)
    assert isinstance(description, dict)
    description.pop("run")
    evaluation = evaluate(
        world=world,
        settings=settings,
        run=run,
        task=config.task,
        episodes=config.episodes,
        steps=config.steps,
        seed=config.seed,
        camera=config.camera,
        backend=config.backend,
        device=config.device,
        videos=config.videos,
        description={str(key): value for key, value in description.items()},
    )
    return run, evaluation


def _print_evaluation(run: Path, evaluation: "Evaluation", verb: str) -> None:
    numbers = json.loads((run / "metrics.json").read_text())
    print(
        f"\n{'policy':<12} {'reached':>9} {'rate':>6}  {'95 % interval':<15} {'final, median':>13}"
    )
    for result in (evaluation.planner, *evaluation.baselines):
        low, high = result.interval
        rates = numbers if result is evaluation.planner else numbers["baselines"][result.name]
        print(
            f"{result.name:<12} {result.successes:>3} of {len(result.episodes):<3}"
            f"{result.success_rate:>6.0%}  {low:>5.0%} to {high:<5.0%} "
            f"{rates['final_distance_cm']['p50']:>12.1f} cm"
        )
    times = numbers["plan_ms"]
    print(f"planning time per step: {times['p50']:.0f} ms median, {times['p95']:.0f} ms p95")
    print(f"report: {run / 'report.html'}")
    if verb == "demo":
        print("next: worldmodel evaluate task=reach episodes=50   (or: worldmodel plan seed=7)")
    planner = evaluation.planner
    print(f"reached {planner.successes} of {len(planner.episodes)} goal images")


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
    json_flag = (
        ["", "--json prints metrics.json alone on standard output"] if verb in WITH_JSON else []
    )
    return "\n".join(
        [
            f"worldmodel {verb}: {VERBS[verb]}",
            *(["", "choices:", *groups] if groups else []),
            *json_flag,
            "",
            "settings and their defaults (??? must be given):",
            "",
            OmegaConf.to_yaml(config).rstrip(),
        ]
    )


def _choices(group: str) -> list[str]:
    folder = files("worldmodel.configs").joinpath(group)
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


def _check_choices(overrides: Sequence[str]) -> None:
    """Refuses an unknown choice of a group, such as planner=cme."""
    for override in overrides:
        key, value = override.lstrip("+~").split("=", 1)
        if key in GROUPS:
            available = _choices(key)
            if value not in available:
                near = _did_you_mean(value, available)
                raise UserError(f"unknown {key} {value!r};{near} available: {', '.join(available)}")


def _explain(verb: str, overrides: Sequence[str], error: Exception) -> str:
    """Returns one line for an error of Hydra's, with the nearest setting where a name is wrong."""
    import dataclasses

    from worldmodel.configs import schema

    fields = getattr(schema, f"{'evaluate' if verb == 'demo' else verb}".capitalize() + "Config")
    known = [field.name for field in dataclasses.fields(fields)]
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split(".", 1)[0]
        if name not in known:
            near = _did_you_mean(name, known)
            return f"{verb} has no setting {name!r};{near} it has {', '.join(known)}"
    text = str(error.__cause__ or error).splitlines()[0].strip()
    return f"{text} (in: worldmodel {verb} {' '.join(overrides)}); see worldmodel {verb} --help"


def _did_you_mean(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" did you mean {near[0]!r}?" if near else ""


if __name__ == "__main__":
    sys.exit(main())
