"""Frame groups: where each token of a predictor's sequence stands, and what may attend to it.

A frame is a group of G tokens: those of its conditions (action, proprio, and the pose of each
camera if poses are given), then the N patches of each of its V views, view after view. Groups
follow one another in time.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldmodel.rope import grid_positions


def group_positions(
    num_frames: int,
    grid_size: tuple[int, int],
    *,
    num_conditions: int,
    num_views: int = 1,
    first_frame: int = 0,
) -> Float[Tensor, "tokens 3"]:
    """Returns (time, row, column) of every token of `num_frames` groups.

    Time is the number of the frame. Conditions have a time only; position 0 leaves the slots of row
    and column unrotated. All views have the same rows and columns: what tells them apart is the
    view embedding that the predictor adds.
    """
    patches = grid_positions(num_frames, *grid_size).unflatten(0, (num_frames, -1))  # (T, N, 3)
    conditions = torch.zeros(num_frames, num_conditions, 3)
    conditions[..., 0] = torch.arange(num_frames)[:, None]
    positions = torch.cat((conditions, patches.repeat(1, num_views, 1)), dim=1).flatten(0, 1)
    positions[:, 0] += first_frame
    return positions


def block_causal_mask(
    num_frames: int,
    group_size: int,
    *,
    past_frames: int = 0,
    window: int | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "tokens all_tokens"]:
    """Returns the mask that lets each frame's tokens attend to their own and earlier frames.

    True where attention is allowed; rows are the tokens of the `num_frames` new frames, columns
    those of the `past_frames` cached frames and the new ones. With a `window`, a frame attends to
    no more than that many frames, its own included.
    """
    frame = torch.arange(past_frames + num_frames, device=device).repeat_interleave(group_size)
    query, key = frame[past_frames * group_size :, None], frame[None, :]
    causal = query >= key
    return causal if window is None else causal & (query - key < window)


def hide_missing(
    mask: Bool[Tensor, "tokens all_tokens"] | None,
    views: Bool[Tensor, "batch all_frames views"],
    *,
    num_frames: int,
    num_patches: int,
    group_size: int,
) -> Bool[Tensor, "batch 1 tokens all_tokens"]:
    """Returns the mask, now one per batch entry, in which nothing attends to a missing view.

    Action and proprio are always there; the patches of a view and its camera's pose, if the groups
    have one, are there together.

    Args:
        mask: That of `block_causal_mask`; None if nothing is masked yet.
        views: Which views the past and the new frames have.
        num_frames: How many of these frames are new.
        num_patches: Patches N of one view.
        group_size: Tokens G of a frame.
    """
    B, _, V = views.shape
    patches = views.repeat_interleave(num_patches, dim=2)
    conditions = views.new_ones(*views.shape[:2], 2)
    has_poses = group_size > 2 + V * num_patches
    tokens = (conditions, views, patches) if has_poses else (conditions, patches)
    keys = torch.cat(tokens, dim=2).view(B, 1, 1, -1)
    return (keys if mask is None else keys & mask).expand(-1, -1, num_frames * group_size, -1)


def join_views(
    past: Bool[Tensor, "batch past views"] | None,
    new: Bool[Tensor, "batch new views"] | None,
    num_frames: tuple[int, int],
) -> Bool[Tensor, "batch frames views"] | None:
    """Returns which views the past and the new frames have; None, as given, stands for all."""
    known = new if new is not None else past
    if known is None:
        return None
    B, _, V = known.shape
    whole = [known.new_ones(B, count, V) for count in num_frames]
    return torch.cat(
        (past if past is not None else whole[0], new if new is not None else whole[1]), dim=1
    )
