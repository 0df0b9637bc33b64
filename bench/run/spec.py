"""Specify a run, and compute the key that its result is stored under.

A run's result depends on its `RunSpec`, on the code that it goes through, on the data that its problem reads, on the
version of the protocol and on PyTorch. The key is a hash of these and of nothing else. A changed option or a changed
line of code gives new keys to exactly the runs that it touches. Labels, other runs of the suite, the number of workers,
and the wording of code and protocol change no key.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

import balancers
import tasks
from balancers.engine.method.declared_method import Wrt
from tasks import MissingDataError, Recipe

from . import code_hash

Options = Mapping[str, Any]
"""Keyword arguments that both TOML and JSON can write: texts, finite numbers, true and false, lists and tables."""
Device = Literal["cpu", "cuda"]
Phase = Literal["tuning", "reported", "repeated", "baseline", "front", "cost"]
"""The purpose of a run: "tuning" runs choose the learning rate, "reported" runs are compared, "repeated" runs are the
same on other seeds, a "baseline" trains on one task's loss alone, "front" runs have the static weights that a search
found, and "cost" runs time a step."""

FOLDER = Path(__file__).parent
PROTOCOL = FOLDER.parent / "PROTOCOL.md"
TRAINING = [FOLDER / name for name in ("training.py", "step_log.py", "build.py", "seeds.py")]
"""The modules of this room that every run goes through."""
PROVENANCE = ("protocol", "code", "data", "torch")
"""The names of what a result depends on besides its specification, see `provenance`."""


class FingerprintError(ValueError):
    """A problem's ``fingerprint`` fails; the message says how in one sentence."""


@dataclass(frozen=True)
class Method:
    """A balancer's name, its options, and where its gradients are measured.

    ``wrt`` is None for a balancer that reads no gradients.
    """

    name: str
    wrt: Wrt | None
    options: Options

    @property
    def names(self) -> tuple[str, ...]:
        """The balancer's name, and that of its weighting if it has one."""
        before = self.options.get("weighting")
        before = before.get("name") if isinstance(before, Mapping) else before
        return (self.name, before) if isinstance(before, str) else (self.name,)


@dataclass(frozen=True)
class RunSpec:
    """One run: everything that its result depends on, apart from the code.

    ``recipe`` holds the learning rate of this run. ``evaluations`` is the number of evaluations after step 0.
    """

    problem: str
    problem_options: Options
    recipe: Recipe
    method: Method
    seed: int
    phase: Phase
    device: Device
    evaluations: int

    @property
    def lr(self) -> float:
        """The network's learning rate."""
        return self.recipe.lr

    @property
    def key(self) -> str:
        """Return 32 hexadecimal digits, the same for the same run in every process and on every machine."""
        return key_of(asdict(self), provenance(self))


def key_of(spec: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Return the key of a run from the fields of its `RunSpec` and a mapping that has each name of `PROVENANCE`."""
    return code_hash.digest({"spec": spec, **{name: others[name] for name in PROVENANCE}})


def provenance(spec: RunSpec) -> dict[str, str]:
    """Return what a result depends on besides its specification: the protocol, the code, the data, PyTorch."""
    return {
        "protocol": protocol_version(),
        "code": run_code(spec.problem, *spec.method.names),
        "data": fingerprint(spec.problem, spec.problem_options),
        "torch": str(torch.__version__),
    }


def fingerprint(problem: str, options: Options) -> str:
    """Return the hash of the data that the problem reads, see `Problem.fingerprint`; computed once a process.

    Raises:
        FingerprintError: the problem's ``fingerprint`` raises an exception, or returns no text.
        MissingDataError: the data are missing.
    """
    return _fingerprint(problem, json.dumps(options, sort_keys=True))


@cache
def _fingerprint(problem: str, options: str) -> str:
    try:
        found: object = tasks.create(problem, **json.loads(options)).fingerprint()
    except MissingDataError:
        raise
    except (Exception, SystemExit) as error:
        raise FingerprintError(f"fingerprint of {problem} raises {type(error).__name__}: {error}") from error
    if not isinstance(found, str):
        raise FingerprintError(f"fingerprint of {problem} returns {found!r}; expected a text")
    return found


@cache
def protocol_version() -> str:
    """Return the number in the protocol's line ``Version: N``.

    Raises:
        ValueError: the protocol has no such line.
    """
    found = re.search(r"^Version: (\d+)$", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{PROTOCOL.name} has no line 'Version: N'")
    return found[1]


@cache
def run_code(problem: str, *methods: str) -> str:
    """Return a hash of the code that runs of this problem and these balancers go through; see `bench.run.code_hash`.

    That code is the training loop, the modules of the classes and of their bases, and the modules of the same
    packages that these import from, directly or not. Files are read once a process, when the first key is asked for.

    Raises:
        ChangedCodeError: one of the files has changed since this process started.
    """
    classes = (tasks.get(problem), *map(balancers.get, methods))
    packages = {"tasks", "balancers", *(_package(cls.__module__) for cls in classes)}
    roots = [base.__module__ for cls in classes for base in cls.__mro__ if _package(base.__module__) in packages]
    files = {*TRAINING, *code_hash.files_of(roots, packages)}
    return code_hash.digest(code_hash.file_hashes(files, {*packages, "bench"}))


def _package(module: str) -> str:
    return module.partition(".")[0]
