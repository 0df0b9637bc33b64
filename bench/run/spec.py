"""What a run is, and the key that its result is stored under.

A run's result depends on its `RunSpec`, on the code that it goes through, on the data that its problem reads, on the
rules in force and on PyTorch. The key is a hash of these and of nothing else: a changed option or a changed file gives
new keys to just the runs it touches, and labels, other runs of the suite or the number of workers touch none.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

import balancers
import tasks
from balancers.engine.gradients import Wrt
from tasks import Recipe

Options = Mapping[str, Any]
"""Keyword arguments, of what TOML and JSON can both say: texts, finite numbers, true and false, lists and tables."""
Device = Literal["cpu", "cuda"]
Phase = Literal["tuning", "reported", "repeated", "baseline", "front", "cost"]
"""A "baseline" is a run of the model on one task's loss alone; "repeated" are the reported runs on other seeds; the
"front" are those of static weights that a search found."""

FOLDER = Path(__file__).parent
PROTOCOL = FOLDER.parent / "PROTOCOL.md"
CORE = [FOLDER / name for name in ("training.py", "step_log.py", "build.py", "seeds.py")]


@dataclass(frozen=True)
class Method:
    """A balancer and how it is made; ``wrt`` is None for one that reads no gradients."""

    name: str
    wrt: Wrt | None
    options: Options


@dataclass(frozen=True)
class RunSpec:
    """One run: everything that its result depends on, apart from the code.

    ``recipe`` holds the learning rate of this run. ``evaluations`` counts those after step 0.
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
        """32 hexadecimal digits, the same for the same run in every process and on every machine."""
        return digest({"spec": asdict(self), **provenance(self)})


def provenance(spec: RunSpec) -> dict[str, str]:
    """What a result depends on besides its specification: the rules, the code, the data, PyTorch."""
    return {
        "protocol": protocol_hash(),
        "code": code_hash(spec.problem, spec.method.name),
        "data": fingerprint(spec.problem, spec.problem_options),
        "torch": str(torch.__version__),
    }


def digest(value: object) -> str:
    """32 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint(problem: str, options: Options) -> str:
    """The hash of what the problem's data come from, see `Problem.fingerprint`; found out once a process."""
    return _fingerprint(problem, json.dumps(options, sort_keys=True))


@cache
def _fingerprint(problem: str, options: str) -> str:
    return tasks.create(problem, **json.loads(options)).fingerprint()


@cache
def protocol_hash() -> str:
    """The SHA-256 of ``PROTOCOL.md``."""
    return hashlib.sha256(PROTOCOL.read_bytes()).hexdigest()


@cache
def code_hash(problem: str, balancer: str) -> str:
    """A hash of the source files that runs of this problem and this balancer go through.

    Those are the training loop, the files of the two classes and their bases, and in turn the files of the same
    packages that these import from. Read once a process, when the first key is asked for.
    """
    classes = (tasks.get(problem), balancers.get(balancer))
    packages = {"tasks", "balancers", *(_package(cls.__module__) for cls in classes)}
    todo = [sys.modules[base.__module__] for cls in classes for base in cls.__mro__]
    seen: set[ModuleType] = set()
    while todo:
        module = todo.pop()
        if module in seen or _package(module.__name__) not in packages:
            continue
        seen.add(module)
        if not hasattr(module, "__path__"):  # a package takes in all its files: its users don't depend on each of them
            todo.extend(filter(None, (inspect.getmodule(value) for value in vars(module).values())))
    files = {*CORE, *(Path(module.__file__) for module in seen if module.__file__)}
    return digest(sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files))


def _package(module: str) -> str:
    return module.partition(".")[0]
