"""The planner published with V-JEPA 2-AC, as settings of our CEM.

Source: Assran et al. 2025, arXiv 2506.09985, and its public code. What is particular to it: a
per-axis clip (the paper says L1 ball), rotations not searched, momenta that differ for position
and gripper, no elite carried over, the mean returned with small gripper changes set to zero.
Differences: it draws from the global random state axis by axis, we from a generator.
"""

from worldmodel.planners.cem import CEM
from worldmodel.planners.energy import LatentEnergy
from worldmodel.planners.interfaces import ActionBounds

GRIPPER_LIMIT = 0.75  # samples are clipped to this, but drawn with standard deviation 1
GRIPPER_DEAD_ZONE = 0.25


def vjepa2_bounds(*, max_norm: float = 0.075) -> ActionBounds:
    """Returns the published action box: +-max_norm [m] per axis, no rotation, gripper +-0.75.

    The paper uses 0.075 m; the public code defaults to 0.05 m.
    """
    return ActionBounds.symmetric([max_norm] * 3 + [0.0] * 3 + [GRIPPER_LIMIT])


def vjepa2_cem(
    *,
    horizon: int = 1,
    num_samples: int = 800,
    num_elites: int = 10,
    num_iterations: int = 10,
    mean_momentum: float = 0.15,
    std_momentum: float = 0.15,
    gripper_mean_momentum: float = 0.15,
    gripper_std_momentum: float = 0.15,
    close_gripper: int | None = None,
    chunk_size: int | None = None,
) -> CEM:
    """Returns the published planner; use it with `vjepa2_bounds` and without a warm start.

    Sample and iteration counts default to the paper's, momenta to the public wrapper's (the paper
    gives none). The public wrapper itself uses horizon 2 and 400 samples.
    """
    return CEM(
        cost=LatentEnergy(),
        horizon=horizon,
        num_samples=num_samples,
        num_elites=num_elites,
        num_iterations=num_iterations,
        keep_elites=0.0,
        first_iteration="normal",
        # Standard deviation max_norm [m] for position and 1 for the gripper.
        initial_std=[1.0] * 6 + [1.0 / GRIPPER_LIMIT],
        min_std=0.0,
        mean_momentum=[mean_momentum] * 6 + [gripper_mean_momentum],
        std_momentum=[std_momentum] * 6 + [gripper_std_momentum],
        returns="mean",
        gripper_dead_zone=GRIPPER_DEAD_ZONE,
        close_gripper=close_gripper,
        chunk_size=chunk_size,
    )
