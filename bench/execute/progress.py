"""Show the progress of a suite in one line: runs done, running and failed, workers, rate, and the time left."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bench.style.numbers import counted

Hands = Callable[[], tuple[int, int]]

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
        self._hands: Hands = lambda: (0, 0)
        self._slots = self._workers = self._stage_left = 0
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

    def begin(self, stage: str, jobs: int, hands: Hands, reused: int = 0) -> None:
        """Begin a stage of ``jobs``, and count ``reused`` more jobs as already done.

        The total grows if they are more than was expected: how many runs a later stage has is known when it begins.

        Args:
            stage: its name.
            jobs: the number of jobs to do.
            hands: returns the numbers of jobs at a time and of workers.
            reused: the number of jobs of the stage that were done before.
        """
        if self._done == self._reused:
            self._begun = time.monotonic()
        self._stage, self._stage_left, self._hands = stage, jobs, hands
        self._slots, self._workers = hands()
        self._done += reused
        self._reused += reused
        self._total = max(self._total, self._done + jobs)
        if jobs and not self._console.is_terminal:
            self._print()

    def finish(self, failed: bool = False) -> None:
        """Count one job as ended."""
        self._done += 1
        self._failed += failed
        self._stage_left -= 1
        self._slots, self._workers = self._hands()
        if not self._console.is_terminal and (self._stage_left == 0 or time.monotonic() - self._printed > SECONDS):
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        self._console.print(Text(self._line()))

    def _line(self) -> str:
        running = f"{min(self._slots, self._stage_left)} running on {counted(self._workers, 'worker')}"
        line = f"{self._stage}: {self._done} of {self._total} done, {running}, {self._failed} failed"
        computed = self._done - self._reused
        left = self._total - self._done - max(0, self._stored - self._reused)
        spent = time.monotonic() - self._begun
        if computed and spent > 0 and left > 0:
            seconds = spent / computed * left
            line += f", {_rate(computed / spent)}, {round(seconds) // 60}:{round(seconds) % 60:02d} left"
        return line


def _rate(per_second: float) -> str:
    """Return a rate in words, per second or per minute: ``2.3 a second``."""
    return f"{per_second:.2g} a second" if per_second >= 1 else f"{per_second * 60:.2g} a minute"
