"""Does the model know what cannot happen? Pairs of a possible and an impossible run, compared.

Source of the protocol: Riochet et al. 2018, "IntPhys", arXiv 1803.07616.
"""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from worldmodel import envs
from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.envs.cameras import Backend
from worldmodel.envs.expert import make_policy
from worldmodel.envs.franka_env import FrankaEnv
from worldmodel.envs.violations import CONTROL, KINDS, PhysicsPair, Recording, make_pair
from worldmodel.jepa import JEPA
from worldmodel.results import wilson_interval
from worldmodel.runs import describe_machine, write_json
from worldmodel.surprise import EpisodeSurprise, episode_surprise
from worldmodel.surprise_calibration import SurpriseCalibration
from worldmodel.surprise_page import frames_around, write_pictures


@dataclass(frozen=True)
class KindResult:
    """What the model made of one kind of violation.

    Attributes:
        kind: One of `worldmodel.envs.violations.KINDS`.
        pairs: How many pairs.
        higher: In how many the impossible run was the more surprising one, from the violation on
            (the runs are equal before, which would only make ties).
        flagged: How many impossible runs were flagged.
        possible_flagged: How many possible runs were.
    """

    kind: str
    pairs: int
    higher: int
    flagged: int
    possible_flagged: int


@dataclass(frozen=True)
class PhysicsResult:
    """All kinds of violations; the control is not part of the sums over impossible runs."""

    kinds: tuple[KindResult, ...]

    @property
    def violations(self) -> tuple[KindResult, ...]:
        """The kinds that are impossible: all but the control."""
        return tuple(kind for kind in self.kinds if kind.kind != CONTROL)

    @property
    def paired(self) -> tuple[int, int]:
        """In how many pairs the impossible run was the more surprising one, and of how many."""
        return _sum(self.violations, "higher"), _sum(self.violations, "pairs")

    @property
    def flagged(self) -> tuple[int, int]:
        """How many impossible runs were flagged, and of how many."""
        return _sum(self.violations, "flagged"), _sum(self.violations, "pairs")

    @property
    def false_flags(self) -> tuple[int, int]:
        """How many possible runs were flagged, and of how many."""
        return _sum(self.kinds, "possible_flagged"), _sum(self.kinds, "pairs")


def measure_physics(
    *,
    world: JEPA,
    calibration: SurpriseCalibration,
    run: Path,
    task: str,
    behaviour: str,
    pairs: int,
    steps: int,
    seed: int,
    backend: Backend,
    progress: bool = True,
) -> PhysicsResult:
    """Plays pairs of every kind, scores them, writes `physics.json` and a picture of each kind.

    Args:
        world: The model.
        calibration: Of this model; its camera is used.
        run: Folder of the results.
        task: Name of the task whose scenes are used.
        behaviour: Who chooses the actions, see `worldmodel.envs.expert`.
        pairs: Pairs of each kind.
        steps: Actions of each run.
        seed: Of the first pair of a kind; the following ones count on from it.
        backend: Renderer: "auto", "gl" or "ray".
        progress: Whether to show a progress bar.

    Raises:
        ValueError: `pairs` is below 1, or a scene cannot show a violation.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    env = envs.make(
        task,
        image_size=world.image_size,
        camera=calibration.camera,
        backend=backend,
        control_hz=world.control_hz or 4.0,
        max_episode_steps=None,
    ).unwrapped
    assert isinstance(env, FrankaEnv)
    results = []
    bar = tqdm(total=pairs * len(KINDS), desc="physics", unit="pair", disable=not progress)
    for kind in KINDS:
        higher = flagged = possible_flagged = 0
        for number in range(pairs):
            pair = make_pair(
                env, kind, lambda: make_policy(behaviour, env), seed=seed + number, steps=steps
            )
            possible, impossible = (
                episode_surprise(world, calibration, _episode(recording, env, behaviour))
                for recording in (pair.possible, pair.impossible)
            )
            higher += _worst_since(impossible, pair) > _worst_since(possible, pair)
            flagged += impossible.flagged
            possible_flagged += possible.flagged
            if number == 0:
                frames = pair.impossible.frames[frames_around(impossible)]
                write_pictures(run, impossible, frames, name=kind)
            bar.update()
        results.append(KindResult(kind, pairs, higher, flagged, possible_flagged))
    bar.close()
    renderer = env.renderer_name
    env.close()
    result = PhysicsResult(tuple(results))
    write_json(
        run / "physics.json",
        {
            "task": task,
            "behaviour": behaviour,
            "seed": seed,
            "pairs": pairs,
            "steps": steps,
            "camera": calibration.camera,
            "renderer": renderer,
            "calibration": calibration.recordings,
            "kinds": {
                kind.kind: {
                    "control": kind.kind == CONTROL,
                    "paired_accuracy": _rate(kind.higher, kind.pairs),
                    "flagged": _rate(kind.flagged, kind.pairs),
                }
                for kind in result.kinds
            },
            "paired_accuracy": _rate(*result.paired),
            "flagged": _rate(*result.flagged),
            "false_flags": _rate(*result.false_flags),
            "machine": describe_machine(),
        },
    )
    return result


def physics_table(result: PhysicsResult) -> str:
    """Returns the result as lines of text."""
    lines = [f"{'':<16} {'impossible is more surprising':<31} flagged"]
    for kind in result.kinds:
        name = f"{kind.kind}{' (control)' if kind.kind == CONTROL else ''}"
        lines.append(f"{name:<26}{_text(kind.higher, kind.pairs)}{_text(kind.flagged, kind.pairs)}")
    lines.append(f"{'all but the control':<26}{_text(*result.paired)}{_text(*result.flagged)}")
    lines.append(f"{'possible runs':<26}{'':<24}{_text(*result.false_flags)}")
    return "\n".join(line.rstrip() for line in lines)


def _worst_since(surprise: EpisodeSurprise, pair: PhysicsPair) -> float:
    return float(surprise.scores[surprise.rows >= pair.step].max())


def _episode(recording: Recording, env: FrankaEnv, behaviour: str) -> Episode:
    return Episode(
        frames={env.camera: recording.frames},
        proprio=recording.proprio,
        timestamps=recording.timestamps,
        metadata=EpisodeMetadata(
            source="simulation",
            task="physics",
            behaviour=behaviour,
            seed=-1,
            control_hz=env.control_hz,
            renderer=env.renderer_name,
            mujoco_version="",
            cameras=(env.camera,),
        ),
    )


def _sum(kinds: tuple[KindResult, ...], name: str) -> int:
    return sum(getattr(kind, name) for kind in kinds)


def _rate(count: int, total: int) -> dict[str, object]:
    return {
        "count": count,
        "of": total,
        "rate": count / total,
        "wilson95": list(wilson_interval(count, total)),
    }


def _text(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{count / total:>5.0%} ({low:.0%} to {high:.0%})".ljust(24)
