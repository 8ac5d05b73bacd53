"""benchmark, sweep, recipe: many calls of the other verbs, resumable, on one machine or many."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.verbs.shared import Call

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.invocations import Executor, Outcome


def _executor(config: "DictConfig", *, show: bool) -> "Executor":
    from worldmodel.invocations import Executor

    return Executor(
        kind=config.executor,
        workers=config.workers,
        minutes=config.minutes,
        cpus=config.cpus,
        gpus=config.gpus,
        address=config.address,
        show=show,
    )


def _container(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    content = {} if config is None else OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _goes_on(outcome: "Outcome") -> int:
    """Returns the exit status, and says what to do if it is not 0."""
    for folder in outcome.failed:
        print(f"failed: {folder / 'log.txt'}")
    if outcome.exit_status == 3:
        print("not finished: run the same command again, it goes on")
    return outcome.exit_status


def benchmark(config: "DictConfig", *, call: Call) -> int:
    """Measures tasks and variations; status 1 if one failed, 3 if some are to be done."""
    from worldmodel.benchmark import benchmark, read_targets, worst_first

    print(f"writing to {config.run}", flush=True)
    result = benchmark(
        checkpoint=config.checkpoint,
        tasks=config.tasks,
        variations=config.variations,
        settings={"episodes": config.episodes, "seed": config.seed, **_container(config.evaluate)},
        run=Path(config.run),
        executor=_executor(config, show=config.workers == 1),
        targets=read_targets(),
    )
    print((Path(config.run) / "benchmark.md").read_text())
    print(f"look at {Path(config.run) / 'benchmark.html'}")
    if result.rows:
        print(f"worst first: {worst_first(result.rows)}")
    status = _goes_on(result.outcome)
    met = [verdict.met for verdict in result.verdicts]
    print(
        f"targets: {met.count(True)} met, {met.count(False)} missed, {met.count(None)} unmeasured"
    )
    return status


def sweep(config: "DictConfig", *, call: Call) -> int:
    """Measures rows beside a base; status 1 if something failed, 3 if something is to be done."""
    import worldmodel.configs
    from worldmodel.sweep import sweep

    packaged = Path(worldmodel.configs.__path__[0]) / "experiment" / "ablation"
    print(f"writing to {config.run}", flush=True)
    result = sweep(
        folder=packaged if config.folder is None else Path(config.folder),
        patterns=config.experiments,
        run=Path(config.run),
        executor=_executor(config, show=False),
        checkpoint=config.checkpoint,
        knobs=_container(config.knobs),
    )
    print((Path(config.run) / "sweep.md").read_text())
    status = _goes_on(result.outcome)
    measured = {comparison.row for comparison in result.comparisons}
    print(f"{len(measured)} rows measured, {len(result.missing)} missing: {config.run}/sweep.md")
    return status


def recipe(config: "DictConfig", *, call: Call) -> int:
    """Makes weights in stages; status 1 if one failed, 3 if some are to be done."""
    from worldmodel.recipe import measured, run_recipe

    print(f"writing to {config.run}", flush=True)
    run = Path(config.run)
    outcome = run_recipe(
        stages=_container(config.stages),
        run=run,
        executor=_executor(config, show=config.workers == 1),
        stage=config.stage,
    )
    status = _goes_on(outcome)
    done = sum(state == "done" for state in outcome.statuses.values())
    print(f"{done} of {len(outcome.statuses)} stages done. {measured(outcome)}".rstrip())
    return status
