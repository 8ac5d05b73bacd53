"""One sentence at the end of a training: better or worse than which checkpoint, on which metric."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel import checkpoint
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.encode import LatentJob
from worldmodel.engine import Fitted
from worldmodel.jepa import JEPA
from worldmodel.losses import Distance
from worldmodel.prediction_task import PredictorLosses, Windows, validate
from worldmodel.robot_free import RobotFree, compared, is_measured

RIVAL_WINDOWS = 512
AT_ONCE = 64


@dataclass(frozen=True)
class Rival:
    """A checkpoint that a run is compared with, measured on the run's own held-out windows.

    Its distances are in its own latent space, so what is compared is the ratio to no change.

    Attributes:
        folder: Where it is.
        world: The model.
        held_out: The windows.
        device: Where it is computed.
        embodiment: Who speaks in the windows.
    """

    folder: str
    world: JEPA
    held_out: Windows
    device: torch.device
    embodiment: str

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        job: LatentJob,
        num_views: int,
        held_out: Windows,
        device: torch.device,
        embodiment: str = END_EFFECTOR,
    ) -> "Rival":
        """Loads a checkpoint, before the run begins.

        Raises:
            ValueError: It sees other latents than those of the job, or at another rate.
        """
        world = checkpoint.load(folder)
        encoder = checkpoint.fingerprint(world.encoder)
        ours = (checkpoint.fingerprint(job.encode.encoder), job.encode.merge, job.recipe.pool)
        if (encoder, world.merge, world.pool) != ours:
            raise ValueError(
                f"compare_with={folder} sees the frames through another encoder, merge or pool "
                "than this run, so the same windows cannot be shown to both; name a checkpoint of "
                f"the encoder {ours[0]} with merge={ours[1]} and pool={ours[2]}"
            )
        if world.predictor.num_views != num_views:
            raise ValueError(
                f"compare_with={folder} sees {world.predictor.num_views} cameras at once, this run "
                f"{num_views}; name a checkpoint of as many"
            )
        if embodiment not in (END_EFFECTOR, *getattr(world.predictor, "embodiments", ())):
            raise ValueError(
                f"compare_with={folder} was never told of the embodiment {embodiment!r}; name a "
                "checkpoint that was"
            )
        return cls(folder, world.to(device), held_out, device, embodiment)

    def verdict(
        self, metrics: dict[str, float], distance: Distance, robot_free: RobotFree | None
    ) -> str:
        """Returns which of the two is better, also without a robot if that was measured."""
        losses = PredictorLosses(
            self.world,
            rollout_steps=1,
            distance=distance,
            state_weight=0,
            embodiment=self.embodiment,
        ).eval()

        @torch.no_grad()
        def evaluate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return losses({name: values.to(self.device) for name, values in batch.items()})

        draw = self.held_out.draw(np.random.default_rng(0), RIVAL_WINDOWS)
        its = validate(evaluate, self.held_out, draw, at_once=AT_ONCE)["identity_ratio"]
        said = _compare(metrics["identity_ratio"], its, "identity_ratio", str(self.folder))
        if robot_free is not None:
            said += f"; without a robot: {compared(metrics, robot_free.measure(self.world.eval()))}"
        return said


def verdict_of_run(fitted: Fitted) -> str:
    """Returns how the last weights of a run compare with those it validated before."""
    now = fitted.metrics["validation_loss"]
    before = [line for line in fitted.lines if "validation_loss" in line][:-1]
    if not before:
        return f"validation_loss {now:.4f}; this run has no earlier checkpoint to compare with"
    best = min(before, key=lambda line: line["validation_loss"])
    name = f"the best checkpoint before (step {best['step']})"
    said = _compare(now, best["validation_loss"], "validation_loss", name)
    measured = [line for line in fitted.lines[:-1] if is_measured(line)]
    if measured and is_measured(fitted.metrics):
        step, numbers = measured[-1]["step"], compared(fitted.metrics, measured[-1])
        said += f"; without a robot, beside step {step}: {numbers}"
    return said


def _compare(ours: float, other: float, metric: str, name: str) -> str:
    word = "better than" if ours < other else "worse than" if ours > other else "the same as"
    return f"{word} {name}: {metric} {ours:.4f}, it has {other:.4f} (lower is better)"
