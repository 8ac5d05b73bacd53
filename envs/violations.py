"""Impossible episodes: the same scene, seed and actions as a possible one, but for one thing.

They test whether a world model knows what cannot happen. From one step on

    teleport_object  a cube lies elsewhere on the table
    vanish_object    a cube is gone
    slide_object     a cube creeps over the table by itself, through whatever stands there
    float_object     a cube rises from the table by itself
    drop_frames      the camera lost frames: the arm in the picture jumps ahead of the measured one
    freeze_camera    the picture stands still while the arm moves
    recolour_object  a cube has another colour: the control, for nothing moved

Source of the protocol: Riochet et al. 2018, "IntPhys", arXiv 1803.07616 (possible and impossible
films that differ in one event); Garrido et al. 2025, arXiv 2502.11831 (told apart by the surprise
of a V-JEPA).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldmodel.envs import franka
from worldmodel.envs.expert import Policy
from worldmodel.envs.franka_env import FrankaEnv

KINDS = (
    "teleport_object",
    "vanish_object",
    "slide_object",
    "float_object",
    "drop_frames",
    "freeze_camera",
    "recolour_object",
)
CONTROL = "recolour_object"

TELEPORT_DISTANCE = 0.15  # [m] at least, from where the cube was
SLIDE, RISE = 0.04, 0.03  # [m] per step
JUMP = 0.10  # [m] that the arm in the picture is ahead after frames were dropped
MOST_DROPPED = 8  # frames
STILL = 0.02  # [m] in a step; a slower arm would not show that its camera is frozen
TABLE_LOW, TABLE_HIGH = np.array([0.34, -0.28]), np.array([0.62, 0.28])  # cube centres [m]
GONE = np.array([3.5, 3.5, -0.72])  # [m] on the floor behind every camera
VISIBLE_PIXELS = 12  # that must differ, per 128 x 128, for a violation to count as shown
VISIBLE_LEVELS = 16  # by how many of 255 a pixel must differ
_TRIES = 200
_NO_GOAL = {"demonstrate": False}  # a goal takes the expert time and is not looked at


@dataclass(frozen=True, eq=False)
class Recording:
    """What a camera and the arm's joints say of one run: T actions between T + 1 observations.

    Attributes:
        frames: RGB uint8 (T + 1, size, size, 3).
        proprio: float32 (T + 1, 7), see `worldmodel.pose`.
        timestamps: float64 (T + 1,) [s].
    """

    frames: np.ndarray
    proprio: np.ndarray
    timestamps: np.ndarray


@dataclass(frozen=True, eq=False)
class PhysicsPair:
    """A possible and an impossible run of one seed and the same actions.

    Attributes:
        kind: What is impossible, one of `KINDS`.
        seed: Of the scene and the behaviour.
        step: First observation that is impossible; before it the two are equal.
        possible: As it happened.
        impossible: As it cannot.
    """

    kind: str
    seed: int
    step: int
    possible: Recording
    impossible: Recording


def make_pair(
    env: FrankaEnv,
    kind: str,
    make_policy: Callable[[], Policy],
    *,
    seed: int,
    steps: int = 16,
) -> PhysicsPair:
    """Plays one pair. A scene in which the violation could not be seen is drawn again.

    Args:
        env: The simulation; it is reset, and left as it was built.
        kind: One of `KINDS`.
        make_policy: Makes the behaviour that chooses the actions, once `env` has been reset.
        seed: Of scene, behaviour and violation. Redraws take seeds of their own from it.
        steps: Actions T of each run; the violation begins after a quarter, before three quarters.

    Raises:
        ValueError: The kind is unknown, there are fewer than 4 steps, or no scene shows it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown violation {kind!r}; available: {', '.join(KINDS)}")
    if steps < 4:
        raise ValueError(f"a pair needs at least 4 steps, got {steps}")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    for _ in range(_TRIES):
        scene = int(rng.integers(2**31))
        step = int(rng.integers(1 + steps // 4, 1 + 3 * steps // 4))
        if kind in ("drop_frames", "freeze_camera"):
            pair = _camera_fault(env, kind, make_policy, scene=scene, step=step, steps=steps)
        else:
            pair = _object_fault(env, kind, make_policy, rng, scene=scene, step=step, steps=steps)
        if pair is not None:
            return pair
    raise ValueError(
        f"no scene of {_TRIES} shows {kind} to camera {env.camera!r}; is the arm moving, and are "
        "the cubes in its view?"
    )


def _object_fault(
    env: FrankaEnv,
    kind: str,
    make_policy: Callable[[], Policy],
    rng: np.random.Generator,
    *,
    scene: int,
    step: int,
    steps: int,
) -> PhysicsPair | None:
    possible, actions = _play(env, make_policy, scene=scene, steps=steps)
    edit = _edit(env, kind, rng)
    model = env._arm.model
    looks, weights = model.geom_rgba.copy(), model.body_gravcomp.copy()
    try:
        impossible = _replay(env, actions, edit, scene=scene, step=step)
    finally:
        model.geom_rgba[:], model.body_gravcomp[:] = looks, weights
        if kind == "recolour_object":
            env.close()  # see _edit
    # A movement shows at its third step: a first one is only some pixels.
    seen = min(step + 2, steps) if kind in ("slide_object", "float_object") else step
    if not _differ(possible.frames[seen], impossible.frames[seen]):
        return None
    return PhysicsPair(kind, scene, step, possible, impossible)


def _camera_fault(
    env: FrankaEnv,
    kind: str,
    make_policy: Callable[[], Policy],
    *,
    scene: int,
    step: int,
    steps: int,
) -> PhysicsPair | None:
    """Edits pictures, not the scene: what the joints measure is true in both runs."""
    longer, _ = _play(env, make_policy, scene=scene, steps=steps + MOST_DROPPED)
    possible = _first(longer, steps + 1)
    hand = longer.proprio[:, :3]
    index = np.arange(steps + 1)
    if kind == "freeze_camera":
        if np.linalg.norm(hand[step] - hand[step - 1]) < STILL:
            return None
        index[step:] = step - 1
    else:
        ahead = np.linalg.norm(hand[step : step + MOST_DROPPED + 1] - hand[step], axis=1)
        if ahead.max() < JUMP:
            return None
        index[step:] += int(np.argmax(ahead >= JUMP))
    impossible = Recording(longer.frames[index], possible.proprio, possible.timestamps)
    if not _differ(possible.frames[step], impossible.frames[step]):
        return None
    return PhysicsPair(kind, scene, step, possible, impossible)


def _play(
    env: FrankaEnv, make_policy: Callable[[], Policy], *, scene: int, steps: int
) -> tuple[Recording, np.ndarray]:
    """Returns a run of a behaviour, and its actions (T, 7)."""
    observation, info = env.reset(seed=scene, options=_NO_GOAL)
    policy, rng = make_policy(), np.random.default_rng(scene)
    seen, actions = [(observation, info)], []
    for _ in range(steps):
        actions.append(policy(observation["proprio"], rng))
        observation, _, _, _, info = env.step(actions[-1])
        seen.append((observation, info))
    return _recording(seen), np.stack(actions)


def _replay(
    env: FrankaEnv,
    actions: np.ndarray,
    edit: Callable[[int], None],
    *,
    scene: int,
    step: int,
) -> Recording:
    """Plays the actions again; `edit` is called before every observation from `step` on."""
    seen = [env.reset(seed=scene, options=_NO_GOAL)]
    for t, action in enumerate(actions, start=1):
        if t >= step:
            edit(t - step)
        observation, _, _, _, info = env.step(action)
        seen.append((observation, info))
    return _recording(seen)


def _edit(env: FrankaEnv, kind: str, rng: np.random.Generator) -> Callable[[int], None]:
    """Returns what changes one cube: called with 0, 1, ... before each step of the simulation."""
    arm = env._arm
    name = str(rng.choice(list(franka.CUBES)))
    cube = arm.data.joint(name)
    heading = rng.uniform(-np.pi, np.pi)
    draw = np.random.default_rng(int(rng.integers(2**31)))
    start = np.zeros(3)

    def edit(since: int) -> None:
        if since == 0:
            start[:] = cube.qpos[:3]
        if kind == "slide_object":
            step = [SLIDE * np.cos(heading), SLIDE * np.sin(heading), 0.0]
            _put(cube, start + (since + 1) * np.array(step))
        elif kind == "float_object":
            arm.model.body_gravcomp[arm.model.body(name).id] = 1.0
            _put(cube, start + [0.0, 0.0, (since + 1) * RISE])
        elif since == 0 and kind == "vanish_object":
            _put(cube, GONE)
        elif since == 0 and kind == "teleport_object":
            _put(cube, np.append(_elsewhere(env, name, draw), start[2]))
        elif since == 0 and kind == "recolour_object":
            others = [colour for other, colour in franka.CUBES.items() if other != name]
            arm.model.geom(name).rgba[:3] = others[int(draw.integers(len(others)))]
            env.close()  # the ray caster took the colours when it was built; the next one is new

    return edit


def _put(cube, position: np.ndarray) -> None:
    """Moves a cube's joint to a position (3,) [m], at rest."""
    cube.qpos[:3], cube.qvel[:] = position, 0.0


def _elsewhere(env: FrankaEnv, name: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a free place (2,) on the table, away from where the cube is."""
    cubes = env.cube_pos_base
    for _ in range(_TRIES):
        place = rng.uniform(TABLE_LOW, TABLE_HIGH)
        gaps = {other: np.linalg.norm(place - cubes[other][:2]) for other in cubes}
        if gaps.pop(name) >= TELEPORT_DISTANCE and min(gaps.values()) >= 0.09:
            return place
    raise ValueError(f"no free place on the table for the {name} cube among {cubes}")


def _recording(seen: list) -> Recording:
    return Recording(
        frames=np.stack([observation["image"] for observation, _ in seen]),
        proprio=np.stack([observation["proprio"] for observation, _ in seen]),
        timestamps=np.array([info["timestamp"] for _, info in seen], np.float64),
    )


def _first(recording: Recording, count: int) -> Recording:
    return Recording(
        recording.frames[:count], recording.proprio[:count], recording.timestamps[:count]
    )


def _differ(first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether two pictures differ by as much as a small part of a cube."""
    difference = np.abs(first.astype(int) - second.astype(int)).max(axis=-1)
    needed = VISIBLE_PIXELS * first.shape[0] * first.shape[1] / 128**2
    return bool((difference >= VISIBLE_LEVELS).sum() >= max(1.0, needed))
