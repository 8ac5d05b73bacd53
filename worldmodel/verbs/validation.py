"""validate: will the model plan? Measured on held-out recordings, without a robot."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.verbs.shared import Call, check_backends, load_world, open_folder, open_recordings

if TYPE_CHECKING:
    from omegaconf import DictConfig


def validate(config: "DictConfig", *, call: Call) -> int:
    """Measures a model on held-out recordings, or on freshly simulated ones."""
    import json

    from omegaconf import OmegaConf

    from worldmodel.embodiment import END_EFFECTOR
    from worldmodel.validate import VALIDATION_FILE, validate, validation_table

    check_backends(config.backend)
    world = load_world(config, several_views=True)
    source = None if config.data is None else open_recordings(config)
    run = open_folder("validate", config)
    description = OmegaConf.to_container(config, resolve=True)
    assert isinstance(description, dict)
    description.pop("run")
    correction = _correction_path(config, run)
    began = time.perf_counter()
    validate(
        world=world,
        embodiment=config.embodiment,
        device=config.device,
        source=source,
        run=run,
        correction=correction,
        camera=config.camera,
        backend=config.backend,
        model_hz=config.model_hz,
        episodes=config.episodes,
        steps=config.steps,
        windows=config.windows,
        horizon=config.horizon,
        candidates=config.candidates,
        searches=config.searches,
        samples=config.samples,
        iterations=config.iterations,
        plan_steps=config.plan_steps,
        limits=None if config.limits is None else tuple(config.limits),
        distance=config.distance,
        precision=config.precision,
        seed=config.seed,
        description={str(key): value for key, value in description.items()},
    )
    text = (run / VALIDATION_FILE).read_text()
    if call.json_to is not None:
        print(text, end="", file=call.json_to)
        return 0
    numbers = json.loads(text)
    print(f"\n{validation_table(numbers)}")
    print(f"{time.perf_counter() - began:.0f} s; pictures and {VALIDATION_FILE} in {run}")
    if config.embodiment == END_EFFECTOR:
        print(f"behind a camera that stands elsewhere: planner.camera_rotation={correction}")
        off = f"{numbers['argmin_error_cm']:.2f} cm"
    else:
        off = f"{numbers['argmin_error_deg']:.2f} degrees a joint"
    print(
        f"error {numbers['identity_ratio']:.3f} of copying, true action first in "
        f"{numbers['action_ranking']['top1']:.0%}, lowest energy {off} off"
    )
    return 0


def _correction_path(config: "DictConfig", run: Path) -> Path:
    """Returns where the camera rotation is written: beside the model it belongs to.

    Of simulated episodes it stays in the run: it must not replace that of a real camera. The
    shipped model's folder is not written to.
    """
    from worldmodel.validation.camera_rotation import CAMERA_ROTATION_FILE

    if config.correction is not None:
        return Path(config.correction)
    if config.data is None or config.checkpoint is None or not Path(config.checkpoint).is_dir():
        return run / CAMERA_ROTATION_FILE
    return Path(config.checkpoint) / CAMERA_ROTATION_FILE
