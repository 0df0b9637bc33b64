"""Define `TextGrid`, a table of the page as text."""

from typing import NotRequired, TypedDict


class TextGrid(TypedDict):
    """A table with a header; ``marked`` holds the (row, column) of each cell to emphasise.

    ``sort`` has the numbers to sort cells by whose texts are not in the order of their numbers, by (row, column).
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    marked: set[tuple[int, int]]
    sort: NotRequired[dict[tuple[int, int], float]]
