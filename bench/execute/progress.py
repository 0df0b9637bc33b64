"""The one line that says how far a suite is: done, running, failed, time left."""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS = 10
"""Where the output is no terminal, a new line is printed this often."""


class Progress:
    """Shown while in its ``with`` block; on a terminal it is one line that changes, elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._exit = ExitStack()
        self._stage = ""
        self._total = self._done = self._reused = self._failed = 0
        self._workers = self._stage_left = 0
        self._begun = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            live = Live(console=self._console, refresh_per_second=2, get_renderable=lambda: Text(self._line()))
            self._exit.enter_context(live)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._exit.close()

    def expect(self, jobs: int) -> None:
        """There are ``jobs`` more than was known so far."""
        self._total += jobs

    def begin(self, stage: str, jobs: int, workers: int, reused: int = 0) -> None:
        """A stage of ``jobs`` begins, ``workers`` of them at a time; ``reused`` more had been done before."""
        if self._done == self._reused:
            self._begun = time.monotonic()
        self._stage, self._stage_left, self._workers = stage, jobs, workers
        self._done += reused
        self._reused += reused
        if jobs and not self._console.is_terminal:
            self._print()

    def finish(self, failed: bool = False) -> None:
        """One job has ended."""
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
        if computed and self._done < self._total:
            seconds = (time.monotonic() - self._begun) / computed * (self._total - self._done)
            line += f", {round(seconds) // 60}:{round(seconds) % 60:02d} left"
        return line
