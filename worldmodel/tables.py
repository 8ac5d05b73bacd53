"""Tables for people and programs: Markdown and CSV of the same rows."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table, aligned to be read as plain text too; None is a dash."""
    texts = [[str(cell) for cell in header], *([_text(cell) for cell in row] for row in rows)]
    for row in texts[1:]:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells ({', '.join(header)}), got {row}")
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) + " |"
        for row in texts
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a CSV file with a header; None is an empty cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def fill_marks(page: str, texts: Mapping[str, str], *, script: str) -> str:
    """Returns a Markdown page with the text between the marks of each name replaced.

    Args:
        page: with a line `<!-- NAME: SCRIPT -->` and a line `<!-- /NAME -->` for each name.
        texts: by name.
        script: that makes the texts, so that a reader of the page knows.

    Raises:
        ValueError: The page lacks a mark.
    """
    for name, text in texts.items():
        begin, end = f"<!-- {name}: {script} -->\n", f"<!-- /{name} -->"
        if begin not in page or end not in page:
            raise ValueError(f"the page needs the lines {begin.strip()} and {end}")
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page = pattern.sub(lambda _, b=begin, t=text, e=end: f"{b}\n{t}\n{e}", page)
    return page


def percent(rate: float) -> str:
    """Returns a share as whole or tenths of per cent: 0.5 is "50 %", 0.125 is "12.5 %"."""
    return f"{round(100 * rate, 1):g} %"


def _text(cell: object) -> str:
    return "-" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ")
