"""Where the numbers of a run go: JSON lines always, TensorBoard by default, Weights & Biases."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from worldmodel.extras import require
from worldmodel.names import unknown
from worldmodel.tensorboard import EventFile
from worldmodel.training import MetricsLog

Tracker = Literal["tensorboard", "wandb"]
TRACKERS: tuple[Tracker, ...] = ("tensorboard", "wandb")


class Tracking:
    """What is told of a run, to one process's files; a resumed run goes on where it was.

    Args:
        run: Folder of the run.
        trackers: Besides metrics.jsonl.
        resume_step: Step that the run goes on from; what was said of later ones is dropped.

    Raises:
        ValueError: A tracker is unknown.
        ImportError: wandb is not installed; the message is the command that installs it.
    """

    def __init__(self, run: Path, trackers: Sequence[Tracker], *, resume_step: int):
        for name in trackers:
            if name not in TRACKERS:
                raise ValueError(unknown("tracker", name, TRACKERS))
        self._wandb: Any = None
        if "wandb" in trackers:
            wandb = require("wandb", extra="wandb")
            self._wandb = wandb.init(
                project="worldmodel", name=run.name, id=_identity(run), dir=run, resume="allow"
            )
        self._run, self._events = run, None
        self._to_events, self._first_step = "tensorboard" in trackers, resume_step + 1
        self.log = MetricsLog(run, resume_step=resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Tells the values of a step."""
        self.log.write(step, dict(values))
        if self._to_events:
            # Only now, so that a finished run that is started again leaves no empty file.
            if self._events is None:
                self._events = EventFile(self._run / "events", first_step=self._first_step)
            self._events.write(step, values)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Says that the run is over."""
        if self._wandb is not None:
            self._wandb.finish()


def _identity(run: Path) -> str:
    """Returns the name by which Weights & Biases knows the run again, wherever it is moved."""
    file = run / "wandb_id.txt"
    if not file.exists():
        file.write_text(secrets.token_hex(8))
    return file.read_text()
