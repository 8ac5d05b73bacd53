"""Does the model tell the action that was done from others?

One step of N actions is imagined from a frame: the one that was done, and those of N - 1 windows of
other recordings. The true one should have the lowest energy to the next frame. Chance finds it in
one of N.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.interfaces import WorldModel
from worldmodel.planners.scoring import score_plans
from worldmodel.validation.held_out import HeldOut
from worldmodel.validation.intervals import bootstrap_interval

WINDOWS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class ActionRanking:
    """Where the true action came in, among N.

    Attributes:
        ranks: 1 + the number of others of no higher energy, from 1 to N: a tie counts as lost, for
            a model that does not listen to the action ties them all.
        candidates: N.
        episodes: Recording of each window.
    """

    ranks: Int[np.ndarray, " windows"]
    candidates: int
    episodes: np.ndarray

    @property
    def top1(self) -> float:
        """Share of windows in which the true action has the lowest energy."""
        return float(np.mean(self.ranks == 1))

    @property
    def mean_rank(self) -> float:
        """Mean rank; chance is (N + 1) / 2."""
        return float(self.ranks.mean())

    def to_json(self, *, seed: int) -> dict[str, object]:
        """Returns the numbers, with the 95 % interval of the first."""

        def top1(rows: np.ndarray) -> float:
            return float(np.mean(self.ranks[rows] == 1))

        return {
            "top1": self.top1,
            "top1_95": list(bootstrap_interval(top1, self.episodes, seed=seed)),
            "mean_rank": self.mean_rank,
            "candidates": self.candidates,
            "chance_top1": 1 / self.candidates,
            "chance_mean_rank": (self.candidates + 1) / 2,
            "windows": len(self.ranks),
        }


@torch.inference_mode()
def action_ranking(
    world: WorldModel,
    held_out: HeldOut,
    *,
    candidates: int,
    seed: int,
    distance: str = "l2",
    progress: bool = True,
) -> ActionRanking:
    """Ranks the first action of every window among those of other windows.

    Args:
        world: The model.
        held_out: The windows; of at least two recordings.
        candidates: Actions N that are compared, the true one included.
        seed: Of the choice of the others.
        distance: Of the energy: "l1" or "l2".
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are too few recordings, or an energy is NaN.
    """
    if candidates < 2:
        raise ValueError(f"candidates must be at least 2, got {candidates}")
    rivals = _rivals(held_out.episodes, candidates - 1, np.random.default_rng(seed))
    rows = np.concatenate([np.arange(len(held_out))[:, None], rivals], axis=1)  # (W, N)
    actions = torch.from_numpy(held_out.actions[rows, 0].astype(np.float32))[:, :, None]
    ranks = []
    starts = range(0, len(held_out), WINDOWS_AT_ONCE)
    for start in tqdm(starts, desc="rank", disable=not progress):
        part = slice(start, start + WINDOWS_AT_ONCE)
        goal = held_out.latents[part, 1]
        energies = score_plans(
            world,
            LatentEnergy(distance=distance),
            held_out.observation(part),
            goal,
            actions[part].to(goal.device),
        )  # (B, N)
        ranks.append(1 + (energies[:, 1:] <= energies[:, :1]).sum(dim=1).cpu())
    return ActionRanking(torch.cat(ranks).numpy(), candidates, held_out.episodes)


def _rivals(episodes: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns for each window the numbers (W, number) of windows of other recordings."""
    chosen = []
    for episode in episodes:
        others = np.flatnonzero(episodes != episode)
        if len(others) < number:
            raise ValueError(
                f"{number} actions of other recordings are to be compared with that of episode "
                f"{episode}, but there are {len(others)}; give more recordings, or compare fewer"
            )
        chosen.append(rng.choice(others, number, replace=False))
    return np.stack(chosen)
