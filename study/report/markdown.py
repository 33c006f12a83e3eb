"""Rows as Markdown."""

import re


def markdown_table(rows: list[dict]) -> str:
    """Rows as a Markdown table: the first column to the left, columns of numbers to the right."""
    if not rows:
        return "not measured"
    cells = [[_cell(str(value)) for value in row.values()] for row in rows]
    columns = zip(*cells, strict=True)
    numeric = [all(re.match(r"$|[-\d]|not |failed", c) for c in column) for column in columns]
    rule = [("---:" if right else "---") for right in numeric]
    return "\n".join(f"| {' | '.join(line)} |" for line in (list(rows[0]), rule, *cells))


def _cell(text: str) -> str:
    """Text that ends no cell, row or table and opens no HTML."""
    return re.sub(r"([|<])", r"\\\1", " ".join(text.split()))
