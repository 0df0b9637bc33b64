"""Time whole training steps of combining methods, ours and other packages', and keep each cell as it is measured.

A cell is a method at a place (features, last shared layer, all shared parameters) in a network with T tasks. Ours and
each package's take turns with equal weighting. A package's fastest way is found by a short trial.
"""

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

import balancers
from balancers import GradientBalancer
from balancers.engine.method.declared_method import Wrt
from bench.cost.operation_count import count
from bench.cost.step_clock import interleave, single_thread
from bench.cost.step_comparison import time_row
from bench.cost.subject import MakeStep
from bench.run import atomic_file, code_hash, machine_facts

from . import by_hand, libmtl_steps, solver_packages
from .contender import Contender, EqualStep, OurStep
from .trunk_networks import NETWORKS

PLACES: tuple[Wrt, ...] = get_args(Wrt)
NUM_TASKS = (2, 10, 40)
METHODS = (
    *("aligned-mtl", "cagrad", "config", "dual-proj", "excess-mtl", "fairgrad", "graddrop", "gradvac", "imtl-g"),
    *("mgda", "nash-mtl", "pcgrad", "upgrad"),
)
"""The methods that we and TorchJD both have."""
LEFT_OUT: Mapping[tuple[str, Wrt], str] = {("config", "layer"): "TorchJD's ConFIG returns a direction and no weights"}
"""Places at which TorchJD has no counterpart of a method, and why."""
OTHER_LENGTH = ("nash-mtl",)
"""Methods whose direction is the same in all packages, but not its length."""
FEWEST, MOST = 6, 300
"""Minimum and maximum number of rounds; six are the fewest that have a 95 % interval."""
WARM_UP = 10
"""Maximum number of rounds of each pair before the timed ones, which also show how long a round takes."""
TRIAL = 3
"""Number of steps of each way in the trial."""
BLOCK = 4
"""Rounds that a pair makes before the next pair's turn: few, so that all pairs see the same stretch of time, and even,
so that both go first equally often."""
TEXTS = ("network", "place", "method", "contender", "version", "way", "missing", "machine", "key")
WHOLE = dict.fromkeys(("rounds", "peak_bytes", "equal_peak_bytes"), "Int64")
COLUMNS = (
    *("network", "num_tasks", "place", "method", "contender", "version", "way"),
    *("rounds", "median_ms", "equal_ms", "ratio", "ratio_low", "ratio_high", "peak_bytes", "equal_peak_bytes"),
    *("gradient_deviation", "missing", "machine", "key"),
)

Row = dict[str, Any]
Ways = Mapping[str, Callable[[], Contender]]


class Cell(NamedTuple):
    """A method at a place, in a network with T tasks."""

    network: str
    num_tasks: int
    place: Wrt
    method: str


def cells(
    networks: Iterable[str], num_tasks: Iterable[int], places: Iterable[Wrt], methods: Sequence[str]
) -> Iterator[Cell]:
    """Yield the cells for which both sides have the method at the place; those with few tasks come first."""
    networks, places = list(networks), list(places)
    for T in num_tasks:
        for network in networks:
            for place in places:
                for method in methods:
                    cls = balancers.get(method)
                    assert issubclass(cls, GradientBalancer)
                    if place not in cls.undefined_for and (method, place) not in LEFT_OUT:
                        yield Cell(network, T, place, method)


class Package(NamedTuple):
    """Another package, or lines that do without any.

    Attributes:
        name: name in tables.
        module: name by which it is imported.
        has: returns whether it has the cell's method at its place.
        ways: returns, by name, what makes a contender for such a cell in each of its ways.
    """

    name: str
    module: str
    has: Callable[[Cell], bool]
    ways: Callable[[Cell, MakeStep], Ways]


def _ways_of_torchjd(cell: Cell, make_step: MakeStep) -> Ways:
    from .torchjd_steps import ways

    return ways(cell.method, cell.place, make_step, cell.num_tasks)


TORCHJD = Package("TorchJD", "torchjd", lambda cell: True, _ways_of_torchjd)
LIBMTL = Package(
    "LibMTL",
    "LibMTL",
    lambda cell: libmtl_steps.has(cell.method, cell.place),
    lambda cell, make_step: libmtl_steps.ways(cell.method, make_step, cell.num_tasks),
)
BY_HAND = Package(
    by_hand.ByHand.name,
    "torch",
    lambda cell: by_hand.has(cell.method, cell.place),
    lambda cell, make_step: by_hand.ways(make_step, cell.num_tasks),
)
PACKAGES = (TORCHJD, LIBMTL, BY_HAND)


class UnmeasuredError(Exception):
    """A package's step could not be measured; the message says why."""


def measure_all(
    chosen: Sequence[Cell],
    seconds: float,
    path: Path,
    say: Callable[[str], None],
    packages: Sequence[Package] = PACKAGES,
) -> pd.DataFrame:
    """Measure those of the chosen cells that the CSV at ``path`` lacks, add each to it, and return its table.

    What other code, another machine or other versions of the packages measured is dropped from it.

    Args:
        chosen: the cells.
        seconds: see `measure`.
        path: the CSV, which need not exist.
        say: is called with a line of text for each cell.
        packages: the packages to compare with.

    Returns:
        `COLUMNS`, with a row for each cell and contender, and nan where something was not measured:

        - ``contender`` (``ours`` or the package), its ``version``, and its fastest ``way``;
        - number of ``rounds``; ``median_ms`` and ``equal_ms``: median times of its step and of equal weighting's;
          ``ratio``: median of the one over the other, with its 95 % interval, ``ratio_low`` to ``ratio_high``;
        - ``peak_bytes`` and ``equal_peak_bytes``: see `bench.cost.operation_count.Counts`;
        - ``gradient_deviation``: distance of the trunk's gradient from ours on the first step, relative to ours. It is
          inf if the gradient is not finite, nan for methods with random numbers, and of directions alone for methods in
          `OTHER_LENGTH`;
        - ``missing``: why it was not measured; ``machine``; ``key``: see `key`.
    """
    now = key(packages)
    table, dropped = _kept(path, now)
    if dropped:
        say(f"{path} has {dropped} rows of other code, versions or another machine, which are measured again")
    done = set(table[list(Cell._fields)].itertuples(index=False, name=None))
    with single_thread(), _few_to_collect() as settle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchJD's Nash-MTL has cvxpy warn at every problem
        for number, cell in enumerate(chosen, 1):
            if cell in done:
                continue
            settle()
            rows = pd.DataFrame(measure(cell, seconds, packages))
            rows = rows.assign(machine=_machine(), key=now).reindex(columns=list(COLUMNS)).astype(WHOLE)
            table = rows if table.empty else pd.concat([table, rows], ignore_index=True)
            atomic_file.write(path, table.to_csv(index=False).encode())
            say(f"{number} of {len(chosen)}: {_in_words(cell, rows)}")
    return table


def key(packages: Sequence[Package]) -> str:
    """Return a hash of what the times depend on: our code, PyTorch, the packages, solvers and the processor."""
    roots = (
        __name__,
        "tasks.regression",
        *(f"{__package__}.{name}" for name in ("torchjd_steps", "libmtl_steps", "by_hand")),
    )
    methods = Path(balancers.__file__).parent.rglob("*.py")
    code = code_hash.file_hashes(code_hash.files_of(roots, code_hash.OURS) | set(methods), code_hash.OURS)
    versions = {package.name: _version(package) for package in packages} | solver_packages.versions()
    return code_hash.digest([code, versions, torch.__version__, _machine()])


def measure(cell: Cell, seconds: float, packages: Sequence[Package] = PACKAGES) -> list[Row]:
    """Measure ours and each package's step, and return a row for each; a package without the method has none.

    Args:
        cell: what to measure.
        seconds: how long each contender is timed, in `FEWEST` to `MOST` rounds; also the limit of each way's trial.
        packages: the packages to compare with.
    """
    make_step = NETWORKS[cell.network](cell.num_tasks)
    equal, ours = EqualStep(make_step, cell.num_tasks), OurStep(make_step, cell.method, cell.place)
    equal.first_gradient()
    gradient = ours.first_gradient()
    measured: dict[str, Contender] = {OurStep.name: ours}
    rows: dict[str, Row] = {OurStep.name: {"version": "", "way": "", "gradient_deviation": 0.0, "missing": ""}}
    for package in packages:
        if not package.has(cell):
            continue
        rows[package.name] = {"version": _version(package), "way": ""}
        try:
            way, contender, theirs = _fastest(package, cell, make_step, seconds)
            with _reported():  # a gradient of another shape, where parameters have none
                deviation = deviation_from(theirs, gradient, cell)
        except UnmeasuredError as error:
            rows[package.name]["missing"] = str(error)
            continue
        measured[package.name] = contender
        rows[package.name] |= {"way": way, "gradient_deviation": deviation}
    figures = _figures(equal, measured, seconds)
    peak = count(equal, torch.device("cpu")).peak_bytes
    for name in measured:
        rows[name] |= {"missing": "", "equal_peak_bytes": peak} | figures[name]
    return [{**cell._asdict(), "contender": name, **row} for name, row in rows.items()]


def deviation_from(gradient: Tensor, ours: Tensor, cell: Cell) -> float:
    """Return the relative distance of a package's gradient from ours.

    It is inf if the package's is not finite, and otherwise nan where they depend on random numbers.
    """
    if not gradient.isfinite().all():
        return math.inf
    if is_random(cell.method, cell.num_tasks):
        return math.nan
    if cell.method in OTHER_LENGTH:
        gradient = gradient * (ours.norm() / gradient.norm())
    return float((gradient - ours).norm() / ours.norm())


def is_random(method: str, num_tasks: int) -> bool:
    """Return whether the first step depends on random numbers: two tasks have one order only."""
    return balancers.get(method).random and (num_tasks > 2 or method == "graddrop")


def _fastest(package: Package, cell: Cell, make_step: MakeStep, seconds: float) -> tuple[str, Contender, Tensor]:
    """Return the name of a package's fastest way, its contender and its first gradient.

    Raises:
        UnmeasuredError: the package is missing, or no way works.
    """
    if find_spec(package.module) is None:
        raise UnmeasuredError("not installed; pip install '.[peers]'")
    failures: list[UnmeasuredError] = []
    least, found = math.inf, None
    with _reported():
        ways = package.ways(cell, make_step)
    for name, make in ways.items():
        try:
            with _reported():
                contender = make()
                gradient = contender.first_gradient()
                fastest = _least_seconds(contender, seconds)
        except UnmeasuredError as error:
            failures.append(error)
            continue
        if fastest < least:
            least, found = fastest, (name, contender, gradient)
    if found is None:
        raise failures[0]
    return found


def _least_seconds(contender: Contender, seconds: float) -> float:
    """Return the time of the fastest of `TRIAL` steps, or of fewer if they take longer than ``seconds``."""
    taken: list[float] = []
    while len(taken) < TRIAL and sum(taken) <= seconds:
        taken.append(_seconds(contender))
    return min(taken)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _figures(equal: EqualStep, contenders: Mapping[str, Contender], seconds: float) -> dict[str, Row]:
    """Time each contender next to equal weighting, and return its figures; of another package's that fails, why."""
    rest, figures, rounds = dict(contenders), dict[str, Row](), dict[str, int]()
    blocks: dict[str, list[NDArray[np.float64]]] = {name: [] for name in rest}

    def of_each(call: Callable[[str, Contender], object]) -> None:
        for name, contender in list(rest.items()):
            try:
                with _reported():
                    call(name, contender)
            except UnmeasuredError as error:
                if name == OurStep.name:
                    raise
                del rest[name]
                figures[name] = {"missing": str(error)}

    def warm_up(name: str, contender: Contender) -> None:
        taken: list[float] = []
        while len(taken) < WARM_UP and sum(taken) <= seconds / 4:
            taken.append(_seconds(equal) + _seconds(contender))
        rounds[name] = min(max(int(seconds / min(taken)), FEWEST), MOST)

    def time_block(start: int, name: str, contender: Contender) -> None:
        length = min(BLOCK, rounds[name] - start)
        if length > 0:
            blocks[name].append(interleave([equal, contender], length))

    def finish(name: str, contender: Contender) -> None:
        of_equal, own = np.concatenate(blocks[name], axis=1)
        figures[name] = {
            "rounds": rounds[name],
            "equal_ms": float(np.median(of_equal)) * 1000,
            **time_row(own, of_equal, cycle=1),
            "peak_bytes": count(contender, torch.device("cpu")).peak_bytes,
        }

    of_each(warm_up)
    for start in range(0, MOST, BLOCK):
        of_each(partial(time_block, start))
    of_each(finish)
    return figures


@contextmanager
def _few_to_collect() -> Iterator[Callable[[], None]]:
    """Yield a function after which collections skip what is alive by then, so that one before each block is fast."""

    def settle() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield settle
    finally:
        gc.unfreeze()


@contextmanager
def _reported() -> Iterator[None]:
    """Raise an `UnmeasuredError` in place of any error in the ``with`` block, so that it costs one row and no other."""
    try:
        yield
    except Exception as error:
        [first, *_] = str(error).splitlines() or [""]
        raise UnmeasuredError(f"{type(error).__name__}: {first}".rstrip(": ")) from error


def _kept(path: Path, now: str) -> tuple[pd.DataFrame, int]:
    """Return the rows of the CSV that have this key, and the number of those that have another."""
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS)), 0
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str")).fillna(dict.fromkeys(TEXTS, "")).astype(WHOLE)
    current = table["key"] == now
    return table[current].reset_index(drop=True), int((~current).sum())


def _in_words(cell: Cell, rows: pd.DataFrame) -> str:
    ratios = ", ".join(
        f"{row.contender} {row.ratio:.2f}" if row.missing == "" else f"{row.contender} – ({row.missing})"
        for row in rows.itertuples()
    )
    return f"{cell.network}, {cell.num_tasks} tasks, {cell.place}, {cell.method}: {ratios}"


def _version(package: Package) -> str:
    return "" if find_spec(package.module) is None else version(package.module)


def _machine() -> str:
    return machine_facts.processor()
