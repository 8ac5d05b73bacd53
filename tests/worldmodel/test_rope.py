import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.rope import axis_width, grid_positions, rope_table, rotate

# x = 0.1, 0.2, ... in one slot, at position 3: V-JEPA 2 (tiled) and V-JEPA 2.1 (interleaved).
GOLDEN = {
    (10, "tiled"): "-0.127223 0.223591 0.269034 0.403554 0.498863 -0.523435 0.256151 0.850429 "
    "0.887993 1.001702",
    (10, "interleaved"): "-0.127223 -0.183886 0.083622 0.492958 0.453410 0.635940 0.690396 "
    "0.808303 0.898106 1.001702",
    (20, "tiled"): "-0.127223 0.166526 0.083622 0.449303 0.453410 0.614728 0.690396 0.803319 "
    "0.898106 1.000678 -1.258336 1.464136 0.514946 1.619601 1.375287 1.644273 1.678381 1.808063 "
    "1.896211 2.001431",
    (20, "interleaved"): "-0.127223 -0.183886 -0.261693 0.426048 0.169887 0.762324 0.536970 "
    "0.917422 0.822161 1.064919 1.063510 1.232455 1.283187 1.415426 1.492376 1.607114 1.696590 "
    "1.803215 1.898492 2.001431",
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width, style", GOLDEN)
def test_a_slot_is_rotated_as_published(width: int, style, axis: int) -> None:
    head_dim = 3 * width + 2  # the smallest with this slot width that also has a tail
    assert axis_width(head_dim) == width
    expected = torch.tensor([float(x) for x in GOLDEN[width, style].split()])
    slot = slice(axis * width, (axis + 1) * width)
    position, x = torch.zeros(1, 3), torch.ones(1, head_dim)
    position[0, axis] = 3
    x[0, slot] = torch.arange(1, width + 1) / 10
    rotated = rotate(x, *rope_table(position, head_dim, style))
    torch.testing.assert_close(rotated[0, slot], expected, atol=1e-6, rtol=0)
    others = torch.ones(head_dim, dtype=torch.bool)
    others[slot] = False
    assert (rotated[0, others] == 1).all()  # axes at position 0, and the tail, are left alone


@pytest.mark.parametrize(
    "head_dim, width", [(64, 20), (80, 26), (32, 10), (30, 10), (60, 20), (16, 4)]
)
def test_a_head_is_split_into_three_even_slots(head_dim: int, width: int) -> None:
    assert axis_width(head_dim) == width


def dot(style, offset: torch.Tensor, *, head_dim: int = 32) -> torch.Tensor:
    """Returns q . k at two places a fixed distance apart, both moved by `offset`."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, head_dim, generator=generator)
    at_q, at_k = torch.tensor([[2.0, 1.0, 5.0]]), torch.tensor([[0.0, 4.0, 3.0]])
    q = rotate(q, *rope_table(at_q + offset, head_dim, style))
    k = rotate(k, *rope_table(at_k + offset, head_dim, style))
    return (q * k).sum()


@given(st.tuples(*[st.integers(0, 40)] * 3))
def test_the_interleaved_table_sees_relative_positions_only(offset) -> None:
    moved = dot("interleaved", torch.tensor(offset).float())
    torch.testing.assert_close(moved, dot("interleaved", torch.zeros(3)), atol=1e-4, rtol=1e-4)


@given(st.tuples(*[st.integers(0, 40)] * 3))
def test_the_interleaved_table_keeps_lengths(position) -> None:
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    rotated = rotate(x, *rope_table(torch.tensor([position]).float(), 32, "interleaved"))
    torch.testing.assert_close(rotated.norm(), x.norm())


def test_the_tiled_table_is_no_rotation() -> None:
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(10.0)[:, None].expand(10, 3)
    lengths = rotate(x.expand(10, 32), *rope_table(positions, 32, "tiled")).norm(dim=-1)
    assert float(lengths.max() - lengths.min()) > 0.1 * float(x.norm())
    dots = [dot("tiled", torch.tensor([t, 0.0, 0.0])) for t in range(10)]
    assert float(max(dots) - min(dots)) > 0.1


def test_grid_positions_run_through_time_then_rows_then_columns() -> None:
    positions = grid_positions(2, 3, 4)
    for token, position in enumerate(positions.long().tolist()):
        assert position == [token // 12, token % 12 // 4, token % 4]
    assert len(positions) == 24


def test_an_unknown_style_is_refused(without_shape_checks) -> None:
    with pytest.raises(ValueError, match="rope must be 'tiled' or 'interleaved', got 'textbook'"):
        rope_table(torch.zeros(1, 3), 32, "textbook")  # type: ignore[arg-type]
