"""What each verb of the `worldmodel` program does with its settings; `worldmodel.cli` calls these.

Every verb first prints where it writes, and last the number that matters.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.checks.findings import Finding
    from worldmodel.data.latents import LatentCache
    from worldmodel.data.source import Source
    from worldmodel.data.validate import CheckReport
    from worldmodel.encode import LatentJob
    from worldmodel.evaluate import PlannerSettings
    from worldmodel.interfaces import Encoder
    from worldmodel.landscape import Pair
    from worldmodel.results import Evaluation
    from worldmodel.training import Schedule


class UserError(Exception):
    """A mistake in what was typed; its message is all the user sees."""


def run(verb: str, config: "DictConfig", *, json_to: TextIO | None) -> int:
    """Does what a verb is for and returns the exit status.

    Args:
        verb: One of `worldmodel.cli.VERBS`.
        config: Its settings, complete.
        json_to: Where a verb that has a result as JSON writes it, instead of printing for people.
    """
    if verb == "inspect":
        return _inspect(config, json_to=json_to)
    if verb in ("evaluate", "demo"):
        return _evaluate(config, verb, json_to=json_to)
    if verb == "transcode":
        return _transcode(config)
    if verb == "models":
        return _models(config)
    runners: dict[str, Callable[[DictConfig], None]] = {
        "collect": _collect,
        "convert": _convert,
        "encode": _encode,
        "pretrain": _pretrain,
        "train": _train,
        "plan": _plan,
        "landscape": _landscape,
    }
    runners[verb](config)
    return 0


def _open(verb: str, config: "DictConfig") -> Path:
    from omegaconf import OmegaConf

    from worldmodel.runs import open_run

    # `run` itself is left out: a run folder may be moved, and resumed by another path.
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "run"])
    run = open_run(verb, config.run, OmegaConf.to_yaml(settings, resolve=True))
    print(f"writing to {run}", flush=True)
    return run


def _source(config: "DictConfig") -> "Source":
    from worldmodel.data.source import open_source

    return open_source(config.data, format=config.format, mapping=config.mapping, hz=config.hz)


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
        f"({result.steps_per_second:.0f} steps/s); next: worldmodel inspect {config.out}"
    )


def _inspect(config: "DictConfig", *, json_to: TextIO | None) -> int:
    """Returns the exit status: 1 if a check found errors."""
    from worldmodel.data.inspect import contact_sheet, path_figure, summarise

    source = _source(config)
    run = _open("inspect", config)
    if json_to is None:
        print(summarise(source))
        contact_sheet(source, run / "contact_sheet.png")
        path_figure(source, run / "motion.png")
        print(f"look at {run / 'contact_sheet.png'} and {run / 'motion.png'}")
    if config.check or json_to is not None:
        return _check(source, run, json_to=json_to)
    print(f"{len(source)} episodes; next: the same command with --check")
    return 0


def _check(source: "Source", run: Path, *, json_to: TextIO | None) -> int:
    from worldmodel.data.check_page import write_check_page
    from worldmodel.data.validate import check

    report = check(source)
    (run / "check.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    write_check_page(report, source, run / "check.html")
    if json_to is not None:
        print(json.dumps(report.to_json()), file=json_to)
    else:
        _print_findings(report)
        print(f"look at {run / 'check.html'}")
        if report.quarantined:
            print(f"training leaves out {len(report.quarantined)} episodes with errors")
        counts = {
            severity: sum(finding.severity == severity for finding in report.findings)
            for severity in ("error", "warning")
        }
        print(f"{report.episodes} episodes, {counts['error']} errors, {counts['warning']} warnings")
    return 1 if any(finding.severity == "error" for finding in report.findings) else 0


def _print_findings(report: "CheckReport") -> None:
    """Prints one paragraph per code and severity: how often, the first cases, what to do."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    for severity in ("error", "warning", "info"):
        for (level, code), found in groups.items():
            if level != severity:
                continue
            print(f"\n{severity}: {code} ({len(found)})")
            for finding in found[:3]:
                place = "the set" if finding.episode is None else f"episode {finding.episode}"
                step = "" if finding.step is None else f", step {finding.step}"
                print(f"  {place}{step}: {finding.message}")
            if len(found) > 3:
                print(f"  ... and {len(found) - 3} more")
            print(f"  why: {found[0].why}\n  do:  {found[0].fix}")
    print()


def _convert(config: "DictConfig") -> None:
    from worldmodel.data.convert import convert

    source = _source(config)
    print(f"writing to {config.out}", flush=True)
    result = convert(
        source,
        config.out,
        format=config.to,
        image_size=None if config.image_size is None else tuple(config.image_size),
        cameras=None if config.cameras is None else tuple(config.cameras),
    )
    for episode, reason in result.quarantined.items():
        print(f"left out: episode {episode}: {reason}")
    print(
        f"{result.converted} episodes converted, {result.found} were there already, "
        f"{len(result.quarantined)} left out; next: worldmodel inspect {config.out}"
    )


def _transcode(config: "DictConfig") -> int:
    """Returns the exit status: 1 if a video could not be transcoded."""
    from worldmodel.data.transcode import transcode

    print(f"writing to {config.out}", flush=True)
    result = transcode(
        config.data,
        config.out,
        height=config.height,
        width=config.width,
        hz=config.hz,
        gop=config.gop,
        crf=config.crf,
        workers=config.workers,
    )
    for file, reason in result.failed:
        print(f"left out: {file}: {reason}")
    if result.header_rates:
        rates = ", ".join(f"{rate:g}" for rate in result.header_rates)
        print(f"rates taken over from headers: {rates} Hz; if they are not true, say hz=...")
    print(
        f"{len(result.done)} videos transcoded, {len(result.skipped)} were there already, "
        f"{len(result.failed)} left out"
    )
    return 1 if result.failed else 0


def _encode(config: "DictConfig") -> None:
    import os

    from worldmodel.data.latent_jobs import rank_and_world

    job, _ = _latent_job(config)
    if config.verify:
        checked = job.verify(sample=config.verify)
        print(
            f"{checked.episodes} episodes encoded again, {checked.rows} rows: largest difference "
            f"{checked.max_difference:.2g}, root mean square {checked.rms_difference:.2g}"
        )
        return
    rank, world = rank_and_world(os.environ)
    cache = _build_latents(
        job,
        config,
        rank=rank if config.rank is None else config.rank,
        world=world if config.world is None else config.world,
    )
    if cache is None:
        print("this share is done, others are not; whoever finishes last completes the cache")
    else:
        print(f"latents of {len(cache)} episodes in {cache.path}")


def _load_encoder(source: str) -> "tuple[Encoder, int, dict[str, Any]]":
    """Returns an encoder, its image size and where it comes from: ours, or a published one."""
    from worldmodel import checkpoint, hub

    if _is_published(source):
        loaded = hub.load_encoder(source)
        return loaded.encoder, loaded.image_size, dict(loaded.provenance)
    encoder, image_size = checkpoint.load_encoder(source)
    return encoder, image_size, checkpoint.read_config(source)["provenance"]


def _is_published(source: str) -> bool:
    """Whether this names a published model, or a file or folder of one, and not one of ours."""
    from worldmodel import hub

    path = Path(source)
    if path.is_dir():
        return (path / "model.safetensors").is_file()
    return path.is_file() or source in [model.name for model in hub.MODELS]


def _latent_job(config: "DictConfig") -> "tuple[LatentJob, dict[str, Any]]":
    """Returns the job that the settings describe, and where its encoder comes from."""
    from worldmodel.encode import latent_job

    encoder, image_size, provenance = _load_encoder(config.encoder_checkpoint)
    job = latent_job(
        encoder=encoder,
        image_size=image_size,
        source=_source(config),
        cache=Path(config.cache),
        camera=config.camera,
        merge=config.merge,
        device=config.device,
        crop=config.crop,
        model_hz=config.model_hz,
        dtype=config.latent_dtype,
        pool=config.pool,
    )
    return job, provenance


def _build_latents(
    job: "LatentJob", config: "DictConfig", *, rank: int = 0, world: int = 1
) -> "LatentCache | None":
    print(f"writing latents to {job.folder}", flush=True)
    return job.build(
        rank=rank,
        world=world,
        workers=config.workers,
        max_quarantined=config.max_quarantined,
        confirm_above_gib=config.confirm_above_gib,
        confirmed=config.confirmed,
    )


def _pretrain(config: "DictConfig") -> None:
    from worldmodel.pretrain import pretrain

    source = _source(config)
    _set_threads(config)
    run = _open("pretrain", config)
    result = pretrain(
        build_encoder=_instantiate(config.encoder, _partial_=True),
        source=source,
        run=run,
        camera=config.camera,
        image_size=config.image_size,
        crop=config.crop,
        model_hz=config.model_hz,
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

    job, encoder_provenance = _latent_job(config)
    _set_threads(config)
    run = _open("train", config)
    latents = _build_latents(job, config)
    assert latents is not None  # one process has the whole share
    result = train(
        build_predictor=_instantiate(config.predictor),
        job=job,
        latents=latents,
        encoder_provenance=encoder_provenance,
        run=run,
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


def _planner(config: "DictConfig", world: Any) -> "PlannerSettings":
    from worldmodel.evaluate import PlannerSettings

    planner = config.planner
    chunk_size = planner.search.chunk_size
    if planner.memory_mib is not None:
        if chunk_size is not None:
            raise UserError("planner.memory_mib and planner.search.chunk_size exclude each other")
        steps = planner.num_context - 1 + planner.search.horizon
        chunk_size = world.plans_within(planner.memory_mib, steps=steps)
    return PlannerSettings(
        search=_instantiate(planner.search, chunk_size=chunk_size),
        axes=tuple(planner.axes),
        limits=None if planner.limits is None else tuple(planner.limits),
        warm_start=planner.warm_start,
        replan_every=planner.replan_every,
        num_context=planner.num_context,
        deadline_ms=planner.deadline_ms,
    )


def _load_world(config: "DictConfig") -> Any:
    from worldmodel import hub
    from worldmodel.checkpoint import load, load_default

    _set_threads(config)
    if config.checkpoint is None:
        return load_default()
    if _is_published(config.checkpoint):
        return hub.load(config.checkpoint)
    return load(config.checkpoint)


def _plan(config: "DictConfig") -> None:
    from worldmodel.plan import plan

    _check_backends(config.backend)
    world = _load_world(config)
    settings = _planner(config, world)
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


def _models(config: "DictConfig") -> int:
    """Returns the exit status: 1 if a file is not what it should be."""
    from worldmodel import hub
    from worldmodel.names import unknown

    actions = ("list", "download", "verify")
    if config.action not in actions:
        raise UserError(unknown("action", config.action, actions))
    if config.action == "list":
        print(hub.list_models())
        return 0
    if config.source is None:
        raise UserError(f"models {config.action} needs a name or a path; see worldmodel models")
    if config.action == "download":
        print(hub.fetch(hub.find(config.source)))
        return 0
    report = hub.verify(config.source, against=config.against)
    print(report)
    return 0 if report.ok else 1


def _landscape(config: "DictConfig") -> None:
    from worldmodel.landscape import energy_landscape, fit_pair, summary, write_landscape
    from worldmodel.training import select_device

    if config.pair is not None and config.data is not None:
        raise UserError("landscape takes pair=... or data=..., not both")
    world = _load_world(config).to(select_device(config.device))
    pair = fit_pair(_landscape_pair(config, world), world)
    run = _open("landscape", config)
    landscape = energy_landscape(
        world, pair.frames, pair.proprio, limit=config.limit, points=config.points
    )
    model = "shipped model" if config.checkpoint is None else Path(config.checkpoint).name
    files = write_landscape(landscape, run, model=model, pair=pair.name)
    print(f"look at {' and '.join(map(str, files))}")
    print(pair.name)
    print(summary(landscape))


def _landscape_pair(config: "DictConfig", world: Any) -> "Pair":
    from worldmodel.landscape import read_pair, recorded_pair, simulated_pair

    if config.pair is not None:
        return read_pair(config.pair)
    if config.data is not None:
        first, second = config.rows
        return recorded_pair(_source(config), config.episode, (first, second), camera=config.camera)
    _check_backends(config.backend)
    x, y, z = config.move
    return simulated_pair(
        image_size=world.image_size,
        seed=config.seed,
        move=(x, y, z),
        camera=config.camera,
        backend=config.backend,
        control_hz=world.control_hz or 4.0,
    )


def _evaluate(config: "DictConfig", verb: str, *, json_to: TextIO | None) -> int:
    """Measures; `demo` is the same with other settings."""
    from omegaconf import OmegaConf

    from worldmodel.evaluate import evaluate

    _check_backends(config.backend)
    world = _load_world(config)
    settings = _planner(config, world)
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
    if json_to is None:
        _print_evaluation(run, evaluation, verb)
    else:
        print((run / "metrics.json").read_text(), end="", file=json_to)
    return 0


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
