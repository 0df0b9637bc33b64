"""Define `TextGrid`, a table of the page as text."""

from typing import TypedDict


class TextGrid(TypedDict):
    """A table with a header; ``marked`` holds the (row, column) of each cell to emphasise."""

    title: str
    header: list[str]
    rows: list[list[str]]
    marked: set[tuple[int, int]]
