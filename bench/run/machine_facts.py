"""Describe the machine and the software that a suite ran on, without naming a user, a host or a folder."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import torch

from . import atomic_file
from .spec import protocol_version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lossbench", "torch", "numpy", "pandas", "scipy", "pyarrow", "joblib")


def describe(jobs: int) -> dict[str, object]:
    """Return commit, versions, processor, GPU, threads, date and protocol; a fact that is unknown is None.

    ``dirty`` is true if files outside ``results`` are new or differ from the commit. Both are as they were when this
    process first asked: code that changes later is not what the process runs.
    """
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _dirty(),
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": joblib.cpu_count(),
        "gpu": gpu(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "jobs": jobs,
        "threads_per_run": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": protocol_version(),
    }


def write(path: Path, jobs: int) -> None:
    """Write the result of `describe` to ``path`` as JSON."""
    atomic_file.write(path, json.dumps(describe(jobs), indent=2).encode())


def processor() -> str:
    """Return the processor's name, or its architecture if the system does not know the name."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    """Return the name of the CUDA device; None if there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _dirty() -> bool | None:
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    return None if changes is None else bool(changes)


@cache
def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # an installed package: a repository in a folder above is another project's
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
