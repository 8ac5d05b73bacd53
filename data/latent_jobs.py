"""Encoding a whole data set: units of work that any number of processes share out among them.

A plan fixes once which episodes make up which unit, about one shard of 1 GB each. A process takes
the units `rank::world` and skips those whose receipt says that nothing has changed; the last one to
finish writes the index. So any process may be killed at any time, run again, or run twice at once;
what comes out is the same.
"""

import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldmodel.data.latent_ray import RayCluster, run_on_ray
from worldmodel.data.latent_shards import (
    QuarantinedEpisode,
    Receipt,
    Recipe,
    drafts,
    read_receipt,
    receipt_file,
    write_json,
)
from worldmodel.data.latent_units import (
    Check,
    Encode,
    Rows,
    encode_checked,
    encode_unit,
    fresh_receipt,
    pool_tokens,
    read_rows,
    wanted_rows,
)
from worldmodel.data.latents import FORMAT_VERSION, LatentCache
from worldmodel.data.source import Source

SHARD_BYTES = 10**9
SAMPLE_EPISODES = 16  # looked at to plan a job
TIMED_FRAMES = 64


@dataclass(frozen=True)
class Plan:
    """What makes up a cache, fixed before the first shard.

    Attributes:
        recipe: How its latents come about.
        source: Where the episodes lie.
        tokens: Tokens of a frame.
        size: Numbers of a token.
        hz: Rate of the rows [Hz].
        rows: Mean number of rows of an episode, from a sample.
        units: Ids of the episodes of each unit.
    """

    recipe: Recipe
    source: str
    tokens: int
    size: int
    hz: float
    rows: float
    units: list[list[int]]

    @property
    def row_bytes(self) -> int:
        """Bytes of the latents of a row."""
        return _row_bytes(self.recipe, self.tokens, self.size)


@dataclass(frozen=True)
class Estimate:
    """The arithmetic of a job before it starts.

    Attributes:
        episodes: Episodes to encode.
        frames: Frames to encode, from the mean of a sample.
        gib: What they take on disk [GiB].
        seconds_per_frame: Measured on a first batch, by one process.
        processes: How many work at it; assumed not to slow each other down.
    """

    episodes: int
    frames: int
    gib: float
    seconds_per_frame: float
    processes: int

    @property
    def hours(self) -> float:
        """How long it takes [h], without reading."""
        return self.frames * self.seconds_per_frame / self.processes / 3600

    def __str__(self) -> str:
        duration = f"{60 * self.hours:.1f} min" if self.hours < 2 else f"{self.hours:.1f} h"
        return (
            f"{self.episodes} episodes, about {self.frames} frames: {self.gib:.3g} GiB, {duration} "
            f"of encoding with {self.processes} process{'es' * (self.processes > 1)} "
            f"({1 / self.seconds_per_frame:.0f} frames/s each)"
        )


def build(
    folder: str | Path,
    source: Source,
    encode: Encode,
    *,
    recipe: Recipe,
    check: Check | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
    cluster: RayCluster | None = None,
    max_quarantined: float = 0.1,
    confirm_above_gib: float = 50.0,
    confirmed: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> LatentCache | None:
    """Encodes what a cache lacks of a source, or has of an older state of it.

    Args:
        folder: Folder of this cache alone; named by `recipe.key` it can hold no other.
        source: Episodes to encode.
        encode: The encoder.
        recipe: What the encoder is and does, and which rows are wanted.
        check: What else makes an episode unfit; those that break the schema or cannot be read are.
        rank: Number of this process among `world` that work at the same cache.
        world: How many there are; each takes every `world`-th unit.
        workers: Processes that this one starts for its units.
        cluster: Ray cluster that they are started on; None starts them on this machine.
        max_quarantined: Share of unfit episodes above which the job stops.
        confirm_above_gib: Size of the job [GiB] above which it does not start without `confirmed`.
        confirmed: Whether it may be larger.
        shard_bytes: Size of a unit, about.
        progress: Whether to print the arithmetic, the quarantined and a progress bar.

    Returns:
        The finished cache; None while units of other ranks are not finished.

    Raises:
        ValueError: The folder holds latents of another recipe or data set; an encoding has a wrong
            shape or does not fit into the type; too many episodes are unfit; or the job is large.
        RuntimeError: Ray's workers keep dying.
    """
    folder = Path(folder)
    if not 0 <= rank < world:
        raise ValueError(f"rank must be within 0..{world - 1}, got {rank}")
    plan = make_plan(folder, source, encode, recipe=recipe, shard_bytes=shard_bytes)
    mine = [unit for unit in range(len(plan.units))[rank::world] if plan.units[unit]]
    limit = max_quarantined * sum(map(len, plan.units))

    todo, refused, outdated = [], [], 0
    for unit in tqdm(mine, desc="compare", unit="shard", disable=not progress):
        receipt = fresh_receipt(
            folder, unit, plan.units[unit], source=source, recipe=recipe, check=check
        )
        if receipt is None:
            todo.append(unit)
            outdated += receipt_file(folder, unit).exists()
        else:
            refused += receipt.quarantined
    if outdated and progress:
        made = "shard was" if outdated == 1 else "shards were"
        print(f"{outdated} {made} made from an older state of {source.path}", flush=True)
    if todo:
        work = estimate(source, encode, plan=plan, units=todo, processes=workers)
        if progress:
            print(f"to encode: {work}", flush=True)
        if work.gib * world > confirm_above_gib and not confirmed:
            share = f", one of {world} shares" if world > 1 else ""
            raise ValueError(
                f"this job is large: {work}{share}; above {confirm_above_gib:g} GiB in all it "
                "starts only with confirmed=true (a lower rate, pooling or int8 make it smaller)"
            )
        (folder / "index.json").unlink(missing_ok=True)  # of an older state of the source
    job = _Job(folder, plan, source, encode, check)
    with tqdm(
        total=sum(len(plan.units[unit]) for unit in todo),
        desc="encode",
        unit="episode",
        disable=not (progress and todo),
    ) as bar:
        for receipt in _run(job, todo, workers, cluster):
            refused += receipt.quarantined
            _check_share(refused, limit, source)
            bar.update(len(receipt.ids))
    _check_share(refused, limit, source)
    cache = finalise(folder, plan, max_quarantined=max_quarantined)
    if progress and cache is not None:
        print(cache.statistics, flush=True)
        for entry in cache.quarantined:
            print(f"quarantined: episode {entry.episode}: {'; '.join(entry.reasons)}", flush=True)
    return cache


def make_plan(
    folder: Path, source: Source, encode: Encode, *, recipe: Recipe, shard_bytes: int = SHARD_BYTES
) -> Plan:
    """Returns the plan of a cache, made if there is none, and extended if the source has grown.

    A plan follows from source and recipe alone, so processes that make it at once make the same.
    Units that exist keep their episodes; those of episodes that are gone lose them.

    Raises:
        ValueError: The folder holds another cache; or no episode of a sample can be read.
    """
    ids = [int(i) for i in source.ids()]
    where = str(Path(source.path).resolve())
    old = read_plan(folder)
    if old is None:
        plan = _first_plan(source, encode, ids=ids, where=where, recipe=recipe)
    else:
        _check_same(folder, old, source, where, recipe)
        plan = old
    known, present = {i for unit in plan.units for i in unit}, set(ids)
    units = [[i for i in unit if i in present] for unit in plan.units]
    new = [i for i in ids if i not in known]
    step = max(1, round(shard_bytes / (plan.rows * plan.row_bytes)))
    units += [new[begin : begin + step] for begin in range(0, len(new), step)]
    plan = Plan(**{**vars(plan), "source": where, "units": units})
    if plan != old:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", asdict(plan))
    return plan


def read_plan(folder: Path) -> Plan | None:
    """Returns the plan in a folder, or None if there is none."""
    try:
        record = json.loads((folder / "plan.json").read_text())
    except FileNotFoundError:
        return None
    return Plan(**{**record, "recipe": Recipe(**record["recipe"])})


def estimate(
    source: Source, encode: Encode, *, plan: Plan, units: Sequence[int], processes: int = 1
) -> Estimate:
    """Returns the arithmetic of encoding some units, after timing one batch of their frames."""
    episodes = sum(len(plan.units[unit]) for unit in units)
    ids = [i for unit in plan.units for i in unit]
    frames, _ = _first_frames(source, _spread(ids), plan.recipe)
    encode(frames[:1])  # the first call also loads and compiles
    begin = time.perf_counter()
    encode(frames)
    seconds = (time.perf_counter() - begin) / len(frames)
    count = round(episodes * plan.rows)
    return Estimate(episodes, count, count * plan.row_bytes / 2**30, seconds, processes)


def finalise(folder: Path, plan: Plan, *, max_quarantined: float = 1.0) -> LatentCache | None:
    """Writes the index and opens the cache; returns None if a unit has no receipt yet.

    Raises:
        ValueError: No episode is left, or more are quarantined than may be.
    """
    receipts: list[Receipt] = []
    for unit, ids in enumerate(plan.units):
        if not ids:
            receipt_file(folder, unit).unlink(missing_ok=True)
            continue
        receipt = read_receipt(folder, unit)
        if receipt is None or receipt.ids != sorted(ids):
            return None
        receipts.append(receipt)
    quarantined = [entry for receipt in receipts for entry in receipt.quarantined]
    total = sum(map(len, plan.units))
    limit = max_quarantined * total if len(quarantined) < total else -1.0
    _check_share(quarantined, limit, plan.source)
    full = [receipt for receipt in receipts if receipt.shard]
    write_json(
        folder / "index.json",
        {
            "worldmodel_latent_cache": FORMAT_VERSION,
            "key": plan.recipe.key,
            "recipe": asdict(plan.recipe),
            "hz": plan.hz,
            "shards": [
                {
                    "file": receipt.shard,
                    "weights": receipt.weights,
                    "error_squares": receipt.error_squares,
                    "value_squares": receipt.value_squares,
                }
                for receipt in full
            ],
            "episode": [entry.episode for receipt in full for entry in receipt.episodes],
            "shard": [shard for shard, receipt in enumerate(full) for _ in receipt.episodes],
            "row": [entry.row for receipt in full for entry in receipt.episodes],
            "rows": [entry.rows for receipt in full for entry in receipt.episodes],
            "quarantined": [asdict(entry) for entry in quarantined],
        },
    )
    used = {receipt.shard for receipt in full}
    for file in [*folder.glob("shard-*"), *drafts(folder)]:
        if file.name not in used:
            file.unlink(missing_ok=True)
    return LatentCache(folder, plan.recipe.key)


def rank_and_world(environ: Mapping[str, str]) -> tuple[int, int]:
    """Returns which of how many processes this is, as torchrun or a Slurm array says; else 0, 1."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" in environ:
        first = int(environ.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
        rank = (int(environ["SLURM_ARRAY_TASK_ID"]) - first) // step
        return rank, int(environ["SLURM_ARRAY_TASK_COUNT"])
    return 0, 1


@dataclass(frozen=True)
class _Job:
    """What a worker process needs besides the number of a unit."""

    folder: Path
    plan: Plan
    source: Source
    encode: Encode
    check: Check | None

    def run(self, unit: int) -> Receipt:
        return encode_unit(
            unit,
            self.plan.units[unit],
            folder=self.folder,
            source=self.source,
            encode=self.encode,
            recipe=self.plan.recipe,
            check=self.check,
        )


_job_of_this_process: _Job | None = None  # so that an encoder is sent to a worker only once


def _start_worker(job: _Job) -> None:
    global _job_of_this_process
    _job_of_this_process = job


def _run_in_worker(unit: int) -> Receipt:
    assert _job_of_this_process is not None
    return _job_of_this_process.run(unit)


def _run(
    job: _Job, units: Sequence[int], workers: int, cluster: RayCluster | None
) -> Iterator[Receipt]:
    if cluster is not None and units:
        yield from run_on_ray(job.run, units, workers=workers, cluster=cluster)
        return
    if workers <= 1 or len(units) <= 1:
        yield from map(job.run, units)
        return
    with ProcessPoolExecutor(
        min(workers, len(units)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(job,),
    ) as pool:
        try:
            yield from pool.map(_run_in_worker, units)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _first_plan(
    source: Source, encode: Encode, *, ids: Sequence[int], where: str, recipe: Recipe
) -> Plan:
    sample = _spread(ids)
    frames, hz = _first_frames(source, sample, recipe)
    latents = encode_checked(encode, frames[:1], "the first frame")
    if recipe.pool > 1:
        latents = pool_tokens(latents, recipe.pool)
    counts = []
    for i in sample:
        try:
            episode = source.read(i)
            counts.append(len(wanted_rows(episode, recipe)))
        except (ValueError, OSError):  # it will be quarantined
            continue
    _, tokens, size = latents.shape
    return Plan(recipe, where, tokens, size, hz, float(np.mean(counts)), [])


def _first_frames(source: Source, ids: Sequence[int], recipe: Recipe) -> tuple[np.ndarray, float]:
    """Returns frames of the first of some episodes that can be read, and the rate of its rows."""
    reasons = []
    for i in ids:
        try:
            episode = source.read(i)
            rows = wanted_rows(episode, recipe)
            frames = episode.frames[recipe.camera][rows[:TIMED_FRAMES]]
        except (ValueError, OSError) as error:
            reasons.append(f"episode {i}: {error}")
            continue
        return frames, recipe.hz or episode.metadata.control_hz
    listed = "\n  ".join(reasons[:3])
    raise ValueError(
        f"none of {len(ids)} episodes of {source.path} can be encoded; the first:\n  {listed}\n"
        f"run: worldmodel inspect {source.path} --check"
    )


def _check_same(folder: Path, plan: Plan, source: Source, where: str, recipe: Recipe) -> None:
    if plan.recipe != recipe:
        raise ValueError(
            f"{folder} holds latents with key '{plan.recipe.key}', not '{recipe.key}'; the "
            "encoder, its preprocessing, the camera, the rate or the type has changed; use another "
            "folder"
        )
    if plan.source == where:
        return
    # The data set may have moved. If it is another one, its latents must not mix with these.
    for unit in range(len(plan.units)):
        receipt = read_receipt(folder, unit)
        if receipt is None or not receipt.episodes:
            continue
        entry = receipt.episodes[0]
        here = entry.episode in set(source.ids())
        read = read_rows(source, entry.episode, recipe, None) if here else None
        if isinstance(read, Rows) and read.content == entry.content:
            return
        raise ValueError(
            f"{folder} holds latents of {plan.source}, and {where} is another data set of the same "
            "name; choose another cache folder for it"
        )


def _check_share(quarantined: Sequence[QuarantinedEpisode], limit: float, source: object) -> None:
    if len(quarantined) <= limit:
        return
    path = source.path if isinstance(source, Source) else source
    listed = "\n  ".join(f"episode {q.episode}: {'; '.join(q.reasons)}" for q in quarantined[:3])
    raise ValueError(
        f"{len(quarantined)} episodes must be left out, more than max_quarantined allows; the "
        f"first:\n  {listed}\nlook at all of them: worldmodel inspect {path} --check"
    )


def _row_bytes(recipe: Recipe, tokens: int, size: int) -> int:
    return tokens * (size + 4 if recipe.dtype == "int8" else 2 * size)


def _spread(ids: Sequence[int]) -> list[int]:
    """Returns up to `SAMPLE_EPISODES` ids, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(ids) - 1, SAMPLE_EPISODES).round().astype(int))
    return [int(ids[i]) for i in chosen]
