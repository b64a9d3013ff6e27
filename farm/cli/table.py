"""A table in plain text: names left, numbers right."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """The columns are those of all rows together, in the order in which they first occur."""
    columns = list({column: None for row in rows for column in row})
    cells = [[row.get(column, "-") for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[at]) for row in cells)) for at, column in enumerate(columns)]
    right = [all(_is_number(row[at]) for row in cells) for at in range(len(columns))]
    for row in [columns, *cells]:
        parts = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        print("  " + "  ".join(parts).rstrip())


def _is_number(text: str) -> bool:
    return text == "-" or text.rstrip("smhd%").replace(".", "", 1).replace("-", "", 1).isdigit()
