"""Does a latent cache hold what its encoder gives? Encodes a sample again and compares."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.data.latent_jobs import Plan, read_plan
from worldmodel.data.latent_shards import QuarantinedEpisode, Recipe, read_receipt
from worldmodel.data.latent_units import (
    Encode,
    encode_checked,
    fresh_receipt,
    pool_tokens,
    read_rows,
)
from worldmodel.data.latents import LatentCache
from worldmodel.data.source import Source

ENCODER_NOISE = 0.02  # of latents with unit variance, between batch sizes and kinds of machine


@dataclass(frozen=True)
class Verification:
    """How stored latents compare with fresh ones.

    Attributes:
        episodes: Episodes encoded again.
        rows: Their rows.
        max_difference: Largest difference of any number.
        rms_difference: Root mean square of all differences.
    """

    episodes: int
    rows: int
    max_difference: float
    rms_difference: float


def check_source(folder: str | Path, source: Source) -> None:
    """Raises ValueError if the source has changed since a cache was made from it.

    `worldmodel.data.latent_jobs.build` does the same and encodes what has changed.
    """
    plan = _plan(Path(folder))
    changed = sorted(set(source.ids()) - {i for unit in plan.units for i in unit})
    for unit, ids in enumerate(plan.units):
        if ids and not fresh_receipt(Path(folder), unit, ids, source=source, recipe=plan.recipe):
            changed += ids
    if changed:
        listed = ", ".join(map(str, changed[:5])) + ", ..." * (len(changed) > 5)
        raise ValueError(
            f"episodes {listed} in {folder} are missing, or their shard was made from an older "
            f"state of {source.path}; run worldmodel encode, which encodes these again"
        )


def verify(
    folder: str | Path, source: Source, encode: Encode, *, sample: int = 8, seed: int = 0
) -> Verification:
    """Encodes a random sample of episodes again and compares every number with the cache.

    The shards that hold them are also compared with the hashes in their receipts, byte by byte.

    Args:
        folder: A finished cache.
        source: What it was made from.
        encode: The encoder it was made with.
        sample: How many episodes.
        seed: Which.

    Raises:
        ValueError: Something differs by more than rounding; the message lists what.
    """
    folder = Path(folder)
    plan = _plan(folder)
    cache = LatentCache(folder, plan.recipe.key)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(cache.ids, min(sample, len(cache)), replace=False)).tolist()
    wrong: list[str] = []
    for unit, ids in enumerate(plan.units):
        receipt = read_receipt(folder, unit) if set(ids) & set(chosen) else None
        if receipt is not None and _sha256(folder / receipt.shard) != receipt.sha256:
            wrong.append(f"{receipt.shard} is damaged: its bytes are not those that were written")
    largest, squares, count, rows = 0.0, 0.0, 0, 0
    for i in chosen:
        read = read_rows(source, i, plan.recipe, None)
        if isinstance(read, QuarantinedEpisode):
            wrong.append(f"episode {i} can no longer be read: {'; '.join(read.reasons)}")
            continue
        if not (
            np.array_equal(read.proprio, cache.proprio(i))
            and np.array_equal(read.timestamps, cache.timestamps(i))
        ):
            wrong.append(f"episode {i} has other rows, poses or times now; encode again")
            continue
        latents = encode_checked(encode, read.frames, f"episode {i}")
        if plan.recipe.pool > 1:
            latents = pool_tokens(latents, plan.recipe.pool)
        difference = np.abs(np.asarray(cache.latents(i), np.float32) - latents)
        beyond = difference > _rounding(latents, plan.recipe) + ENCODER_NOISE
        if beyond.any():
            frame = int(np.argwhere(beyond)[0][0])
            wrong.append(
                f"episode {i}: {beyond.sum()} of {beyond.size} numbers differ, the first in frame "
                f"{frame}, by up to {difference.max():.3g}"
            )
        largest = max(largest, float(difference.max()))
        squares += float(np.square(difference).sum(dtype=np.float64))
        count, rows = count + difference.size, rows + len(latents)
    if wrong:
        raise ValueError(
            f"{folder} does not hold what the encoder gives:\n  " + "\n  ".join(wrong) + "\n"
            "delete the folder and encode again"
        )
    return Verification(len(chosen), rows, largest, math.sqrt(squares / count))


def _plan(folder: Path) -> Plan:
    plan = read_plan(folder)
    if plan is None:
        raise FileNotFoundError(f"no latent cache at {folder}: plan.json is missing")
    return plan


def _rounding(latents: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Returns how far a stored number may be from what was encoded."""
    if recipe.dtype == "int8":
        return np.abs(latents).max(axis=-1, keepdims=True) / 127 / 2
    return np.abs(latents) * 2.0**-11


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
