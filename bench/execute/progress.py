"""Show the progress of a suite in one line: runs done, running and failed, and the time left."""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS = 10
"""Seconds between two lines where the output is not a terminal."""


class Progress:
    """The progress line of a suite, shown inside a ``with`` block.

    On a terminal it is one line that changes; elsewhere a new line is printed every `SECONDS`.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._exit = ExitStack()
        self._stage = ""
        self._total = self._stored = self._done = self._reused = self._failed = 0
        self._workers = self._stage_left = 0
        self._begun = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            live = Live(console=self._console, refresh_per_second=2, get_renderable=lambda: Text(self._line()))
            self._exit.enter_context(live)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._exit.close()

    def expect(self, jobs: int, stored: int = 0) -> None:
        """Add ``jobs`` to the total number of jobs, of which ``stored`` need not be done again."""
        self._total += jobs
        self._stored += stored

    def begin(self, stage: str, jobs: int, workers: int, reused: int = 0) -> None:
        """Begin a stage of ``jobs``, ``workers`` of them at a time, and count ``reused`` more jobs as already done."""
        if self._done == self._reused:
            self._begun = time.monotonic()
        self._stage, self._stage_left, self._workers = stage, jobs, workers
        self._done += reused
        self._reused += reused
        if jobs and not self._console.is_terminal:
            self._print()

    def finish(self, failed: bool = False) -> None:
        """Count one job as ended."""
        self._done += 1
        self._failed += failed
        self._stage_left -= 1
        if not self._console.is_terminal and (self._stage_left == 0 or time.monotonic() - self._printed > SECONDS):
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        self._console.print(Text(self._line()))

    def _line(self) -> str:
        running = min(self._workers, self._stage_left)
        line = f"{self._stage}: {self._done} of {self._total} done, {running} running, {self._failed} failed"
        computed = self._done - self._reused
        left = self._total - self._done - max(0, self._stored - self._reused)
        if computed and left > 0:
            seconds = (time.monotonic() - self._begun) / computed * left
            line += f", {round(seconds) // 60}:{round(seconds) % 60:02d} left"
        return line
