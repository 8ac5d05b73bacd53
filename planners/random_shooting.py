"""Random shooting, the baseline every planner must beat: try uniform plans, take the best."""

from worldmodel.planners.cem import CEM
from worldmodel.planners.interfaces import Cost


def random_shooting(
    *, cost: Cost, horizon: int = 1, num_samples: int = 1024, chunk_size: int | None = None
) -> CEM:
    """Returns a planner that draws plans uniformly over the bounds once and keeps the best.

    That is one iteration of the cross-entropy method.
    """
    return CEM(
        cost=cost,
        horizon=horizon,
        num_samples=num_samples,
        num_elites=2,
        num_iterations=1,
        first_iteration="uniform",
        returns="best",
        chunk_size=chunk_size,
    )
