import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.masking import (
    LONG_RANGE,
    SHORT_RANGE,
    MaskSpec,
    MultiBlock,
    sample_context_and_targets,
    sample_masks,
)

specs = st.sampled_from([SHORT_RANGE, LONG_RANGE])
grids = st.tuples(st.integers(1, 4), st.integers(6, 12), st.integers(6, 12))


def masks(spec, grid, *, batch_size: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return sample_masks(spec, batch_size=batch_size, grid=grid, generator=generator)


@given(specs, grids, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_kept_and_hidden_tokens_are_distinct_ascending_and_in_the_grid(spec, grid, seed) -> None:
    kept, hidden = masks(spec, grid, seed=seed)
    total = grid[0] * grid[1] * grid[2]
    assert kept.shape[0] == hidden.shape[0] == 4  # as many of each in every clip
    assert kept.shape[1] > 0 and hidden.shape[1] > 0
    for ids in (kept, hidden):
        assert (ids.diff(dim=1) > 0).all()
        assert int(ids.min()) >= 0 and int(ids.max()) < total
    for clip in range(4):
        assert not set(kept[clip].tolist()) & set(hidden[clip].tolist())


@given(specs, grids, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_enough_of_every_clip_stays_visible(spec, grid, seed) -> None:
    kept, _ = masks(spec, grid, seed=seed)
    assert kept.shape[1] >= spec.min_keep * grid[0] * grid[1] * grid[2]


@given(specs, grids, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_place_is_never_kept_at_one_time_and_hidden_at_another(spec, grid, seed) -> None:
    kept, hidden = masks(spec, grid, seed=seed)
    frame = grid[1] * grid[2]
    for clip in range(4):
        places = {i % frame for i in kept[clip].tolist()}
        assert not places & {i % frame for i in hidden[clip].tolist()}


def test_a_clip_by_itself_is_divided_without_remainder() -> None:
    kept, hidden = masks(SHORT_RANGE, (2, 8, 8), batch_size=1)
    assert sorted([*kept[0].tolist(), *hidden[0].tolist()]) == list(range(128))


def test_one_block_is_a_rectangle_of_its_scale() -> None:
    spec = MaskSpec(num_blocks=1, scale=0.25, min_keep=0.1, aspect=(1.0, 1.0))
    _, hidden = masks(spec, (1, 8, 8), batch_size=16)
    tops = set()
    for ids in hidden:
        rows, columns = (ids // 8).unique(), (ids % 8).unique()
        assert len(ids) == 16
        assert (rows.diff() == 1).all() and (columns.diff() == 1).all()
        assert len(rows) == len(columns) == 4
        tops.add((int(rows[0]), int(columns[0])))
    assert len(tops) > 4  # every clip has its own place


def test_masks_are_determined_by_the_generator() -> None:
    one, same, other = (masks(LONG_RANGE, (2, 8, 8), seed=s) for s in (1, 1, 2))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert one[0].shape != other[0].shape or not torch.equal(one[0], other[0])


def test_an_impossible_wish_is_refused() -> None:
    spec = dataclasses.replace(LONG_RANGE, min_keep=0.9)
    with pytest.raises(ValueError, match=r"200 draws of MaskSpec\(num_blocks=2, .* on a 8x8 grid"):
        masks(spec, (1, 8, 8))


small_grids = st.tuples(st.integers(1, 2), st.integers(8, 14), st.integers(8, 14))


def blocks_of(grid, *, spec=MultiBlock(), batch_size: int = 4, seed: int = 0):  # noqa: B008
    generator = torch.Generator().manual_seed(seed)
    return sample_context_and_targets(spec, batch_size=batch_size, grid=grid, generator=generator)


@given(small_grids, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_targets_are_rectangles_of_the_right_area_and_shape(grid, seed) -> None:
    _, targets = blocks_of(grid, seed=seed)
    steps, rows, columns = grid
    assert targets.shape[:2] == (4, 4)
    shapes = set()
    for ids in targets.flatten(0, 1):
        assert (ids.diff() > 0).all()
        place = ids % (rows * columns)
        y, x = (place // columns).unique(), (place % columns).unique()
        assert len(ids) == steps * len(y) * len(x)
        assert (y.diff() == 1).all() and (x.diff() == 1).all()
        shapes.add((len(y), len(x)))
    ((height, width),) = shapes  # one size for the batch
    # Sides are rounded to whole tokens, each by half a one at most.
    assert (height + 0.5) * (width + 0.5) >= 0.15 * rows * columns
    assert (height - 0.5) * (width - 0.5) <= 0.20 * rows * columns
    assert (height + 0.5) / (width - 0.5) >= 0.75 and (height - 0.5) / (width + 0.5) <= 1.5


@given(small_grids, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_context_shares_no_token_with_a_target_and_is_large_enough(grid, seed) -> None:
    kept, targets = blocks_of(grid, seed=seed)
    assert kept.shape[0] == 4 and kept.shape[1] > 10
    assert (kept.diff(dim=1) > 0).all() and int(kept.max()) < grid[0] * grid[1] * grid[2]
    for image in range(4):
        assert not set(kept[image].tolist()) & set(targets[image].flatten().tolist())


def test_the_context_of_an_image_by_itself_is_a_square_less_the_targets() -> None:
    spec = MultiBlock(context_scale=(0.5, 0.5))
    kept, targets = blocks_of((1, 10, 10), spec=spec, batch_size=1, seed=3)
    places = set(kept[0].tolist()) | set(targets.flatten().tolist())
    squares = [
        {10 * y + x for y in range(top, top + 7) for x in range(left, left + 7)}
        for top in range(4)
        for left in range(4)
    ]
    context = set(kept[0].tolist())
    assert any(square - set(targets.flatten().tolist()) == context for square in squares)
    assert context < places


def test_targets_lie_everywhere_up_to_the_edges() -> None:
    covered = torch.zeros(64)
    for seed in range(30):
        _, targets = blocks_of((1, 8, 8), seed=seed)
        covered[targets.flatten()] += 1
    assert (covered > 0).all()


def test_blocks_are_determined_by_the_generator() -> None:
    one, same, other = (blocks_of((1, 8, 8), seed=s) for s in (1, 1, 2))
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert one[1].shape != other[1].shape or not torch.equal(one[1], other[1])


def test_targets_that_leave_no_context_are_refused() -> None:
    with pytest.raises(ValueError, match=r"on a 4x4 grid left no context of more than 10 tokens"):
        blocks_of((1, 4, 4))
