"""Start a Dask scheduler and workers from the command line, each in an empty folder of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]


class DaskProcesses:
    """A scheduler that has neither PyTorch nor this project, and workers that have both, on this computer.

    Args:
        folder: an empty folder for what they write.
        daemonic: whether workers may have no children, which is Dask's default.
        host: the address that the scheduler listens at.
    """

    def __init__(self, folder: Path, daemonic: bool = False, host: str = "127.0.0.1") -> None:
        self._folder, self._daemonic = folder, daemonic
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        self.address = f"tcp://{host}:{port}"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.start_scheduler()

    def start_scheduler(self) -> None:
        """Start the scheduler, again if it was stopped, and wait until it listens."""
        host, port = self.address.removeprefix("tcp://").split(":")
        self.scheduler = self._start("scheduler", ["scheduler", "--host", host, "--port", port, "--no-dashboard"])
        end = time.monotonic() + 60.0
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError((self._folder / "scheduler.txt").read_text())

    def start_worker(
        self, name: str, threads: int = 1, within: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker; ``within`` is what its command line is put behind."""
        command = ["worker", self.address, "--name", name, "--nthreads", str(threads), "--no-dashboard"]
        self.workers[name] = self._start(name, command, environment, within)
        return self.workers[name]

    def lose(self, name: str) -> None:
        """Kill a worker and all processes that it has started, as if its computer were switched off."""
        _kill_all(self.workers[name])

    def printed(self, name: str) -> str:
        """Return what a process has printed."""
        return (self._folder / f"{name}.txt").read_text()

    def stop(self) -> None:
        """End all processes at once."""
        processes = [*self.workers.values(), *([self.scheduler] if self.scheduler else [])]
        for process in processes:
            _kill_all(process)

    def _without_packages(self) -> Path:
        """Return a folder that hides PyTorch and this project's packages from who imports from it first."""
        folder = self._folder / "without"
        for package in ("torch", "bench", "balancers", "tasks"):
            (folder / package).mkdir(parents=True, exist_ok=True)
            (folder / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")
        return folder

    def _start(
        self, name: str, command: list[str], more: dict[str, str] | None = None, within: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        place = self._folder / name
        place.mkdir(exist_ok=True)
        path = str(ROOT) if command[0] == "worker" else str(self._without_packages())
        environment = os.environ | {"PYTHONPATH": path, **(more or {})}
        environment["DASK_DISTRIBUTED__WORKER__DAEMON"] = str(self._daemonic)
        with (self._folder / f"{name}.txt").open("ab") as file:
            return subprocess.Popen(
                [*within, sys.executable, "-m", "dask", *command],
                cwd=place,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants."""
    try:
        found = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        found = []
    process.kill()
    for each in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
