"""Jobs that tests of engines do: some end well, some don't."""

import os
import sys
import time
from pathlib import Path


def add(first: int, second: int) -> int:
    return first + second


def process() -> int:
    return os.getpid()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def refuse() -> None:
    raise TimeoutError("mine")


class UnsendableError(Exception):
    """It can't be pickled and read back: it needs two arguments and passes on one."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


def refuse_unsendably() -> None:
    raise UnsendableError(1, 2)


def leave(text: str) -> None:
    sys.exit(text)


def end(exit_code: int) -> None:
    os._exit(exit_code)


def end_once(marker: Path) -> str:
    """End the process the first time."""
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "done"


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def sleep_as(folder: Path, seconds: float) -> None:
    """Leave a file named by this process's id, and sleep."""
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)


def half_a_second(seconds: float) -> float:
    """Return a time limit that is shorter than the one which the tests state."""
    return 0.5


def ten_seconds(seconds: float) -> float:
    """Return a time limit that is longer than the one which the tests state."""
    return 10.0


def eat(most: int) -> None:
    """Take memory, at most so many bytes."""
    pieces = []
    while sum(map(len, pieces)) < most:
        pieces.append(bytearray(b"x") * 10_000_000)
        time.sleep(0.01)
