"""Goes on from a trained predictor: for another arm, another rate, other recordings.

Either all of it is trained, or, with a rank, only low-rank changes of the transformer's large
matrices (LoRA, Hu et al. 2022, arXiv 2106.09685, eq. 3) and, whole, what reads poses and actions:
that is what another arm says otherwise. The changes are added into the matrices before a model is
written, so that what comes out is a checkpoint like any other.
"""

import copy
import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from worldmodel import checkpoint
from worldmodel.encode import LatentJob
from worldmodel.jepa import JEPA
from worldmodel.pose import action_between
from worldmodel.state_head import StateHead

RATE_TOLERANCE = 0.05
UNIT_FACTOR = 50.0  # moves that differ by more are in other units: degrees are a factor of 57
LEAST_MOVE = 1e-3  # [m, rad, gripper]; an axis that moves less says nothing of its unit
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


class LowRank(nn.Module):
    """A change of a matrix, the product of two thin ones; zero at first.

    Args:
        rows: Of the matrix.
        columns: Of the matrix.
        rank: Width of the thin ones.
    """

    def __init__(self, rows: int, columns: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Returns the changed matrix."""
        return weight + self.up @ self.down


def add_low_rank(predictor: nn.Module, rank: int) -> None:
    """Freezes the transformer of a predictor and lets low-rank changes of it be trained.

    Args:
        predictor: Its embedding of latents, its blocks and its output projection are frozen; what
            reads poses and actions is not.
        rank: Of the changes.

    Raises:
        ValueError: The rank is not positive, or as large as a matrix.
    """
    for name in ("predictor_embed", "predictor_blocks", "predictor_norm", "predictor_proj"):
        predictor.get_submodule(name).requires_grad_(False)
    for name, linear in _matrices(predictor):
        rows, columns = linear.weight.shape
        if not 1 <= rank < min(rows, columns):
            raise ValueError(
                f"lora_rank must be between 1 and {min(rows, columns) - 1} for {name} of "
                f"{rows} x {columns}, got {rank}"
            )
        parametrize.register_parametrization(linear, "weight", LowRank(rows, columns, rank))


def merge_low_rank(predictor: nn.Module) -> None:
    """Adds the changes into the matrices; the predictor computes the same as before."""
    for _, linear in _matrices(predictor):
        if parametrize.is_parametrized(linear, "weight"):
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)


def _matrices(predictor: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    blocks = predictor.get_submodule("predictor_blocks")
    for name, module in list(blocks.named_modules()):
        if isinstance(module, nn.Linear):
            yield name, module


def continued(
    start: JEPA,
    *,
    hz: float,
    proprio: Float[Tensor, "windows frames 7"],
    state_head: Literal["trained", "kept", "dropped"],
    lora_rank: int | None,
    seed: int,
) -> JEPA:
    """Returns a world model with the weights and scales of another, to be trained further.

    Args:
        start: The model, which is left as it is.
        hz: Rate of the recordings [Hz].
        proprio: Poses of training windows, which say how far one step goes.
        state_head: "trained": that of `start` if it has one, else a new one; "kept": that of
            `start`, as it is; "dropped": none.
        lora_rank: Rank of the changes; None trains everything.
        seed: Of what is new.
    """
    predictor = copy.deepcopy(start.predictor).requires_grad_(True)
    head = copy.deepcopy(start.state_head) if state_head != "dropped" else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if lora_rank is not None:
            add_low_rank(predictor, lora_rank)
        if state_head == "trained" and head is None:
            tokens = predictor.num_views * predictor.grid_size[0] * predictor.grid_size[1]
            head = StateHead(latent_dim=predictor.latent_dim, num_tokens=tokens)
            head.set_scales(proprio.flatten(0, 1))
    if head is not None:
        head.requires_grad_(state_head == "trained")
    moves = action_between(proprio[:, :-1], proprio[:, 1:]).abs().flatten(0, 1)
    world = JEPA(
        encoder=start.encoder,
        predictor=predictor,
        image_size=start.image_size,
        merge=start.merge,
        pool=start.pool,
        standardise=start.standardise,
        control_hz=hz,
        crop=start.crop,
        action_limit=moves.quantile(0.99, dim=0).tolist(),
        state_head=head,
    )
    world.joint_heads = copy.deepcopy(start.joint_heads)
    world.latent_mean.copy_(start.latent_mean)
    world.latent_std.copy_(start.latent_std)
    world.encoder.requires_grad_(False)
    return world


def check_fits(
    start: JEPA,
    name: str,
    *,
    job: LatentJob,
    num_views: int,
    hz: float,
    rate_was_chosen: bool,
    proprio: Float[Tensor, "windows frames 7"],
) -> None:
    """Refuses recordings that a model cannot go on from, before anything is trained.

    Args:
        start: The model.
        name: What people call it.
        job: What the latents are of.
        num_views: Cameras they are of.
        hz: Their rate [Hz].
        rate_was_chosen: Whether that rate was asked for, and did not just come with the recordings.
        proprio: Poses of windows of consecutive rows.

    Raises:
        ValueError: The model sees frames otherwise, runs at another rate that nobody asked for, or
            its moves are so much larger or smaller that the units must differ.
    """
    ours = {
        "encoder": checkpoint.fingerprint(job.encode.encoder),
        "merge": job.encode.merge,
        "pool": job.recipe.pool,
        "crop": job.encode.crop,
        "the number of cameras": num_views,
    }
    theirs = {
        "encoder": checkpoint.fingerprint(start.encoder),
        "merge": start.merge,
        "pool": start.pool,
        "crop": start.crop,
        "the number of cameras": start.predictor.num_views,
    }
    wrong = [f"{k} is {ours[k]}, the model's {theirs[k]}" for k in ours if ours[k] != theirs[k]]
    if wrong:
        raise ValueError(
            f"{name} sees frames otherwise than this run: {'; '.join(wrong)}. Set "
            f"encoder_checkpoint={name} and the others to the model's"
        )
    rate = start.control_hz
    if rate is not None and abs(hz / rate - 1) > RATE_TOLERANCE and not rate_was_chosen:
        raise ValueError(
            f"the recordings are {hz:.4g} Hz, {name} makes {rate:.4g} steps a second; set "
            f"model_hz={rate:.4g} to take the rows at its rate, or model_hz={hz:.4g} to teach it "
            "theirs"
        )
    if start.action_limit is None:
        return
    moves = action_between(proprio[:, :-1], proprio[:, 1:]).abs().flatten(0, 1)
    moves = moves.quantile(0.99, dim=0).tolist()
    for axis, move, limit in zip(AXES, moves, start.action_limit, strict=True):
        if min(move, limit) > LEAST_MOVE and not 1 / UNIT_FACTOR < move / limit < UNIT_FACTOR:
            raise ValueError(
                f"one step of the recordings moves {axis} by up to {move:.3g}, one of {name} by "
                f"{limit:.3g} (metres, radians, gripper of 1). The unit of the recordings is "
                "probably wrong: set it in their mapping (docs/data.md), or look at them with "
                "worldmodel inspect"
            )
