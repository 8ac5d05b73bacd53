"""Where things lie at the start of an episode, and what the tasks ask of the simulation."""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

from collections.abc import Sequence

import numpy as np

from worldmodel.envs import franka, panda
from worldmodel.envs.control import Arm

WORKSPACE_LOW, WORKSPACE_HIGH = np.array([0.32, -0.28, 0.12]), np.array([0.62, 0.28, 0.42])  # [m]
TABLE_LOW, TABLE_HIGH = np.array([0.36, -0.26]), np.array([0.60, 0.26])  # object centres [m]
SPACING = 0.12  # [m] between centres: room for open fingers beside each
MAX_YAW = 0.25  # [rad] of an object at the start; the gripper does not turn
SETTLE_SECONDS = 0.1
GRASP_HEIGHT = 0.03  # [m] of the tool centre point, the lowest the arm is allowed
_TRIES = 10_000


def scatter(
    arm: Arm,
    rng: np.random.Generator,
    *,
    keep_clear: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    fixed: dict[str, np.ndarray] | None = None,
    low: np.ndarray = TABLE_LOW,
    high: np.ndarray = TABLE_HIGH,
) -> None:
    """Lay the cubes on the table at random places and yaws, apart from each other.

    Args:
        arm: The scene.
        rng: Source of the places.
        keep_clear: Lines on the table, each from one point (2,) to another [m], that no cube but a
            fixed one comes near.
        fixed: Places (2,) of some cubes by name [m].
        low: Smallest x, y of a centre [m].
        high: Largest.
    """
    for _ in range(_TRIES):
        places = dict(fixed or {})
        for name in franka.CUBES:
            if name not in places:
                places[name] = rng.uniform(low, high)
        loose = [place for name, place in places.items() if name not in (fixed or {})]
        if _apart(list(places.values())) and not any(
            distance_to_line(place, *line) < SPACING for place in loose for line in keep_clear
        ):
            break
    else:
        raise RuntimeError(f"no free places on the table in {_TRIES} draws")
    for name, place in places.items():
        half_yaw = rng.uniform(-MAX_YAW, MAX_YAW) / 2
        height = franka.object_half_height(arm.model, name)
        turned = [np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]  # (w, x, y, z)
        arm.data.joint(name).qpos = [*place, height, *turned]


def _apart(places: Sequence[np.ndarray]) -> bool:
    return all(
        np.linalg.norm(place - other) >= SPACING
        for i, place in enumerate(places)
        for other in places[:i]
    )


def distance_to_line(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Return the distance from a point to the line between two others, all (n,) [m]."""
    along = end - start
    part = np.clip((point - start) @ along / max(along @ along, 1e-12), 0.0, 1.0)
    return float(np.linalg.norm(point - start - part * along))


def random_start(arm: Arm, rng: np.random.Generator) -> None:
    """Put the arm anywhere in the workspace, open, and let everything settle."""
    arm.teleport(rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH))
    arm.settle(SETTLE_SECONDS)


def object_position(arm: Arm, name: str) -> np.ndarray:
    """Return the position (3,) of an object's centre in the base frame [m]."""
    return arm.data.body(name).xpos.copy()


def touching_fingers(arm: Arm, name: str) -> int:
    """Return how many of the two fingers touch an object's geom or the body of that name."""
    model, data = arm.model, arm.data
    body = model.body(name).id
    fingers = {model.body(finger).id for finger in panda.FINGERS}
    bodies = model.geom_bodyid[data.contact.geom[: data.ncon]]  # (contacts, 2)
    touched = {int(a if b == body else b) for a, b in bodies if body in (a, b)}
    return len(touched & fingers)


def held(arm: Arm, name: str) -> bool:
    """Return whether both fingers touch an object."""
    return touching_fingers(arm, name) == 2
