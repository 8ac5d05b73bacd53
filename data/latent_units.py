"""One unit of encoding: a list of episodes becomes a shard of latents and a receipt.

`encode_unit` is a plain function of plain arguments that pickle, so whatever starts processes can
run it: `worldmodel.data.latent_jobs`, torchrun, a Slurm array, Ray. What it writes appears whole or
not at all and depends on its arguments alone, so it may be killed, run again, or run twice at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Episode, find_problems
from worldmodel.data.latent_shards import (
    MOMENTS,
    EncodedEpisode,
    QuarantinedEpisode,
    Receipt,
    Recipe,
    quantise,
    read_receipt,
    receipt_file,
    restore,
    write_json,
    write_receipt,
    write_shard,
)
from worldmodel.data.moments import Moments
from worldmodel.data.sampling import rows_at_rate
from worldmodel.data.source import Source
from worldmodel.data.stamps import content_of, stamp_of

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 frames (T, height, width, 3) -> floating latents (T, tokens, size); picklable."""

Check = Callable[[Source, int], Sequence[str]]
"""Source and episode id -> why the episode must not be used, one sentence each; picklable."""

_UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Rows:
    """The rows of an episode that are encoded, with the hashes of where they come from."""

    frames: np.ndarray
    proprio: np.ndarray
    timestamps: np.ndarray
    stamp: str
    content: str


def encode_unit(
    unit: int,
    ids: Sequence[int],
    *,
    folder: Path,
    source: Source,
    encode: Encode,
    recipe: Recipe,
    check: Check | None = None,
) -> Receipt:
    """Encodes the episodes `ids` into one shard and writes its receipt; if it has one, nothing.

    Raises:
        ValueError: The encoder gave something of a wrong shape or type.
    """
    finished = fresh_receipt(folder, unit, ids, source=source, recipe=recipe, check=check)
    if finished is not None:
        return finished
    receipt_file(folder, unit).unlink(missing_ok=True)  # of an older state of the source
    parts: dict[str, list[np.ndarray]] = {}
    encoded: list[EncodedEpisode] = []
    quarantined: list[QuarantinedEpisode] = []
    moments = {which: Moments() for which in MOMENTS}
    errors, values, row = 0.0, 0.0, 0
    for i in ids:
        read = read_rows(source, i, recipe, check)
        if isinstance(read, QuarantinedEpisode):
            quarantined.append(read)
            continue
        latents = encode_checked(encode, read.frames, f"episode {i}")
        if recipe.pool > 1:
            moments["unpooled"] += Moments.of(latents)
            latents = pool_tokens(latents, recipe.pool)
        stored = _stored(latents, recipe, f"episode {i}")
        back = _restored(stored)
        errors += float(np.square(back - latents).sum(dtype=np.float64))
        values += float(np.square(latents).sum(dtype=np.float64))
        of_rows = Moments.of(back)
        moments["row"] += of_rows
        # An episode's mean counts by its rows; see `Statistics.standard_error`.
        moments["episode"] += Moments(len(back) ** 2.0, of_rows.mean, np.zeros_like(of_rows.mean))
        stored |= {"proprio": read.proprio, "timestamps": read.timestamps}
        for name, part in stored.items():
            parts.setdefault(name, []).append(part)
        encoded.append(EncodedEpisode(i, row, len(latents), read.stamp, read.content))
        row += len(latents)
    shard, digest = "", ""
    if encoded:
        for which in MOMENTS:
            if moments[which].weight:
                parts[f"{which}_mean"] = [moments[which].mean]
                parts[f"{which}_squares"] = [moments[which].squares]
        folder.mkdir(parents=True, exist_ok=True)
        shard, digest = write_shard(folder, unit, parts, {"key": recipe.key})
    return write_receipt(
        folder,
        Receipt(
            unit=unit,
            key=recipe.key,
            shard=shard,
            sha256=digest,
            rows=row,
            weights={which: moments[which].weight for which in MOMENTS},
            error_squares=errors,
            value_squares=values,
            episodes=tuple(encoded),
            quarantined=tuple(quarantined),
        ),
    )


def fresh_receipt(
    folder: Path,
    unit: int,
    ids: Sequence[int],
    *,
    source: Source,
    recipe: Recipe,
    check: Check | None = None,
) -> Receipt | None:
    """Returns the receipt of a unit if it is finished and its source has not changed since.

    Episodes whose files only look different, as after a copy, or whose mapping has changed, are
    checked again, read and compared; their receipt then gets the new stamps. With a check,
    quarantined episodes are always tried again.
    """
    receipt = read_receipt(folder, unit)
    if receipt is None or receipt.key != recipe.key or receipt.ids != sorted(ids):
        return None
    if receipt.shard and not (folder / receipt.shard).is_file():
        return None
    for entry in receipt.quarantined:
        changed = _stamp(source, entry.episode, recipe.camera) != entry.stamp
        if changed and check is None:
            return None
        if check is not None and isinstance(read_rows(source, entry.episode, recipe, check), Rows):
            return None
    episodes = []
    for entry in receipt.episodes:
        stamp = _stamp(source, entry.episode, recipe.camera)
        if stamp != entry.stamp:
            read = read_rows(source, entry.episode, recipe, check)
            if isinstance(read, QuarantinedEpisode) or read.content != entry.content:
                return None
        episodes.append(EncodedEpisode(**{**vars(entry), "stamp": stamp}))
    fresh = Receipt(**{**vars(receipt), "episodes": tuple(episodes)})
    if fresh != receipt:
        write_json(receipt_file(folder, unit), fresh.to_json())
    return fresh


def read_rows(
    source: Source, i: int, recipe: Recipe, check: Check | None
) -> Rows | QuarantinedEpisode:
    """Returns the rows of an episode, or why it must not be used."""
    stamp = _UNREADABLE
    try:
        episode = source.read(i)
        if recipe.camera in episode.frames:
            stamp = stamp_of(episode, recipe.camera, meaning=repr(source.mapping))
        reasons = list(check(source, i)) if check is not None else []
        reasons = reasons or find_problems(episode)
        if reasons:
            return QuarantinedEpisode(i, stamp, tuple(reasons))
        rows = wanted_rows(episode, recipe)
        frames = episode.frames[recipe.camera][rows]
    except (ValueError, OSError) as error:
        return QuarantinedEpisode(i, stamp, (str(error),))
    proprio, timestamps = episode.proprio[rows], episode.timestamps[rows]
    return Rows(frames, proprio, timestamps, stamp, content_of(frames, proprio, timestamps))


def wanted_rows(episode: Episode, recipe: Recipe) -> np.ndarray:
    """Returns the numbers of the rows of an episode that a recipe takes.

    Raises:
        ValueError: The camera is missing, the rate does not fit, or no row is usable.
    """
    if recipe.camera not in episode.frames:
        raise ValueError(f"no camera '{recipe.camera}'; it has {', '.join(episode.frames)}")
    rows = rows_at_rate(episode.timestamps, recipe.hz, usable=episode.usable)
    if len(rows) == 0:
        raise ValueError("the log marks none of its rows as usable")
    return rows


def pool_tokens(latents: np.ndarray, pool: int) -> np.ndarray:
    """Returns latents (T, tokens / pool^2, size): means over squares of a square grid of tokens."""
    frames, tokens, size = latents.shape
    side = math.isqrt(tokens)
    if side * side != tokens or side % pool:
        raise ValueError(
            f"{tokens} tokens cannot be pooled {pool}x{pool}; they must be a square grid whose side"
            f" is a multiple of {pool}"
        )
    squares = latents.reshape(frames, side // pool, pool, side // pool, pool, size)
    return squares.mean(axis=(2, 4), dtype=np.float32).reshape(frames, -1, size)


def encode_checked(encode: Encode, frames: np.ndarray, name: str) -> np.ndarray:
    """Returns float32 latents; raises ValueError if the encoder gave something else."""
    latents = np.asarray(encode(frames))
    if latents.ndim != 3 or len(latents) != len(frames) or latents.dtype.kind != "f":
        raise ValueError(
            f"{name}: encode gave {latents.dtype} {latents.shape} for {len(frames)} frames; "
            f"expected floats ({len(frames)}, tokens, size)"
        )
    return latents.astype(np.float32, copy=False)


def _stamp(source: Source, i: int, camera: str) -> str:
    try:
        episode = source.read(i)
    except (ValueError, OSError):
        return _UNREADABLE
    if camera not in episode.frames:
        return _UNREADABLE
    return stamp_of(episode, camera, meaning=repr(source.mapping))


def _stored(latents: np.ndarray, recipe: Recipe, name: str) -> dict[str, np.ndarray]:
    limit = np.finfo(np.float16).max
    if not (np.abs(latents) <= limit).all():  # also false for NaN
        raise ValueError(f"{name}: latents are not finite, or beyond float16 (largest {limit:.4g})")
    if recipe.dtype == "int8":
        values, scale = quantise(latents)
        return {"latents": values, "scale": scale}
    return {"latents": latents.astype(np.float16)}


def _restored(stored: Mapping[str, np.ndarray]) -> np.ndarray:
    if "scale" in stored:
        return restore(stored["latents"], stored["scale"])
    return stored["latents"].astype(np.float32)
