import csv
from pathlib import Path

import pytest

from worldmodel.tables import fill_marks, markdown_table, percent, write_csv


def test_a_markdown_table_is_aligned_and_escapes_what_would_split_it() -> None:
    table = markdown_table(("a", "long"), [(None, "x|y"), (1, "two\nlines")])
    assert table == (
        "| a | long      |\n|---|-----------|\n| - | x\\|y      |\n| 1 | two lines |\n"
    )


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 cells \(a, b\), got \['1'\]"):
        markdown_table(("a", "b"), [(1,)])


def test_csv_comes_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ("a", "b"), [(1, "x,y"), (None, "z")])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "x,y"], ["", "z"]]


def test_percent() -> None:
    assert [percent(rate) for rate in (0.5, 0.125, 1.0, 0.98765)] == [
        "50 %",
        "12.5 %",
        "100 %",
        "98.8 %",
    ]


def test_a_page_without_a_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines <!-- results: docs/make.py -->"):
        fill_marks("nothing", {"results": "x"}, script="docs/make.py")
    marked = "a\n<!-- results: docs/make.py -->\nold\n<!-- /results -->\nb"
    filled = fill_marks(marked, {"results": r"new \1"}, script="docs/make.py")
    assert filled.splitlines() == [
        *marked.splitlines()[:2],
        "",
        r"new \1",
        *marked.splitlines()[3:],
    ]
    assert fill_marks(filled, {"results": r"new \1"}, script="docs/make.py") == filled
