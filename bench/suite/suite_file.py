"""Read a suite's TOML file and check all of it before anything runs.

Any mistake raises a `SuiteError` that names the file and the key: ``mine.toml: balancers[2].options.alpah: ...``. Each
problem is created, and each balancer on each problem's model, so that options which one of them refuses are found now.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import balancers
import tasks
from balancers import GradientBalancer, StaticWeighting
from balancers.engine.method.declared_method import Wrt
from bench.run import build, plugins, suite_text
from bench.run.spec import Device, Method, Options
from bench.run.suite_origin import SUITES
from bench.run.suite_text import KEPT, is_kept
from bench.run.training import reason
from tasks import MissingDataError, Shared

from . import accepted, trial_draws
from .suite_entries import BalancerEntry, ProblemEntry, StatedLimits, Suite
from .toml_table import SuiteError, TomlTable, closest

FROM_PROBLEM = "problem:"
"""Beginning of an option that stands for weights of the problem: ``"problem:KEY"`` for its fixed weights called KEY,
``"problem:first"`` for its first fixed weights, and ``"problem:ones"`` for a weight of one per task."""
SEARCH = "search"
"""The weights of static weighting in a suite that searches for them."""

ALWAYS_COMPARED = ("equal", "static")
"""The methods that any suite may compare on a reserved problem."""

MOST_STEPS = 10**15
"""The maximum number of training steps of a run: thirty years, if a step takes a microsecond."""

NOT_OPTIONS = ("fork", "wrt", "tasks", "process_group")
"""Arguments of balancers that are no options: the problem decides on the first three, and a run is one process."""


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
    try:
        written = suite_text.read(path)
    except ValueError as error:
        raise SuiteError(f"{path.name}: {error}") from error
    top = TomlTable(path.name, "", written.values, accepted.TOP)
    files = _load_plugins(top, path.parent)
    device = _device(top)
    seeds = top.table("seeds", ("tuning", "reported", "repeated", "retuning"))
    tuning, reported = seeds.take("tuning", accepted.SEEDS, ()), seeds.take("reported", accepted.SEEDS)
    repeated = seeds.take("repeated", accepted.SEEDS, ())
    if both := sorted(set(tuning) & {*reported, *repeated}):
        seeds.fail("tuning", f"{both} are reported seeds too, but a seed is for tuning or for reporting")
    if both := sorted(set(repeated) & set(reported)):
        seeds.fail("repeated", f"{both} are reported seeds too, but repeated runs need seeds of their own")
    rates = _learning_rates(top)
    if rates and not tuning:
        seeds.fail("tuning", "missing; learning rates are chosen on seeds of their own")
    searches = "search" in top.values
    grid = top.table("learning_rates", accepted.GRID)
    growths, finer = (
        grid.take("growths", accepted.ROUNDS, 1),
        float(grid.take("finer", accepted.FACTOR)) if "finer" in grid.values else None,
    )
    retuning = seeds.take("retuning", accepted.SEEDS, ())
    if both := sorted(set(retuning) & {*tuning, *reported, *repeated}):
        seeds.fail("retuning", f"{both} are other seeds of the suite too, but retuning needs seeds of its own")
    if retuning and not (repeated and finer):
        seeds.fail("retuning", "is for a suite with repeated seeds and learning_rates.finer")
    cost = top.table("cost", ("rounds", "devices"))
    rounds, timed_on = cost.take("rounds", accepted.ROUNDS, 0), cost.take("devices", accepted.DEVICES, [device])
    if rounds and timed_on == ["cuda"]:
        _require_cuda(cost, "devices")
    limits = top.table("limits", ("seconds", "memory"))
    problem_tables, balancer_tables = (
        top.tables("problems", accepted.PROBLEM),
        top.tables("balancers", accepted.BALANCER),
    )
    for tables in (problem_tables, balancer_tables):
        _require_unique_labels(tables)
    of_all = _recipe_changes(top.table("recipe", accepted.SCHEDULED))
    problems = [_problem(table, of_all) for table in problem_tables]
    if not top.take("reserved", accepted.YES_OR_NO, False):
        _refuse_reserved(problem_tables, problems, balancer_tables)
    lacks = {entry.label: _missing(table, entry) for table, entry in zip(problem_tables, problems, strict=True)}
    left_out = {label: sentence for label, sentence in lacks.items() if sentence is not None}
    problems = [entry for entry in problems if entry.label not in left_out]
    if not problems:
        raise SuiteError(f"{path.name}: no problem can be run: {'; '.join(left_out.values())}")
    searched = None if searches or not rates else partial(_rates_of_trials, grid, rates, len(rates) + growths + 2)
    methods = [_balancer(table, problems, rates if searches else (), searched) for table in balancer_tables]
    _require_models(methods, balancer_tables, finer)
    searching = [i for i, entry in enumerate(methods) if entry.searches_weights]
    if len(searching) > 1:
        balancer_tables[searching[1]].fail("options.weights", f"balancers[{searching[0]}] searches for weights already")
    return Suite(
        name=path.resolve().parent.name if is_kept(path) else path.stem,
        description=top.take("description", accepted.TEXT, ""),
        written=written,
        device=device,
        evaluations=top.take("evaluations", accepted.COUNT, 20),
        baselines=top.take("baselines", accepted.YES_OR_NO, False),
        plugins=files,
        tuning_seeds=tuple(tuning),
        reported_seeds=tuple(reported),
        repeated_seeds=tuple(repeated),
        retuning_seeds=tuple(retuning),
        learning_rates=rates,
        growths=0 if searches else growths,
        finer=finer,
        searches=searches,
        cost_rounds=rounds,
        cost_devices=tuple(timed_on),
        problems=tuple(problems),
        balancers=tuple(methods),
        left_out=left_out,
        runs_per_gpu=top.take("runs_per_gpu", accepted.COUNT, 1),
        limits=StatedLimits(**{name: float(limits.take(name, accepted.POSITIVE)) for name in limits.values}),
    )


def _refuse_reserved(
    problem_tables: list[TomlTable], problems: list[ProblemEntry], balancer_tables: list[TomlTable]
) -> None:
    """Raise a `SuiteError` if a suite that is not the evidence compares methods on a reserved problem."""
    names = (table.take("name", accepted.TEXT) for table in balancer_tables)
    others = [name for name in dict.fromkeys(names) if name in balancers.names() and name not in ALWAYS_COMPARED]
    for table, entry in zip(problem_tables, problems, strict=True):
        if entry.problem.reserved and others:
            table.fail(
                "name",
                f"{entry.name} is reserved for the evidence, so that no method is chosen by its scores: other methods "
                f"than {' and '.join(ALWAYS_COMPARED)} are compared on it by suites with reserved = true at the top. "
                f"Write that, or take out this problem, or {', '.join(others)}",
            )


def _missing(table: TomlTable, entry: ProblemEntry) -> str | None:
    """Return a sentence about the data that the problem of an entry lacks; None if it lacks none."""
    try:
        entry.problem.require()
    except MissingDataError as error:
        return str(error)
    except (Exception, SystemExit) as error:
        table.fail("name", f"require of {entry.name} raises {reason(error)}")
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
    label: str = table.take("label", accepted.TEXT, table.take("name", accepted.TEXT))
    return label


def _load_plugins(top: TomlTable, folder: Path) -> tuple[Path, ...]:
    """Load the suite's plugins, whose paths are relative to the ``folder`` of its file, and return their files."""
    names = top.take("plugins", accepted.TEXTS, ())
    files = tuple((folder / name).resolve() for name in names)
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        if not file.is_file():
            top.fail(f"plugins[{i}]", f"there is no file {name} relative to the suite's folder")
        try:
            plugins.load([file])
        except (Exception, SystemExit) as error:  # a SystemExit would end the command, and look like success
            top.fail(f"plugins[{i}]", f"{name} can't be loaded: {type(error).__name__}: {error}")
    return files


def _learning_rates(top: TomlTable) -> tuple[float, ...]:
    """Return the grid, or the learning rates of the search's trials; nothing if the suite has neither."""
    if "search" not in top.values:
        if "learning_rates" not in top.values:
            return ()
        return tuple(sorted(map(float, top.table("learning_rates", accepted.GRID).take("grid", accepted.RATES))))
    if "learning_rates" in top.values:
        top.fail("search", "learning_rates is there too; a suite has either a grid or a search")
    table = top.table("search", ("trials", "rates"))
    low, high = map(float, table.take("rates", accepted.LIMITS))
    trials = table.take("trials", accepted.TRIALS)
    try:
        return trial_draws.learning_rates(trials, low, high)
    except ValueError as error:
        table.fail("rates", str(error))


def _rates_of_trials(grid: TomlTable, rates: Sequence[float], trials: int) -> tuple[float, ...]:
    """Return as many learning rates as there are trials of searched static weights, between the ends of the grid."""
    try:
        return trial_draws.learning_rates(trials, rates[0], rates[-1])
    except ValueError as error:
        grid.fail("grid", str(error))


def _device(top: TomlTable) -> Device:
    """Return the device of the runs; "auto" is CUDA if this machine has it."""
    device = top.take("device", accepted.DEVICE, "cpu")
    if device == "cuda":
        _require_cuda(top, "device")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _require_cuda(table: TomlTable, key: str) -> None:
    """Raise a `SuiteError` about ``key``, which names CUDA alone, if this machine has no CUDA device."""
    if not torch.cuda.is_available():
        table.fail(key, '"cuda", but PyTorch finds no CUDA device on this machine')


def _recipe_changes(table: TomlTable) -> dict[str, Any]:
    """Return the changes to a recipe that a table states, besides numbers of steps and of samples."""
    changes: dict[str, Any] = {}
    if "schedule" in table.values:
        changes["schedule"] = table.take("schedule", accepted.SCHEDULE)
    if "betas" in table.values:
        changes["betas"] = tuple(map(float, table.take("betas", accepted.BETAS)))
    return changes


def _problem(table: TomlTable, of_all: Mapping[str, Any]) -> ProblemEntry:
    """Create the problem of an entry, and return it with its recipe, which has the changes ``of_all`` problems too."""
    name = table.take("name", accepted.TEXT)
    if name not in tasks.names():
        table.fail("name", f"no problem is called {name!r}{closest(name, tasks.names())}")
    options = _options(table, tasks.get(name))
    try:
        problem = tasks.create(name, **options)
    except (Exception, SystemExit) as error:
        table.fail(_culprit(options, error), _sentence(error))
    if problem.illustration:
        table.fail("name", f"{name} is an illustration, which ranks no methods; `lossbench show {name}` draws it")
    recipe = problem.full if table.take("recipe", accepted.RECIPE, "default") == "full" else problem.recipe
    if recipe is None:
        table.fail("recipe", f"{name} has no full recipe")
    changes = {key: table.take(key, accepted.COUNT) for key in ("steps", "batch_size") if key in table.values}
    changes = {**of_all, **_recipe_changes(table), **changes}
    return ProblemEntry(_label(table), name, options, replace(recipe, **changes), problem)


def _balancer(
    table: TomlTable,
    problems: list[ProblemEntry],
    rates: tuple[float, ...],
    searched: Callable[[], tuple[float, ...]] | None,
) -> BalancerEntry:
    """Create the balancer of an entry on every problem, and return how it is made.

    Args:
        rates: The learning rates of the trials of a search; empty if the suite does not search.
        searched: In a suite with a grid, returns the learning rates of the trials of searched static weights. There is
            one trial for each value of the grid, one for each time that it may grow, and two more.
    """
    name = table.take("name", accepted.TEXT)
    if name not in balancers.names():
        table.fail("name", f"no balancer is called {name!r}{closest(name, balancers.names())}")
    cls = balancers.get(name)
    wrt: Wrt | None = table.take("wrt", accepted.WRT) if "wrt" in table.values else None
    if wrt is not None and not issubclass(cls, GradientBalancer):
        table.fail("wrt", f"{name} doesn't read gradients, so it takes no wrt")
    options = _options(table, cls)
    searches_weights = issubclass(cls, StaticWeighting) and options.get("weights") == SEARCH
    if searches_weights and not rates:
        if searched is None:
            table.fail("options.weights", f'"{SEARCH}" is for a suite that has a table [search] or [learning_rates]')
        rates = searched()
    methods, trials = {}, {}
    needs_fork = table.take("needs_fork", accepted.YES_OR_NO, False)
    for entry in problems:
        if needs_fork and not _has_fork(table.file, entry):
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                model, shared = _model(table.file, entry)
                where = wrt or build.default_wrt(cls, shared)
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
        except (Exception, SystemExit) as error:
            key = "wrt" if "wrt" in str(error) else _culprit(options, error)
            table.fail(key, f"{_sentence(error)} (on {entry.label})")
        methods[entry.label], trials[entry.label] = made[0], dict(zip(rates, made[1:], strict=True))
    times = float(table.take("times_steps", accepted.POSITIVE, 1.0))
    for entry in problems:
        if entry.recipe.steps > MOST_STEPS / times:
            table.fail("times_steps", f"{times:g} times the steps of {entry.label} are more than {MOST_STEPS:.0e}")
    return BalancerEntry(
        _label(table),
        name,
        methods,
        trials if rates else {},
        searches_weights,
        times,
        float(table.take("weight_decay", accepted.DECAY, 0.0)),
        table.take("rates_around", accepted.TEXT, ""),
    )


def _has_fork(file: str, entry: ProblemEntry) -> bool:
    with torch.random.fork_rng(devices=[]):
        return _model(file, entry)[1].fork is not None


def _model(file: str, entry: ProblemEntry) -> tuple[nn.Module, Shared]:
    """Return a model of an entry's problem, and its shared parts; an error is the problem's, not the balancer's."""
    try:
        model = entry.problem.model()
        return model, entry.problem.shared(model)
    except (Exception, SystemExit) as error:
        raise SuiteError(f"{file}: the model of {entry.label} can't be used: {reason(error)}") from error


def _require_models(methods: list[BalancerEntry], tables: list[TomlTable], finer: float | None) -> None:
    """Raise a `SuiteError` if a balancer's learning rates are tried around those of one that isn't there."""
    on_grid = {entry.label: entry for entry in methods if not (entry.rates_around or entry.trials)}
    for entry, table in zip(methods, tables, strict=True):
        around = entry.rates_around
        if not around:
            continue
        if around not in on_grid:
            known = closest(around, on_grid)
            table.fail("rates_around", f"no balancer that tries the grid is labelled {around!r}{known}")
        if finer is None:
            table.fail("rates_around", "is for a suite with learning_rates.finer")
        if left_out := [problem for problem in entry.methods if problem not in on_grid[around].methods]:
            table.fail(
                "rates_around",
                f"{around} has no learning rate on {left_out[0]}, whose model has no fork; name a balancer that trains "
                "all problems that this one does, or write needs_fork = true here too",
            )


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


def _sentence(error: BaseException) -> str:
    """Return the message of an error. A refusal of an argument is a sentence; what else is raised needs its type."""
    return str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"


def _culprit(options: Options, error: BaseException) -> str:
    """Return the key that an error is about.

    That is an option if the message names exactly one; else all ``options``, or the name if there are none.
    """
    named = [name for name in options if re.search(rf"\b{re.escape(name)}\b", str(error))]
    return f"options.{named[0]}" if len(named) == 1 else "options" if options else "name"
