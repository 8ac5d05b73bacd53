"""The search that the measures share: the energy's lowest point, for many problems in groups."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from worldmodel.planners.cem import CEM
from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.interfaces import ActionBounds, WorldModel
from worldmodel.pose import ACTION_SIZE, GRIPPER, POSITION, ROTATION
from worldmodel.validation.held_out import HeldOut

WINDOWS_AT_ONCE = 8
PLANS_AT_ONCE = 64  # imagined at once, over all windows of a group
MIN_STD = 0.005  # of the bounds; the search ends this narrow
STD_MOMENTUM = 0.2  # a few elites that lie together by chance must not end the search
LIMIT_MARGIN = 1.25
MIN_LIMITS = (0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 0.1)  # [m], [rad], gripper


class Pinned:
    """A world in which some axes of every action are set already: plans say only what is added.

    Args:
        world: The world.
        fixed: What is done anyway in each of B problems; zero on the axes that are searched.
    """

    def __init__(self, world: WorldModel, fixed: Float[Tensor, "batch action"]):
        self.world, self.fixed = world, fixed

    def encode(self, frames: Tensor) -> Tensor:
        """Returns the world's latents."""
        return self.world.encode(frames)

    def predict(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        """Returns the world's next latents."""
        return self.world.predict(latents, proprio, actions + self.fixed[:, None])

    def rollout(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> Tensor:
        """Returns what the world imagines of plans (B, S, H, A)."""
        return self.world.rollout(latents, proprio, actions + self.fixed[:, None, None])


def lowest_energy(
    world: WorldModel,
    held_out: HeldOut,
    *,
    limits: Sequence[float],
    fixed: Float[np.ndarray, "windows action"],
    horizon: int,
    samples: int,
    iterations: int,
    distance: str,
    seed: int,
    label: str,
    progress: bool,
) -> Float[np.ndarray, "windows horizon action"]:
    """Returns the plan of lowest energy from the first frame of each window to its last.

    A cross-entropy search with the elites' full covariance that starts from all of the box, so it
    knows nothing of the truth.

    Args:
        world: The model.
        held_out: Windows; the frame `horizon` steps on is the goal.
        limits: Half the width of the box (7,), physical units; 0 leaves an axis to `fixed`.
        fixed: What every step does besides, see `Pinned`.
        horizon: Planned steps.
        samples: Plans per iteration.
        iterations: Iterations.
        distance: Of the energy: "l1" or "l2".
        seed: Of the noise; each window has its own.
        label: Of the progress bar.
        progress: Whether to show it.
    """
    search = CEM(
        cost=LatentEnergy(distance=distance),
        horizon=horizon,
        num_samples=samples,
        num_elites=max(2, samples // 6),
        num_iterations=iterations,
        first_iteration="uniform",
        covariance="full",
        min_std=MIN_STD,
        std_momentum=STD_MOMENTUM,
        chunk_size=PLANS_AT_ONCE // WINDOWS_AT_ONCE,
    )
    bounds = ActionBounds.symmetric(limits)
    found = []
    with tqdm(total=len(held_out), desc=label, unit="window", disable=not progress) as bar:
        for start in range(0, len(held_out), WINDOWS_AT_ONCE):
            rows = slice(start, start + WINDOWS_AT_ONCE)
            goal = held_out.latents[rows, horizon]
            pinned = torch.from_numpy(fixed[rows].astype(np.float32)).to(goal.device)
            plan = search.plan(
                Pinned(world, pinned),
                held_out.observation(rows),
                goal,
                bounds=bounds,
                generator=[_generator(seed, start + i) for i in range(len(goal))],
            )
            found.append(plan.actions.double().cpu().numpy())
            bar.update(len(goal))
    return np.concatenate(found) + fixed[:, None]


def lowest_energy_in_parts(
    world: WorldModel,
    held_out: HeldOut,
    *,
    groups: Mapping[str, slice],
    limits: Float[np.ndarray, " action"],
    samples: int,
    iterations: int,
    distance: str,
    seed: int,
    progress: bool,
) -> Float[np.ndarray, "windows action"]:
    """Returns the first action of lowest energy, group by group, the others as they truly were.

    Args:
        world: The model.
        held_out: Windows; their second frame is the goal.
        groups: Axes that are searched together, by the name of the progress bar.
        limits: Half the width of the box that is searched.
        samples: See `lowest_energy`, as are the following.
        iterations: Iterations.
        distance: Of the energy: "l1" or "l2".
        seed: Of the noise; each group has its own.
        progress: Whether to show progress bars.
    """
    true = held_out.actions[:, 0]
    found = np.zeros_like(true)
    for number, (name, group) in enumerate(groups.items()):
        lowest = lowest_energy(
            world,
            held_out,
            limits=only(group, limits).tolist(),
            fixed=true - only(group, true),
            horizon=1,
            samples=samples,
            iterations=iterations,
            distance=distance,
            seed=seed + number,
            label=f"search {name}",
            progress=progress,
        )
        found[:, group] = lowest[:, 0, group]
    return found


def search_limits(actions: Float[np.ndarray, "*steps action"]) -> tuple[float, ...]:
    """Returns half the width (7,) of a box that steps of these recordings lie in.

    A quarter more than the 99 % quantile on each axis, so that a single glitch does not stretch it;
    and never nothing, for a model should also say that an axis rested.
    """
    largest = np.quantile(np.abs(actions.reshape(-1, ACTION_SIZE)), 0.99, axis=0)
    return tuple(np.maximum(LIMIT_MARGIN * largest, MIN_LIMITS).tolist())


def only(group: slice, values: np.ndarray) -> np.ndarray:
    """Returns actions (..., 7) of which only one group of axes is left; the others are zero."""
    kept = np.zeros_like(values)
    kept[..., group] = values[..., group]
    return kept


GROUPS = {"translation": POSITION, "rotation": ROTATION, "gripper": GRIPPER}


def _generator(seed: int, window: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.default_rng((seed, window)).integers(2**62)))
