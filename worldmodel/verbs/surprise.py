"""surprise: how unlike the model's expectation recordings, or impossible episodes, are."""

from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.verbs.shared import (
    Call,
    UserError,
    check_backends,
    load_world,
    open_folder,
    open_recordings,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


def surprise(config: "DictConfig", *, call: Call) -> int:
    """Scores recordings, measures the physics test, or calibrates; status 1 if one is flagged."""
    from worldmodel.checkpoint import WATCH_CHECKPOINT
    from worldmodel.names import unknown
    from worldmodel.surprise import calibrate
    from worldmodel.surprise_calibration import load_calibration
    from worldmodel.training import select_device

    if config.test not in (None, "physics"):
        raise UserError(unknown("test", config.test, ("physics",)))
    if (config.test is None) == (config.data is None):
        raise UserError("surprise takes data=... or test=physics")
    if config.calibrate and config.data is None:
        raise UserError("calibrate=true needs data=...: clean recordings held out of training")
    world = load_world(config, shipped=WATCH_CHECKPOINT).to(select_device(config.device))
    path = _calibration_path(config)
    if config.calibrate:
        print(f"writing to {path}", flush=True)
        found = calibrate(world, open_recordings(config), camera=config.camera)
        found.save(path)
        print(f"99 % line of an episode at {found.threshold(steps=found.steps):.2f}")
        return 0
    calibration = load_calibration(path, world=world, camera=config.camera)
    run = open_folder("surprise", config)
    if config.test is not None:
        from worldmodel.intuitive_physics import measure_physics, physics_table

        check_backends(config.backend)
        result = measure_physics(
            world=world,
            calibration=calibration,
            run=run,
            task=config.task,
            behaviour=config.behaviour,
            pairs=config.pairs,
            steps=config.steps,
            seed=config.seed,
            backend=config.backend,
        )
        print(physics_table(result))
        return 0
    from worldmodel.surprise_page import score_recordings, surprise_table

    ranked = score_recordings(
        world, calibration, open_recordings(config), run, pictures=config.pictures
    )
    flagged = sum(episode.flagged for episode in ranked.values())
    print(surprise_table(ranked))
    print(f"{flagged} of {len(ranked)} episodes flagged")
    return int(flagged > 0)


def _calibration_path(config: "DictConfig") -> Path:
    from worldmodel.checkpoint import SHIPPED, WATCH_CHECKPOINT, folder_of
    from worldmodel.surprise_calibration import CALIBRATION_FILE

    if config.calibration is not None:
        return Path(config.calibration)
    folder = WATCH_CHECKPOINT if config.checkpoint is None else folder_of(config.checkpoint)
    if config.calibrate and folder.resolve() in [one.resolve() for one in SHIPPED.values()]:
        raise UserError("say calibration=FILE: the shipped model's folder is not written to")
    if not folder.is_dir():
        raise UserError(
            f"{config.checkpoint} is no folder of a model of ours; say calibration=FILE"
        )
    return folder / CALIBRATION_FILE
