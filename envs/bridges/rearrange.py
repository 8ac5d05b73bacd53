"""In which order cubes are carried to their places, so that none is put onto another by mistake."""

import numpy as np

ARRIVED = 0.02  # [m] a cube this near to its place stays
SAME_PLACE = 0.035  # [m] two cubes of 4 cm cannot be nearer
CLEARANCE = 0.09  # [m] from other cubes and places to where a cube is laid aside
LEVEL = 0.01  # [m] places this close in height are on one level


def rearrangement(
    cubes: np.ndarray, goals: np.ndarray, *, low: np.ndarray, high: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the carries, from x, y, z to x, y, z [m], that bring every cube to its place.

    Lower places are filled first. A cube whose place is taken waits; if all wait for each other,
    one is laid aside.

    Args:
        cubes: Where the cubes are (n, 3) [m].
        goals: Where each should be (n, 3) [m].
        low: Smallest x, y of the table where a cube may be laid aside [m].
        high: Largest.

    Raises:
        ValueError: There is no room to lay a cube aside, or no order was found.
    """
    at = np.array(cubes, float)
    carries: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(3 * len(at)):
        wrong = [i for i in range(len(at)) if np.linalg.norm(at[i] - goals[i]) > ARRIVED]
        if not wrong:
            return carries
        lowest = min(goals[i][2] for i in wrong) + LEVEL
        ready = [
            i for i in wrong if goals[i][2] <= lowest and _uncovered(at, i) and _free(at, i, goals)
        ]
        cube = ready[0] if ready else next(i for i in range(len(at)) if _uncovered(at, i))
        place = goals[cube] if ready else _aside(at, goals, low, high)
        carries.append((at[cube].copy(), np.array(place, float)))
        at[cube] = place
    raise ValueError(f"no order brings cubes from {cubes.tolist()} to {goals.tolist()}")


def _uncovered(at: np.ndarray, cube: int) -> bool:
    above = (np.linalg.norm(at[:, :2] - at[cube, :2], axis=1) < SAME_PLACE) & (
        at[:, 2] > at[cube, 2] + LEVEL
    )
    return not above.any()


def _free(at: np.ndarray, cube: int, goals: np.ndarray) -> bool:
    apart = np.linalg.norm(np.delete(at, cube, axis=0) - goals[cube], axis=1)
    return not (apart < SAME_PLACE).any()


def _aside(at: np.ndarray, goals: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    taken = np.concatenate([at[:, :2], goals[:, :2]])
    for x in np.linspace(low[0], high[0], 6):
        for y in np.linspace(low[1], high[1], 13):
            if (np.linalg.norm(taken - [x, y], axis=1) > CLEARANCE).all():
                return np.array([x, y, at[:, 2].min()])
    raise ValueError(f"no room on the table to lay a cube aside; cubes are at {at.tolist()}")
