"""Records episodes of the simulated arm: on all cores, resumable, the same whatever the hardware.

Episode i depends on (seed, i) and the settings alone: not on the number of workers, nor on which
episodes were there before. A collection that was stopped or killed is continued by asking for it
again.
"""

import functools
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from worldmodel.data.episode import Episode, EpisodeMetadata
from worldmodel.data.store import EpisodeStore

if TYPE_CHECKING:
    from worldmodel.envs.franka_env import FrankaEnv

Backend = Literal["auto", "gl", "ray"]

DEFAULT_TASKS = {"reach": 1.0}
DEFAULT_BEHAVIOURS = {"scripted": 0.25, "noisy": 0.45, "explore": 0.3}

# One thread per worker process: more would only make the workers wait for each other.
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "0",  # llvmpipe, OpenGL without a GPU: draw in the calling thread
}


@dataclass(frozen=True)
class CollectResult:
    """What a collection did.

    Attributes:
        collected: Episodes recorded now.
        found: Episodes that were already there.
        steps_per_second: Environment steps per second of wall time, all workers together.
    """

    collected: int
    found: int
    steps_per_second: float


@dataclass(frozen=True)
class _Job:
    """Everything that decides what one episode looks like."""

    episode_id: int
    seed: int
    task: str
    variation: str
    behaviour: str
    steps: int
    image_size: int
    cameras: tuple[str, ...]
    backend: Backend
    control_hz: float


def collect(
    path: str | Path,
    *,
    episodes: int,
    tasks: Mapping[str, float] | None = None,
    steps: int = 25,
    behaviours: Mapping[str, float] | None = None,
    variations: Mapping[str, float] | None = None,
    seed: int = 0,
    image_size: int = 128,
    cameras: Sequence[str] = ("exterior",),
    backends: Sequence[Backend] = ("auto",),
    control_hz: float = 4.0,
    workers: int | None = None,
    start_index: int = 0,
    progress: bool = True,
) -> CollectResult:
    """Records the episodes `start_index` ... `start_index + episodes - 1` that are not there yet.

    Args:
        path: Folder of the episode store, created where there is none.
        episodes: How many.
        tasks: Weight of each task, such as {"reach": 1.0, "lift": 2.0}; every episode draws one.
            None is `DEFAULT_TASKS`.
        steps: Actions per episode.
        behaviours: Weight of each behaviour of `worldmodel.envs.expert`; every episode draws one.
            None is `DEFAULT_BEHAVIOURS`.
        variations: Weight of each level of `worldmodel.envs.variation`; every episode draws one.
            None is no variation.
        seed: Seed of the collection.
        image_size: Side of the square frames [pixels].
        cameras: Cameras to record.
        backends: Renderers "gl", "ray" or "auto" (gl where OpenGL works), taken in turn by
            episode id.
        control_hz: Actions per second.
        workers: Processes; one per usable core if not given.
        start_index: Id of the first episode, so that several machines can share the work.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An argument is out of range, or the store holds these episodes with other
            settings.
    """
    tasks, behaviours = tasks or DEFAULT_TASKS, behaviours or DEFAULT_BEHAVIOURS
    variations = variations or {"none": 1.0}
    workers = workers or len(os.sched_getaffinity(0))
    for name, value in (("episodes", episodes), ("steps", steps), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not cameras or not backends:
        raise ValueError("name at least one camera and one backend")
    for what, weights in (("task", tasks), ("behaviour", behaviours), ("variation", variations)):
        if any(not weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(f"{what} weights must be >= 0 with a positive sum, got {weights}")

    store = EpisodeStore(path, mode="a")
    jobs = [
        _plan_job(
            i,
            seed=seed,
            tasks=tasks,
            behaviours=behaviours,
            variations=variations,
            steps=steps,
            image_size=image_size,
            cameras=tuple(cameras),
            backend=backends[i % len(backends)],
            control_hz=control_hz,
        )
        for i in range(start_index, start_index + episodes)
    ]
    present = set(store.ids())
    found = [job for job in jobs if job.episode_id in present]
    for job in found:
        _check_same(job, store)
    missing = [job for job in jobs if job.episode_id not in present]

    began = time.perf_counter()
    if missing:
        with tqdm(
            total=episodes,
            initial=len(found),
            desc="collect",
            unit="episode",
            disable=not progress,
        ) as bar:
            _run_jobs(missing, store.path, min(workers, len(missing)), bar)
    elapsed = time.perf_counter() - began
    rate = len(missing) * steps / elapsed if missing else 0.0
    return CollectResult(collected=len(missing), found=len(found), steps_per_second=rate)


def _plan_job(
    episode_id: int,
    *,
    seed: int,
    tasks: Mapping[str, float],
    behaviours: Mapping[str, float],
    variations: Mapping[str, float],
    steps: int,
    image_size: int,
    cameras: tuple[str, ...],
    backend: Backend,
    control_hz: float,
) -> _Job:
    rng = np.random.default_rng([seed, episode_id])
    return _Job(
        episode_id=episode_id,
        seed=int(rng.integers(2**31)),
        behaviour=_draw(behaviours, rng),
        task=_draw(tasks, rng),
        variation=_draw(variations, rng),
        steps=steps,
        image_size=image_size,
        cameras=cameras,
        backend=backend,
        control_hz=control_hz,
    )


def _draw(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """Returns one of the keys, as likely as its weight says."""
    chances = np.array(list(weights.values()), np.float64)
    return str(rng.choice(list(weights), p=chances / chances.sum()))


def _check_same(job: _Job, store: EpisodeStore) -> None:
    """Raises if a stored episode is not the one that `job` would record."""
    metadata = store.read_metadata(job.episode_id)
    shape = store.frame_shape(job.episode_id, metadata.cameras[0])
    for name, wanted, stored in (
        ("seed", job.seed, metadata.seed),
        ("task", job.task, metadata.task),
        ("behaviour", job.behaviour, metadata.behaviour),
        ("variation", job.variation, metadata.variation),
        ("cameras", job.cameras, metadata.cameras),
        ("renderer", job.backend, metadata.renderer),
        ("control_hz", job.control_hz, metadata.control_hz),
        ("frames", (job.steps + 1, job.image_size, job.image_size, 3), shape),
    ):
        if wanted != stored and wanted != "auto":
            raise ValueError(
                f"episode {job.episode_id} in {store.path} was recorded with other settings: its "
                f"{name} is {stored}, these settings give {wanted}; repeat the settings to "
                "continue, or choose another folder or start_index"
            )


def _run_jobs(jobs: Sequence[_Job], path: Path, workers: int, bar: tqdm) -> None:
    # Spawned, not forked: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with _environment_variables(_ONE_THREAD):
        pool = ProcessPoolExecutor(workers, context, initializer=_prepare_worker)
        try:
            for future in as_completed([pool.submit(_record_to_store, job, path) for job in jobs]):
                future.result()
                bar.update()
        except KeyboardInterrupt:
            bar.write(f"stopping; run the same again to continue {path}")
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent decides, workers finish an episode.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that was killed cannot tell its workers to stop.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.process.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _record_to_store(job: _Job, path: Path) -> None:
    EpisodeStore(path, mode="a").write(job.episode_id, _record(job))


def _record(job: _Job) -> Episode:
    """Plays one episode."""
    from worldmodel.envs import expert

    env = _environment(
        job.task, job.variation, job.image_size, job.cameras[0], job.backend, job.control_hz
    )
    observation, info = env.reset(seed=job.seed, options={"demonstrate": False})
    policy, rng = expert.make_policy(job.behaviour, env), np.random.default_rng(job.seed)
    proprio, timestamps = [observation["proprio"]], [info["timestamp"]]
    frames = {camera: [env.view(camera)] for camera in job.cameras[1:]}
    frames[job.cameras[0]] = [observation["image"]]
    for _ in range(job.steps):
        observation, _, _, _, info = env.step(policy(proprio[-1], rng))
        proprio.append(observation["proprio"])
        timestamps.append(info["timestamp"])
        frames[job.cameras[0]].append(observation["image"])
        for camera in job.cameras[1:]:
            frames[camera].append(env.view(camera))
    measured = np.stack(proprio)
    return Episode(
        frames={camera: np.stack(frames[camera]) for camera in job.cameras},
        proprio=measured,
        timestamps=np.array(timestamps, np.float64),
        metadata=EpisodeMetadata(
            source="simulation",
            task=job.task,
            behaviour=job.behaviour,
            seed=job.seed,
            control_hz=job.control_hz,
            variation=job.variation,
            renderer=env.renderer_name,
            mujoco_version=env.mujoco_version,
            cameras=job.cameras,
            robot=env.robot,
        ),
    )


@functools.cache
def _environment(
    task: str, variation: str, image_size: int, camera: str, backend: Backend, control_hz: float
) -> "FrankaEnv":
    """Builds an environment once per worker; `reset` makes it as good as new."""
    import worldmodel.envs  # noqa: F401  (chooses the OpenGL platform before mujoco is imported)
    from worldmodel.envs import bridges
    from worldmodel.envs.franka_env import FrankaEnv

    if bridges.is_bridge(task):
        bridges.require_plain(task, variation)
        return bridges.make_unwrapped(
            task, image_size=image_size, camera=camera, backend=backend, control_hz=control_hz
        )
    return FrankaEnv(
        task=task,
        variation=variation,
        image_size=image_size,
        camera=camera,
        backend=backend,
        control_hz=control_hz,
    )


@contextmanager
def _environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes started within, and puts the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
