"""The measures of `worldmodel validate` on a few held-out windows, while a model is trained.

They ask what a planner will ask, which the loss does not: is the action listened to, is the energy
lowest where the arm really went? The windows are latents of the run's own cache, and stay the same,
so a number of one step can be held against that of another.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from worldmodel.embodied import Embodied
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.jepa import JEPA
from worldmodel.joined_views import joined
from worldmodel.losses import Distance
from worldmodel.planners.action_space import POSES
from worldmodel.prediction_task import Windows
from worldmodel.validation.action_ranking import action_ranking
from worldmodel.validation.energy_argmin import energy_argmin
from worldmodel.validation.held_out import HeldOut
from worldmodel.validation.joint_argmin import JointArgmin, joint_argmin
from worldmodel.validation.latent_errors import latent_errors

PREFIX = "robot_free_"
HIGHER_IS_BETTER = {f"{PREFIX}ranking_top1"}


@dataclass(frozen=True, eq=False)
class RobotFree:
    """What is measured, and on how much; the measures are those of `worldmodel.validation`.

    Attributes:
        latents: Raw latents of the windows.
        proprio: The arm's states in them.
        episodes: Recording of each window.
        distance: Of latents, for errors and energies: "l1" or "l2".
        searches: Windows whose energy is searched.
        candidates: Actions that are ranked, the true one included; None ranks nothing, because the
            windows are of too few recordings.
        samples: Plans per iteration of a search.
        iterations: Its iterations.
        seed: Of all draws.
        embodiment: Who speaks in the windows.
    """

    latents: Tensor
    proprio: np.ndarray
    episodes: np.ndarray
    distance: Distance
    searches: int
    candidates: int | None
    samples: int = 64
    iterations: int = 4
    seed: int = 0
    embodiment: str = END_EFFECTOR

    @classmethod
    def draw(
        cls,
        held_out: Windows,
        *,
        windows: int,
        searches: int,
        candidates: int = 16,
        distance: Distance,
        seed: int,
        embodiment: str = END_EFFECTOR,
    ) -> "RobotFree":
        """Draws the windows, before anything is trained.

        Args:
            held_out: Windows of two frames, of recordings that are not learned from.
            windows: How many of them.
            searches: See the class, as for the following.
            candidates: Actions that are ranked. They are of different recordings; where these are
                too few, nothing is ranked.
            distance: Of latents.
            seed: Of all draws.
            embodiment: Who speaks in the windows.
        """
        draw = held_out.draw(np.random.default_rng(seed), windows)
        order = np.argsort(draw["episodes"], kind="stable")
        draw = {name: values[order] for name, values in draw.items()}
        most = int(np.unique(draw["episodes"], return_counts=True)[1].max())
        batch = held_out.load(draw)
        return cls(
            latents=batch["latents"],
            proprio=batch["proprio"].numpy(),
            episodes=draw["episodes"],
            distance=distance,
            searches=searches,
            candidates=candidates if windows - most >= candidates - 1 else None,
            seed=seed,
            embodiment=embodiment,
        )

    def measure(self, model: JEPA) -> dict[str, float]:
        """Returns the numbers of a model as it is, in evaluation mode.

        "robot_free_identity_ratio" and "..._shuffled_action_ratio", lower is better and 1 is
        worthless; "..._ranking_top1", the share of windows in which the true action has the lowest
        energy; "..._argmin_error_cm", how far from the true translation the energy is lowest, or of
        an arm that speaks in joints "..._argmin_error_deg", a joint.
        """
        raw = self.latents.to(model.device).float()
        latents = (raw - model.latent_mean) / model.latent_std
        if self.embodiment == END_EFFECTOR:
            world, held_out = joined(model), HeldOut(latents, self.proprio, self.episodes)
        else:
            world = Embodied(joined(model), self.embodiment)
            held_out = HeldOut(latents, self.proprio, self.episodes, space=world.action_space)
        errors = latent_errors(world, held_out, horizon=1, distance=self.distance, progress=False)
        measures = {
            f"{PREFIX}identity_ratio": float(errors.identity_ratios[0]),
            f"{PREFIX}shuffled_action_ratio": float(errors.shuffled_ratios[0]),
        }
        find_argmin = energy_argmin if held_out.space is POSES else joint_argmin
        argmin = find_argmin(
            world,
            held_out,
            windows=self.searches,
            samples=self.samples,
            iterations=self.iterations,
            seed=self.seed,
            distance=self.distance,
            progress=False,
        )
        if isinstance(argmin, JointArgmin):
            measures[f"{PREFIX}argmin_error_deg"] = argmin.error_deg
        else:
            measures[f"{PREFIX}argmin_error_cm"] = argmin.error_cm
        if self.candidates is not None:
            ranking = action_ranking(
                world,
                held_out,
                candidates=self.candidates,
                seed=self.seed,
                distance=self.distance,
                progress=False,
            )
            measures[f"{PREFIX}ranking_top1"] = ranking.top1
        return measures


def compared(now: Mapping[str, float], then: Mapping[str, float]) -> str:
    """Returns the measures of a model beside those of another one, each better or worse."""
    said = []
    for name, value in now.items():
        if not name.startswith(PREFIX):
            continue
        gain = then[name] - value
        if name in HIGHER_IS_BETTER:
            gain = -gain
        word = "better" if gain > 0 else "worse" if gain < 0 else "the same"
        said.append(f"{name.removeprefix(PREFIX)} {value:.3g} ({word}, {then[name]:.3g})")
    return ", ".join(said)


def is_measured(metrics: Mapping[str, float]) -> bool:
    """Says whether these numbers include the measures."""
    return any(name.startswith(PREFIX) for name in metrics)
