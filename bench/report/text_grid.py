"""A table of the page, as text."""

from typing import TypedDict


class TextGrid(TypedDict):
    """A table with a header; ``marked`` holds the (row, column) of cells to set off."""

    title: str
    header: list[str]
    rows: list[list[str]]
    marked: set[tuple[int, int]]
