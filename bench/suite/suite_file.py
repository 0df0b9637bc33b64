"""Read a suite's TOML file and check all of it before anything runs.

Any mistake raises a `SuiteError` that names the file and the key: ``mine.toml: balancers[2].options.alpah: ...``. Each
problem is created, and each balancer on each problem's model, so that options which one of them refuses are found now.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch

import balancers
import tasks
from balancers import GradientBalancer, StaticWeighting
from balancers.engine.gradients import Wrt
from bench.run import build, plugins, suite_text
from bench.run.spec import Device, Method, Options
from bench.run.suite_text import KEPT, SuiteText
from tasks import MissingDataError, Problem, Recipe

from . import trial_draws
from .toml_table import SuiteError, TomlTable, ValueKind, closest

SUITES = Path(__file__).parents[1] / "suites"
"""The folder of the suites that come with the benchmark."""
FROM_PROBLEM = "problem:"
"""Beginning of an option that stands for weights of the problem: ``"problem:KEY"`` for its fixed weights called KEY,
``"problem:first"`` for its first fixed weights, and ``"problem:ones"`` for a weight of one per task."""
SEARCH = "search"
"""The weights of static weighting in a suite that searches for them."""

ALWAYS_COMPARED = ("equal", "static")
"""The methods whose scores on a reserved problem may be looked at before the evidence has run."""

NOT_OPTIONS = ("fork", "wrt", "tasks", "process_group")
"""Arguments of balancers that are no options: the problem decides on the first three, and a run is one process."""

TOP = (
    *("description", "device", "evaluations", "baselines", "plugins", "reserved", "runs_per_gpu"),
    *("seeds", "learning_rates", "search", "cost", "limits", "problems", "balancers"),
)
PROBLEM = ("name", "label", "recipe", "steps", "batch_size", "options")
BALANCER = ("name", "label", "wrt", "options")


def _whole(value: object, least: int) -> bool:
    """Check whether ``value`` is a whole number, ``least`` or more."""
    return type(value) is int and value >= least  # isinstance would let true and false pass


def _distinct(value: object, least: int) -> bool:
    """Check whether ``value`` is a list of ``least`` or more different values."""
    return isinstance(value, list) and len(value) >= least and len({*map(repr, value)}) == len(value)


TEXT = ValueKind("a text", lambda value: isinstance(value, str))
TEXTS = ValueKind(
    "a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)
)
YES_OR_NO = ValueKind("true or false", lambda value: isinstance(value, bool))
RECIPE = ValueKind('"default" or "full"', lambda value: value in ("default", "full"))
TRIALS = ValueKind("a whole number, 4 or more", lambda value: _whole(value, 4))
COUNT = ValueKind("a whole number, 1 or more", lambda value: _whole(value, 1))
ROUNDS = ValueKind("a whole number, 0 or more", lambda value: _whole(value, 0))
DEVICE = ValueKind('"cpu", "cuda" or "auto"', lambda value: value in ("cpu", "cuda", "auto"))
DEVICES = ValueKind(
    'a list of "cpu", "cuda" or both',
    lambda value: _distinct(value, 1) and all(one in get_args(Device) for one in value),
)
WRT = ValueKind('"features", "layer" or "parameters"', lambda value: value in get_args(Wrt))
SEEDS = ValueKind(
    "a list of different whole numbers, 0 or more",
    lambda value: _distinct(value, 1) and all(_whole(one, 0) for one in value),
)
RATES = ValueKind(
    "a list of different positive numbers, two or more",
    lambda value: _distinct(value, 2) and all(type(one) in (int, float) and 0 < one < float("inf") for one in value),
)
POSITIVE = ValueKind(
    "a positive number", lambda value: type(value) in (int, float) and 0 < float(str(value)) < float("inf")
)
LIMITS = ValueKind(
    "two positive numbers, the smaller first", lambda value: RATES.accepts(value) and [*value] == sorted(value)[:2]
)


@dataclass(frozen=True)
class StatedLimits:
    """The limits of each run that a suite states, by which a run fails. None states none.

    Attributes:
        seconds: The time of a run.
        memory: The resident memory of a run's process, in GiB.
    """

    seconds: float | None = None
    memory: float | None = None


UNLIMITED = StatedLimits()


@dataclass(frozen=True)
class ProblemEntry:
    """A problem of a suite; ``recipe`` is the problem's own recipe with the changes that the suite makes."""

    label: str
    name: str
    options: Options
    recipe: Recipe
    problem: Problem[Any]


@dataclass(frozen=True)
class BalancerEntry:
    """A balancer of a suite.

    Attributes:
        label: The balancer's label in the suite.
        name: Its registered name.
        methods: The balancer with its options, by the problem's label.
        trials: The balancer with the options of each trial, by the problem's label and the trial's learning rate. Empty
            in a suite that does not search.
        searches_weights: True for static weighting whose weights are searched for.
    """

    label: str
    name: str
    methods: Mapping[str, Method]
    trials: Mapping[str, Mapping[float, Method]] = field(default_factory=dict)
    searches_weights: bool = False

    def method(self, problem: str, lr: float) -> Method:
        """Return the balancer with its options on ``problem``, or with those of the trial that ``lr`` belongs to."""
        return self.trials.get(problem, {}).get(lr, self.methods[problem])


@dataclass(frozen=True)
class Suite:
    """A suite that has been read and checked.

    Attributes:
        name: The suite's name, which is also the name of its results folder.
        description: A sentence about the suite; may be empty.
        written: The suite's file as written.
        device: The device of the runs.
        evaluations: The number of evaluations during a run.
        baselines: Whether models are also trained on each task alone.
        plugins: The files that register further problems and balancers.
        tuning_seeds: The seeds of the runs by which learning rates are chosen.
        reported_seeds: The seeds of the runs that are reported.
        repeated_seeds: Other seeds, on which the reported runs are made again to see which verdicts change.
        learning_rates: The grid. If the suite ``searches``, the learning rates of the trials, all different, in the
            order of trials. If empty, each run has its problem's own learning rate, untuned.
        searches: Whether the suite searches for options and weights.
        cost_rounds: How often each step is timed; 0 for a suite that times nothing.
        cost_devices: The devices on which steps are timed.
        problems: The problems that can be run.
        balancers: The balancers.
        left_out: The problems whose data are missing, by label, and a sentence about what is missing.
        limits: The limits that a run fails by if it exceeds them.
        runs_per_gpu: How many runs share a GPU.
    """

    name: str
    description: str
    written: SuiteText
    device: Device
    evaluations: int
    baselines: bool
    plugins: tuple[Path, ...]
    tuning_seeds: tuple[int, ...]
    reported_seeds: tuple[int, ...]
    repeated_seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    searches: bool
    cost_rounds: int
    cost_devices: tuple[Device, ...]
    problems: tuple[ProblemEntry, ...]
    balancers: tuple[BalancerEntry, ...]
    left_out: Mapping[str, str]
    limits: StatedLimits = UNLIMITED
    runs_per_gpu: int = 1


def names() -> list[str]:
    """Return the names of the suites that come with the benchmark."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def find(suite: str, results: Path | None = None) -> Path:
    """Return the file of a suite.

    Args:
        suite: The path of a suite's file, the name of a suite that comes with the benchmark, or the name of a folder in
            ``results`` that keeps a suite's file.
        results: The folder that holds results folders.

    Raises:
        SuiteError: There is no such suite.
    """
    path = Path(suite)
    if path.suffix == ".py":
        raise SuiteError(
            f"{suite} is a Python file, and a suite is a .toml file. To compare methods on the problem that the file "
            f"registers: lossbench try {suite}"
        )
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not path.is_file():
            raise SuiteError(f"there is no file {suite}")
        return path
    if suite not in names():
        if results is not None and (results / suite / KEPT).is_file():
            return results / suite / KEPT
        raise SuiteError(f"no suite is called {suite!r}{closest(suite, names())}; or give the path of a .toml file")
    return SUITES / f"{suite}.toml"


def description(path: Path) -> str:
    """Return the description of the suite in ``path``, which is not checked; empty if it has none."""
    return suite_text.read(path).description


def load(path: Path) -> Suite:
    """Read and check a suite, and load its plugins.

    Raises:
        SuiteError: The first mistake that was found in the suite.
    """
    text = path.read_text(encoding="utf-8")
    try:
        written = suite_text.parse(text)
    except ValueError as error:
        raise SuiteError(f"{path.name}: {error}") from error
    top = TomlTable(path.name, "", written.values, TOP)
    files = _load_plugins(top, path.parent)
    device = _device(top)
    seeds = top.table("seeds", ("tuning", "reported", "repeated"))
    tuning, reported = seeds.take("tuning", SEEDS, ()), seeds.take("reported", SEEDS)
    repeated = seeds.take("repeated", SEEDS, ())
    if both := sorted(set(tuning) & {*reported, *repeated}):
        seeds.fail("tuning", f"{both} are reported seeds too, but a seed is for tuning or for reporting")
    if both := sorted(set(repeated) & set(reported)):
        seeds.fail("repeated", f"{both} are reported seeds too, but repeated runs need seeds of their own")
    rates = _learning_rates(top)
    if rates and not tuning:
        seeds.fail("tuning", "missing; learning rates are chosen on seeds of their own")
    searches = "search" in top.values
    cost = top.table("cost", ("rounds", "devices"))
    limits = top.table("limits", ("seconds", "memory"))
    problem_tables, balancer_tables = top.tables("problems", PROBLEM), top.tables("balancers", BALANCER)
    for tables in (problem_tables, balancer_tables):
        _require_unique_labels(tables)
    problems = [_problem(table) for table in problem_tables]
    if not top.take("reserved", YES_OR_NO, False):
        _refuse_reserved(problem_tables, problems, balancer_tables)
    left_out = {entry.label: missing for entry in problems if (missing := _missing(entry.problem))}
    problems = [entry for entry in problems if entry.label not in left_out]
    if not problems:
        raise SuiteError(f"{path.name}: no problem can be run: {'; '.join(left_out.values())}")
    methods = [_balancer(table, problems, rates if searches else ()) for table in balancer_tables]
    searching = [i for i, entry in enumerate(methods) if entry.searches_weights]
    if len(searching) > 1:
        balancer_tables[searching[1]].fail("options.weights", f"balancers[{searching[0]}] searches for weights already")
    return Suite(
        name=path.resolve().parent.name if path.name == KEPT else path.stem,
        description=top.take("description", TEXT, ""),
        written=written,
        device=device,
        evaluations=top.take("evaluations", COUNT, 20),
        baselines=top.take("baselines", YES_OR_NO, False),
        plugins=files,
        tuning_seeds=tuple(tuning),
        reported_seeds=tuple(reported),
        repeated_seeds=tuple(repeated),
        learning_rates=rates,
        searches=searches,
        cost_rounds=cost.take("rounds", ROUNDS, 0),
        cost_devices=tuple(cost.take("devices", DEVICES, (device,))),
        problems=tuple(problems),
        balancers=tuple(methods),
        left_out=left_out,
        runs_per_gpu=top.take("runs_per_gpu", COUNT, 1),
        limits=StatedLimits(**{name: float(limits.take(name, POSITIVE)) for name in limits.values}),
    )


def _refuse_reserved(
    problem_tables: list[TomlTable], problems: list[ProblemEntry], balancer_tables: list[TomlTable]
) -> None:
    """Raise a `SuiteError` if a suite that is not the evidence compares methods on a reserved problem."""
    names = (table.take("name", TEXT) for table in balancer_tables)
    others = [name for name in dict.fromkeys(names) if name in balancers.names() and name not in ALWAYS_COMPARED]
    for table, entry in zip(problem_tables, problems, strict=True):
        if entry.problem.reserved and others:
            table.fail(
                "name",
                f"{entry.name} is reserved: until the evidence has run, no method's score on it may be looked at, "
                f"except those of {' and '.join(ALWAYS_COMPARED)}. Take this problem out of the suite, or "
                f"{', '.join(others)}. Only in a suite that is the evidence, write reserved = true at the top",
            )


def _missing(problem: Problem[Any]) -> str | None:
    """Return a sentence about the data that the problem lacks; None if it lacks none."""
    try:
        problem.require()
    except MissingDataError as error:
        return str(error)
    return None


def _require_unique_labels(tables: list[TomlTable]) -> None:
    """Raise a `SuiteError` if two problems, or two balancers, have the same label."""
    labels = [_label(table) for table in tables]
    for table, label in zip(tables, labels, strict=True):
        first = tables[labels.index(label)]
        if first is not table:
            table.fail("label", f"{label!r} is the label of {first.path} too; give another")


def _label(table: TomlTable) -> str:
    """Return the label of a problem or a balancer; by default its name."""
    label: str = table.take("label", TEXT, table.take("name", TEXT))
    return label


def _load_plugins(top: TomlTable, folder: Path) -> tuple[Path, ...]:
    """Load the suite's plugins, whose paths are relative to the ``folder`` of its file, and return their files."""
    names = top.take("plugins", TEXTS, ())
    files = tuple((folder / name).resolve() for name in names)
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        if not file.is_file():
            top.fail(f"plugins[{i}]", f"there is no file {name} relative to the suite's folder")
        try:
            plugins.load([file])
        except Exception as error:
            top.fail(f"plugins[{i}]", f"{name} can't be loaded: {type(error).__name__}: {error}")
    return files


def _learning_rates(top: TomlTable) -> tuple[float, ...]:
    """Return the grid, or the learning rates of the search's trials; nothing if the suite has neither."""
    if "search" not in top.values:
        if "learning_rates" not in top.values:
            return ()
        return tuple(sorted(map(float, top.table("learning_rates", ("grid",)).take("grid", RATES))))
    if "learning_rates" in top.values:
        top.fail("search", "learning_rates is there too; a suite has either a grid or a search")
    table = top.table("search", ("trials", "rates"))
    low, high = map(float, table.take("rates", LIMITS))
    return trial_draws.learning_rates(table.take("trials", TRIALS), low, high)


def _device(top: TomlTable) -> Device:
    """Return the device of the runs; "auto" is CUDA if this machine has it."""
    device = top.take("device", DEVICE, "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        top.fail("device", '"cuda", but PyTorch finds no CUDA device on this machine')
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _problem(table: TomlTable) -> ProblemEntry:
    """Create the problem of an entry, and return it with its recipe."""
    name = table.take("name", TEXT)
    if name not in tasks.names():
        table.fail("name", f"no problem is called {name!r}{closest(name, tasks.names())}")
    options = _options(table, tasks.get(name))
    try:
        problem = tasks.create(name, **options)
    except Exception as error:
        table.fail(_culprit(options, error), str(error))
    if problem.illustration:
        table.fail("name", f"{name} is an illustration, which ranks no methods; `lossbench show {name}` draws it")
    recipe = problem.full if table.take("recipe", RECIPE, "default") == "full" else problem.recipe
    if recipe is None:
        table.fail("recipe", f"{name} has no full recipe")
    changes = {key: table.take(key, COUNT) for key in ("steps", "batch_size") if key in table.values}
    return ProblemEntry(_label(table), name, options, replace(recipe, **changes), problem)


def _balancer(table: TomlTable, problems: list[ProblemEntry], rates: tuple[float, ...]) -> BalancerEntry:
    """Create the balancer of an entry on every problem, and return how it is made.

    Args:
        rates: The learning rates of the trials of a search; empty if the suite does not search.
    """
    name = table.take("name", TEXT)
    if name not in balancers.names():
        table.fail("name", f"no balancer is called {name!r}{closest(name, balancers.names())}")
    cls = balancers.get(name)
    wrt: Wrt | None = table.take("wrt", WRT) if "wrt" in table.values else None
    if wrt is not None and not issubclass(cls, GradientBalancer):
        table.fail("wrt", f"{name} doesn't read gradients, so it takes no wrt")
    options = _options(table, cls)
    searches_weights = issubclass(cls, StaticWeighting) and options.get("weights") == SEARCH
    if searches_weights and not rates:
        table.fail("options.weights", f'"{SEARCH}" is for a suite that has a table [search]')
    methods, trials = {}, {}
    for entry in problems:
        try:
            with torch.random.fork_rng(devices=[]):
                model = entry.problem.model()
                where = wrt or build.default_wrt(cls, entry.problem.shared(model))
                fixed = {key: _resolve(table, key, value, entry) for key, value in options.items()}
                if searches_weights:
                    own = next(iter(entry.problem.static_weights.values()), None)
                    drawn = trial_draws.weights(own, len(entry.problem.tasks), len(rates))
                    of_trials: list[Options] = [{**fixed, "weights": weights} for weights in drawn]
                    fixed = dict(of_trials[0])
                else:
                    of_trials = trial_draws.options(cls.tunable, fixed, len(rates)) if rates else []
                made = [Method(name, where, options) for options in (fixed, *of_trials)]
                for method in made:
                    build.balancer(method, entry.problem, model)
        except SuiteError:
            raise
        except Exception as error:
            key = "wrt" if "wrt" in str(error) else _culprit(options, error)
            table.fail(key, f"{error} (on {entry.label})")
        methods[entry.label], trials[entry.label] = made[0], dict(zip(rates, made[1:], strict=True))
    return BalancerEntry(_label(table), name, methods, trials if rates else {}, searches_weights)


def _options(table: TomlTable, cls: type) -> dict[str, Any]:
    """Return the options of an entry for the problem or balancer ``cls``.

    Raises:
        SuiteError: ``cls`` does not take an option, or needs one that is missing.
    """
    parameters = inspect.signature(cls).parameters.values()
    takes = {p.name: p for p in parameters if p.name not in NOT_OPTIONS and p.kind is not p.VAR_POSITIONAL}
    others = [name for name, p in takes.items() if p.kind is p.VAR_KEYWORD]
    options = table.table("options", table.values.get("options", ()) if others else takes).values
    for name, p in takes.items():
        if name not in options and name not in others and p.default is p.empty:
            table.fail("options", f"{table.values['name']} needs the option {name!r}")
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            table.fail(f"options.{name}", f"expected texts, finite numbers, true or false, got {value!r}")
    return dict(options)


def _resolve(table: TomlTable, key: str, value: object, entry: ProblemEntry) -> object:
    """Return an option's value; if it stands for weights of the problem (see `FROM_PROBLEM`), return these weights."""
    if not isinstance(value, str) or not value.startswith(FROM_PROBLEM):
        return value
    weightings, name = entry.problem.static_weights, value.removeprefix(FROM_PROBLEM)
    if name == "ones":
        return [1.0] * len(entry.problem.tasks)
    if name == "first" and weightings:
        return list(next(iter(weightings.values())))
    if name not in weightings:
        table.fail(f"options.{key}", f"{entry.label} has no fixed weights called {name!r}{closest(name, weightings)}")
    return list(weightings[name])


def _culprit(options: Options, error: Exception) -> str:
    """Return the key that an error is about.

    That is an option if the message names exactly one; else all ``options``, or the name if there are none.
    """
    named = [name for name in options if re.search(rf"\b{re.escape(name)}\b", str(error))]
    return f"options.{named[0]}" if len(named) == 1 else "options" if options else "name"
