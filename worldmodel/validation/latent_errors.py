"""How well the model predicts, beside copying and beside wrong actions.

From the first frame of a window alone it imagines all the following ones. Two ratios say whether
that is worth anything: to the error of predicting no change (1: no better than a copy), and to its
own error with the actions of another recording (1: it does not listen to the action).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from worldmodel.planners.checks import require_choice
from worldmodel.planners.interfaces import WorldModel
from worldmodel.validation.held_out import HeldOut
from worldmodel.validation.intervals import bootstrap_interval

WINDOWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class LatentErrors:
    """Mean distance of latents, of each of W windows and each of H steps ahead.

    Attributes:
        predicted: Of what was imagined with the actions that were done.
        identity: Of the first frame: the error of predicting no change.
        shuffled: Of what was imagined with the actions of another window.
        episodes: Recording of each window.
    """

    predicted: Float[np.ndarray, "windows horizon"]
    identity: Float[np.ndarray, "windows horizon"]
    shuffled: Float[np.ndarray, "windows horizon"]
    episodes: np.ndarray

    def __post_init__(self) -> None:
        """Refuses windows in which nothing is to be predicted."""
        if not (self.identity.mean(axis=0) > 0).all():
            raise ValueError(
                "nothing changes in these windows, so there is nothing to predict; give recordings "
                "in which the arm moves"
            )

    @property
    def identity_ratios(self) -> Float[np.ndarray, " horizon"]:
        """Error over that of predicting no change, for each step ahead; 0 is perfect."""
        return self.predicted.mean(axis=0) / self.identity.mean(axis=0)

    @property
    def shuffled_ratios(self) -> Float[np.ndarray, " horizon"]:
        """Error over that with wrong actions, for each step ahead; 1 is deaf to the action."""
        return self.predicted.mean(axis=0) / self.shuffled.mean(axis=0)

    def to_json(self, *, seed: int) -> dict[str, object]:
        """Returns the numbers, with 95 % intervals of those one step ahead."""

        def identity_ratio(rows: np.ndarray) -> float:
            return float(self.predicted[rows, 0].mean() / self.identity[rows, 0].mean())

        def shuffled_ratio(rows: np.ndarray) -> float:
            return float(self.predicted[rows, 0].mean() / self.shuffled[rows, 0].mean())

        return {
            "windows": len(self.predicted),
            "horizon": self.predicted.shape[1],
            "predicted": self.predicted.mean(axis=0).tolist(),
            "identity": self.identity.mean(axis=0).tolist(),
            "shuffled": self.shuffled.mean(axis=0).tolist(),
            "identity_ratios": self.identity_ratios.tolist(),
            "shuffled_ratios": self.shuffled_ratios.tolist(),
            "identity_ratio_95": list(bootstrap_interval(identity_ratio, self.episodes, seed=seed)),
            "shuffled_ratio_95": list(bootstrap_interval(shuffled_ratio, self.episodes, seed=seed)),
        }


@torch.inference_mode()
def latent_errors(
    world: WorldModel,
    held_out: HeldOut,
    *,
    horizon: int,
    distance: str = "l2",
    progress: bool = True,
) -> LatentErrors:
    """Imagines `horizon` steps of every window, and compares them with what was seen.

    Args:
        world: The model.
        held_out: Windows of at least `horizon` steps.
        horizon: Steps imagined, H.
        distance: "l1", the mean absolute difference, or "l2", the mean squared one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The windows are shorter, nothing changes in them, or a prediction is NaN.
    """
    require_choice("distance", distance, ("l1", "l2"))
    if not 1 <= horizon <= held_out.steps:
        raise ValueError(
            f"horizon must be between 1 and the {held_out.steps} steps of a window, got {horizon}"
        )
    actions = torch.from_numpy(held_out.actions[:, :horizon].astype(np.float32))
    pairs = torch.stack([actions, actions[held_out.others()]], dim=1)  # (W, 2, H, A)
    errors = []
    starts = range(0, len(held_out), WINDOWS_AT_ONCE)
    for start in tqdm(starts, desc="predict", disable=not progress):
        rows = slice(start, start + WINDOWS_AT_ONCE)
        now = held_out.observation(rows)
        seen = held_out.latents[rows, 1 : horizon + 1]  # (B, H, N, D)
        plans = pairs[rows].to(seen.device)
        imagined = world.rollout(now.latents, now.proprio, plans)  # (B, 2, H, N, D)
        compared = torch.stack([imagined[:, 0], now.latents.expand_as(seen), imagined[:, 1]])
        errors.append(_distance(compared, seen, distance).cpu())
    predicted, identity, shuffled = torch.cat(errors, dim=1).double().numpy()  # each (W, H)
    if not np.isfinite(predicted).all():
        raise ValueError("a predicted latent is not finite; check the weights and the precision")
    return LatentErrors(predicted, identity, shuffled, held_out.episodes)


def _distance(latents: Tensor, seen: Tensor, distance: str) -> Tensor:
    difference = (latents - seen).float()
    size = difference.abs() if distance == "l1" else difference.square()
    return size.mean(dim=(-2, -1))
