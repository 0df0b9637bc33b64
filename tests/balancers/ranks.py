"""A pair of gloo ranks that run jobs for the tests, and the program that each of the two processes is.

A job is a module of this folder with a function ``run(case, rank, world_size)``. Both ranks run it on the same case.
Cases and results may hold tensors, numbers, strings, lists and dicts.

python ranks.py RANK RENDEZVOUS CONNECTION    # a file that does not exist yet, and the number of an open file
"""

import importlib
import io
import itertools
import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD_SIZE = 2
ROOT = Path(__file__).resolve().parents[2]


class _CrashedError(AssertionError):
    """A signal ended a rank."""


class Ranks:
    """Two processes, started at the first job, and started anew after a job that failed.

    Args:
        folder: an empty folder for their rendezvous and what they print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = itertools.count()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._printed: list[Path] = []

    def run(self, job: str, case: object, timeout: float = 60.0) -> list[Any]:
        """Return each rank's result.

        A rank that crashes outside of Python is started once more for the same job, with a warning: PyTorch's sharding
        on gloo ends a process in a job of some ten thousand ("double free"). A job that crashes twice fails.

        Raises:
            AssertionError: a rank failed, which ends the other as well, or they took longer than ``timeout`` seconds.
                The message shows what both printed.
        """
        try:
            return self._once(job, case, timeout)
        except _CrashedError as crash:
            warnings.warn(f"{crash}\nThe job is run again.", RuntimeWarning, stacklevel=2)
            return self._once(job, case, timeout)

    def _once(self, job: str, case: object, timeout: float) -> list[Any]:
        try:
            if not self._processes:
                self._start()
                self._results(60.0)  # they are ready: starting them is no part of the job's time
            for connection in self._connections:
                connection.send_bytes(_packed((job, case)))
            return self._results(timeout)
        except (OSError, EOFError, TimeoutError) as error:
            kind = _CrashedError if self._has_crashed() else AssertionError
            self.stop()
            printed = "\n".join(file.read_text()[-3000:] for file in self._printed)
            raise kind(f"the ranks did not finish {job}: {error!r}\n{printed}") from error

    def _has_crashed(self) -> bool:
        """Return whether a signal has ended a rank, as a crash outside of Python does and an exception does not."""
        end = time.monotonic() + 2.0  # a connection breaks before its process has ended
        while time.monotonic() < end:
            ends = [process.poll() for process in self._processes]
            if any(code is not None and code < 0 for code in ends):
                return True
            if None not in ends:
                break
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End both processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        start = next(self._starts)
        self._printed = [self._folder / f"{start}.{rank}.txt" for rank in range(WORLD_SIZE)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for rank, printed in enumerate(self._printed):
            ours, theirs = Pipe()
            command = [sys.executable, __file__, str(rank), str(self._folder / f"{start}"), str(theirs.fileno())]
            with printed.open("wb") as file:
                process = subprocess.Popen(
                    command, env=environment, pass_fds=[theirs.fileno()], stdout=file, stderr=subprocess.STDOUT
                )
            theirs.close()  # so that the end of the process ends the connection
            self._processes.append(process)
            self._connections.append(ours)

    def _results(self, timeout: float) -> list[Any]:
        """Wait for both results at once, so that the end of one rank is seen while the other waits for it."""
        results: dict[int, Any] = {}
        waiting, end = list(self._connections), time.monotonic() + timeout
        while waiting:
            ready = wait(waiting, max(end - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError(f"no result after {timeout} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                results[self._connections.index(connection)] = _unpacked(connection.recv_bytes())
                waiting.remove(connection)
        return [results[rank] for rank in range(WORLD_SIZE)]


def _packed(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(value: bytes) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)


def main(rank: int, rendezvous: str, connection: Connection) -> None:
    """Run jobs until the other end of the connection is closed."""
    torch.set_num_threads(1)
    # A rank that waits for one that failed gives up after this time.
    timeout = timedelta(seconds=30)
    method = f"file://{rendezvous}"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=WORLD_SIZE, timeout=timeout)
    connection.send_bytes(_packed("ready"))
    while True:
        try:
            job, case = _unpacked(connection.recv_bytes())
        except EOFError:
            break
        connection.send_bytes(_packed(importlib.import_module(job).run(case, rank, WORLD_SIZE)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Connection(int(sys.argv[3])))
