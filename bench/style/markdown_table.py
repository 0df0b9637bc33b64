"""Write a table in Markdown."""

from collections.abc import Iterable


def markdown_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table with a line for each of ``lines``, each with a text for each column."""
    cells = [list(header), *(list(line) for line in lines)]
    rule = "|".join(["---"] * len(cells[0]))
    return "\n".join([f"| {' | '.join(cells[0])} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in cells[1:])])
