"""What a suite was run on. Names no user, no machine and no folder."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import torch

from . import atomic_file
from .spec import protocol_version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lossbench", "torch", "numpy", "pandas", "scipy", "pyarrow", "joblib")


def describe(jobs: int) -> dict[str, object]:
    """Commit, versions, processor, GPU, threads, date and protocol; None for what can't be told.

    ``dirty`` says whether tracked or new files, results apart, differ from the commit.
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
    """Writes what `describe` says as JSON, beside the results that it is about."""
    atomic_file.write(path, json.dumps(describe(jobs), indent=2).encode())


def processor() -> str:
    """The processor's name, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    """The name of the CUDA device, if there is one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _dirty() -> bool | None:
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    return None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # installed: a repository further up would be someone else's
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
