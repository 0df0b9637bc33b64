"""Name the versions of TorchJD and of the solvers that it uses, on which its times depend."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.run import atomic_file, machine_facts

PACKAGES = ("torchjd", "cvxpy", "quadprog", "clarabel", "ecos", "qpsolvers")


def versions() -> dict[str, str | None]:
    """Return the version of each of `PACKAGES`; None if it is not installed."""
    return {package: _version(package) for package in PACKAGES}


def write_environment(path: Path) -> None:
    """Write what `machine_facts.write` does to ``path``, and the versions of `PACKAGES`."""
    facts = machine_facts.describe(jobs=1)
    assert isinstance(facts["versions"], dict)
    facts["versions"] |= versions()
    atomic_file.write(path, json.dumps(facts, indent=2).encode())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
